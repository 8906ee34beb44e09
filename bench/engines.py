"""SQLite beside PostgreSQL: the same requests on the same data, in process and over HTTP.

The server of PostgreSQL is one of our own, on this machine, with the settings of its makers: it
waits for its disk at each commit, as SQLite does. Nobody delivers mail meanwhile. Over HTTP 16
clients ask one tracker, or eight each of two on the same database.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import db
from bench import data, requests, scale
from bench.tools import (
    TRACKER,
    Progress,
    Request,
    Server,
    Stream,
    copy,
    during,
    goal,
    load,
    silent_app,
    table,
    workplace,
)
from plumbing import engines

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from clusters import Cluster

CLIENTS, ROUNDS = 16, 3
AS_IT_COMES = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "128MB"}
NAMES = ("SQLite", "PostgreSQL")
PATHS = {
    "one ticket": None,
    "page of 50": "/tickets",
    "search, rare text": f"/tickets?text={data.RARE}",
    "create": None,
}


def run(progress: Progress, quick: bool) -> dict[str, Any]:
    """Measure at each size; who is asked first changes from round to round."""
    sizes, seconds = ((1_000,), 0.5) if quick else ((10_000, 100_000), 4)
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        cluster = Cluster(**AS_IT_COMES)
        stack.callback(cluster.remove)
        folder = stack.enter_context(workplace())
        for size in sizes:
            file = copy(folder, size, progress)
            url = cluster.create()
            with closing(db.open_database(file)) as old, closing(db.open_database(url)) as new:
                rows = engines.copy(old, new, lambda text: None)
            cluster.execute("VACUUM ANALYZE", url.rpartition("/")[2])
            progress(f"engines: {rows:,} rows are copied")
            found[f"in process, {size:,} tickets"] = in_process(file, url, size, progress)
            for count in (1, 2):
                place = f"{count} tracker{'s' * (count > 1)}, {size:,} tickets"
                found[place] = over_http(file, url, size, count, seconds, progress)
    first = found[f"in process, {sizes[0]:,} tickets"]
    created = found[f"1 tracker, {sizes[0]:,} tickets"]["create"]["PostgreSQL"]
    goals = []
    for kind, most in (("one ticket", 0.4), ("page", 1.5)):
        figure = first[kind]["PostgreSQL"]
        text = f"PostgreSQL, in process, {kind}: under {most} ms"
        goals.append(goal(text, f"{figure:.2f} ms", figure < most))
    text = f"PostgreSQL, one tracker, {CLIENTS} clients: 400 creations a second or more"
    goals.append(goal(text, f"{created:,.0f}", created >= 400))
    return {"goals": goals, "found": found, "table": "\n\n".join(shown(found))}


def shown(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    """A table per place: what PostgreSQL costs is above 1 where it takes longer."""
    for place, kinds in found.items():
        in_process = place.startswith("in process")
        rows = [[f"{place}, {'ms' if in_process else 'requests/s'}", *NAMES, "times the cost"]]
        for kind, figures in kinds.items():
            file, server = (figures[name] for name in NAMES)
            cost = server / file if in_process else file / server
            form = "{:,.2f}" if in_process else "{:,.0f}"
            rows.append([kind, form.format(file), form.format(server), f"{cost:.1f}"])
        yield table(*rows)


def in_process(file: Path, url: str, size: int, progress: Progress) -> dict[str, Any]:
    """The median of each kind of call, in ms, by engine."""
    streams: dict[Any, Any] = {}
    with silent_app(file) as ours, silent_app(url) as theirs:
        targets = scale.reads(ours, size)
        for name, app in zip(NAMES, (ours, theirs), strict=True):
            asked = {kind: requests.always(*of_kind) for kind, of_kind in targets.items()}
            # What the two have been told meanwhile differs, so the original says what is there.
            asked |= requests.writes(app, data.database("tracker", size, progress), size)
            streams |= {(kind, name): (app, stream) for kind, stream in asked.items()}
        kinds: dict[str, Any] = {}
        for kind, _ in streams:
            if kind not in kinds:
                taken = scale.measure({key: streams[key] for key in streams if key[0] == kind})
                kinds[kind] = {name: taken[kind, name]["median_ms"] for name in NAMES}
                told = ", ".join(f"{name} {kinds[kind][name]:.2f} ms" for name in NAMES)
                progress(f"engines: {size:,} tickets, {kind}: {told}")
    return kinds


def over_http(
    file: Path, url: str, size: int, count: int, seconds: float, progress: Progress
) -> dict[str, Any]:
    """The rate of each kind of request, by engine."""
    with ExitStack() as stack:
        servers = {}
        for name, place in zip(NAMES, (str(file), url), strict=True):
            held = stack.enter_context(closing(db.open_database(place)))
            while not held.may_deliver():  # the last one to do so ends
                time.sleep(0.1)
            way = TRACKER._replace(command=TRACKER.command.replace("{database}", place))
            servers[name] = [
                stack.enter_context(Server(file.with_name(f"{name}-{n}"), way))
                for n in range(count)
            ]
        kinds: dict[str, Any] = {}
        for kind, path in PATHS.items():
            rates: dict[str, list[float]] = {name: [] for name in NAMES}
            for turn in range(ROUNDS + 1):  # the first is short, to warm up
                for name in NAMES[:: 1 if turn % 2 else -1]:
                    length = seconds if turn else seconds / 4
                    rates[name].append(rate(servers[name], kind, path, size, length))
            kinds[kind] = {name: statistics.median(rates[name][1:]) for name in NAMES}
            told = ", ".join(f"{name} {kinds[kind][name]:,.0f}/s" for name in NAMES)
            progress(f"engines: {count} of {size:,} tickets, {kind}: {told}")
    return kinds


def rate(servers: list[Server], kind: str, path: str | None, size: int, seconds: float) -> float:
    """Answers a second of all the servers. Raises RuntimeError if one is not 2xx."""

    def stream() -> Iterator[Request]:
        if path:
            return requests.always(path)
        return requests.creations() if kind == "create" else requests.one_ticket(size)

    def ask(server: Server) -> dict[str, Any]:
        streams = {kind: Stream(stream(), CLIENTS // len(servers))}
        return load(server.port, streams, during(seconds))[kind]

    with ThreadPoolExecutor(len(servers)) as pool:
        answers = list(pool.map(ask, servers))
    if errors := [error for answer in answers for error in answer["errors"]]:
        raise RuntimeError("; ".join(errors))
    return sum(answer["rate"] for answer in answers)
