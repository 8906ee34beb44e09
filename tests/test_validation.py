"""What is accepted, as tables and as properties; nothing bad is stored, all faults are told."""

import json
import smtplib
from string import printable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webtest import TestRequest

import tracker

VALID = {"title": "Fix", "project_id": 1, "status": "open"}


@pytest.fixture(autouse=True)
def setting(api):
    api.project()
    api.user()


def faults(api, path, body):
    problem = api.problem("POST", path, body)
    assert problem["status"] == 422
    count = len(problem["errors"])
    assert problem["detail"].startswith(f"{count} field")
    return {error["pointer"]: error["detail"] for error in problem["errors"]}


def test_all_bad_fields_are_told_at_once_as_the_contract_shows(api):
    assert api.problem("POST", "/users", {"name": "ab", "email": "nobody"}) == {
        "title": "Unprocessable Content",
        "status": 422,
        "detail": "2 fields are not valid.",
        "errors": [
            {"pointer": "#/name", "detail": "must have at least 3 characters"},
            {"pointer": "#/email", "detail": "is not a valid email address"},
        ],
    }


def test_bad_and_missing_references_are_told_together_with_all_else(api):
    body = {"title": "", "status": "new", "project_id": 7, "assignees": [1, 8, "x", 9], "due": 1}
    assert faults(api, "/tickets", body).keys() == {
        "#/title",
        "#/status",
        "#/project_id",
        "#/assignees/1",
        "#/assignees/2",
        "#/assignees/3",
        "#/due",
    }
    assert api.get("/tickets").json == []


@pytest.mark.parametrize(
    ("path", "body", "missing"),
    [
        ("/users", {}, {"#/name", "#/email"}),
        ("/projects", {}, {"#/name"}),
        ("/tickets", {}, {"#/title", "#/project_id", "#/status"}),
    ],
)
def test_required_fields_are_required(api, path, body, missing):
    assert faults(api, path, body) == dict.fromkeys(missing, "is required")


def test_only_where_there_is_a_patch_a_put_points_to_it(api):
    api.ticket()
    assert "PATCH" in api.problem("PUT", "/tickets/1", {})["errors"][0]["detail"]
    for path in ("/users/1", "/projects/1"):
        assert "PATCH" not in api.problem("PUT", path, {})["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("/users", {"name": "Dave", "email": "d@example.com", "nmae": 1}, "#/nmae"),
        ("/users", {"name": "Dave", "email": "d@example.com", "id": 1}, "#/id"),
        ("/projects", {"name": "Shop", "tickets": {}}, "#/tickets"),
        ("/tickets", VALID | {"created_at": "2026-11-22T10:32:00.123Z"}, "#/created_at"),
        ("/tickets", VALID | {"a/b~c d": 1}, "#/a~1b~0c%20d"),
        ("/tickets", VALID | {"\ud800": 1}, "#/%3F"),
    ],
)
def test_an_unknown_field_never_passes_in_silence(api, path, body, pointer):
    assert faults(api, path, body).keys() == {pointer}


NOT_TEXT = [None, 1, 1.5, True, ["Max"], {"a": 1}]


@pytest.mark.parametrize(
    "name",
    ["", "ab", " ab ", "x" * 101, "a\nb c", "a\tbc", "abc\x00", "abc\x7f", "abc\x85d", "a\u2028b"]
    + [
        "abc\u202ecba",
        "ab\u2066cd",
        "a\u200bbc",
        "abc\ufeffd",
        "abc\ud800",
        "abc\udfff",
        "\u200d" * 3,
    ]
    + NOT_TEXT,
)
def test_names_that_are_refused(api, name):
    body = {"name": name, "email": "dave@example.com"}
    assert faults(api, "/users", body).keys() == {"#/name"}
    assert faults(api, "/projects", {"name": name}).keys() == {"#/name"}


@pytest.mark.parametrize(
    "name",
    [
        "Max",
        "x" * 100,
        "ab ",
        "日本語",
        "👩‍👩‍👧 family",
        "نیم‌فاصله",
        "Zoë O'Brien-Ørsted",
        "\ue000\ue001\ue002",
        'a"b\\c',
    ],
)
def test_names_that_are_taken_as_they_are(api, name):
    if name.strip() == "ab":
        name = " ab c "
    user = api.user(name, "dave@example.com")
    assert user["name"] == name.strip()
    assert api.get(f"/users/{user['id']}").json == user
    assert api.project(name)["name"] == name.strip()


