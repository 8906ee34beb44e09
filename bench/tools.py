"""What the parts share: one way to call in process, one server, one client, one table.

A request is (method, target, content), and whatever is compared is sent the same ones in the
same way.
"""

from __future__ import annotations

import io
import re
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import tracker
from bench import data

Progress = Callable[[str], None]
Request = tuple[str, str, bytes]  # method, path with query, body


# ---------------------------------------------------------------- in process

ENVIRON: dict[str, Any] = {"CONTENT_TYPE": "application/json"}
setup_testing_defaults(ENVIRON)


def call(app: Any, method: str, target: str, content: bytes = b"") -> bytes:
    """The body of the answer to one WSGI call. Raises RuntimeError unless it is 2xx."""
    path, _, query = target.partition("?")
    told: list[str] = []
    environ = ENVIRON | {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(content)),
        "wsgi.input": io.BytesIO(content),
    }
    answer = b"".join(app(environ, lambda status, headers, *_: told.append(status)))
    if not told[-1].startswith("2"):
        raise RuntimeError(f"{method} {target}: {told[-1]} {answer.decode()}")
    return answer


@contextmanager
def silent_app(path: Path | str) -> Iterator[tracker.Tracker]:
    """The application on the database there, a file or a URL. It sends no mail."""
    app = tracker.create_app(path, smtp=data.NOWHERE)
    app.mailer.close()
    try:
        yield app
    finally:
        app.close()


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder for copies of databases, on the disk of the cache."""
    data.CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data.CACHE) as folder:
        yield Path(folder)


def copy(folder: Path, count: int, progress: Progress, kind: str = "tracker") -> Path:
    """A fresh copy of the database with `count` tickets, in a folder of its own."""
    original = data.database(kind, count, progress)
    return Path(shutil.copy(original, tempfile.mkdtemp(dir=folder)))


# ---------------------------------------------------------------- over HTTP


class Configuration(NamedTuple):
    """A way to serve."""

    name: str
    setting: str  # what differs between the configurations of one name
    kind: str  # of its database, see data.py
    command: str  # behind "python"; {port} and {database} are filled in


TRACKER = Configuration(
    "Tracker",
    "as it comes",
    "tracker",
    f"-m tracker --db {{database}} --port {{port}} --quiet --smtp {data.NOWHERE}",
)


class Server:
    """A process that serves `database`; `seconds` is what it took from its start to an answer."""

    def __init__(self, database: Path, configuration: Configuration = TRACKER) -> None:
        self.name, self.setting, _, command = configuration
        self.database = database
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        values = {"port": self.port, "database": database}
        log = database.with_name("log")
        began = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *(word.format_map(values) for word in command.split())],
                cwd=data.PEERS,
                env=data.environment(database),
                stdout=output,
                stderr=output,
            )
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > began + 30:
                self.__exit__()
                raise RuntimeError(f"{self.name} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.005)
        self.seconds = time.monotonic() - began

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answers(self) -> bool:
        with suppress(OSError):
            self.ask("GET", "/tickets/1")
            return True
        return False

    def memory(self) -> float:
        """The most MB that it has had in memory so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def ask(self, method: str, target: str, content: bytes = b"") -> tuple[int, bytes]:
        """(status, body) of the answer. Raises OSError if there is none."""
        client = Client(self.port)
        client.send(method, target, content)
        while (answer := client.receive()) is None:
            pass
        client.close()
        return answer


class Client:
    """A connection that is kept as long as the server keeps it, and then made anew."""

    LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
    CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)

    def __init__(self, port: int, kind: str = "", due: float = 0) -> None:
        self.port, self.kind, self.due = port, kind, due
        self.sock: socket.socket | None = None
        self._received = b""

    def send(self, method: str, target: str, content: bytes) -> socket.socket:
        """Send a request; the one before must be answered."""
        if self.sock is None:
            self.sock = socket.create_connection(("127.0.0.1", self.port), timeout=600)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if content:
            head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        self.sock.sendall(head.encode() + b"\r\n" + content)
        return self.sock

    def receive(self) -> tuple[int, bytes] | None:
        """Take what comes: (status, body), once that is whole. Raises OSError if it breaks off."""
        received = self.sock.recv(2**18) if self.sock else b""
        if not received:
            raise ConnectionError("the connection broke")
        self._received += received
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = self.LENGTH.search(head)
        if not end or len(body) < (int(length[1]) if length else 0):
            return None
        self._received = b""
        if self.CLOSE.search(head):
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """End the connection, if there is one."""
        if self.sock:
            self.sock.close()
        self.sock, self._received = None, b""


class Stream(NamedTuple):
    """Requests over so many connections, each `rate` a second, or each as soon as it can."""

    requests: Iterator[Request]
    connections: int = 1
    rate: float | None = None


def load(
    port: int, streams: dict[str, Stream], lasts: Callable[[], bool]
) -> dict[str, dict[str, Any]]:
    """Send the streams while that `lasts`; of each what was 2xx, the latencies, and the rest.

    A latency counts from the moment at which the request was due, so that a server which
    stalls cannot hide it by being asked less. At the end all that was sent is answered.
    """
    poll, began = select.epoll(), time.perf_counter()
    idle = [Client(port, kind, began) for kind in streams for _ in range(streams[kind].connections)]
    asked: dict[int, Client] = {}  # by the number of their socket
    latencies: dict[str, list[float]] = {kind: [] for kind in streams}
    errors: dict[str, Counter[str]] = {kind: Counter() for kind in streams}
    busy = 0
    while (going := lasts()) or busy:
        now = time.perf_counter()
        for client in [client for client in idle if going and client.due <= now]:
            idle.remove(client)
            fresh = client.sock is None
            sock = client.send(*next(streams[client.kind].requests))
            if fresh:
                asked[sock.fileno()] = client
                poll.register(sock, select.EPOLLIN)
            busy += 1
        wait = min((client.due for client in idle), default=now + 1) - now if going else 1
        for number, _ in poll.poll(max(0, wait)):
            client = asked[number]
            try:
                answer = client.receive()
            except OSError as error:
                client.close()
                answer = (0, str(error).encode())
            if answer is None:
                continue
            now, rate = time.perf_counter(), streams[client.kind].rate
            latencies[client.kind].append((now - client.due) * 1000)
            if answer[0] // 100 != 2:
                errors[client.kind][f"{answer[0]} {answer[1]!r:.200}"] += 1
            client.due = client.due + 1 / rate if rate else now
            idle.append(client)
            busy -= 1
    took = time.perf_counter() - began
    for client in idle:
        client.close()
    return {
        kind: {
            "requests": (good := len(of_kind) - errors[kind].total()),
            "rate": good / took,
            "p50_ms": statistics.median(of_kind),
            "p99_ms": p99(of_kind),
            "most_ms": max(of_kind),
            "errors": [f"{error}, {count} times" for error, count in errors[kind].items()],
        }
        for kind, of_kind in latencies.items()
    }


def during(seconds: float) -> Callable[[], bool]:
    """Whether so much time has not passed yet."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() < end


def p99(values: list[float]) -> float:
    return sorted(values)[round(0.99 * (len(values) - 1))]


# ---------------------------------------------------------------- what came of it


def goal(text: str, figure: str, met: bool) -> dict[str, Any]:
    """How a part says what it should reach and what it reached."""
    return {"goal": text, "figure": figure, "met": met}


def table(*rows: Iterable[str]) -> str:
    """Rows in Markdown; the first is the head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|---|{'--:|' * (lines[0].count(' | '))}", *lines[1:]])
