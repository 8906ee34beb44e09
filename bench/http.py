"""The tracker against its peers, over HTTP: requests per second, p50 and p99, side by side.

Each server gets its own copy of the same data and must first give the same answers and write
the same rows and mail as the tracker. Then wrk (`apt-get install wrk`) asks one after the other,
kind of request by kind of request, so that a slow drift of the machine meets them all alike.
Mail is queued by all and sent by none.

    python bench/http.py --seconds 5
"""
# ruff: noqa: E402

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # or the standard library would take this file for its http
    sys.path[0] = str(HERE.parent)

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import datetime
from importlib import metadata
from itertools import groupby
from typing import Any, NamedTuple
from urllib.parse import quote

from bench import data
from plumbing.sqlite import DELIVERS, LockFile

RESULTS = HERE / "results" / "http.json"
OURS = "Tracker"
Progress = Callable[[str], None]


# ---------------------------------------------------------------- the servers


class Configuration(NamedTuple):
    name: str
    setting: str  # what differs between the configurations of one name
    kind: str  # of its database, see data.py
    command: list[str]  # behind "python"; {port} and {database} are filled in


def gunicorn(app: str, workers: int, threads: int = 1) -> list[str]:
    options = f"-m gunicorn --no-control-socket --bind 127.0.0.1:{{port}} --workers {workers}"
    return [*f"{options} --threads {threads} --log-level warning".split(), app]


def on_gunicorn(name: str, kind: str, app: str) -> list[Configuration]:
    """Its default worker, two and as many as it recommends; and threads, which keep alive."""
    recommended = 2 * (os.cpu_count() or 1) + 1
    return [
        Configuration(name, "2 workers", kind, gunicorn(app, 2)),
        Configuration(name, f"{recommended} workers", kind, gunicorn(app, recommended)),
        Configuration(name, "1 worker of 4 threads", kind, gunicorn(app, 1, 4)),
        Configuration(name, "2 workers of 4 threads", kind, gunicorn(app, 2, 4)),
    ]


def uvicorn(workers: int) -> list[str]:
    options = f"--host 127.0.0.1 --port {{port}} --workers {workers}"
    return f"-m uvicorn fastapi_app:app {options} --no-access-log --log-level warning".split()


def waitress(threads: int) -> list[str]:
    return f"-m waitress --listen=127.0.0.1:{{port}} --threads={threads} flask_app:app".split()


TRACKER = Configuration(
    OURS,
    "as it comes",
    "tracker",
    # Nobody listens there, and nobody asks either: Server holds the lock of who delivers.
    f"{HERE.parent / 'tracker.py'} --db {{database}} --port {{port}} --quiet"
    " --smtp smtp://127.0.0.1:1".split(),
)
# Of each name, the configuration that is fastest here is the one that is compared.
PEERS = [
    Configuration("FastAPI, uvicorn", "1 worker", "sqlalchemy", uvicorn(1)),
    Configuration("FastAPI, uvicorn", "2 workers", "sqlalchemy", uvicorn(2)),
    Configuration("Flask, waitress", "4 threads", "sqlalchemy", waitress(4)),
    Configuration("Flask, waitress", "1 thread", "sqlalchemy", waitress(1)),
    *on_gunicorn("Flask, gunicorn", "sqlalchemy", "flask_app:app"),
    *on_gunicorn("Django REST framework, gunicorn", "django", "django_app.wsgi"),
]


