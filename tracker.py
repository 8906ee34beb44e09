"""The ticket tracker: what its things may hold, its routes, create_app and the command line.

A request's way: guard -> route -> read -> begin -> handler -> commit -> wake the mailer ->
answer. The handlers stand here; what surrounds them is plumbing/web.py. All SQL is in db.py,
all mail in mailer.py.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if __name__ == "__main__":  # while all that follows is imported, also as process 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: os._exit(128 + number))

if TYPE_CHECKING or not __package__:
    import db
    import mailer
    from plumbing import Unavailable, engines, message, rule, server, settings, terminal, text, web
    from plumbing.settings import Command, Option, Settings
    from plumbing.smtp import Smtp
    from plumbing.terminal import say
    from plumbing.web import Answer, Call, Problem
else:
    from . import db, mailer
    from .plumbing import Unavailable, engines, message, rule, server, settings, terminal, text, web
    from .plumbing.settings import Command, Option, Settings
    from .plumbing.smtp import Smtp
    from .plumbing.terminal import say
    from .plumbing.web import Answer, Call, Problem

__version__ = "1.0.0"

log = logging.getLogger("tracker")

# ---------------------------------------------------------------- what its things may hold

Fields = dict[str, Any]
MOST_ASSIGNEES = 100
REQUIRED = "is required"

USER: rule.Body = {"name": rule.line(3, 100), "email": rule.email}
PROJECT: rule.Body = {"name": rule.line(3, 100)}
TICKET: rule.Body = {
    "title": rule.line(1, 200),
    "description": rule.optional(rule.text(10_000)),
    "project_id": rule.reference,
    "status": rule.word(*db.STATUSES),
    "assignees": rule.references(MOST_ASSIGNEES, {"id", "name", "email"}),
}
CHANGE: rule.Body = {**TICKET, "comment": rule.optional(rule.text(10_000))}  # why it is made
TICKETS: rule.Query = rule.PAGE | {
    "project_id": rule.id_in_query,
    "assignee_id": rule.id_or_none,
    "status": [rule.one_of(*db.STATUSES)],
    "text": rule.text(10_000),
    "sort": rule.one_of("-created", "created", "updated", "-updated"),
}
EMAILS: rule.Query = rule.PAGE | {
    "state": rule.one_of("queued", "sent", "failed"),
    "ticket_id": rule.id_in_query,
}


def read_fields(data: Fields, rules: rule.Body, *ignored: str) -> Fields:
    """The clean fields of a body that must have all of them. Raises Problem."""
    fields, errors = rule.validate(data, rules, ignored, REQUIRED)
    if errors:
        raise web.not_valid(errors)
    return fields


def read_ticket(
    call: Call, data: Fields, rules: rule.Body, *ignored: str, missing: str | None
) -> Fields:
    """The clean fields of a ticket, whose project and assignees exist. Raises Problem."""
    fields, errors = rule.validate(data, rules, ignored, missing)
    project_id, users = fields.get("project_id"), fields.get("assignees") or []
    # 0, which no row has, stands for what is absent, or is told as not valid already.
    unknown = db.list_missing(call.conn, [project_id or 0], [user_id or 0 for user_id in users])
    if ("project", project_id) in unknown:
        errors.append(rule.error_at("project_id", f"there is no project {project_id}"))
    for place, user_id in enumerate(users):
        if ("user", user_id) in unknown:
            errors.append(rule.error_at("assignees", f"there is no user {user_id}", f"/{place}"))
    if errors:
        raise web.not_valid(errors)
    return fields


# ---------------------------------------------------------------- users and projects

ROUTES = route = web.Routes()


@route("GET", "/users", rule.PAGE | {"email": rule.email})
def list_users(call: Call) -> Answer:
    email = call.query.get("email")
    page = db.list_by_id(call.conn, "user", call.start("users"), call.limit, email)
    return call.page("users", *page)


@route("POST", "/users", takes=web.JSON)
def create_user(call: Call) -> Answer:
    user_id = db.create_user(call.conn, read_fields(call.data, USER))
    return call.answer(db.get(call.conn, "user", user_id), 201, f"/users/{user_id}")


@route("GET", "/users/<user_id:id>")
def get_user(call: Call, user_id: int) -> Answer:
    return call.answer(db.get(call.conn, "user", user_id))


@route("PUT", "/users/<user_id:id>", takes=web.JSON)
def update_user(call: Call, user_id: int) -> Answer:
    call.require_match(db.get(call.conn, "user", user_id))
    db.update_user(call.conn, user_id, read_fields(call.data, USER, "id"))
    return call.answer(db.get(call.conn, "user", user_id))


@route("DELETE", "/users/<user_id:id>")
def delete_user(call: Call, user_id: int) -> Answer:
    call.require_match(db.get(call.conn, "user", user_id))
    for change in db.delete_user(call.conn, user_id, call.user):
        tell(call, change)
    return Answer(204, {})


@route("GET", "/projects", rule.PAGE)
def list_projects(call: Call) -> Answer:
    page = db.list_by_id(call.conn, "project", call.start("projects"), call.limit)
    return call.page("projects", *page)


@route("POST", "/projects", takes=web.JSON)
def create_project(call: Call) -> Answer:
    project_id = db.create_project(call.conn, read_fields(call.data, PROJECT))
    return call.answer(db.get(call.conn, "project", project_id), 201, f"/projects/{project_id}")


@route("GET", "/projects/<project_id:id>")
def get_project(call: Call, project_id: int) -> Answer:
    return call.answer(db.get(call.conn, "project", project_id))


@route("PUT", "/projects/<project_id:id>", takes=web.JSON)
def update_project(call: Call, project_id: int) -> Answer:
    call.require_match(db.get(call.conn, "project", project_id))
    db.update_project(call.conn, project_id, read_fields(call.data, PROJECT, "id", "tickets"))
    return call.answer(db.get(call.conn, "project", project_id))


@route("DELETE", "/projects/<project_id:id>")
def delete_project(call: Call, project_id: int) -> Answer:
    call.require_match(db.get(call.conn, "project", project_id))
    db.delete_project(call.conn, project_id)
    return Answer(204, {})


# ---------------------------------------------------------------- tickets and mail


@route("GET", "/tickets", TICKETS)
def list_tickets(call: Call) -> Answer:
    order = call.query.get("sort", "-created")
    page = db.list_tickets(
        call.conn,
        project_id=call.query.get("project_id"),
        assignee_id=call.query.get("assignee_id"),
        statuses=call.query.get("status", ()),
        text=text.fold(call.query.get("text", "")),
        sort=order,
        start=call.start(order),
        limit=call.limit,
    )
    return call.page(order, *page)


@route("POST", "/tickets", takes=web.JSON)
def create_ticket(call: Call) -> Answer:
    data = {"description": None, "assignees": []} | call.data
    fields = read_ticket(call, data, TICKET, missing=REQUIRED)
    document, change = db.create_ticket(call.conn, fields, call.user)
    tell(call, change)
    return call.answer(document, 201, f"/tickets/{json.loads(document)['id']}")


@route("GET", "/tickets/<ticket_id:id>")
def get_ticket(call: Call, ticket_id: int) -> Answer:
    return call.answer(db.get(call.conn, "ticket", ticket_id))


@route("PUT", "/tickets/<ticket_id:id>", takes=web.JSON)
def replace_ticket(call: Call, ticket_id: int) -> Answer:
    data = {"comment": None} | call.data
    return update_ticket(call, ticket_id, data, "is required in a PUT; PATCH changes single fields")


@route("PATCH", "/tickets/<ticket_id:id>", takes=web.MERGE_PATCH)
def patch_ticket(call: Call, ticket_id: int) -> Answer:
    return update_ticket(call, ticket_id, call.data, None)


def update_ticket(call: Call, ticket_id: int, data: Fields, missing: str | None) -> Answer:
    """Change a ticket as the data says; `missing` is wrong with a field that is left out."""
    document = db.get(call.conn, "ticket", ticket_id)
    call.require_match(document)
    read_only = ("id", "created_at", "updated_at")
    fields = read_ticket(call, data, CHANGE, *read_only, missing=missing)
    return change_ticket(call, document, fields, fields.pop("comment", None))


@route("PUT", "/tickets/<ticket_id:id>/assignees/<user_id:id>")
def assign(call: Call, ticket_id: int, user_id: int) -> Answer:
    document = db.get(call.conn, "ticket", ticket_id)
    db.get(call.conn, "user", user_id)
    call.require_match(document)
    users = [user["id"] for user in json.loads(document)["assignees"]]
    read_fields({"assignees": [*users, user_id]}, {"assignees": TICKET["assignees"]})
    return change_ticket(call, document, {"assignees": [*users, user_id]})


@route("DELETE", "/tickets/<ticket_id:id>/assignees/<user_id:id>")
def unassign(call: Call, ticket_id: int, user_id: int) -> Answer:
    document = db.get(call.conn, "ticket", ticket_id)
    users = [user["id"] for user in json.loads(document)["assignees"]]
    if user_id not in users:
        raise db.NotFound(f"User {user_id} is not assigned to ticket {ticket_id}.")
    call.require_match(document)
    return change_ticket(call, document, {"assignees": [id for id in users if id != user_id]})


def change_ticket(call: Call, document: bytes, fields: Fields, why: str | None = None) -> Answer:
    """Act, tell, answer: what all changes of a ticket have in common."""
    after, change = db.update_ticket(call.conn, json.loads(document), fields, why, call.user)
    tell(call, change)
    return call.answer(after)


def tell(call: Call, change: db.Change | None) -> None:
    """Queue the mail about what happened, if anything did."""
    if change:
        mailer.queue_ticket_mail(call.conn, change, call.app.url)
        call.after_commit = call.app.mailer.worker.wake


@route("GET", "/tickets/<ticket_id:id>/history", rule.PAGE)
def list_history(call: Call, ticket_id: int) -> Answer:
    order = f"history-{ticket_id}"
    page = db.list_history(call.conn, ticket_id, call.start(order), call.limit)
    return call.page(order, *page)


@route("GET", "/emails", EMAILS)
def list_emails(call: Call) -> Answer:
    state, ticket_id = call.query.get("state"), call.query.get("ticket_id")
    page = db.list_emails(call.conn, state, ticket_id, call.start("emails"), call.limit)
    return call.page("emails", *page)


@route("GET", "/emails/<email_id:id>")
def get_email(call: Call, email_id: int) -> Answer:
    return call.answer(db.get(call.conn, "full_email", email_id))


@route("POST", "/emails/<email_id:id>/retry")
def retry_email(call: Call, email_id: int) -> Answer:
    call.after_commit = call.app.mailer.worker.wake
    db.retry_email(call.conn, email_id)
    return call.answer(db.get(call.conn, "full_email", email_id), 202)


@route("POST", "/emails/retry")
def retry_emails(call: Call) -> Answer:
    call.after_commit = call.app.mailer.worker.wake
    body = b'{"retried":%d}' % db.retry_emails(call.conn)
    return Answer(202, {"Content-Type": "application/json"}, body)


@route("GET", "/health")
def health(call: Call) -> Answer:
    call.app.database.try_write()
    document = json.loads(db.get_health(call.conn))
    post = call.app.mailer
    document["mail"]["error"] = document["mail"]["error"] or post.trouble or post.worker.trouble
    return call.answer(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())


@route("GET", "/")
def board(call: Call) -> Answer:
    return call.html(Path(__file__).with_name("board.html").read_bytes())


@route("GET", "/openapi.json")
def openapi(call: Call) -> Answer:
    document = json.loads(Path(__file__).with_name("openapi.json").read_bytes())
    document["servers"][0]["url"] = call.url("") or "/"
    return call.answer(json.dumps(document).encode())


# ---------------------------------------------------------------- the application


def problem_of(error: Exception) -> Problem:
    """The one map from what went wrong to what the client is told."""
    match error:
        case Problem():
            return error
        case db.NotFound():
            return Problem(404, str(error))
        case db.Conflict():
            return Problem(409, str(error), **error.facts)
        case Unavailable():
            log.error("%s", error)
            return Problem(503, f"{error} {error.advice}", headers={"Retry-After": "5"})
    log.error("A defect of the tracker", exc_info=error)
    return Problem(500, "The tracker made a mistake, which is logged. Nothing was changed.")


class Tracker(web.Application):
    """The tracker as a WSGI application; create_app() makes one, and close() ends it."""

    how_to_allow = "To serve it, set --allow-host {0} (TRACKER_ALLOWED_HOSTS={0})."
    what_there_is = "/openapi.json tells what there is."

    def __init__(
        self, given: Settings, clock: engines.Clock = engines.utc_now, output: TextIO | None = None
    ) -> None:
        self.url = given["url"]  # where people find it
        # All settings are looked at before the database is created.
        whom, hosts, user_key = given["sender"], given["allowed_hosts"], given["user_header"]
        post = given["smtp"] or message.Console(output or sys.stdout)
        database = db.open_database(given["database"], clock, terminal.show_progress)
        super().__init__(ROUTES, database, problem_of, hosts, user_key)
        # What is printed comes from nobody, so that the sender may still be set.
        self.mailer = mailer.Mailer(database, post, whom if given["smtp"] else ("", ""))

    def start(self) -> None:
        """Begin to deliver mail, if that has not begun; each request does so, too."""
        self.mailer.worker.start()

    def close(self) -> None:
        """Stop delivering mail and close the database; what is queued stays queued."""
        self.mailer.close()
        self.database.close()


def create_app(
    database: str | os.PathLike[str] | None = None,
    smtp: str | None = None,
    sender: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    url: str | None = None,
    user_header: str | None = None,
    clock: engines.Clock = engines.utc_now,
    output: TextIO | None = None,
) -> Tracker:
    """The tracker as a WSGI application, to be ended with its close().

    What is None comes from the variables of the command line, or is "tickets.db", "" (mail is
    printed to `output`, by default standard output), an address at localhost, the loopback
    names only, and nothing. `allowed_hosts` are names without a port; "*" ends the check of
    Host. Nothing is left open, so a process may fork after it. Raises ValueError for a bad
    setting, and Unavailable if the database cannot be opened.
    """
    return Tracker(Settings(OPTIONS, locals(), called=True), clock, output)


# ---------------------------------------------------------------- settings and commands

OPTIONS = [
    Option("database", "--db FILE", "TRACKER_DB", "tickets.db",
           "the database, a file or postgresql://user:password@host/name", os.fspath),
    Option("host", "--host NAME", "TRACKER_HOST", "127.0.0.1",
           "the name or address to listen on", settings.own_host),
    Option("port", "--port PORT", "TRACKER_PORT", "8080", "its port; 0 is any", settings.port),
    Option("smtp", "--smtp URL", "TRACKER_SMTP", "",
           "the mail server, smtp://user:password@host:port or smtps://...; none: mail is printed",
           lambda url: Smtp(url) if url else None),
    Option("sender", "--sender ADDRESS", "TRACKER_SENDER", "tracker@localhost",
           "whom mail comes from, 'Name <address>'", text.read_sender),
    Option("url", "--url URL", "TRACKER_URL", "",
           "where people find the tracker, for links in mail", settings.web_address),
    Option("allowed_hosts", "--allow-host NAME", "TRACKER_ALLOWED_HOSTS", "",
           "a name to be served under, may be repeated; * for any", settings.host_name, many=True),
    Option("user_header", "--user-header NAME", "TRACKER_USER_HEADER", "",
           "the header in which a proxy says who it is", settings.header),
    Option("quiet", "--quiet", "", "", "no line per request", bool),
]  # fmt: skip


def run_server(given: Settings) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    web.access.setLevel(logging.WARNING if given["quiet"] else logging.INFO)
    host, port = given["host"], given["port"]
    app = Tracker(given)
    # It may search; with % it might spell the others. Over a network all may take long.
    slow = re.compile("" if app.database.remote else "text|assignee|%")

    def ready(url: str) -> None:
        app.start()
        post = app.mailer
        if not web.is_loopback(host):
            say(f"Warning: there is no login; whoever reaches {host} can read and change all.")
        if isinstance(post.server, Smtp) and post.sender[1].endswith("@localhost"):
            say(f"Warning: most mail servers refuse {post.sender[1]}; set --sender to yours.")
        say(f"Tracker ready on {url}, database {app.database.name}, mail goes to {post.server}.")

    try:
        server.serve(app, host, port, lambda query: bool(slow.search(query)), ready)
    except OSError as error:
        raise given.fault(str(error), "host", "port") from error
    finally:
        app.close()
    return 0


def run_backup(given: Settings, target: str) -> int:
    """Write a copy of the database."""
    database = given["database"]
    db.open_database(database, only_read=True).backup(target, terminal.show_share)
    say(f"Backed up {database} to {target}, {os.path.getsize(target):,} bytes.")
    return 0


def run_copy(given: Settings, source: str, target: str) -> int:
    """Copy all data into an empty database of either kind."""
    say(engines.copy_from_to(source, target, db.open_database, terminal.show_progress))
    return 0


def run_test_mail(given: Settings, address: str) -> int:
    """Send a mail through the queue, and tell what came of it."""
    if not text.is_address(address):
        raise ValueError(f"{address!r} is not a valid email address")
    if not given["smtp"]:
        raise given.fault("there is no mail server, as this is not set", "smtp")
    with closing(Tracker(given.only("database", "smtp", "sender"))) as app:
        taken, said = mailer.send_test_mail(app.mailer, address, patience=30)
        way = f" through {app.mailer.server}" if app.mailer.delivers else ""
    say(f"Mail to {address}{way}: {said}")
    return 0 if taken else 1


COMMANDS = [
    Command("", "serve", run_server),
    Command("backup FILE", "write a consistent copy while the server runs", run_backup),
    Command("copy FROM TO", "copy all data into an empty database of either kind", run_copy),
    Command("send-test-mail ADDRESS", "send a mail, and tell what came of it", run_test_mail),
]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    program, about = f"tracker {__version__}", "A ticket tracker with mail."
    return terminal.run(program, about, OPTIONS, COMMANDS, {Unavailable: "database"}, argv)


if __name__ == "__main__":
    sys.exit(main())
