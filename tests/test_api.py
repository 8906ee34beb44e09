"""Every route and every error of the contract, over WSGI, on a file database."""

import re
from itertools import pairwise

import pytest

pytestmark = pytest.mark.engines


@pytest.fixture
def cast(api):
    """Max, Dave and Yaris are users 1, 2 and 3; Website is project 1."""
    api.project()
    return [api.user(name) for name in ("Max", "Dave", "Yaris")]


# ---------------------------------------------------------------- users


def test_a_created_user_is_found_where_location_points(api):
    answer = api.post_json("/users", {"name": " Max ", "email": "max@example.com "}, status=201)
    assert answer.json == {"id": 1, "name": "Max", "email": "max@example.com"}
    assert answer.headers["Location"].endswith("/users/1")
    assert api.get("/users/1").json == answer.json
    assert api.get("/users").json == [answer.json]


def test_a_put_replaces_a_user_and_may_carry_what_a_get_returned(api):
    user = api.user() | {"name": "Maximilian"}
    assert api.put_json("/users/1", user).json == user
    assert api.get("/users/1").json == user


def test_a_put_of_a_user_names_each_field_that_is_missing(api):
    api.user()
    problem = api.problem("PUT", "/users/1", {"name": "Max"})
    assert problem["status"] == 422
    assert [error["pointer"] for error in problem["errors"]] == ["#/email"]


def test_an_email_address_is_taken_whatever_its_case(api):
    api.user("Max")
    assert (
        api.problem("POST", "/users", {"name": "Imp", "email": "MAX@Example.com"})["status"] == 409
    )
    api.user("Dave")
    assert (
        api.problem("PUT", "/users/2", {"name": "Dave", "email": "Max@example.com"})["status"]
        == 409
    )
    assert api.get("/users/2").json["email"] == "dave@example.com"


def test_a_user_may_change_the_case_of_their_own_address(api):
    api.user("Max")
    changed = {"name": "Max", "email": "Max@Example.com"}
    assert api.put_json("/users/1", changed).json["email"] == "Max@Example.com"


def test_deleting_a_user_unassigns_them_and_counts_as_a_change(api, cast, clock):
    api.ticket(assignees=[1, 2])
    untouched = api.ticket(assignees=[2])
    clock.advance(minutes=1)
    api.delete("/users/1", status=204)
    ticket = api.get("/tickets/1").json
    assert ticket["assignees"] == [cast[1]]
    assert ticket["updated_at"] == "2026-11-22T10:33:00.123Z"
    (entry,) = api.get("/tickets/1/history").json
    assert entry["changes"]["assignees"]["to"] == [{"id": 2, "name": "Dave"}]
    assert api.get("/tickets/2").json == untouched
    assert api.problem("GET", "/users/1")["status"] == 404
    assert api.problem("DELETE", "/users/1")["status"] == 404


def test_no_id_is_used_twice_even_after_a_deletion(api):
    api.user("Max")
    api.delete("/users/1")
    assert api.user("Max")["id"] == 2
    api.project()
    api.delete("/projects/1")
    assert api.project()["id"] == 2


# ---------------------------------------------------------------- projects


def test_a_project_counts_its_tickets_by_status(api):
    assert api.project()["tickets"] == {"open": 0, "in progress": 0, "closed": 0}
    other = api.project("Shop")["id"]
    for status in ("open", "open", "in progress", "closed"):
        api.ticket(status=status)
    api.change(1, status="closed")
    api.change(2, project_id=other)
    projects = api.get("/projects").json
    assert projects == [api.get("/projects/1").json, api.get("/projects/2").json]
    assert [project["tickets"] for project in projects] == [
        {"open": 0, "in progress": 1, "closed": 2},
        {"open": 1, "in progress": 0, "closed": 0},
    ]


def test_a_project_is_renamed_with_what_a_get_returned(api):
    project = api.project() | {"name": "Web shop"}
    assert api.put_json("/projects/1", project).json == project


