"""A plain model of the contract, and random sequences of calls on which both must agree.

The first half is an executable specification: users, projects, tickets, their history, and
who must be mailed what, in dicts. The second half plays the same calls on the tracker and
on the model, and compares all that can be read after each. `make fuzz` does so at length.
"""

import json
import os
import tempfile
import unicodedata
from dataclasses import dataclass, field
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from functools import partial
from itertools import cycle
from pathlib import Path
from urllib.parse import urlencode

import pytest
from conftest import Api, Clock
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

import db
import mailer
import tracker
from plumbing.refusal import Failure

# ---------------------------------------------------------------- the contract, as a model

STATUSES = ("open", "in progress", "closed")
SENDER = "tracker@example.com"
ANYTHING = object()  # what somebody knows of a resource who sends no If-Match


class Refused(Exception):
    """The call must be answered with this status, and with these members in the answer."""

    def __init__(self, status, **facts):
        super().__init__(status)
        self.status, self.facts = status, facts


def alike(text):
    """What two texts have in common that differ only in case, or in how an accent is typed."""
    return unicodedata.normalize("NFC", text.casefold())


def same(one, other):
    """Whether two values of a field read the same."""
    if isinstance(one, str) or isinstance(other, str):
        one, other = (unicodedata.normalize("NFC", text or "") for text in (one, other))
    return one == other


@dataclass
class Ticket:
    title: str
    description: str | None
    project_id: int
    status: str
    assignees: set
    created_at: str
    updated_at: str | None = None
    history: list = field(default_factory=list)


@dataclass
class Mail:
    ticket_id: int
    user_id: int
    subject: str
    head: list  # the first six lines of the body
    created_at: str
    next_attempt_at: str | None
    id: int | None = None
    state: str = "queued"
    attempts: int = 0
    error: str | None = None
    sent_to: str | None = None
    sent_at: str | None = None


