"""The ticket tracker: routes, validators, the WSGI application and the command line.

A request's way: guard -> route -> begin -> handler -> commit -> wake the mailer -> answer.
All SQL is in db.py, all mail in mailer.py. Every error leaves through one place,
Application.__call__, as problem details (RFC 9457).
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import http.client
import ipaddress
import json
import logging
import math
import os
import re
import signal
import socket
import sqlite3
import sys
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO
from urllib.parse import parse_qsl, quote, urlencode

import bottle
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher
from waitress.utilities import RequestEntityTooLarge

import db
import mailer

__version__ = "1.0.0"

log = logging.getLogger("tracker")
access = logging.getLogger("tracker.access")

MAX_BODY = 64 * 1024  # bytes
JSON = ("application/json",)
MERGE_PATCH = ("application/merge-patch+json", "application/json")  # RFC 7396
STATUSES = ("open", "in progress", "closed")


# ---------------------------------------------------------------- the boundary


class Problem(Exception):
    """An answer of 400 or above: bad fields or parameters in `errors`, other members in `facts`."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(detail)
        names = {413: "Content Too Large", 422: "Unprocessable Content"}  # as RFC 9110 has it
        self.status = status
        self.title = names.get(status) or http.client.responses[status]
        members = {"title": self.title, "status": status, "detail": detail, **facts}
        self.body = json.dumps(members | ({"errors": errors} if errors else {})).encode()
        self.headers = {
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(self.body)),
            **(headers or {}),
        }

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The one map from what went wrong to what the client is told."""
        match error:
            case Problem():
                return error
            case db.NotFound():
                return cls(404, str(error))
            case db.Conflict():
                return cls(409, str(error), **error.facts)
            case db.Unavailable():
                log.error("%s", error)
                detail = f"{error} Nothing was changed; trying again is safe."
                return cls(503, detail, headers={"Retry-After": "5"})
        log.error("A defect of the tracker", exc_info=error)
        return cls(500, "The tracker made a mistake, which is logged. Nothing was changed.")


class Application:
    """The tracker as a WSGI application; create_app() makes one, and close() ends it.

    What protects it stands here around the routes, so that no way of mounting loses it.
    """

    def __init__(
        self, database: db.Database, post: mailer.Mailer, allowed_hosts: Iterable[str]
    ) -> None:
        self.database, self.mailer = database, post
        self.allowed_hosts = {host.lower() for host in allowed_hosts}
        self._routes = bottle.Bottle()
        self._routes.config["catchall"] = False  # exceptions come to __call__
        # Bottle's own <id:int> matches -5, 007, the digits of other scripts, and "1\n".
        self._routes.router.add_filter("id", lambda _: (r"[1-9][0-9]{0,17}", int, str))
        self._routes.default_error_handler = _refuse
        for route in ROUTES:
            # Bottle's plugins have nothing to do: what handlers return is JSON already.
            self._routes.route(route.path, route.method, self._bounded(route), skip=True)

    def close(self) -> None:
        """Stop delivering mail and close the database; what is queued stays queued."""
        self.mailer.close()
        self.database.close()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        began, status = time.perf_counter(), ""

        def start(line: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            nonlocal status
            status = line[:3]
            return start_response(line, headers)

        try:
            self.mailer.start()  # in each process anew, since no thread survives a fork
            self._guard(environ)
            answer: Iterable[bytes] = self._routes(environ, start)
            return answer
        except Exception as error:
            problem = Problem.of(error)
            start(f"{problem.status} {problem.title}", list(problem.headers.items()))
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [problem.body]
        finally:
            if access.isEnabledFor(logging.INFO):
                path = quote(
                    environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), "/", "latin-1"
                )
                took = (time.perf_counter() - began) * 1000
                access.info("%s %s %s %.1f ms", environ["REQUEST_METHOD"], path, status, took)

    def _guard(self, environ: dict[str, Any]) -> None:
        """Keep out what the page of another site, open in a user's browser, may send."""
        host = environ.get("HTTP_HOST", "").lower()
        name = name_of(host)
        if not (is_loopback(name) or self.allowed_hosts & {name, "*"}):
            raise Problem(
                403, f"The host {host!r} is not served here; --allow-host would allow it."
            )
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD", "OPTIONS"):
            origin = environ.get("HTTP_ORIGIN")
            own = origin is None or _without_port(origin.partition("://")[2]) == _without_port(host)
            if not own or environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site"):
                raise Problem(403, "A page of another site may not write here.")
        if not environ["REQUEST_METHOD"].isupper():  # Bottle would take "delete" for DELETE
            raise Problem(400, "The method must be in capital letters.")
        path = environ.get("PATH_INFO", "")
        if not (path.isascii() and path.isprintable()):
            raise db.NotFound("There is nothing at this path.")  # Bottle would drop those bytes

    def _bounded(self, route: Route) -> Callable[..., Any]:
        def bounded(**ids: int) -> Any:
            environ = bottle.request.environ
            call = Call(
                environ,
                self.mailer.sender,
                read_query(environ.get("QUERY_STRING", ""), route.query),
            )
            # The whole body before the transaction, or a slow client would hold the lock.
            if route.takes:
                call.data = read_body(environ, route.takes)
            with self.database.transaction(write=route.method != "GET") as call.conn:
                answer = route.handler(call, **ids)
            if call.told:
                self.mailer.wake()
            return answer

        return bounded