@pytest.mark.parametrize("name", ["Ärger", "ÄRGER", "a\u0308rger"])
def test_a_project_name_is_taken_whatever_its_case(api, name):
    api.project("ärger")
    assert api.problem("POST", "/projects", {"name": name})["status"] == 409


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Stra\u00dfe", "STRASSE"),
        ("Caf\u00e9", "Cafe\u0301"),
        ("\u00c5ngstr\u00f6m", "A\u030angstro\u0308m"),
        ("\u6f22\u5b57 1", "\u6f22\ufe00\u5b57 1"),
        (
            "\u0645\u06cc\u062e\u0648\u0627\u0647\u0645",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        ),
        ("The shop", "The  shop"),
        ("The shop", "The\u00a0shop"),
        ("K\u00e4se", "K\u00e4\u00adse"),
    ],
)
def test_a_project_name_that_reads_the_same_is_taken(api, one, other):
    api.project(one)
    api.project("Something else")
    assert api.problem("POST", "/projects", {"name": other})["status"] == 409
    assert api.problem("PUT", "/projects/2", {"name": other})["status"] == 409
    assert api.put_json("/projects/1", {"name": other}).json["name"] == other


def test_a_project_with_tickets_is_not_deleted_and_the_answer_counts_them(api):
    api.project()
    api.ticket()
    problem = api.problem("DELETE", "/projects/1")
    assert problem["status"] == 409
    assert problem["tickets"] == {"open": 1, "in progress": 0, "closed": 0}
    assert api.get("/tickets/1").json["project_id"] == 1


def test_a_project_without_tickets_is_deleted(api):
    api.project()
    api.delete("/projects/1", status=204)
    assert api.problem("GET", "/projects/1")["status"] == 404


# ---------------------------------------------------------------- tickets


def test_a_ticket_comes_back_as_the_contract_shows_it(api, cast):
    answer = api.post_json(
        "/tickets",
        {"title": "Fix the database", "project_id": 1, "status": "in progress", "assignees": [1]},
        status=201,
    )
    assert answer.headers["Location"].endswith("/tickets/1")
    assert answer.json == {
        "id": 1,
        "title": "Fix the database",
        "description": None,
        "project_id": 1,
        "status": "in progress",
        "assignees": [{"id": 1, "name": "Max", "email": "max@example.com"}],
        "created_at": "2026-11-22T10:32:00.123Z",
        "updated_at": None,
    }
    assert list(answer.json) == list(api.get("/tickets/1").json)
    assert api.get("/tickets/1").json == answer.json


def test_a_ticket_may_be_sent_back_as_it_was_got(api, cast):
    ticket = api.ticket(assignees=[1, 2], description="It is slow.\n\tVery.")
    assert api.put_json("/tickets/1", ticket).json == ticket
    assert api.patch_json("/tickets/1", ticket).json == ticket
    assert api.get("/tickets/1/history").json == []


def test_a_user_named_twice_counts_once(api, cast):
    assert api.ticket(assignees=[2, cast[1], 2, 1])["assignees"] == cast[:2]


def test_a_put_must_carry_every_field_and_points_to_patch(api, cast):
    before = api.ticket(description="kept", assignees=[1])
    problem = api.problem("PUT", "/tickets/1", {"title": "New", "status": "open"})
    assert problem["status"] == 422
    missing = {error["pointer"]: error["detail"] for error in problem["errors"]}
    assert missing.keys() == {"#/description", "#/project_id", "#/assignees"}
    assert all("PATCH" in detail for detail in missing.values())
    assert api.get("/tickets/1").json == before


def test_a_put_replaces_the_whole_ticket(api, cast, clock):
    before = api.ticket(description="old", assignees=[1, 2])
    clock.advance(seconds=1)
    body = {
        "title": "New",
        "description": None,
        "project_id": api.project("Shop")["id"],
        "status": "closed",
        "assignees": [3],
    }
    after = api.put_json("/tickets/1", body).json
    assert after == before | body | {
        "assignees": [cast[2]],
        "updated_at": "2026-11-22T10:32:01.123Z",
    }
    assert api.get("/tickets/1").json == after


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({}, {}),
        ({"title": "Other"}, {"title": "Other"}),
        ({"description": None}, {"description": None}),
        ({"description": " more "}, {"description": "more"}),
        ({"status": "closed"}, {"status": "closed"}),
        ({"assignees": []}, {"assignees": []}),
        ({"id": 7, "created_at": "x", "updated_at": None}, {}),
    ],
)
@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_a_patch_changes_only_what_it_names(api, cast, patch, expected, media_type):
    before = api.ticket(description="text", assignees=[1])
    answer = api.patch_json("/tickets/1", patch, content_type=media_type)
    unchanged = {key: before[key] for key in before if key not in ("updated_at", *expected)}
    assert {key: answer.json[key] for key in unchanged} == unchanged
    assert {key: answer.json[key] for key in expected} == expected


