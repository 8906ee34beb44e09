"""The ticket tracker: what its things may hold, its routes, create_app and the command line.

A request's way: guard -> route -> read -> begin -> handler -> commit -> wake the mailer ->
answer. The handlers stand here; what surrounds them is plumbing/web.py. All SQL is in db.py,
all mail in mailer.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

if TYPE_CHECKING or not __package__:
    import db
    import mailer
    from plumbing import Unavailable, engine, message, server, text, web
    from plumbing.engine import utc_now
    from plumbing.smtp import Smtp
    from plumbing.web import Answer, Call, Problem, Rule
else:
    from . import db, mailer
    from .plumbing import Unavailable, engine, message, server, text, web
    from .plumbing.engine import utc_now
    from .plumbing.smtp import Smtp
    from .plumbing.web import Answer, Call, Problem, Rule

__version__ = "1.0.0"

log = logging.getLogger("tracker")

# ---------------------------------------------------------------- what its things may hold

Fields = dict[str, Any]
MOST_ASSIGNEES = 100
REQUIRED = "is required"


def status(value: Any, fault: web.Fault) -> Any:
    """One of the three."""
    return web.one_of(*db.STATUSES)(value.strip() if isinstance(value, str) else value, fault)


def assignee(value: str, fault: web.Fault) -> Any:
    """An id, or "none", which is told as 0."""
    return 0 if value == "none" else web.id_in_query(value, fault)


USER: dict[str, Rule] = {"name": web.line(3, 100), "email": web.email}
PROJECT: dict[str, Rule] = {"name": web.line(3, 100)}
TICKET: dict[str, Rule] = {
    "title": web.line(1, 200),
    "description": web.optional(web.text(10_000)),
    "project_id": web.reference,
    "status": status,
    "assignees": web.references(MOST_ASSIGNEES, {"id", "name", "email"}),
}
CHANGE: dict[str, Rule] = {**TICKET, "comment": web.optional(web.text(10_000))}  # why it is made
TICKETS: dict[str, Rule | list[Rule]] = web.PAGE | {
    "project_id": web.id_in_query,
    "assignee_id": assignee,
    "status": [status],
    "text": web.text(10_000),
    "sort": web.one_of("-created", "created", "updated", "-updated"),
}
EMAILS = web.PAGE | {
    "state": web.one_of("queued", "sent", "failed"),
    "ticket_id": web.id_in_query,
}


def read_fields(data: Fields, rules: dict[str, Rule], *ignored: str) -> Fields:
    """The clean fields of a body that must have all of them. Raises Problem."""
    fields, errors = web.validate(data, rules, ignored, REQUIRED)
    if errors:
        raise web.bad_fields(errors)
    return fields


def read_ticket(
    call: Call, data: Fields, rules: dict[str, Rule], *ignored: str, missing: str | None
) -> Fields:
    """The clean fields of a ticket, whose project and assignees exist. Raises Problem."""
    fields, errors = web.validate(data, rules, ignored, missing)
    project_id, users = fields.get("project_id"), fields.get("assignees") or []
    if project_id and db.list_missing(call.conn, "projects", [project_id]):
        errors.append(web.error_at("project_id", f"there is no project {project_id}"))
    unknown = set(db.list_missing(call.conn, "users", filter(None, users)))
    for place, user_id in enumerate(users):
        if user_id in unknown:
            errors.append(web.error_at("assignees", f"there is no user {user_id}", f"/{place}"))
    if errors:
        raise web.bad_fields(errors)
    return fields


# ---------------------------------------------------------------- users and projects

ROUTES = route = web.Routes()


@route("GET", "/users", web.PAGE | {"email": web.email})
def list_users(call: Call) -> Answer:
    email = call.query.get("email")
    page = db.list_by_id(call.conn, "user", call.start("users"), call.limit, email)
    return call.page(page.document, "users", page.next)


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
    for change in db.delete_user(call.conn, user_id, who(call)):
        tell(call, change)
    return Answer(204, {})


@route("GET", "/projects", web.PAGE)
def list_projects(call: Call) -> Answer:
    page = db.list_by_id(call.conn, "project", call.start("projects"), call.limit)
    return call.page(page.document, "projects", page.next)


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
    return call.page(page.document, order, page.next)


@route("POST", "/tickets", takes=web.JSON)
def create_ticket(call: Call) -> Answer:
    data = {"description": None, "assignees": []} | call.data
    fields = read_ticket(call, data, TICKET, missing=REQUIRED)
    document, change = db.create_ticket(call.conn, fields, who(call))
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
    after, change = db.update_ticket(call.conn, json.loads(document), fields, why, who(call))
    tell(call, change)
    return call.answer(after)


def tell(call: Call, change: db.Change | None) -> None:
    """Queue the mail about what happened, if anything did."""
    if change:
        mailer.queue_ticket_mail(call.conn, change, call.app.url)
        call.after_commit = call.app.mailer.worker.wake


def who(call: Call) -> str | None:
    """Who makes the request, as the host application or a proxy says, if one does."""
    given = call.environ.get("REMOTE_USER") or call.environ.get(call.app.user_key) or ""
    given = given.encode("latin-1", "replace").decode("utf-8", "replace").strip()  # WSGI's way
    return given[:254] if given and not text.fault_of_line(given) else None


@route("GET", "/tickets/<ticket_id:id>/history", web.PAGE)
def list_history(call: Call, ticket_id: int) -> Answer:
    order = f"history-{ticket_id}"
    page = db.list_history(call.conn, ticket_id, call.start(order), call.limit)
    return call.page(page.document, order, page.next)


@route("GET", "/emails", EMAILS)
def list_emails(call: Call) -> Answer:
    state, ticket_id = call.query.get("state"), call.query.get("ticket_id")
    page = db.list_emails(call.conn, state, ticket_id, call.start("emails"), call.limit)
    return call.page(page.document, "emails", page.next)


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
    document = json.loads(db.get_health(call.conn))
    post = call.app.mailer
    document["mail"]["error"] = document["mail"]["error"] or post.trouble or post.worker.trouble
    return call.answer(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())


@route("GET", "/openapi.json")
def openapi(call: Call) -> Answer:
    return call.answer(Path(__file__).with_name("openapi.json").read_bytes())


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

    def __init__(self, database: db.Database, post: mailer.Mailer, hosts: Iterable[str]) -> None:
        super().__init__(ROUTES, database, problem_of, hosts)
        self.database, self.mailer = database, post
        self.url = self.user_key = ""  # where people find it; the variable that says who they are
        self.recall, self.remember = db.recall, db.remember

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
    clock: Callable[[], datetime] = utc_now,
    output: TextIO | None = None,
) -> Tracker:
    """The tracker as a WSGI application, to be ended with its close().

    What is None comes from the variables of the command line, or is "tickets.db", "" (mail is
    printed to `output`, by default standard output), an address at localhost, the loopback
    names only, and nothing. `allowed_hosts` are names without a port; "*" ends the check of
    Host. Nothing is left open, so a process may fork after it. Raises ValueError for a bad
    setting, and Unavailable if the database cannot be opened.
    """
    env = os.environ
    database = database if database is not None else env.get("TRACKER_DB") or "tickets.db"
    smtp = smtp if smtp is not None else env.get("TRACKER_SMTP", "")
    sender = sender if sender is not None else env.get("TRACKER_SENDER") or "tracker@localhost"
    url = url if url is not None else env.get("TRACKER_URL", "")
    user_header = user_header if user_header is not None else env.get("TRACKER_USER_HEADER", "")
    if allowed_hosts is None:
        allowed_hosts = re.split(r"[,\s]+", env.get("TRACKER_ALLOWED_HOSTS", ""))
    whom = text.read_sender(sender)
    if not whom:
        raise ValueError(f"--sender (TRACKER_SENDER): {sender!r} is not an email address")
    if url and not (re.fullmatch(r"https?://[!-~]+", url) and urlsplit(url).hostname):
        raise ValueError(f"--url (TRACKER_URL): {url!r} is not an absolute http or https URL")
    if not re.fullmatch(r"[A-Za-z0-9-]*", user_header):
        raise ValueError(f"--user-header (TRACKER_USER_HEADER): {user_header!r} is no header")
    try:
        post = Smtp(smtp, whom[1]) if smtp else message.Console(output or sys.stdout)
    except ValueError as error:
        raise ValueError(f"--smtp (TRACKER_SMTP): it {error}") from None
    base = db.open_database(database, clock, server.show_progress)
    app = Tracker(base, mailer.Mailer(base, post, whom), filter(None, allowed_hosts))
    app.url = url
    app.user_key = f"HTTP_{user_header.upper().replace('-', '_')}" if user_header else ""
    return app


# ---------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    env = os.environ
    options: dict[str, dict[str, Any]] = {
        "--db": {
            "default": env.get("TRACKER_DB") or "tickets.db",
            "help": "a file, or postgresql://...",
        },
        "--host": {"default": env.get("TRACKER_HOST") or "127.0.0.1", "help": "where to listen"},
        "--port": {"default": env.get("TRACKER_PORT") or "8080", "help": "the port, 0 for any"},
        "--smtp": {"metavar": "URL", "help": "smtp://user:password@host:port or smtps://..."},
        "--sender": {"metavar": "ADDRESS", "help": "whom mail comes from: 'Name <address>'"},
        "--url": {"help": "where people find the tracker, for links in mail"},
        "--allow-host": {"metavar": "NAME", "action": "append", "help": "serve it; * for any"},
        "--user-header": {"metavar": "NAME", "help": "the header in which a proxy says who it is"},
        "--quiet": {"action": "store_true", "help": "no line per request"},
    }
    parser = argparse.ArgumentParser(prog="tracker", description="A ticket tracker with mail.")
    parser.add_argument("--version", action="version", version=f"tracker {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="backup | send-test-mail | copy")
    backup = commands.add_parser("backup", help="write a consistent copy while the server runs")
    backup.add_argument("file", metavar="FILE")
    test = commands.add_parser("send-test-mail", help="send a mail, and tell what came of it")
    test.add_argument("address", metavar="ADDRESS")
    copy = commands.add_parser("copy", help="copy all data into an empty database of either kind")
    copy.add_argument("source", metavar="FROM")
    copy.add_argument("target", metavar="TO")
    for name, settings in options.items():
        parser.add_argument(name, **settings)
        for command in (backup, test):  # options may stand behind the command as well
            command.add_argument(name, **{**settings, "default": argparse.SUPPRESS})
    args = parser.parse_args(argv)

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    web.access.setLevel(logging.WARNING if args.quiet else logging.INFO)
    try:
        if args.command == "backup":
            return run_backup(args.db, args.file)
        if args.command == "copy":
            return run_copy(args.source, args.target)
        if not args.command and not re.fullmatch("[0-9]{1,5}", args.port):
            raise ValueError(f"--port (TRACKER_PORT): {args.port!r} is not a port")
        if args.command == "send-test-mail" and not text.is_address(args.address):
            raise ValueError(f"{args.address!r} is not a valid email address")
        if args.command == "send-test-mail" and not (args.smtp or env.get("TRACKER_SMTP")):
            raise ValueError("there is no mail server: --smtp (TRACKER_SMTP) is not set")
        app = create_app(
            args.db, args.smtp, args.sender, args.allow_host, args.url, args.user_header
        )
        try:
            if args.command == "send-test-mail":
                return run_test_mail(app, args.address)
            run_server(app, args.host, int(args.port))
        finally:
            app.close()
        return 0
    except (ValueError, OSError) as error:
        print(f"tracker: {error}", file=sys.stderr)
    except Unavailable as error:
        print(f"tracker: {engine.without_password(args.db)}: {error}", file=sys.stderr)
    return 1


def run_server(app: Tracker, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises OSError if the port cannot be had."""
    # It may search; with % it might spell the others. Over a network all may take long.
    slow = re.compile("" if app.database.remote else "text|assignee|%")
    post, name = app.mailer, app.database.name

    def ready(url: str) -> None:
        app.start()
        if not web.is_loopback(host):
            print(f"Warning: there is no login; whoever reaches {host} can read and change all.")
        if isinstance(post.server, Smtp) and post.sender[1].endswith("@localhost"):
            print(f"Warning: most mail servers refuse {post.sender[1]}; set --sender to yours.")
        print(f"Tracker ready on {url}, database {name}, mail goes to {post.server}.", flush=True)

    server.serve(app, host, port, lambda query: bool(slow.search(query)), ready)