class Model:
    """What the tracker must know after a sequence of calls. Each call is done or Refused.

    Ids are the one thing it is told: it demands only that none is used twice.
    """

    def __init__(self, clock):
        self.clock = clock
        self.users, self.projects, self.tickets, self.mails = {}, {}, {}, {}
        self.used_ids = set()
        self.told = {}  # the mail that must have been queued since, by ticket and user
        self.delivered = []  # (address, subject, head)
        self.down_until = None  # where the mail server is known to be out of reach

    # How things look

    def user(self, id):
        return {"id": id, **get(self.users, id)}

    def project(self, id):
        counts = dict.fromkeys(STATUSES, 0)
        for ticket in self.tickets.values():
            counts[ticket.status] += ticket.project_id == id
        return {"id": id, **get(self.projects, id), "tickets": counts}

    def ticket(self, id):
        ticket = get(self.tickets, id)
        return {
            "id": id,
            "title": ticket.title,
            "description": ticket.description,
            "project_id": ticket.project_id,
            "status": ticket.status,
            "assignees": [self.user(user_id) for user_id in sorted(ticket.assignees)],
            "created_at": ticket.created_at,
            "updated_at": ticket.updated_at,
        }

    def mail(self, id):
        mail = get(self.mails, id)
        return {
            "id": id,
            "ticket_id": mail.ticket_id,
            "user_id": mail.user_id,
            "to": mail.sent_to or self.users[mail.user_id]["email"],
            "subject": mail.subject,
            "state": mail.state,
            "attempts": mail.attempts,
            "error": mail.error,
            "created_at": mail.created_at,
            "next_attempt_at": mail.next_attempt_at,
            "sent_at": mail.sent_at,
        }

    def health(self):
        queued = [mail for _, mail in sorted(self.mails.items()) if mail.state == "queued"]
        return {
            "status": "ok",
            "mail": {
                "queued": len(queued),
                "failed": sum(mail.state == "failed" for mail in self.mails.values()),
                "oldest_queued_at": queued[0].created_at if queued else None,
                "error": self.down_until and PostOffice.CLOSED,
            },
        }

    def list_tickets(self, project_id=None, assignee_id=None, status=(), text="", sort="-created"):
        """The ids of the tickets that meet all filters, in order."""
        found = [
            id
            for id, ticket in self.tickets.items()
            if project_id in (None, ticket.project_id)
            and (assignee_id is None or assignee_id in (ticket.assignees or {"none"}))
            and (not status or ticket.status in status)
            and any(
                alike(text.strip()) in alike(place)
                for place in (ticket.title, ticket.description or "")
            )
        ]

        def position(id):
            ticket = self.tickets[id]
            touched_at = ticket.updated_at or ticket.created_at
            return (touched_at, id) if sort.endswith("updated") else id

        return sorted(found, key=position, reverse=sort.startswith("-"))

    # Users and projects

    def create_user(self, id, fields):
        fields = trimmed(fields)
        self._must_be_free(self.users, "email", fields)
        self._use("user", id)
        self.users[id] = fields

    def update_user(self, id, fields, known):
        fields = trimmed(fields)
        unchanged_since(known, self.user(id))
        self._must_be_free(self.users, "email", fields, id)
        self.users[id] = fields

    def delete_user(self, id, known):
        """Each of their tickets counts as changed; what was not sent to them is dropped."""
        unchanged_since(known, self.user(id))
        for ticket_id, ticket in self.tickets.items():
            if id in ticket.assignees:
                self._change(ticket_id, assignees=ticket.assignees - {id})
        del self.users[id]
        for mails in (self.mails, self.told):
            for key, mail in list(mails.items()):
                if mail.user_id == id and mail.state != "sent":
                    del mails[key]

    def create_project(self, id, fields):
        fields = trimmed(fields)
        self._must_be_free(self.projects, "name", fields)
        self._use("project", id)
        self.projects[id] = fields

    def update_project(self, id, fields, known):
        fields = trimmed(fields)
        unchanged_since(known, self.project(id))
        self._must_be_free(self.projects, "name", fields, id)
        self.projects[id] = fields

    def delete_project(self, id, known):
        project = self.project(id)
        unchanged_since(known, project)
        if any(project["tickets"].values()):
            raise Refused(409, tickets=project["tickets"])
        del self.projects[id]

    def _must_be_free(self, things, name, fields, id=None):
        for other, thing in things.items():
            if other != id and alike(thing[name]) == alike(fields[name]):
                raise Refused(409)

    def _use(self, kind, id):
        assert (kind, id) not in self.used_ids, f"the id of a {kind} is used twice"
        self.used_ids.add((kind, id))

    # Tickets

    def create_ticket(self, id, fields):
        self._must_exist(fields)
        fields = {"description": None, "assignees": set(), **trimmed(fields)}
        self._use("ticket", id)
        self.tickets[id] = Ticket(**fields, created_at=self.now)
        self._tell(id, "created")

    def update_ticket(self, id, fields, known):
        unchanged_since(known, self.ticket(id))
        self._must_exist(fields)
        fields = trimmed(fields)
        self._change(id, fields.pop("comment", None) or None, **fields)

    def assign(self, id, user_id, known):
        ticket = self.ticket(id)
        self.user(user_id)
        unchanged_since(known, ticket)
        self._change(id, assignees=self.tickets[id].assignees | {user_id})

    def unassign(self, id, user_id, known):
        ticket = self.ticket(id)
        if user_id not in self.tickets[id].assignees:
            raise Refused(404)
        unchanged_since(known, ticket)
        self._change(id, assignees=self.tickets[id].assignees - {user_id})

    def _must_exist(self, fields):
        """All that is wrong is told at once, and where."""
        wrong = {
            f"#/assignees/{place}"
            for place, user_id in enumerate(fields.get("assignees", []))
            if user_id not in self.users
        }
        if "project_id" in fields and fields["project_id"] not in self.projects:
            wrong.add("#/project_id")
        if wrong:
            raise Refused(422, pointers=wrong)

    def _change(self, id, comment=None, **fields):
        """What changes nothing leaves no trace; any other change is dated, kept and mailed.

        Texts are compared as they read. No change is before the one before, whatever the clock.
        """
        ticket = self.tickets[id]
        before = {name: value for name, value in vars(ticket).items() if name in fields}
        fields = {name: value for name, value in fields.items() if not same(before[name], value)}
        if not fields and comment is None:
            return
        people_before, assignees_before = self._people(ticket), ticket.assignees
        moment = max(self.now, ticket.updated_at or ticket.created_at)
        vars(ticket).update(fields, updated_at=moment)
        changes = {name: {"from": before[name], "to": value} for name, value in fields.items()}
        if "assignees" in changes:
            changes["assignees"] = {"from": people_before, "to": self._people(ticket)}
        ticket.history.append(
            {
                "ticket_id": id,
                "changed_at": moment,
                "by": None,
                "comment": comment,
                "changes": changes,
            }
        )
        self._tell(id, "updated", assignees_before - ticket.assignees)

    def _people(self, ticket):
        return [{"id": id, "name": self.users[id]["name"]} for id in sorted(ticket.assignees)]

    # Mail

    def _tell(self, id, event, removed=frozenset()):
        """A message to each assignee, and to each whom the change removed."""
        ticket = self.tickets[id]
        names = ", ".join(person["name"] for person in self._people(ticket))
        subject = f"[Ticket #{id}] {ticket.title}"
        head = [
            f"Ticket #{id} {event}:",
            f'Title: "{ticket.title}"',
            f'Status: "{ticket.status.capitalize()}"',
            "",
            f"Current assignees: {names or 'none'}.",
            "",
        ]
        for user_id in ticket.assignees | removed:
            created_at = ticket.updated_at or ticket.created_at
            self.told[id, user_id] = Mail(id, user_id, subject, head, created_at, self.now)

    def queue(self, id, mail):
        self._use("mail", id)
        self.mails[id], mail.id = mail, id

    def retry(self, id):
        mail = get(self.mails, id)
        if mail.state == "sent":
            raise Refused(409)
        mail.state, mail.attempts, mail.error = "queued", 0, None
        mail.next_attempt_at = self.now
        self.down_until = None

    def retry_all(self):
        failed = [id for id, mail in self.mails.items() if mail.state == "failed"]
        for id in failed:
            self.retry(id)
        self.down_until = None
        return len(failed)

    def deliver(self, is_open):
        """What is due is tried. Returns what is to be tried again.

        A server that could not be reached is left alone for 30 s; what is due meanwhile
        shares that failure. Each mail waits 30 s, then twice as long, up to an hour. A mailbox
        that does not exist fails at once.
        """
        due = [
            mail
            for mail in self.mails.values()
            if mail.state == "queued"
            # What lies beyond the longest wait was written by a clock that was wrong.
            and not self.now < mail.next_attempt_at <= self.later(3600 * 1.1)
        ]
        if due and (self.down_until is None or self.down_until <= self.now):
            self.down_until = None if is_open else self.later(30)
        for mail in sorted(due, key=lambda mail: (mail.next_attempt_at, mail.id)):
            address = self.users[mail.user_id]["email"]
            mail.error = PostOffice.CLOSED if self.down_until else PostOffice.refusal(address)
            mail.attempts += 1
            mail.next_attempt_at = None
            if mail.error is None:
                mail.state, mail.sent_to, mail.sent_at = "sent", address, self.now
                self.delivered.append((address, mail.subject, mail.head))
            elif mail.error == PostOffice.NEVER:
                mail.state = "failed"
        return [mail for mail in due if mail.state == "queued"]

    @property
    def now(self):
        return self.later(0)

    def later(self, seconds):
        moment = self.clock() + timedelta(seconds=seconds)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def get(things, id):
    if id not in things:
        raise Refused(404)
    return things[id]