def test_a_change_that_changes_nothing_leaves_no_trace(api, cast, clock):
    before = api.get("/tickets/{}".format(api.ticket(assignees=[1])["id"]))
    mail = api.emails()
    clock.advance(hours=1)
    for answer in (
        api.patch_json("/tickets/1", {"title": " Fix the database ", "assignees": [1]}),
        api.put("/tickets/1/assignees/1"),
    ):
        assert answer.status_code == 200
        assert answer.json == before.json
        assert answer.headers["ETag"] == before.headers["ETag"]
    assert api.get("/tickets/1/history").json == []
    assert [email["id"] for email in api.emails()] == [email["id"] for email in mail]


@pytest.mark.parametrize(
    ("description", "again"),
    [
        (None, ""),
        ("", None),
        ("One\nTwo", "One\r\nTwo"),
        ("One\r\nTwo", "One\rTwo"),
        ("Caf\u00e9", "Cafe\u0301"),
    ],
)
def test_a_text_that_reads_the_same_is_no_change(api, cast, clock, description, again):
    before = api.ticket(assignees=[1], title="Caf\u00e9", description=description)
    mails = api.emails()
    clock.advance(seconds=1)
    assert api.change(1, description=again, title="Cafe\u0301") == before
    assert api.put_json("/tickets/1", before | {"description": again}).json == before
    assert api.get("/tickets/1/history").json == []
    assert len(api.emails()) == len(mails)
    changed = api.change(1, description=again, status="closed")
    assert changed["description"] == description
    assert api.get("/tickets/1/history").json[0]["changes"].keys() == {"status"}


def test_a_change_of_case_only_is_a_change_and_is_found(api, cast):
    api.ticket(title="\u00c4rger mit Max", description="ABC")
    assert api.change(1, title="\u00e4rger MIT max")["title"] == "\u00e4rger MIT max"
    for text in ("\u00c4RGER", "\u00e4rger mit", "max", "abc"):
        assert len(api.get("/tickets", {"text": text}).json) == 1
    for n in range(70):  # beyond those that are looked at one by one
        api.ticket(title=f"Other {n}")
    api.change(1, title="\u00c4RGER mit max")
    assert [ticket["id"] for ticket in api.get("/tickets", {"text": "\u00e4rger"}).json] == [1]


def test_two_characters_of_the_edge_of_unicode_are_two_to_the_search(api):
    api.project()
    for n in range(70):
        api.ticket(title=("a\ufffeb", "a\ufffdb")[n % 2] + str(n))
    found = api.get("/tickets", {"text": "a\ufffeb", "limit": 100}).json
    assert len(found) == 35
    assert all("\ufffe" in ticket["title"] for ticket in found)


def test_a_search_does_not_run_from_the_title_into_the_description(api):
    api.project()
    api.ticket(title="One", description="Two")
    for text in ("onetwo", "one two", "one\ntwo", "e\nT"):
        assert api.get("/tickets", {"text": text}).json == []


