"""The mail: who gets it, what it says, and how it comes through.

Mail is queued in the transaction of the change it tells of; a thread delivers it later,
so that no request ever waits for a mail server. Nothing here knows about HTTP.
"""

from __future__ import annotations

import binascii
import ipaddress
import json
import logging
import math
import os
import random
import re
import smtplib
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from email.header import Header
from email.utils import format_datetime
from functools import cached_property
from typing import Any, TextIO
from urllib.parse import unquote, urlsplit

import db

Outcome = tuple[dict[str, Any], Exception | None]  # a mail, and why it did not go out

log = logging.getLogger("tracker.mail")

FIRST_RETRY = timedelta(seconds=30)
LONGEST_RETRY = timedelta(hours=1)
GIVE_UP_AFTER = timedelta(days=5)
BATCH = 100  # messages per connection; many servers allow no more
RECORD_SECONDS = 0.1  # so long, and for one mail more, an outcome may stay unrecorded
POLL_SECONDS = 1.0  # how soon mail is seen that another process queued
LONGEST_ANSWER = 2**16  # bytes that a mail server may say at once


# ---------------------------------------------------------------- wording


def queue_ticket_mail(
    conn: db.Connection, sender: str, ticket: dict[str, Any], changes: db.Changes | None = None
) -> None:
    """Queue one message to each assignee of the ticket, and to each whom the changes removed.

    Without `changes` the ticket is new. Both are as db.update_ticket returns them.
    """
    people = {user["id"] for user in ticket["assignees"]}
    people |= {user["id"] for user in (changes or {}).get("assignees", {}).get("from", [])}
    if changes and "project_id" in changes:  # people know projects by their names
        moved = changes["project_id"].items()
        names = {side: json.loads(db.get_project(conn, id))["name"] for side, id in moved}
        changes = changes | {"project_id": names}
    subject = f"[Ticket #{ticket['id']}] {ticket['title']}"
    body = describe(ticket, changes)
    db.queue_emails(
        conn,
        [
            {
                "ticket_id": ticket["id"],
                "user_id": user_id,
                "address": None,
                "subject": subject,
                "body": body,
                "message_id": new_message_id(sender),
            }
            for user_id in sorted(people)
        ],
    )


def new_message_id(sender: str) -> str:
    # Not make_msgid, which draws on `random`: a host application may have seeded that.
    return f"<{uuid.uuid4()}@{sender.rpartition('@')[2]}>"


def describe(ticket: dict[str, Any], changes: db.Changes | None) -> str:
    """The body of the mail about a new ticket, or about the changes of one."""
    names = ", ".join(user["name"] for user in ticket["assignees"])
    lines = [
        f"Ticket #{ticket['id']} {'updated' if changes else 'created'}:",
        f'Title: "{ticket["title"]}"',
        f'Status: "{ticket["status"].capitalize()}"',
        "",
        f"Current assignees: {names or 'none'}.",
        "",
    ]
    if changes:
        lines += ["What changed:", *(f"  {line}" for line in describe_changes(changes))]
    elif ticket["description"]:
        lines += ["Description:", ticket["description"]]
    return "\n".join(lines).rstrip("\n") + "\n"


def describe_changes(changes: db.Changes) -> Iterator[str]:
    """A line for each field: 'Status: "Open" -> "Closed"'."""
    for field, change in changes.items():
        before, after = change["from"], change["to"]
        if field == "assignees":
            added = [user["name"] for user in after if user not in before]
            removed = [user["name"] for user in before if user not in after]
            parts = (("added", added), ("removed", removed))
            told = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        elif field == "description":  # too long to repeat
            told = "added" if before is None else "removed" if after is None else "changed"
        elif field == "status":
            told = f'"{before.capitalize()}" -> "{after.capitalize()}"'
        else:
            told = f'"{before}" -> "{after}"'
        yield f"{field.removesuffix('_id').capitalize()}: {told}"


