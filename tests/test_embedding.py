"""The tracker inside other applications and under other servers."""

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from urllib.parse import urlsplit
from wsgiref.validate import validator

import bottle
import flask
import pytest
from conftest import ROOT, UNCOVERED, Api, eventually
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import tracker


class Mounted(Api):
    """A client of the host application; what the tracker serves is below `prefix`."""

    prefix = "/tracker"

    def do_request(self, req, *args, **kwargs):
        if not req.path_info.startswith(("/tracker", "/own", "/nowhere")):
            req.path_info = self.prefix + req.path_info
        return super().do_request(req, *args, **kwargs)


def in_bottle(app):
    host = bottle.Bottle()
    host.route("/own", "GET", lambda: "the host's own")
    host.add_hook("after_request", lambda: bottle.response.set_header("X-Host", "Bottle"))
    host.mount("/tracker", app)
    return host


def in_dispatcher(app):
    def host(environ, start_response):
        found = environ["PATH_INFO"] == "/own"
        start_response("200 OK" if found else "404 Not Found", [("Content-Type", "text/plain")])
        return [b"the host's own" if found else b"no such page"]

    return DispatcherMiddleware(host, {"/tracker": app})


def in_flask(app):
    host = flask.Flask("host")
    host.add_url_rule("/own", view_func=lambda: "the host's own")
    host.wsgi_app = DispatcherMiddleware(host.wsgi_app, {"/tracker": app})
    return host


def in_validator(app):
    return in_dispatcher(validator(app))


HOSTS = [in_bottle, in_dispatcher, in_flask, in_validator]


@pytest.fixture(params=HOSTS, ids=lambda mount: mount.__name__)
def mounted(request, app):
    return Mounted(request.param(app))


def path_of(location):
    return urlsplit(location).path


# ---------------------------------------------------------------- mounted under a prefix


def test_a_ticket_is_created_changed_and_followed_under_a_prefix(mounted):
    max_, website = mounted.user("Max"), mounted.project("Website")
    ticket = mounted.ticket(website["id"], [max_["id"]])
    changed = mounted.change(ticket["id"], status="in progress", title="Fix the database now")
    got = mounted.get("/tickets/1")
    assert (
        got.json
        == changed
        == ticket
        | {
            "status": "in progress",
            "title": "Fix the database now",
            "updated_at": changed["updated_at"],
        }
    )
    assert mounted.get("/tickets", {"text": "database", "status": "in progress"}).json == [changed]
    assert [set(entry["changes"]) for entry in mounted.get("/tickets/1/history").json] == [
        {"status", "title"}
    ]
    assert [email["to"] for email in mounted.emails()] == ["max@example.com"] * 2
    assert mounted.head("/tickets/1").headers["ETag"] == got.headers["ETag"]
    mounted.get("/tickets/1", headers={"If-None-Match": got.headers["ETag"]}, status=304)
    mounted.delete("/users/1", status=204)
    assert mounted.get("/users").json == []


@pytest.mark.parametrize("kind", ["users", "projects", "tickets"])
def test_location_carries_the_prefix(mounted, kind):
    mounted.user(), mounted.project()
    body = {
        "users": {"name": "Dave", "email": "dave@example.com"},
        "projects": {"name": "Shop"},
        "tickets": {"title": "Fix the database", "project_id": 1, "status": "open"},
    }[kind]
    answer = mounted.post_json(f"/{kind}", body, status=201)
    location = path_of(answer.headers["Location"])
    assert location == f"/tracker/{kind}/{answer.json['id']}"
    assert mounted.get(location).json == answer.json


def test_link_carries_the_prefix_and_leads_to_every_item(mounted):
    ids = [mounted.user(name)["id"] for name in ("Max", "Dave", "Yaris", "Zoe", "Ann")]
    seen, url = [], "/tracker/users?limit=2"
    while url:
        answer = mounted.get(url)
        seen += [user["id"] for user in answer.json]
        link = re.fullmatch('<(.*)>; rel="next"', answer.headers.get("Link", ""))
        url = link and link[1]
        assert not url or path_of(url) == "/tracker/users"
    assert seen == ids


def test_location_of_a_prefix_beyond_ascii_is_percent_encoded(api):
    answer = api.post_json(
        "/projects", {"name": "Website"}, extra_environ={"SCRIPT_NAME": "/b\xc3\xbcro 1"}
    )
    assert path_of(answer.headers["Location"]) == "/b%C3%BCro%201/projects/1"