def _refuse(error: bottle.HTTPError) -> NoReturn:
    """Bottle's own errors, 404 and 405, as problems."""
    if error.status_code != 405:
        raise db.NotFound("There is nothing at this path; /openapi.json tells what there is.")
    methods = error.get_header("Allow").split(",")
    allow = ", ".join(sorted(methods + ["HEAD"] * ("GET" in methods)))
    raise Problem(405, f"This path knows only {allow}.", headers={"Allow": allow})


def _without_port(host: str) -> str:
    return re.sub(r":(80|443)$", "", host.lower())


# Both are asked at each request, and nearly always for the same host.


@lru_cache(100)
def name_of(host: str) -> str:
    """The name or address in a Host header, without port and brackets; "" if it is none."""
    named = re.fullmatch(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]*)?", host, re.ASCII)
    return named[1].strip("[]") if named else ""


@lru_cache(100)
def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass
class Call:
    """What a handler works with: the request, and the transaction that the boundary began."""

    environ: dict[str, Any]
    sender: str
    query: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)  # the body, of a route that takes one
    conn: db.Connection = None  # type: ignore[assignment]  # until the boundary begins
    told: bool = False

    def check(self, document: bytes) -> None:
        """Let only those go on who know this state of the resource (RFC 9110, section 13)."""
        known = self.environ.get("HTTP_IF_MATCH", "*").strip()
        strong = [tag for weak, tag in ETAGS.findall(known) if not weak]
        if known != "*" and etag_of(document) not in strong:
            raise Problem(412, "Somebody else was faster: get it again, then repeat the change.")

    def tell(self, ticket: dict[str, Any], changes: db.Changes | None = None) -> None:
        """Queue the mail about a ticket that is new, or has changed."""
        mailer.queue_ticket_mail(self.conn, self.sender, ticket, changes)
        self.told = True

    def answer(self, document: bytes, status: int = 200, location: str | None = None) -> Any:
        """A single resource with its ETag, or 304 to those who have it already."""
        etag = etag_of(document)
        known = self.environ.get("HTTP_IF_NONE_MATCH", "").strip()
        reading = self.environ["REQUEST_METHOD"] in ("GET", "HEAD")
        if reading and (known == "*" or etag in (tag for _, tag in ETAGS.findall(known))):
            return bottle.HTTPResponse(status=304, ETag=etag)
        if status != 200:
            bottle.response.status = status
        bottle.response.set_header("ETag", etag)
        bottle.response.content_type = "application/json"
        if location:
            bottle.response.set_header("Location", self.url(location))
        return document

    def page(self, rows: list[Any], order: str) -> bytes:
        """A list of what stands last in each row; one row too many means that there are more."""
        if len(rows) > self.limit:
            rows = rows[: self.limit]
            position = write_cursor(order, *rows[-1][:-1])
            query = urlencode([*self.query["others"], ("after", position)])
            bottle.response.set_header(
                "Link", f'<{self.url(self.environ["PATH_INFO"])}?{query}>; rel="next"'
            )
        bottle.response.content_type = "application/json"
        return b"[" + b",".join([row[-1] for row in rows]) + b"]"

    @property
    def limit(self) -> int:
        return int(self.query.get("limit", 50))

    def after(self, order: str) -> tuple[int, str] | None:
        """The id and touched_at to go on behind. Raises Problem for the cursor of another order."""
        cursor = self.query.get("after")
        if cursor and cursor[0] != order:
            raise bad_query([{"parameter": "after", "detail": "is from a list in another order"}])
        return cursor and cursor[1:]

    def url(self, path: str) -> str:
        return quote(self.environ.get("SCRIPT_NAME", ""), "/", "latin-1") + path


ETAGS = re.compile(r'(W/)?("[^"]*")')


def etag_of(document: bytes) -> str:
    return f'"{hashlib.blake2b(document, digest_size=12).hexdigest()}"'


# ---------------------------------------------------------------- reading and validating

# A check takes a value from outside and a function to tell each fault to, with the place
# inside the value if need be. It returns the clean value; after a fault nobody looks at it.
Check = Callable[[Any, Callable[..., None]], Any]

