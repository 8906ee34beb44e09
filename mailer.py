"""The mail: who gets it, what it says, and how it comes through.

Mail is queued in the transaction of the change it tells of; a thread delivers it later,
so that no request ever waits for a mail server. Nothing here knows about HTTP, nor how
SMTP is spoken.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or not __package__:
    import db
    from plumbing import Unavailable
    from plumbing.message import Message, Outlet, named
    from plumbing.refusal import Failure
    from plumbing.worker import JITTER, Worker, backoff, later
else:
    from . import db
    from .plumbing import Unavailable
    from .plumbing.message import Message, Outlet, named
    from .plumbing.refusal import Failure
    from .plumbing.worker import JITTER, Worker, backoff, later

log = logging.getLogger("tracker.mail")

FIRST_RETRY, LONGEST_RETRY = 30.0, 3600.0  # seconds
MOST_ATTEMPTS = 125  # about five days
MOST_UNCERTAIN = 5  # attempts after which the server may have the mail
BATCH = 100  # messages that are read at once
RECORD_SECONDS = 0.1  # so long, and for one mail more, an outcome may stay unrecorded
POLL_SECONDS = 1.0  # how soon mail is seen that another process queued

Sender = tuple[str, str]  # the name, which may be empty, and the address that mail comes from


# ---------------------------------------------------------------- wording


def queue_ticket_mail(conn: db.Connection, change: db.Change, url: str = "") -> None:
    """Queue one message to each assignee of the ticket, and to each whom the change removed.

    `url` is where people find the tracker.
    """
    ticket, changes = change.ticket, change.changes or {}
    people = {user["id"] for user in ticket["assignees"]}
    people |= {user["id"] for user in changes.get("assignees", {}).get("from", [])}
    if not people:
        return
    names = {}  # people know projects by their names
    for project_id in {ticket["project_id"], *changes.get("project_id", {}).values()}:
        names[project_id] = json.loads(db.get(conn, "project", project_id))["name"]
    by = change.by and (db.find_user_name(conn, change.by) or change.by)
    subject = f"[Ticket #{ticket['id']}] {ticket['title']}"
    body = describe(change, names, by, url)
    db.queue_emails(conn, change.history_id, subject, body, sorted(people))


def describe(change: db.Change, projects: dict[int, str], by: str | None, url: str) -> str:
    """The body of the mail about a ticket that is new or changed; `projects` names those in it."""
    ticket, new = change.ticket, change.changes is None
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
        lines += [f"What changed, by {by}:" if by else "What changed:"]
        lines += [f"  {line}" for line in describe_changes(change.changes, projects)] + [""]
    elif by:
        lines += [f"{'Created' if new else 'Commented'} by {by}.", ""]
    if (new or "description" in (change.changes or {})) and ticket["description"]:
        lines += ["Description:", ticket["description"].rstrip(), ""]
    if change.comment:
        lines += ["Comment:", change.comment, ""]
    lines += ["-- ", f"Project: {projects[ticket['project_id']]}"]
    if url:
        lines += [f"{url.rstrip('/')}/#/tickets/{ticket['id']}"]
    return "\n".join(lines) + "\n"


def describe_changes(changes: db.Changes, projects: dict[int, str]) -> Iterator[str]:
    """A line for each field: 'Status: "Open" -> "Closed"'."""
    for field, change in changes.items():
        before, after = change["from"], change["to"]
        if field == "assignees":
            added = [user["name"] for user in after if user not in before]
            removed = [user["name"] for user in before if user not in after]
            parts = (("added", added), ("removed", removed))
            words = "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        elif field == "description":  # the new one follows
            words = "changed" if before and after else "added" if after else "removed"
        else:
            if field == "project_id":
                before, after = projects[before], projects[after]
            elif field == "status":
                before, after = before.capitalize(), after.capitalize()
            words = f'"{before}" -> "{after}"'
        yield f"{field.removesuffix('_id').capitalize()}: {words}"


def compose(email: dict[str, Any], sender: Sender) -> Message:
    """The mail as it goes out; `email` is as db.get_outgoing returns it."""
    # Of the domain that first delivered, so that another sender changes no id.
    token, domain = email["token"], email["domain"]
    headers = {
        "Date": format_datetime(datetime.fromisoformat(email["changed_at"])),
        "Message-ID": email["message_id"] or f"<{email['id']}.{token}@{domain}>",
        "Auto-Submitted": "auto-generated",
        "X-Auto-Response-Suppress": "All",
    }
    if email["ticket_id"] is not None:
        # All mail of a ticket refers to one ancestor that was never sent: that is a thread.
        created = re.sub(r"\D", "", email["ticket_created_at"])
        ancestor = f"<ticket-{email['ticket_id']}.{created}@{domain}>"
        project = f"project-{email['project_id']}.{token}.{domain}"
        headers |= {"References": ancestor, "In-Reply-To": ancestor}
        headers["List-Id"] = named(email["project"], project, header="List-Id")
    return Message(sender, email["address"], email["subject"], headers, email["body"])


# ---------------------------------------------------------------- delivery


class Outcome(NamedTuple):
    """A mail that was tried, as it was queued then, and why it did not go out, if so."""

    due: db.Due
    address: str | None
    failure: Failure | None


class Mailer:
    """Delivers what is queued in `database` through `server`, in a thread.

    Of several processes on one database, one delivers; when it ends, another takes over.
    What becomes of a mail depends on whom the server's refusal is about: see _record_mail.
    """

    def __init__(self, database: db.Database, server: Outlet, sender: Sender) -> None:
        self.database, self.server, self.sender = database, server, sender
        self.worker = Worker("mailer", self.work, server.interrupt, POLL_SECONDS)
        self.delivers = False  # this process, and no other on the database
        self.trouble: str | None = None  # what keeps mail waiting and is not in the database
        self.monotonic: Callable[[], float] = time.monotonic  # no clock that somebody may set
        self._pause: Failure | None = None  # why the server is not asked until
        self._ask_again = 0.0  # by the monotonic clock
        self._refusals = self._broken = 0  # in a row

    def work(self) -> None:
        """Deliver what is due, if nobody else does. Raises nothing: trouble is told."""
        try:
            if self.database.may_deliver():
                if not self.delivers:
                    with self.database.write() as conn:
                        db.begin_delivery(conn, self.sender[1].rpartition("@")[2] or None)
                    self._pause, self.delivers = None, True
                self.deliver()
            else:
                self.delivers = False
            self._tell(None)
        except Unavailable as error:
            self._tell(str(error))
        except Exception as defect:
            self._tell(f"a defect of the tracker: {defect}", defect)

    def close(self) -> None:
        """Stop delivering, within 4 seconds, and let another process do it."""
        self.worker.close()
        self.delivers = False
        self.database.stop_delivering()

    def _tell(self, trouble: str | None, defect: Exception | None = None) -> None:
        """Log what keeps mail waiting, once, and have /health show it."""
        if trouble and trouble != self.trouble:
            log.warning("Mail waits: %s", trouble, exc_info=defect)
        self.trouble = trouble

    def deliver(self) -> None:
        """Send what is due until nothing is, over one connection as long as it lasts."""
        try:
            while self.database.may_deliver() and self._deliver_some():
                pass
        finally:
            self.server.close()

    def _deliver_some(self) -> bool:
        """Send for RECORD_SECONDS, and one mail more; whether there may be something left.

        Several at once, as each commit waits for the disk; but not many, as what is not
        recorded goes out twice after a crash, and an address may be corrected meanwhile.
        """
        longest = later(self.database.now(), LONGEST_RETRY * JITTER)
        with self.database.read() as conn:
            if db.get_mail_error(conn) is None:
                self._pause, self._refusals = None, 0  # it was told to ask the server now
            due = db.list_due(conn, longest, BATCH)
        if self.worker.stopping or not due:
            return False
        if self._pause and self.monotonic() < self._ask_again:
            if self._pause.about == "us":
                return False
            # Who is due while the server is known to be down shares that finding.
            self._record([Outcome(each, None, self._pause) for each in due])
            return True
        outcomes: list[Outcome] = []
        try:
            outcomes.extend(self._attempts(due))  # also those before an error
        finally:
            self._record(outcomes)
        return True

    def _attempts(self, due: list[db.Due]) -> Iterator[Outcome]:
        """Send one mail after the other, as long as the server takes any and time lasts."""
        until = time.monotonic() + RECORD_SECONDS
        emails: dict[int, dict[str, Any]] = {}  # read at once, or singly where a row is damaged
        with suppress(Unavailable, db.NotFound), self.database.read() as conn:
            emails = {each.id: db.get_outgoing(conn, each.id) for each in due}
        for position, each in enumerate(due):
            _, address, failure = self._attempt(each, emails.get(each.id))
            about = failure.about if failure else "nothing"
            if self.worker.stopping and about in ("connection", "server", "uncertain"):
                return  # it was cut by us
            # Of connections lost in a row, one may be the fault of its mail, two are not.
            self._broken = self._broken + 1 if about == "connection" else 0
            if self._broken == 2:
                failure, about, self._broken = Failure("server", str(failure)), "server", 0
            yield Outcome(each, address, failure)
            if about == "server":
                yield from (Outcome(left, None, failure) for left in due[position + 1 :])
            if self.worker.stopping or about in ("server", "us") or time.monotonic() > until:
                return

    def _attempt(self, due: db.Due, email: dict[str, Any] | None) -> Outcome:
        """Send the mail, which is read now where it is None."""
        address = None
        try:
            if email is None:
                with self.database.read() as conn:
                    email = db.get_outgoing(conn, due.id)
            address = email["address"]
            self.server.send(compose(email, self.sender))
        except Failure as failure:
            return Outcome(due, address, failure)
        except (Unavailable, db.NotFound) as error:
            if isinstance(error, Unavailable) and not error.damaged:
                raise  # that is not the fault of the mail
            if isinstance(error, Unavailable):  # else it is gone, most likely with its user
                log.error("Mail %s cannot be read: %s", due.id, error)
            return Outcome(due, address, Failure("message", f"it cannot be read: {error}"))
        except (OSError, MemoryError) as error:  # trouble of this machine
            return Outcome(due, address, Failure("server", str(error) or type(error).__name__))
        except Exception as defect:  # must cost this mail, not the queue
            log.exception("Mail %s cannot be sent", due.id)
            return Outcome(due, address, Failure("message", f"a defect of the tracker: {defect}"))
        return Outcome(due, address, None)

    def _record(self, outcomes: list[Outcome]) -> None:
        """Write down what became of mail, each row by itself if one of them is damaged."""
        asked = self.monotonic()
        while outcomes:
            try:
                with self.database.write() as conn:
                    for outcome in outcomes:
                        self._record_mail(conn, outcome)
                    self._record_server(conn, outcomes[-1].failure)
                self._learn(outcomes[-1].failure, asked)
                return
            except Unavailable as error:
                fault = error
            if fault.damaged and len(outcomes) > 1:
                for outcome in outcomes:
                    self._record([outcome])
                return
            if fault.damaged:  # one bad row must stop nothing, nor be sent again
                log.error("Mail %s cannot be recorded: %s", outcomes[0].due.id, fault)
                with suppress(Unavailable), self.database.write() as conn:
                    db.give_up(conn, outcomes[0].due.id, f"it cannot be recorded: {fault}")
                return
            self._tell(str(fault))  # to go on would send again what has been sent
            if self.worker.wait(POLL_SECONDS):
                return

    def _record_mail(self, conn: db.Connection, outcome: Outcome) -> None:
        """What the outcome means for the mail.

        About us: nothing, it waits. About the recipient or the message: it is failed. All else
        is tried again, twice as long later each time, but not without end.
        """
        due, address, failure = outcome
        if failure is None:
            db.record_sent(conn, due, address or "")
        elif failure.about != "us":
            due = due._replace(uncertain=due.uncertain + (failure.about == "uncertain"))
            words, final = str(failure), failure.about in ("recipient", "message")
            final = final or due.attempts + 1 >= MOST_ATTEMPTS
            if failure.about == "uncertain" and due.uncertain >= MOST_UNCERTAIN:
                final, words = True, f"given up, as the server may have it already: {words}"[:300]
            wait = backoff(due.attempts, FIRST_RETRY, LONGEST_RETRY)
            again = None if final else later(conn.now, wait)
            if db.record_failure(conn, due, address, words, again) and final:
                log.warning("Mail %s has failed: %s", due.id, words)

    def _record_server(self, conn: db.Connection, failure: Failure | None) -> None:
        """What the last outcome says of the server, for /health."""
        about = failure.about if failure else "nothing"
        if about in ("us", "server"):
            db.set_mail_error(conn, str(failure))
        elif about not in ("connection", "uncertain") and db.get_mail_error(conn) is not None:
            db.set_mail_error(conn, None)

    def _learn(self, failure: Failure | None, asked: float) -> None:
        """Say when the server is asked again: not after the mail that failed at `asked` is due."""
        about = failure.about if failure else "nothing"
        if about in ("us", "server") and failure is not self._pause:
            if str(failure) != str(self._pause):
                log.warning("Mail waits, %s: %s", self.server, failure)
            wait = backoff(self._refusals, FIRST_RETRY, LONGEST_RETRY) / JITTER
            self._refusals = self._refusals + 1 if about == "us" else 0
            self._pause, self._ask_again = failure, asked + wait
        elif self._pause and about not in ("us", "server", "connection", "uncertain"):
            self._pause, self._refusals = None, 0
            log.warning("Mail flows again.")


def send_test_mail(mailer: Mailer, address: str, patience: float) -> tuple[bool, str]:
    """Send a mail to the address through the queue; (whether it was taken, what was said).

    Waits up to `patience` seconds for whoever delivers, which may be another process.
    """
    subject = "Test mail of the ticket tracker"
    body = "This mail went through the queue of the ticket tracker.\n"
    with mailer.database.write() as conn:
        email_id = db.queue_test_mail(conn, address, subject, body)
        db.set_mail_error(conn, None)  # that is: ask the server now
    mailer.worker.start()
    mailer.worker.wake()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(0.05)
        with mailer.database.read() as conn:
            email = json.loads(db.get(conn, "email", email_id))
            error = email["error"] or db.get_mail_error(conn)
        if email["state"] == "sent":
            return True, "sent" if mailer.delivers else "sent by the tracker that is running"
        if email["state"] == "failed":
            return False, email["error"]
        if error:
            return False, f"{error}; it stays queued and is tried again"
    return False, f"no answer within {patience:g} seconds; it stays queued"
