"""The boundary of every request: what comes in is guarded and strict, what goes out is told once.

It knows JSON, queries, ETags, pages and problem details (RFC 9457); what they are about is
told by the routes of the service. Only Bottle's router is used, as a value: its request
and response are globals that a host application may be using as well.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import ipaddress
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

import bottle

from . import Unavailable, idempotency
from .engine import Database
from .rule import ID, Cursor, Query, write_cursor
from .text import fault_of_line

access = logging.getLogger("tracker.access")

MAX_BODY = 64 * 1024  # bytes
JSON = ("application/json",)
MERGE_PATCH = ("application/merge-patch+json", "application/json")  # RFC 7396

Environ = dict[str, Any]


class Answer(NamedTuple):
    """What a request is answered; the length is added on its way out."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


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
        members = {"title": title_of(status), "status": status, "detail": detail, **facts}
        body = json.dumps(members | ({"errors": errors} if errors else {})).encode()
        kind = {"Content-Type": "application/problem+json"}
        self.answer = Answer(status, kind | (headers or {}), body)


def not_valid(errors: list[dict[str, str]]) -> Problem:
    """The problem of a body, or of a query, with these faults."""
    what, status = ("field", 422) if "pointer" in errors[0] else ("parameter", 400)
    count = f"1 {what} is" if len(errors) == 1 else f"{len(errors)} {what}s are"
    return Problem(status, f"{count} not valid.", errors)


def title_of(status: int) -> str:
    """The reason phrase of a status, as RFC 9110 has it."""
    newer = {413: "Content Too Large", 422: "Unprocessable Content"}
    return newer.get(status) or http.client.responses[status]


# ---------------------------------------------------------------- routes and calls


class Route(NamedTuple):
    """What is answered at a path: `handler(call, **ids)` returns an Answer or raises."""

    method: str
    path: str  # <name:id> in it matches a positive integer
    handler: Callable[..., Answer]
    query: Query  # the parameters that it knows
    takes: tuple[str, ...]  # the media types of its body; none: it has no body


class Routes(list[Route]):
    """All routes of a service; called, it makes a decorator that adds one."""

    def __call__(
        self,
        method: str,
        path: str,
        query: Query | None = None,
        takes: tuple[str, ...] = (),
    ) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
        """Have the function answer requests; see Route."""

        def register(handler: Callable[..., Answer]) -> Callable[..., Answer]:
            self.append(Route(method, path, handler, query or {}, takes))
            return handler

        return register


@dataclass
class Call:
    """What a handler works with: a request, and the transaction that was begun for it."""

    app: Any  # the application of the service
    environ: Environ
    began: float  # by time.perf_counter()
    route: Route = None  # type: ignore[assignment]  # until it is received
    ids: dict[str, int] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    others: list[tuple[str, str]] = field(default_factory=list)  # the query without `after`
    data: dict[str, Any] = field(default_factory=dict)  # the body
    key: str | None = None  # the Idempotency-Key of a creation
    digest: str = ""  # and that of what it asks for
    conn: Any = None  # until a transaction is begun
    after_commit: Callable[[], None] | None = None  # for what leaves the process
    answered: Answer = None  # type: ignore[assignment]  # until it is

    def act(self) -> Answer:
        """What the handler answers."""
        return self.route.handler(self, **self.ids)

    def require_match(self, document: bytes) -> None:
        """Let only those write who know this state of the resource (RFC 9110, section 13).

        A tag is made of the content, so its weak form, to which a proxy that compresses
        turns it, is as good. Raises Problem 412.
        """
        etag = etag_of(document)
        known = self.environ.get("HTTP_IF_MATCH", "*")
        if not (known.strip() == "*" or etag in _tags(known)):
            raise Problem(412, "Somebody else was faster: get it again, then repeat the change.")
        unwanted = self.environ.get("HTTP_IF_NONE_MATCH", "")
        if unwanted.strip() == "*" or etag in _tags(unwanted):
            raise Problem(412, "It exists in this state, which If-None-Match rules out.")

    def answer(self, document: bytes, status: int = 200, location: str | None = None) -> Answer:
        """A single resource with its ETag, or 304 to those who have it already."""
        etag = etag_of(document)
        known = self.environ.get("HTTP_IF_NONE_MATCH", "")
        if self.route.method == "GET" and (known.strip() == "*" or etag in _tags(known)):
            return Answer(304, {"ETag": etag})
        headers = {"Content-Type": "application/json", "ETag": etag}
        if location:
            headers["Location"] = self.url(location)
        return Answer(status, headers, document)

    def html(self, document: bytes) -> Answer:
        """A page of one file, which may run and wear only what stands in it, and ask only us."""
        answer = self.answer(document)
        if answer.status == 304:
            return answer
        return Answer(200, answer.headers | html_headers(document), document)

    def page(self, order: str, document: bytes, next: tuple[str, int] | None) -> Answer:
        """A part of a list in this order; `next` is where there is more: see start()."""
        headers = {"Content-Type": "application/json"}
        if next:
            query = urlencode([*self.others, ("after", write_cursor(order, *next))])
            headers["Link"] = f'<{self.url(self.environ["PATH_INFO"])}?{query}>; rel="next"'
        return Answer(200, headers, document)

    def start(self, order: str) -> tuple[str, int] | None:
        """The place and id at which the page starts. Raises Problem for another order's."""
        after: Cursor | None = self.query.get("after")
        if after and after.order != order:
            raise not_valid([{"parameter": "after", "detail": "is from a list in another order"}])
        return (after.place, after.id) if after else None

    @property
    def user(self) -> str | None:
        """Who makes the request, as the host application or a proxy says, if one does."""
        given = self.environ.get("REMOTE_USER") or self.environ.get(self.app.user_key) or ""
        given = given.encode("latin-1", "replace").decode("utf-8", "replace").strip()  # WSGI's way
        return given[:254] if given and not fault_of_line(given) else None

    @property
    def limit(self) -> int:
        """How many items a page has at most."""
        return int(self.query.get("limit", 50))

    def url(self, path: str) -> str:
        """The path as the client knows it, also where the service is mounted under a prefix."""
        return quote(self.environ.get("SCRIPT_NAME", ""), "/", "latin-1") + path


