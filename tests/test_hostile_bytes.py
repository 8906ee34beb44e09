"""Hostile bytes on the wire, and what a request may cost."""

import json
import socket
import time
from contextlib import suppress
from urllib.parse import quote

import pytest
from hostile import MANY_FIELDS, VALID, Answer, ask, fault
from waitress.adjustments import Adjustments
from wire import sent

import db
from plumbing.server import Parser

pytestmark = pytest.mark.engines

# ---------------------------------------------------------------- bytes on the wire


def get(target, *headers, method=b"GET", version=b" HTTP/1.1"):
    lines = (method + b" " + target + version, b"Host: localhost", *headers)
    return b"\r\n".join(lines) + b"\r\n\r\n"


SMUGGLED = b"DELETE /users HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(*headers, body=b""):
    """A POST, and behind it a request that nobody may read: there is one answer."""
    head = get(b"/projects", b"Content-Type: application/json", *headers, method=b"POST")
    return head + body + SMUGGLED


SHOP = b'{"name": "Shop"}'
HARMLESS = {200, 400, 404}  # several readings are right, as long as it is no defect and no write
WIRE = [
    ("an address that is none", get(b"http://["), 400),
    ("an address that stays open", get(b"http://[::1/users"), 400),
    ("an address in the wrong brackets", get(b"http://]/users"), 400),
    ("a name in brackets", get(b"http://[x]/users"), 400),
    ("the absolute form", get(b"http://localhost/users"), {200}),
    ("the absolute form of another host", get(b"http://evil.example/users"), {200, 403}),
    ("the absolute form of no host", get(b"http:///users"), HARMLESS),
    ("a port that is none", get(b"http://localhost:abc/users"), 403),
    ("a script as a target", get(b"javascript:alert(1)"), 404),
    ("an authority as a target", get(b"evil.example:443", method=b"CONNECT"), {400, 404, 405}),
    ("a star as a target", get(b"*"), 404),
    ("no slash", get(b"users"), {400, 404}),
    ("two slashes", get(b"//users"), HARMLESS),
    ("another host behind two slashes", get(b"//evil.example/users"), 404),
    ("a quoted slash", get(b"/%2Fusers"), HARMLESS),
    ("a quoted slash inside", get(b"/users%2F"), 404),
    ("there and back", get(b"/users/../users"), 404),
    ("there and back, quoted", get(b"/users/%2e%2e/users"), 404),
    ("an empty query", get(b"/users?"), {200}),
    ("only a query", get(b"?limit=1"), {400, 404}),
    ("only a fragment", get(b"#"), {200, 400, 404}),
    ("a percent sign", get(b"/%"), 404),
    ("a percent sign and no digits", get(b"/users/%zz"), 404),
    ("a tab in the path", get(b"/us\ters"), {400, 404}),
    ("a control character before the path", get(b"\x01/users"), {400, 404}),
    ("a control character behind the path", get(b"/users\x01"), {400, 404}),
    ("NUL in the path", get(b"/users\0"), {400, 404}),
    ("a byte that is not quoted", get(b"/users\xff"), {400, 404}),
    ("a byte that is not quoted in the query", get(b"/users?\xff"), 400),
    ("a tab in the query", get(b"/users?limit=1\t0"), 400),
    ("50,000 percent signs", get(b"/tickets?text=" + b"%" * 50_000), 400),
    ("a path of 60,000 characters", get(b"/" + b"a/" * 30_000), 404),
    ("a path of 60,000 dots", get(b"/" + b"%2e%2e/" * 8_500), 404),
    ("small letters", get(b"/users", method=b"get"), 400),
    ("mixed letters", get(b"/users", method=b"Get"), 400),
    ("TRACE", get(b"/users", method=b"TRACE"), 405),
    ("OPTIONS", get(b"/users", method=b"OPTIONS"), 405),
    ("G@T", get(b"/users", method=b"G@T"), 400),
    ("an escape as a method", get(b"/users", method=b"G\x1b[2JT"), 400),
    ("Latin-1 as a method", get(b"/users", method=b"G\xc9T"), 400),
    ("no method", get(b"/users", method=b""), 400),
    ("a method of 500 letters", get(b"/users", method=b"X" * 500), 405),
    ("a method of 60,000 letters", get(b"/users", method=b"X" * 60_000), {400, 405, 431}),
    ("the preface of HTTP/2", get(b"*", method=b"PRI", version=b" HTTP/2.0"), {400, 404, 405, 505}),
    ("a version of three numbers", get(b"/users", version=b" HTTP/1.1.1"), 400),
    ("a version without a point", get(b"/users", version=b" HTTP/11"), 400),
    ("a negative version", get(b"/users", version=b" HTTP/-1.1"), 400),
    ("another protocol", get(b"/users", version=b" HTTQ/1.1"), 400),
    ("a version yet to come", get(b"/users", version=b" HTTP/9.9"), {200, 400, 505}),
    ("two blanks", get(b"/users", version=b"  HTTP/1.1"), 400),
    ("no colon", get(b"/users", b"X"), 400),
    ("no name", get(b"/users", b": x"), 400),
    ("a blank before the colon", get(b"/users", b"X : y"), 400),
    ("Latin-1 in the name", get(b"/users", b"\xff: y"), 400),
    ("NUL in the value", get(b"/users", b"X: \0"), 400),
    ("delete in the value", get(b"/users", b"X: \x7f"), 400),
    ("a line feed in the value", get(b"/users", b"X: a\nb"), 400),
    ("a carriage return in the value", get(b"/users", b"X: a\rb"), 400),
    ("a fold before any header", b"GET /users HTTP/1.1\r\n X: y\r\n\r\n", 400),
    ("a folded host", get(b"/users", b" evil.example"), {400, 403}),
    ("two hosts", get(b"/users", b"Host: evil.example"), {400, 403}),
    ("a header of 300,000 letters", get(b"/users", b"X: " + b"x" * 300_000), 431),
    ("a target of 300,000 letters", get(b"/" + b"x" * 300_000), {400, 414, 431}),
    ("10,000 headers", get(b"/users", *[b"a: 1"] * 10_000), {200}),
    ("a media type in Latin-1", get(b"/users", b"Content-Type: \xff", method=b"POST"), 415),
    ("a tag in Latin-1", get(b"/health", b'If-None-Match: "\xff'), {200}),
    ("a length of 5,000 digits", post(b"Content-Length: " + b"9" * 5000), {400, 413}),
    ("a length of 5,000 zeros", post(b"Content-Length: " + b"0" * 5000), {400, 413}),
    ("a length of 20 digits", post(b"Content-Length: " + b"9" * 20), 413),
    ("an empty length", post(b"Content-Length:", body=SHOP), 400),
    ("a negative length", post(b"Content-Length: -1"), 400),
    ("a length with a sign", post(b"Content-Length: +16", body=SHOP), 400),
    ("a length in hexadecimal", post(b"Content-Length: 0x10", body=SHOP), 400),
    ("two lengths", post(b"Content-Length: 16", b"Content-Length: 17", body=SHOP), 400),
    ("two lengths in one", post(b"Content-Length: 16, 16", body=SHOP), 400),
    ("a length with an underscore", post(b"Content_Length: 16"), 400),
    ("an unknown coding", post(b"Transfer-Encoding: gzip", body=SHOP), 501),
    ("a coding that is almost right", post(b"Transfer-Encoding: xchunked", body=SHOP), 501),
    ("a no-break space before the coding", post(b"Transfer-Encoding: \xa0chunked"), 501),
    ("two codings", post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 501),
    (
        "a length beside chunks",
        post(b"Transfer-Encoding: chunked", b"Content-Length: 16", body=b"0\r\n\r\n"),
        400,
    ),
    (
        "chunks in HTTP/1.0",
        get(
            b"/projects",
            b"Content-Type: application/json",
            b"Transfer-Encoding: chunked",
            method=b"POST",
            version=b" HTTP/1.0",
        )
        + b"0\r\n\r\n",
        {400, 501},
    ),
    (
        "chunks in HTTP/1.0 where no body is read",
        get(b"/users", b"Transfer-Encoding: chunked", version=b" HTTP/1.0") + b"0\r\n\r\n",
        {400, 501},
    ),
    ("a chunk of -2", post(b"Transfer-Encoding: chunked", body=b"-2\r\n{}\r\n0\r\n\r\n"), 400),
    ("a chunk of 0x2", post(b"Transfer-Encoding: chunked", body=b"0x2\r\n{}\r\n0\r\n\r\n"), 400),
    ("a chunk of no length", post(b"Transfer-Encoding: chunked", body=b"\r\n{}\r\n0\r\n\r\n"), 400),
    (
        "a chunk longer than it says",
        post(b"Transfer-Encoding: chunked", body=b"1\r\n{}\r\n0\r\n\r\n"),
        400,
    ),
    (
        "an extension that is none",
        post(b"Transfer-Encoding: chunked", body=b'2;a="\r\n{}\r\n0\r\n\r\n'),
        400,
    ),
]