@pytest.mark.parametrize(
    ("status", "method", "path", "more"),
    [
        (400, "GET", "/tickets?colour=red", {}),
        (400, "POST", "/users", {"params": b"{", "content_type": "application/json"}),
        (403, "GET", "/users", {"headers": {"Host": "evil.example"}}),
        (403, "POST", "/projects", {"headers": {"Origin": "https://evil.example"}}),
        (404, "GET", "/users/7", {}),
        (404, "GET", "/there/is/nothing", {}),
        (405, "DELETE", "/tickets/1", {}),
        (413, "POST", "/users", {"params": b" " * 65537, "content_type": "application/json"}),
        (415, "POST", "/users", {"params": b"{}", "content_type": "text/plain"}),
        (422, "POST", "/users", {"params": b"{}", "content_type": "application/json"}),
    ],
)
def test_problems_stay_problems_under_a_prefix(mounted, status, method, path, more):
    assert mounted.problem(method, path, **more)["status"] == status


def test_the_page_is_there_with_and_without_a_slash_behind_the_prefix(mounted):
    for path in ("/tracker", "/tracker/"):
        page = mounted.get(path, status=200)
        assert page.content_type == "text/html"
        mounted.get(path, headers={"If-None-Match": page.headers["ETag"]}, status=304)


def test_405_under_a_prefix_says_what_is_allowed(mounted):
    assert mounted.delete("/projects", status=405).headers["Allow"] == "GET, HEAD, POST"


def test_conflicts_and_lost_races_stay_problems_under_a_prefix(mounted):
    mounted.user(), mounted.project(), mounted.ticket()
    assert mounted.problem("POST", "/projects", {"name": "website"})["status"] == 409
    assert mounted.problem("DELETE", "/projects/1")["tickets"]["open"] == 1
    stale = {"headers": {"If-Match": '"stale"'}}
    assert mounted.problem("PATCH", "/tickets/1", {"status": "closed"}, **stale)["status"] == 412


def test_a_defect_under_a_prefix_is_a_problem_without_its_traceback(mounted, clock, caplog):
    mounted.project()
    moment, clock.now = clock.now, "no time"
    answer = mounted.get("/emails", status=500)
    assert answer.content_type == "application/problem+json"
    assert answer.json.keys() == {"title", "status", "detail"}
    assert "Traceback" not in answer.text
    assert "astimezone" not in answer.text
    assert "Traceback" in caplog.text
    clock.now = moment
    assert mounted.get("/projects/1").json["name"] == "Website"
    assert mounted.get("/own").text == "the host's own"


def test_the_routes_of_the_host_go_on_working(mounted):
    assert mounted.get("/own").text == "the host's own"
    mounted.problem("GET", "/users/7")
    mounted.user()
    foreign = {"Host": "evil.example", "Origin": "https://evil.example"}
    assert mounted.get("/own", headers=foreign).text == "the host's own"
    missing = mounted.get("/nowhere", status=404)
    assert missing.content_type != "application/problem+json"


def test_hooks_of_a_bottle_host_see_the_answers_of_the_tracker(app):
    mounted = Mounted(in_bottle(app))
    assert mounted.get("/users").headers["X-Host"] == "Bottle"
    assert mounted.get("/users/7", status=404).headers["X-Host"] == "Bottle"


def test_two_trackers_live_in_one_host(make_app, tmp_path):
    one, other = (make_app(database=tmp_path / name) for name in ("one.db", "other.db"))
    api = Api(DispatcherMiddleware(one, {"/other": other}))
    api.post_json("/projects", {"name": "Website"}, status=201)
    api.post_json("/other/projects", {"name": "Shop"}, status=201)
    assert [project["name"] for project in api.get("/projects").json] == ["Website"]
    assert [project["name"] for project in api.get("/other/projects").json] == ["Shop"]


# ---------------------------------------------------------------- create_app and close


def test_a_host_application_can_turn_the_check_of_host_off(make_app):
    api = Api(make_app(allowed_hosts=["*"]))
    for host in ("tracker.example.com", "10.0.0.7:8080", "anything"):
        assert api.get("/health", headers={"Host": host}).json["status"] == "ok"


def test_a_host_application_that_takes_any_host_still_refuses_writes_of_other_sites(make_app):
    api = Api(make_app(allowed_hosts=["*"]))
    headers = {"Host": "tracker.example.com", "Origin": "https://evil.example"}
    assert api.problem("POST", "/projects", {"name": "Website"}, headers=headers)["status"] == 403
    headers["Origin"] = "https://tracker.example.com"
    api.post_json("/projects", {"name": "Website"}, headers=headers, status=201)


