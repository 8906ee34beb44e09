"""The mail: who gets it, what it says, and how it comes through.

Mail is queued in the transaction of the change it tells of; a thread delivers it later,
so that no request ever waits for a mail server. Nothing here knows about HTTP, nor how
SMTP is spoken.
"""

from __future__ import annotations

import atexit
import binascii
import json
import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from email.header import Header
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

if TYPE_CHECKING or not __package__:
    import db
    from plumbing import Unavailable
    from plumbing.smtp import Failure
else:
    from . import db
    from .plumbing import Unavailable
    from .plumbing.smtp import Failure

log = logging.getLogger("tracker.mail")

FIRST_RETRY = timedelta(seconds=30)
LONGEST_RETRY = timedelta(hours=1)
MOST_ATTEMPTS = 125  # about five days
BATCH = 100  # messages that are read at once
RECORD_SECONDS = 0.1  # so long, and for one mail more, an outcome may stay unrecorded
POLL_SECONDS = 1.0  # how soon mail is seen that another process queued


# ---------------------------------------------------------------- wording


def queue_ticket_mail(conn: db.Connection, change: db.Change) -> None:
    """Queue one message to each assignee of the ticket, and to each whom the change removed."""
    ticket, changes = change.ticket, change.changes or {}
    people = {user["id"] for user in ticket["assignees"]}
    people |= {user["id"] for user in changes.get("assignees", {}).get("from", [])}
    if not people:
        return
    names = {}  # people know projects by their names
    for project_id in changes.get("project_id", {}).values():
        names[project_id] = json.loads(db.get_project(conn, project_id))["name"]
    subject = f"[Ticket #{ticket['id']}] {ticket['title']}"
    db.queue_emails(conn, change.history_id, subject, describe(change, names), sorted(people))


def describe(change: db.Change, projects: dict[int, str]) -> str:
    """The body of the mail about a ticket that is new or changed; `projects` names those in it."""
    ticket = change.ticket
    new = change.changes is None
    names = ", ".join(user["name"] for user in ticket["assignees"])
    lines = [
        f"Ticket #{ticket['id']} {'created' if new else 'updated'}:",
        f'Title: "{ticket["title"]}"',
        f'Status: "{ticket["status"].capitalize()}"',
        "",
        f"Current assignees: {names or 'none'}.",
        "",
    ]
    if change.changes:
        lines += ["What changed:"]
        lines += [f"  {line}" for line in describe_changes(change.changes, projects)]
    elif new and ticket["description"]:
        lines += ["Description:", ticket["description"]]
    return "\n".join(lines).rstrip("\n") + "\n"


def describe_changes(changes: db.Changes, projects: dict[int, str]) -> Iterator[str]:
    """A line for each field: 'Status: "Open" -> "Closed"'."""
    for field, change in changes.items():
        before, after = change["from"], change["to"]
        if field == "assignees":
            added = [user["name"] for user in after if user not in before]
            removed = [user["name"] for user in before if user not in after]
            parts = (("added", added), ("removed", removed))
            words = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        elif field == "description":  # too long to repeat
            words = "added" if before is None else "removed" if after is None else "changed"
        elif field == "status":
            words = f'"{before.capitalize()}" -> "{after.capitalize()}"'
        elif field == "project_id":
            words = f'"{projects[before]}" -> "{projects[after]}"'
        else:
            words = f'"{before}" -> "{after}"'
        yield f"{field.removesuffix('_id').capitalize()}: {words}"


def compose(email: dict[str, Any], sender: str, now: datetime) -> bytes:
    """The message as it goes over the wire: RFC 5322, plain text in 7 bits.

    `email` is as db.list_due returns it. Written by hand, as the email package takes longer
    for it than the server takes (bench/).
    """
    # What only looks like an encoded word is encoded too, or it would be decoded on arrival.
    subject = email["subject"]
    plain = subject.isascii() and "=?" not in subject
    if not plain:
        subject = Header(subject, "utf-8", header_name="Subject").encode(linesep="\r\n")
    body = re.sub(r"\r\n?|\n", "\r\n", email["body"]).encode()
    encoded = not body.isascii() or max(map(len, body.split(b"\r\n"))) >= 990
    # Of the domain that first delivered, so that another sender changes neither.
    domain = email["domain"]
    headers = {
        "From": sender,
        "To": email["address"],
        "Subject": subject,
        "Date": format_datetime(now),
        "Message-ID": email["message_id"] or f"<{email['id']}.{email['token']}@{domain}>",
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
        "Content-Type": f'text/plain; charset="{"utf-8" if encoded else "us-ascii"}"',
        "Content-Transfer-Encoding": "quoted-printable" if encoded else "7bit",
    }
    if email["ticket_id"] is not None:
        # All mail of a ticket refers to one ancestor that was never sent: that is a thread.
        created = re.sub(r"\D", "", email["ticket_created_at"])
        headers["References"] = f"<ticket-{email['ticket_id']}.{created}@{domain}>"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return head.encode("ascii") + b"\r\n" + (binascii.b2a_qp(body) if encoded else body)