def test_a_ticket_has_at_most_100_assignees(api):
    api.project()
    users = [api.user(f"User {n}", f"u{n}@example.com")["id"] for n in range(101)]
    body = {"title": "T", "project_id": 1, "status": "open", "assignees": users}
    told = api.problem("POST", "/tickets", body)
    assert (told["status"], told["errors"]) == (
        422,
        [{"pointer": "#/assignees", "detail": "must have at most 100 items"}],
    )
    assert len(api.ticket(assignees=users[:100] * 5)["assignees"]) == 100  # each counts once
    told = api.problem("PUT", "/tickets/1/assignees/101")
    assert (told["status"], told["errors"][0]["pointer"]) == (422, "#/assignees")
    assert api.put("/tickets/1/assignees/100", status=200)
    assert api.problem("PATCH", "/tickets/1", {"assignees": users})["status"] == 422
    assert api.delete("/tickets/1/assignees/1", status=200)
    assert len(api.put("/tickets/1/assignees/101", status=200).json["assignees"]) == 100


def test_a_comment_alone_is_a_change_and_is_mailed(api, cast, clock):
    api.ticket(assignees=[1])
    clock.advance(seconds=1)
    changed = api.change(1, comment=" It happens only under load. ")
    assert changed["updated_at"] == "2026-11-22T10:32:01.123Z"
    (entry,) = api.get("/tickets/1/history").json
    assert (entry["comment"], entry["changes"]) == ("It happens only under load.", {})
    assert len(api.emails()) == 2
    for nothing in (None, "", "  "):
        assert api.change(1, comment=nothing) == changed
    assert len(api.get("/tickets/1/history").json) == 1
    put = changed | {"status": "closed", "comment": "Done."}
    assert "comment" not in api.put_json("/tickets/1", put).json
    assert api.get("/tickets/1/history").json[1]["comment"] == "Done."
    assert api.problem("PATCH", "/tickets/1", {"comment": 7})["errors"][0]["pointer"] == "#/comment"
    assert api.problem("POST", "/tickets", put)["status"] == 422


def test_who_changed_it_is_what_the_host_application_says(api, cast):
    api.ticket()
    api.patch_json("/tickets/1", {"status": "closed"}, extra_environ={"REMOTE_USER": "dave"})
    api.patch_json("/tickets/1", {"status": "open"}, extra_environ={"REMOTE_USER": ""})
    api.put("/tickets/1/assignees/1", extra_environ={"REMOTE_USER": "max@example.com"})
    api.delete("/users/1", extra_environ={"REMOTE_USER": "dave"})
    told = [entry["by"] for entry in api.get("/tickets/1/history").json]
    assert told == ["dave", None, "max@example.com", "dave"]


def test_users_are_assigned_and_unassigned_one_by_one(api, cast):
    api.ticket(assignees=[2])
    assert api.put("/tickets/1/assignees/1", status=200).json["assignees"] == cast[:2]
    assert api.delete("/tickets/1/assignees/2", status=200).json["assignees"] == cast[:1]
    assert api.problem("DELETE", "/tickets/1/assignees/2")["status"] == 404
    assert api.problem("DELETE", "/tickets/1/assignees/99")["status"] == 404
    assert api.problem("PUT", "/tickets/1/assignees/99")["status"] == 404
    assert api.problem("PUT", "/tickets/99/assignees/1")["status"] == 404
    assert len(api.get("/tickets/1/history").json) == 2


def test_history_tells_what_changed_and_when_oldest_first(api, cast, clock):
    api.ticket(assignees=[1])
    clock.advance(seconds=1)
    api.change(1, status="closed", title="Done")
    clock.advance(seconds=1)
    api.change(1, assignees=[2])
    first, second = api.get("/tickets/1/history").json
    assert first.pop("id") < second.pop("id")
    assert [first, second] == [
        {
            "ticket_id": 1,
            "changed_at": "2026-11-22T10:32:01.123Z",
            "by": None,
            "comment": None,
            "changes": {
                "title": {"from": "Fix the database", "to": "Done"},
                "status": {"from": "open", "to": "closed"},
            },
        },
        {
            "ticket_id": 1,
            "changed_at": "2026-11-22T10:32:02.123Z",
            "by": None,
            "comment": None,
            "changes": {
                "assignees": {"from": [{"id": 1, "name": "Max"}], "to": [{"id": 2, "name": "Dave"}]}
            },
        },
    ]
    assert api.problem("GET", "/tickets/2/history")["status"] == 404


