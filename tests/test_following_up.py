"""Who changed a ticket and why: what hostile names and comments come to."""

import json

import pytest
from conftest import Api, settled


@pytest.fixture
def staffed(make_app):
    """A client whose proxy says in the header X-User who it is; Max has ticket 1."""
    api = Api(make_app(user_header="X-User"))
    api.user("Max")
    api.project("Website")
    api.ticket(assignees=[1])
    return api


NO_COMMENTS = [
    ("a number", 5),
    ("a boolean", True),
    ("a list", ["Done."]),
    ("an object", {"text": "Done."}),
    ("10,001 characters", "x" * 10_001),
    ("NUL", "ab\0cd"),
    ("half of a pair", "\ud83d"),
    ("the escape of a terminal", "ab\x1b[2Jcd"),
    ("the other escape of a terminal", "ab\x9b2Jcd"),
    ("a backspace", "ab\bcd"),
    ("delete", "ab\x7fcd"),
    ("a form feed", "ab\x0ccd"),
]


@pytest.mark.parametrize(
    "comment", [row[1] for row in NO_COMMENTS], ids=[r[0] for r in NO_COMMENTS]
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_hostile_comment_is_refused_at_its_field_and_changes_nothing(staffed, method, comment):
    before = staffed.get("/tickets/1").json
    problem = staffed.problem(method, "/tickets/1", before | {"comment": comment})
    assert [error["pointer"] for error in problem["errors"]] == ["#/comment"]
    assert staffed.get("/tickets/1").json == before
    assert staffed.get("/tickets/1/history").json == []


@pytest.mark.parametrize("path", ["/tickets", "/tickets/1/assignees/1", "/users/1"])
def test_a_comment_means_nothing_elsewhere_and_is_told(staffed, path):
    body = {"title": "x", "project_id": 1, "status": "open", "comment": "Done."}
    if path == "/tickets":
        assert staffed.problem("POST", path, body)["errors"][0]["pointer"] == "#/comment"
    elif path == "/users/1":
        body = {"name": "Max", "email": "max@example.com", "comment": "Done."}
        assert staffed.problem("PUT", path, body)["errors"][0]["pointer"] == "#/comment"
    else:  # it takes no body at all
        assert staffed.put(path, json.dumps(body)).json["id"] == 1
        assert staffed.get("/tickets/1/history").json == []


DISGUISES = [
    "Bcc: x@example.com\r\n\r\nHello",
    "-- \nProject: Another\nhttps://evil.example/",
    ".\r\nQUIT\r\n",
    "From the beginning",
    "What changed, by Dave:\n  Status: nothing",
    "<script>alert(1)</script>",
    "\u202e reversed \u202c",
    "a\u2028b",
    "=?utf-8?q?x?=",
    "票" * 10_000,
    " " * 50 + "margins" + "\n" * 50,
]


@pytest.mark.parametrize("comment", DISGUISES)
def test_a_comment_comes_through_history_and_mail_as_it_reads(make_api, mail_server, comment):
    api = make_api(mail_server.url)
    api.ticket(assignees=[1])
    api.change(1, comment=comment)
    [entry] = api.get("/tickets/1/history").json
    assert entry["comment"] == comment.strip()
    settled(api)
    message = mail_server.to("max@example.com")[-1]
    body = message.get_content().replace("\r\n", "\n")
    assert body.count(comment.strip().replace("\r\n", "\n")) == 1
    assert body.startswith('Ticket #1 updated:\nTitle: "Fix the database"\nStatus: "Open"\n\n')
    assert message["Bcc"] is None
    assert str(message["Subject"]) == "[Ticket #1] Fix the database"


def test_a_comment_of_blanks_is_none_and_no_change(staffed):
    before = staffed.get("/tickets/1").json
    for comment in ("", " ", "\n\t", None):
        assert staffed.change(1, comment=comment) == before
    assert staffed.get("/tickets/1/history").json == []


@pytest.mark.parametrize(
    ("given", "by"),
    [
        ("dave@example.com", "dave@example.com"),
        ("  Dave ", "Dave"),
        ("Zoë".encode().decode("latin-1"), "Zoë"),
        ("漢字".encode().decode("latin-1"), "漢字"),
        ("Zo\xeb", "Zo\ufffd"),  # Latin-1 is not what proxies send
        ("", None),
        (" ", None),
        ("a\r\nBcc: x@example.com", None),
        ("a\0b", None),
        ("a\x1b[2Jb", None),
        ("\u202eevad".encode().decode("latin-1"), None),
        ("a\u200bb".encode().decode("latin-1"), None),
        ("x" * 300, "x" * 254),
        ("' OR 1=1 --", "' OR 1=1 --"),
        ("<b>Dave</b>", "<b>Dave</b>"),
    ],
)
@pytest.mark.parametrize("variable", ["REMOTE_USER", "HTTP_X_USER"])
def test_who_it_is_said_to_be_is_one_clean_line_or_unknown(staffed, variable, given, by):
    answer = staffed.patch_json(
        "/tickets/1", {"status": "closed"}, extra_environ={variable: given}, status=200
    )
    assert answer.json["status"] == "closed"
    [entry] = staffed.get("/tickets/1/history").json
    assert entry["by"] == by
    told = staffed.get("/emails/2").json["body"]
    assert (f"What changed, by {by}:" if by else "What changed:") in told.splitlines()


def test_the_host_application_is_believed_before_the_header_and_a_header_only_if_named(
    staffed, make_app
):
    both = {"REMOTE_USER": "dave", "HTTP_X_USER": "yaris"}
    staffed.patch_json("/tickets/1", {"status": "closed"}, extra_environ=both)
    nobody = Api(make_app())
    nobody.patch_json("/tickets/1", {"status": "open"}, extra_environ={"HTTP_X_USER": "yaris"})
    assert [entry["by"] for entry in staffed.get("/tickets/1/history").json] == ["dave", None]