# ---------------------------------------------------------------- delivery


class Server(Protocol):
    """Where mail goes; see plumbing.smtp.Smtp."""

    def send(self, recipient: str, message: bytes) -> None: ...
    def close(self) -> None: ...
    def interrupt(self) -> None: ...


class Console:
    """Where mail goes while no server is configured: it is printed, and counts as sent."""

    def __init__(self, output: TextIO) -> None:
        self.output = output

    def __str__(self) -> str:
        return "this terminal"

    def print(self, email: dict[str, Any]) -> None:
        """Show the mail. Raises Failure."""
        try:
            head = f"--- mail to {email['address']}\nSubject: {email['subject']}\n\n"
            encoding = getattr(self.output, "encoding", None) or "utf-8"
            text = f"{head}{email['body']}---".encode(encoding, "backslashreplace")
            print(text.decode(encoding), file=self.output, flush=True)
        except (OSError, ValueError) as error:  # a closed terminal
            raise Failure("connection", str(error)) from error

    def close(self) -> None:
        """Nothing is open."""

    def interrupt(self) -> None:
        """Nothing waits."""


class Outcome(NamedTuple):
    """A mail that was tried, and why it did not go out, if it did not."""

    email: dict[str, Any]
    failure: Failure | None


class Mailer:
    """The thread that delivers what is queued in `database` through `server`.

    Of several processes on one database, one delivers; when it ends, another takes over.
    """

    def __init__(self, database: db.Database, server: Server | Console, sender: str) -> None:
        self.database, self.server, self.sender = database, server, sender
        self.delivers = False  # this process, and no other on the database
        self._refusals = self._broken = 0
        self._starting = threading.Lock()
        self._awake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: int | None = None  # the one whose thread it is

    def start(self) -> None:
        """Run the thread, unless it runs; in a forked child the database would refuse it."""
        if self._process is None and not self._stop.is_set():
            with self._starting:
                if self._process is None:
                    self._process = os.getpid()
                    atexit.register(self.close)  # what is sent is recorded, also by a worker's end
                    self._thread = threading.Thread(target=self._run, name="mailer", daemon=True)
                    self._thread.start()

    def wake(self) -> None:
        """Look for due mail now. To be called after the commit that queued it."""
        self._awake.set()

    def close(self) -> None:
        """End the thread within 4 seconds: first politely, then in the middle of a mail."""
        if self._process not in (None, os.getpid()):
            return
        self._stop.set()
        self._awake.set()
        atexit.unregister(self.close)
        if self._thread is not None:
            self._thread.join(2)
            if self._thread.is_alive():
                self.server.interrupt()
                self._thread.join(2)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._awake.clear()
            try:
                if self.database.may_deliver():
                    if not self.delivers:
                        self._begin()
                    self.deliver()
                else:
                    self.delivers = False
            except Unavailable as error:
                log.warning("Mail waits: %s", error)
            except Exception:
                log.exception("Delivery was interrupted; it goes on.")
            self._awake.wait(POLL_SECONDS)
        self.database.stop_delivering()

    def _begin(self) -> None:
        with self.database.write() as conn:
            db.begin_delivery(conn, self.sender.rpartition("@")[2])
        self.delivers = True

    def deliver(self) -> None:
        """Send what is due until nothing is, over one connection as long as it lasts."""
        try:
            while self._deliver_some():
                pass
        finally:
            self.server.close()

    def _deliver_some(self) -> bool:
        """Send for RECORD_SECONDS, and one mail more; whether there may be something left.

        Several at once, as each commit waits for the disk; but not many, as what is not
        recorded goes out twice after a crash, and an address may be corrected meanwhile.
        """
        with self.database.read() as conn:
            server = db.get_mail_server(conn)
            due = db.list_due(conn, BATCH)
        waiting = server.ask_again_at is not None and conn.now < server.ask_again_at
        if self._stop.is_set() or not due or (waiting and server.state == "refusing"):
            return False
        if waiting:  # who is due while the server is known to be down shares that finding
            self._record([Outcome(email, Failure("server", server.error or "")) for email in due])
            return True
        outcomes: list[Outcome] = []
        try:
            for outcome in self._attempts(due, datetime.fromisoformat(conn.now)):
                outcomes.append(outcome)
        finally:
            self._record(outcomes)
        return True

    def _attempts(self, due: list[dict[str, Any]], now: datetime) -> Iterator[Outcome]:
        """Send one mail after the other, as long as the server takes any and time lasts."""
        until = time.monotonic() + RECORD_SECONDS
        for position, email in enumerate(due):
            failure = self._attempt(email, now)
            broken = failure is not None and failure.about == "connection"
            if self._stop.is_set() and failure and failure.about in ("connection", "server"):
                return  # it was cut by us
            # Of connections lost in a row, one may be the fault of its mail, two are not.
            self._broken = self._broken + 1 if broken else 0
            if failure and self._broken == 2:
                failure = Failure("server", str(failure))
            yield Outcome(email, failure)
            down = failure is not None and failure.about == "server"
            if down:
                yield from (Outcome(left, failure) for left in due[position + 1 :])
            refused = failure is not None and failure.about == "us"
            if self._stop.is_set() or down or refused or time.monotonic() > until:
                return

    def _attempt(self, email: dict[str, Any], now: datetime) -> Failure | None:
        """Why the mail did not go out; None if it did."""
        try:
            if isinstance(self.server, Console):
                self.server.print(email)
            else:
                self.server.send(email["address"], compose(email, self.sender, now))
        except Failure as failure:
            return failure
        except Exception as defect:  # must cost this mail, not the queue
            log.exception("Mail %s cannot be sent", email["id"])
            return Failure("message", f"a defect of the tracker: {defect}")
        return None

    def _record(self, outcomes: list[Outcome]) -> None:
        while outcomes:
            try:
                with self.database.write() as conn:
                    for outcome in outcomes:
                        self._record_mail(conn, outcome)
                    self._record_server(conn, outcomes[-1].failure)
                return
            except Unavailable as error:
                # Going on would send again what has been sent: wait for the database.
                log.warning("Outcomes of mail cannot be recorded: %s", error)
                if self._stop.wait(POLL_SECONDS):
                    return

    def _record_mail(self, conn: db.Connection, outcome: Outcome) -> None:
        email, failure = outcome
        if failure is None:
            db.record_sent(conn, email["id"], email["address"])
        elif failure.about != "us":  # that is not the fault of the mail
            attempts = email["attempts"] + 1
            final = failure.about == "message" or attempts >= MOST_ATTEMPTS
            if final:
                log.warning("Mail %s has failed: %s", email["id"], failure)
            again = None if final else later(conn.now, backoff(email["attempts"]))
            db.record_failure(conn, email["id"], str(failure), again)

    def _record_server(self, conn: db.Connection, failure: Failure | None) -> None:
        server = db.get_mail_server(conn)
        if server.ask_again_at is not None and conn.now < server.ask_again_at:
            return  # nobody asked it
        about = failure.about if failure else "nothing"
        if about == "us":
            again = later(conn.now, backoff(self._refusals))
            db.set_mail_server(conn, "refusing", str(failure), again)
            self._refusals += 1
            log.warning("Mail waits, %s refuses it: %s", self.server, failure)
        elif about == "server":
            db.set_mail_server(conn, "down", str(failure), later(conn.now, FIRST_RETRY))
            log.warning("Mail waits, %s is down: %s", self.server, failure)
        elif about != "connection" and server.state != "ok":
            db.set_mail_server(conn, "ok")
            self._refusals = 0
            log.warning("Mail flows again.")


