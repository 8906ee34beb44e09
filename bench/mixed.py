"""Under mixed load: how long reads wait while others write, search, or delete a user.

The server is the real process, and its mail server is dead. Each client sends at its own pace,
and a latency counts from the moment at which the request was due.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlencode

from bench import data, requests
from bench.tools import Progress, Server, Stream, copy, during, goal, load, table, workplace

WRITES, READS = 100, 40  # a second; reads of each kind
MOST = {"one ticket": 20, "page": 20, "filtered page": 20, "health": 100}  # ms, the p99

# Whatever looks slow; the slowest of them is what somebody runs.
EVERY = {"status": list(data.STATUSES), "sort": "-updated"}
SEARCHES: dict[str, dict[str, Any]] = {
    "two characters, absent": {"text": data.ABSENT},
    "two characters, absent, by update": {"text": data.ABSENT, "sort": "-updated"},
    "in nearly every ticket, by update": {"text": "the", "sort": "-updated"},
    "in nearly every ticket, of each status, by update": {"text": "the"} | EVERY,
    "10,000 characters, of each status, by update": {"text": "the " * 2499 + "end"} | EVERY,
}


def run(progress: Progress, quick: bool) -> dict[str, Any]:
    """Each load for 20 s, but the deletion as long as it takes."""
    tickets, many, seconds = (10_000, 10_000, 2) if quick else (100_000, 1_000_000, 20)
    found: dict[str, dict[str, Any]] = {}
    rows = [["Under load", "requests", "p50, ms", "p99, ms", "most, ms", "not 2xx"]]
    with workplace() as folder:
        with Server(copy(folder, tickets, progress)) as server:
            changes = requests.changes_of_status(server.database)
            streams = {"change of status": Stream(changes, 4, WRITES / 4)} | readers(tickets)
            found[f"while {WRITES} changes a second are made"] = load(
                server.port, streams, during(seconds)
            )
        with Server(copy(folder, many, progress)) as server:
            alone = {name: search(server, query) for name, query in SEARCHES.items()}
            worst = max(alone, key=alone.__getitem__)
            target = f"/tickets?{urlencode(SEARCHES[worst], doseq=True)}"
            streams = {
                "health": Stream(requests.always("/health"), 1, READS),
                "the search": Stream(requests.always(target), 2),
            }
            found[f"while two run the worst search among {many:,}"] = load(
                server.port, streams, during(seconds)
            )
            changes = requests.changes_of_status(server.database)
            streams = {"change of status": Stream(changes, 4)} | readers(many)
            with ThreadPoolExecutor(1) as pool:
                began = time.monotonic()
                deletion = pool.submit(server.ask, "DELETE", "/users/50")
                found[f"while a user leaves 1.5 % of {many:,}"] = load(
                    server.port, streams, lambda: not deletion.done()
                )
                took = time.monotonic() - began
            if deletion.result()[0] != 204:
                raise RuntimeError(f"the user could not be deleted: {deletion.result()}")
    goals = []
    for when, kinds in found.items():
        for kind, figures in kinds.items():
            cells = (f"{figures[name]:.1f}" for name in ("p50_ms", "p99_ms", "most_ms"))
            errors = "; ".join(figures["errors"]) or "0"
            rows.append([f"{kind}, {when}", f"{figures['requests']:,}", *cells, errors])
            if kind in MOST:
                text = f"p99 of {kind} under {MOST[kind]} ms {when}"
                p99 = figures["p99_ms"]
                goals.append(goal(text, f"{p99:.1f} ms", p99 < MOST[kind] and errors == "0"))
    spent = [[name, f"{seconds:.2f}"] for name, seconds in alone.items()]
    spent = [
        [f"Alone, among {many:,} tickets", "seconds"],
        *spent,
        ["a user is deleted", f"{took:.1f}"],
    ]
    shown = "\n\n".join([table(*rows), table(*spent)])
    return {"goals": goals, "found": found, "alone": alone, "deletion": took, "table": shown}


def readers(tickets: int) -> dict[str, Stream]:
    """Clients that read, each kind READS times a second."""
    filtered = f"/tickets?project_id={data.PROJECT}&status=open"
    return {
        "one ticket": Stream(requests.one_ticket(tickets), 1, READS),
        "page": Stream(requests.always("/tickets"), 1, READS),
        "filtered page": Stream(requests.always(filtered), 1, READS),
    }


def search(server: Server, query: dict[str, Any]) -> float:
    """Seconds that it takes alone."""
    began = time.monotonic()
    server.ask("GET", f"/tickets?{urlencode(query, doseq=True)}")
    return time.monotonic() - began
