"""Hostile paths, queries and headers, at every endpoint."""

import json
import re
from urllib.parse import quote

import pytest
from hostile import LITERALLY, ask, fault, media_type, path_of, valid_body

import tracker
from plumbing import rule
from plumbing.text import fold

pytestmark = pytest.mark.engines

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