# No control characters, no separators of lines, no zero-width spaces, and nothing that
# turns the direction of writing round: a name shows what it is. The joiners of emoji and
# of Persian are allowed. The last range is halves of surrogate pairs.
NOT_IN_A_LINE = re.compile(
    "[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\u200b\u2060\ufeff\ud800-\udfff]"
)
# Invisible, and so without a purpose where there is nothing but ASCII beside it: fillers,
# joiners, tags, variation selectors, soft hyphens.
HIDDEN = (
    "\xad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u2061-\u2064\u206a-\u206f"
    "\u2800\u3164\ufe00-\ufe0f\uffa0\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
)
DISGUISE = re.compile(rf"(?<![^\0-\x7f])[{HIDDEN}]+(?![^\0-\x7f])")
NOT_IN_A_TEXT = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
EMAIL = re.compile(
    r"(?=.{1,254}\Z)(?=[^@]{1,64}@)(?!.*=\?.*\?=)"  # =?utf-8?q?max?=: some servers decode that
    rf"{ATOM}(?:\.{ATOM})*@(?:{LABEL}\.)+(?![0-9]+\Z){LABEL}"
)
SENDER = re.compile(rf"{ATOM}(?:\.{ATOM})*@{LABEL}(?:\.{LABEL})*")  # may be at localhost


def line(shortest: int, longest: int, forbidden: re.Pattern[str] = NOT_IN_A_LINE) -> Check:
    def check(value: Any, fault: Callable[..., None]) -> Any:
        if not isinstance(value, str):
            return fault("must be a string")
        value = value.strip()
        if len(value) < shortest:
            fault(f"must have at least {shortest} character{'s' * (shortest > 1)}")
        if len(value) > longest:
            fault(f"must have at most {longest:,} characters")
        if found := forbidden.search(value):
            fault(f"must not hold the character U+{ord(found[0]):04X}")
        elif not value.isascii() and "M" * 31 in "".join(
            "M" if unicodedata.combining(char) else " " for char in value
        ):
            # UAX #15 knows no language that needs more; to put them in order is quadratic.
            fault("must not hold more than 30 combining marks in a row")
        elif forbidden is NOT_IN_A_LINE and (hidden := DISGUISE.search(value)):
            fault(f"must not hold the character U+{ord(hidden[0][0]):04X}")
        return value

    return check


text = line(0, 10_000, NOT_IN_A_TEXT)


def description(value: Any, fault: Callable[..., None]) -> Any:
    return None if value is None else text(value, fault)


def email(value: Any, fault: Callable[..., None]) -> Any:
    if not isinstance(value, str):
        return fault("must be a string")
    value = value.strip()
    if not value.isascii():
        fault("must be ASCII; an address in another script cannot be reached by every server")
    elif not EMAIL.fullmatch(value):
        fault("is not a valid email address")
    return value


def status(value: Any, fault: Callable[..., None]) -> Any:
    value = value.strip() if isinstance(value, str) else value
    return value if value in STATUSES else fault(f"must be one of: {', '.join(STATUSES)}")


def reference(value: Any, fault: Callable[..., None]) -> Any:
    if type(value) is not int:  # a bool is an int, too
        return fault("must be an id, a whole number")
    return value if 0 < value < 2**63 else fault("does not exist")  # what SQLite can hold


def references(value: Any, fault: Callable[..., None]) -> Any:
    if not isinstance(value, list):
        return fault("must be a list of user ids")
    # What a GET returned counts by its id.
    ids = [
        item["id"] if isinstance(item, dict) and USER_KEYS >= item.keys() >= {"id"} else item
        for item in value
    ]
    return [
        reference(item, lambda detail, place=place: fault(detail, f"/{place}"))
        for place, item in enumerate(ids)
    ]


USER_KEYS = {"id", "name", "email"}
USER: dict[str, Check] = {"name": line(3, 100), "email": email}
PROJECT: dict[str, Check] = {"name": line(3, 100)}
TICKET: dict[str, Check] = {
    "title": line(1, 200),
    "description": description,
    "project_id": reference,
    "status": status,
    "assignees": references,
}


