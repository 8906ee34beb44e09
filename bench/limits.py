"""In process, against the limits: what the tracker costs above Bottle and above SQLite.

Each route that reads is called as WSGI beside a bare Bottle route that returns a constant;
each change of a ticket beside the same rows written by a bare loop over sqlite3 into a copy of
the same database, and at the end both must hold the same. The two take turns, block by block,
and the medians of the blocks count.
"""

from __future__ import annotations

import json
import re
import sqlite3
import statistics
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import bottle

import db
import mailer
import tracker
from bench import data
from bench.tools import Progress, call, copy, goal, silent_app, table, workplace
from plumbing.engines import utc_now

TICKETS = 10_000
BLOCK = 20  # writes of a kind in turn; of reads ten times as many


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
    id = TICKETS + n
    values: dict[str, Any] = TICKET | {"n": n, "ticket": id, "email": mails + n, "new_title": NEW}
    for what, changes in CHANGES.items():
        shown: dict[str, Any] = TICKET | {"id": id, "assignees": THREE}
        shown["title"] = OLD if what == "created" else NEW
        shown["status"] = "open" if what in ("created", "renamed") else "closed"
        shown["assignees"] = FOUR if what == "assigned" else THREE
        values[f"{what}_subject"] = f"[Ticket #{id}] {shown['title']}"
        values[f"{what}_changes"] = changes and json.dumps(changes, ensure_ascii=False)
        values[f"{what}_body"] = mailer.describe(
            db.Change(n, shown, changes, None, None), dict(data.projects()), None, ""
        )
    for what, title in ("old_text", OLD), ("new_text", NEW):
        values[what] = data.searched(title, TICKET["description"])
    return values | {"now": data.rfc3339(utc_now())}


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

# Target and body of each write, and the same rows as bare SQL. What the first of them creates,
# the next ones change.
WRITES: dict[str, tuple[str, str, list[str]]] = {
    "PUT /users/{id}": (
        "/users/7",
        '{"name": "Renamed %(n)d", "email": "user7@example.com"}',
        ["UPDATE users SET name = 'Renamed ' || :n WHERE id = 7"],
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
            "UPDATE system SET error = NULL",
        ],
    ),
}


def rows(path: Path) -> dict[str, list[str]]:
    """All that is in the tables, but the time of day."""
    with closing(sqlite3.connect(path)) as conn:
        tables = conn.execute("""
            SELECT name FROM sqlite_schema
             WHERE type = 'table' AND name NOT LIKE 'sqlite%' AND name NOT LIKE 'ticket_texts_%'""")
        time_of_day = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")
        return {
            name: [time_of_day.sub("", repr(row)) for row in conn.execute(f"SELECT * FROM {name}")]
            for (name,) in tables.fetchall()
        }


# ---------------------------------------------------------------- the run


def run(progress: Progress, quick: bool) -> dict[str, Any]:
    """Measure all routes. Raises RuntimeError if the bare SQL has not written the same rows."""
    blocks = 3 if quick else 15
    with workplace() as folder:
        ours, theirs = (copy(folder, TICKETS, progress) for _ in range(2))
        with (
            silent_app(ours) as app,
            closing(sqlite3.connect(theirs, isolation_level=None)) as bare,
        ):
            for pragma in ("synchronous = FULL", "foreign_keys = ON", "temp_store = MEMORY"):
                bare.execute(f"PRAGMA {pragma}")
            written = compare_writes(app, bare, blocks)
            read = compare_reads(app, blocks)
        found, expected = rows(ours), rows(theirs)
        if different := [name for name in found if found[name] != expected[name]]:
            raise RuntimeError(f"the bare SQL has written something else into {different}")
    goals = []
    for text, most, (own, limit) in (
        ("one ticket, to a bare Bottle route", 3, read["GET /tickets/{id}"]),
        ("a page of 50, to a bare Bottle route", 7, read["GET /tickets"]),
        ("a change of status, to the bare SQL", 2.5, written[CHANGE_OF_STATUS]),
    ):
        text = f"in process, {text}: {most} times or less"
        goals.append(goal(text, f"{own / limit:.1f}", own / limit <= most))
    figures = read | written
    cells = ([f"`{k}`", f"{o:.3f}", f"{b:.3f}", f"{o / b:.1f}"] for k, (o, b) in figures.items())
    shown = table(["In process", "Tracker, ms", "Limit, ms", "Ratio"], *cells)
    return {"goals": goals, "figures": figures, "table": shown}


def compare_writes(
    app: tracker.Tracker, bare: sqlite3.Connection, blocks: int
) -> dict[str, tuple[float, float]]:
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
    return {name: medians(taken) for name, taken in times.items()}


def compare_reads(app: tracker.Tracker, blocks: int) -> dict[str, tuple[float, float]]:
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


def medians(taken: list[tuple[float, float]]) -> tuple[float, float]:
    ours, limit = zip(*taken, strict=True)
    return statistics.median(ours), statistics.median(limit)
