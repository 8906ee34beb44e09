"""Scale: what each read and write costs from 1,000 to 1,000,000 tickets.

Latencies are of WSGI calls in process, warm, with varied ids; the sizes take turns, so that a
slow drift of the machine meets them all alike. Start-up, memory and the deletion of a user with
many tickets are of the real server process.

    python -m bench.scale 1000 100000
"""

from __future__ import annotations

import http.client
import json
import math
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import tracker
from bench import data
from bench.limits import Progress, call, goal, silent_app, workplace

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ABSENT = "qx"  # in no ticket, and shorter than a trigram
ROUNDS, CALLS = 10, 100  # per kind and size ...
SECONDS = 3.0  # ... unless that takes longer
TOO_SLOW = 1.0  # seconds; what takes longer is not measured at larger sizes
NOISE = 1.2  # up to this ratio it "costs no more": there is a cursor to be read
Request = tuple[str, str, bytes]
Maker = Callable[[tracker.Application, random.Random], Request]
Key = tuple[str, int]  # the kind and the size


# ---------------------------------------------------------------- a server of its own


class Server:
    """A tracker process that serves; `seconds` is what it took from its start to an answer."""

    def __init__(self, path: Path, *options: str) -> None:
        command = [sys.executable, data.HERE.parent / "tracker.py", "--db", path, "--port", "0"]
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*command, "--quiet", "--smtp", "smtp://127.0.0.1:1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if "ready on" not in ready:
            raise RuntimeError(f"the server did not start: {ready}")
        self.port = int(ready.partition(",")[0].rpartition(":")[2])
        with closing(self.connect()) as conn:
            ask(conn, "GET", "/health")
        self.seconds = time.monotonic() - began

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        self.process.kill()
        self.process.wait()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def memory(self) -> tuple[float, float]:
        """MB of it in memory: now, and at most so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        now, most = (int(found[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
        return now, most


def ask(
    conn: http.client.HTTPConnection, method: str, target: str, content: bytes = b""
) -> tuple[int, bytes]:
    """(status, body) of the answer, over a connection that is kept."""
    conn.request(method, target, content, {"Content-Type": "application/json"})
    with conn.getresponse() as answer:
        return answer.status, answer.read()


def p99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * (len(values) - 1) + 0.5)]


# ---------------------------------------------------------------- what is measured

# Each list: its filters and the limit, so small that the page is full at every size.
LISTS: dict[str, tuple[dict[str, Any], int]] = {
    "page": ({}, 50),
    "page, by project": ({"project_id": data.PROJECT}, 50),
    "page, by status": ({"status": "open"}, 50),
    "page, by project and status": ({"project_id": data.PROJECT, "status": "open"}, 20),
    "page, by assignee": ({"assignee_id": 0}, 5),
    "page, by assignee and status": ({"assignee_id": 0, "status": "open"}, 2),
    "page, by assignee, -updated": ({"assignee_id": 0, "sort": "-updated"}, 5),
    "page, two statuses, -updated": (
        {"status": ["open", "in progress"], "sort": "-updated"},
        50,
    ),
    "page, updated": ({"sort": "updated"}, 50),
    "search, common": ({"text": data.COMMON}, 50),
    "search, short": ({"text": data.SHORT}, 20),
}
FAR = ", page 10,000"


def reads(app: tracker.Application, count: int) -> dict[str, list[str]]:
    """Of each kind the targets to ask for, which answer with as much at every size."""
    draw = random.Random(count)
    ids = [draw.randint(1, count) for _ in range(1000)]
    kinds = {
        "one ticket": [f"/tickets/{id}" for id in ids],
        "history": [f"/tickets/{id}/history" for id in ids],
        "projects": ["/projects"],
        "users": ["/users"],
        "mail": ["/emails"],
        "health": ["/health"],
        "search, rare": [f"/tickets?text={data.RARE}"],
        "search, short and absent": [f"/tickets?text={ABSENT}"],
    }
    # Behind this one page 10,000 begins, or where there are fewer, another one far in.
    far = max(count - 499_950, count * 2 // 5)
    ticket = json.loads(call(app, "GET", f"/tickets/{far}"))
    for name, (filters, limit) in LISTS.items():
        order = filters.get("sort", "-created")
        touched_at = (ticket["updated_at"] or ticket["created_at"]) if "updated" in order else ""
        cursor = {"after": tracker.write_cursor(order, far, touched_at)}
        users = range(1, data.USERS + 1) if "assignee_id" in filters else [0]
        for kind, place in ((name, {}), (name + FAR, cursor)):
            wanted = [
                filters | ({"assignee_id": user} if user else {}) | {"limit": limit} | place
                for user in users
            ]
            kinds[kind] = [f"/tickets?{urlencode(query, doseq=True)}" for query in wanted]
            full = [t for t in kinds[kind] if len(json.loads(call(app, "GET", t))) == limit]
            if not full:
                raise RuntimeError(f"{kind}: there is no full page among {count:,} tickets")
            kinds[kind] = full
    return kinds


def writes(count: int) -> dict[str, Maker]:
    """Of each kind what makes a request that changes something."""
    texts = data.tickets(5000, seed=8)

    def create(app: tracker.Application, draw: random.Random) -> Request:
        ticket = next(texts)
        fields = {"title": ticket.title, "description": ticket.description, "status": "open"}
        fields |= {"project_id": ticket.project_id, "assignees": draw.sample(range(1, 100), 3)}
        return "POST", "/tickets", json.dumps(fields).encode()

    def change_status(app: tracker.Application, draw: random.Random) -> Request:
        target = f"/tickets/{draw.randrange(3, count, 4)}"  # each has three assignees
        status = json.loads(call(app, "GET", target))["status"]
        other = draw.choice([s for s in data.STATUSES if s != status])
        return "PATCH", target, json.dumps({"status": other}).encode()

    def assign(app: tracker.Application, draw: random.Random) -> Request:
        target = f"/tickets/{draw.randrange(4, count, 4)}/assignees/{draw.randrange(1, 100)}"
        with suppress(RuntimeError):
            call(app, "DELETE", target)
        return "PUT", target, b""

    def unassign(app: tracker.Application, draw: random.Random) -> Request:
        _, target, _ = assign(app, draw)
        call(app, "PUT", target)
        return "DELETE", target, b""

    def create_user(app: tracker.Application, draw: random.Random) -> Request:
        email = f"{draw.getrandbits(64)}@example.com"
        return "POST", "/users", json.dumps({"name": "Somebody", "email": email}).encode()

    def rename_user(app: tracker.Application, draw: random.Random) -> Request:
        id = draw.randrange(1, 100)
        user = {"name": f"Name {draw.random()}", "email": f"user{id}@example.com"}
        return "PUT", f"/users/{id}", json.dumps(user).encode()

    def create_project(app: tracker.Application, draw: random.Random) -> Request:
        return "POST", "/projects", json.dumps({"name": f"Project {draw.random()}"}).encode()

    return {
        "create a ticket": create,
        "change of status": change_status,
        "assign": assign,
        "unassign": unassign,
        "create a user": create_user,
        "rename a user": rename_user,
        "create a project": create_project,
    }


# ---------------------------------------------------------------- the run


def run(
    progress: Progress = print, quick: bool = False, sizes: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Measure all sizes, the smallest first; with `quick` only the two smallest."""
    sizes = sizes or (SIZES[:2] if quick else SIZES)
    originals = {size: data.database("tracker", size, progress) for size in sizes}
    result: dict[str, Any] = {"sizes": sizes, "servers": {}, "latencies": {}, "deletion": {}}
    with workplace() as folder:
        paths = {size: folder / f"{size}.db" for size in sizes}
        for size in sizes:
            progress(f"scale: {size:,} tickets: a copy, and mail that was sent")
            shutil.copyfile(originals[size], paths[size])
            add_mail(paths[size])
        with ExitStack() as stack:
            apps = {size: stack.enter_context(silent_app(path)) for size, path in paths.items()}
            targets = {size: reads(app, size) for size, app in apps.items()}
            for size in sizes:
                result["servers"][size] = serve(paths[size], targets[size])
                progress(f"scale: {size:,} tickets: {result['servers'][size]}")
            makers = {size: readers(targets[size]) | writes(size) for size in sizes}
            kinds = [kind for kind in makers[sizes[0]] if not kind.endswith(FAR)]
            for kind in kinds:
                together = (kind, kind + FAR) if kind in LISTS else (kind,)
                found = measure(
                    {(k, size): (apps[size], makers[size][k]) for k in together for size in sizes}
                )
                for k in together:
                    result["latencies"][k] = {size: found.get((k, size)) for size in sizes}
                    progress(f"scale: {k}: {', '.join(cells(result['latencies'][k]))} ms")
        for size in sizes:
            result["deletion"][size] = delete_user(paths[size], size)
            progress(f"scale: a user deleted from {size:,} tickets: {result['deletion'][size]}")
    return {"goals": goals(result), **result}


