"""Over HTTP: the tracker beside its peers, and beside other servers of itself.

Each server gets a copy of the same data of its own, and each peer must first give the same
answers and write the same rows and mail as the tracker. Then one client asks one after the
other, kind of request by kind of request, so that a slow drift of the machine meets them all
alike. Mail is queued by all and sent by none.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import datetime
from itertools import groupby
from typing import Any, NamedTuple

from bench import data, requests
from bench.tools import (
    TRACKER,
    Configuration,
    Progress,
    Request,
    Server,
    Stream,
    copy,
    during,
    goal,
    load,
    table,
    workplace,
)
from plumbing.lockfile import DELIVERS, LockFile

OURS = TRACKER.name


# ---------------------------------------------------------------- the servers


def gunicorn(app: str, workers: int, threads: int = 1) -> str:
    options = f"--no-control-socket --workers {workers} --threads {threads} --log-level warning"
    return f"-m gunicorn --bind 127.0.0.1:{{port}} {options} {app}"


def uvicorn(workers: int) -> str:
    options = f"--workers {workers} --no-access-log --log-level warning"
    return f"-m uvicorn fastapi_app:app --host 127.0.0.1 --port {{port}} {options}"


def waitress(app: str, threads: int) -> str:
    return f"-m waitress --listen=127.0.0.1:{{port}} --threads={threads} {app}"


def granian(workers: int) -> str:
    options = f"--workers {workers} --no-access-log --log-level warning"
    return f"-m granian --interface wsgi --port {{port}} {options} --factory tracker:create_app"


def on_gunicorn(name: str, kind: str, app: str) -> list[Configuration]:
    """Its default worker, two and as many as it recommends; and threads, which keep alive."""
    recommended = 2 * (os.cpu_count() or 1) + 1
    return [
        Configuration(name, "2 workers", kind, gunicorn(app, 2)),
        Configuration(name, f"{recommended} workers", kind, gunicorn(app, recommended)),
        Configuration(name, "1 worker of 4 threads", kind, gunicorn(app, 1, 4)),
        Configuration(name, "2 workers of 4 threads", kind, gunicorn(app, 2, 4)),
    ]


# Of each name, the configuration that is fastest here is the one that is compared.
PEERS = [
    Configuration("FastAPI, uvicorn", "1 worker", "sqlalchemy", uvicorn(1)),
    Configuration("FastAPI, uvicorn", "2 workers", "sqlalchemy", uvicorn(2)),
    Configuration("Flask, waitress", "4 threads", "sqlalchemy", waitress("flask_app:app", 4)),
    Configuration("Flask, waitress", "1 thread", "sqlalchemy", waitress("flask_app:app", 1)),
    *on_gunicorn("Flask, gunicorn", "sqlalchemy", "flask_app:app"),
    *on_gunicorn("Django REST framework, gunicorn", "django", "django_app.wsgi"),
]
# The tracker, but served by others.
WAYS = [
    Configuration("waitress, 1 thread", "", "tracker", waitress("--call tracker:create_app", 1)),
    Configuration("waitress, 4 threads", "", "tracker", waitress("--call tracker:create_app", 4)),
    Configuration("gunicorn, 2 x 4", "", "tracker", gunicorn("tracker:create_app()", 2, 4)),
    Configuration("granian, 1 worker", "", "tracker", granian(1)),
    Configuration("granian, 2 workers", "", "tracker", granian(2)),
]


@contextmanager
def running(
    configurations: list[Configuration], tickets: int, progress: Progress
) -> Iterator[list[Server]]:
    """The servers of these configurations, each on a copy of the data. None delivers mail."""
    with ExitStack() as stack:
        folder, servers = stack.enter_context(workplace()), []
        for configuration in configurations:
            database = copy(folder, tickets, progress, configuration.kind)
            lock = LockFile(str(database))  # of who delivers
            lock.acquire(DELIVERS)
            stack.callback(lock.close)
            servers.append(stack.enter_context(Server(database, configuration)))
        yield servers


def query(server: Server, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.database)) as conn:
        return conn.execute(sql).fetchall()


def written(server: Server) -> tuple[int, int, int]:
    """How many tickets, changes and mails there are."""
    [counts] = query(
        server,
        """
        SELECT (SELECT max(id) FROM tickets),
               (SELECT count(*) FROM history WHERE changes IS NOT NULL),
               (SELECT coalesce(max(id), 0) FROM emails)""",
    )
    return counts


# ---------------------------------------------------------------- what is asked


class Kind(NamedTuple):
    """Requests, how much faster than the best peer they should be, and what each writes."""

    requests: Callable[[Server, int], Iterator[Request]]  # the number is that of the tickets
    times: float
    connections: int = 16
    writes: tuple[int, int, int] = (0, 0, 0)  # tickets, changes, mails


PAGES = {
    "page of 50": ("/tickets", 5),
    "filtered page of 50": (f"/tickets?project_id={data.PROJECT}&status=open", 4),
    "search, rare text": (f"/tickets?text={data.RARE}", 2.5),
    "search, common text": (f"/tickets?text={data.COMMON}", 2.5),
}
CREATE = Kind(lambda server, tickets: requests.creations(), 4, 16, (1, 0, 3))
CHANGE = Kind(lambda server, _: requests.changes_of_status(server.database), 4, 16, (0, 1, 3))
KINDS = {
    "one ticket": Kind(lambda server, tickets: requests.one_ticket(tickets), 4),
    **{
        name: Kind(lambda server, tickets, path=path: requests.always(path), times)
        for name, (path, times) in PAGES.items()
    },
    "create": CREATE,
    "create, 64 connections": CREATE._replace(connections=64),
    "change of status": CHANGE,
    "change of status, 64 connections": CHANGE._replace(connections=64),
}


def measure(server: Server, kind: str, tickets: int, seconds: float) -> dict[str, Any]:
    """The rate and latencies, and as errors whatever went wrong."""
    stream = Stream(KINDS[kind].requests(server, tickets), KINDS[kind].connections)
    before = written(server)
    found = load(server.port, {kind: stream}, during(seconds))[kind]
    for what, now, then, each in zip(
        ("tickets", "changes", "mails"), written(server), before, KINDS[kind].writes, strict=True
    ):
        if now - then != found["requests"] * each:
            found["errors"].append(f"{now - then} {what} after {found['requests']} requests")
    return found


# ---------------------------------------------------------------- are they the same?

NEW = {
    "title": "The login page fails after the update",
    "description": "It shows an error, and the button does nothing.",
    "project_id": data.PROJECT,
    "status": "open",
    "assignees": [3, 14, 15],
}
FAULTY: dict[str, dict[str, Any]] = {
    "empty title": {"title": " "},
    "title too long": {"title": "x" * 201},
    "line break in the title": {"title": "a\nb"},
    "unknown status": {"status": "done"},
    "unknown project": {"project_id": 999},
    "unknown assignee": {"assignees": [1, 999]},
}


def answers(server: Server) -> dict[str, Any]:
    """What the server says to each kind of request, and the rows that it writes."""

    def ask(method: str, target: str, body: Any = None) -> tuple[int, Any]:
        status, answer = server.ask(method, target, json.dumps(body).encode() if body else b"")
        return status, comparable(json.loads(answer)) if status < 400 else None

    ticket = "/tickets/7"  # which has three assignees
    shown: dict[str, Any] = {"one ticket": ask("GET", ticket)}
    other = {"status": "open" if shown["one ticket"][1]["status"] == "closed" else "closed"}
    shown |= {kind: ask("GET", path) for kind, (path, _) in PAGES.items()}
    shown["text in capitals"] = ask("GET", f"/tickets?text={data.RARE.upper()}")
    shown["create"] = ask("POST", "/tickets", NEW)
    shown["change of status"] = ask("PATCH", ticket, other)
    shown["no change"] = ask("PATCH", ticket, other)
    shown["the new ticket"] = ask("GET", f"/tickets/{shown['create'][1]['id']}")
    source = "history JOIN emails ON history_id = history.id" if server.name == OURS else "emails"
    shown["mail"] = query(
        server,
        f"""
        SELECT ticket_id, user_id, subject, body, state
          FROM {source}
         WHERE state = 'queued'
         ORDER BY emails.id""",
    )
    changes = query(server, "SELECT ticket_id, changes FROM history ORDER BY id DESC LIMIT 1")
    shown["history"] = [(id, json.loads(change)) for id, change in changes]
    rows = written(server)
    for kind, fault in FAULTY.items():
        shown[kind] = ask("POST", "/tickets", NEW | fault)[0] in (400, 422)
    shown["no status"] = ask("PATCH", "/tickets/4", {"status": "done"})[0] in (400, 422)
    shown["no ticket"] = ask("PATCH", "/tickets/999999999", {"status": "open"})[0]
    shown["nothing written"] = written(server) == rows
    return shown


def comparable(document: Any) -> Any:
    """Times as times, however they are written; those of this minute as "now"."""
    if isinstance(document, list):
        return [comparable(ticket) for ticket in document]
    for name in ("created_at", "updated_at"):
        if document[name] is not None:
            moment = datetime.fromisoformat(document[name])
            document[name] = "now" if abs(moment.timestamp() - time.time()) < 60 else moment
    return document


def check(server: Server, expected: dict[str, Any]) -> None:
    """Raises RuntimeError if the server answers other than the tracker."""
    found = answers(server)
    wrong = [
        f"  {kind}: {found[kind]!r:.500}\n  and not {expected[kind]!r:.500}"
        for kind in expected
        if found[kind] != expected[kind]
    ]
    if wrong:
        raise RuntimeError("\n".join([f"{server.name} is not the same as {OURS}:", *wrong]))


# ---------------------------------------------------------------- the runs


def compare_peers(progress: Progress, quick: bool) -> dict[str, Any]:
    """The tracker beside the best configuration of each peer.

    Raises RuntimeError if a server does not start or does not do the same as the tracker.
    """
    tickets, seconds, rounds = (1_000, 0.5, 1) if quick else (10_000, 4, 3)
    with running([TRACKER], tickets, progress) as (ours,):
        expected = answers(ours)
    best = []
    for _, group in groupby(PEERS, key=lambda configuration: configuration.name):
        peers = list(group)
        with running(peers, tickets, progress) as servers:
            for server in servers:
                check(server, expected)
            found = in_turns(servers, list(KINDS), tickets, seconds / 2, 1, progress)
        rates = [[of_kind[n]["rate"] for of_kind in found.values()] for n in range(len(peers))]
        best.append(peers[rates.index(max(rates, key=statistics.geometric_mean))])
    with running([TRACKER, *best], tickets, progress) as servers:
        found = in_turns(servers, list(KINDS), tickets, seconds, rounds, progress)

    goals, late, wrong = [], [], []
    for kind, (ours, *peers) in found.items():
        ratio = ours["rate"] / max(peer["rate"] for peer in peers)
        text = f"{kind}: {KINDS[kind].times} times the best peer or more"
        goals.append(goal(text, f"{ratio:.1f}", ratio >= KINDS[kind].times))
        if (least := min(peer["p99_ms"] for peer in peers)) < ours["p99_ms"]:
            late.append(f"{kind}: {ours['p99_ms'] / least:.1f} times that of a peer")
        wrong += ours["errors"]
    goals.append(goal("no p99 above that of a peer", "; ".join(late) or "none", not late))
    goals.append(
        goal("all is answered with 2xx, and written", "; ".join(wrong) or "yes", not wrong)
    )
    for kind in ("create", "change of status"):
        ratio = found[f"{kind}, 64 connections"][0]["rate"] / found[kind][0]["rate"]
        text = f"{kind}: at 64 connections no slower than at 16"
        goals.append(goal(text, f"{ratio:.2f} times as fast", ratio >= 1))
    return {"goals": goals, "found": found, "table": ratios(best, found)}


def compare_servers(progress: Progress, quick: bool) -> dict[str, Any]:
    """The tracker's own server beside waitress, gunicorn and granian."""
    tickets, seconds, rounds = (1_000, 0.5, 1) if quick else (10_000, 3, 3)
    kinds = ["one ticket", "page of 50", "filtered page of 50", "change of status"]
    with running([TRACKER, *WAYS], tickets, progress) as servers:
        found = in_turns(servers, kinds, tickets, seconds, rounds, progress)
    return {"goals": [], "found": found, "table": ratios(WAYS, found)}