def validate(
    data: dict[str, Any], fields: dict[str, Check], ignored: set[str], missing: str | None
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The clean fields, and all faults; `missing` says what is wrong with leaving a field out."""
    clean: dict[str, Any] = {}
    errors: list[dict[str, str]] = []
    for name in sorted(data.keys() - fields.keys() - ignored):
        errors.append(error_at(name, "is not a field that can be set here"))
    for name, check in fields.items():
        if name in data:
            clean[name] = check(
                data[name], lambda *fault, name=name: errors.append(error_at(name, *fault))
            )
        elif missing:
            errors.append(error_at(name, missing))
    return clean, errors


def error_at(name: str, detail: str, inside: str = "") -> dict[str, str]:
    """An entry of `errors`, with a JSON pointer (RFC 6901) as a URI fragment."""
    name = name.replace("~", "~0").replace("/", "~1")
    return {"pointer": f"#/{quote(name, '~', errors='replace')}{inside}", "detail": detail}


def read_fields(
    call: Call, fields: dict[str, Check], read_only: set[str], **defaults: Any
) -> dict[str, Any]:
    """The clean fields of the body; `defaults` stand for what a POST leaves out. Raises Problem.

    A PATCH may leave out everything, and PUT and PATCH may send back what is read-only.
    """
    method = call.environ["REQUEST_METHOD"]
    data, ignored = call.data, read_only
    if method == "POST":
        data, ignored = defaults | data, set()
    missing = None if method == "PATCH" else "is required"
    if method == "PUT" and fields is TICKET:
        missing = "is required in a PUT; PATCH changes single fields"
    clean, errors = validate(data, fields, ignored, missing)
    for name, what in (("project_id", "project"), ("assignees", "user")):
        value = clean.get(name)
        ids = value if isinstance(value, list) else [value]
        unknown = set(db.list_missing(call.conn, f"{what}s", [id for id in ids if id]))
        for place, id in enumerate(ids):
            if id in unknown:
                inside = f"/{place}" if ids is value else ""
                errors.append(error_at(name, f"there is no {what} {id}", inside))
    if errors:
        count = "1 field is" if len(errors) == 1 else f"{len(errors)} fields are"
        raise Problem(422, f"{count} not valid.", errors)
    return clean


def read_body(environ: dict[str, Any], media_types: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of the request. Raises Problem for anything else."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip(" \t").lower() not in media_types:
        raise Problem(415, f"The body must be labelled Content-Type: {media_types[0]}.")
    # Not bottle.request.body: it would decode chunks once more that the server has decoded.
    length = environ.get("CONTENT_LENGTH") or ""
    if environ.get("wsgi.input_terminated") and not length:
        body: bytes = environ["wsgi.input"].read(MAX_BODY + 1)
    elif "HTTP_TRANSFER_ENCODING" in environ or not re.fullmatch("[0-9]{0,18}", length):
        raise Problem(400, "The length of the body is not known.")
    else:
        size = min(int(length or 0), MAX_BODY + 1)
        body = environ["wsgi.input"].read(size)
        if len(body) < size:
            raise Problem(400, "The body is shorter than its Content-Length says.")
    if len(body) > MAX_BODY:
        raise Problem(413, f"The body is larger than {MAX_BODY:,} bytes.")
    return parse_object(body)


def parse_object(text: bytes) -> dict[str, Any]:
    """JSON in UTF-8 by the letter of RFC 8259, of which only an object is taken. Raises Problem."""

    def without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(pairs)) < len(pairs):
            raise ValueError("a key is there twice")
        return result

    def finite(number: str) -> float:
        if not math.isfinite(value := float(number)):
            raise ValueError(f"{number[:20]} is not a number that JSON can hold")
        return value

    try:
        data = json.loads(
            text.decode(),
            object_pairs_hook=without_twins,
            parse_constant=finite,  # NaN, Infinity
            parse_float=finite,
            parse_int=lambda digits: int(digits[:20]),  # beyond every id, and quick to read
        )
    except RecursionError as error:
        raise Problem(400, "The body nests too deep.") from error
    except ValueError as error:
        raise Problem(400, f"The body is not JSON: {error}.") from error
    if not isinstance(data, dict):
        raise Problem(400, "The body must be a JSON object.")
    return data


def read_query(text: str, checks: dict[str, Check]) -> dict[str, Any]:
    """The clean query parameters; under "others" all pairs but `after`. Raises Problem."""
    if not text:
        return {"others": []}
    try:
        # WSGI hands over bytes as Latin-1, and so do we, to the one strict decoder.
        raw = parse_qsl(text, keep_blank_values=True, encoding="latin-1", max_num_fields=50)
        pairs = [
            (name.encode("latin-1").decode(), value.encode("latin-1").decode())
            for name, value in raw
        ]
    except ValueError as error:
        raise Problem(400, "The query is not UTF-8, or has too many parameters.") from error
    query: dict[str, Any] = {"others": [pair for pair in pairs if pair[0] != "after"]}
    errors: list[dict[str, str]] = []
    for name in dict(pairs):
        values = [value for given, value in pairs if given == name]

        def fault(detail: str, name: str = name) -> None:
            errors.append({"parameter": name, "detail": detail})

        if name not in checks:
            known = ", ".join(checks)
            fault(f"is unknown; known are: {known}" if known else "is unknown; there are none here")
        elif name == "status":
            query[name] = [status(value, fault) for value in values]
        elif len(values) > 1:
            fault("may be given only once")
        else:
            query[name] = checks[name](values[0], fault)
    if errors:
        raise bad_query(errors)
    return query


def bad_query(errors: list[dict[str, str]]) -> Problem:
    count = "1 parameter is" if len(errors) == 1 else f"{len(errors)} parameters are"
    return Problem(400, f"{count} not valid.", errors)


def row_id(value: str, fault: Callable[..., None]) -> Any:
    return int(value) if re.fullmatch(r"[1-9][0-9]{0,17}", value) else fault("must be an id")


def page_size(value: str, fault: Callable[..., None]) -> Any:
    size = int(value) if re.fullmatch(r"[0-9]{1,3}", value) else 0
    return size if 1 <= size <= 200 else fault("must be a whole number from 1 to 200")


def one_of(*values: str) -> Check:
    return lambda value, fault: (
        value if value in values else fault(f"must be one of: {', '.join(values)}")
    )


def write_cursor(order: str, id: int, touched_at: str = "") -> str:
    return base64.urlsafe_b64encode(f"{order} {id} {touched_at}".encode()).decode().rstrip("=")


def read_cursor(value: str, fault: Callable[..., None]) -> Any:
    with suppress(ValueError):
        text = base64.urlsafe_b64decode(value.encode("ascii") + b"==").decode()
        if found := re.fullmatch(r"(\S+) ([1-9][0-9]{0,17}) ([0-9TZ:.-]*)", text):
            order, id, touched_at = found.groups()
            if write_cursor(order, int(id), touched_at) == value:
                return order, int(id), touched_at
    return fault("is not from a Link of this list")


PAGE: dict[str, Check] = {"limit": page_size, "after": read_cursor}
SORTS = ("-created", "created", "updated", "-updated")


# ---------------------------------------------------------------- routes

Handler = Callable[..., Any]


class Route(NamedTuple):
    method: str
    path: str
    handler: Handler
    query: dict[str, Check]  # the parameters that it knows
    takes: tuple[str, ...]  # the media types of its body


ROUTES: list[Route] = []


def route(
    method: str, path: str, query: dict[str, Check] | None = None, takes: tuple[str, ...] = ()
) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        ROUTES.append(Route(method, path, handler, query or {}, takes))
        return handler

    return register


@route("GET", "/users", PAGE)
def list_users(call: Call) -> Any:
    after, _ = call.after("users") or (0, "")
    return call.page(db.list_users(call.conn, after, call.limit + 1), "users")


@route("POST", "/users", takes=JSON)
def create_user(call: Call) -> Any:
    user_id = db.create_user(call.conn, read_fields(call, USER, set()))
    return call.answer(db.get_user(call.conn, user_id), 201, f"/users/{user_id}")


@route("GET", "/users/<user_id:id>")
def get_user(call: Call, user_id: int) -> Any:
    return call.answer(db.get_user(call.conn, user_id))


@route("PUT", "/users/<user_id:id>", takes=JSON)
def update_user(call: Call, user_id: int) -> Any:
    call.check(db.get_user(call.conn, user_id))
    db.update_user(call.conn, user_id, read_fields(call, USER, {"id"}))
    return call.answer(db.get_user(call.conn, user_id))


@route("DELETE", "/users/<user_id:id>")
def delete_user(call: Call, user_id: int) -> Any:
    call.check(db.get_user(call.conn, user_id))
    for ticket, changes in db.delete_user(call.conn, user_id):
        call.tell(ticket, changes)
    return bottle.HTTPResponse(status=204)


@route("GET", "/projects", PAGE)
def list_projects(call: Call) -> Any:
    after, _ = call.after("projects") or (0, "")
    return call.page(db.list_projects(call.conn, after, call.limit + 1), "projects")


@route("POST", "/projects", takes=JSON)
def create_project(call: Call) -> Any:
    project_id = db.create_project(call.conn, read_fields(call, PROJECT, set()))
    return call.answer(db.get_project(call.conn, project_id), 201, f"/projects/{project_id}")


@route("GET", "/projects/<project_id:id>")
def get_project(call: Call, project_id: int) -> Any:
    return call.answer(db.get_project(call.conn, project_id))


@route("PUT", "/projects/<project_id:id>", takes=JSON)
def update_project(call: Call, project_id: int) -> Any:
    call.check(db.get_project(call.conn, project_id))
    db.update_project(call.conn, project_id, read_fields(call, PROJECT, {"id", "tickets"}))
    return call.answer(db.get_project(call.conn, project_id))


@route("DELETE", "/projects/<project_id:id>")
def delete_project(call: Call, project_id: int) -> Any:
    call.check(db.get_project(call.conn, project_id))
    db.delete_project(call.conn, project_id)
    return bottle.HTTPResponse(status=204)


@route(
    "GET",
    "/tickets",
    PAGE
    | {
        "project_id": row_id,
        "assignee_id": row_id,
        "status": status,
        "text": text,
        "sort": one_of(*SORTS),
    },
)
def list_tickets(call: Call) -> Any:
    order = call.query.get("sort", "-created")
    rows = db.list_tickets(
        call.conn,
        project_id=call.query.get("project_id"),
        assignee_id=call.query.get("assignee_id"),
        statuses=call.query.get("status", ()),
        text=call.query.get("text", ""),
        sort=order,
        after=call.after(order),
        limit=call.limit + 1,
    )
    return call.page(rows, order)


@route("POST", "/tickets", takes=JSON)
def create_ticket(call: Call) -> Any:
    fields = read_fields(call, TICKET, set(), description=None, assignees=[])
    ticket_id = db.create_ticket(call.conn, fields)
    document = db.get_ticket(call.conn, ticket_id)
    call.tell(json.loads(document))
    return call.answer(document, 201, f"/tickets/{ticket_id}")


@route("GET", "/tickets/<ticket_id:id>")
def get_ticket(call: Call, ticket_id: int) -> Any:
    return call.answer(db.get_ticket(call.conn, ticket_id))


@route("PUT", "/tickets/<ticket_id:id>", takes=JSON)
@route("PATCH", "/tickets/<ticket_id:id>", takes=MERGE_PATCH)
def update_ticket(call: Call, ticket_id: int) -> Any:
    before = db.get_ticket(call.conn, ticket_id)
    call.check(before)
    fields = read_fields(call, TICKET, {"id", "created_at", "updated_at"})
    return change_ticket(call, json.loads(before), fields)


@route("PUT", "/tickets/<ticket_id:id>/assignees/<user_id:id>")
def assign(call: Call, ticket_id: int, user_id: int) -> Any:
    document = db.get_ticket(call.conn, ticket_id)
    db.get_user(call.conn, user_id)
    call.check(document)
    before = json.loads(document)
    return change_ticket(
        call, before, {"assignees": [user["id"] for user in before["assignees"]] + [user_id]}
    )


@route("DELETE", "/tickets/<ticket_id:id>/assignees/<user_id:id>")
def unassign(call: Call, ticket_id: int, user_id: int) -> Any:
    document = db.get_ticket(call.conn, ticket_id)
    before = json.loads(document)
    assignees = [user["id"] for user in before["assignees"]]
    if user_id not in assignees:
        raise db.NotFound(f"User {user_id} is not assigned to ticket {ticket_id}.")
    call.check(document)
    return change_ticket(call, before, {"assignees": [id for id in assignees if id != user_id]})


def change_ticket(call: Call, before: dict[str, Any], fields: dict[str, Any]) -> Any:
    """Act, tell, answer: what all changes of a ticket have in common."""
    after, changes = db.update_ticket(call.conn, before, fields)
    if changes:
        call.tell(after, changes)
    return call.answer(db.get_ticket(call.conn, before["id"]))


@route("GET", "/tickets/<ticket_id:id>/history", PAGE)
def list_history(call: Call, ticket_id: int) -> Any:
    db.get_ticket(call.conn, ticket_id)
    order = f"history-{ticket_id}"
    after, _ = call.after(order) or (0, "")
    return call.page(db.list_history(call.conn, ticket_id, after, call.limit + 1), order)


@route("GET", "/emails", PAGE | {"state": one_of("queued", "sent", "failed"), "ticket_id": row_id})
def list_emails(call: Call) -> Any:
    after, _ = call.after("emails") or (None, "")
    state, ticket_id = call.query.get("state"), call.query.get("ticket_id")
    return call.page(db.list_emails(call.conn, state, ticket_id, after, call.limit + 1), "emails")


@route("GET", "/emails/<email_id:id>")
def get_email(call: Call, email_id: int) -> Any:
    return call.answer(db.get_email(call.conn, email_id))


@route("POST", "/emails/<email_id:id>/retry")
def retry_email(call: Call, email_id: int) -> Any:
    db.retry_email(call.conn, email_id)
    call.told = True
    return call.answer(db.get_email(call.conn, email_id), 202)


@route("GET", "/health")
def health(call: Call) -> Any:
    return call.answer(db.get_health(call.conn))


@route("GET", "/openapi.json")
def openapi(call: Call) -> Any:
    return call.answer(Path(__file__).with_name("openapi.json").read_bytes())


# ---------------------------------------------------------------- create_app and the command line


def create_app(
    database: str | os.PathLike[str] | None = None,
    smtp: str | None = None,
    sender: str | None = None,
    allowed_hosts: Iterable[str] | None = None,
    clock: Callable[[], datetime] = db.utc_now,
    output: TextIO | None = None,
) -> Application:
    """The tracker as a WSGI application, to be ended with its close().

    What is None comes from TRACKER_DB, TRACKER_SMTP, TRACKER_SENDER, TRACKER_ALLOWED_HOSTS,
    or is "tickets.db", "" (mail is printed to `output`, by default standard output), an
    address at localhost, and the loopback names only. `allowed_hosts` are names without a
    port; "*" ends the check of Host. Raises ValueError for a bad setting, and
    db.Unavailable if the database cannot be opened.
    """
    env = os.environ
    database = database if database is not None else env.get("TRACKER_DB") or "tickets.db"
    smtp = smtp if smtp is not None else env.get("TRACKER_SMTP", "")
    sender = sender if sender is not None else env.get("TRACKER_SENDER") or "tracker@localhost"
    if allowed_hosts is None:
        allowed_hosts = re.split(r"[,\s]+", env.get("TRACKER_ALLOWED_HOSTS", ""))
    if not SENDER.fullmatch(sender):
        raise ValueError(f"the sender {sender!r} is not an email address")
    server = mailer.Smtp(smtp, sender) if smtp else mailer.Console(output or sys.stdout)
    base = db.Database(database, clock)
    app = Application(base, mailer.Mailer(base, server, sender), filter(None, allowed_hosts))
    app.mailer.start()
    return app


class Parser(HTTPRequestParser):
    """Refuses early what is too large or contradicts itself, and takes one request at a time."""

    REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+( HTTP/[0-9]\.[0-9])?")

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        body = self.body_rcv
        if max(self.content_length, 0 if body is None else len(body)) > MAX_BODY:
            self.error: Any = RequestEntityTooLarge(f"The body is larger than {MAX_BODY:,} bytes.")
            self.completed = True
        if self.completed:
            self.expect_continue = False  # waitress would wait for more, in vain
            if consumed < len(data) and not self.empty:
                # No pipelining: who asks on and on but reads no answers would block a thread.
                self.headers["CONNECTION"] = "close"
                consumed = len(data)
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        # The patterns of waitress take minutes for a long request line that is wrong, and for a
        # header full of blanks; and control characters would vanish from the path in silence.
        line, _, rest = header_plus.partition(b"\r\n")
        if not self.REQUEST_LINE.fullmatch(line.rstrip()):
            raise ParsingError("The request line is not valid.")
        if b" " * 100 in rest.replace(b"\t", b" ") or re.search(rb"\r\n[ \t]", header_plus):
            raise ParsingError("A header is folded, or holds too many blanks.")
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # of an address in brackets, of a length of 5,000 digits
            raise ParsingError(f"The request is not valid: {error}.") from error
        if "TRANSFER_ENCODING" in self.headers:  # RFC 9112, 6.1: HTTP/1.0 knows no chunks
            raise ParsingError("Transfer-Encoding needs HTTP/1.1.")
        if self.chunked and "CONTENT_LENGTH" in self.headers:  # who is right? RFC 9112, 6.3
            raise ParsingError("Content-Length and Transfer-Encoding contradict each other.")


class ProblemTask(ErrorTask):
    """Says as a problem what waitress itself refuses."""

    def execute(self) -> None:
        error = self.request.error
        problem = Problem(error.code, error.body)
        self.status = f"{problem.status} {problem.title}"
        self.response_headers.extend(problem.headers.items())
        self.set_close_on_finish()
        self.content_length = len(problem.body)
        self.write(problem.body)
        self.channel.refused = 16 * MAX_BODY


class Channel(HTTPChannel):
    """A connection that hangs up gently.

    To close it while the client is still sending would reset it, and the client would
    never read why. So what comes after a refusal is dropped for a while, then it is closed.
    """

    parser_class = Parser
    error_task_class = ProblemTask
    refused = 0  # bytes that may still come
    lingering = False

    def writable(self) -> bool:
        if self.will_close:  # waitress would wait until the client reads, which it may never do
            self.handle_close()
            return False
        return bool(super().writable())

    def handle_close(self) -> None:
        if not self.refused or self.lingering:
            super().handle_close()
        else:
            self.lingering, self.will_close = True, False
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def handle_read(self) -> None:
        if not self.lingering:
            super().handle_read()
        elif self.refused > 0:
            self.refused -= len(self.recv(MAX_BODY))
        else:
            super().handle_close()


class Dispatcher:
    """Decides who answers a request.

    A read along an index costs less than handing it to a thread and back, so the loop that
    receives it answers it (bench/server.py). Reads that may have to search have threads. So
    have writes, of their own: they wait for each other, for the disk, or for whoever has
    locked the database, and no read shall wait with them. They are many, as those who wait
    together share a commit.
    """

    SEARCHES = re.compile("text|assignee|%")  # in a query; with % it might spell the others

    def __init__(self) -> None:
        self.readers, self.writers = ThreadedTaskDispatcher(), ThreadedTaskDispatcher()
        self.readers.set_thread_count(4)
        self.writers.set_thread_count(16)
        self.quick: deque[HTTPChannel] = deque()

    def add_task(self, channel: HTTPChannel) -> None:
        request = channel.requests[0]
        if not request.error and request.command not in ("GET", "HEAD"):
            self.writers.add_task(channel)
        elif not request.error and self.SEARCHES.search(request.query):
            self.readers.add_task(channel)
        else:
            self.quick.append(channel)

    def answer_quick(self) -> None:
        while self.quick:
            channel = self.quick.popleft()
            try:
                channel.service()
            except Exception:  # of waitress; the loop must go on
                log.exception("A connection broke")
                channel.handle_close()

    def shutdown(self, timeout: float) -> None:
        for threads in (self.writers, self.readers):
            threads.shutdown(timeout=timeout / 2)


def serve(app: Application, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises OSError if the port cannot be had."""
    sockets: dict[int, Any] = {}
    dispatcher = Dispatcher()
    try:
        if not 0 <= port < 65536:  # the system would take it modulo 65536
            raise OSError("a port is a number from 0 to 65535")
        create_server(
            app,
            map=sockets,
            host=host,
            port=port,
            _dispatcher=dispatcher,
            connection_limit=900,  # and the files of the database within the usual 1024
            channel_timeout=30,
            cleanup_interval=5,
            max_request_header_size=64 * 1024,
            max_request_body_size=8 * MAX_BODY,  # as chunks, each with its overhead
            asyncore_use_poll=True,
        )
    except (OSError, ValueError) as error:
        app.close()
        raise OSError(f"cannot listen on {host} port {port}: {error}") from error
    for listener in sockets.values():
        if isinstance(listener, BaseWSGIServer):
            listener.channel_class = Channel
            port = listener.effective_port

    stop = threading.Event()
    # Only a flag: an exception raised here could meet an `except` of waitress, and get lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.set())
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a queue is no cause for alarm
    # Handing the interpreter over between its threads is what costs waitress most.
    sys.setswitchinterval(0.0005)
    if not is_loopback(host):
        print(
            f"Warning: there is no login; whoever reaches {host} can read and change all.",
            flush=True,
        )
    shown = f"[{host}]" if ":" in host else host
    print(
        f"Tracker ready on http://{shown}:{port}, database {app.database.name},"
        f" mail goes to {app.mailer.server}.",
        flush=True,
    )
    while not stop.is_set():
        wasyncore.loop(timeout=0.2, use_poll=True, map=sockets, count=1)
        dispatcher.answer_quick()
    dispatcher.shutdown(timeout=1)
    app.close()


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    env = os.environ
    options: dict[str, dict[str, Any]] = {
        "--db": {"default": env.get("TRACKER_DB") or "tickets.db", "help": "the database file"},
        "--host": {
            "default": env.get("TRACKER_HOST") or "127.0.0.1",
            "help": "the address to bind to",
        },
        "--port": {
            "default": env.get("TRACKER_PORT") or "8080",
            "type": int,
            "help": "the port, 0 for any",
        },
        "--smtp": {"metavar": "URL", "help": "smtp://user:password@host:port or smtps://..."},
        "--sender": {"metavar": "ADDRESS", "help": "whom mail comes from"},
        "--allow-host": {
            "metavar": "NAME",
            "action": "append",
            "help": "serve this Host, too; * for any",
        },
        "--quiet": {"action": "store_true", "help": "no line per request"},
    }
    parser = argparse.ArgumentParser(prog="tracker", description="A ticket tracker with mail.")
    commands = parser.add_subparsers(dest="command", metavar="backup | send-test-mail")
    backup = commands.add_parser("backup", help="write a consistent copy while the server runs")
    backup.add_argument("file", metavar="FILE")
    test = commands.add_parser(
        "send-test-mail", help="send a mail through the queue, and tell what came of it"
    )
    test.add_argument("address", metavar="ADDRESS")
    for name, settings in options.items():
        parser.add_argument(name, **settings)
        for command in (backup, test):  # options may stand behind the command as well
            command.add_argument(name, **{**settings, "default": argparse.SUPPRESS})
    args = parser.parse_args(argv)

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    access.setLevel(logging.WARNING if args.quiet else logging.INFO)
    try:
        if args.command == "backup":
            return run_backup(args.db, args.file)
        app = create_app(args.db, args.smtp, args.sender, args.allow_host)
        if args.command == "send-test-mail":
            return run_test_mail(app, args.address)
        serve(app, args.host, args.port)
        return 0
    except (ValueError, OSError) as error:
        print(f"tracker: {error}", file=sys.stderr)
    except (db.Unavailable, sqlite3.Error) as error:
        print(f"tracker: {args.db}: {error}", file=sys.stderr)
    return 1


def run_backup(database: str, target: str) -> int:
    if not os.path.exists(database):
        raise FileNotFoundError(f"there is no database {database}")

    def progress(done: int, pages: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{100 * done // pages} %", end="" if done < pages else "\n", file=sys.stderr)

    db.Database(database).backup(target, progress)
    print(f"Backed up {database} to {target}, {os.path.getsize(target):,} bytes.")
    return 0


def run_test_mail(app: Application, address: str) -> int:
    if not EMAIL.fullmatch(address):
        raise ValueError(f"{address!r} is not a valid email address")
    taken, said = mailer.send_test_mail(app.mailer, address, patience=30)
    app.close()
    way = f" through {app.mailer.server}" if app.mailer.delivers else ""
    print(f"Mail to {address}{way}: {said}")
    return 0 if taken else 1


if __name__ == "__main__":
    sys.exit(main())
