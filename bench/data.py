"""The data that everything is measured on: the same for the tracker and for its peers.

From one seed come users, projects and tickets: 0 to 3 assignees each (as many as the id, modulo
4), words whose frequency follows Zipf's law, and a history where the status is not "open" any
more. The tracker's database also holds the mail about it, which was sent. A finished database
is kept in bench/.cache, whole or not at all.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import db
import mailer
from plumbing.text import fold, name_key

HERE = Path(__file__).resolve().parent
CACHE = HERE / ".cache"
PEERS = HERE / "peers"
NOWHERE = "smtp://127.0.0.1:1"  # where nobody listens
STATUSES = ("open", "in progress", "closed")
USERS = 100
PROJECTS = 20
PROJECT = 7  # the one that filters ask for; so large that its open tickets fill a page of 50
BEGINNING = datetime(2024, 1, 1, tzinfo=UTC)
CHUNK = 10_000  # tickets per transaction

# Texts to search for, and in how many tickets they are found.
RARE = "quicksilver"  # in 10 tickets at every size
COMMON = "error"  # in about 1 of 4
SHORT = "db"  # in about 1 of 20; shorter than the three characters of a trigram
ABSENT = "qx"  # in none, and as short

# The most frequent first: the n-th word is n times as rare as the first one.
WORDS = """
    the to a in is and of when for not on with after error it page login user be from this
    fails by has button no list email are save server new test add report file update wrong
    data project click form does missing customer order search message date only if open
    slow settings password request shows should timeout table export account text screen
    empty mobile api field name crash link image value menu download invoice upload status
    db second view change release filter title payment print format sort browser session
    delete number code log twice token address cache column query network job retry broken
    deploy chart build label currency lost version group row translation icon disk header
    dialog sync backup queue layout Größe memory response import calendar contract schema
    window theme footer role template permission worker archive index warehouse keyboard
    comment café preview attachment history merge cursor folder scroll certificate proxy
    license quota zone audit badge shipment naïve dashboard container tooltip duplicate
    rounding scanner signature thread wizard Überweisung webhook discount stylesheet
    notification cronjob firewall gateway onboarding rollback snapshot Zürich throttling
    checksum hyphen umlaut kerning latency mutex nonce overflow parity regex semaphore