def test_a_renamed_user_shows_in_their_tickets(api, cast):
    before = api.ticket(assignees=[1])
    api.put_json("/users/1", {"name": "Maxine", "email": "maxine@example.com"})
    after = api.get("/tickets/1").json
    assert after["assignees"][0]["name"] == "Maxine"
    assert after["updated_at"] == before["updated_at"]


@pytest.mark.parametrize("path", ["/tickets/1", "/tickets", "/tickets/1/history"])
def test_a_ticket_is_never_deleted_by_any_route(api, cast, path):
    api.ticket()
    assert api.problem("DELETE", path)["status"] == 405
    assert api.get("/tickets/1").status_code == 200


# ---------------------------------------------------------------- finding


@pytest.fixture
def board(api, cast, clock):
    """Six tickets of two projects, and each a minute later than the one before."""
    api.project("Shop")
    for title, description, project, status, assignees in (
        ("Fix the database", None, 1, "open", [1]),
        ("Paint the shed", "In Größe XL", 1, "in progress", [1, 2]),
        ("Buy a database", "100 % 'quoted' \"text\"", 2, "closed", []),
        ("Ω is missing", "see http://example.com/?a=b_c", 2, "open", [2]),
        ("DATABASES", "twice: fix, fix", 1, "closed", [2]),
        ("日本語の件名", "emoji 🙂 here", 2, "open", [3]),
    ):
        api.ticket(project, assignees, title, status, description=description)
        clock.advance(minutes=1)
    api.change(2, description="in größe xl, please")
    clock.advance(minutes=1)
    api.change(1, status="in progress")


def ids(answer):
    return [item["id"] for item in answer.json]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [6, 5, 4, 3, 2, 1]),
        ("sort=created", [1, 2, 3, 4, 5, 6]),
        ("sort=-created", [6, 5, 4, 3, 2, 1]),
        ("sort=updated", [3, 4, 5, 6, 2, 1]),
        ("sort=-updated", [1, 2, 6, 5, 4, 3]),
        ("project_id=2", [6, 4, 3]),
        ("project_id=99", []),
        ("assignee_id=2", [5, 4, 2]),
        ("assignee_id=2&sort=-updated", [2, 5, 4]),
        ("assignee_id=none", [3]),
        ("assignee_id=none&sort=updated&status=closed&status=open", [3]),
        ("assignee_id=none&text=database", [3]),
        ("assignee_id=none&text=da&project_id=2", [3]),
        ("assignee_id=none&project_id=1", []),
        ("status=closed", [5, 3]),
        ("status=closed&status=open", [6, 5, 4, 3]),
        ("status=in+progress", [2, 1]),
        ("project_id=1&assignee_id=2&status=closed", [5]),
        ("text=database", [5, 3, 1]),
        ("text=DATABASE&sort=created", [1, 3, 5]),
        ("text=tabas&project_id=1", [5, 1]),
        ("text=tabas&assignee_id=1", [1]),
        ("text=da&sort=-updated", [1, 5, 3]),
        ("text=GR%C3%96SSE", [2]),
        ("text=%CF%89", [4]),
        ("text=%E6%9C%AC%E8%AA%9E%E3%81%AE", [6]),
        ("text=%F0%9F%99%82", [6]),
        ("text=%25", [3]),
        ("text=_", [4]),
        ("text=b_c", [4]),
        ("text=%22text%22", [3]),
        ("text='quoted'", [3]),
        ("text=fix,+fix", [5]),
        ("text=fix+AND+database", []),
        ("text=the+database", [1]),
        ("text=*", []),
        ("text=fi&assignee_id=2", [5]),
        ("text=", [6, 5, 4, 3, 2, 1]),
        ("text=++", [6, 5, 4, 3, 2, 1]),
    ],
)
def test_filters_combine_and_sort(api, board, query, expected):
    assert ids(api.get(f"/tickets?{query}")) == expected


def test_a_user_is_found_by_address_without_regard_to_case(api, cast):
    dave = api.get("/users/2").json
    for address in ("dave@example.com", "DAVE@Example.com", "%20dave@example.com%20"):
        assert api.get(f"/users?email={address}").json == [dave]
    assert api.get("/users?email=dave@example.org").json == []
    assert api.get("/users?email=dave%2Bx@example.com&limit=1").json == []


