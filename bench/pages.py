"""Pages of the WAL for each commit: what a write costs on every disk, counted, not timed.

Each operation goes through the application in process, on its own commit, with 100,000
tickets. Before it the WAL is emptied, and no checkpoint runs meanwhile: the frames that the
WAL then holds are the pages that the operation has changed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import db
import tracker
from bench import requests
from bench.tools import Progress, call, copy, goal, silent_app, table, workplace

GOALS = {"create a ticket": 22, "change of status": 20, "rename a user": 4}
KINDS = ["create a ticket", "change of status", "assign", "unassign", "rename a user"]


def run(progress: Progress, quick: bool) -> dict[str, Any]:
    """The mean of 1,000 operations of each kind, always the same ones: so many, because of the
    creations one in 64 has the index of texts take in 64 tickets, and one in 500 has it merged."""
    tickets, operations = (10_000, 64) if quick else (100_000, 1_000)
    counted = {}
    with workplace() as folder:
        database = copy(folder, tickets, progress)
        with silent_app(database) as app, closing(sqlite3.connect(database)) as conn:
            with app.database.read() as own:  # its only connection, as all is done in one thread
                own.execute("PRAGMA wal_autocheckpoint = 0")
            streams = requests.writes(app, database, tickets)
            for kind in KINDS:
                acts = (partial(call, app, *next(streams[kind])) for _ in range(operations))
                counted[kind] = [pages(database, conn, act) for act in acts]
            with app.database.read() as own:
                due = db.list_due(own, "9", operations)
            acts = (partial(record_sent, app, email) for email in due)
            counted["record a mail as sent"] = [pages(database, conn, act) for act in acts]
    means = {kind: sum(of_kind) / len(of_kind) for kind, of_kind in counted.items()}
    goals = [
        goal(f"{kind}: {most} pages or less", f"{means[kind]:.1f}", means[kind] <= most)
        for kind, most in GOALS.items()
    ]
    rows = (
        [kind, f"{means[kind]:.1f}", str(max(of_kind)), str(GOALS.get(kind, ""))]
        for kind, of_kind in counted.items()
    )
    shown = table(["Pages of the WAL for each commit", "mean", "most", "goal"], *rows)
    return {"goals": goals, "means": means, "counted": counted, "table": shown}


def pages(database: Path, conn: sqlite3.Connection, act: Callable[[], Any]) -> int:
    """How many pages the act changes. Raises RuntimeError if the WAL was in use before."""
    [(page_size,)] = conn.execute("PRAGMA page_size").fetchall()
    if conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() != (0, 0, 0):
        raise RuntimeError("the WAL could not be emptied")
    act()
    size = database.with_name(f"{database.name}-wal").stat().st_size
    return (size - 32) // (page_size + 24)


def record_sent(app: tracker.Tracker, due: db.Due) -> None:
    with app.database.write() as conn:
        db.record_sent(conn, due, "somebody@example.com")