def unchanged_since(known, document):
    """If-Match: whoever writes must know what is there now, unless they do not care."""
    if known is not ANYTHING and known != document:
        raise Refused(412)


def trimmed(fields):
    """The fields as they are kept: without white space around a text, each assignee once."""
    kept = {
        name: value.strip() if isinstance(value, str) else value for name, value in fields.items()
    }
    return kept | ({"assignees": set(kept["assignees"])} if "assignees" in kept else {})


class PostOffice:
    """Where the tracker brings its mail: open or closed, and particular about addresses."""

    CLOSED, NEVER, LATER = "nobody answers", "no such mailbox", "the mailbox is full"

    def __init__(self):
        self.is_open = True
        self.received = []

    @classmethod
    def refusal(cls, address):
        domain = address.rpartition("@")[2].lower()
        return {"gone.example": cls.NEVER, "full.example": cls.LATER}.get(domain)

    def send(self, message):
        if not self.is_open:
            raise Failure("server", self.CLOSED)
        match self.refusal(message.recipient):
            case self.NEVER:
                raise Failure("recipient", self.NEVER)
            case self.LATER:
                raise Failure("later", self.LATER)
        parsed = message_from_bytes(message.encode(), policy=default)
        head = parsed.get_content().replace("\r\n", "\n").split("\n")[:6]
        self.received.append((parsed["To"], parsed["Subject"], head))

    def close(self):
        pass

    interrupt = close


