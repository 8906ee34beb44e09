"""What is told of faulty fields; the tables of hostile ones are in test_hostile_texts.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tracker

pytestmark = pytest.mark.engines

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


@given(st.text())
def test_an_accepted_title_is_one_line_that_the_database_can_hold(title):
    told = []
    clean = tracker.TICKET["title"](title, told.append)
    if not told:
        assert clean == title.strip()
        assert 1 <= len(clean) <= 200
        assert len(clean.splitlines()) == 1
        clean.encode()