def talk(server, data):
    """What is answered to the bytes, to the last one; None if it only hangs up."""
    with sent(server, data) as sock:
        with suppress(ConnectionError):
            sock.shutdown(socket.SHUT_WR)
        received = b""
        with suppress(ConnectionError):
            while data := sock.recv(65536):
                received += data
    head, _, text = received.partition(b"\r\n\r\n")
    if not head:
        return None
    line, *headers = head.decode("latin-1").split("\r\n")
    return Answer(int(line.split()[1]), dict(header.split(": ", 1) for header in headers), text)


def test_hostile_bytes_on_the_wire_are_answered_and_leave_no_trace(start, tmp_path):
    server = start("--quiet", database=tmp_path / "tickets.db")
    wrong = []
    for name, data, expected in WIRE:
        answer = talk(server, data)
        complaint = fault(answer, expected) if answer else "is not answered"
        if complaint:
            wrong.append(f"{name}: {complaint}")
    for path in ("/users", "/projects", "/tickets", "/emails"):
        assert talk(server, get(path.encode())).text == b"[]"
    server.terminate()
    wrong += [f"it prints: {line[:200]}" for line in server.lines[1:]]
    assert not wrong, "\n" + "\n".join(wrong)


# ---------------------------------------------------------------- what a request may cost