@pytest.mark.parametrize("query", ["text=quick", "text=qu", "text=slow"])
def test_search_follows_what_a_change_made_of_the_text(api, cast, query):
    api.ticket(title="The quick fox")
    api.change(1, title="The slow fox")
    assert ids(api.get(f"/tickets?{query}")) == ([1] if "slow" in query else [])


# ---------------------------------------------------------------- pages


def follow(api, path):
    """All pages from the path on, by their Link headers."""
    while path:
        answer = api.get(path)
        yield answer.json
        link = answer.headers.get("Link")
        path = link and re.fullmatch(r'<([^>]+)>; rel="next"', link)[1]


@pytest.mark.parametrize(
    "path",
    [
        "/tickets?limit=3",
        "/tickets?limit=3&sort=created&status=open&status=closed",
        "/tickets?limit=3&sort=updated",
        "/tickets?limit=3&sort=-updated&text=number",
        "/tickets?limit=3&sort=-created&text=number&project_id=1&assignee_id=1",
        "/tickets?limit=3&text=nu&assignee_id=1",
    ],
)
def test_following_the_links_visits_every_ticket_once_while_others_are_added(api, cast, path):
    start = {api.ticket(title=f"number {n}", assignees=[1])["id"] for n in range(10)}
    seen = []
    for page in follow(api, path):
        assert len(page) <= 3
        seen += [ticket["id"] for ticket in page]
        if len(seen) < 50:
            api.ticket(title="a new number", assignees=[1])
        if len(seen) > 20:
            break  # an ascending list grows for ever under our hands
    assert len(seen) == len(set(seen))
    assert start <= set(seen)


@pytest.mark.parametrize("path", ["/users", "/projects", "/emails", "/tickets/1/history"])
def test_every_list_is_paged(app, api, path):
    for n in range(7):
        api.user(f"User {n}", f"user{n}@example.com")
        api.project(f"Project {n}")
    api.ticket(assignees=range(1, 8))
    for n in range(7):
        api.change(1, title=f"Title {n}")
    app.close()  # no delivery changes the mail meanwhile
    whole = api.get(f"{path}?limit=200").json
    pages = list(follow(api, f"{path}?limit=2"))
    assert [item for page in pages for item in page] == whole
    assert len(whole) >= 7
    assert all(len(page) == 2 for page, _ in pairwise(pages))
    order = [item["id"] for item in whole]
    assert order == sorted(order, reverse=path == "/emails")


def test_a_list_has_fifty_items_unless_asked_otherwise(api):
    for n in range(51):
        api.project(f"Project {n}")
    answer = api.get("/projects")
    assert len(answer.json) == 50
    assert "Link" in answer.headers
    answer = api.get("/projects?limit=51")
    assert len(answer.json) == 51
    assert "Link" not in answer.headers


def test_an_empty_list_is_a_json_list(api):
    answer = api.get("/users")
    assert answer.content_type == "application/json"
    assert answer.json == []


# ---------------------------------------------------------------- conditional requests


@pytest.mark.parametrize(
    "path", ["/users/1", "/projects/1", "/tickets/1", "/emails/1", "/health", "/openapi.json"]
)
def test_a_single_resource_has_a_strong_etag_that_saves_its_transfer(app, api, cast, path):
    api.ticket(assignees=[1])
    app.close()  # no delivery changes the mail meanwhile
    answer = api.get(path)
    etag = answer.headers["ETag"]
    assert re.fullmatch('"[^"]+"', etag)
    compressed = f'{etag[:-1]}-gzip"'  # as Caddy and Apache write it
    for seen in (etag, f"W/{etag}", f'"other", {etag}', compressed, f"W/{compressed}", "*"):
        cached = api.get(path, headers={"If-None-Match": seen}, status=304)
        assert cached.body == b""
        assert cached.headers["ETag"] == etag
    assert api.get(path, headers={"If-None-Match": '"other"'}).body == answer.body