class Server:
    """A server that runs, on a fresh copy of the data."""

    def __init__(self, configuration: Configuration, original: Path, folder: Path) -> None:
        self.name, self.setting = configuration.name, configuration.setting
        self.database = Path(tempfile.mkdtemp(dir=folder)) / "bench.db"
        shutil.copyfile(original, self.database)
        self._lock = LockFile(str(self.database))
        self._lock.acquire(DELIVERS)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        values = {"port": port, "database": self.database}
        self._log = self.database.with_name("log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, *(part.format_map(values) for part in configuration.command)],
                cwd=HERE / "peers",
                env=data.peer_environment(self.database),
                stdout=log,
                stderr=log,
            )

    def wait(self, seconds: float = 30) -> None:
        """Until it answers. Raises RuntimeError, with its log, if it does not."""
        deadline = time.monotonic() + seconds
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                self.ask("GET", "/tickets/1")
                return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._lock.close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON) of the answer."""
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as conn:
            return conn.execute(sql).fetchall()

    def written(self) -> tuple[int, int, int]:
        """How many tickets, changes and mails there are, when it has come to rest."""
        sql = """
            SELECT (SELECT max(id) FROM tickets),
                   (SELECT count(*) FROM history WHERE changes IS NOT NULL),
                   (SELECT coalesce(max(id), 0) FROM emails)"""
        before, now = None, self.query(sql)[0]
        while now != before:
            time.sleep(0.2)
            before, now = now, self.query(sql)[0]
        return now  # type: ignore[return-value]


@contextmanager
def running(
    configurations: list[Configuration], tickets: int, progress: Progress
) -> Iterator[list[Server]]:
    """The servers of these configurations, which answer."""
    data.CACHE.mkdir(exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=data.CACHE)))
        servers = []
        for configuration in configurations:
            original = data.database(configuration.kind, tickets, progress)
            servers.append(Server(configuration, original, folder))
            stack.callback(servers[-1].stop)
        for server in servers:
            server.wait()
        yield servers


# ---------------------------------------------------------------- are they the same?

NEW = {
    "title": "The login page fails after the update",
    "description": "It shows an error, and the button does nothing.",
    "project_id": data.PROJECT,
    "status": "open",
    "assignees": [3, 14, 15],
}
PAGES = {
    "page of 50": "/tickets",
    "filtered page of 50": f"/tickets?project_id={data.PROJECT}&status=open",
    "search, common text": f"/tickets?text={quote(data.COMMON)}",
    "search, rare text": f"/tickets?text={quote(data.RARE)}",
}


def answers(server: Server) -> dict[str, Any]:
    """What the server says to each kind of request, and the rows that it writes."""
    source = "history JOIN emails ON history_id = history.id" if server.name == OURS else "emails"
    mails = f"""
        SELECT ticket_id, user_id, subject, body, state
          FROM {source}
         WHERE state = 'queued'
         ORDER BY emails.id"""
    changes = "SELECT ticket_id, changes FROM history ORDER BY id DESC LIMIT 1"
    ticket = "/tickets/7"  # which has three assignees
    said = {"one ticket": server.ask("GET", ticket)}
    other = {"status": "open" if said["one ticket"][1]["status"] == "closed" else "closed"}
    said |= {kind: server.ask("GET", path) for kind, path in PAGES.items()}
    said["text in capitals"] = server.ask("GET", f"/tickets?text={data.RARE.upper()}")
    said["create"] = server.ask("POST", "/tickets", NEW)
    said["change of status"] = server.ask("PATCH", ticket, other)
    said["no change"] = server.ask("PATCH", ticket, other)
    said["the new ticket"] = server.ask("GET", f"/tickets/{said['create'][1]['id']}")
    shown = {kind: (answer[0], comparable(answer[1])) for kind, answer in said.items()}
    shown["mail"] = server.query(mails)
    shown["history"] = [(id, json.loads(change)) for id, change in server.query(changes)]

    rows = server.written()
    for kind, faulty in {
        "empty title": {"title": " "},
        "title too long": {"title": "x" * 201},
        "line break in the title": {"title": "a\nb"},
        "unknown status": {"status": "done"},
        "unknown project": {"project_id": 999},
        "unknown assignee": {"assignees": [1, 999]},
    }.items():
        shown[kind] = server.ask("POST", "/tickets", NEW | faulty)[0] in (400, 422)
    shown["no status"] = server.ask("PATCH", "/tickets/4", {"status": "done"})[0] in (400, 422)
    shown["no ticket"] = server.ask("PATCH", "/tickets/999999999", {"status": "open"})[0]
    shown["nothing written"] = server.written() == rows
    return shown


def comparable(document: Any) -> Any:
    """Times as times, however they are written; those of this minute as "now"."""
    if isinstance(document, list):
        return [comparable(ticket) for ticket in document]
    ticket = dict(document)
    for name in ("created_at", "updated_at"):
        if ticket[name] is not None:
            moment = datetime.fromisoformat(ticket[name])
            ticket[name] = "now" if abs(moment.timestamp() - time.time()) < 60 else moment
    return ticket


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


# ---------------------------------------------------------------- the load

DONE = """
done = function(summary, latency)
    local errors = summary.errors
    print(string.format(
        'RESULT {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "not_2xx": %d, "broken": %d}',
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
"""

ONE_TICKET = """
math.randomseed(7)
request = function() return wrk.format("GET", "/tickets/" .. math.random(%d)) end
"""

PAGE = """
request = function() return wrk.format("GET", "%s") end
"""

CREATE = """
local headers = {["Content-Type"] = "application/json"}
local bodies, turn = {%s}, 0
request = function()
    turn = turn %% #bodies + 1
    return wrk.format("POST", "/tickets", headers, bodies[turn])
end
"""

# Ticket after ticket, and of each the next status, so that every request is a change.
CHANGE = """
local headers = {["Content-Type"] = "application/json"}
local names = {"open", "in progress", "closed"}
local ids, status, turn = {%s}, {%s}, 0
request = function()
    turn = turn %% #ids + 1
    status[turn] = status[turn] %% 3 + 1
    local body = '{"status": "' .. names[status[turn]] .. '"}'
    return wrk.format("PATCH", "/tickets/" .. ids[turn], headers, body)
end
"""

KINDS = ("one ticket", *PAGES, "create", "change of status")
WRITES = {"create": (1, 0, 3), "change of status": (0, 1, 3)}  # tickets, changes, mails


def script(kind: str, server: Server, tickets: int) -> str:
    """The Lua program that has wrk send requests of this kind."""
    if kind == "one ticket":
        return ONE_TICKET % tickets
    if kind in PAGES:
        return PAGE % PAGES[kind]
    if kind == "create":
        texts = data.tickets(200, seed=8)
        bodies = [NEW | {"title": t.title, "description": t.description} for t in texts]
        return CREATE % ",".join(f"[==[{json.dumps(body)}]==]" for body in bodies)
    rows = server.query(f"""
        SELECT id, status
          FROM tickets
         WHERE (SELECT count(*) FROM assignments WHERE ticket_id = tickets.id) = 3
           AND id <= {tickets}
         ORDER BY id LIMIT 5000""")
    states = ",".join(str(data.STATUSES.index(status) + 1) for _, status in rows)
    return CHANGE % (",".join(str(id) for id, _ in rows), states)


def measure(
    server: Server, kind: str, tickets: int, seconds: float, connections: int
) -> dict[str, Any]:
    """Requests per second and latencies in ms, and what went wrong."""
    program = server.database.with_name("load.lua")
    program.write_text(script(kind, server, tickets) + DONE)
    before = server.written()
    options = f"-t1 -c{connections} -d{max(1, round(seconds))}s --timeout 30s -s"
    output = subprocess.run(
        ["wrk", *options.split(), program, server.url], capture_output=True, text=True, check=True
    ).stdout
    load = json.loads(output.partition("RESULT ")[2].partition("\n")[0])
    errors = []
    if load["not_2xx"]:
        errors.append(f"{load['not_2xx']} of {load['requests']} answers were not 2xx")
    if load["broken"]:
        errors.append(f"{load['broken']} connections broke")
    # What was answered is written; so may be what was still on its way at the end.
    done = load["requests"] - load["not_2xx"]
    rows = [now - then for now, then in zip(server.written(), before, strict=True)]
    for what, count, each in zip(
        ("tickets", "changes", "mails"), rows, WRITES.get(kind, (0, 0, 0)), strict=True
    ):
        if not done * each <= count <= (done + connections) * each:
            errors.append(f"{count} {what} after {done} answers")
    return {
        "requests_per_second": load["requests"] / load["seconds"],
        "p50_ms": load["p50"],
        "p99_ms": load["p99"],
        "errors": errors,
    }


# ---------------------------------------------------------------- the run


def run(
    tickets: int = 10_000,
    seconds: float = 5,
    connections: int = 16,
    progress: Progress = print,
    rounds: int = 3,
) -> dict[str, Any]:
    """Compare all servers, write bench/results/http.json and return what is in it.

    Each server is asked for `seconds` in each of the `rounds`, for each kind of request; the
    median counts. Before that, shorter, the best configuration of each peer is found. By default
    all that takes about a quarter of an hour.
    Raises RuntimeError if a server does not start or does not do the same as the tracker.
    """
    if not shutil.which("wrk"):
        raise RuntimeError("The load generator is missing: apt-get install wrk")
    load = {"tickets": tickets, "connections": connections}
    with running([TRACKER], tickets, progress) as (ours,):
        expected = answers(ours)
    best, tuning = tune(expected, seconds / 2, load, progress)

    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with running([TRACKER, *best], tickets, progress) as servers:
        for server in servers:
            check(server, expected)
        for kind in KINDS:
            samples[kind] = {server.name: [] for server in servers}
            for turn in range(rounds + 1):  # the first is short, to warm up
                first = turn % len(servers)
                for server in servers[first:] + servers[:first]:
                    sample = measure(server, kind, seconds=seconds if turn else 1, **load)
                    samples[kind][server.name].append(sample)
                    progress(f"{kind}, {turn} of {rounds}, {server.name}: {line(sample)}")

    result = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "settings": load | {"seconds": seconds, "rounds": rounds},
        "configurations": {server.name: server.setting for server in (TRACKER, *best)},
        "tuning": tuning,
        "results": {kind: compare(of_kind) for kind, of_kind in samples.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return result


def tune(
    expected: dict[str, Any], seconds: float, load: dict[str, int], progress: Progress
) -> tuple[list[Configuration], dict[str, Any]]:
    """The fastest configuration of each peer, by the geometric mean of all kinds; all figures."""
    best, tuning = [], {}
    for name, group in groupby(PEERS, key=lambda configuration: configuration.name):
        configurations = list(group)
        samples: dict[str, dict[str, Any]] = {c.setting: {} for c in configurations}
        with running(configurations, load["tickets"], progress) as servers:
            for server in servers:
                check(server, expected)
            for kind in KINDS:
                for server in servers:
                    sample = measure(server, kind, seconds=seconds, **load)
                    samples[server.setting][kind] = sample
                    progress(f"tuning, {kind}, {name}, {server.setting}: {line(sample)}")
        means = {
            setting: statistics.geometric_mean(s["requests_per_second"] for s in kinds.values())
            for setting, kinds in samples.items()
        }
        best.append(max(configurations, key=lambda c: means[c.setting]))
        tuning[name] = {"mean_requests_per_second": means, "samples": samples}
        told = (f"{mean:,.0f} requests/s with {setting}" for setting, mean in means.items())
        progress(f"{name}: {', '.join(told)}")
    return best, tuning


def compare(samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The medians of each server, after warming up, and what they are to those of the tracker."""
    figures = ("requests_per_second", "p50_ms", "p99_ms")
    medians = {
        name: {figure: statistics.median(s[figure] for s in taken[1:]) for figure in figures}
        for name, taken in samples.items()
    }
    return {
        name: medians[name]
        | {
            "ratio_to_ours": {f: medians[name][f] / medians[OURS][f] for f in figures},
            "errors": [error for sample in taken for error in sample["errors"]],
            "rounds": taken[1:],
        }
        for name, taken in samples.items()
    }


def describe_machine() -> dict[str, Any]:
    packages = "bottle waitress fastapi uvicorn pydantic flask gunicorn sqlalchemy django"
    return {
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {
            name: metadata.version(name) for name in [*packages.split(), "djangorestframework"]
        },
    }


def line(sample: dict[str, Any]) -> str:
    text = "{requests_per_second:,.0f} requests/s, p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms"
    return text.format_map(sample) + "".join(f", ERROR: {e}" for e in sample["errors"])


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: of each kind, the figures and, in brackets, ratios to ours."""
    head = "| Request | Server | Requests/s | p50, ms | p99, ms |\n|---|---|--:|--:|--:|"
    rows = [head]
    for kind, servers in result["results"].items():
        for name, found in servers.items():
            ratio = found["ratio_to_ours"]
            cells = [
                f"{found['requests_per_second']:,.0f} (x{ratio['requests_per_second']:.2f})",
                f"{found['p50_ms']:.1f} (x{ratio['p50_ms']:.1f})",
                f"{found['p99_ms']:.1f} (x{ratio['p99_ms']:.1f})",
            ]
            server = f"{name}, {result['configurations'][name]}"
            rows.append(f"| {kind} | {server} | {' | '.join(cells)} |")
            rows += [f"| | ERROR: {error} | | | |" for error in found["errors"]]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="The tracker against its peers, over HTTP.")
    parser.add_argument("--tickets", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=5, help="per measurement")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(table(run(**vars(args), progress=lambda text: print(text, flush=True))))


if __name__ == "__main__":
    main()