def run_backup(database: str, target: str) -> int:
    """Write a copy of the database; the exit status."""
    require_database(database)

    def progress(done: int, pages: int) -> None:
        server.show_progress(f"{100 * done // pages} %" + "\n" * (done == pages))

    db.open_database(database).backup(target, progress)
    print(f"Backed up {database} to {target}, {os.path.getsize(target):,} bytes.")
    return 0


def require_database(location: str) -> None:
    """Raise FileNotFoundError where opening it would create a file."""
    if not engine.is_url(location) and not os.path.exists(location):
        raise FileNotFoundError(f"there is no database {location}")


def run_copy(source: str, target: str) -> int:
    """Copy all data into an empty database; the exit status."""
    require_database(source)
    where = source
    try:
        old, where = db.open_database(source), target
        new = db.open_database(target)
        rows = engine.copy(old, new, server.show_progress)
    except Unavailable as error:
        raise ValueError(f"{engine.without_password(where)}: {error}") from error
    print(f"Copied {rows:,} rows from {old.name} to {new.name}.")
    return 0


def run_test_mail(app: Tracker, address: str) -> int:
    """Send a mail through the queue; the exit status."""
    taken, said = mailer.send_test_mail(app.mailer, address, patience=30)
    way = f" through {app.mailer.server}" if app.mailer.delivers else ""
    print(f"Mail to {address}{way}: {said}")
    return 0 if taken else 1


if __name__ == "__main__":
    sys.exit(main())