def add_mail(path: Path) -> None:
    """One mail that was sent for each assignment, as a database in use would have it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        conn.execute("PRAGMA cache_size = -200000")
        conn.execute("""
            INSERT INTO emails (ticket_id, user_id, address, subject, body, message_id, state,
                                attempts, created_at, queued_at, sent_at)
            SELECT ticket_id, user_id, 'user' || user_id || '@example.com',
                   '[Ticket #' || ticket_id || '] ' || title,
                   'Ticket #' || ticket_id || ' created:' || char(10) || 'Title: "' || title ||
                   '"' || char(10) || 'Status: "Open"' || char(10) || char(10) || description,
                   '<' || lower(hex(randomblob(18))) || '@localhost>', 'sent', 1,
                   created_at, created_at, created_at
              FROM (SELECT id AS ticket_id, title, coalesce(description, '') AS description,
                           created_at
                      FROM tickets)
              JOIN assignments USING (ticket_id)
             ORDER BY ticket_id""")
        conn.execute("PRAGMA wal_checkpoint (TRUNCATE)")


def serve(path: Path, targets: dict[str, list[str]]) -> dict[str, float]:
    """Start-up and memory of a server that has answered every kind of read."""
    seconds = []
    for _ in range(5):
        with Server(path) as server:
            seconds.append(server.seconds)
    some = [target for of_kind in targets.values() for target in of_kind[:20]]

    def read(part: list[str]) -> None:
        with closing(server.connect()) as conn:
            for target in part:
                ask(conn, "GET", target)

    with Server(path) as server:
        readers = [threading.Thread(target=read, args=(some[n::4],)) for n in range(4)]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
        memory, most = server.memory()
    return {
        "disk_mb": path.stat().st_size / 1e6,
        "start_s": statistics.median(seconds),
        "memory_mb": memory,
        "most_memory_mb": most,
    }


def readers(targets: dict[str, list[str]]) -> dict[str, Maker]:
    def reader(of_kind: list[str]) -> Maker:
        return lambda app, draw: ("GET", draw.choice(of_kind), b"")

    return {kind: reader(of_kind) for kind, of_kind in targets.items()}


def measure(calls: dict[Key, tuple[tracker.Application, Maker]]) -> dict[Key, dict[str, float]]:
    """Median and p99 of each kind of call at each size, taken in turns."""
    draw = random.Random(7)
    taken: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(ROUNDS + 1):
        for key, (app, make) in calls.items():
            if sum(taken[key]) > SECONDS or too_slow(taken, key):
                continue
            spent: list[float] = []
            while len(spent) < CALLS and sum(spent) < SECONDS / ROUNDS:
                request = make(app, draw)
                began = time.perf_counter()
                call(app, *request)
                spent.append(time.perf_counter() - began)
            taken[key] = taken[key] + spent if turn > 1 else spent  # the first is to warm up
    return {
        key: {
            "median_ms": statistics.median(spent) * 1000,
            "p99_ms": p99(spent) * 1000,
            "calls": len(spent),
        }
        for key, spent in taken.items()
        if spent
    }


def too_slow(taken: dict[Key, list[float]], key: Key) -> bool:
    kind, size = key
    smaller = [taken[k, s] for k, s in taken if k == kind and s < size]
    return any(min(spent) > TOO_SLOW for spent in smaller if spent)


def delete_user(path: Path, count: int) -> dict[str, float]:
    """Delete one of the users, who has 1.5 % of the tickets, while others read and write."""
    user, done = data.USERS // 2, threading.Event()
    told: dict[str, float] = {}

    def send(name: str, method: str, target: str, content: bytes = b"") -> None:
        with closing(server.connect()) as conn:
            began = time.monotonic()
            told[f"{name}_status"], _ = ask(conn, method, target, content)
            told[f"{name}_s"] = time.monotonic() - began

    def delete() -> None:
        send("deletion", "DELETE", f"/users/{user}")
        done.set()

    with closing(sqlite3.connect(path)) as conn:
        sql = "SELECT count(*) FROM assignments WHERE user_id = ?"
        (tickets,) = conn.execute(sql, (user,)).fetchone()
    with Server(path) as server, closing(server.connect()) as conn:
        ask(conn, "GET", "/tickets/1")
        change = ("other_write", "PATCH", "/tickets/3", b'{"title": "Changed meanwhile"}')
        threads = [threading.Thread(target=delete), threading.Timer(0.05, send, change)]
        for thread in threads:
            thread.start()
        spent = []
        while not done.is_set():
            began = time.perf_counter()
            ask(conn, "GET", f"/tickets/{random.randint(1, count)}")
            spent.append((time.perf_counter() - began) * 1000)
            time.sleep(0.002)
        for thread in threads:
            thread.join()
    told |= {"tickets": tickets, "ms_per_ticket": told["deletion_s"] * 1000 / tickets}
    return told | {"reads": len(spent), "reads_p99_ms": p99(spent), "reads_most_ms": max(spent)}


def growth(of_kind: dict[int, Any]) -> float:
    smallest, *_, largest = of_kind.values()
    return largest["median_ms"] / smallest["median_ms"] if largest else math.inf


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    small, large = result["sizes"][0], result["sizes"][-1]
    latencies, server, deletion = (
        result["latencies"],
        result["servers"][large],
        result["deletion"][large],
    )
    medians = {
        k: found[large]["median_ms"] if found[large] else math.inf for k, found in latencies.items()
    }
    grown = {kind: growth(found) for kind, found in latencies.items()}
    searches = [kind for kind in grown if kind.startswith("search")]
    writing = list(writes(large))
    reading = [kind for kind in grown if kind not in searches + writing]
    found = []
    for what, kinds, most, free in (
        ("reads", reading, 2, 0),
        ("searches above 2 ms", searches, 3, 2),
        ("writes", writing, 2, 0),
    ):
        ratios = {kind: grown[kind] for kind in kinds if medians[kind] >= free} or {"none": 1.0}
        text = f"From {small:,} to {large:,} tickets {what} grow by less than {most} times"
        found.append(goal(text, worst(ratios, most), max(ratios.values()) < most))
    depth = {kind: medians[kind + FAR] / medians[kind] for kind in LISTS}
    text = f"Among {large:,} tickets no page costs more than the first (by {NOISE} times)"
    found.append(goal(text, worst(depth, NOISE), max(depth.values()) <= NOISE))
    for what, figure, most, unit in (
        (f"Start-up at {large:,} tickets", server["start_s"], 0.3, "s"),
        (f"Memory at {large:,} tickets", server["most_memory_mb"], 60, "MB"),
        (
            f"Reads while a user with {deletion['tickets']:,} tickets is deleted, p99,",
            deletion["reads_p99_ms"],
            20,
            "ms",
        ),
    ):
        found.append(goal(f"{what} under {most} {unit}", f"{figure:.3g} {unit}", figure < most))
    return found


def worst(ratios: dict[str, float], most: float) -> str:
    """What is above the limit; if nothing is, what is next to it."""
    falling = sorted(ratios, key=ratios.__getitem__, reverse=True)
    bad = [kind for kind in falling if ratios[kind] > most] or falling[:1]
    return ", ".join(f"{kind}: {ratios[kind]:.2f} times" for kind in bad)


def cells(of_kind: dict[int, Any]) -> list[str]:
    return [
        "{median_ms:,.2f} ({p99_ms:,.1f})".format_map(found) if found else "too slow"
        for found in of_kind.values()
    ]


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: medians and, in brackets, p99."""
    sizes = result["sizes"]
    lines = [
        f"| Median (p99), ms | {' | '.join(f'{size:,} tickets' for size in sizes)} | Growth |",
        f"|---|{'--:|' * len(sizes)}--:|",
    ]
    for kind, found in result["latencies"].items():
        lines.append(f"| {kind} | {' | '.join(cells(found))} | {growth(found):.1f} |")
    for part, name, text in (
        ("servers", "disk_mb", "size on disk, MB"),
        ("servers", "start_s", "start-up, s"),
        ("servers", "most_memory_mb", "memory at most, MB"),
        ("deletion", "tickets", "delete a user: from so many tickets"),
        ("deletion", "deletion_s", "delete a user: seconds"),
        ("deletion", "ms_per_ticket", "delete a user: ms per ticket"),
        ("deletion", "reads_p99_ms", "delete a user: p99 of reads meanwhile, ms"),
        ("deletion", "other_write_s", "delete a user: another write meanwhile, s"),
        ("deletion", "other_write_status", "delete a user: status of that write"),
    ):
        figures = [f"{result[part][size][name]:,.5g}" for size in sizes]
        lines.append(f"| {text} | {' | '.join(figures)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    result = run(sizes=tuple(map(int, sys.argv[1:])))
    print(table(result), *map(str, result["goals"]), sep="\n")