def compose(email: dict[str, Any], sender: str, now: datetime) -> bytes:
    """The message as it goes over the wire: RFC 5322, plain text in 7 bits.

    Written by hand, as the email package takes longer for it than the server takes (bench/).
    """
    # What only looks like an encoded word is encoded too, or it would be decoded on arrival.
    subject = email["subject"]
    plain = subject.isascii() and "=?" not in subject
    if not plain:
        subject = Header(subject, "utf-8", header_name="Subject").encode(linesep="\r\n")
    body = re.sub(r"\r\n?|\n", "\r\n", email["body"]).encode()
    encoded = not body.isascii() or max(map(len, body.split(b"\r\n"))) >= 990
    headers = {
        "From": sender,
        "To": email["address"],
        "Subject": subject,
        "Date": format_datetime(now),
        "Message-ID": email["message_id"],
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
        "Content-Type": f'text/plain; charset="{"utf-8" if encoded else "us-ascii"}"',
        "Content-Transfer-Encoding": "quoted-printable" if encoded else "7bit",
    }
    if email["ticket_id"] is not None:
        # All mail of a ticket refers to one ancestor that was never sent: that is a thread.
        created = re.sub(r"\D", "", email["ticket_created_at"])
        domain = email["message_id"].rpartition("@")[2]
        headers["References"] = f"<ticket-{email['ticket_id']}.{created}@{domain}"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return head.encode("ascii") + b"\r\n" + (binascii.b2a_qp(body) if encoded else body)


# ---------------------------------------------------------------- the mail server


class Undeliverable(Exception):
    """This mail will never be taken."""


class Postponed(Exception):
    """This mail was not taken now; the next one may be."""


class Disconnected(Exception):
    """The server broke off, or fell silent, in the middle of this mail."""


class Stale(Disconnected):
    """The server has done with this connection; over a new one it may take the mail."""


class Unreachable(Exception):
    """No mail can be brought to the server now."""


class Refused(Exception):
    """The server takes no mail from us at all: a wrong password, a rejected sender."""


class Client(smtplib.SMTP):
    """smtplib's client, but it takes no answer without end, and not anything for one."""

    def getreply(self) -> tuple[int, bytes]:
        """The code and the text of the next answer. Raises OSError."""
        assert self.sock is not None
        self.file = self.file or self.sock.makefile("rb")
        lines: list[bytes] = []
        left = LONGEST_ANSWER
        while not lines or lines[-1][3:4] == b"-":
            line = self.file.readline(left)
            left -= len(line)
            if not left:
                raise OSError("the answer of the server is too long")
            if not line.endswith(b"\n"):
                raise OSError("the server closed the connection")
            if not re.match(rb"[2-5]\d\d", line):
                raise OSError(f"the answer is not SMTP: {line.decode('utf-8', 'replace').strip()}")
            lines.append(line)
        return int(lines[-1][:3]), b"\n".join(line[4:].strip() for line in lines)


class TlsClient(Client, smtplib.SMTP_SSL):
    """The same, with TLS from the start."""