@pytest.mark.parametrize(
    ("field", "value", "detail"),
    [
        ("title", "", "must have at least 1 character"),
        ("title", " \t\n", "must have at least 1 character"),
        ("title", "x" * 201, "must have at most 200 characters"),
        ("title", "a\r\nBcc: x@example.com", "must not hold the character U+000D"),
        ("title", None, "must be a string"),
        ("description", 5, "must be a string"),
        ("description", "x" * 10_001, "must have at most 10,000 characters"),
        ("description", "a\x00b", "must not hold the character U+0000"),
        ("description", "a\x1bb", "must not hold the character U+001B"),
        ("description", "\udc00", "must not hold the character U+DC00"),
        ("status", "Open", "must be one of: open, in progress, closed"),
        ("status", "", "must be one of: open, in progress, closed"),
        ("status", None, "must be one of: open, in progress, closed"),
        ("status", [], "must be one of: open, in progress, closed"),
        ("project_id", "1", "must be an id, a whole number"),
        ("project_id", 1.0, "must be an id, a whole number"),
        ("project_id", True, "must be an id, a whole number"),
        ("project_id", None, "must be an id, a whole number"),
        ("project_id", {"id": 1}, "must be an id, a whole number"),
        ("project_id", 0, "does not exist"),
        ("project_id", -1, "does not exist"),
        ("project_id", 2**63, "does not exist"),
        ("project_id", 10**4000, "does not exist"),
        ("project_id", 2**63 - 1, "there is no project 9223372036854775807"),
        ("assignees", None, "must be a list of user ids"),
        ("assignees", 1, "must be a list of user ids"),
        ("assignees", "1", "must be a list of user ids"),
        ("assignees", {"id": 1}, "must be a list of user ids"),
    ],
)
def test_ticket_fields_that_are_refused(api, field, value, detail):
    assert faults(api, "/tickets", VALID | {field: value}) == {f"#/{field}": detail}
    api.ticket()
    problem = api.problem("PATCH", "/tickets/1", {field: value})
    if (field, value) != ("description", None):
        assert problem["errors"] == [{"pointer": f"#/{field}", "detail": detail}]


@pytest.mark.parametrize(
    "person", ["1", 1.0, True, None, [1], {}, {"id": "1"}, {"name": "Max"}, {"id": 1, "nmae": "M"}]
)
def test_assignees_that_are_refused(api, person):
    assert faults(api, "/tickets", VALID | {"assignees": [1, person]}).keys() == {"#/assignees/1"}


@pytest.mark.parametrize(
    "description",
    [None, "", "two\nlines", "a\r\nb\tc", "x" * 10_000, "🙂" * 100, "\u202eright to left", "مرحبا"],
)
def test_descriptions_that_are_taken_as_they_are(api, description):
    ticket = api.ticket(description=description)
    assert api.get("/tickets/1").json == ticket
    assert ticket["description"] == description


GOOD_ADDRESSES = [
    "max.mustermann@example.com",
    "Max.Mustermann@Example.COM",
    "m@e.de",
    "max+tickets@example.com",
    "max_m-2@sub.sub2.example.co",
    "!#$%&'*+/=?^_`{|}~-@example.com",
    "1@2.example",
    "max@xn--bcher-kva.example",
    "max@1und1.de",
    "max@a--b.example",
    "-max-@example.com",
    "x" * 64 + "@example.com",
    "m@" + "d" * 63 + ".example",
    "m@" + ".".join(["d" * 60] * 4) + ".example",
]
BAD_ADDRESSES = [
    "",
    "max",
    "max@",
    "@example.com",
    "max@localhost",
    "max@example.com.",
    "max@.example.com",
    "max@example..com",
    "max@-example.com",
    "max@example-.com",
    "max@exa_mple.com",
    "max@exam ple.com",
    "max mustermann@example.com",
    ".max@example.com",
    "max.@example.com",
    "max..m@example.com",
    "max@@example.com",
    "max@a@example.com",
    "a@x.com,b@y.com",
    "a@x.com;b@y.com",
    "a@x.com b@y.com",
    "a@x.com\r\nRCPT TO:<b@y.com>",
    "a@x.com\nb",
    "a@x.com\x00",
    "Max <max@example.com>",
    "<max@example.com>",
    "max@example.com>",
    "max(comment)@example.com",
    "max@example.com (Max)",
    '"max mustermann"@example.com',
    '"max"@example.com',
    "max@[127.0.0.1]",
    "max@[IPv6:::1]",
    "max@127.0.0.1",
    "max@example.123",
    "max\\@example.com",
    "max,m@example.com",
    "max:m@example.com",
    "máx@example.com",
    "max@exämple.com",
    "max@example。com",
    "ｍax@example.com",
    "max@example.com\u200b",
    "x" * 65 + "@example.com",
    "m@" + "d" * 64 + ".example",
    "m@" + ".".join(["d" * 60] * 4) + ".exampleexample",
    "mailto:max@example.com",
    "max@example.com?subject=x",
    "max@example/com",
    "max@",
    "max%example.com",
    "max@example.c om",
]