""".split()  # noqa: SIM905
WEIGHTS = list(accumulate(1 / rank for rank in range(1, len(WORDS) + 1)))

FIRST_NAMES = "Max Dave Yaris Anna Zoë Björn Carla Deniz Emil Fatima".split()  # noqa: SIM905
LAST_NAMES = "Müller Smith Rossi Novák Kim Lopez Haddad Jansen Okafor Sato".split()  # noqa: SIM905


class Ticket(NamedTuple):
    id: int
    title: str
    description: str | None
    project_id: int
    status: str
    created_at: datetime
    updated_at: datetime | None
    assignees: list[int]


def users() -> list[tuple[int, str, str]]:
    """(id, name, email) of each user."""
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    return [(id, name, f"user{id}@example.com") for id, name in enumerate(names, 1)]


def projects() -> list[tuple[int, str]]:
    """(id, name) of each project."""
    return [(id, f"{WORDS[80 + id].capitalize()} team") for id in range(1, PROJECTS + 1)]


def text(draw: random.Random) -> tuple[str, str | None]:
    """A title, and often a description."""
    words = draw.choices(WORDS, cum_weights=WEIGHTS, k=draw.randint(12, 46))
    cut = draw.randint(4, 8)
    title, rest = " ".join(words[:cut]), " ".join(words[cut:])
    description = f"{rest}. See {words[0]}-{draw.randrange(10_000)}."
    return title[0].upper() + title[1:], description if draw.random() < 0.85 else None


def tickets(count: int) -> Iterator[Ticket]:
    """The tickets 1 to `count`, always the same for the same count."""
    draw = random.Random(7)
    needles = {1 + (count - 1) * n // 10 for n in range(10)}
    for id in range(1, count + 1):
        title, description = text(draw)
        status = draw.choices(STATUSES, (4, 2, 4))[0]
        created = BEGINNING + timedelta(seconds=45 * id, milliseconds=draw.randrange(1000))
        yield Ticket(
            id,
            f"{title} {RARE}" if id in needles else title,
            description,
            PROJECT if draw.random() < 0.15 else draw.randint(1, PROJECTS),
            status,
            created,
            None if status == "open" else created + timedelta(minutes=draw.randint(1, 40_000)),
            sorted(draw.sample(range(1, USERS + 1), id % 4)),
        )


# ---------------------------------------------------------------- databases

SCHEMAS = {
    "tracker": HERE.parent / "schema.sql",
    "sqlalchemy": HERE / "peers" / "models.py",
    "django": HERE / "peers" / "django_app" / "models.py",
}
# What creates the empty database of a peer at $PEER_DATABASE, as its documentation says.
CREATE = {
    "sqlalchemy": ["models.py"],
    "django": ["-m", "django", "migrate", "--run-syncdb", "--verbosity=0"],
}


def database(kind: str, count: int, progress: Callable[[str], None] = print) -> Path:
    """A database of the kind ("tracker", "sqlalchemy", "django") with `count` tickets.

    It is made at the first call and kept until what makes it changes. Measure on a copy: it is
    closed, and one file.
    """
    sources = (Path(__file__), SCHEMAS[kind])
    version = zlib.crc32(b"".join(source.read_bytes() for source in sources))
    path = CACHE / f"{kind}-{count}-{version:08x}.db"
    if path.exists():
        return path
    CACHE.mkdir(exist_ok=True)
    for outdated in CACHE.glob(f"{kind}-{count}-*"):
        outdated.unlink()
    partial = path.with_suffix(".partial")
    if kind == "tracker":
        db.open_database(partial).close()
    else:
        command = [sys.executable, *CREATE[kind]]
        subprocess.run(command, cwd=HERE / "peers", env=environment(partial), check=True)
    with closing(sqlite3.connect(partial, isolation_level=None)) as conn:
        fill(conn, kind, count, progress)
    partial.with_name(f"{partial.name}-lock").unlink(missing_ok=True)
    return partial.rename(path)


def environment(path: Path) -> dict[str, str]:
    """What tells a peer, and the tracker under a foreign server, its database."""
    return os.environ | {
        "PEER_DATABASE": str(path),
        "DJANGO_SETTINGS_MODULE": "django_app.settings",
        "PYTHONPATH": str(HERE.parent),
        "TRACKER_DB": str(path),
        "TRACKER_SMTP": NOWHERE,
    }


def fill(conn: sqlite3.Connection, kind: str, count: int, progress: Callable[[str], None]) -> None:
    """Write users, projects, tickets and what happened to them into the empty tables."""
    conn.execute("PRAGMA synchronous = OFF")  # what a crash breaks here is made anew
    conn.execute("PRAGMA cache_size = -200000")
    conn.execute("PRAGMA foreign_keys = ON")
    insert(conn, "users", [{"id": id, "name": name, "email": email} for id, name, email in users()])
    insert(
        conn,
        "projects",
        [{"id": id, "name": name, "name_key": name_key(name)} for id, name in projects()],
    )
    source, done, began, told = tickets(count), 0, time.monotonic(), 0.0
    while chunk := list(islice(source, CHUNK)):
        conn.execute("BEGIN")
        insert_tickets(conn, kind, chunk)
        conn.execute("COMMIT")
        done += len(chunk)
        seconds = time.monotonic() - began
        if done == count or seconds - told > 5:
            told = seconds
            progress(f"data: {done:,} of {count:,} tickets, {seconds:.0f} s")
    conn.execute("PRAGMA wal_checkpoint (TRUNCATE)")


def insert_tickets(conn: sqlite3.Connection, kind: str, chunk: list[Ticket]) -> None:
    """The tickets with their assignees, and what happened to them."""
    ours = kind == "tracker"
    moment = rfc3339 if ours else orm_time
    people = {id: {"id": id, "name": name, "email": email} for id, name, email in users()}
    names = dict(projects())
    history: list[dict[str, Any]] = []
    emails: list[dict[str, Any]] = []
    (last,) = conn.execute("SELECT coalesce(max(id), 0) FROM history").fetchone()
    for ticket in chunk:
        shown = ticket._asdict() | {"assignees": [people[id] for id in ticket.assignees]}
        change = {"status": {"from": "open", "to": ticket.status}}
        for when, changes in (ticket.created_at, None), (ticket.updated_at, change):
            if when is None or (changes is None and not (ours and ticket.assignees)):
                continue
            last += 1
            row = {"id": last, "ticket_id": ticket.id, "changed_at": moment(when)}
            row |= {"changes": changes and json.dumps(changes), "subject": None, "body": None}
            if ours and ticket.assignees:
                body = mailer.describe(db.Change(last, shown, changes, None, None), names, None, "")
                row |= {"subject": f"[Ticket #{ticket.id}] {ticket.title}", "body": body}
            history.append(row)
            emails += [
                {
                    "history_id": last,
                    "user_id": user_id,
                    "address": people[user_id]["email"],
                    "state": "sent",
                    "attempts": 1,
                    "sent_at": moment(when),
                }
                for user_id in ticket.assignees
            ]
    tickets = [
        ticket._asdict()
        | {
            "created_at": moment(ticket.created_at),
            "updated_at": ticket.updated_at and moment(ticket.updated_at),
            "text": searched(ticket.title, ticket.description),
        }
        for ticket in chunk
    ]
    insert(conn, "tickets", tickets)
    pairs = [(ticket.id, user_id) for ticket in chunk for user_id in ticket.assignees]
    insert(conn, "assignments", [{"ticket_id": id, "user_id": user_id} for id, user_id in pairs])
    insert(conn, "history", history)
    if ours:
        insert(conn, "emails", emails)


def searched(title: str, description: str | None) -> str:
    """What the tracker searches, in the form that schema.sql describes."""
    return f"{fold(title)}\x1f{fold(description or '')}\x1f\x1f"


def insert(conn: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert of the rows what the table can hold: the peers have fewer columns."""
    found = [name for _, name, *_ in conn.execute(f"PRAGMA table_info ({table})")]
    names = [name for name in rows[0] if name in found]
    conn.executemany(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})",
        map(itemgetter(*names), rows),
    )


def rfc3339(moment: datetime) -> str:
    """As the tracker keeps a time."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def orm_time(moment: datetime) -> str:
    """As SQLAlchemy and Django keep a time in SQLite."""
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"
