"""In process, against the limits: what the tracker costs above Bottle and above SQLite.

Each route that reads is called as WSGI beside a bare Bottle route that returns a constant;
each write beside the same rows written by a bare loop over sqlite3 into a copy of the same
database, and at the end both must hold the same. The two take turns, block by block, and the
medians of the blocks count.

    python -m bench.limits
"""

from __future__ import annotations

import io
import json
import re
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import bottle

import db
import mailer
import tracker
from bench import data

TICKETS = 10_000
BLOCK = 20  # writes of a kind in turn; of reads ten times as many
Progress = Callable[[str], None]


# ---------------------------------------------------------------- what other parts use, too


def call(app: Any, method: str, target: str, content: bytes = b"") -> bytes:
    """The body of the answer to one WSGI call. Raises RuntimeError unless it is 2xx."""
    path, _, query = target.partition("?")
    told: list[str] = []
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(content)),
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8080",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost:8080",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(content),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    answer = b"".join(app(environ, lambda status, headers, *_: told.append(status)))
    if not told[-1].startswith("2"):
        raise RuntimeError(f"{method} {target}: {told[-1]} {answer.decode()}")
    return answer


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for copies of databases, on the disk of the cache."""
    data.CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data.CACHE) as folder:
        yield Path(folder)


@contextmanager
def silent_app(path: Path) -> Iterator[tracker.Tracker]:
    """The application on this database. It sends no mail."""
    app = tracker.create_app(path, smtp="smtp://127.0.0.1:1")
    app.mailer.close()
    try:
        yield app
    finally:
        app.close()


def goal(text: str, figure: str, met: bool) -> dict[str, Any]:
    """How a part says what it should reach and what it reached."""
    return {"goal": text, "figure": figure, "met": met}


# ---------------------------------------------------------------- the writes

OLD, NEW = "The login page fails after the update", "The login page is empty"
TICKET = {
    "title": OLD,
    "description": "It shows an error, and the button does nothing.",
    "project_id": data.PROJECT,
    "status": "open",
    "assignees": [3, 14, 15],
}
THREE, FOUR = (
    [{"id": id, "name": name} for id, name, _ in data.users() if id in ids]
    for ids in ((3, 14, 15), (3, 14, 15, 92))
)
CHANGES: dict[str, Any] = {
    "created": None,
    "renamed": {"title": {"from": OLD, "to": NEW}},
    "closed": {"status": {"from": "open", "to": "closed"}},
    "assigned": {"assignees": {"from": THREE, "to": FOUR}},
    "unassigned": {"assignees": {"from": FOUR, "to": THREE}},
}


def parameters(n: int, mails: int) -> dict[str, Any]:
    """What the n-th requests and their SQL are about. Texts are ready: only rows are written."""
    ids = {"n": n, "user": data.USERS + n, "project": data.PROJECTS + n, "ticket": TICKETS + n}
    ids["email"] = mails + n
    texts = {}
    for what, changes in CHANGES.items():
        shown: dict[str, Any] = TICKET | {"id": ids["ticket"], "assignees": THREE}
        shown["title"] = OLD if what == "created" else NEW
        shown["status"] = "open" if what in ("created", "renamed") else "closed"
        shown["assignees"] = FOUR if what == "assigned" else THREE
        texts[f"{what}_subject"] = f"[Ticket #{ids['ticket']}] {shown['title']}"
        texts[f"{what}_changes"] = changes and json.dumps(changes, ensure_ascii=False)
        texts[f"{what}_body"] = mailer.describe(db.Change(n, shown, changes, None, None), {})
    for what, title in (("old_text", OLD), ("new_text", NEW)):
        texts[what] = data.searched(title, TICKET["description"])
    return TICKET | ids | texts | {"new_title": NEW, "now": data.rfc3339(db.utc_now())}


def told(what: str, *users: int) -> list[str]:
    """The row of what happened, and one for each mail about it."""
    return [
        f"""INSERT INTO history (ticket_id, changed_at, changes, subject, body)
            VALUES (:ticket, :now, :{what}_changes, :{what}_subject, :{what}_body)""",
        f"""INSERT INTO emails (history_id, user_id, next_attempt_at)
            SELECT (SELECT max(id) FROM history), value, :now FROM json_each('{list(users)}')""",
    ]


def assign(*users: int) -> str:
    return f"""INSERT INTO assignments (ticket_id, user_id)
               SELECT :ticket, value FROM json_each('{list(users)}')"""


TOUCH = "UPDATE tickets SET updated_at = :now WHERE id = :ticket"
CHANGE_OF_STATUS = "PATCH /tickets/{id}"

# Target and body of each write, and the same rows as bare SQL. What the first of them create,
# the next ones change.
WRITES: dict[str, tuple[str, str, list[str]]] = {
    "POST /users": (
        "/users",
        '{"name": "User %(n)d", "email": "user%(user)d@example.com"}',
        [
            """INSERT INTO users (name, email)
               VALUES ('User ' || :n, 'user' || :user || '@example.com')"""
        ],
    ),
    "PUT /users/{id}": (
        "/users/%(user)d",
        '{"name": "Renamed %(n)d", "email": "user%(user)d@example.com"}',
        ["UPDATE users SET name = 'Renamed ' || :n WHERE id = :user"],
    ),
    "DELETE /users/{id}": ("/users/%(user)d", "", ["DELETE FROM users WHERE id = :user"]),
    "POST /projects": (
        "/projects",
        '{"name": "Project %(n)d"}',
        ["INSERT INTO projects (name, name_key) VALUES ('Project ' || :n, 'project ' || :n)"],
    ),
    "PUT /projects/{id}": (
        "/projects/%(project)d",
        '{"name": "Renamed %(n)d"}',
        [
            """UPDATE projects SET name = 'Renamed ' || :n, name_key = 'renamed ' || :n
                WHERE id = :project"""
        ],
    ),
    "DELETE /projects/{id}": (
        "/projects/%(project)d",
        "",
        ["DELETE FROM projects WHERE id = :project"],
    ),
    "POST /tickets": (
        "/tickets",
        json.dumps(TICKET),
        [
            """INSERT INTO tickets (title, description, project_id, status, created_at, text)
               VALUES (:title, :description, :project_id, :status, :now, :old_text)""",
            assign(3, 14, 15),
            *told("created", 3, 14, 15),
        ],
    ),
    "PUT /tickets/{id}": (
        "/tickets/%(ticket)d",
        json.dumps(TICKET | {"title": NEW}),
        [
            """UPDATE tickets SET title = :new_title, updated_at = :now, text = :new_text
                WHERE id = :ticket""",
            *told("renamed", 3, 14, 15),
        ],
    ),
    CHANGE_OF_STATUS: (
        "/tickets/%(ticket)d",
        '{"status": "closed"}',
        [
            "UPDATE tickets SET status = 'closed', updated_at = :now WHERE id = :ticket",
            *told("closed", 3, 14, 15),
        ],
    ),
    "PUT /tickets/{id}/assignees/{id}": (
        "/tickets/%(ticket)d/assignees/92",
        "",
        [TOUCH, assign(92), *told("assigned", 3, 14, 15, 92)],
    ),
    "DELETE /tickets/{id}/assignees/{id}": (
        "/tickets/%(ticket)d/assignees/92",
        "",
        [
            TOUCH,
            "DELETE FROM assignments WHERE ticket_id = :ticket AND user_id = 92",
            *told("unassigned", 3, 14, 15, 92),
        ],
    ),
    "POST /emails/{id}/retry": (
        "/emails/%(email)d/retry",
        "",
        [
            """UPDATE emails
                  SET state = 'queued', attempts = 0, error = NULL, next_attempt_at = :now
                WHERE id = :email""",
            "UPDATE system SET server = 'ok', error = NULL, ask_again_at = NULL",
        ],
    ),
}


def rows(path: Path) -> dict[str, list[str]]:
    """All that is in the tables, but the time of day and the ids of messages."""
    with closing(sqlite3.connect(path)) as conn:
        tables = conn.execute("""
            SELECT name FROM sqlite_schema
             WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE 'ticket_texts_%'""")
        vary = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|<[^ ]+@localhost>")
        return {
            name: [vary.sub("", repr(row)) for row in conn.execute(f"SELECT * FROM {name}")]
            for (name,) in tables.fetchall()
        }


# ---------------------------------------------------------------- the run


def run(progress: Progress = print, quick: bool = False) -> dict[str, Any]:
    """Measure all routes. Raises RuntimeError if the bare SQL has not written the same rows."""
    original = data.database("tracker", TICKETS, progress)
    blocks = 3 if quick else 15
    with workplace() as folder:
        ours, theirs = (shutil.copyfile(original, folder / name) for name in ("ours", "bare"))
        with (
            silent_app(ours) as app,
            closing(sqlite3.connect(theirs, isolation_level=None)) as bare,
        ):
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                bare.execute(f"PRAGMA {pragma}")
            written = compare_writes(app, bare, blocks, progress)
            read = compare_reads(app, blocks, progress)
        found, expected = rows(ours), rows(theirs)
        if different := [name for name in found if found[name] != expected[name]]:
            raise RuntimeError(f"the bare SQL has written something else into {different}")
    goals = []
    for what, limit, most, measured in (
        ("one ticket", "a bare Bottle route", 3, read["GET /tickets/{id}"]),
        ("a page of 50", "a bare Bottle route", 7, read["GET /tickets"]),
        ("a change of status", "the bare SQL", 2.5, written[CHANGE_OF_STATUS]),
    ):
        ratio = measured["ratio"]
        text = f"In process: {what} within {most} times {limit}"
        goals.append(goal(text, f"{ratio:.2f} times", ratio <= most))
    return {"goals": goals, "reads": read, "writes": written}


def compare_writes(
    app: tracker.Tracker, bare: sqlite3.Connection, blocks: int, progress: Progress
) -> dict[str, dict[str, float]]:
    def write(statements: list[str], each: dict[str, Any]) -> None:
        bare.execute("BEGIN IMMEDIATE")
        for sql in statements:
            bare.execute(sql, each)
        bare.execute("COMMIT")

    (mails,) = bare.execute("SELECT max(id) FROM emails").fetchone()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WRITES}
    for block in range(blocks):
        for name, (target, body, statements) in WRITES.items():
            method, ours, theirs = name.split()[0], [], []
            for n in range(1, BLOCK + 1):
                each = parameters(block * BLOCK + n, mails)
                ours.append(partial(call, app, method, target % each, (body % each).encode()))
                theirs.append(partial(write, statements, each))
            times[name].append(in_turn(block, ours, theirs))
        progress(f"limits: writes, block {block + 1} of {blocks}")
    return {name: medians(taken) for name, taken in times.items()}


def compare_reads(
    app: tracker.Tracker, blocks: int, progress: Progress
) -> dict[str, dict[str, float]]:
    bare = bottle.Bottle()
    bare.route("/tickets/<ticket_id:int>", callback=lambda ticket_id: "constant")
    theirs = [partial(call, bare, "GET", "/tickets/7")] * 10 * BLOCK
    routes = [re.sub("<.*?>", "{id}", r.path) for r in tracker.ROUTES if r.method == "GET"]
    times: dict[str, list[tuple[float, float]]] = {route: [] for route in routes}
    for block in range(blocks):
        for route in routes:
            targets = [route.replace("{id}", str(n % 20 + 1)) for n in range(10 * BLOCK)]
            ours = [partial(call, app, "GET", target) for target in targets]
            times[route].append(in_turn(block, ours, theirs))
        progress(f"limits: reads, block {block + 1} of {blocks}")
    return {f"GET {route}": medians(taken) for route, taken in times.items()}


def in_turn(
    block: int, ours: list[partial[Any]], theirs: list[partial[Any]]
) -> tuple[float, float]:
    """ms for each call, ours and theirs; who begins changes from block to block."""
    took = {}
    for who in (0, 1) if block % 2 else (1, 0):
        calls = (ours, theirs)[who]
        began = time.perf_counter()
        for each in calls:
            each()
        took[who] = (time.perf_counter() - began) * 1000 / len(calls)
    return took[0], took[1]


def medians(taken: list[tuple[float, float]]) -> dict[str, float]:
    ours, limit = (statistics.median(side) for side in zip(*taken, strict=True))
    return {"ours_ms": ours, "limit_ms": limit, "ratio": ours / limit}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| In process | Tracker, ms | Limit, ms | Ratio |", "|---|--:|--:|--:|"]
    for name, found in (result["reads"] | result["writes"]).items():
        figures = "{ours_ms:.3f} | {limit_ms:.3f} | {ratio:.2f}".format_map(found)
        lines.append(f"| `{name}` | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run()))