class Smtp:
    """The server at smtp://user:password@host:port, or smtps:// for TLS from the start.

    smtp:// uses STARTTLS where it is offered. A password goes only over verified TLS or to
    this machine. `timeout` seconds are what connecting and each mail may take.
    """

    def __init__(self, url: str, sender: str, timeout: float = 10) -> None:
        parts = urlsplit(url)
        self.user, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or any(parts[2:]):
            raise ValueError("the SMTP URL must look like smtp://user:password@host:port")
        if not (self.user + self.password).isascii():
            raise ValueError("user and password of the SMTP URL must be ASCII")
        self.tls = parts.scheme == "smtps"
        self.host, self.port = parts.hostname, parts.port or (465 if self.tls else 25)
        self.sender, self.timeout = sender, timeout
        self._smtp: Client | None = None
        self._taken = 0  # over this connection
        self._deadline = math.inf  # by time.monotonic()

    def __str__(self) -> str:
        return f"{'smtps' if self.tls else 'smtp'}://{self.host}:{self.port}"

    @cached_property
    def context(self) -> ssl.SSLContext:
        # Once, and only if needed: to read all the authorities takes longer than many mails.
        context = ssl.create_default_context()
        if not (self.tls or self.password):
            # With no secret to lose, encryption to anybody is better than none.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def connect(self) -> None:
        """Be connected, encrypted and logged in. Raises Unreachable, Refused."""
        if self._smtp is not None and self._taken == BATCH:
            self.close()
        if self._smtp is not None:
            return
        # The name to greet with is given, or smtplib would ask the DNS for it, and wait.
        name = self.sender.rpartition("@")[2]
        if self.tls:
            smtp: Client = TlsClient("", 0, name, timeout=self.timeout, context=self.context)
        else:
            smtp = Client("", 0, name, timeout=self.timeout)
        # The name that TLS verifies: smtplib sets it only if it connects while constructed.
        smtp._host = self.host  # type: ignore[attr-defined]
        self._smtp, self._taken, self._over = smtp, 0, threading.Event()
        with self._within_time(Unreachable):
            threading.Thread(target=self._watch, args=(smtp, self._over), daemon=True).start()
            code, answer = smtp.connect(self.host, self.port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, answer)
            smtp.ehlo_or_helo_if_needed()
            if not self.tls and smtp.has_extn("starttls"):
                smtp.starttls(context=self.context)
                smtp.ehlo_or_helo_if_needed()
            if self.password:
                self._log_in(smtp)

    def _log_in(self, smtp: smtplib.SMTP) -> None:
        assert smtp.sock is not None
        here = ipaddress.ip_address(smtp.sock.getpeername()[0]).is_loopback
        if not here and not isinstance(smtp.sock, ssl.SSLSocket):
            raise Refused("the server offers no TLS, and a password is not sent in clear text")
        # One way only: many servers hang up at a wrong password, and to try it in the next way
        # would then look like a lost connection.
        offered = smtp.esmtp_features.get("auth", "").split()
        ways = [way for way in ("PLAIN", "LOGIN", "CRAM-MD5") if way in offered]
        smtp.esmtp_features["auth"] = " ".join(ways[:1])
        try:
            smtp.login(self.user, self.password)
        except smtplib.SMTPServerDisconnected:
            raise
        except smtplib.SMTPException as error:
            if getattr(error, "smtp_code", 500) < 500:
                raise
            raise Refused(words(error)) from error

    def send(self, email: dict[str, Any], now: datetime) -> None:
        """Give one mail to the server.

        Raises Undeliverable, Postponed, Disconnected, Refused; Stale if the server took
        other mail over this connection, and no more.
        """
        message = compose(email, self.sender, now)
        smtp = self._smtp
        assert smtp is not None
        used, self._taken = self._taken > 0, self._taken + 1
        with self._within_time(Disconnected):
            # Step by step, since sendmail() does not tell which of them was refused.
            try:
                code, answer = smtp.mail(self.sender)
            except OSError as error:
                if used:
                    raise Stale from error
                raise
            if code == 421 and used:
                raise Stale
            if code // 100 == 5:
                raise Refused(words(smtplib.SMTPResponseException(code, answer)))
            if code // 100 == 2:
                code, answer = smtp.rcpt(email["address"])
            if code // 100 == 2:
                try:
                    code, answer = smtp.data(message)
                except smtplib.SMTPDataError as error:
                    code, answer = error.smtp_code, error.smtp_error  # type: ignore[assignment]
                    if code // 100 == 2:  # it takes for done what has not begun
                        raise OSError(f"the answer to DATA was {words(error)}") from error
            if code // 100 == 2:
                return
            reply = smtplib.SMTPResponseException(code, answer)
            if code == 421 or code // 100 not in (4, 5):
                raise reply
            try:
                clean = smtp.rset()[0] == 250
            except OSError:
                clean = False
            if not clean:
                self._drop()
        raise (Undeliverable if code // 100 == 5 else Postponed)(words(reply))

    def close(self) -> None:
        """Take leave. A connection lost here is no loss: the mail was taken before."""
        if self._smtp is not None:
            with suppress(Disconnected), self._within_time(Disconnected):
                self._smtp.quit()
            self._drop()

    def cut(self) -> None:
        """Break off the waiting for the server; may be called from any thread."""
        shut(self._smtp)

    def forget(self) -> None:
        """In a forked child: the connection is the parent's, which may be in the middle of it."""
        if self._smtp is not None and self._smtp.sock is not None:
            with suppress(OSError):
                os.close(self._smtp.sock.detach())
        self._inherited, self._smtp = self._smtp, None  # kept, as to close its reader could block

    def _drop(self) -> None:
        if self._smtp is not None:
            self._over.set()
            self._smtp.close()
            self._smtp = None

    @contextmanager
    def _within_time(self, kind: type[Exception]) -> Iterator[None]:
        self._deadline = deadline = time.monotonic() + self.timeout
        try:
            yield
        except (Refused, Stale):
            self._drop()
            raise
        except (OSError, ValueError) as error:  # of smtplib, and of a name or challenge undecodable
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            self._drop()
            raise kind(
                f"no answer within {self.timeout:g} seconds" if late else words(error)
            ) from error
        finally:
            self._deadline = math.inf

    def _watch(self, smtp: Client, over: threading.Event) -> None:
        # A socket's time-out begins anew with each byte, so a server that sends one now and
        # then could hold us for ever: this thread of each connection ends a step in time.
        while not over.wait(max(0.05, min(self._deadline - time.monotonic(), 0.5))):
            if time.monotonic() >= self._deadline:
                shut(smtp)  # again and again, as during a handshake there is nothing to shut


class Console:
    """Where mail goes while no server is configured: it is printed, and counts as sent."""

    def __init__(self, output: TextIO) -> None:
        self.output = output

    def __str__(self) -> str:
        return "this terminal"

    def connect(self) -> None:
        pass

    def send(self, email: dict[str, Any], now: datetime) -> None:
        try:
            head = f"--- mail to {email['address']}\nSubject: {email['subject']}\n\n"
            encoding = getattr(self.output, "encoding", None) or "utf-8"
            text = f"{head}{email['body']}---".encode(encoding, "backslashreplace")
            print(text.decode(encoding), file=self.output, flush=True)
        except (OSError, ValueError) as error:  # a closed terminal
            raise Disconnected(str(error)) from error

    def close(self) -> None:
        pass

    def cut(self) -> None:
        pass

    def forget(self) -> None:
        pass


def shut(smtp: Client | None) -> None:
    """Whoever waits for the server now is told that the connection is over."""
    sock = smtp and smtp.sock
    if sock:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def words(error: OSError | ValueError) -> str:
    """What the server said, or the system, as one printable line of at most 300 characters."""
    text = str(error) or type(error).__name__
    if isinstance(error, smtplib.SMTPResponseException):
        answer = error.smtp_error
        text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
        text = f"{error.smtp_code} {text}"
    return "".join(char if char.isprintable() else " " for char in text)[:300]


# ---------------------------------------------------------------- delivery


class Mailer:
    """The thread that delivers what is queued in `database` through `server`.

    Of several processes on one database, one delivers; when it ends, another takes over.
    """

    def __init__(self, database: db.Database, server: Smtp | Console, sender: str) -> None:
        self.database, self.server, self.sender = database, server, sender
        self._closed = False
        self._refusals = self._broken = 0
        self._reset()

    def _reset(self) -> None:
        self.delivers = False  # this process, and no other on the database
        self.server.forget()
        self._process: int | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._awake = threading.Event()
        self._stop = threading.Event()

    def start(self) -> None:
        """Run the thread in this process, unless it runs: a thread does not cross a fork."""
        if self._process == os.getpid() or self._closed:
            return
        with self._starting:
            if self._process != os.getpid():
                if self._process is not None:
                    self._reset()
                self._process = os.getpid()
                self._thread = threading.Thread(target=self._run, name="mailer", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Look for due mail now. To be called after the commit that queued it."""
        self._awake.set()

    def close(self) -> None:
        """End the thread within 4 seconds: first politely, then in the middle of a mail."""
        self._closed = True
        self._stop.set()
        self._awake.set()
        if self._thread is not None and self._process == os.getpid():
            self._thread.join(2)
            if self._thread.is_alive():
                self.server.cut()
                self._thread.join(2)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._awake.clear()
            try:
                if not self.delivers and self.database.delivering.acquire(0):
                    self.delivers = True
                    self._forget_the_past()
                if self.delivers:
                    self.deliver()
            except db.Unavailable as error:
                log.warning("Mail waits: %s", error)
            except Exception:
                log.exception("Delivery was interrupted; it goes on.")
            self._awake.wait(POLL_SECONDS)
        if self.delivers:
            self.database.delivering.release()

    def _forget_the_past(self) -> None:
        # Whoever starts may have been given another server or another password.
        with self.database.transaction(write=True) as conn:
            db.set_mail_server(conn, "ok")

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
        with self.database.transaction() as conn:
            state, error, ask_again_at = db.get_mail_server(conn)
            due = db.list_due(conn, BATCH)
        waiting = ask_again_at is not None and conn.now < ask_again_at
        if self._stop.is_set() or not due or (waiting and state == "refusing"):
            return False
        if waiting:  # who is due while the server is known to be down shares that finding
            self._record([(email, Unreachable(error)) for email in due])
            return True
        outcomes: list[Outcome] = []
        try:
            for outcome in self._attempts(due, conn.moment):
                outcomes.append(outcome)
        finally:
            self._record(outcomes)
        return True

    def _attempts(self, due: list[dict[str, Any]], now: datetime) -> Iterator[Outcome]:
        """Send one mail after the other, as long as the server takes any and time lasts."""
        until = time.monotonic() + RECORD_SECONDS
        for position, email in enumerate(due):
            failure = self._attempt(email, now)
            if isinstance(failure, Stale) and not self._stop.is_set():
                failure = self._attempt(email, now)  # it is not the fault of this mail
            if self._stop.is_set() and isinstance(failure, (Disconnected, Unreachable)):
                return  # it was cut by us
            # Of connections lost in a row, one may be the fault of its mail, two are not.
            self._broken = self._broken + 1 if isinstance(failure, Disconnected) else 0
            if self._broken == 2:
                failure = Unreachable(str(failure))
            yield email, failure
            if isinstance(failure, Unreachable):
                yield from ((left, failure) for left in due[position + 1 :])
            stop = self._stop.is_set() or isinstance(failure, (Unreachable, Refused))
            if stop or time.monotonic() > until:
                return

    def _attempt(self, email: dict[str, Any], now: datetime) -> Exception | None:
        """Why the mail did not go out; None if it did."""
        try:
            self.server.connect()
            self.server.send(email, now)
        except (Undeliverable, Postponed, Disconnected, Unreachable, Refused) as failure:
            return failure
        except Exception as defect:  # must cost this mail, not the queue
            log.exception("Mail %s cannot be sent", email["id"])
            return Undeliverable(f"a defect of the tracker: {defect}")
        return None

    def _record(self, outcomes: list[Outcome]) -> None:
        while outcomes:
            try:
                with self.database.transaction(write=True) as conn:
                    for email, failure in outcomes:
                        self._record_mail(conn, email, failure)
                    self._record_server(conn, outcomes[-1][1])
                return
            except db.Unavailable as error:
                # Going on would send again what has been sent: wait for the database.
                log.warning("Outcomes of mail cannot be recorded: %s", error)
                if self._stop.wait(POLL_SECONDS):
                    return

    def _record_mail(
        self, conn: db.Connection, email: dict[str, Any], failure: Exception | None
    ) -> None:
        if failure is None:
            db.record_sent(conn, email["id"], email["address"])
        elif not isinstance(failure, Refused):  # that is not the fault of the mail
            again = db.timestamp(conn.moment + backoff(email["attempts"]))
            over = conn.moment - datetime.fromisoformat(email["queued_at"]) >= GIVE_UP_AFTER
            if final := over or isinstance(failure, Undeliverable):
                log.warning("Mail %s has failed: %s", email["id"], failure)
            db.record_failure(conn, email["id"], str(failure), None if final else again)

    def _record_server(self, conn: db.Connection, failure: Exception | None) -> None:
        state, _, ask_again_at = db.get_mail_server(conn)
        if ask_again_at is not None and conn.now < ask_again_at:
            return  # nobody asked it
        if isinstance(failure, Refused):
            again = db.timestamp(conn.moment + backoff(self._refusals))
            db.set_mail_server(conn, "refusing", str(failure), again)
            self._refusals += 1
            log.warning("Mail waits, %s refuses it: %s", self.server, failure)
        elif isinstance(failure, Unreachable):
            db.set_mail_server(conn, "down", str(failure), db.timestamp(conn.moment + FIRST_RETRY))
            log.warning("Mail waits, %s is down: %s", self.server, failure)
        elif not isinstance(failure, Disconnected) and state != "ok":
            db.set_mail_server(conn, "ok")
            self._refusals = 0
            log.warning("Mail flows again.")


def backoff(attempts: int) -> timedelta:
    """How long to wait after one more failure: 30 s, 60 s ... an hour, and up to 10 % jitter."""
    steps: int = 2 ** min(attempts, 7)
    return min(FIRST_RETRY * steps, LONGEST_RETRY) * random.uniform(1.0, 1.1)


def send_test_mail(mailer: Mailer, address: str, patience: float) -> tuple[bool, str]:
    """Send a mail to the address through the queue; (whether it was taken, what was said).

    Waits up to `patience` seconds for whoever delivers, which may be another process.
    """
    with mailer.database.transaction(write=True) as conn:
        (email_id,) = db.queue_emails(
            conn,
            [
                {
                    "ticket_id": None,
                    "user_id": None,
                    "address": address,
                    "subject": "Test mail of the ticket tracker",
                    "body": "This mail went through the queue of the ticket tracker.\n",
                    "message_id": new_message_id(mailer.sender),
                }
            ],
        )
        db.set_mail_server(conn, "ok")  # that is: ask it now
    mailer.start()
    mailer.wake()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.05)
        with mailer.database.transaction() as conn:
            email = json.loads(db.get_email(conn, email_id))
            state, error, _ = db.get_mail_server(conn)
        if email["state"] == "sent":
            return True, "sent" if mailer.delivers else "sent by the tracker that is running"
        if email["state"] == "failed":
            return False, email["error"]
        if email["error"] or state == "refusing":
            return False, f"{email['error'] or error}; it stays queued and is tried again"
    return False, f"no answer within {patience:g} seconds; it stays queued"