WRITES = [
    ("PUT", "/users/1", {"name": "Maxine", "email": "max@example.com"}),
    ("DELETE", "/users/1", None),
    ("PUT", "/projects/1", {"name": "Shop"}),
    ("DELETE", "/projects/2", None),
    ("PATCH", "/tickets/1", {"status": "closed"}),
    (
        "PUT",
        "/tickets/1",
        {"title": "T", "description": None, "project_id": 1, "status": "open", "assignees": []},
    ),
    ("PUT", "/tickets/1/assignees/2", None),
    ("DELETE", "/tickets/1/assignees/1", None),
]


@pytest.mark.parametrize(("method", "path", "body"), WRITES)
def test_a_write_with_if_match_wins_only_against_the_state_it_knows(api, cast, method, path, body):
    api.project("Other")
    api.ticket(assignees=[1])
    resource = re.match("/[a-z]+/[0-9]+", path)[0]
    etag = api.get(resource).headers["ETag"]
    for stale in ('"0123"', 'W/"0123"', "nonsense", ""):
        headers = {"If-Match": stale}
        assert api.problem(method, path, body, headers=headers)["status"] == 412
    assert api.get(resource).headers["ETag"] == etag
    more = {} if body is None else {"params": body}
    send = getattr(api, method.lower() + ("_json" if body else ""))
    send(path, headers={"If-Match": f'"0123", W/{etag}'}, **more)
    if method != "DELETE" or "assignees" in path:
        assert api.get(resource).headers["ETag"] != etag


def test_if_match_with_a_star_means_any_state(api, cast):
    assert (
        api.put_json("/projects/1", {"name": "Shop"}, headers={"If-Match": "*"}).json["name"]
        == "Shop"
    )
    assert api.problem("DELETE", "/projects/9", headers={"If-Match": "*"})["status"] == 404


def test_an_answer_to_a_write_carries_the_etag_of_the_next_get(api, cast):
    created = api.post_json("/tickets", {"title": "T", "project_id": 1, "status": "open"})
    assert created.headers["ETag"] == api.get("/tickets/1").headers["ETag"]
    changed = api.patch_json("/tickets/1", {"status": "closed"})
    assert changed.headers["ETag"] == api.get("/tickets/1").headers["ETag"]
    assert changed.headers["ETag"] != created.headers["ETag"]


# ---------------------------------------------------------------- everything else over HTTP


@pytest.mark.parametrize(
    "path",
    ["/users", "/users/1", "/projects", "/projects/1", "/tickets", "/tickets/1", "/emails"]
    + ["/tickets/1/history", "/emails/1", "/health", "/openapi.json"],
)
def test_head_answers_as_get_without_the_body(app, api, cast, path):
    api.ticket(assignees=[1])
    app.close()
    get, head = api.get(path), api.head(path)
    assert head.body == b""
    assert head.headers == get.headers


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/users", "GET, HEAD, POST"),
        ("/users/1", "DELETE, GET, HEAD, PUT"),
        ("/tickets/1", "GET, HEAD, PATCH, PUT"),
        ("/tickets/1/assignees/1", "DELETE, PUT"),
        ("/emails/1/retry", "POST"),
        ("/health", "GET, HEAD"),
    ],
)
def test_another_method_is_405_with_what_is_allowed(api, path, allow):
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"} - set(
        allow.split(", ")
    ):
        answer = api.request(path, method=method, status=405)
        assert answer.headers["Allow"] == allow
        assert answer.content_type == "application/problem+json"


def test_health_tells_how_mail_flows(make_app):
    from conftest import Api, eventually

    app = make_app(smtp="smtp://127.0.0.1:1")
    api = Api(app)
    assert api.get("/health").json == {
        "status": "ok",
        "mail": {"queued": 0, "failed": 0, "oldest_queued_at": None, "error": None},
    }
    api.project()
    api.user()
    api.ticket(assignees=[1])
    mail = eventually(lambda: (m := api.get("/health").json["mail"])["error"] and m)
    assert mail["queued"] == 1
    assert mail["oldest_queued_at"] == "2026-11-22T10:32:00.123Z"
    assert "refused" in mail["error"]


# ---------------------------------------------------------------- who may talk to it