# ---------------------------------------------------------------- what the calls are made of


def decomposed(text):
    """The same letters, each accent a character of its own."""
    return unicodedata.normalize("NFD", text)


SPELLINGS = st.sampled_from((str, str.upper, str.lower, str.swapcase, decomposed))


def one_of(*texts):
    """One of the texts, in one spelling or another."""
    return st.builds(lambda spell, text: spell(text), SPELLINGS, st.sampled_from(texts))


# What has ever confused a search: case beyond ASCII, letters that are one character or
# two, signs that mean something to SQL, to a full-text index, to JSON or to mail.
WORDS = one_of(
    *["database", "x", "Straße", "İstanbul", "Σίσυφος", "École", "ŉ", "ᾳ", "ﬁx", "K½", "漢字"],
    *["👩\u200d💻", '"*', "100%_", "a\\b", "NEAR(", "OR", "=?utf-8?q?x?="],
)
MARGIN = st.sampled_from(["", "", " ", "\t\n", "\u3000"])  # is cut off
NAME = st.tuples(MARGIN, one_of("Max", "Dave", "Zoë", "Straße", "Σίσυφος", "漢字😀"), MARGIN)
DOMAIN = one_of("example.com", "gone.example", "full.example")
EMAIL = st.tuples(one_of("max", "dave", "o'neil"), st.just("@"), DOMAIN)
PROJECT = {"name": NAME.map("".join)}
USER = PROJECT | {"email": EMAIL.map("".join)}
STATUS = st.sampled_from(STATUSES)
SORTS = ("-created", "updated", "created", "-updated")
SORT = st.sampled_from(SORTS)
# Asked in turn, one after each call.
QUERIES = [
    {"sort": sort} | query
    for query in (
        {},
        {"assignee_id": 1},
        {"assignee_id": "none"},
        {"text": "E\u0301c"},
        {"project_id": 1, "status": "open"},
    )
    for sort in SORTS
]
CAST = {"Max": "max@example.com", "Dave": "dave@gone.example", "Yaris": "yaris@full.example"}
# All ids that there ever were, also those of what is deleted.
USERS, PROJECTS, TICKETS = Bundle("users"), Bundle("projects"), Bundle("tickets")
REQUIRED = {
    "title": st.lists(WORDS, min_size=1, max_size=3).map(" ".join),
    "project_id": PROJECTS,
    "status": STATUS,
}
OPTIONAL = {
    "description": st.none() | st.lists(WORDS, max_size=4).map("\n".join),
    "assignees": st.lists(USERS, max_size=3),
}
COMMENT = {"comment": st.none() | st.sampled_from(["", " ", "Because.", "It is\nurgent: 漢字"])}
CAREFUL = st.booleans()  # whether to send If-Match
STEP = st.sampled_from(
    [
        timedelta(milliseconds=1),
        timedelta(seconds=29),
        timedelta(seconds=34),  # beyond all chance in a wait of 30 s
        timedelta(hours=2),
        timedelta(days=6),
        timedelta(hours=-1),  # somebody has set the clock
    ]
)


