"""A creation that is asked for again with the same Idempotency-Key happens once."""

import io
import json
import sys
import threading
import urllib.request

import pytest
from conftest import Api

pytestmark = pytest.mark.engines

USER = {"name": "Max", "email": "max@example.com"}
TICKET = {"title": "Fix the database", "project_id": 1, "status": "open", "assignees": [1]}


def create(api, path, body, key, status="*"):
    return api.post_json(path, body, headers={"Idempotency-Key": key}, status=status)


def whole(answer):
    """All that an answer says."""
    return answer.status_code, answer.body, {k: v for k, v in answer.headers.items() if k != "Date"}


@pytest.fixture
def staffed(api):
    """A client of a tracker with Max, user 1, and the project Website, 1."""
    api.user("Max")
    api.project("Website")
    return api


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/users", {"name": "Dave", "email": "dave@example.com"}),
        ("/projects", {"name": "Backend"}),
        ("/tickets", TICKET),
    ],
)
def test_a_repeated_creation_creates_nothing_and_is_answered_the_same(staffed, path, body):
    count = len(staffed.get(path).json)
    first = create(staffed, path, body, "k 1", status=201)
    assert first.headers["Location"]
    assert whole(create(staffed, path, body, "k 1")) == whole(first)
    assert len(staffed.get(path).json) == count + 1


def test_the_first_answer_counts_also_after_the_ticket_has_changed(staffed):
    first = create(staffed, "/tickets", TICKET, "once", status=201)
    staffed.change(1, status="closed")
    assert whole(create(staffed, "/tickets", TICKET, "once")) == whole(first)
    assert staffed.get("/tickets/1").json["status"] == "closed"


def test_a_repeated_creation_mails_nobody_again(make_api, mail_server):
    api = make_api(mail_server.url)
    for _ in range(3):
        create(api, "/tickets", TICKET, "once", status=201)
    assert len(api.emails()) == 1


def test_the_order_of_the_members_of_the_body_makes_no_difference(api):
    create(api, "/users", USER, "k", status=201)
    create(api, "/users", dict(reversed(USER.items())), "k", status=201)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/users", USER | {"name": "Maxi"}), ("/users", USER | {"age": 5}), ("/projects", USER)],
)
def test_a_key_that_came_with_another_body_is_refused(api, path, body):
    create(api, "/users", USER, "k", status=201)
    answer = create(api, path, body, "k", status=422)
    assert "Idempotency-Key" in answer.json["detail"]
    assert len(api.get("/users").json) == 1
    assert api.get("/projects").json == []


def test_other_keys_and_none_are_other_requests(staffed):
    for key in ("a", "A", "a ", "b"):
        create(staffed, "/tickets", TICKET, f"{key}.", status=201)
    staffed.post_json("/tickets", TICKET, status=201)
    staffed.post_json("/tickets", TICKET, status=201)
    assert len(staffed.get("/tickets").json) == 6


@pytest.mark.parametrize(
    "key", ["", "k" * 256, "a\tb", "\x7f", "clé", "キー".encode().decode("latin-1")]
)
def test_what_is_no_key_is_refused(api, key):
    environ = {"HTTP_IDEMPOTENCY_KEY": key}
    answer = api.post_json("/users", USER, extra_environ=environ, status=400)
    assert "Idempotency-Key" in answer.json["detail"]
    assert api.get("/users").json == []


@pytest.mark.parametrize("key", ["k", "k" * 255, "' OR 1=1 --", '"8e03978e"', "~ !"])
def test_what_is_printable_is_a_key(api, key):
    create(api, "/users", USER, key, status=201)
    create(api, "/users", USER, key, status=201)


def test_what_was_refused_may_be_repeated_when_its_ground_is_gone(staffed):
    ticket = TICKET | {"assignees": [2]}
    create(staffed, "/tickets", ticket, "k", status=422)
    staffed.user("Dave")
    create(staffed, "/tickets", ticket, "k", status=201)


def test_a_key_means_nothing_where_nothing_is_created(staffed):
    headers = {"Idempotency-Key": "k"}
    staffed.patch_json("/users/1", {}, headers=headers, status=405)
    for name in ("Maxi", "Maxim"):
        body = {"name": name, "email": "max@example.com"}
        assert staffed.put_json("/users/1", body, headers=headers).json["name"] == name
    staffed.post("/emails/retry", headers=headers, status=202)
    staffed.post("/emails/retry", headers=headers, status=202)


def test_a_key_counts_for_a_day_and_is_then_forgotten(staffed, clock, app):
    create(staffed, "/tickets", TICKET, "k", status=201)
    clock.advance(hours=23, minutes=59)
    assert create(staffed, "/tickets", TICKET, "k", status=201).json["id"] == 1
    clock.advance(minutes=2)
    assert create(staffed, "/tickets", TICKET | {"title": "Other"}, "k", status=201).json["id"] == 2
    for n in range(30):
        create(staffed, "/users", {"name": "Dave", "email": f"d{n}@example.com"}, f"user {n}")
    clock.advance(days=2)
    for n in range(5):
        create(staffed, "/projects", {"name": f"Project {n}"}, f"project {n}", status=201)
    with app.database.read() as conn:
        assert conn.execute("SELECT count(*) FROM answers").fetchone()[0] <= 5


def test_a_clock_that_was_set_back_makes_no_second_ticket(staffed, clock):
    create(staffed, "/tickets", TICKET, "k", status=201)
    clock.set(days=-3)
    assert create(staffed, "/tickets", TICKET, "k", status=201).json["id"] == 1


def test_another_process_and_a_later_one_know_the_key(start):
    def post(server):
        request = urllib.request.Request(
            f"{server.url}/users",
            json.dumps(USER).encode(),
            {"Content-Type": "application/json", "Idempotency-Key": "k"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read(), answer.headers["ETag"], answer.headers["Location"]

    server, other = start(), start()
    first = post(server)
    assert post(other) == first
    server.kill()
    other.kill()
    assert post(start()) == first


def test_many_at_once_with_one_key_make_one_ticket(start):
    server = start()
    answers = []

    def post():
        request = urllib.request.Request(
            f"{server.url}/projects",
            b'{"name": "Website"}',
            {"Content-Type": "application/json", "Idempotency-Key": "k"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answers.append((answer.status, answer.read()))

    threads = [threading.Thread(target=post) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert len(set(answers)) == 1


def test_under_a_prefix_the_location_is_that_of_the_first_answer(make_app):
    api = Api(make_app(), extra_environ={"SCRIPT_NAME": "/tracker"})
    for _ in range(2):
        assert (
            create(api, "/users", USER, "k", status=201)
            .headers["Location"]
            .endswith("/tracker/users/1")
        )


def test_a_key_makes_no_defect_of_a_body_that_nests_as_deep_as_can_be_read(app):
    def status(depth):
        body = b'{"x": ' + b"[" * depth + b"]" * depth + b"}"
        environ = {"REQUEST_METHOD": "POST", "PATH_INFO": "/users", "HTTP_HOST": "localhost"}
        environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
        environ |= {"HTTP_IDEMPOTENCY_KEY": "a", "wsgi.input": io.BytesIO(body)}
        return app.answer(environ).status

    assert {status(depth) for depth in range(1, sys.getrecursionlimit() + 100)} == {400, 422}