def in_turns(
    servers: list[Server],
    kinds: list[str],
    tickets: int,
    seconds: float,
    rounds: int,
    progress: Progress,
) -> dict[str, list[dict[str, Any]]]:
    """Of each kind the medians of each server; who begins changes from round to round."""
    found = {}
    for kind in kinds:
        samples: dict[Server, list[dict[str, Any]]] = {server: [] for server in servers}
        for turn in range(rounds + 1):  # the first is short, to warm up
            first = turn % len(servers)
            for server in servers[first:] + servers[:first]:
                length = seconds if turn else seconds / 4
                samples[server].append(measure(server, kind, tickets, length))
        found[kind] = [
            {
                **{
                    figure: statistics.median(sample[figure] for sample in taken[1:])
                    for figure in ("rate", "p50_ms", "p99_ms")
                },
                "errors": [error for sample in taken for error in sample["errors"]],
            }
            for taken in samples.values()
        ]
        for server, figures in zip(servers, found[kind], strict=True):
            progress(f"{kind}: {server.name}, {server.setting}: {told(figures)}")
    return found


def told(figures: dict[str, Any]) -> str:
    text = f"{figures['rate']:,.0f} requests/s, p99 {figures['p99_ms']:.1f} ms"
    return "; ".join([text, *figures["errors"]])


def ratios(others: list[Configuration], found: dict[str, list[dict[str, Any]]]) -> str:
    """How many times as fast as each of the others the tracker is, in Markdown."""
    names = (", ".join(filter(None, (other.name, other.setting))) for other in others)
    rows = (
        [
            kind,
            *(
                f"{ours['rate'] / other['rate']:.1f} ({other['p99_ms'] / ours['p99_ms']:.1f})"
                for other in of_kind
            ),
        ]
        for kind, (ours, *of_kind) in found.items()
    )
    return table(["Times as many requests/s (times as early the p99) as", *names], *rows)