def body(required, **optional):
    return st.fixed_dictionaries(required, optional=optional)


# ---------------------------------------------------------------- the two side by side


class Calls(RuleBasedStateMachine):
    """Random calls to a tracker of its own, and to the model."""

    make_database = None  # returns where a new database is, and what removes it

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.model = Model(self.clock)
        self.seen = {}  # path: (ETag, what the resource was like)
        self.queries, self.starts = cycle(QUERIES), cycle(range(7))
        self.ticks = cycle([0, 1])  # two calls may fall into one millisecond
        location, self.remove_database = self.make_database()
        # Mail is delivered when a rule says so, by a mailer of ours on the same database: of
        # several, one delivers, and ours comes first.
        self.post_office = PostOffice()
        base = db.open_database(location, self.clock)
        self.mailer = mailer.Mailer(base, self.post_office, ("", SENDER))
        self.mailer.monotonic = self.clock.monotonic
        assert self.mailer.database.may_deliver()
        with self.mailer.database.write() as conn:
            db.begin_delivery(conn, "example.com")
        self.app = tracker.create_app(location, smtp="", clock=self.clock, allowed_hosts=[])
        self.api = Api(self.app)
        self.created = []  # (when, path, body, key, answer)
        for name, email in CAST.items():
            self.create_user({"name": name, "email": email})
        for name in ("Website", "Intranet"):
            self.create_project({"name": name})
        self.create_ticket(
            {"title": "Fix it", "project_id": 1, "status": "open", "assignees": [1, 2, 3]}
        )

    def teardown(self):
        self.app.close()
        self.mailer.database.close()
        self.remove_database()

    def call(self, method, path, body=None, careful=False, **headers):
        """(the answer, what the caller knew of the resource)"""
        self.clock.advance(milliseconds=next(self.ticks))
        more, known = {"headers": headers}, ANYTHING
        resource = path.partition("/assignees")[0]
        if careful and resource in self.seen:
            more["headers"]["If-Match"], known = self.seen[resource]
        if body is not None:
            more |= {"body": json.dumps(body).encode(), "content_type": "application/json"}
        return self.api.request(path, method=method, status="*", **more), known

    def agree(self, answer, status, act, *arguments, shows=None):
        """Act in the model, too. Whether it was done; the answer must be what the model shows."""
        try:
            act(*arguments)
            refused = None
        except Refused as refusal:
            refused = refusal
        assert answer.status_code == (refused.status if refused else status), answer
        if refused:
            problem = dict(answer.json)
            problem["pointers"] = {error["pointer"] for error in problem.get("errors", [])}
            assert refused.facts.items() <= problem.items()
        elif shows:
            assert answer.json == shows(arguments[0])
        return not refused

    def create(self, path, body, act, shows):
        key = {"Idempotency-Key": f"key {len(self.created)}"}
        answer, _ = self.call("POST", path, body, **key)
        id = answer.json.get("id")
        if not self.agree(answer, 201, act, id, body, shows=shows):
            return multiple()
        assert answer.headers["Location"] == f"{path}/{id}"
        self.created.append((self.clock(), path, body, key, answer))
        return id

    @rule(which=st.integers(1, 9), spoil=st.booleans())
    def repeat_a_creation(self, which, spoil):
        made_at, path, body, key, first = self.created[-which % len(self.created)]
        if self.clock() - made_at < timedelta(days=1):
            answer, _ = self.call("POST", path, body | {"more": 1} if spoil else body, **key)
            assert (answer.status_code, answer.body) == (
                (422, answer.body) if spoil else (201, first.body)
            )

    @rule(email=EMAIL.map("".join))
    def find_a_user_by_address(self, email):
        found = self.all("/users", email=email)
        ids = [
            id for id in self.model.users if alike(self.model.users[id]["email"]) == alike(email)
        ]
        assert found == [self.model.user(id) for id in ids]

    # Users and projects

    @initialize(target=USERS)
    def the_cast(self):
        return multiple(1, 2, 3)

    @initialize(target=PROJECTS)
    def the_projects(self):
        return multiple(1, 2)

    @precondition(lambda self: len(self.model.users) < 6)  # few, who meet often
    @rule(target=USERS, body=body(USER))
    def create_user(self, body):
        return self.create("/users", body, self.model.create_user, self.model.user)

    @rule(id=USERS, changes=body({}, **USER), careful=CAREFUL)
    def update_user(self, id, changes, careful):
        body = {"name": "Nobody", "email": "x@example.com"} | self.model.users.get(id, {}) | changes
        answer, known = self.call("PUT", f"/users/{id}", body, careful)
        self.agree(answer, 200, self.model.update_user, id, body, known, shows=self.model.user)

    @rule(id=USERS, careful=CAREFUL)
    def delete_user(self, id, careful):
        answer, known = self.call("DELETE", f"/users/{id}", None, careful)
        self.agree(answer, 204, self.model.delete_user, id, known)

    @precondition(lambda self: len(self.model.projects) < 4)
    @rule(target=PROJECTS, body=body(PROJECT))
    def create_project(self, body):
        return self.create("/projects", body, self.model.create_project, self.model.project)

    @rule(id=PROJECTS, body=body(PROJECT), careful=CAREFUL)
    def update_project(self, id, body, careful):
        answer, known = self.call("PUT", f"/projects/{id}", body, careful)
        act = self.model.update_project
        self.agree(answer, 200, act, id, body, known, shows=self.model.project)

    @rule(id=PROJECTS, careful=CAREFUL)
    def delete_project(self, id, careful):
        answer, known = self.call("DELETE", f"/projects/{id}", None, careful)
        self.agree(answer, 204, self.model.delete_project, id, known)

    @rule(kind=st.sampled_from(["user", "project"]), limit=st.integers(1, 4))
    def list_users_or_projects(self, kind, limit):
        ids = sorted(getattr(self.model, f"{kind}s"))
        found = self.all(f"/{kind}s", limit=limit)
        assert found == [getattr(self.model, kind)(id) for id in ids]

    # Tickets

    @initialize(target=TICKETS)
    def the_first_ticket(self):
        return 1

    @rule(
        target=TICKETS,
        body=body(REQUIRED, **OPTIONAL),
    )
    def create_ticket(self, body):
        return self.create("/tickets", body, self.model.create_ticket, self.model.ticket)

    @rule(id=TICKETS, body=body(REQUIRED | OPTIONAL, **COMMENT), careful=CAREFUL)
    def put_ticket(self, id, body, careful):
        answer, known = self.call("PUT", f"/tickets/{id}", body, careful)
        self.agree(answer, 200, self.model.update_ticket, id, body, known, shows=self.model.ticket)

    @rule(id=TICKETS, body=body({}, **REQUIRED, **OPTIONAL, **COMMENT), careful=CAREFUL)
    def patch_ticket(self, id, body, careful):
        answer, known = self.call("PATCH", f"/tickets/{id}", body, careful)
        self.agree(answer, 200, self.model.update_ticket, id, body, known, shows=self.model.ticket)

    @rule(id=TICKETS, method=st.sampled_from(["PUT", "PATCH"]))
    def send_back_what_was_read(self, id, method):
        answer, _ = self.call(method, f"/tickets/{id}", self.api.get(f"/tickets/{id}").json)
        assert answer.status_code == 200
        assert answer.json == self.model.ticket(id)

    @rule(id=TICKETS, user_id=USERS, careful=CAREFUL)
    def assign(self, id, user_id, careful):
        answer, known = self.call("PUT", f"/tickets/{id}/assignees/{user_id}", None, careful)
        self.agree(answer, 200, self.model.assign, id, user_id, known, shows=self.model.ticket)

    @rule(id=TICKETS, user_id=USERS, careful=CAREFUL)
    def unassign(self, id, user_id, careful):
        answer, known = self.call("DELETE", f"/tickets/{id}/assignees/{user_id}", None, careful)
        self.agree(answer, 200, self.model.unassign, id, user_id, known, shows=self.model.ticket)

    @rule(
        query=body(
            {},
            project_id=PROJECTS,
            assignee_id=USERS | st.just("none"),
            status=st.lists(STATUS, max_size=3),
            text=WORDS | st.sampled_from(["", " ", '"', "%"]),
            sort=SORT,
        ),
        limit=st.integers(1, 4),
    )
    def list_tickets(self, query, limit):
        found = self.all("/tickets", **query, limit=limit)
        assert found == [self.model.ticket(id) for id in self.model.list_tickets(**query)]

    @rule(id=TICKETS, part=st.slices(20), spell=SPELLINGS, query=body({}, status=STATUS, sort=SORT))
    def search_for_a_part_of_a_ticket(self, id, part, spell, query):
        ticket = self.model.tickets[id]
        query["text"] = spell((ticket.description or ticket.title)[part])
        self.list_tickets(query, 50)

    @rule(
        target=TICKETS,
        sort=SORT,
        body=body(REQUIRED),
    )
    def create_a_ticket_while_somebody_turns_pages(self, sort, body):
        expected = [self.model.ticket(id) for id in self.model.list_tickets(sort=sort)]
        pages = self.pages("/tickets", sort=sort, limit=1)
        found = next(pages)
        new = self.create_ticket(body)
        found += [ticket for page in pages for ticket in page if ticket["id"] != new]
        assert found == expected
        return new

    # Mail, time, and what a caller remembers

    @rule(query=body({}, ticket_id=TICKETS, state=st.sampled_from(["queued", "sent", "failed"])))
    def list_emails(self, query):
        every = [self.model.mail(id) for id in sorted(self.model.mails, reverse=True)]
        found = self.all("/emails", **query, limit=2)
        assert found == [mail for mail in every if query.items() <= mail.items()]

    @precondition(lambda self: self.model.mails)
    @rule(pick=st.integers(0, 20))
    def retry_a_mail(self, pick):
        id = sorted(self.model.mails)[pick % len(self.model.mails)]
        answer, _ = self.call("POST", f"/emails/{id}/retry")
        self.agree(answer, 202, self.model.retry, id)

    @rule()
    def retry_all_mail(self):
        answer, _ = self.call("POST", "/emails/retry")
        assert (answer.status_code, answer.json) == (202, {"retried": self.model.retry_all()})

    @rule(is_open=st.booleans())
    def deliver_mail(self, is_open):
        self.post_office.is_open = is_open
        self.mailer.deliver()
        for mail in self.model.deliver(is_open):  # waits up to 10 % longer, by chance
            at = self.api.get(f"/emails/{mail.id}").json["next_attempt_at"]
            wait = min(30 * 2 ** (mail.attempts - 1), 3600)
            assert self.model.later(wait) <= at <= self.model.later(wait * 1.1)
            mail.next_attempt_at = at
        assert self.post_office.received == self.model.delivered

    @rule(step=STEP)
    def time_passes(self, step):
        self.clock.advance(seconds=step.total_seconds())

    @rule(
        resource=st.tuples(st.just("user"), USERS)
        | st.tuples(st.just("project"), PROJECTS)
        | st.tuples(st.just("ticket"), TICKETS)
    )
    def remember(self, resource):
        """Read it: 304 to those who have seen it as it is now."""
        kind, id = resource
        path = f"/{kind}s/{id}"
        etag, known = self.seen.get(path, ('"nothing"', None))
        answer = self.api.get(path, headers={"If-None-Match": etag}, status="*")
        if self.agree(answer, answer.status_code, getattr(self.model, kind), id):
            now = getattr(self.model, kind)(id)
            assert answer.status_code == (304 if now == known else 200)
            assert answer.status_code == 304 or answer.json == now
            self.seen[path] = answer.headers["ETag"], now

    # What holds after each call

    def pages(self, path, **query):
        answer = self.api.get(f"{path}?{urlencode(query, doseq=True)}")
        while True:
            yield answer.json
            if "Link" not in answer.headers:
                return
            assert len(answer.json) == query["limit"]
            answer = self.api.get(answer.headers["Link"].partition(">")[0].lstrip("<"))

    def all(self, path, limit=200, **query):
        return [one for page in self.pages(path, **query, limit=limit) for one in page]

    @invariant()
    def mail_agrees(self):
        found = self.all("/emails")
        for mail in reversed(found):
            if mail["id"] not in self.model.mails:
                told = self.model.told.pop((mail["ticket_id"], mail["user_id"]))
                self.model.queue(mail["id"], told)
                body = self.api.get(f"/emails/{mail['id']}").json["body"]
                assert body.split("\n")[:6] == told.head
        assert not self.model.told, "mail is missing"
        assert found == [self.model.mail(id) for id in sorted(self.model.mails, reverse=True)]
        assert self.api.get("/health").json == self.model.health()

    @invariant()
    def users_and_projects_agree(self):
        model = self.model
        assert self.all("/users") == [model.user(id) for id in sorted(model.users)]
        assert self.all("/projects") == [model.project(id) for id in sorted(model.projects)]

    @invariant()
    def tickets_and_their_history_agree(self):
        self.list_tickets({"sort": "created"}, 200)
        for id, ticket in self.model.tickets.items():
            history = self.all(f"/tickets/{id}/history", limit=2)
            entry_ids = [entry.pop("id") for entry in history]
            assert entry_ids == sorted(set(entry_ids))
            assert history == ticket.history

    @invariant()
    def some_list_and_some_search_agree(self):
        self.list_tickets(next(self.queries), 2)
        ticket = self.model.tickets[self.model.list_tickets(sort="-updated")[0]]
        text = (ticket.description or ticket.title).swapcase()
        start = next(self.starts)
        self.list_tickets({"text": text[start : start + 5]}, 50)


