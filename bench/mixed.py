"""Under mixed load: how long reads wait while others write, and /health while others search.

The server is the real process, its mail server is dead, and each client is a process of its
own with a connection that it keeps. A latency counts from the moment at which the request was
due, so that a server which stalls cannot hide it by being asked less.

    python -m bench.mixed
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from bench import data
from bench.limits import Progress, goal, workplace
from bench.scale import ABSENT, Server, ask, p99

WRITERS, WRITES, READS, HEALTH = 4, 100, 40, 20  # requests a second; reads of each kind

# Whatever looks slow; the slowest of them is what somebody runs.
EVERY = {"status": list(data.STATUSES), "sort": "-updated"}
SEARCHES: dict[str, dict[str, Any]] = {
    "two characters, absent": {"text": ABSENT},
    "two characters, absent, by update": {"text": ABSENT, "sort": "-updated"},
    "in nearly every ticket, by update": {"text": "the", "sort": "-updated"},
    "in nearly every ticket, of each status, by update": {"text": "the"} | EVERY,
    "10,000 characters, of each status, by update": {"text": "the " * 2499 + "end"} | EVERY,
}


# ---------------------------------------------------------------- the clients


def requests(kind: str, tickets: int, client: int) -> Iterator[tuple[str, str, bytes]]:
    """Requests of the kind, without end."""
    draw, statuses = random.Random(client), cycle(data.STATUSES)
    pages = {
        "page": "/tickets",
        "filtered page": f"/tickets?project_id={data.PROJECT}&status=open",
        "health": "/health",
    }
    while True:
        if kind == "one ticket":
            yield "GET", f"/tickets/{draw.randint(1, tickets)}", b""
        elif kind in pages:
            yield "GET", pages[kind], b""
        else:  # one ticket after the other, which only this client changes, to the next status
            status = json.dumps({"status": next(statuses)}).encode()
            for n in range(20):
                yield "PATCH", f"/tickets/{3 + 4 * (client + WRITERS * n)}", status


def paced(
    port: int, kind: str, tickets: int, client: int, rate: float, start: float, seconds: float
) -> list[float]:
    """A client: so many requests a second; the latencies in ms. Raises RuntimeError unless 200."""
    latencies = []
    with closing(HTTPConnection("127.0.0.1", port, timeout=120)) as conn:
        for n, request in enumerate(islice(requests(kind, tickets, client), int(rate * seconds))):
            due = start + n / rate
            time.sleep(max(0, due - time.monotonic()))
            status, answer = ask(conn, *request)
            latencies.append((time.monotonic() - due) * 1000)
            if status != 200:
                raise RuntimeError(f"{request}: {status} {answer.decode()}")
    return latencies


def asking(
    port: int, tickets: int, wanted: list[tuple[str, float]], seconds: float
) -> dict[str, dict[str, float]]:
    """p50, p99 and the most of each kind; `wanted` are the kind and the rate of each client."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(wanted), mp_context=context) as pool:
        start = time.monotonic() + 2  # by then the last of them has started
        running = [
            (kind, pool.submit(paced, port, kind, tickets, client, rate, start, seconds))
            for client, (kind, rate) in enumerate(wanted)
        ]
        latencies: dict[str, list[float]] = {}
        for kind, client in running:
            latencies.setdefault(kind, []).extend(client.result())
    return {
        kind: {
            "requests": len(taken),
            "p50_ms": statistics.median(taken),
            "p99_ms": p99(taken),
            "most_ms": max(taken),
        }
        for kind, taken in latencies.items()
    }


@contextmanager
def searching(port: int, target: str) -> Iterator[list[float]]:
    """Two connections that ask for the same again and again; the seconds that it took."""
    over, took = threading.Event(), []

    def search() -> None:
        with closing(HTTPConnection("127.0.0.1", port, timeout=600)) as conn:
            while not over.is_set():
                began = time.monotonic()
                ask(conn, "GET", target)
                took.append(time.monotonic() - began)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield took
    finally:
        over.set()
        for thread in threads:
            thread.join()


# ---------------------------------------------------------------- the run


def run(progress: Progress = print, quick: bool = False) -> dict[str, Any]:
    """Both loads, 20 s each; with `quick`, 3 s and few tickets."""
    tickets, many, seconds = (10_000, 10_000, 3) if quick else (100_000, 1_000_000, 20)
    with workplace() as folder:
        load = mixed_load(folder, tickets, seconds, progress)
        search = worst_search(folder, many, seconds, progress)
    goals = []
    for kind, most, when in (
        ("one ticket", 20, "while others write and mail is down"),
        ("page", 20, "while others write and mail is down"),
        ("filtered page", 20, "while others write and mail is down"),
        ("health", 100, f"while somebody runs the worst search among {many:,} tickets"),
    ):
        took = (load["latencies"] | search["latencies"])[kind]["p99_ms"]
        goals.append(goal(f"p99 of {kind} under {most} ms {when}", f"{took:.1f} ms", took < most))
    return {"goals": goals, "load": load, "search": search}


def mixed_load(folder: Path, tickets: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """Reads, while others write. Raises RuntimeError if fewer wrote than should have."""
    path = shutil.copyfile(data.database("tracker", tickets, progress), folder / "load.db")
    progress(f"mixed: {WRITES} writes a second on {tickets:,} tickets, for {seconds} s")
    writers = [("change of status", WRITES / WRITERS)] * WRITERS
    readers = [(kind, READS) for kind in ("one ticket", "page", "filtered page")]
    with Server(path) as server:
        latencies = asking(server.port, tickets, [*writers, *readers], seconds)
        with closing(server.connect()) as conn:
            mail = json.loads(ask(conn, "GET", "/health")[1])["mail"]
    written = latencies["change of status"]["requests"]
    if mail["queued"] < 3 * (written - 20 * WRITERS) or not mail["error"]:
        raise RuntimeError(f"after {written} changes the mail is {mail}")
    return {"latencies": latencies, "mail": mail}


def worst_search(folder: Path, tickets: int, seconds: float, progress: Progress) -> dict[str, Any]:
    """/health, while somebody runs the slowest of the searches."""
    path = shutil.copyfile(data.database("tracker", tickets, progress), folder / "search.db")
    alone: dict[str, float] = {}
    with Server(path) as server:
        for name, query in SEARCHES.items():
            with closing(server.connect()) as conn:
                began = time.monotonic()
                ask(conn, "GET", f"/tickets?{urlencode(query, doseq=True)}")
                alone[name] = time.monotonic() - began
            progress(f"mixed: search, {name}: {alone[name]:.2f} s among {tickets:,} tickets")
        worst = max(alone, key=alone.__getitem__)
        target = f"/tickets?{urlencode(SEARCHES[worst], doseq=True)}"
        with searching(server.port, target) as took:
            latencies = asking(server.port, tickets, [("health", HEALTH)], seconds)
    return {"latencies": latencies, "worst": worst, "alone_s": alone, "searches": len(took)}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = ["| Under load | Requests | p50, ms | p99, ms | Most, ms |", "|---|--:|--:|--:|--:|"]
    latencies = result["load"]["latencies"] | result["search"]["latencies"]
    for kind, found in latencies.items():
        figures = "{requests:,} | {p50_ms:.1f} | {p99_ms:.1f} | {most_ms:.1f}".format_map(found)
        lines.append(f"| {kind} | {figures} |")
    lines += ["", "| Search, alone | Seconds |", "|---|--:|"]
    lines += [f"| {name} | {took:.2f} |" for name, took in result["search"]["alone_s"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run()))