def test_create_app_without_arguments_takes_the_environment(tmp_path, monkeypatch, mail_server):
    monkeypatch.setenv("TRACKER_DB", str(tmp_path / "elsewhere.db"))
    monkeypatch.setenv("TRACKER_SMTP", mail_server.url)
    monkeypatch.setenv("TRACKER_SENDER", "tickets@example.org")
    monkeypatch.setenv("TRACKER_ALLOWED_HOSTS", "tracker.example.com, other.example.com")
    with closing(tracker.create_app()) as app:
        api = Api(app)
        for host in ("tracker.example.com", "other.example.com:8080", "localhost"):
            api.get("/health", headers={"Host": host}, status=200)
        api.get("/health", headers={"Host": "evil.example"}, status=403)
        api.ticket(api.project()["id"], [api.user()["id"]])
        [(recipient, message)] = eventually(lambda: mail_server.messages)
    assert (recipient, message["From"]) == ("max@example.com", "tickets@example.org")
    assert (tmp_path / "elsewhere.db").exists()


def test_create_app_with_neither_arguments_nor_environment_uses_tickets_db_here(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRACKER_")]:
        monkeypatch.delenv(name)
    with closing(tracker.create_app()) as app:
        Api(app).get("/health", headers={"Host": "tracker.example.com"}, status=403)
        Api(app).get("/health", headers={"Host": "localhost:8080"}, status=200)
    assert (tmp_path / "tickets.db").exists()


def test_arguments_of_create_app_win_over_the_environment(database, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKER_DB", str(tmp_path / "elsewhere.db"))
    monkeypatch.setenv("TRACKER_SMTP", "not a URL")
    monkeypatch.setenv("TRACKER_ALLOWED_HOSTS", "*")
    with closing(tracker.create_app(database, smtp="", allowed_hosts=[])) as app:
        Api(app).get("/health", headers={"Host": "evil.example"}, status=403)
    assert not (tmp_path / "elsewhere.db").exists()


def test_closing_twice_is_harmless(make_app, database):
    app = make_app()
    Api(app).project()
    app.close()
    app.close()
    assert Api(make_app()).get("/projects/1").json["name"] == "Website"


# ---------------------------------------------------------------- processes


FORKING = """
import json, os, sys, threading
from webtest import TestApp
import tracker

database = sys.argv[1]
app = tracker.create_app(database, smtp="", output=open(os.devnull, "w"))
api, stop = TestApp(app), threading.Event()
acknowledged = []

def write(who):
    while not stop.is_set():
        name = f"{who} {len(acknowledged)}"
        if api.post_json("/projects", {"name": name}, status="*").status_code == 201:
            acknowledged.append(name)

def fork(act):
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, json.dumps(act()).encode())
        os._exit(0)
    os.close(writing)
    told = json.loads(os.read(reading, 9999) or "null")
    os.waitpid(child, 0)
    return told

def child():
    api = TestApp(app)  # the other one may have a lock that a thread of the parent held
    answers = [
        api.post_json("/projects", {"name": "Child"}, status="*"),
        api.get("/projects", status="*"),
        api.get("/health", status="*"),
    ]
    app.close()
    return [[answer.status_code, answer.json["detail"]] for answer in answers]

def early_child():
    write_once = api.post_json("/projects", {"name": f"Early {os.getpid()}"}, status="*")
    if write_once.status_code == 201:
        return write_once.json["name"]

early = [fork(early_child) for _ in range(5)]
threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
[thread.start() for thread in threads]
while not acknowledged:
    pass
children = [fork(child) for _ in range(20)]
stop.set()
[thread.join() for thread in threads]
app.close()
print(json.dumps({"early": early, "children": children, "acknowledged": acknowledged}))
"""


def test_what_is_forked_before_the_first_request_works_and_later_is_refused(tmp_path, database):
    done = subprocess.run(
        [sys.executable, "-c", FORKING, database],
        env=UNCOVERED | {"PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for answers in told["children"]:
        assert [status for status, _ in answers] == [503, 503, 503]
        assert all("forked" in detail for _, detail in answers)
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        kept = [name for (name,) in conn.execute("SELECT name FROM projects")]
    assert len(told["early"]) == 5
    assert sorted(kept) == sorted(told["early"] + told["acknowledged"])


def test_creating_an_app_leaves_nothing_open(tmp_path, database, make_app):
    before = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    make_app(database=database)
    # Less may be there, as what other tests have closed may end only now.
    assert set(os.listdir("/proc/self/fd")) <= before[0]
    assert set(threading.enumerate()) <= before[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tickets.db", "tickets.db-lock"]