FUZZ = int(os.environ.get("FUZZ", "0"))  # how much more than in `make test`


def in_a_file():
    directory = tempfile.TemporaryDirectory()
    return Path(directory.name) / "tickets.db", directory.cleanup


@pytest.fixture(params=["sqlite", "postgresql"])
def machine(request):
    """The class of calls to a tracker on this engine."""
    if request.param == "sqlite":
        return type("Calls", (Calls,), {"make_database": staticmethod(in_a_file)})
    cluster = request.getfixturevalue("postgresql")

    def on_a_server():
        url = cluster.create(template="ready")
        return url, partial(cluster.drop, url)

    return type("Calls", (Calls,), {"make_database": staticmethod(on_a_server)})


@pytest.mark.timeout(1800)  # to reduce a failure to its smallest example takes minutes
@pytest.mark.parametrize("number", range(1, 4 if FUZZ else 2))
def test_after_any_calls_the_tracker_knows_what_the_contract_says(machine, number):
    run_state_machine_as_test(
        seed(number)(machine),
        settings=settings(
            max_examples=3 * FUZZ or 75,
            stateful_step_count=50 if FUZZ else 40,
            database=None,  # the seed alone decides
            deadline=None,
            suppress_health_check=list(HealthCheck),  # an example is a whole story, and takes time
        ),
    )
