"""Hostile values of fields, addresses, and texts that must pass unharmed."""

import re
from email.header import decode_header, make_header
from string import printable

import pytest
from conftest import Api, eventually
from hostile import ANY, TAKE_A_BODY, media_type, path_of, tells, with_field
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbing import rule

pytestmark = pytest.mark.engines

# ---------------------------------------------------------------- fields

TEXTS, LINES, ALL = ("name", "title", "email"), ("name", "title"), ("name", "title", "description")
NOT_TEXT = "must be a string"
NOT_AN_ID = "must be an id, a whole number"
NOT_A_STATUS = "must be one of: open, in progress, closed"
NOT_A_LIST = "must be a list of ids"


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
    eventually(lambda: api.get("/health").json["mail"]["queued"] == 0, timeout=300)
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
