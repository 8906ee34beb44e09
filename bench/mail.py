"""Mail: how fast a full queue drains into a local SMTP server, against a bare smtplib loop.

The server is a process of its own that does no more than speak SMTP, so that what is measured
is who sends. The limit sends the same messages, composed beforehand, over one connection. Both
take turns. Client and server have a processor each: sharing one or not is a factor of three to
the limit, and the system would decide it anew each time.
"""

from __future__ import annotations

import multiprocessing
import os
import smtplib
import socketserver
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import db
import mailer
import tracker
from bench import requests
from bench.tools import Progress, call, copy, goal, silent_app, table, workplace

TICKETS = 10_000
SENDER = "tracker@localhost"
FAR = "9"  # no time is behind it


# ---------------------------------------------------------------- the server


class Sink(socketserver.StreamRequestHandler):
    """Takes every mail, and forgets it but for the count."""

    rbufsize, disable_nagle_algorithm = 2**16, True
    taken: Any  # a multiprocessing.Value

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        answers = {b"EHLO": b"250 sink", b"DATA": b"354 go on", b"QUIT": b"221 bye"}
        while line := self.rfile.readline():
            verb = line[:4].upper()
            self.wfile.write(answers.get(verb, b"250 ok") + b"\r\n")
            if verb == b"DATA":
                while self.rfile.readline() != b".\r\n":
                    pass
                with self.taken.get_lock():
                    self.taken.value += 1
                self.wfile.write(b"250 taken\r\n")
            elif verb == b"QUIT":
                return


def serve(taken: Any, told: Connection) -> None:
    """In the process of the server: tell the port, then take mail until killed."""
    Sink.taken = taken
    with socketserver.TCPServer(("127.0.0.1", 0), Sink) as server:
        told.send(server.server_address[1])
        server.serve_forever()


@contextmanager
def sink() -> Iterator[tuple[int, Any]]:
    """The port of a server that runs, and the count of what it took."""
    context = multiprocessing.get_context("spawn")
    taken = context.Value("l", 0)
    told, tell = context.Pipe()
    process = context.Process(target=serve, args=(taken, tell), daemon=True)
    process.start()
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(process.pid or 0, processors[:1])
    os.sched_setaffinity(0, processors[-1:])
    try:
        yield told.recv(), taken
    finally:
        os.sched_setaffinity(0, processors)
        process.kill()
        process.join()


# ---------------------------------------------------------------- the run


def queue(path: Path, changes: int) -> list[dict[str, Any]]:
    """Change so many tickets; the mail that is due then, three for each."""
    with silent_app(path) as app:
        for request in islice(requests.changes_of_status(path), changes):
            call(app, *request)
        with app.database.read() as conn:
            due = db.list_due(conn, FAR, 3 * changes)
            return [db.get_outgoing(conn, each.id) for each in due]


def drain(path: Path, port: int, taken: Any, messages: int) -> float:
    """Seconds in which the tracker sends all that is queued. Raises RuntimeError if it does not."""
    app = tracker.create_app(path, f"smtp://127.0.0.1:{port}", SENDER)
    began, end = time.monotonic(), taken.value + messages
    app.start()
    while taken.value < end and time.monotonic() < began + 300:
        time.sleep(0.002)  # without a look at the database, which would take its time from us
    app.close()  # what is sent is recorded before it ends
    seconds = time.monotonic() - began
    with silent_app(path) as app, app.database.read() as conn:
        if left := db.list_due(conn, FAR, 1):
            raise RuntimeError(f"mail is left: {left}")
    return seconds


def send_bare(emails: list[dict[str, Any]], port: int) -> float:
    """Seconds for the same messages, composed beforehand, over one connection."""
    composed = [
        (each["address"], mailer.compose(each | {"domain": "localhost"}, ("", SENDER)).encode())
        for each in emails
    ]
    began = time.monotonic()
    with smtplib.SMTP("127.0.0.1", port, "localhost") as smtp:
        for address, message in composed:
            smtp.sendmail(SENDER, address, message)
    return time.monotonic() - began


def run(progress: Progress, quick: bool) -> dict[str, Any]:
    """Measure both three times. Raises RuntimeError if not every mail arrived."""
    changes = 300 if quick else 3_000
    rates: dict[str, list[float]] = {"Tracker": [], "Bare smtplib loop": []}
    with workplace() as folder, sink() as (port, taken):
        for turn in range(3):
            path = copy(folder, TICKETS, progress)
            emails = queue(path, changes)
            for who in list(rates) if turn % 2 else reversed(rates):
                before = taken.value
                if who == "Tracker":
                    seconds = drain(path, port, taken, len(emails))
                else:
                    seconds = send_bare(emails, port)
                if taken.value - before != 3 * changes:
                    raise RuntimeError(f"{taken.value - before} of {3 * changes} mails arrived")
                rates[who].append(3 * changes / seconds)
                progress(f"mail: {who}: {rates[who][-1]:,.0f} messages/s")
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    text = "mail drains at 0.7 of the rate of a bare smtplib loop or better"
    rows = [[who, ", ".join(f"{rate:,.0f}" for rate in taken)] for who, taken in rates.items()]
    return {
        "goals": [goal(text, f"{ratio:.2f}", ratio >= 0.7)],
        "rates": rates,
        "table": table([f"{3 * changes:,} mails", "messages/s, each turn"], *rows),
    }