# Seconds of the processor for one request, whatever is in it. The honest ones below stay far
# under it, also on a slow machine that counts the lines it runs; what is quadratic does not.
AFFORDABLE = 0.25

DIGITS = b"9" * 4000
EXPENSIVE_HEADERS = [
    ("an authority of digits, and a blank", get(b"a://" + DIGITS, version=b" HTTP/1.1 x")),
    ("an authority of digits, and no version", get(b"a://" + DIGITS, version=b" ")),
    ("blanks before NUL", get(b"/users", b"X:" + b" " * 16_000 + b"\0")),
    ("blanks before a letter", get(b"/users", b"X:" + b" " * 16_000 + b"a")),
    ("blanks in folded lines", get(b"/users", b"X:", *[b"  "] * 12_000, b" a")),
    ("tabs before a letter and NUL", get(b"/users", b"X:" + b"\t" * 16_000 + b"a\0")),
    ("blanks behind a letter and NUL", get(b"/users", b"X: a" + b" " * 16_000 + b"\0")),
    ("letters and blanks before NUL", get(b"/users", b"X: " + b"a " * 16_000 + b"\0")),
    ("30,000 slashes", get(b"/" * 30_000)),
    ("a method of 60,000 letters", get(b"", method=b"X" * 60_000)),
    ("13,000 headers of one name", get(b"/users", *[b"a:"] * 13_000)),
    ("13,000 folded lines", get(b"/users", b"X: y", *[b" y"] * 13_000)),
    ("60,000 commas as codings", post(b"Transfer-Encoding: " + b"," * 60_000)),
]


