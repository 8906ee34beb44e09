"""Hostile requests: how they are sent, and what is wrong with an answer to them.

The endpoints come from tracker.ROUTES, so a new one is covered without a line in the tests. A
table there has a readable name, the hostile value and the status to be answered: problem details,
nothing in the log, and nothing in the database. A failing test lists every row that went wrong.
"""

import io
import itertools
import json
import logging
import re
import sqlite3
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import psycopg
import pytest
from conftest import Api, eventually

import tracker
from plumbing.engine import is_url

# A body for each collection that is valid, so that only what is hostile is refused.
VALID = {
    "users": {"name": "Dave", "email": "dave@example.com"},
    "projects": {"name": "Shop"},
    "tickets": {
        "title": "Fix",
        "description": None,
        "project_id": 1,
        "status": "open",
        "assignees": [],
    },
}
UNKNOWN = 422  # It is JSON, so it is the field "x" that is refused: there is none anywhere.
MANY_FIELDS = json.dumps(dict.fromkeys(map(str, range(5000)), 1)).encode()
ANY = None  # any detail


class Answer(NamedTuple):
    status: int
    headers: dict
    text: bytes


def ask(app, method, path, body=b"", query="", **environ):
    """One request by a bare environ, as a server hands it over: nothing in it is made polite."""
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    } | environ
    environ = {name: value for name, value in environ.items() if value is not None}
    started = []
    text = app(environ, lambda line, headers, exc_info=None: started.append((line, headers)))
    text = b"".join(text)
    [(line, headers)] = started
    return Answer(int(line[:3]), {name.title(): value for name, value in headers}, text)


def fault(answer, expected):
    """What is wrong with the answer; None if it is as it must be."""
    if b"Traceback" in answer.text:
        return "shows a traceback"
    if callable(expected):
        return expected(answer)
    if answer.status not in (expected if isinstance(expected, set) else {expected}):
        return f"answers {answer.status} and not {expected}: {answer.text[:200]}"
    if answer.status >= 400 and answer.headers.get("Content-Type") != "application/problem+json":
        return f"answers {answer.headers.get('Content-Type')}"
    if answer.status >= 400 and answer.text:
        problem = json.loads(answer.text)
        if problem["status"] != answer.status or not problem["title"] or not problem["detail"]:
            return f"answers {problem}"
    return None


def path_of(route, **ids):
    """The path of the route with these ids; 1 where none is given."""
    return re.sub(r"<(\w+):id>", lambda found: ids.get(found[1], "1"), route.path)


def valid_body(route):
    return json.dumps(VALID[route.path.split("/")[1]]).encode() if route.takes else b""


def media_type(route):
    return {"CONTENT_TYPE": route.takes[0]} if route.takes else {}


TAKE_A_BODY = [route for route in tracker.ROUTES if route.takes]


def with_field(route, field, value):
    """The valid body of the route with this value in the field; None if it has no such field."""
    valid = VALID[route.path.split("/")[1]]
    return json.dumps(valid | {field: value}).encode() if field in valid else None


def tells(pointer, detail):
    """Whether an answer tells this one fault, as a function to judge by."""

    def complain(answer):
        told = json.loads(answer.text).get("errors", []) if answer.status == 422 else []
        right = [error["pointer"] for error in told] == [pointer]
        right = right and detail in (ANY, told[0]["detail"])
        return None if right else f"answers {answer.status} {told or answer.text[:80]}"

    return complain


# ---------------------------------------------------------------- the world

# What FTS5 or SQL could take for more than text is found to the letter, and nothing else is.
LITERALLY = [
    ("a quote", 'he said "stop'),
    ("two quotes", '""'),
    ("an apostrophe", "it's"),
    ("SQL", "'; DROP TABLE tickets; --"),
    ("OR", "fix OR break"),
    ("AND", "fix AND break"),
    ("NOT", "fix NOT break"),
    ("NEAR", "NEAR(fix break, 5)"),
    ("a star", "data*"),
    ("three stars", "***"),
    ("a caret", "^fix"),
    ("a column", "title:fix"),
    ("columns in braces", "{title description}: fix"),
    ("a minus", "-fix"),
    ("a plus", "fix + break"),
    ("parentheses", "(fix"),
    ("a LIKE pattern", "100%_done"),
    ("two percent signs", "%%"),
    ("a GLOB pattern", "[a-z]?"),
    ("a backslash", "C:\\new\\0"),
    ("a parameter of SQL", ":phrase ?1 @x $y"),
    ("a comment", "/* fix */"),
    ("a comma", "fix, break"),
    ("many blanks", "fix   break"),
    ("an escape", "\\u0041"),
    ("an emoji", "fix 🐛 now"),
    ("sharp s", "Straße"),
    ("a capital with a dot", "İzmir"),
]


class World:
    """An app with one of everything, which no hostile request may change."""

    def __init__(self, make_database):
        self.make_database = make_database
        self.make()

    def make(self):
        database = self.make_database()
        self.app = tracker.create_app(
            database, smtp="", sender="tracker@localhost", allowed_hosts=(), output=io.StringIO()
        )
        api = Api(self.app)
        api.user()
        api.project()
        api.ticket(assignees=[1])
        for _, title in LITERALLY:
            api.ticket(title=title)
        eventually(lambda: api.get("/health").json["mail"]["queued"] == 0)
        self._watch = (psycopg if is_url(database) else sqlite3).connect(database)
        self._version = "PRAGMA data_version"
        if is_url(database):  # each commit of each connection is counted there
            self._watch.autocommit = True
            self._version = "SELECT sum(number) FROM tracker.commits"

    def version(self):
        """Another one as soon as anybody has written anything."""
        return self._watch.execute(self._version).fetchone()

    def close(self):
        self._watch.close()
        self.app.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request, tmp_path_factory):
    if request.param == "sqlite":
        folder, numbers = tmp_path_factory.mktemp("hostile"), itertools.count(1)
        world = World(lambda: folder / f"{next(numbers)}.db")
    else:
        cluster = request.getfixturevalue("postgresql")
        world = World(lambda: cluster.create(template="ready"))
    yield world
    world.close()


@pytest.fixture
def judge(world, caplog):
    """Sends requests, of each (name, expected, arguments of ask), and lists what went wrong."""

    def judge(requests):
        wrong, clean = [], world.version()
        before = clean
        for name, expected, (method, path, *body), environ in requests:
            caplog.clear()
            answer = ask(world.app, method, path, *body, **environ)
            logged = [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
            complaint = (
                fault(answer, expected)
                or (f"logs {logged[0].getMessage()}" if logged else None)
                or ("writes to the database" if world.version() != before else None)
            )
            before = world.version()
            if complaint:
                wrong.append(f"{name[:60]}: {method[:9]} {path[:60]} {complaint}")
        if before != clean:  # or the tests to come would fail as well
            world.close()
            world.make()
        assert not wrong, "\n" + "\n".join(wrong)

    return judge
