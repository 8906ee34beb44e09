"""Mail: how fast a full queue drains into a local SMTP server, against a bare smtplib loop.

The server is a process of its own that does no more than speak SMTP, so that what is measured
is who sends. The limit sends as many messages of the same size, composed beforehand, over one
connection. Both take turns. Client and server have a processor each: sharing one or not is a
factor of three to the limit, and the system would decide it anew each time.

    python -m bench.mail
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import smtplib
import socketserver
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import db
import mailer
import tracker
from bench import data
from bench.limits import Progress, goal, workplace

TICKETS = 10_000
SENDER = "tracker@localhost"
SUBJECT = "[Ticket #7] The login page fails after the update"
BODY = """\
Ticket #7 updated:
Title: "The login page fails after the update"
Status: "In progress"

Current assignees: Max Müller, Dave Smith, Yaris Rossi.

What changed:
  Status: "Open" -> "In progress"
"""


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


def drain(path: Path, port: int, taken: Any, messages: int) -> float:
    """Seconds in which the tracker sends all that is queued. Raises RuntimeError if it does not."""
    base = db.open_database(path)
    with base.write() as conn:
        conn.execute(
            """
            INSERT INTO history (ticket_id, changed_at, subject, body)
            SELECT value, :now, :subject, :body FROM json_each(:ids)""",
            {
                "now": conn.now,
                "subject": SUBJECT,
                "body": BODY,
                "ids": str([*range(1, messages + 1)]),
            },
        )
        conn.execute(
            """
            INSERT INTO emails (history_id, user_id, next_attempt_at)
            SELECT id, 1 + id % :users, :now FROM history ORDER BY id DESC LIMIT :messages""",
            {"now": conn.now, "users": data.USERS, "messages": messages},
        )
    began, end = time.monotonic(), taken.value + messages
    app = tracker.create_app(path, f"smtp://127.0.0.1:{port}", SENDER)
    app.start()
    while taken.value < end and time.monotonic() < began + 300:
        time.sleep(0.002)  # without a look at the database, which would take its time from us
    health: dict[str, Any] = {"queued": messages}
    while health["queued"] and time.monotonic() < began + 300:
        with base.read() as conn:
            health = json.loads(db.get_health(conn))["mail"]
    seconds = time.monotonic() - began
    app.close()
    base.close()
    if health["queued"] or health["failed"] or health["error"]:
        raise RuntimeError(f"the mail was not sent: {health}")
    return seconds


def send_bare(port: int, messages: int) -> float:
    """Seconds for as many messages, composed beforehand, over one connection."""
    email = {
        "subject": SUBJECT,
        "body": BODY,
        "message_id": None,
        "address": "user7@example.com",
        "ticket_created_at": "2026-11-22T10:32:00.123Z",
        "token": "0123456789abcdef",
        "domain": "localhost",
    }
    numbers = range(1, messages + 1)
    emails = [{"id": number, "ticket_id": number} | email for number in numbers]
    composed = [mailer.compose(each, SENDER, db.utc_now()) for each in emails]
    began = time.monotonic()
    with smtplib.SMTP("127.0.0.1", port, "localhost") as smtp:
        for message in composed:
            smtp.sendmail(SENDER, email["address"], message)
    return time.monotonic() - began


def run(progress: Progress = print, quick: bool = False) -> dict[str, Any]:
    """Measure both three times. Raises RuntimeError if not every mail arrived."""
    messages = 1_000 if quick else 10_000
    original = data.database("tracker", TICKETS, progress)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    with workplace() as folder, sink() as (port, taken):
        for turn in range(3):
            for who in ("bare", "ours") if turn % 2 else ("ours", "bare"):
                before = taken.value
                if who == "ours":
                    path = shutil.copyfile(original, folder / f"{turn}.db")
                    seconds = drain(path, port, taken, messages)
                else:
                    seconds = send_bare(port, messages)
                if taken.value - before != messages:
                    raise RuntimeError(f"{taken.value - before} of {messages} mails arrived")
                rates[who].append(messages / seconds)
                progress(
                    f"mail: {who}, {messages:,} messages: {messages / seconds:,.0f} messages/s"
                )
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates["bare"], strict=True))
    ours, bare = (statistics.median(rates[who]) for who in ("ours", "bare"))
    text = "Mail drains at 0.7 of the rate of a bare smtplib loop or better"
    figure = f"{ratio:.2f} ({ours:,.0f} of {bare:,.0f} messages/s)"
    return {"goals": [goal(text, figure, ratio >= 0.7)], "messages": messages, "rates": rates}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = [f"| {result['messages']:,} mails | Messages/s, each turn |", "|---|--:|"]
    for who, name in (("ours", "Tracker"), ("bare", "Bare smtplib loop")):
        lines.append(f"| {name} | {', '.join(f'{rate:,.0f}' for rate in result['rates'][who])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(run()))
