"""Scale: what each read and write costs from 1,000 to 1,000,000 tickets.

Latencies are of WSGI calls in process, warm, with varied ids; the sizes take turns, so that a
slow drift of the machine meets them all alike. Start-up and memory are of the real server
process.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import tracker
from bench import data, requests
from bench.tools import (
    Progress,
    Request,
    Server,
    Stream,
    call,
    copy,
    during,
    goal,
    load,
    p99,
    silent_app,
    table,
    workplace,
)
from plumbing.rule import write_cursor

ROUNDS, CALLS, SECONDS = 10, 100, 3.0  # calls a round, but no more seconds than that in all
NOISE = 1.2  # up to this ratio a page "costs no more": it has a cursor to be read
ABSENT = "search, two characters, absent"
FAR = ", page 10,000"

# The limit, at the end, is so small that the page is full at every size.
LISTS = {
    "page": "limit=50",
    "page, by project": f"project_id={data.PROJECT}&limit=50",
    "page, by status": "status=open&limit=50",
    "page, by project and status": f"project_id={data.PROJECT}&status=open&limit=20",
    "page, by assignee": "assignee_id={user}&limit=5",
    "page, by assignee and status": "assignee_id={user}&status=open&limit=2",
    "page, by assignee, -updated": "assignee_id={user}&sort=-updated&limit=5",
    "page, two statuses, -updated": "status=open&status=in+progress&sort=-updated&limit=50",
    "page, updated": "sort=updated&limit=50",
    "search, common": f"text={data.COMMON}&limit=50",
    "search, short": f"text={data.SHORT}&limit=20",
}

Key = tuple[str, int]  # the kind of request and the size
Figures = dict[str, float]


def reads(app: tracker.Tracker, count: int) -> dict[str, list[str]]:
    """Of each kind the targets to ask for, which answer with as much at every size."""
    ids = random.Random(count).choices(range(1, count + 1), k=1000)
    kinds = {
        "one ticket": [f"/tickets/{id}" for id in ids],
        "history": [f"/tickets/{id}/history" for id in ids],
        "projects": ["/projects"],
        "users": ["/users"],
        "mail": ["/emails"],
        "health": ["/health"],
        "search, rare": [f"/tickets?text={data.RARE}"],
        ABSENT: [f"/tickets?text={data.ABSENT}"],
        "search, common, -updated": [f"/tickets?text={data.COMMON}&sort=-updated"],
    }
    # Behind this one page 10,000 begins; where there are fewer, a page far in.
    far = max(count - 499_950, count * 2 // 5)
    ticket = json.loads(call(app, "GET", f"/tickets/{far}"))
    for name, query in LISTS.items():
        order = dict(parse_qsl(query)).get("sort", "-created")
        cursor = write_cursor(order, ticket["updated_at"] or ticket["created_at"], far)
        for kind, after in (name, ""), (name + FAR, f"&after={cursor}"):
            of_users = (query.format(user=1 + n) for n in range(data.USERS))
            kinds[kind] = [
                target
                for target in dict.fromkeys(f"/tickets?{query}{after}" for query in of_users)
                if len(json.loads(call(app, "GET", target))) == int(query.rpartition("=")[2])
            ]
            if not kinds[kind]:
                raise RuntimeError(f"{kind}: there is no full page among {count:,} tickets")
    return kinds


# ---------------------------------------------------------------- the run


def run(progress: Progress, quick: bool) -> dict[str, Any]:
    """Measure all sizes, in rising order; with `quick` only the two smallest."""
    sizes = (1_000, 10_000) if quick else (1_000, 10_000, 100_000, 1_000_000)
    servers: dict[int, Figures] = {}
    found: dict[Key, Figures] = {}
    with workplace() as folder, ExitStack() as stack:
        streams: dict[Key, tuple[tracker.Tracker, Iterator[Request]]] = {}
        for size in sizes:
            path = copy(folder, size, progress)
            app = stack.enter_context(silent_app(path))
            targets = reads(app, size)
            servers[size] = serve(path, targets)
            progress(f"scale: {size:,} tickets, the process: {servers[size]}")
            asked = {kind: requests.always(*of_kind) for kind, of_kind in targets.items()}
            asked |= requests.writes(app, path, size)
            streams |= {(kind, size): (app, stream) for kind, stream in asked.items()}
        kinds = list(dict.fromkeys(kind for kind, _ in streams))
        for kind in kinds:
            if not kind.endswith(FAR):
                together = [kind, kind + FAR] if kind in LISTS else [kind]  # to be compared
                found |= measure({key: streams[key] for key in streams if key[0] in together})
                for each in together:
                    told = (cell(found[each, size]) for size in sizes)
                    progress(f"scale: {each}: {', '.join(told)} ms")
    growth = {
        kind: found[kind, sizes[-1]]["median_ms"] / found[kind, sizes[0]]["median_ms"]
        for kind in kinds
    }
    rows = [
        ["Median (p99), ms", *(f"{size:,} tickets" for size in sizes), "growth"],
        *(
            [kind, *(cell(found[kind, size]) for size in sizes), f"{growth[kind]:.1f}"]
            for kind in kinds
        ),
        *(
            [name, *(f"{servers[size][name]:.2g}" for size in sizes), ""]
            for name in servers[sizes[0]]
        ),
    ]
    last = {kind: found[kind, sizes[-1]]["median_ms"] for kind in kinds}
    return {
        "goals": goals(sizes[-1], last, growth, servers[sizes[-1]]),
        "servers": servers,
        "found": {f"{kind}, {size}": figures for (kind, size), figures in found.items()},
        "table": table(*rows),
    }


def serve(path: Path, targets: dict[str, list[str]]) -> Figures:
    """Start and memory of a server process that has answered every kind of read."""
    seconds = []
    for _ in range(5):
        with Server(path) as server:
            seconds.append(server.seconds)
    some = [target for of_kind in targets.values() for target in of_kind[:20]]
    with Server(path) as server:
        load(server.port, {"reads": Stream(requests.always(*some), 4)}, during(5))
        memory = server.memory()
    return {
        "start, s": statistics.median(seconds),
        "memory, MB": memory,
        "on disk, MB": path.stat().st_size / 1e6,
    }


def measure(streams: dict[Key, tuple[tracker.Tracker, Iterator[Request]]]) -> dict[Key, Figures]:
    """Median and p99 of each kind of call at each size, taken in turns."""
    taken: dict[Key, list[float]] = {key: [] for key in streams}
    for turn in range(ROUNDS + 1):
        for key, (app, stream) in streams.items():
            spent: list[float] = []
            while len(spent) < CALLS and sum(spent) < SECONDS / ROUNDS:
                request = next(stream)
                began = time.perf_counter()
                call(app, *request)
                spent.append(time.perf_counter() - began)
            # The first turn is to warm up.
            taken[key] = taken[key] + spent if turn > 1 else spent
    return {
        key: {"median_ms": statistics.median(t) * 1000, "p99_ms": p99(t) * 1000}
        for key, t in taken.items()
    }


# ---------------------------------------------------------------- what came of it


def goals(
    size: int, last: dict[str, float], growth: dict[str, float], server: Figures
) -> list[dict[str, Any]]:
    """What should hold at the largest size, of medians in ms, and on the way to it."""
    search = {kind: times for kind, times in growth.items() if kind.startswith("search")}
    other = {kind: times for kind, times in growth.items() if kind not in search}
    slow = {kind: times for kind, times in search.items() if last[kind] >= 2}
    depth = {kind: last[kind + FAR] / last[kind] for kind in LISTS}
    found = []
    for text, times, most in (
        ("up to {size:,} tickets no median grows by more than 2 times", other, 2),
        ("up to {size:,} tickets no search above 2 ms grows by more than 3 times", slow, 3),
        ("among {size:,} tickets page 10,000 costs no more than page 1", depth, NOISE),
    ):
        bad = [kind for kind in times if times[kind] > most]
        worst = bad or sorted(times, key=times.__getitem__)[-1:]
        figure = ", ".join(f"{kind}: {times[kind]:.1f}" for kind in worst) or "none"
        found.append(goal(text.format(size=size), figure, not bad))
    for text, figure, most, unit in (
        ("a search for two characters that no ticket holds", last[ABSENT], 50, "ms"),
        ("the start of the process", server["start, s"], 0.3, "s"),
        ("its memory", server["memory, MB"], 60, "MB"),
    ):
        text = f"{text} under {most} {unit} with {size:,} tickets"
        found.append(goal(text, f"{figure:,.2f} {unit}", figure < most))
    return found


def cell(figures: Figures) -> str:
    return f"{figures['median_ms']:,.2f} ({figures['p99_ms']:,.1f})"