def test_no_header_costs_more_to_read_than_it_should():
    settings = Adjustments(max_request_header_size=64 * 1024)
    costs = {}
    for name, data in EXPENSIVE_HEADERS:
        parser, began = Parser(settings), time.thread_time()
        parser.received(data)
        costs[name] = time.thread_time() - began
        assert parser.completed, name
    assert {name: cost for name, cost in costs.items() if cost > AFFORDABLE} == {}


def ticket_with(**fields):
    return json.dumps(VALID["tickets"] | fields, ensure_ascii=False).encode()


def searching(text):
    return ("GET", "/tickets", b"", f"text={quote(text, safe='')}")


LONG = ("a" * 4999 + "b") * 2
MARKS = "\u0344" * 5000 + "\u0316" * 5000  # in an order that normalization has to sort
EVERYBODY = b",".join(b"%d" % n for n in range(1, 101))
EXPENSIVE = [
    ("60,000 brackets", ("POST", "/tickets", b"[" * 60_000)),
    ("5,000 unknown fields", ("POST", "/tickets", MANY_FIELDS)),
    ("10,000 bad assignees", ("POST", "/tickets", ticket_with(assignees=[0] * 10_000))),
    ("10,000 unknown assignees", ("POST", "/tickets", ticket_with(assignees=[7] * 10_000))),
    ("9,000 assignees that differ", ("POST", "/tickets", ticket_with(assignees=[*range(9000)]))),
    ("60,000 digits", ("POST", "/projects", b'{"name": ' + b"9" * 60_000 + b"}")),
    ("a float of 60,000 digits", ("POST", "/projects", b'{"name": 0.' + b"3" * 60_000 + b"}")),
    ("60,000 letters as an address", ("POST", "/users", b'{"email": "' + b"a" * 60_000 + b'"}')),
    ("30,000 dots in an address", ("POST", "/users", b'{"email": "' + b"a." * 30_000 + b'@"}')),
    ("50,000 percent signs", ("GET", "/tickets", b"", "text=" + "%" * 50_000)),
    ("a search for a long text", searching(LONG)),
    ("a search for what is almost there", searching("a" * 4000 + "bab")),
    ("a search for 10,000 emoji", searching("🙂" * 10_000)),
    ("a search for combining marks", searching(MARKS)),
    ("100 assignees", ("POST", "/tickets", ticket_with(assignees=[*range(1, 101)]))),
    ("no assignees", ("PATCH", "/tickets/21", b'{"assignees": []}')),
    ("100 others", ("PATCH", "/tickets/20", b'{"assignees": [%s]}' % EVERYBODY)),
    ("a user 20,000 times", ("POST", "/tickets", ticket_with(assignees=[5] * 20_000))),
    ("a comment", ("PATCH", "/tickets/21", json.dumps({"comment": "ǰ" * 10_000}).encode())),
    (
        "a new description",
        ("PATCH", "/tickets/1", json.dumps({"description": "ΐ" * 9999}).encode()),
    ),
    ("all users named", ("DELETE", "/users/7")),
    ("a description of combining marks", ("POST", "/tickets", ticket_with(description=MARKS))),
]


def test_no_request_costs_more_than_it_should(api, app):
    api.project()
    for _ in range(20):
        api.ticket(description=LONG)
    with app.database.write() as conn:
        for n in range(100):
            db.create_user(conn, {"name": "x" * 100, "email": f"{n}{'y' * 60}@example.com"})
    costs = {}
    for name, request in EXPENSIVE:
        began = time.thread_time()
        answer = ask(app, *request)
        costs[name] = time.thread_time() - began
        assert answer.status < 500, (name, answer)
    assert {name: cost for name, cost in costs.items() if cost > AFFORDABLE} == {}