def backoff(attempts: int) -> timedelta:
    """How long to wait after one more failure: 30 s, 60 s ... an hour, and up to 10 % jitter."""
    steps: int = 2 ** min(attempts, 7)
    return min(FIRST_RETRY * steps, LONGEST_RETRY) * random.uniform(1.0, 1.1)


def later(now: str, wait: timedelta) -> str:
    """A time of the database, `wait` after another."""
    moment = datetime.fromisoformat(now) + wait
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def send_test_mail(mailer: Mailer, address: str, patience: float) -> tuple[bool, str]:
    """Send a mail to the address through the queue; (whether it was taken, what was said).

    Waits up to `patience` seconds for whoever delivers, which may be another process.
    """
    with mailer.database.write() as conn:
        email_id = db.queue_test_mail(
            conn,
            address,
            "Test mail of the ticket tracker",
            "This mail went through the queue of the ticket tracker.\n",
        )
        db.set_mail_server(conn, "ok")  # that is: ask it now
    mailer.start()
    mailer.wake()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.05)
        with mailer.database.read() as conn:
            email = json.loads(db.get_email(conn, email_id))
            server = db.get_mail_server(conn)
        if email["state"] == "sent":
            return True, "sent" if mailer.delivers else "sent by the tracker that is running"
        if email["state"] == "failed":
            return False, email["error"]
        if email["error"] or server.state == "refusing":
            return False, f"{email['error'] or server.error}; it stays queued and is tried again"
    return False, f"no answer within {patience:g} seconds; it stays queued"