@pytest.mark.parametrize("address", GOOD_ADDRESSES)
def test_addresses_that_are_taken(api, address):
    assert api.user("Dave", f" {address} ")["email"] == address


@pytest.mark.parametrize("address", BAD_ADDRESSES + NOT_TEXT)
def test_addresses_that_are_refused(api, address):
    body = {"name": "Dave", "email": address}
    assert faults(api, "/users", body).keys() == {"#/email"}


@given(st.one_of(st.text(printable, max_size=40), st.emails()))
def test_an_accepted_address_reaches_the_server_as_it_is(address):
    told = []
    clean = tracker.email(address, told.append)
    if not told:
        assert smtplib.quoteaddr(clean) == f"<{clean}>"
        assert clean.isascii()
        assert len(clean) <= 254


@given(st.text())
def test_an_accepted_title_is_one_line_that_the_database_can_hold(title):
    told = []
    clean = tracker.TICKET["title"](title, told.append)
    if not told:
        assert clean == title.strip()
        assert 1 <= len(clean) <= 200
        assert len(clean.splitlines()) == 1
        clean.encode()


# ---------------------------------------------------------------- bodies

DEEP = b"[" * 30_000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"name": "Max"',
        b"{'name': 'Max'}",
        b'{"name": "Max",}',
        b'{"name": "a", "name": "b"}',
        b'{"x": {"y": 1, "y": 2}}',
        b'{"x": NaN}',
        b'{"x": Infinity}',
        b'{"x": -Infinity}',
        b'{"x": 1e999}',
        b'{"x": 01}',
        b"null",
        b"[]",
        b'"name"',
        b"1",
        b"true",
        DEEP,
        b'{"x": ' + DEEP,
        b'{"x":' * 10_000,
        b'{"name": "\xff"}',
        b'{"name": "\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"name": "Maxi"}',
        '{"name": "Maxi"}'.encode("utf-16"),
        '{"name": "Maxi"}'.encode("utf-32"),
        b'{"name": "a\nb"}',
        b"name=Max&email=max%40example.com",
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/users"), ("PUT", "/projects/1"), ("PATCH", "/tickets/1")]
)
def test_what_is_not_a_json_object_is_400(api, method, path, body):
    api.ticket()
    answer = api.request(
        path, method=method, body=body, content_type="application/json", status=400
    )
    assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 201),
        ("Application/JSON; charset=utf-8", 201),
        ("application/json;", 201),
        ("", 415),
        ("text/plain", 415),
        ("application/jsn", 415),
        ("application/json+merge", 415),
        ("application/merge-patch+json", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=application/json", 415),
    ],
)
def test_a_body_must_be_labelled_as_json(api, media_type, status):
    body = json.dumps({"name": "Dave", "email": "dave@example.com"}).encode()
    api.request("/users", method="POST", body=body, content_type=media_type, status=status)


def test_a_body_of_64_kib_is_read_and_one_byte_more_is_not(api):
    body = b'{"name": "Shop"' + b" " * (64 * 1024 - 16) + b"}"
    api.request("/projects", method="POST", body=body, content_type="application/json", status=201)
    body = body[:-1] + b" }"
    api.request("/projects", method="POST", body=body, content_type="application/json", status=413)


def send(app, **environ):
    """POST a user with a CGI environment that WebTest would not let through."""
    request = TestRequest.blank("/users", method="POST", body=USER, content_type="application/json")
    request.environ.update(environ)
    return request.send(app)


USER = b'{"name": "Dave", "email": "dave@example.com"}'


@pytest.mark.parametrize("length", ["-1", "abc", "1e3", " 5", "+5", "9" * 19])
def test_a_length_that_is_none_is_refused(app, length):
    answer = send(app, CONTENT_LENGTH=length)
    assert answer.status_code == 400
    assert answer.content_type == "application/problem+json"


def test_a_body_that_was_cut_off_is_refused(app):
    assert send(app, CONTENT_LENGTH="1000").status_code == 400


def test_chunks_that_the_server_has_decoded_are_not_decoded_again(app):
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    assert send(app, **chunked, **{"wsgi.input_terminated": True}).status_code == 201
    assert send(app, **chunked).status_code == 400
