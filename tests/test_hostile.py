"""Hostile requests: a table for each kind of input, run against every endpoint that takes it.

The endpoints come from tracker.ROUTES, so a new one is covered without a line here. Each row
is a readable name, the hostile value and the status to be answered: problem details, nothing
in the log, and nothing in the database. A failing test lists every row that went wrong.
"""

import io
import itertools
import json
import logging
import re
import socket
import sqlite3
import time
from contextlib import closing, suppress
from email.header import decode_header, make_header
from string import printable
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

import psycopg
import pytest
from conftest import Api, Server, eventually
from hypothesis import given, settings
from hypothesis import strategies as st
from waitress.adjustments import Adjustments

import db
import tracker
from plumbing import rule
from plumbing.engine import is_url
from plumbing.server import Parser
from plumbing.text import fold

pytestmark = pytest.mark.engines

# A body for each collection that is valid, so that only what is hostile is refused.
VALID = {
    "users": {"name": "Dave", "email": "dave@example.com"},
    "projects": {"name": "Shop"},
    "tickets": {
        "title": "Fix",
        "description": None,
        "project_id": 1,
        "status": "open",
        "assignees": [],
    },
}
WRITES = ("POST", "PUT", "PATCH", "DELETE")


class Answer(NamedTuple):
    status: int
    headers: dict
    text: bytes


def ask(app, method, path, body=b"", query="", **environ):
    """One request by a bare environ, as a server hands it over: nothing in it is made polite."""
    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
    } | environ
    environ = {name: value for name, value in environ.items() if value is not None}
    started = []
    text = app(environ, lambda line, headers, exc_info=None: started.append((line, headers)))
    text = b"".join(text)
    [(line, headers)] = started
    return Answer(int(line[:3]), {name.title(): value for name, value in headers}, text)


def fault(answer, expected):
    """What is wrong with the answer; None if it is as it must be."""
    if b"Traceback" in answer.text:
        return "shows a traceback"
    if callable(expected):
        return expected(answer)
    if answer.status not in (expected if isinstance(expected, set) else {expected}):
        return f"answers {answer.status} and not {expected}: {answer.text[:200]}"
    if answer.status >= 400 and answer.headers.get("Content-Type") != "application/problem+json":
        return f"answers {answer.headers.get('Content-Type')}"
    if answer.status >= 400 and answer.text:
        problem = json.loads(answer.text)
        if problem["status"] != answer.status or not problem["title"] or not problem["detail"]:
            return f"answers {problem}"
    return None


class World:
    """An app with one of everything, which no hostile request may change."""

    def __init__(self, make_database):
        self.make_database = make_database
        self.make()

    def make(self):
        database = self.make_database()
        self.app = tracker.create_app(
            database, smtp="", sender="tracker@localhost", allowed_hosts=(), output=io.StringIO()
        )
        api = Api(self.app)
        api.user()
        api.project()
        api.ticket(assignees=[1])
        for _, title in LITERALLY:
            api.ticket(title=title)
        eventually(lambda: api.get("/health").json["mail"]["queued"] == 0)
        self._watch = (psycopg if is_url(database) else sqlite3).connect(database)
        self._version = "PRAGMA data_version"
        if is_url(database):  # each commit of each connection is counted there
            self._watch.autocommit = True
            self._version = "SELECT sum(number) FROM tracker.commits"

    def version(self):
        """Another one as soon as anybody has written anything."""
        return self._watch.execute(self._version).fetchone()

    def close(self):
        self._watch.close()
        self.app.close()


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request, tmp_path_factory):
    if request.param == "sqlite":
        folder, numbers = tmp_path_factory.mktemp("hostile"), itertools.count(1)
        world = World(lambda: folder / f"{next(numbers)}.db")
    else:
        cluster = request.getfixturevalue("postgresql")
        world = World(lambda: cluster.create(template="ready"))
    yield world
    world.close()


@pytest.fixture
def judge(world, caplog):
    """Sends requests, of each (name, expected, arguments of ask), and lists what went wrong."""

    def judge(requests):
        wrong, clean = [], world.version()
        before = clean
        for name, expected, (method, path, *body), environ in requests:
            caplog.clear()
            answer = ask(world.app, method, path, *body, **environ)
            logged = [entry for entry in caplog.records if entry.levelno >= logging.ERROR]
            complaint = (
                fault(answer, expected)
                or (f"logs {logged[0].getMessage()}" if logged else None)
                or ("writes to the database" if world.version() != before else None)
            )
            before = world.version()
            if complaint:
                wrong.append(f"{name[:60]}: {method[:9]} {path[:60]} {complaint}")
        if before != clean:  # or the tests to come would fail as well
            world.close()
            world.make()
        assert not wrong, "\n" + "\n".join(wrong)

    return judge


def path_of(route, **ids):
    """The path of the route with these ids; 1 where none is given."""
    return re.sub(r"<(\w+):id>", lambda found: ids.get(found[1], "1"), route.path)


def valid_body(route):
    return json.dumps(VALID[route.path.split("/")[1]]).encode() if route.takes else b""


def media_type(route):
    return {"CONTENT_TYPE": route.takes[0]} if route.takes else {}


TAKE_A_BODY = [route for route in tracker.ROUTES if route.takes]


# ---------------------------------------------------------------- bodies