def etag_of(document: bytes) -> str:
    """A strong ETag: the same for the same content, whoever answers."""
    return f'"{hashlib.blake2b(document, digest_size=12).hexdigest()}"'


def html_headers(document: bytes) -> dict[str, str]:
    """What keeps a page safe: no script, style, frame or origin but its own inline parts and us.

    Nor may its script make elements of text: that is what Trusted Types without a policy forbid.
    """

    def hashes(element: bytes) -> str:
        parts = re.findall(b"<%b>(.*?)</%b>" % (element, element), document, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    policy = (
        f"default-src 'none'; script-src {hashes(b'script')}; style-src {hashes(b'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _tags(header: str) -> list[str]:
    # Proxies that compress make W/"tag" of "tag", or "tag-gzip", and do not take it back.
    return [f'"{tag}"' for tag in re.findall(r'"([0-9a-f]*)(?:-\w+)?"', header)]


# ---------------------------------------------------------------- reading a request


def guard(environ: Environ, allowed_hosts: set[str], how_to_allow: str) -> None:
    """Keep out what the page of another site, open in a user's browser, may send. Raises Problem.

    Loopback names are always allowed; "*" allows all. `how_to_allow` says how to allow "{0}".
    """
    host = environ.get("HTTP_HOST", "").lower()
    name = name_of(host)
    if not (is_loopback(name) or allowed_hosts & {name, "*"}):
        hint = how_to_allow.format(name) if name else "It is not the name of a host."
        raise Problem(403, f"The host {host[:300]!r} is not served here. {hint}")
    method = environ["REQUEST_METHOD"]
    if method not in ("GET", "HEAD", "OPTIONS"):
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and _without_port(origin.partition("://")[2]) != _without_port(host):
            raise Problem(
                403,
                f"A page of another site may not write here: it is of {origin[:300]!r}, and the"
                f" request is to {host!r}. A proxy in between must pass Host on as it came, with"
                " its port; X-Forwarded-Host does not count.",
            )
        if environ.get("HTTP_SEC_FETCH_SITE") in ("cross-site", "same-site"):
            raise Problem(403, "A page of another site may not write here.")
    if not method.isupper():  # Bottle would take "delete" for DELETE
        raise Problem(400, "The method must be in capital letters.")


def _without_port(host: str) -> str:
    return re.sub(r":(80|443)$", "", host.lower())


@lru_cache(100)  # asked at each request, and nearly always for the same host
def name_of(host: str) -> str:
    """The name or address in a Host header, without port and brackets; "" if it is none."""
    named = re.fullmatch(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:[0-9]*)?", host, re.ASCII)
    return named[1].strip("[]") if named else ""


@lru_cache(100)
def is_loopback(host: str) -> bool:
    """Whether this is a name or address of the machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_body(environ: Environ, media_types: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of the request. Raises Problem for anything else."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip(" \t").lower() not in media_types:
        raise Problem(415, f"The body must be labelled Content-Type: {media_types[0]}.")
    # Not by Bottle: it would decode chunks once more that the server has decoded.
    length = environ.get("CONTENT_LENGTH") or ""
    ends = bool(environ.get("wsgi.input_terminated") and not length)  # by itself
    known = re.fullmatch("[0-9]{0,18}", length) and "HTTP_TRANSFER_ENCODING" not in environ
    if not (ends or known):
        raise Problem(400, "The length of the body is not known: send it as Content-Length.")
    size = MAX_BODY + 1 if ends else min(int(length or 0), MAX_BODY + 1)
    try:
        body: bytes = environ["wsgi.input"].read(size)
    except Exception as error:  # each server has its own for a client that breaks off
        raise Problem(400, "The body breaks off, or its chunks are not well formed.") from error
    if len(body) < size and not ends:
        raise Problem(400, "The body is shorter than its Content-Length says.")
    if len(body) > MAX_BODY:
        raise Problem(413, f"The body is larger than {MAX_BODY:,} bytes.")
    return parse_object(body)


def read_key(environ: Environ) -> str | None:
    """The Idempotency-Key of the request, if it has one. Raises Problem."""
    key: str | None = environ.get("HTTP_IDEMPOTENCY_KEY")
    if key is None or re.fullmatch("[ -~]{1,255}", key):
        return key
    raise Problem(400, "An Idempotency-Key must have 1 to 255 printable ASCII characters.")


def parse_object(body: bytes) -> dict[str, Any]:
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
            body.decode(),
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


def read_query(query: str, rules: Query) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The clean parameters, and all pairs but `after` as they came. Raises Problem."""
    try:
        # WSGI hands over bytes as Latin-1, and so do we, to the one strict decoder.
        raw = parse_qsl(query, keep_blank_values=True, encoding="latin-1", max_num_fields=50)
        pairs = [
            (name.encode("latin-1").decode(), value.encode("latin-1").decode())
            for name, value in raw
        ]
    except ValueError as error:
        raise Problem(400, "The query is not UTF-8, or has too many parameters.") from error
    clean: dict[str, Any] = {}
    errors: list[dict[str, str]] = []
    for name in dict(pairs):
        values = [value for given, value in pairs if given == name]

        def fault(detail: str, name: str = name) -> None:
            errors.append({"parameter": name, "detail": detail})

        match rules.get(name):
            case None:
                known = ", ".join(rules)
                fault(f"is unknown; known are: {known}" if known else "is unknown; none is known")
            case [rule]:
                clean[name] = [rule(value, fault) for value in values]
            case rule if len(values) == 1:
                clean[name] = rule(values[0], fault)  # type: ignore[operator]
            case _:
                fault("may be given only once")
    if errors:
        raise not_valid(errors)
    return clean, [pair for pair in pairs if pair[0] != "after"]


# ---------------------------------------------------------------- the application


class Application:
    """Routes over a database, as a WSGI application.

    What protects it stands here around the routes, so that no way of mounting loses it.
    `problem_of` is the one map from what went wrong to what the client is told; `user_key` is
    the WSGI variable in which a proxy says who it is.
    """

    how_to_allow = ""  # the words for whoever asks for a host that is not allowed
    what_there_is = ""  # and for a path that does not exist

    def __init__(
        self,
        routes: Sequence[Route],
        database: Database,
        problem_of: Callable[[Exception], Problem],
        allowed_hosts: Iterable[str],
        user_key: str,
    ) -> None:
        self.allowed_hosts = {host.lower() for host in allowed_hosts}
        self.user_key = user_key
        self.database, self._problem_of = database, problem_of
        self._router = bottle.Router()
        # Bottle's own <id:int> matches -5, 007, the digits of other scripts, and "1\n".
        self._router.add_filter("id", lambda _: (ID, int, str))
        for route in routes:
            self._router.add(route.path, route.method, route)

    def start(self) -> None:
        """Called at each request; a service begins here what it does beside answering."""

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        answer = self.answer(environ)
        headers = list(answer.headers.items())
        if answer.status not in (204, 304):
            headers.append(("Content-Length", str(len(answer.body))))
        start_response(f"{answer.status} {title_of(answer.status)}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" or not answer.body else [answer.body]

    def answer(self, environ: Environ) -> Answer:
        """The answer to a request by itself."""
        self.start()
        call = self._receive(environ)
        self._answer_alone(call)
        self._log(call)
        return call.answered

    def answer_together(self, environs: Iterator[Environ]) -> list[Answer]:
        """The answers to many writes that share one commit.

        1. Each request is read, then handled in its own part of one transaction. What fails
           by itself takes back only its part.
        2. Commit. Only then does anything leave: mail is announced, and all are answered,
           also who was refused, as they were told of what the others did.
        3. If the transaction cannot begin or be committed, nobody's change was made, and all
           are told so.
        4. If a part finds the database broken, a damaged row for instance, all is taken back
           and each is handled again by itself, so that it fails for those whom it concerns.
        """
        self.start()
        calls: list[Call] = []
        broken = False
        try:
            with self.database.batch() as batch:
                for environ in environs:
                    calls.append(call := self._receive(environ))
                    try:
                        self._handle(call, batch.write)
                    except Unavailable:
                        broken = True
                        raise
        except Unavailable as error:
            if not calls:  # whoever else waits would wait as long, and in vain
                calls += map(self._receive, environs)
            for call in calls:
                if call.answered and not call.conn:
                    continue  # it was refused as it was read
                call.answered = call.after_commit = None  # type: ignore[assignment]
                if broken:
                    self._answer_alone(call)
                else:
                    call.answered = self._problem_of(error).answer
        else:
            self._after_commit(calls)
        for call in calls:
            self._log(call)
        return [call.answered for call in calls]

    def _receive(self, environ: Environ) -> Call:
        """Read a request; what is wrong with it is its answer already."""
        call = Call(self, environ, time.perf_counter())
        try:
            guard(environ, self.allowed_hosts, self.how_to_allow)
            call.route, call.ids = self._match(environ)
            if query := environ.get("QUERY_STRING", ""):
                call.query, call.others = read_query(query, call.route.query)
            # The whole body before the transaction, or a slow client would hold the lock.
            if call.route.takes:
                call.data = read_body(environ, call.route.takes)
            if call.route.takes and call.route.method == "POST":
                call.key = read_key(environ)
            if call.key:  # here, where what could be read can also be written: it may nest deep
                said = json.dumps([environ["PATH_INFO"], call.data], sort_keys=True)
                call.digest = hashlib.blake2b(said.encode(), digest_size=16).hexdigest()
        except Exception as error:
            call.answered = self._problem_of(error).answer
        return call

    def _match(self, environ: Environ) -> tuple[Route, dict[str, int]]:
        path = environ.get("PATH_INFO") or "/"  # mounted, it may be empty
        try:
            if path.isascii() and path.isprintable():
                route, ids = self._router.match({**environ, "PATH_INFO": path})
                return route, ids
        except bottle.HTTPError as error:
            if error.status_code == 405:
                methods = error.get_header("Allow").split(",")
                allow = ", ".join(sorted(methods + ["HEAD"] * ("GET" in methods)))
                raise Problem(
                    405, f"This path knows only {allow}.", headers={"Allow": allow}
                ) from None
        raise Problem(404, f"There is nothing at this path. {self.what_there_is}".strip())

    def _handle(self, call: Call, write: Callable[[], AbstractContextManager[Any]]) -> None:
        """Have the request answered in a transaction. Raises Unavailable, and nothing else.

        `write` begins one that writes: by itself, or a part of a batch.
        """
        if call.answered:
            return
        reading = call.route.method == "GET"
        try:
            with self.database.read() if reading else write() as call.conn:
                call.answered = self._answer_once(call, call.key) if call.key else call.act()
        except Unavailable:
            raise
        except Exception as error:
            call.answered = self._problem_of(error).answer

    def _answer_once(self, call: Call, key: str) -> Answer:
        """Create, or answer what the first request with this key was answered. Raises Problem.

        Both are in one transaction, so neither a crash nor another process comes in between.
        """
        if known := idempotency.recall(call.conn, key):
            if known[0] != call.digest:
                raise Problem(422, "This Idempotency-Key came with another request before.")
            status, headers, body = json.loads(known[1])
            return Answer(status, headers, body.encode())
        answer = call.act()
        told = json.dumps([answer.status, answer.headers, answer.body.decode()])
        idempotency.remember(call.conn, key, call.digest, told)
        return answer

    def _answer_alone(self, call: Call) -> None:
        try:
            self._handle(call, self.database.write)
        except Unavailable as error:
            call.answered = self._problem_of(error).answer
        else:
            self._after_commit([call])

    def _after_commit(self, calls: list[Call]) -> None:
        for act in {call.after_commit for call in calls if call.after_commit}:
            act()

    def _log(self, call: Call) -> None:
        if access.isEnabledFor(logging.INFO):
            environ, took = call.environ, (time.perf_counter() - call.began) * 1000
            path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
            access.info(
                "%.20s %.2000s %s %.1f ms",  # both may have 64 KiB
                environ["REQUEST_METHOD"],
                quote(path, "/", "latin-1"),
                call.answered.status,
                took,
            )
