"""The requests that are sent, as streams without end: the same for whoever is asked.

The streams of writes() are for one application in process: what a request needs beforehand,
and what it leaves behind, is done by calls between two requests, which are not measured.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import count, cycle
from pathlib import Path

import tracker
from bench import data
from bench.tools import Request, call


def always(*targets: str) -> Iterator[Request]:
    """GET one after the other."""
    return cycle([("GET", target, b"") for target in targets])


def one_ticket(tickets: int) -> Iterator[Request]:
    draw = random.Random(7)
    while True:
        yield "GET", f"/tickets/{draw.randint(1, tickets)}", b""


def creations() -> Iterator[Request]:
    """New tickets, each with three assignees."""
    draw = random.Random(8)
    while True:
        title, description = data.text(draw)
        ticket = {
            "title": title,
            "description": description,
            "project_id": draw.randint(1, data.PROJECTS),
            "status": "open",
            "assignees": draw.sample(range(1, data.USERS), 3),
        }
        yield "POST", "/tickets", json.dumps(ticket).encode()


def changes_of_status(database: Path) -> Iterator[Request]:
    """Ticket after ticket that has three assignees, and of each the next status.

    Every request is a change, as long as nobody else changes a status.
    """
    with closing(sqlite3.connect(database)) as conn:
        found = conn.execute("SELECT id, status FROM tickets WHERE id % 4 = 3 ORDER BY id")
        tickets = found.fetchall()
    random.Random(7).shuffle(tickets)
    for turn in count(1):
        for id, status in tickets:
            new = data.STATUSES[(data.STATUSES.index(status) + turn) % len(data.STATUSES)]
            yield "PATCH", f"/tickets/{id}", json.dumps({"status": new}).encode()


def writes(app: tracker.Tracker, database: Path, tickets: int) -> dict[str, Iterator[Request]]:
    """Of each kind a stream of requests that change something."""
    draw = random.Random(7)

    def assignee() -> str:
        """Somebody, at one of the tickets that have no assignees."""
        user = draw.randrange(1, data.USERS)
        return f"/tickets/{draw.randrange(4, tickets, 4)}/assignees/{user}"

    def assign() -> Iterator[Request]:
        while True:
            target = assignee()
            yield "PUT", target, b""
            call(app, "DELETE", target)

    def unassign() -> Iterator[Request]:
        while True:
            target = assignee()
            call(app, "PUT", target)
            yield "DELETE", target, b""

    def rename() -> Iterator[Request]:
        for n in count(1):
            id = draw.randrange(1, data.USERS)
            user = {"name": f"Name {n}", "email": f"user{id}@example.com"}
            yield "PUT", f"/users/{id}", json.dumps(user).encode()

    def create(path: str) -> Iterator[Request]:
        for n in count(1):
            thing = {"name": f"New {n}"} | ({"email": f"new{n}@x.org"} if path == "/users" else {})
            yield "POST", path, json.dumps(thing).encode()

    return {
        "create a ticket": creations(),
        "change of status": changes_of_status(database),
        "assign": assign(),
        "unassign": unassign(),
        "rename a user": rename(),
        "create a user": create("/users"),
        "create a project": create("/projects"),
    }