UNKNOWN = 422  # It is JSON, so it is the field "x" that is refused: there is none anywhere.
MANY_FIELDS = json.dumps(dict.fromkeys(map(str, range(5000)), 1)).encode()
BODIES = [
    ("empty", b"", 400),
    ("blank", b" \t\r\n", 400),
    ("64 KiB of blanks", b" " * 65_536, 400),
    ("more than 64 KiB", b'{"x": "' + b"x" * 65_536 + b'"}', 413),
    ("null", b"null", 400),
    ("a list", b"[]", 400),
    ("a list of an object", b'[{"name": "Maxi"}]', 400),
    ("a bare string", b'"name"', 400),
    ("a bare number", b"1", 400),
    ("a bare true", b"true", 400),
    ("a bare NaN", b"NaN", 400),
    ("cut off after the brace", b"{", 400),
    ("cut off before the brace", b'{"name": "Maxi"', 400),
    ("cut off in a string", b'{"name": "Ma', 400),
    ("cut off in an escape", b'{"name": "\\u00', 400),
    ("cut off in a character", b'{"name": "Max\xe2\x82', 400),
    ("single quotes", b"{'name': 'Maxi'}", 400),
    ("a bare key", b'{name: "Maxi"}', 400),
    ("a comma too many", b'{"name": "Maxi",}', 400),
    ("a comma alone", b"{,}", 400),
    ("a comment", b'{"name": "Maxi"} // me', 400),
    ("two objects", b'{"name": "Maxi"}{"name": "Maxi"}', 400),
    ("a word behind it", b'{"name": "Maxi"} x', 400),
    ("a key twice", b'{"name": "Maxi", "name": "Dave"}', 400),
    ("a key twice, once escaped", b'{"name": "Maxi", "n\\u0061me": "Dave"}', 400),
    ("a key twice inside", b'{"x": [{"y": 1, "y": 1}]}', 400),
    ("NaN", b'{"x": NaN}', 400),
    ("NaN in a list", b'{"x": [NaN]}', 400),
    ("Infinity", b'{"x": Infinity}', 400),
    ("-Infinity", b'{"x": -Infinity}', 400),
    ("1e999", b'{"x": 1e999}', 400),
    ("-1e999", b'{"x": -1e999}', 400),
    ("an exponent of 5,000 digits", b'{"x": 1e' + b"9" * 5000 + b"}", 400),
    ("a float of 5,000 digits", b'{"x": ' + b"9" * 5000 + b".5}", 400),
    ("5,000 digits behind the point", b'{"x": 0.' + b"3" * 5000 + b"}", UNKNOWN),
    ("a number of 5,000 digits", b'{"x": ' + b"9" * 5000 + b"}", UNKNOWN),
    ("a negative number of 60,000 digits", b'{"x": -' + b"9" * 60_000 + b"}", UNKNOWN),
    ("a number that is almost nothing", b'{"x": 1e-99999}', UNKNOWN),
    ("a leading zero", b'{"x": 01}', 400),
    ("a leading plus", b'{"x": +1}', 400),
    ("no digit before the point", b'{"x": .5}', 400),
    ("no digit behind the point", b'{"x": 1.}', 400),
    ("hexadecimal", b'{"x": 0x1F}', 400),
    ("digits of another script", '{"x": ١}'.encode(), 400),
    ("60,000 brackets deep", b"[" * 60_000, 400),
    ("60,000 brackets, and closed again", b"[" * 30_000 + b"]" * 30_000, 400),
    ("a field 60,000 brackets deep", b'{"x": ' + b"[" * 60_000, 400),
    ("a field 30,000 brackets deep, closed", b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", 400),
    ("10,000 objects deep", b'{"x":' * 10_000, 400),
    ("lists and objects in turn", b'[{"x":' * 9_000, 400),
    ("5,000 unknown fields", MANY_FIELDS, UNKNOWN),
    ("30,000 values", b'{"x": [' + b"1," * 30_000 + b"1]}", UNKNOWN),
    ("a byte that is not UTF-8", b'{"x": "\xff"}', 400),
    ("Latin-1", '{"x": "Zoë"}'.encode("latin-1"), 400),
    ("UTF-8 longer than need be", b'{"x": "\xc0\x80"}', 400),
    ("UTF-8 beyond Unicode", b'{"x": "\xf4\x90\x80\x80"}', 400),
    ("half a surrogate pair in UTF-8", b'{"x": "\xed\xa0\x80"}', 400),
    ("a surrogate pair in UTF-8", b'{"x": "\xed\xa0\xbd\xed\xb8\x80"}', 400),
    ("a key with half a surrogate pair", b'{"\\ud800": 1}', UNKNOWN),
    ("the two halves the wrong way round", b'{"x": "\\ude00\\ud83d"}', UNKNOWN),
    ("a byte order mark", b'\xef\xbb\xbf{"name": "Maxi"}', 400),
    ("UTF-16", '{"name": "Maxi"}'.encode("utf-16"), 400),
    ("UTF-16 without a mark", '{"name": "Maxi"}'.encode("utf-16-le"), 400),
    ("UTF-32", '{"name": "Maxi"}'.encode("utf-32"), 400),
    ("UTF-7", b"+AHsAIg-name+ACI: 1}", 400),
    ("NUL before it", b'\0{"name": "Maxi"}', 400),
    ("NUL behind it", b'{"name": "Maxi"}\0', 400),
    ("NUL in a string", b'{"name": "Max\0i"}', 400),
    ("a line break in a string", b'{"name": "Max\ni"}', 400),
    ("an unknown escape", b'{"name": "\\x41bcd"}', 400),
    ("an escape of three digits", b'{"name": "\\u123"}', 400),
    ("an empty key", b'{"": 1}', UNKNOWN),
    ("NUL as a key", b'{"\\u0000": 1}', UNKNOWN),
    ("a key of 60,000 characters", b'{"' + b"x" * 60_000 + b'": 1}', UNKNOWN),
    ("a key that is a pointer", b'{"#/a~1b/0": 1}', UNKNOWN),
    ("a key that JavaScript would obey", b'{"__proto__": {"name": "Maxi"}}', UNKNOWN),
    ("a key that Python would obey", b'{"__class__": "Maxi", "self": 1, "conn": 1}', UNKNOWN),
    ("a form", b"name=Maxi&email=maxi%40example.com", 400),
    ("XML", b"<?xml version='1.0'?><user name='Maxi'/>", 400),
    ("MessagePack", b"\x81\xa4name\xa4Maxi", 400),
    ("compressed", b"\x1f\x8b\x08\x00\x00\x00\x00\x00", 400),
]


def test_a_body_that_is_no_json_object_or_has_unknown_fields_is_refused(judge):
    judge(
        (name, expected, (route.method, path_of(route), body), media_type(route))
        for route in TAKE_A_BODY
        for name, body, expected in BODIES
    )


LENGTHS = [
    ("negative", "-1"),
    ("a word", "abc"),
    ("an exponent", "1e3"),
    ("a blank before it", " 5"),
    ("a sign", "+5"),
    ("a line break behind it", "5\n"),
    ("hexadecimal", "0x10"),
    ("an underscore", "1_0"),
    ("a list", "5, 5"),
    ("of another script", "٥"),
    ("a superscript", "²"),
    ("19 digits", "9" * 19),
    ("5,000 digits", "9" * 5000),
    ("more than there is", "1000"),
]


def test_a_length_that_is_none_or_not_true_is_refused(judge):
    judge(
        (name, 400, (route.method, path_of(route), valid_body(route)), {"CONTENT_LENGTH": length})
        for route in TAKE_A_BODY
        for name, length in LENGTHS
    )


def test_chunks_that_the_server_has_decoded_are_not_decoded_again(api, app):
    api.project()
    body = b'{"name": "Shop"}'
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": ""}
    decoded = chunked | {"wsgi.input_terminated": True}
    assert ask(app, "PUT", "/projects/1", body, **decoded).status == 200
    assert ask(app, "PUT", "/projects/1", body, **chunked).status == 400


# ---------------------------------------------------------------- media types

MEDIA_TYPES = [
    ("missing", None, 415),
    ("empty", "", 415),
    ("blank", " ", 415),
    ("a parameter alone", ";", 415),
    ("a charset alone", "; charset=utf-8", 415),
    ("text", "text/plain", 415),
    ("a form", "application/x-www-form-urlencoded", 415),
    ("a file", "multipart/form-data; boundary=application/json", 415),
    ("bytes", "application/octet-stream", 415),
    ("any", "*/*", 415),
    ("any of the kind", "application/*", 415),
    ("the older name", "text/json", 415),
    ("JSON text", "application/json-seq", 415),
    ("a problem", "application/problem+json", 415),
    ("another patch", "application/json-patch+json", 415),
    ("a suffix alone", "application/+json", 415),
    ("wrongly spelled", "application/jsn", 415),
    ("longer", "application/jsonp", 415),
    ("a blank inside", "application / json", 415),
    ("without a slash", "application", 415),
    ("without the first half", "json", 415),
    ("two of them", "application/json, text/plain", 415),
    ("the right one second", "text/plain, application/json", 415),
    ("the right one as a parameter", "text/plain; x=application/json", 415),
    ("in quotes", '"application/json"', 415),
    ("Latin-1 in it", "application/jsön", 415),
    ("a letter that looks alike", "application/jsоn".encode().decode("latin-1"), 415),
    ("NUL behind it", "application/json\0", 415),
    ("a no-break space behind it", "application/json\xa0", 415),
    ("60,000 letters", "application/json" + "x" * 60_000, 415),
    ("60,000 semicolons", "text/plain" + ";" * 60_000, 415),
    # These do name JSON: the body is read, and it is the unknown field that is refused.
    ("plain", "application/json", UNKNOWN),
    ("another case", "Application/JSON", UNKNOWN),
    ("with a charset", "application/json; charset=utf-8", UNKNOWN),
    ("with a charset in quotes", 'application/json;charset="UTF-8"', UNKNOWN),
    ("with an empty parameter", "application/json;", UNKNOWN),
    ("with an unknown parameter", "application/json; profile=https://example.com", UNKNOWN),
    ("with a blank before the parameter", "application/json ; charset=utf-8", UNKNOWN),
]


def test_a_body_must_be_labelled_as_json(judge):
    judge(
        (name, expected, (route.method, path_of(route), b'{"x": 1}'), {"CONTENT_TYPE": label})
        for route in TAKE_A_BODY
        for name, label, expected in MEDIA_TYPES
    )


def test_a_merge_patch_is_taken_by_patch_alone(judge):
    merge = {"CONTENT_TYPE": "application/merge-patch+json"}
    judge(
        (
            "a merge patch",
            UNKNOWN if route.method == "PATCH" else 415,
            (route.method, path_of(route), b'{"x": 1}'),
            merge,
        )
        for route in TAKE_A_BODY
    )


# ---------------------------------------------------------------- fields

TEXTS, LINES, ALL = ("name", "title", "email"), ("name", "title"), ("name", "title", "description")
NOT_TEXT = "must be a string"
NOT_AN_ID = "must be an id, a whole number"
NOT_A_STATUS = "must be one of: open, in progress, closed"
NOT_A_LIST = "must be a list of ids"
ANY = None  # any detail


def holds(character):
    return f"must not hold the character U+{ord(character):04X}"


# (what, the fields or the place in one, the hostile value, what is told)
FIELDS = [
    ("null", TEXTS, None, NOT_TEXT),
    ("a number", (*TEXTS, "description"), 5, NOT_TEXT),
    ("a float", (*TEXTS, "description"), 1.5, NOT_TEXT),
    ("a boolean", (*TEXTS, "description"), True, NOT_TEXT),
    ("a list of a string", (*TEXTS, "description"), ["Maxi"], NOT_TEXT),
    ("an object", (*TEXTS, "description"), {"text": "Maxi"}, NOT_TEXT),
    ("empty", ("name",), "", "must have at least 3 characters"),
    ("short", ("name",), "ab", "must have at least 3 characters"),
    ("short, and blanks", ("name",), "  ab  ", "must have at least 3 characters"),
    ("long", ("name",), "x" * 101, "must have at most 100 characters"),
    ("empty", ("title",), "", "must have at least 1 character"),
    ("blank", ("title",), " \t\r\n\u3000\u2003", "must have at least 1 character"),
    ("long", ("title",), "x" * 201, "must have at most 200 characters"),
    ("long emoji", ("title",), "🙂" * 201, "must have at most 200 characters"),
    ("long", ("description",), "x" * 10_001, "must have at most 10,000 characters"),
    ("60,000 letters", ALL, "x" * 60_000, ANY),
    ("60,000 blanks", LINES, " " * 60_000, ANY),
    ("another case", ("status",), "Open", NOT_A_STATUS),
    ("as in Python", ("status",), "in_progress", NOT_A_STATUS),
    ("empty", ("status",), "", NOT_A_STATUS),
    ("null", ("status",), None, NOT_A_STATUS),
    ("a boolean", ("status",), True, NOT_A_STATUS),
    ("a list", ("status",), ["open"], NOT_A_STATUS),
    ("an object", ("status",), {}, NOT_A_STATUS),
    ("NUL behind it", ("status",), "open\0", NOT_A_STATUS),
    ("a text", ("project_id",), "1", NOT_AN_ID),
    ("a float", ("project_id",), 1.0, NOT_AN_ID),
    ("a boolean", ("project_id",), True, NOT_AN_ID),
    ("null", ("project_id",), None, NOT_AN_ID),
    ("a list", ("project_id",), [1], NOT_AN_ID),
    ("an object", ("project_id",), {"id": 1}, NOT_AN_ID),
    ("zero", ("project_id",), 0, "does not exist"),
    ("negative", ("project_id",), -1, "does not exist"),
    ("beyond 64 bits", ("project_id",), 2**63, "does not exist"),
    ("beyond 64 bits, negative", ("project_id",), -(2**63) - 1, "does not exist"),
    ("4,000 digits", ("project_id",), 10**4000, "does not exist"),
    ("unknown", ("project_id",), 2**63 - 1, f"there is no project {2**63 - 1}"),
    ("null", ("assignees",), None, NOT_A_LIST),
    ("a number", ("assignees",), 1, NOT_A_LIST),
    ("a text", ("assignees",), "1", NOT_A_LIST),
    ("an object", ("assignees",), {"id": 1}, NOT_A_LIST),
    ("a text", ("assignees/1",), [1, "1"], NOT_AN_ID),
    ("a float", ("assignees/1",), [1, 1.0], NOT_AN_ID),
    ("a boolean", ("assignees/1",), [1, True], NOT_AN_ID),
    ("null", ("assignees/1",), [1, None], NOT_AN_ID),
    ("a list", ("assignees/1",), [1, [1]], NOT_AN_ID),
    ("an empty object", ("assignees/1",), [1, {}], NOT_AN_ID),
    ("an object without id", ("assignees/1",), [1, {"name": "Max"}], NOT_AN_ID),
    ("an object with a text as id", ("assignees/1",), [1, {"id": "1"}], NOT_AN_ID),
    ("an object in an object", ("assignees/1",), [1, {"id": {"id": 1}}], NOT_AN_ID),
    ("an object with more in it", ("assignees/1",), [1, {"id": 1, "nmae": "M"}], NOT_AN_ID),
    ("zero", ("assignees/0",), [0], "does not exist"),
    ("negative", ("assignees/0",), [-1], "does not exist"),
    ("beyond 64 bits", ("assignees/0",), [2**64 + 1], "does not exist"),
    ("unknown", ("assignees/1",), [1, 7], "there is no user 7"),
    # What would let a text disguise itself, or end the line of a mail header.
    ("a header of its own", LINES, "a\r\nBcc: x@example.com", holds("\r")),
    ("NUL", ALL, "ab\0cd", holds("\0")),
    ("a line feed", LINES, "ab\ncd", holds("\n")),
    ("a carriage return", LINES, "ab\rcd", holds("\r")),
    ("a tab", LINES, "ab\tcd", holds("\t")),
    ("a vertical tab", ALL, "ab\x0bcd", holds("\x0b")),
    ("a form feed", ALL, "ab\x0ccd", holds("\x0c")),
    ("a bell", ALL, "ab\acd", holds("\a")),
    ("a backspace", ALL, "ab\bcd", holds("\b")),
    ("the escape of a terminal", ALL, "ab\x1b[2Jcd", holds("\x1b")),
    ("a record separator", ALL, "ab\x1ecd", holds("\x1e")),
    ("delete", ALL, "ab\x7fcd", holds("\x7f")),
    ("a next line", ALL, "ab\x85cd", holds("\x85")),
    ("the other escape of a terminal", ALL, "ab\x9b2Jcd", holds("\x9b")),
    ("a line separator", LINES, "ab\u2028cd", holds("\u2028")),
    ("a paragraph separator", LINES, "ab\u2029cd", holds("\u2029")),
    ("a bidirectional embedding", LINES, "ab\u202acd", holds("\u202a")),
    ("a bidirectional override", LINES, "ab\u202ecd", holds("\u202e")),
    ("a bidirectional isolate", LINES, "ab\u2066cd", holds("\u2066")),
    ("the end of an isolate", LINES, "ab\u2069cd", holds("\u2069")),
    ("a zero-width space", LINES, "ab\u200bcd", holds("\u200b")),
    ("a word joiner", LINES, "ab\u2060cd", holds("\u2060")),
    ("a byte order mark", LINES, "ab\ufeffcd", holds("\ufeff")),
    ("the first half of a pair", ALL, "abc\ud83d", holds("\ud83d")),
    ("the second half of a pair", ALL, "\ude00abc", holds("\ude00")),
    ("a soft hyphen", LINES, "ab\u00adcd", ANY),
    ("a grapheme joiner", LINES, "ab\u034fcd", ANY),
    ("a Mongolian vowel separator", LINES, "ab\u180ecd", ANY),
    ("an invisible times", LINES, "ab\u2062cd", ANY),
    ("a deprecated format character", LINES, "ab\u206acd", ANY),
    ("an interlinear annotation", LINES, "ab\ufff9cd", ANY),
    ("a Hangul filler", LINES, "ab\u3164cd", ANY),
    ("a halfwidth Hangul filler", LINES, "ab\uffa0cd", ANY),
    ("a Hangul choseong filler", LINES, "ab\u115fcd", ANY),
    ("a musical begin of beam", LINES, "ab\U0001d173cd", ANY),
    ("a tag, which hides a letter", LINES, "ab\U000e0041cd", ANY),
    ("a joiner with nothing to join", LINES, "ab\u200dcd", ANY),
    ("two non-joiners in Latin", LINES, "ab\u200c\u200ccd", ANY),
    ("a variation of a Latin letter", LINES, "ab\ufe0fcd", ANY),
    ("nothing but joiners", LINES, "\u200d" * 3, ANY),
    ("nothing but variation selectors", LINES, "\ufe0f" * 3, ANY),
    ("nothing but Hangul fillers", LINES, "\u3164" * 3, ANY),
    ("nothing but blank Braille", LINES, "\u2800" * 3, ANY),
]


def with_field(route, field, value):
    """The valid body of the route with this value in the field; None if it has no such field."""
    valid = VALID[route.path.split("/")[1]]
    return json.dumps(valid | {field: value}).encode() if field in valid else None


def tells(pointer, detail):
    """Whether an answer tells this one fault, as a function to judge by."""

    def complain(answer):
        told = json.loads(answer.text).get("errors", []) if answer.status == 422 else []
        right = [error["pointer"] for error in told] == [pointer]
        right = right and detail in (ANY, told[0]["detail"])
        return None if right else f"answers {answer.status} {told or answer.text[:80]}"

    return complain


def test_a_hostile_field_is_the_only_one_that_is_told(judge):
    judge(
        (
            f"{name} as {place}",
            tells(f"#/{place}", detail),
            (route.method, path_of(route), body),
            media_type(route),
        )
        for name, places, value, detail in FIELDS
        for place in places
        for route in TAKE_A_BODY
        if (body := with_field(route, place.partition("/")[0], value))
    )


# ---------------------------------------------------------------- paths

IDS = [
    ("a byte that is not UTF-8", "%FF"),
    ("a byte behind it", "1%FF"),
    ("a line feed", "%0A"),
    ("a line feed behind it", "1%0A"),
    ("a header behind it", "1%0D%0AX:%20y"),
    ("NUL", "%00"),
    ("NUL behind it", "1%00"),
    ("a blank behind it", "1%20"),
    ("a tab before it", "%091"),
    ("a no-break space behind it", "1%C2%A0"),
    ("nothing", ""),
    ("zero", "0"),
    ("negative", "-1"),
    ("a sign", "+1"),
    ("leading zeros", "007"),
    ("19 digits", "1" * 19),
    ("30 digits", "9" * 30),
    ("5,000 digits", "9" * 5000),
    ("a float", "1.0"),
    ("an exponent", "1e0"),
    ("hexadecimal", "0x1"),
    ("an underscore", "1_0"),
    ("Arabic digits", "%D9%A1"),
    ("fullwidth digits", "%EF%BC%91"),
    ("a superscript", "%C2%B9"),
    ("NaN", "NaN"),
    ("null", "null"),
    ("an SQL condition", "1%20OR%201=1"),
    ("an SQL comment", "1--"),
    ("a template", "{{1}}"),
    ("the pattern itself", "<user_id:id>"),
    ("a list", "1,1"),
    ("a parameter", "1;v=1"),
    ("a quoted slash", "1%2F"),
    ("a dot", "."),
    ("two dots", "%2e%2e"),
    ("two quoted quotes", "%2527"),
    ("a query in the path", "1%3Flimit=1"),
    ("a fragment in the path", "1%23"),
    ("half a surrogate pair", "%ED%A0%80"),
    ("a script", "<script>"),
    ("18 digits", "9" * 18),
    ("the largest of 64 bits", "9223372036854775807"),
]


def hostile_ids(route, text):
    """The path with the text in the place of each of its ids in turn."""
    for name in re.findall(r"<(\w+):id>", route.path):
        yield path_of(route, **{name: text})


def test_an_id_that_no_row_can_have_is_404(judge):
    judge(
        (name, 404, (route.method, path, valid_body(route)), media_type(route))
        for route in tracker.ROUTES
        for name, text in IDS
        for path in hostile_ids(route, text)
    )


PATHS = [
    ("a trailing slash", "{}/"),
    ("two trailing slashes", "{}//"),
    ("a trailing line feed", "{}%0A"),
    ("a trailing NUL", "{}%00"),
    ("a trailing blank", "{}%20"),
    ("a trailing dot", "{}."),
    ("a trailing dot as a segment", "{}/."),
    ("there and back", "{}/..{}"),
    ("there and back, quoted", "{}/%2e%2e{}"),
    ("a parameter", "{};a=b"),
    ("an ending", "{}.json"),
    ("a byte that is not UTF-8 behind it", "{}%FF"),
    ("a byte that is not UTF-8 before it", "/%FF{}"),
    ("a byte order mark before it", "/%EF%BB%BF{}"),
    ("a zero-width space behind it", "{}%E2%80%8B"),
    ("a backslash", "{}\\"),
    ("from the root of the disk", "/../../../../etc/passwd{}"),
    ("60,000 characters", "{}/" + "a/" * 30_000),
    ("60,000 digits", "{}/" + "1" * 60_000),
    ("10,000 dots", "{}/" + "../" * 10_000),
]


def test_a_path_that_is_not_to_the_letter_is_404(judge):
    judge(
        (name, 404, (route.method, form.format(*2 * [path_of(route)])), {})
        for route in tracker.ROUTES
        for name, form in PATHS
    )


METHODS = ["TRACE", "CONNECT", "OPTIONS", "PROXY", "ANY", "BREW", "G@T", "GET\n", "X" * 500]


def test_a_method_that_no_route_has_is_405_and_tells_those_there_are(judge, world):
    paths = sorted({path_of(route) for route in tracker.ROUTES})
    judge((method[:9], 405, (method, path), {}) for path in paths for method in METHODS)
    for route in tracker.ROUTES:
        assert route.method in ask(world.app, "BREW", path_of(route)).headers["Allow"].split(", ")


def test_a_method_in_small_letters_is_another_method(api, app):
    api.user()
    wrong = []
    for route in tracker.ROUTES:
        answer = ask(app, route.method.lower(), path_of(route), valid_body(route))
        if complaint := fault(answer, {400, 405, 501}):
            wrong.append(f"{route.method.lower()} {route.path} {complaint}")
    assert not wrong, "\n" + "\n".join(wrong)
    assert api.get("/users/1").json["name"] == "Max"


# ---------------------------------------------------------------- queries

EVERYWHERE = [
    ("an unknown name", "colour=red"),
    ("a name alone", "x"),
    ("an empty name", "=1"),
    ("another case", "LIMIT=1"),
    ("a blank behind the name", "limit%20=1"),
    ("a list as in PHP", "limit[]=1"),
    ("a byte that is not UTF-8 as a name", "%FF=1"),
    ("a byte that is not UTF-8 as a value", "x=%FF"),
    ("UTF-8 longer than need be", "x=%C0%80"),
    ("half a surrogate pair", "x=%ED%A0%80"),
    ("a byte that is not quoted", "x=\xff"),
    ("NUL", "%00=1"),
    ("51 parameters", "&".join(["x=1"] * 51)),
    ("5,000 ampersands", "&" * 5_000 + "x"),
    ("5,000 semicolons", ";" * 5_000),
    ("5,000 percent signs as a name", "%" * 5_000),
    ("5,000 equals signs", "=" * 5_000),
    ("a question mark more", "?limit=1"),
    ("a fragment", "#limit=1"),
    ("JSON", '{"limit":1}'),
]

NO_LIMITS = ["0", "201", "-1", "+1", "1.0", "1e2", "", "%20", "1%20", "1%0A", "ten", "9" * 30]
NO_LIMITS += ["%D9%A1", "%EF%BC%91", "0x1", "1_0", "null", "%00", "1%00", "%" * 50_000]
NO_CURSORS = ["", "x", "1", "%20", "%00", "%", "====", "AAAA", "A" * 60_000, "%F0%9F%99%82", "-_-_"]
NO_IDS = ["0", "-1", "007", "1.0", "1e0", "%20", "", "x", "9" * 30, "%D9%A1", "1%0A", "1%00"]
NO_IDS += ["1%20OR%201=1", "true", "[1]", "9" * 5_000]
NO_STATUSES = ["", "Open", "all", "open,closed", "open%00", "in_progress", "0", "%EF%BB%BFopen"]
NO_SORTS = ["", "title", "--created", "+created", "created,updated", "created%20DESC", "Created"]
NO_STATES = ["", "Sent", "all", "sent%00", "sent,failed", "%20sent"]
NO_ADDRESSES = ["", "max", "@", "a@b", "max@example.com,dave@example.com", "max@example.com%00"]
NO_ADDRESSES += ["%22a%20b%22@example.com", "ma%CC%88x@example.com", "a" * 65 + "@example.com"]
NO_TEXTS = ["%00", "a%00b", "a%1Bb", "%C2%85x%C2%9B", "x" * 10_001, "%" * 50_000]


def cursor(order, id, touched_at=""):
    """A cursor as the tracker writes them; what is hostile is in its place or its parts."""
    return rule.write_cursor(order, touched_at, id)


FORGED = [
    cursor("users", 0),
    cursor("users", -1),
    cursor("users", 10**18),
    cursor("users", "1 OR 1=1"),
    cursor("users", "٣"),
    cursor("users", "1\n"),
    cursor("", 1),
    cursor("nothing", 1),
    cursor("history-2", 1),
    cursor("-created", 1, "now"),
    cursor("-created", 1, "'; DROP TABLE tickets"),
    cursor("emails", 1) + "=",
    cursor("emails", 1) + "%0A",
    cursor("emails", 1)[:-1],
    cursor("emails", 1).swapcase(),
]

QUERIES = {
    "limit": NO_LIMITS,
    "after": NO_CURSORS + FORGED,
    "project_id": NO_IDS,
    "assignee_id": [*NO_IDS, "None", "none%20", "null", "nobody"],
    "email": NO_ADDRESSES,
    "ticket_id": NO_IDS,
    "status": NO_STATUSES,
    "sort": NO_SORTS,
    "state": NO_STATES,
    "text": NO_TEXTS,
}
GOOD = {"limit": "1", "status": "open", "sort": "created", "state": "sent", "text": "fix"}


def test_a_query_with_unknown_names_or_what_is_not_utf8_is_400(judge):
    judge(
        (name, 400, (route.method, path_of(route), valid_body(route), query), media_type(route))
        for route in tracker.ROUTES
        for name, query in EVERYWHERE
    )


def names_parameter(name):
    """Whether an answer of 400 tells this one parameter, as a function to judge by."""

    def complain(answer):
        told = json.loads(answer.text).get("errors", []) if answer.status == 400 else []
        right = [error.get("parameter") for error in told] == [name]
        return None if right else f"answers {answer.status} {told or answer.text[:80]}"

    return complain


def test_a_bad_value_of_a_parameter_is_400_and_names_it(judge):
    assert {name for route in tracker.ROUTES for name in route.query} == QUERIES.keys()
    judge(
        (
            f"{name}={value[:40]}",
            names_parameter(name),
            (route.method, path_of(route), b"", f"{name}={value}"),
            {},
        )
        for route in tracker.ROUTES
        for name in route.query
        for value in QUERIES[name]
    )


def test_a_parameter_of_one_value_is_given_once(judge):
    judge(
        (
            query,
            200 if name == "status" else names_parameter(name),
            (route.method, path_of(route), b"", query),
            {},
        )
        for route in tracker.ROUTES
        for name in route.query
        if (query := "&".join([f"{name}={GOOD.get(name, 1)}"] * 2))
    )


def test_the_cursor_of_another_list_is_400(judge):
    own = {"/users": "users", "/projects": "projects", "/emails": "emails", "/tickets": "-created"}
    own["/tickets/1/history"] = "history-1"
    orders = {*own.values(), "created", "updated", "-updated", "history-2", "history-01"}
    lists = [route for route in tracker.ROUTES if "after" in route.query]
    judge(
        (
            f"the cursor of {order}",
            200 if own[path_of(route)] == order else 400,
            ("GET", path_of(route), b"", f"after={cursor(order, 1, '2026-11-22T10:32:00.123Z')}"),
            {},
        )
        for route in lists
        for order in orders
    )


def test_a_cursor_behind_something_that_is_gone_goes_on(api):
    for name in ("Max", "Dave", "Yaris"):
        api.user(name)
    behind_dave = re.search("after=([^&>]+)", api.get("/users?limit=2").headers["Link"])[1]
    api.delete("/users/2")
    assert [user["name"] for user in api.get(f"/users?after={behind_dave}").json] == ["Yaris"]
    api.delete("/users/3")
    assert api.get(f"/users?after={behind_dave}").json == []


# What FTS5 or SQL could take for more than text is found to the letter, and nothing else is.
LITERALLY = [
    ("a quote", 'he said "stop'),
    ("two quotes", '""'),
    ("an apostrophe", "it's"),
    ("SQL", "'; DROP TABLE tickets; --"),
    ("OR", "fix OR break"),
    ("AND", "fix AND break"),
    ("NOT", "fix NOT break"),
    ("NEAR", "NEAR(fix break, 5)"),
    ("a star", "data*"),
    ("three stars", "***"),
    ("a caret", "^fix"),
    ("a column", "title:fix"),
    ("columns in braces", "{title description}: fix"),
    ("a minus", "-fix"),
    ("a plus", "fix + break"),
    ("parentheses", "(fix"),
    ("a LIKE pattern", "100%_done"),
    ("two percent signs", "%%"),
    ("a GLOB pattern", "[a-z]?"),
    ("a backslash", "C:\\new\\0"),
    ("a parameter of SQL", ":phrase ?1 @x $y"),
    ("a comment", "/* fix */"),
    ("a comma", "fix, break"),
    ("many blanks", "fix   break"),
    ("an escape", "\\u0041"),
    ("an emoji", "fix 🐛 now"),
    ("sharp s", "Straße"),
    ("a capital with a dot", "İzmir"),
]


@pytest.mark.parametrize("length", [3, 200])
def test_operators_and_quotes_in_a_search_are_text(world, judge, length):
    titles = ["Fix the database", *(title for _, title in LITERALLY)]
    wrong = []
    for name, text in LITERALLY:
        wanted = text.strip()[:length]
        answer = ask(
            world.app, "GET", "/tickets", b"", f"sort=created&text={quote(wanted, safe='')}"
        )
        assert fault(answer, 200) is None, (name, answer)
        found = [ticket["title"] for ticket in json.loads(answer.text)]
        if found != [title for title in titles if fold(wanted.strip()) in fold(title)]:
            wrong.append(f"{name}: {wanted!r} finds {found}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_10_000_percent_signs_are_a_text_to_search_for(judge):
    long = [("as they are", "%25" * 10_000), ("plus signs are blanks", "+" * 50_000)]
    judge((name, 200, ("GET", "/tickets", b"", f"text={text}"), {}) for name, text in long)


# ---------------------------------------------------------------- headers

HOSTS = [
    ("missing", None),
    ("empty", ""),
    ("another", "evil.example"),
    ("ours and more", "localhost.evil.example"),
    ("ours as a name", "127.0.0.1.evil.example"),
    ("ours as a user", "localhost@evil.example"),
    ("a user of ours", "evil@localhost"),
    ("ours as a path", "evil.example/localhost"),
    ("two", "localhost, evil.example"),
    ("two with a blank", "localhost evil.example"),
    ("a dot behind it", "localhost."),
    ("a port that is none", "localhost:abc"),
    ("two ports", "localhost:80:80"),
    ("a fullwidth letter", "ｌocalhost".encode().decode("latin-1")),
    ("Latin-1", "löcalhost"),
    ("NUL behind it", "localhost\0"),
    ("a line feed behind it", "localhost\n"),
    ("a header behind it", "localhost\r\nX: y"),
    ("decimal", "2130706433"),
    ("hexadecimal", "0x7f.1"),
    ("octal", "0177.0.0.1"),
    ("short", "127.1"),
    ("any address", "0.0.0.0"),
    ("any address, IPv6", "[::]"),
    ("another address", "10.0.0.1"),
    ("brackets that stay open", "[::1"),
    ("nothing in the brackets", "[]"),
    ("colons only", "[" + ":" * 30_000 + "]"),
    ("a zone", "[fe80::1%25eth0]"),
    ("60,000 letters", "a" * 60_000),
    ("60,000 dots", "." * 60_000),
    ("a star", "*"),
    ("a quote", '"localhost"'),
    ("a script", "<script>alert(1)</script>"),
]


def test_a_foreign_host_is_403_on_every_route(judge):
    judge(
        (name, 403, (route.method, path_of(route), valid_body(route)), {"HTTP_HOST": host})
        for route in tracker.ROUTES
        for name, host in HOSTS
    )


ORIGINS = [
    ("another", "HTTP_ORIGIN", "https://evil.example"),
    ("null", "HTTP_ORIGIN", "null"),
    ("empty", "HTTP_ORIGIN", ""),
    ("ours and more", "HTTP_ORIGIN", "http://localhost.evil.example"),
    ("ours as a user", "HTTP_ORIGIN", "http://localhost@evil.example"),
    ("ours with another port", "HTTP_ORIGIN", "http://localhost:8081"),
    ("ours without a scheme", "HTTP_ORIGIN", "localhost"),
    ("ours and another", "HTTP_ORIGIN", "http://localhost http://evil.example"),
    ("ours with a path", "HTTP_ORIGIN", "http://localhost/evil"),
    ("Latin-1", "HTTP_ORIGIN", "http://löcalhost"),
    ("60,000 letters", "HTTP_ORIGIN", "http://" + "a" * 60_000),
    ("60,000 ports", "HTTP_ORIGIN", "http://" + ":80" * 20_000),
    ("of another site", "HTTP_SEC_FETCH_SITE", "cross-site"),
    ("of the same site", "HTTP_SEC_FETCH_SITE", "same-site"),
]


def test_a_write_from_a_page_of_another_site_is_403_on_every_route(judge):
    judge(
        (name, 403, (route.method, path_of(route), valid_body(route)), {header: value})
        for route in tracker.ROUTES
        if route.method != "GET"
        for name, header, value in ORIGINS
    )


TAGS = [
    ("another", '"x"'),
    ("none", ""),
    ("an empty one", '""'),
    ("blanks", "   "),
    ("without quotes", "x"),
    ("a quote alone", '"'),
    ("three quotes", '"""'),
    ("60,000 quotes", '"' * 60_000),
    ("60,001 quotes", '"' * 60_001),
    ("a tag of 60,000 letters", '"' + "x" * 60_000 + '"'),
    ("one that stays open", '"' + "x" * 60_000),
    ("20,000 of them", '"x", ' * 12_000),
    ("weak", 'W/"x"'),
    ("weak in small letters", 'w/"x"'),
    ("20,000 weak beginnings", "W/" * 30_000),
    ("a star in quotes", '"*"'),
    ("a star and more", '*, "x"'),
    ("two stars", "**"),
    ("Latin-1", '"\xff"'),
    ("NUL", '"\0"'),
    ("a line feed", '"\n"'),
    ("commas", "," * 60_000),
]


def test_an_if_match_that_matches_nothing_is_412(judge):
    judge(
        (name, 412, (route.method, path_of(route), valid_body(route)), environ)
        for route in tracker.ROUTES
        if route.method in ("PUT", "PATCH", "DELETE")
        for name, tag in TAGS
        if (environ := media_type(route) | {"HTTP_IF_MATCH": tag})
    )


def test_the_weak_form_of_a_tag_is_enough_to_write_and_another_is_not(world, judge):
    weak = {"HTTP_IF_MATCH": "W/" + ask(world.app, "GET", "/tickets/1").headers["Etag"]}
    judge([("of another", 412, ("DELETE", "/users/1"), weak)])
    judge(
        [("weak", 200, ("PATCH", "/tickets/1", b"{}"), weak | {"CONTENT_TYPE": "application/json"})]
    )


IGNORED = [
    ("a method", "HTTP_X_HTTP_METHOD_OVERRIDE", "DELETE"),
    ("another host", "HTTP_X_FORWARDED_HOST", "evil.example"),
    ("another server", "HTTP_X_FORWARDED_SERVER", "evil.example"),
    ("another prefix", "HTTP_X_FORWARDED_PREFIX", "//evil.example"),
    ("another scheme", "HTTP_X_FORWARDED_PROTO", "javascript"),
    ("another client", "HTTP_X_FORWARDED_FOR", "127.0.0.1, <script>"),
    ("all of them", "HTTP_FORWARDED", "for=x;host=evil.example;proto=javascript"),
    ("another path", "HTTP_X_ORIGINAL_URL", "/users/1"),
    ("another script name", "HTTP_SCRIPT_NAME", "//evil.example"),
    ("a cookie", "HTTP_COOKIE", "a=b;" * 15_000),
    ("a bad cookie", "HTTP_COOKIE", '=;;="\xff'),
    ("a password", "HTTP_AUTHORIZATION", "Basic " + "A" * 50_000),
    ("a bad password", "HTTP_AUTHORIZATION", "Basic \xff"),
    ("a range", "HTTP_RANGE", "bytes=5-1,-9999999999999999999"),
    ("a bad date", "HTTP_IF_MODIFIED_SINCE", "Sat, 99 Nov 99999 99:99:99 GMT"),
    ("another format", "HTTP_ACCEPT", "text/html;q=1e999"),
    ("another language", "HTTP_ACCEPT_LANGUAGE", "x" * 60_000),
    ("another coding", "HTTP_ACCEPT_ENCODING", "\xff\0"),
    ("another protocol", "HTTP_UPGRADE", "h2c"),
    ("an expectation", "HTTP_EXPECT", "miracles"),
    ("a request by script", "HTTP_X_REQUESTED_WITH", "XMLHttpRequest"),
]


def test_what_a_header_claims_in_vain_changes_no_answer(world):
    reads = [path_of(route) for route in tracker.ROUTES if route.method == "GET"]
    rows = [*IGNORED, *((name, "HTTP_IF_NONE_MATCH", tag) for name, tag in TAGS if tag != "*")]
    wrong = [
        f"{name}: {header} on {path}"
        for path in reads
        if (plain := ask(world.app, "GET", path, b"", "limit=1" if path == "/tickets" else ""))
        for name, header, value in rows
        if ask(
            world.app, "GET", path, b"", "limit=1" if path == "/tickets" else "", **{header: value}
        )
        != plain
    ]
    assert not wrong, "\n" + "\n".join(wrong)


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


def talk(port, data):
    """What the server at the port answers to the bytes; None if it only hangs up."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as sock:
        with suppress(ConnectionError):  # it may be refused before its end
            sock.sendall(data)
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


def test_hostile_bytes_on_the_wire_are_answered_and_leave_no_trace(tmp_path):
    server = Server(tmp_path / "tickets.db", "--quiet")
    try:
        wrong = []
        for name, data, expected in WIRE:
            answer = talk(server.port, data)
            complaint = fault(answer, expected) if answer else "is not answered"
            if complaint:
                wrong.append(f"{name}: {complaint}")
        for path in ("/users", "/projects", "/tickets", "/emails"):
            assert talk(server.port, get(path.encode())).text == b"[]"
        server.terminate()
    finally:
        server.kill()
        server.process.stdout.close()
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


# ---------------------------------------------------------------- addresses

GOOD_ADDRESSES = [
    "max.mustermann@example.com",
    "Max.Mustermann@Example.COM",
    "m@e.de",
    "max+tickets@example.com",
    "max_m-2@sub.sub2.example.co",
    "!#$%&'*+/=?^_`{|}~-@example.com",
    "max=40example.org@example.com",
    "relay%example.org@example.com",
    "host!max@example.com",
    "o'brien@example.ie",
    "1@2.example",
    "max@xn--bcher-kva.example",
    "max@1und1.de",
    "max@a--b.example",
    "max@1.2.3.example",
    "-max-@example.com",
    "x" * 64 + "@example.com",
    "m@" + "d" * 63 + ".example",
    "m@" + ".".join(["d" * 60] * 4) + ".example",
]
BAD_ADDRESSES = [
    "",
    " ",
    "max",
    "max@",
    "@",
    "@example.com",
    "max@localhost",
    "max@example.com.",
    "max@.example.com",
    "max@example..com",
    "max@-example.com",
    "max@example-.com",
    "max@exa_mple.com",
    "max@exam ple.com",
    "max@example.c om",
    "max mustermann@example.com",
    "max @example.com",
    "max@ example.com",
    "max@\texample.com",
    ".max@example.com",
    "max.@example.com",
    "max..m@example.com",
    "max@@example.com",
    "max@a@example.com",
    "a@x.com,b@y.com",
    "a@x.com;b@y.com",
    "a@x.com b@y.com",
    "a@x.com,",
    "a@x.com\r\nRCPT TO:<b@y.com>",
    "a@x.com\r\nBcc: b@y.com",
    "a@x.com>\r\nDATA",
    "a@x.com\nb",
    "a@x.com\rb",
    "a\0@x.com",
    "a@x.com\0",
    "a@x.com\x7f",
    "Max <max@example.com>",
    "<max@example.com>",
    "<max@example.com",
    "max@example.com>",
    "<@a.example,@b.example:max@example.com>",
    "max@example.com> SIZE=1",
    "max(comment)@example.com",
    "max@example.com (Max)",
    "team: a@x.com, b@y.com;",
    '"max mustermann"@example.com',
    '"max"@example.com',
    '"a@x.com"@example.com',
    "max@[127.0.0.1]",
    "max@[IPv6:::1]",
    "max@127.0.0.1",
    "max@example.123",
    "max\\@example.com",
    "max\\,m@example.com",
    "max,m@example.com",
    "max:m@example.com",
    "max%example.com",
    "max@example/com",
    "max@example.com:25",
    "mailto:max@example.com",
    "max@example.com?subject=x",
    "=?utf-8?q?max=40example.com?=",
    # Servers have been seen to decode these, and the mail goes to somebody else.
    "=?utf-8?q?max?=@example.com",
    "=?us-ascii?b?bWF4QGV4YW1wbGUub3Jn?=@example.com",
    "max.=?x?q?=40example.org=3e=00?=@example.com",
    "max@=?utf-8?q?example?=.com",
    "postmaster",
    "x" * 65 + "@example.com",
    "m@" + "d" * 64 + ".example",
    "m@" + ".".join(["d" * 60] * 4) + ".exampleexample",
    "m@" + "a." * 30_000 + "example",
    "a" * 60_000,
]
FOREIGN_ADDRESSES = [
    "máx@example.com",
    "max@exämple.com",
    "max@example。com",
    "max＠example.com",
    "ｍax@example.com",
    "maх@example.com",  # a Cyrillic letter
    "max@example.com\u200b",
    "\u202emoc.elpmaxe@xam",
    "ma\u00adx@example.com",
    "用户@例え.jp",
    "😀@example.com",
    "max@ExampLe\u212aom.com",  # the Kelvin sign, which lower() makes a k
    "max\ud800@example.com",
]
assert len(GOOD_ADDRESSES + BAD_ADDRESSES + FOREIGN_ADDRESSES) >= 60


def test_addresses_that_are_refused_and_why(judge):
    foreign = "must be ASCII; an address in another script cannot be reached by every server"
    judge(
        (repr(address[:60]), tells("#/email", detail), (route.method, path_of(route), body), {})
        for addresses, detail in (
            (BAD_ADDRESSES, "is not a valid email address"),
            (FOREIGN_ADDRESSES, foreign),
        )
        for address in addresses
        for route in TAKE_A_BODY
        if (body := with_field(route, "email", address))
    )


# Pieces of which an address, two of them, or the commands of a mail server can be made.
PIECES = ["a", "Max", "9", ".", "-", "_", "+", "!", "%", "'", "=?", "?=", "/", "@", "@example.com"]
PIECES += ["@x.example", ".com", " ", ",", ";", ":", "<", ">", "(", ")", "[", "]", '"', "\\"]
PIECES += ["\r\n", "\n", "\t", "\0", "\x7f", "é", "。", "\u200b", "RCPT TO:<b@y.com>", "xn--"]

ADDRESSES = st.one_of(
    st.emails(),
    st.text(printable, max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.tuples(
        st.text("aZ0!#$%&'*+/=?^_`{|}~-.", min_size=1, max_size=70),
        st.text("aZ0-.", min_size=1, max_size=70),
    ).map(lambda parts: f"{parts[0]}@{parts[1]}.example"),
    # Good ones with a piece put in, in the place of some letters.
    st.tuples(
        st.sampled_from(GOOD_ADDRESSES),
        st.integers(0, 70),
        st.integers(0, 3),
        st.sampled_from(PIECES),
    ).map(lambda it: it[0][: it[1]] + it[3] + it[0][it[1] + it[2] :]),
)


def test_whatever_address_is_accepted_gets_the_mail_as_that_one_recipient(make_app, mail_server):
    accepted = {address.lower(): address for address in GOOD_ADDRESSES}

    @settings(max_examples=200, deadline=None)
    @given(ADDRESSES)
    def offer(address):
        told = []
        clean = rule.email(address, told.append)
        if not told:
            accepted[clean.lower()] = clean

    offer()
    api = Api(make_app(smtp=mail_server.url))
    api.project()
    ids = [api.user("Max", f" {address} ")["id"] for address in accepted.values()]
    for id, address in zip(ids, accepted.values(), strict=True):
        assert api.get(f"/users/{id}").json["email"] == address
    for start in range(0, len(ids), 50):
        api.ticket(assignees=ids[start : start + 50])
    eventually(lambda: api.get("/health").json["mail"]["queued"] == 0, timeout=60)
    assert api.emails(state="failed") == []
    # MailServer notes one entry for each RCPT of a message, spelled as it came.
    assert sorted(to for to, _ in mail_server.messages) == sorted(accepted.values())
    for to, message in mail_server.messages:
        [(_, header)] = [item for item in message.raw_items() if item[0] == "To"]
        assert header.strip() == to


# ---------------------------------------------------------------- texts that pass unharmed

# Each is a name, a title and a description as it is.
HARMLESS_TEXTS = [
    ("Latin", "Zoë O'Brien-Ørsted"),
    ("exactly 100 letters", "x" * 100),
    ("100 emoji", "🙂" * 100),
    ("quotes and backslashes", "a\"b\\c'd"),
    ("markup", "<b>&amp;</b>"),
    ("a percent sign and braces", "100 % {name} %s $x"),
    ("what looks like an encoded word", "=?utf-8?q?Max?="),
    ("what looks like a header", "Bcc: max@example.com"),
    ("what looks like a reply", "Re: [Ticket #1] Fix"),
    ("what begins a mailbox", "From here"),
    ("two blanks inside", "Max  Muster   mann"),
    ("a long word", "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen"),
    ("Chinese", "数据库错误"),
    ("Japanese", "日本語"),
    ("Korean", "한국어 이름"),
    ("Thai", "ภาษาไทย"),
    ("Hindi", "क्षत्रिय"),
    ("Hindi with a joiner", "क्\u200dष"),
    ("Hebrew", "שלום עולם"),
    ("Hebrew with points", "שָׁלוֹם"),
    ("Arabic", "مرحبا بالعالم"),
    ("Persian with a non-joiner", "نیم\u200cفاصله"),
    ("Latin with a Persian plural", "PDF\u200cها"),
    ("both directions", "Fix שלום now"),
    ("an emoji", "🐛🐛🐛"),
    ("a family of emoji", "👩‍👩‍👧 family"),
    ("an emoji with a skin", "👍🏽 done"),
    ("a heart in colour", "I ❤️ it"),
    ("a keycap", "1️⃣ first"),
    ("flags", "🇩🇪🇫🇷🇯🇵"),
    ("the flag of England", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ball"),
    ("the highest planes", "𠜎𝔸🂡"),
    ("private use", "\ue000\ue001\ue002"),
    ("combining", "Z\u0323\u0307oe"),
    ("not composed", "Zoe\u0308"),
    ("Vietnamese", "Nguyễn Thị Ánh"),
    ("a no-break space", "10\u00a0000 €"),
    ("ligatures", "ﬁle oﬃce"),
    ("fullwidth", "ＭＡＸ"),
    ("the last character", "ab\U0010fffd"),
    ("newer than this Python", "ab\U0001faea"),
]
# A description may hold more than a line does.
HARMLESS_DESCRIPTIONS = [
    ("nothing", ""),
    ("two lines", "two\nlines"),
    ("lines of other systems", "a\r\nb\tc\rd"),
    ("a dot alone in its line", "a\n.\nb"),
    ("the beginning of a mail", "From me\n\nFrom you\n..\n.a"),
    ("a mark of direction", "\u202eright to left\u202c"),
    ("a line of 10,000 letters", "x" * 10_000),
    ("dots and words of mailboxes", ".\n..\n.hidden\nFrom Max\n>From Dave\n."),
    ("Japanese and emoji in one line", "日本語😀 " * 1000 + "."),
    ("what looks quoted", "=C3=BC and =?utf-8?q?x?="),
    ("blanks at the ends of lines", "trailing blanks   \n\ttab\n\n\nend"),
    ("5,000 characters of four bytes", "🙂" * 5_000),
    ("a line separator", "a\u2028b\u2029c"),
    ("a zero-width space", "a\u200bb"),
]


def test_harmless_texts_pass_unharmed_through_api_search_and_mail(make_app, mail_server):
    api = Api(make_app(smtp=mail_server.url))
    wrong, tickets = [], {}
    for name, text in HARMLESS_TEXTS:
        user, project = api.user(text, f"max{len(tickets)}@example.com"), api.project(text)
        for kind, entity in (("users", user), ("projects", project)):
            if entity["name"] != text or api.get(f"/{kind}/{entity['id']}").json != entity:
                wrong.append(f"{name}: {kind} have {entity}")
        tickets[name] = api.ticket(project["id"], [user["id"]], text, description=text)
    for name, text in HARMLESS_DESCRIPTIONS:
        user = api.user("Dave", f"max{len(tickets)}@example.com")
        tickets[name] = api.ticket(1, [user["id"]], description=text)
    eventually(lambda: api.get("/health").json["mail"]["queued"] == 0)

    for index, (name, text) in enumerate(HARMLESS_TEXTS + HARMLESS_DESCRIPTIONS):
        ticket = tickets[name]
        if ticket["description"] != text or api.get(f"/tickets/{ticket['id']}").json != ticket:
            wrong.append(f"{name}: the ticket is {ticket}")
        for part in (text, text.swapcase()):
            found = api.get("/tickets", {"text": part, "limit": "200"}).json
            if ticket not in found:
                wrong.append(f"{name}: {part[:40]!r} is not found")
        [mail] = mail_server.to(f"max{index}@example.com")
        # Decoded by hand: what a mail program does to a header is not our concern here.
        [subject] = [value for key, value in mail.raw_items() if key == "Subject"]
        subject = str(make_header(decode_header(re.sub(r"\r?\n", "", subject))))
        if subject != f"[Ticket #{ticket['id']}] {ticket['title']}":
            wrong.append(f"{name}: the subject is {subject!r}")
        body = mail.get_payload(decode=True).decode().replace("\r\n", "\n")
        lines = re.sub(r"\r\n?", "\n", text)  # a mail has one kind of line break
        lines = f"\nDescription:\n{lines}\n\n-- \nProject: " if lines else "Dave.\n\n-- \nProject: "
        if f'Title: "{ticket["title"]}"\n' not in body or lines not in body:
            wrong.append(f"{name}: the mail is {body[:300]!r}")
        if f"Current assignees: {ticket['assignees'][0]['name']}.\n" not in body:
            wrong.append(f"{name}: the mail names nobody: {body[:300]!r}")
    assert not wrong, "\n" + "\n".join(wrong)
