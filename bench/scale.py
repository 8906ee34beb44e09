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
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import tracker
from bench import data
from bench.limits import Progress, call, goal, silent_app, workplace
from plumbing.web import write_cursor

SIZES = (1_000, 10_000, 100_000, 1_000_000)
ROUNDS, CALLS, SECONDS = 10, 100, 3.0  # calls a round, but no more seconds than that in all
TOO_SLOW = 0.5  # seconds; what takes longer is not measured at larger sizes
NOISE = 1.2  # up to this ratio a page "costs no more": it has a cursor to be read
READ_EVERY = 0.005  # seconds, while a user is deleted
OTHERS = 20  # who write meanwhile: more than the server has threads for writes

Request = tuple[str, str, bytes]  # method, path with query, body
Maker = Callable[[tracker.Tracker, random.Random], Request]
Key = tuple[str, int]  # the kind of request and the size
Figures = dict[str, float]


# ---------------------------------------------------------------- a server of its own


class Server:
    """A tracker process that serves; `seconds` is what it took from its start to an answer."""

    def __init__(self, path: Path) -> None:
        began = time.monotonic()
        self.process = subprocess.Popen(
            [
                *(sys.executable, data.HERE.parent / "tracker.py", "--db", path, "--port", "0"),
                *("--quiet", "--smtp", "smtp://127.0.0.1:1"),  # where nobody listens
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        ready = self.process.stdout.readline()  # type: ignore[union-attr]
        self.port = int(ready.partition(",")[0].rpartition(":")[2] or 0)
        if not self.port:
            self.__exit__()
            raise RuntimeError("the server did not start")
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
        self.process.communicate()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def memory(self) -> float:
        """The most MB that it has had in memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def ask(
    conn: http.client.HTTPConnection, method: str, target: str, content: bytes = b""
) -> tuple[int, bytes]:
    """(status, body) of the answer, over a connection that is kept."""
    conn.request(method, target, content, {"Content-Type": "application/json"})
    with conn.getresponse() as answer:
        return answer.status, answer.read()


def p99(values: list[float]) -> float:
    return sorted(values)[round(0.99 * (len(values) - 1))]


# ---------------------------------------------------------------- what is measured

ABSENT = "qx"  # in no ticket, and shorter than a trigram
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


def reads(app: tracker.Tracker, count: int) -> dict[str, list[str]]:
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
        "search, common, -updated": [f"/tickets?text={data.COMMON}&sort=-updated"],
    }
    # Behind this one page 10,000 begins; where there are fewer, a page far in.
    far = max(count - 499_950, count * 2 // 5)
    ticket = json.loads(call(app, "GET", f"/tickets/{far}"))
    touched_at = ticket["updated_at"] or ticket["created_at"]
    for name, query in LISTS.items():
        order = dict(parse_qsl(query)).get("sort", "-created")
        cursor = write_cursor(order, touched_at, far)
        for kind, after in ((name, ""), (name + FAR, f"&after={cursor}")):
            of_users = (query.format(user=1 + n) for n in range(data.USERS))
            kinds[kind] = [
                target
                for target in dict.fromkeys(f"/tickets?{query}{after}" for query in of_users)
                if len(json.loads(call(app, "GET", target))) == int(query.rpartition("=")[2])
            ]
            if not kinds[kind]:
                raise RuntimeError(f"{kind}: there is no full page among {count:,} tickets")
    return kinds


def writes(count: int) -> dict[str, Maker]:
    """Of each kind what makes a request that changes something."""
    texts = data.tickets(5000, seed=8)

    def create(app: tracker.Tracker, draw: random.Random) -> Request:
        text = next(texts)._asdict()
        ticket = {field: text[field] for field in ("title", "description", "project_id")}
        ticket |= {"status": "open", "assignees": draw.sample(range(1, data.USERS), 3)}
        return "POST", "/tickets", json.dumps(ticket).encode()

    def change_status(app: tracker.Tracker, draw: random.Random) -> Request:
        target = f"/tickets/{draw.randrange(3, count, 4)}"  # each has three assignees
        status = json.loads(call(app, "GET", target))["status"]
        others = [other for other in data.STATUSES if other != status]
        return "PATCH", target, json.dumps({"status": draw.choice(others)}).encode()

    def assign(app: tracker.Tracker, draw: random.Random) -> Request:
        target = f"/tickets/{draw.randrange(4, count, 4)}/assignees/{draw.randrange(1, data.USERS)}"
        with suppress(RuntimeError):  # nearly always they were not assigned
            call(app, "DELETE", target)
        return "PUT", target, b""

    def unassign(app: tracker.Tracker, draw: random.Random) -> Request:
        _, target, _ = assign(app, draw)
        call(app, "PUT", target)
        return "DELETE", target, b""

    def create_user(app: tracker.Tracker, draw: random.Random) -> Request:
        user = {"name": "Somebody", "email": f"{draw.getrandbits(64)}@example.com"}
        return "POST", "/users", json.dumps(user).encode()

    def rename_user(app: tracker.Tracker, draw: random.Random) -> Request:
        id = draw.randrange(1, data.USERS)
        user = {"name": f"Name {draw.random()}", "email": f"user{id}@example.com"}
        return "PUT", f"/users/{id}", json.dumps(user).encode()

    def create_project(app: tracker.Tracker, draw: random.Random) -> Request:
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
    """Measure all sizes, in rising order; with `quick` only the two smallest."""
    sizes = sizes or (SIZES[:2] if quick else SIZES)
    originals = {size: data.database("tracker", size, progress) for size in sizes}
    servers, latencies, deletion = {}, {}, {}
    with workplace() as folder:
        paths = {size: folder / f"{size}.db" for size in sizes}
        for size in sizes:
            progress(f"scale: {size:,} tickets: a copy")
            shutil.copyfile(originals[size], paths[size])
        with ExitStack() as stack:
            makers = {}
            for size in sizes:
                app = stack.enter_context(silent_app(paths[size]))
                targets = reads(app, size)
                servers[size] = serve(paths[size], targets)
                progress(f"scale: {size:,} tickets: {told(servers[size])}")
                made = {kind: reader(of_kind) for kind, of_kind in targets.items()} | writes(size)
                makers[size] = {kind: (app, maker) for kind, maker in made.items()}
            for kind in makers[sizes[0]]:
                if kind in latencies:
                    continue
                together = [kind, kind + FAR] if kind in LISTS else [kind]  # to be compared
                found = measure({(k, size): makers[size][k] for k in together for size in sizes})
                for k in together:
                    latencies[k] = {size: found.get((k, size)) for size in sizes}
                    progress(f"scale: {k}: {', '.join(cells(latencies[k]))} ms")
        for size in sizes:
            deletion[size] = delete_user(paths[size], size)
            progress(f"scale: {size:,} tickets, a user is deleted: {told(deletion[size])}")
    result = {"servers": servers, "latencies": latencies, "deletion": deletion}
    return {"goals": goals(sizes[0], sizes[-1], **result), **result}


def serve(path: Path, targets: dict[str, list[str]]) -> Figures:
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
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(read, (some[n::4] for n in range(4))))
        memory = server.memory()
    disk = path.stat().st_size / 1e6
    return {"disk_mb": disk, "start_s": statistics.median(seconds), "memory_mb": memory}


def reader(targets: list[str]) -> Maker:
    return lambda app, draw: ("GET", draw.choice(targets), b"")


def measure(calls: dict[Key, tuple[tracker.Tracker, Maker]]) -> dict[Key, Figures]:
    """Median and p99 of each kind of call at each size, taken in turns."""
    draw = random.Random(7)
    taken: dict[Key, list[float]] = {key: [] for key in calls}
    for turn in range(ROUNDS + 1):
        for (kind, size), (app, make) in calls.items():
            smaller = [taken[k, s] for k, s in taken if k == kind and s < size]
            if sum(taken[kind, size]) > SECONDS or any(
                min(t, default=0) > TOO_SLOW for t in smaller
            ):
                continue
            spent: list[float] = []
            while len(spent) < CALLS and sum(spent) < SECONDS / ROUNDS:
                request = make(app, draw)
                began = time.perf_counter()
                call(app, *request)
                spent.append(time.perf_counter() - began)
            # The first turn is to warm up.
            taken[kind, size] = taken[kind, size] + spent if turn > 1 else spent
    return {
        key: {"median_ms": statistics.median(t) * 1000, "p99_ms": p99(t) * 1000, "calls": len(t)}
        for key, t in taken.items()
        if t
    }


def delete_user(path: Path, count: int) -> Figures:
    """Delete one of the users, who has 1.5 % of the tickets, while others read and write."""
    user = data.USERS // 2
    with closing(sqlite3.connect(path)) as conn:
        sql = "SELECT count(*) FROM assignments WHERE user_id = ?"
        (tickets,) = conn.execute(sql, (user,)).fetchone()

    def send(method: str, target: str, content: bytes = b"") -> tuple[int, float]:
        with closing(server.connect()) as conn:
            began = time.monotonic()
            status, _ = ask(conn, method, target, content)
            return status, time.monotonic() - began

    with (
        Server(path) as server,
        closing(server.connect()) as conn,
        ThreadPoolExecutor(1 + OTHERS) as pool,
    ):
        ask(conn, "GET", "/tickets/1")
        start, spent = time.monotonic(), []
        deletion = pool.submit(send, "DELETE", f"/users/{user}")
        time.sleep(0.02)
        change = b'{"title": "Changed meanwhile"}'
        others = [pool.submit(send, "PATCH", f"/tickets/{1 + n}", change) for n in range(OTHERS)]
        while not deletion.done():
            due = start + READ_EVERY * len(spent)  # it counts from then, however late it is asked
            time.sleep(max(0, due - time.monotonic()))
            ask(conn, "GET", f"/tickets/{random.randint(1, count)}")
            spent.append((time.monotonic() - due) * 1000)
        status, seconds = deletion.result()
        statuses, waits = zip(*(other.result() for other in others), strict=True)
    if status != 204:
        raise RuntimeError(f"the user could not be deleted: {status}")
    return {
        "tickets": tickets,
        "seconds": seconds,
        "ms_per_ticket": seconds * 1000 / tickets,
        "reads_p99_ms": p99(spent),
        "reads_most_ms": max(spent),
        "writes_most_s": max(waits),
        "writes_refused": sum(status != 200 for status in statuses),
    }


# ---------------------------------------------------------------- what came of it


def growth(of_kind: dict[int, Any]) -> float:
    figures = list(of_kind.values())
    smallest, largest = figures[0], figures[-1]
    return largest["median_ms"] / smallest["median_ms"] if largest else math.inf


def goals(
    small: int, large: int, servers: Any, latencies: Any, deletion: Any
) -> list[dict[str, Any]]:
    at_end = {
        k: found[large]["median_ms"] if found[large] else math.inf for k, found in latencies.items()
    }
    ratios = {kind: growth(found) for kind, found in latencies.items()}
    writing = {kind: ratios.pop(kind) for kind in writes(large)}
    searches = {kind: ratios.pop(kind) for kind in list(ratios) if kind.startswith("search")}
    slow = {kind: ratio for kind, ratio in searches.items() if at_end[kind] >= 2}
    grow = f"From {small:,} to {large:,} tickets"
    depth = {kind: at_end[kind + FAR] / at_end[kind] for kind in LISTS}
    found = [
        goal(text, worst(of_kinds, most), max(of_kinds.values(), default=0) < most)
        for text, of_kinds, most in (
            (f"{grow} reads grow by less than 2 times", ratios, 2),
            (f"{grow} searches above 2 ms grow by less than 3 times", slow, 3),
            (f"{grow} writes grow by less than 2 times", writing, 2),
            (f"Among {large:,} tickets page 10,000 costs no more than page 1", depth, NOISE),
        )
    ]
    server, deleted = servers[large], deletion[large]
    meanwhile = f"p99 of reads while a user leaves {deleted['tickets']:,} tickets and others write"
    return found + [
        goal(f"{text} under {most} {unit}", f"{figure:,.2f} {unit}", figure < most)
        for text, figure, most, unit in (
            (f"Start-up with {large:,} tickets", server["start_s"], 0.3, "s"),
            (f"Memory with {large:,} tickets", server["memory_mb"], 60, "MB"),
            (meanwhile, deleted["reads_p99_ms"], 20, "ms"),
        )
    ]


def worst(ratios: dict[str, float], most: float) -> str:
    """What is not below the limit; if all is, what is next to it."""
    falling = sorted(ratios, key=ratios.__getitem__, reverse=True)
    bad = [kind for kind in falling if ratios[kind] >= most] or falling[:1]
    return ", ".join(f"{kind}: {ratios[kind]:.2f} times" for kind in bad) or "none"


def cells(of_kind: dict[int, Any]) -> list[str]:
    return [
        "{median_ms:,.2f} ({p99_ms:,.1f})".format_map(found) if found else "too slow"
        for found in of_kind.values()
    ]


def short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 10 else f"{figure:.2g}"


def told(figures: Figures) -> str:
    return ", ".join(f"{name} {short(figure)}" for name, figure in figures.items())


def table(result: dict[str, Any]) -> str:
    """The result in Markdown: medians and, in brackets, p99."""
    sizes = [f"{size:,} tickets" for size in result["servers"]]
    lines = [
        f"| Median (p99), ms | {' | '.join(sizes)} | Growth |",
        f"|---|{'--:|' * len(sizes)}--:|",
    ]
    for kind, found in result["latencies"].items():
        lines.append(f"| {kind} | {' | '.join(cells(found))} | {growth(found):.1f} |")
    for part, name, text in (
        ("servers", "disk_mb", "size on disk, MB"),
        ("servers", "start_s", "start-up, s"),
        ("servers", "memory_mb", "memory, MB"),
        ("deletion", "tickets", "delete a user: tickets of theirs"),
        ("deletion", "seconds", "delete a user: seconds"),
        ("deletion", "ms_per_ticket", "delete a user: ms per ticket"),
        ("deletion", "reads_p99_ms", "meanwhile: p99 of reads, ms"),
        ("deletion", "reads_most_ms", "meanwhile: the slowest read, ms"),
        ("deletion", "writes_most_s", f"meanwhile: the slowest of {OTHERS} writes, s"),
        ("deletion", "writes_refused", f"meanwhile: of {OTHERS} writes refused"),
    ):
        figures = (short(found[name]) for found in result[part].values())
        lines.append(f"| {text} | {' | '.join(figures)} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    result = run(sizes=tuple(map(int, sys.argv[1:])))
    print(table(result), *map(str, result["goals"]), sep="\n")
