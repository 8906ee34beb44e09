"""Mail: its wording, its recipients, and its way through a real SMTP server that may fail.

Max (1), Dave (2) and Yaris (3) work on Website (1). Time passes only where a test says so.
"""

import io
import re
import socket
import time
from email import message_from_bytes
from email.header import decode_header, make_header
from email.policy import default
from typing import ClassVar

import pytest
from aiosmtpd.smtp import AuthResult
from conftest import (
    DAVE,
    MAX,
    NOTHING_WAITS,
    SENDER,
    YARIS,
    Api,
    MailServer,
    attempted,
    eventually,
    health,
    paused,
    seconds_to_next_attempt,
    settled,
    wait,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import mailer
from plumbing import Unavailable
from plumbing.message import Console

pytestmark = [
    pytest.mark.engines,
    pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS"),
]


@pytest.fixture
def api(make_api, mail_server):
    return make_api(mail_server.url)


@pytest.fixture
def make_mail_server():
    servers = []

    def make(kind=MailServer, **settings):
        servers.append(kind(**settings))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def nobody():
    """The URL of a port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"smtp://127.0.0.1:{taken.getsockname()[1]}"


SIGNATURE = "\n-- \nProject: Website\n"  # so mail programs know what not to quote


def text(message):
    return message.get_content().replace("\r\n", "\n")


# ---------------------------------------------------------------- wording


def test_the_mail_about_a_change_is_the_layout_of_the_contract(api, mail_server):
    api.ticket(assignees=[1, 2])
    settled(api)
    mail_server.messages.clear()
    api.change(1, status="in progress", assignees=[1, 2, 3])
    settled(api)
    assert [message["Subject"] for _, message in mail_server.messages] == [
        "[Ticket #1] Fix the database"
    ] * 3
    assert {text(message) for _, message in mail_server.messages} == {
        """\
Ticket #1 updated:
Title: "Fix the database"
Status: "In progress"

Current assignees: Max, Dave, Yaris.

What changed:
  Status: "Open" -> "In progress"
  Assignees: added Yaris
"""
        + SIGNATURE
    }


@pytest.mark.parametrize(
    ("description", "end"),
    [(None, ""), ("Since Monday.\n\nUrgent.", "\nDescription:\nSince Monday.\n\nUrgent.\n")],
)
def test_the_mail_about_a_new_ticket_says_created(api, mail_server, description, end):
    api.ticket(assignees=[1], description=description)
    settled(api)
    (message,) = mail_server.to(MAX)
    body = """\
Ticket #1 created:
Title: "Fix the database"
Status: "Open"

Current assignees: Max.
"""
    assert text(message) == body + end + SIGNATURE


@pytest.mark.parametrize(
    ("fields", "title", "status", "assignees", "lines"),
    [
        ({"title": "Fix it"}, "Fix it", "Open", "Max", ['Title: "Old" -> "Fix it"']),
        ({"status": "closed"}, "Old", "Closed", "Max", ['Status: "Open" -> "Closed"']),
        ({"description": None}, "Old", "Open", "Max", ["Description: removed"]),
        ({"assignees": [1, 3]}, "Old", "Open", "Max, Yaris", ["Assignees: added Yaris"]),
        ({"assignees": []}, "Old", "Open", "none", ["Assignees: removed Max"]),
        (
            {"assignees": [2, 3]},
            "Old",
            "Open",
            "Dave, Yaris",
            ["Assignees: added Dave, Yaris; removed Max"],
        ),
        (
            {"title": "New", "description": None, "status": "closed", "assignees": []},
            "New",
            "Closed",
            "none",
            [
                'Title: "Old" -> "New"',
                "Description: removed",
                'Status: "Open" -> "Closed"',
                "Assignees: removed Max",
            ],
        ),
    ],
)
def test_each_kind_of_change_has_its_line(
    api, mail_server, fields, title, status, assignees, lines
):
    api.ticket(assignees=[1], title="Old", description="Then")
    api.change(1, **fields)
    settled(api)
    body = (
        f"""\
Ticket #1 updated:
Title: "{title}"
Status: "{status}"

Current assignees: {assignees}.

What changed:
"""
        + "".join(f"  {line}\n" for line in lines)
        + SIGNATURE
    )
    assert text(mail_server.to(MAX)[1]) == body
    assert api.get("/emails/2").json["body"] == body


@pytest.mark.parametrize(("before", "words"), [(None, "added"), ("", "added"), ("x", "changed")])
def test_a_new_description_is_shown_in_full(api, before, words):
    api.ticket(assignees=[1], description=before)
    new = "Since Monday.\n\n" + "It is slow. " * 800 + "."
    api.change(1, description=new)
    body = api.get("/emails/2").json["body"]
    assert body.endswith(
        f"\nWhat changed:\n  Description: {words}\n\nDescription:\n{new}\n{SIGNATURE}"
    )


def test_a_description_that_did_not_change_is_not_shown_again(api):
    api.ticket(assignees=[1], description="Since Monday.")
    api.change(1, status="closed")
    assert "Since Monday" not in api.get("/emails/2").json["body"]


@pytest.mark.parametrize("url", ["https://tickets.example.com", "https://tickets.example.com/t/"])
def test_mail_links_to_the_ticket_where_people_find_the_tracker(make_app, url):
    api = Api(make_app(url=url))
    api.user()
    api.project("Größe & Co")
    api.ticket(assignees=[1])
    assert (
        api.get("/emails/1")
        .json["body"]
        .endswith(f"Max.\n\n-- \nProject: Größe & Co\n{url.rstrip('/')}/#/tickets/1\n")
    )


def test_mail_says_who_and_why(make_app):
    api = Api(make_app(url="https://tickets.example.com/"))
    api.user("Max")
    api.user("Dave", "dave@example.com")
    api.project()
    api.extra_environ = {"REMOTE_USER": "DAVE@example.com"}  # whose name is known
    api.ticket(assignees=[1], description="Slow.")
    api.change(1, status="closed", comment="It happens only\nunder load.")
    api.change(1, comment="Once more.")
    api.extra_environ = {"REMOTE_USER": "yaris"}  # whose name is not
    api.change(1, status="open")
    created, changed, commented, by_yaris = (
        api.get(f"/emails/{id}").json["body"].split("\n", 6)[6] for id in (1, 2, 3, 4)
    )
    end = "\n-- \nProject: Website\nhttps://tickets.example.com/#/tickets/1\n"
    assert created == f"Created by Dave.\n\nDescription:\nSlow.\n{end}"
    status = '  Status: "Open" -> "Closed"\n'
    comment = "\nComment:\nIt happens only\nunder load.\n"
    assert changed == f"What changed, by Dave:\n{status}{comment}{end}"
    assert commented == f"Commented by Dave.\n\nComment:\nOnce more.\n{end}"
    assert by_yaris == f'What changed, by yaris:\n  Status: "Closed" -> "Open"\n{end}'


def test_a_move_names_both_projects(api):
    api.project("Office")
    api.ticket(assignees=[1])
    api.change(1, project_id=2)
    body = api.get("/emails/2").json["body"]
    change = '\nWhat changed:\n  Project: "Website" -> "Office"\n'
    assert body.endswith(f"{change}\n-- \nProject: Office\n")


# ---------------------------------------------------------------- who gets it


def test_assignees_and_those_removed_get_one_message_each(api, mail_server):
    api.ticket(assignees=[1, 2])
    settled(api)
    mail_server.messages.clear()
    api.change(1, assignees=[2, 3])
    settled(api)
    assert [recipient for recipient, _ in mail_server.messages] == [MAX, DAVE, YARIS]
    assert [message["To"] for _, message in mail_server.messages] == [MAX, DAVE, YARIS]
    assert len({message["Message-ID"] for _, message in mail_server.messages}) == 3
    assert len({text(message) for _, message in mail_server.messages}) == 1


def test_assigning_and_unassigning_one_user_mails_everybody_concerned(api, mail_server):
    api.ticket()
    api.put("/tickets/1/assignees/1")
    api.put("/tickets/1/assignees/2")
    api.delete("/tickets/1/assignees/1")
    settled(api)
    changes = {
        address: [
            text(message).removesuffix(SIGNATURE).splitlines()[-1].strip()
            for message in mail_server.to(address)
        ]
        for address in (MAX, DAVE, YARIS)
    }
    assert changes == {
        MAX: ["Assignees: added Max", "Assignees: added Dave", "Assignees: removed Max"],
        DAVE: ["Assignees: added Dave", "Assignees: removed Max"],
        YARIS: [],
    }


def test_a_change_that_changes_nothing_mails_nobody(api):
    ticket = api.ticket(assignees=[1], title="Old")
    api.change(1, title=" Old ", status="open", assignees=[1, 1])
    api.put_json("/tickets/1", ticket, status=200)
    api.put("/tickets/1/assignees/1", status=200)
    api.delete("/tickets/1/assignees/2", status=404)
    api.problem("PATCH", "/tickets/1", {"title": ""})
    api.put_json("/users/2", {"name": "David", "email": DAVE})
    assert [email["id"] for email in api.emails()] == [1]


def test_deleting_a_user_mails_the_remaining_assignees(api, mail_server):
    api.ticket(assignees=[1, 2])
    api.ticket(assignees=[2], title="Alone")
    api.ticket(assignees=[1], title="Not concerned")
    settled(api)
    mail_server.messages.clear()
    api.delete("/users/2", status=204)
    settled(api)
    assert [(recipient, text(message)) for recipient, message in mail_server.messages] == [
        (
            MAX,
            """\
Ticket #1 updated:
Title: "Fix the database"
Status: "Open"

Current assignees: Max.

What changed:
  Assignees: removed Dave
"""
            + SIGNATURE,
        )
    ]


def test_mail_waiting_for_a_deleted_user_is_dropped(api, mail_server, clock):
    mail_server.replies[DAVE] = "451 later"
    api.ticket(assignees=[1, 2])
    attempted(api)
    api.delete("/users/2", status=204)
    mail_server.replies.clear()
    wait(api, clock, seconds=34)
    settled(api)
    assert [email["to"] for email in api.emails()] == [MAX, MAX]
    assert mail_server.to(DAVE) == []


def test_what_was_sent_outlives_its_user_and_what_failed_does_not(api, mail_server):
    api.ticket(assignees=[2])
    (sent,) = settled(api)
    mail_server.replies[DAVE] = "550 unknown"
    api.change(1, status="closed")
    settled(api)
    assert api.get("/health").json["mail"]["failed"] == 1
    api.delete("/users/2", status=204)
    assert api.emails() == [sent]
    assert api.get("/health").json["mail"]["failed"] == 0


def test_the_log_tells_what_becomes_of_mail(api, mail_server, caplog):
    mail_server.replies[MAX] = "550 unknown"
    api.ticket(assignees=[1])
    settled(api)
    mail_server.replies["MAIL"] = "550 who are you"
    api.change(1, status="closed")
    eventually(lambda: api.get("/health").json["mail"]["error"])
    mail_server.replies.clear()
    (waiting,) = api.emails(state="queued")
    api.post(f"/emails/{waiting['id']}/retry")
    settled(api)
    assert [record.getMessage() for record in caplog.records] == [
        "Mail 1 has failed: 550 unknown",
        f"Mail waits, {mail_server.url}: 550 who are you",
    ]


# ---------------------------------------------------------------- headers and characters


def test_the_headers_say_what_mail_programs_ask_for(api, mail_server):
    api.ticket(assignees=[1])
    settled(api)
    (message,) = mail_server.to(MAX)
    headers = ("Subject", "From", "To", "Date", "Auto-Submitted", "X-Auto-Response-Suppress")
    assert {name: message.get_all(name) for name in headers} == {
        "Subject": ["[Ticket #1] Fix the database"],
        "From": [SENDER],
        "To": [MAX],
        "Date": ["Sun, 22 Nov 2026 10:32:00 +0000"],
        "Auto-Submitted": ["auto-generated"],
        "X-Auto-Response-Suppress": ["All"],
    }
    assert message.get_content_type() == "text/plain"
    assert re.fullmatch(r"<[^<>@\s]+@example\.com>", message["Message-ID"])
    assert re.fullmatch(r"<[^<>@\s]+@example\.com>", message["References"])
    assert message.get_all("In-Reply-To") == message.get_all("References")
    assert message["In-Reply-To"] != message["Message-ID"]
    assert re.fullmatch(r"Website <project-1\.[0-9a-f]+\.example\.com>", message["List-Id"])
    assert not message.defects


def test_the_date_is_that_of_the_change_and_not_of_its_sending(api, mail_server, clock):
    mail_server.replies[MAX] = "451 later"
    api.ticket(assignees=[1])
    attempted(api)
    mail_server.replies.clear()
    wait(api, clock, hours=5)
    settled(api)
    (message,) = mail_server.to(MAX)
    assert message["Date"] == "Sun, 22 Nov 2026 10:32:00 +0000"


def test_the_list_id_is_that_of_the_project(api, mail_server):
    api.project("Größe, & <Co>")
    for project in (1, 2, 2):
        api.ticket(project, assignees=[1])
    settled(api)
    website, *office = [message["List-Id"] for message in mail_server.to(MAX)]
    assert len(set(office)) == 1
    assert office[0] != website
    assert re.fullmatch(r'"?Größe, & <Co>"? <project-2\.[0-9a-f]+\.example\.com>', office[0])


def test_all_mail_of_one_ticket_is_one_thread(api, mail_server):
    api.ticket(assignees=[1, 2])
    api.ticket(assignees=[1], title="Another")
    api.change(1, title="New")
    settled(api)
    threads = {}
    for _, message in mail_server.messages:
        ticket = message["Subject"].partition("]")[0]
        threads.setdefault(ticket, set()).add((message["References"], message["In-Reply-To"]))
    assert {ticket: len(references) for ticket, references in threads.items()} == {
        "[Ticket #1": 1,
        "[Ticket #2": 1,
    }
    assert threads["[Ticket #1"] != threads["[Ticket #2"]


def test_a_thread_and_a_message_id_outlast_another_sender(make_app, mail_server, clock):
    def started(sender):
        return Api(make_app(smtp=mail_server.url, sender=sender))

    api = started("tracker@example.com")
    api.user("Max")
    api.user("Dave")
    api.project()
    mail_server.replies[DAVE] = "451 later"
    api.ticket(assignees=[1, 2])
    eventually(lambda: all(email["attempts"] for email in api.emails()))
    api.app.close()
    (first,) = mail_server.to(MAX)
    mail_server.replies.clear()
    api = started("Tickets <tickets@example.org>")
    api.change(1, status="closed", assignees=[1])
    wait(api, clock, seconds=34)
    settled(api)
    mails = [message for _, message in mail_server.messages]
    assert [message["From"] for message in mails[1:]] == ["Tickets <tickets@example.org>"] * 3
    for header in ("References", "In-Reply-To", "List-Id"):
        assert {message[header] for message in mails} == {first[header]}
    assert len({message["Message-ID"] for message in mails}) == 4
    assert all(message["Message-ID"].endswith("@example.com>") for message in mails)


def test_mail_that_was_only_printed_settles_nothing_about_the_sender(make_app, mail_server):
    api = Api(make_app())
    api.user()
    api.project()
    api.ticket(assignees=[1])
    settled(api)
    api.app.close()
    api = Api(make_app(smtp=mail_server.url, sender=SENDER))
    api.change(1, status="closed")
    settled(api)
    (message,) = mail_server.to(MAX)
    for header in ("Message-ID", "References", "In-Reply-To", "List-Id"):
        assert message[header].endswith("example.com>")


@pytest.mark.parametrize(
    "title",
    [
        "👩‍👩‍👧 " * 30,
        "x" * 200,
        "😀" * 200,
        "word " * 40,
    ],
)
def test_the_longest_titles_arrive_as_they_are(api, mail_server, title):
    title = title.strip()
    api.ticket(assignees=[1], title=title)
    settled(api)
    (message,) = mail_server.to(MAX)
    assert message["Subject"] == f"[Ticket #1] {title}"
    assert text(message).splitlines()[1] == f'Title: "{title}"'


WORDS = ["=?utf-8?q?x?=", "=?", "?=", "From ", ".", "..", "ü", "😀", "👩\u200d👧", "שלום", "a" * 90]
PIECES = st.sampled_from([*WORDS, " ", "  "])
LINES = st.lists(PIECES | st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp"))))
LINES = LINES.map(lambda pieces: "".join(pieces)[:200].strip())


NAMES = LINES.map(lambda name: " ".join(name.split())[:100].strip())


def unquoted(text):
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text[:1] == '"' == text[-1:] else text


def composed(subject, body, sender="", project="Website"):
    """The mail as it goes out, read by a mail program."""
    email = {
        "address": MAX,
        "subject": subject,
        "body": body,
        "id": 1,
        "message_id": None,
        "token": "0123",
        "domain": "example.com",
        "ticket_id": 1,
        "ticket_created_at": "2026-11-22T10:32:00.123Z",
        "changed_at": "2026-11-22T10:32:00.123Z",
        "project_id": 1,
        "project": project,
    }
    wire = mailer.compose(email, (sender, SENDER)).encode()
    assert wire.isascii()
    assert b"\n" not in wire.replace(b"\r\n", b"")
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    # RFC 2047: an encoded word has at most 75 characters, a line that has one 76.
    for line in wire.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        words = re.findall(rb"=\?utf-8\?[bq]\?[^?]*\?=", line)
        assert max(map(len, words), default=0) <= 75
        assert len(line) <= 76 or not words, line
    return message_from_bytes(wire, policy=default)


@settings(max_examples=100, deadline=None)
@given(title=LINES, lines=st.lists(LINES))
def test_what_is_composed_reads_back_the_same(title, lines):
    subject, body = f"[Ticket #1] {title}".strip(), "\n".join([*lines, "end\n"])
    message = composed(subject, body)
    assert (message["Subject"], text(message)) == (subject, body)


@settings(max_examples=100, deadline=None)
@given(name=NAMES, project=NAMES.filter(bool))
def test_the_names_of_a_sender_and_a_project_read_back_the_same(name, project):
    message = composed("Hello", "Hello\n", name, project)
    # Decoded by hand, as Python 3.11 puts blanks between the words of a long name.
    shown = {
        header: str(make_header(decode_header(re.sub(r"\r?\n", "", value))))
        for header, value in message.raw_items()
    }
    assert shown["From"].rpartition(" ")[2] == (f"<{SENDER}>" if name else SENDER)
    assert unquoted(shown["From"].rpartition(" ")[0]) == name
    assert unquoted(shown["List-Id"].rpartition(" <")[0]) == project


# ---------------------------------------------------------------- mail that fails


@pytest.mark.parametrize(
    ("place", "reply", "state"),
    [
        (MAX, "451 4.3.0 later", "queued"),
        (MAX, "550 5.1.1 unknown", "failed"),
    ],
)
def test_a_refusal_is_recorded(api, mail_server, clock, place, reply, state):
    mail_server.replies[place] = reply
    api.ticket(assignees=[1])
    (email,) = eventually(lambda: [mail for mail in api.emails() if mail["attempts"]])
    again = email.pop("next_attempt_at")
    assert email == {
        "id": 1,
        "ticket_id": 1,
        "user_id": 1,
        "to": MAX,
        "subject": "[Ticket #1] Fix the database",
        "state": state,
        "attempts": 1,
        "error": reply,
        "created_at": "2026-11-22T10:32:00.123Z",
        "sent_at": None,
    }
    if state == "queued":
        assert 30 <= seconds_to_next_attempt({"next_attempt_at": again}, clock) <= 33
        mail_server.replies.clear()
        wait(api, clock, seconds=34)
        settled(api)
        assert len(mail_server.to(MAX)) == 1
    else:
        assert again is None
        assert api.emails(state="failed") == api.emails()


def test_a_mail_that_came_through_shows_when(api, mail_server, clock):
    mail_server.replies[MAX] = "451 later"
    api.ticket(assignees=[1])
    attempted(api)
    mail_server.replies.clear()
    wait(api, clock, seconds=34)
    assert settled(api) == [
        {
            "id": 1,
            "ticket_id": 1,
            "user_id": 1,
            "to": MAX,
            "subject": "[Ticket #1] Fix the database",
            "state": "sent",
            "attempts": 2,
            "error": None,
            "created_at": "2026-11-22T10:32:00.123Z",
            "next_attempt_at": None,
            "sent_at": "2026-11-22T10:32:34.123Z",
        }
    ]


def test_the_waits_double_up_to_an_hour(make_api, nobody, clock):
    api = make_api(nobody)
    api.ticket(assignees=[1])
    for times, seconds in enumerate([30, 60, 120, 240, 480, 960, 1920, 3600, 3600], start=1):
        (email,) = attempted(api, times)
        assert email["error"]
        assert seconds <= seconds_to_next_attempt(email, clock) <= 1.1 * seconds
        wait(api, clock, seconds=1.1 * seconds + 1)


def test_a_mail_is_not_tried_before_its_time(api, mail_server, clock):
    mail_server.replies[MAX] = "451 later"
    api.ticket(assignees=[1])
    attempted(api)
    wait(api, clock, seconds=29)
    api.ticket(assignees=[2])
    eventually(lambda: mail_server.to(DAVE))
    eventually(lambda: len(api.emails(state="sent")) == 1)
    assert [email["attempts"] for email in api.emails(state="queued")] == [1]


def test_after_125_attempts_a_mail_is_failed_however_long_the_time_was_off(make_api, nobody, clock):
    api = make_api(nobody)
    api.ticket(assignees=[1])
    attempted(api)
    wait(api, clock, days=6)
    attempted(api, 2)
    with api.app.database.write() as conn:
        conn.execute("UPDATE emails SET attempts = 123")
    wait(api, clock, hours=2)
    attempted(api, 124)
    wait(api, clock, hours=2)
    settled(api)
    (email,) = api.emails(state="failed")
    assert (email["attempts"], email["next_attempt_at"]) == (125, None)
    assert email["error"]
    assert health(api)["failed"] == 1


def test_a_failed_mail_is_sent_again_by_hand(api, mail_server):
    mail_server.replies[MAX] = "550 unknown"
    api.ticket(assignees=[1])
    settled(api)
    mail_server.replies.clear()
    queued = api.post("/emails/1/retry", status=202).json
    assert (queued["id"], queued["state"], queued["error"]) == (1, "queued", None)
    settled(api)
    assert len(mail_server.to(MAX)) == 1
    assert api.problem("POST", "/emails/1/retry")["status"] == 409
    assert api.problem("POST", "/emails/2/retry")["status"] == 404


def test_a_mail_sent_again_by_hand_has_five_days_more(api, mail_server, clock):
    mail_server.replies[MAX] = "550 unknown"
    api.ticket(assignees=[1])
    settled(api)
    clock.advance(days=30)
    mail_server.replies[MAX] = "451 later"
    api.post("/emails/1/retry", status=202)
    (email,) = attempted(api)
    assert 30 <= seconds_to_next_attempt(email, clock) <= 33


@pytest.mark.parametrize("place", [MAX, "MAIL"])
def test_a_waiting_mail_can_be_sent_at_once(api, mail_server, place):
    mail_server.replies[place] = "450 later" if place == MAX else "550 who are you"
    api.ticket(assignees=[1])
    eventually(lambda: api.emails()[0]["attempts"] or health(api)["error"])
    mail_server.replies.clear()
    api.post("/emails/1/retry", status=202)
    settled(api)
    assert len(mail_server.to(MAX)) == 1


@pytest.mark.parametrize("reply", ["451 later", "550 unknown"])
def test_a_corrected_address_counts_for_mail_not_yet_sent(api, mail_server, clock, reply):
    mail_server.replies[MAX] = reply
    api.ticket(assignees=[1])
    eventually(lambda: api.emails()[0]["attempts"])
    api.put_json("/users/1", {"name": "Max", "email": "max@corrected.example.com"})
    assert api.emails()[0]["to"] == "max@corrected.example.com"
    wait(api, clock, seconds=34)
    if reply.startswith("5"):
        api.post("/emails/1/retry", status=202)
    (email,) = settled(api)
    assert email["to"] == "max@corrected.example.com"
    (message,) = mail_server.to("max@corrected.example.com")
    assert message["To"] == "max@corrected.example.com"


# ---------------------------------------------------------------- what concerns every mail


def check_password(server, session, envelope, mechanism, data):
    right = (data.login, data.password) == (b"max@example.com", b"p@ss:w/rd")
    return AuthResult(success=right, handled=False)


@pytest.fixture
def login_server(make_mail_server):
    return make_mail_server(
        authenticator=check_password, auth_required=True, auth_require_tls=False
    )


def test_user_and_password_of_the_url_log_in(make_api, login_server):
    url = login_server.url.replace("//", "//max%40example.com:p%40ss%3Aw%2Frd@")
    api = make_api(url)
    api.ticket(assignees=[1])
    settled(api)
    assert len(login_server.to(MAX)) == 1


def test_a_wrong_password_pauses_the_queue(make_api, login_server):
    api = make_api(login_server.url.replace("//", "//max%40example.com:secret@"))
    api.ticket(assignees=[1, 2])
    assert "535" in paused(api)
    assert {(email["attempts"], email["error"]) for email in api.emails()} == {(0, None)}
    assert "secret" not in api.get("/health").text
    api.app.close()
    api = make_api(login_server.url.replace("//", "//max%40example.com:p%40ss%3Aw%2Frd@"))
    settled(api)
    assert [recipient for recipient, _ in login_server.messages] == [MAX, DAVE]
    assert health(api) == NOTHING_WAITS


# ---------------------------------------------------------------- connections, threads, processes


def test_several_mails_go_over_one_connection(api, mail_server):
    api.ticket(assignees=[1, 2, 3])
    settled(api)
    assert (len(mail_server.messages), mail_server.sessions) == (3, 1)


# ---------------------------------------------------------------- the API of the outbox


def test_the_mail_is_listed_newest_first_and_filtered(api, mail_server):
    mail_server.replies |= {DAVE: "451 later", YARIS: "550 unknown"}
    api.ticket(assignees=[1, 2])
    api.ticket(assignees=[1, 3])
    eventually(lambda: all(email["attempts"] for email in api.emails()))

    def ids(**filters):
        return [email["id"] for email in api.emails(**filters)]

    assert ids() == [4, 3, 2, 1]
    assert ids(state="sent") == [3, 1]
    assert ids(state="queued") == [2]
    assert ids(state="failed") == [4]
    assert ids(ticket_id=1) == [2, 1]
    assert ids(ticket_id=2, state="sent") == [3]
    assert ids(ticket_id=3) == []


def test_the_links_lead_through_all_mail_once(api):
    for _ in range(3):
        api.ticket(assignees=[1, 2, 3])
    path, seen = "/emails?limit=2&ticket_id=2", []
    api.ticket(assignees=[1])
    while path:
        answer = api.get(path)
        seen.append([email["id"] for email in answer.json])
        api.change(2, status="closed" if len(seen) % 2 else "open")  # newer mail does not disturb
        link = re.fullmatch(r'<(.*)>; rel="next"', answer.headers.get("Link", ""))
        path = link and link[1]
    assert seen == [[6, 5], [4]]


def test_one_mail_is_shown_with_its_body(api):
    api.ticket(assignees=[1])
    (email,) = settled(api)
    body = api.get("/emails/1").json.pop("body")
    assert api.get("/emails/1").json == email | {"body": body}
    assert body.startswith("Ticket #1 created:\n")
    assert api.problem("GET", "/emails/2")["status"] == 404


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "tracker",
        "Tracker <tracker>",
        "Tracker <tracker@example.com",
        "Tracker <tracker@example.com> <dave@example.com>",
        "Tra\ncker <tracker@example.com>",
        "Tra\x07cker <tracker@example.com>",
        "Tracker tracker@example.com",
        pytest.param("<>"),
        "tracker@example.com\nBcc: dave@example.com",
        "tracker@exämple.com",
        "tracker@example.com, dave@example.com",
    ],
)
def test_a_bad_sender_is_refused_at_once(make_app, sender):
    with pytest.raises(ValueError, match="sender"):
        make_app(smtp="smtp://127.0.0.1", sender=sender)


# ---------------------------------------------------------------- rare mishaps


@pytest.mark.parametrize("host", ["mail..example.com", "x" * 64 + ".example.com"])
def test_a_host_name_that_cannot_be_looked_up_is_a_server_that_is_down(make_api, host):
    api = make_api(f"smtp://{host}")
    api.ticket(assignees=[1])
    eventually(lambda: api.get("/health").json["mail"]["error"])
    (email,) = api.emails()
    assert (email["state"], email["attempts"]) == ("queued", 1)


def test_what_was_sent_is_recorded_even_if_the_database_fails_for_the_next_mail(make_api, clock):
    class Recorder(Console):
        sent: ClassVar = []

        def send(self, message):
            time.sleep(mailer.RECORD_SECONDS)
            self.sent.append(message.recipient)

    class Flaky:
        """The database, which cannot be read at the third time."""

        def __init__(self, database):
            self.write, self.now, self.reads = database.write, database.now, 0
            self.may_deliver = database.may_deliver
            self.database = database

        def read(self):
            self.reads += 1
            if self.reads == 3:
                raise Unavailable("for a moment")
            return self.database.read()

    api = make_api("")
    api.app.mailer.close()
    api.ticket(assignees=[1, 2, 3])
    deliverer = mailer.Mailer(Flaky(api.app.database), Recorder(io.StringIO()), ("", SENDER))
    with pytest.raises(Unavailable):
        deliverer.deliver()
    deliverer.deliver()
    assert Recorder.sent == [MAX, DAVE, YARIS]
