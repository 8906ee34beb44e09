"""What becomes of mail, row by row of the contract's table, with servers on sockets.

Max (1), Dave (2) and Yaris (3) work on Website (1). Time passes only where a test says so.
"""

import errno
import logging
import random
import re
import socket
import sqlite3
import threading
from collections import Counter
from contextlib import closing, suppress
from datetime import datetime
from email.header import decode_header, make_header

import pytest
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
from scripted import (
    ScriptedServer,
    drip_for_ever,
    drop,
    each,
    garble,
    go_well,
    hang,
    outlast,
    read_slowly,
    reply,
    reset,
    say_lines_for_ever,
)

import mailer
from plumbing import Unavailable, sqlite
from plumbing.smtp import SLICE, Client

LOGIN = {"offers": ("AUTH LOGIN PLAIN",)}


def mails(api):
    """(state, attempts, error) of each mail, oldest first."""
    return [(mail["state"], mail["attempts"], mail["error"]) for mail in api.emails()][::-1]


def in_time(api, clock, condition):
    """Time passes until the condition holds, a minute at a time, for an hour and a bit at most."""
    for _ in range(65):
        wait(api, clock, minutes=1)
        with suppress(AssertionError):
            return eventually(condition, timeout=0.5)
    raise AssertionError("it did not happen within the longest step")


# ---------------------------------------------------------------- about us: the queue pauses


# One of each step; test_refusals.py knows many more.
ABOUT_US = [
    ("MAIL", "550 5.7.1 who are you"),
    ("RCPT", "553 5.7.1 <tracker@example.com>: Sender address rejected: not owned by user max"),
    ("DATA", "550 5.7.1 Unauthenticated senders not allowed"),
    (".", "550-5.7.26 Your email has been blocked because the sender is unauthenticated.\r\n"
     "550 5.7.26 See https://support.google.com/mail/answer/81126"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "words"), ABOUT_US)
def test_what_is_about_us_pauses_the_queue_and_no_mail_counts_it(
    scripted, make_api, clock, step, words
):
    server = scripted({step: reply(words)})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    error = words.replace("\r\n550", "").replace("550-", "550 ")
    assert paused(api) == error
    assert (server.connections, len(server.taken)) == (1, 0)
    for asked in range(2, 8):  # for longer than five days, also with the tracker switched off
        clock.advance(days=1)
        in_time(api, clock, lambda asked=asked: server.connections >= asked)
    assert mails(api) == [("queued", 0, None)] * 3
    assert health(api) == {
        "queued": 3,
        "failed": 0,
        "oldest_queued_at": "2026-11-22T10:32:00.123Z",
        "error": error,
    }
    server.cure()
    wait(api, clock, minutes=66)  # the longest step, and more if the last one began just now
    in_time(api, clock, lambda: not api.emails(state="queued"))
    assert mails(api) == [("sent", 1, None)] * 3
    assert Counter(recipient for recipient, _ in server.taken) == {MAX: 1, DAVE: 1, YARIS: 1}
    assert health(api) == NOTHING_WAITS


def test_a_pause_is_not_ended_by_new_mail(scripted, make_api):
    server = scripted({"RCPT": reply("553 5.7.1 <x>: Sender address rejected: not owned by user")})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    paused(api)
    for number in range(5):
        api.ticket(assignees=[2], title=f"{number}")
    api.app.close()
    assert server.connections == 1
    assert {(state, attempts) for state, attempts, _ in mails(api)} == {("queued", 0)}


# ---------------------------------------------------------------- 5xx of other kinds


UNCLEAR = [
    ("RCPT", "554 5.7.1 <max@example.com>: Relay access denied"),
    (".", "554 Transaction failed"),
]


@pytest.mark.parametrize(("step", "words"), UNCLEAR)
def test_what_nobody_can_tell_is_tried_again_and_health_shows_it(
    scripted, make_api, clock, step, words
):
    server = scripted({step: reply(words)})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    emails = attempted(api)
    assert mails(api) == [("queued", 1, words)] * 3
    assert all(30 <= seconds_to_next_attempt(email, clock) <= 33 for email in emails)
    assert health(api)["error"] == words
    server.cure()
    wait(api, clock, seconds=34)
    settled(api)
    assert mails(api) == [("sent", 2, None)] * 3
    eventually(lambda: health(api) == NOTHING_WAITS)


def test_what_nobody_can_tell_is_in_health_also_if_other_mail_goes_out(scripted, make_api):
    server = scripted({"RCPT Max": reply("550 rejected")})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    eventually(lambda: len(api.emails(state="sent")) == 2)
    assert mails(api)[0] == ("queued", 1, "550 rejected")
    assert health(api)["error"] == "550 rejected"


def test_what_nobody_can_tell_fails_in_the_end(scripted, make_api, clock):
    server = scripted({"RCPT Max": reply("550 rejected")})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    attempted(api)
    with api.app.database.write() as conn:
        conn.execute("UPDATE emails SET attempts = 124")
    wait(api, clock, seconds=34)
    settled(api)
    assert mails(api) == [("failed", 125, "550 rejected")]


# ---------------------------------------------------------------- uncertain


@pytest.mark.parametrize(
    "behaviour", [drop, reset, outlast, garble, say_lines_for_ever, drip_for_ever]
)
def test_a_mail_that_the_server_may_have_is_not_sent_without_end(
    scripted, make_api, clock, behaviour
):
    server = scripted({". Max": behaviour})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    eventually(lambda: all(mail["attempts"] for mail in api.emails()))
    for times, seconds in enumerate([30, 60, 120, 240], start=1):
        (mail,) = attempted(api, times)
        assert (mail["to"], mail["state"]) == (MAX, "queued")
        assert seconds <= seconds_to_next_attempt(mail, clock) <= 1.1 * seconds
        wait(api, clock, seconds=1.1 * seconds + 1)
    settled(api)
    assert [mail[:2] for mail in mails(api)] == [("failed", 5), ("sent", 1), ("sent", 1)]
    assert "the server may have it" in api.emails(state="failed")[0]["error"].replace("as ", "")
    assert Counter(recipient for recipient, _ in server.seen) == {MAX: 5, DAVE: 1, YARIS: 1}
    assert len(set(server.seen)) == 3, "a mail that was sent again had another Message-ID"
    server.cure()
    api.post("/emails/1/retry", status=202)
    settled(api)
    assert mails(api)[0] == ("sent", 1, None)


def test_two_mails_that_break_the_connection_cost_others_nothing(scripted, make_api):
    server = scripted({". Max": drop, ". Dave": drop})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    eventually(lambda: all(mail["attempts"] for mail in api.emails()))
    api.ticket(assignees=[3])
    eventually(lambda: len(api.emails(state="sent")) == 2)
    assert [mail[:2] for mail in mails(api)] == [("queued", 1)] * 2 + [("sent", 1)] * 2
    assert health(api)["error"] is None


def test_an_uncertain_mail_that_was_refused_meanwhile_has_its_attempts_still(
    scripted, make_api, clock
):
    server = scripted({".": drop})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    attempted(api)
    server.script = {"RCPT": reply("451 later")}
    wait(api, clock, seconds=34)
    attempted(api, 2)
    server.script = {".": drop}
    for times in range(3, 7):
        wait(api, clock, hours=1)
        eventually(lambda times=times: mails(api)[0][1] == times)
    assert mails(api)[0][:2] == ("failed", 6)  # five of which were uncertain


# ---------------------------------------------------------------- what a server says at the end


@pytest.mark.parametrize(
    "step",
    [
        "greeting",
        pytest.param("EHLO"),
        "STARTTLS",
        "AUTH",
        "MAIL",
        "RCPT",
        "DATA",
        ".",
    ],
)
def test_what_a_server_says_before_it_hangs_up_is_the_error(scripted, make_api, step):
    bye = "421 4.3.2 shutting down for maintenance"
    offers = ("STARTTLS",) if step == "STARTTLS" else LOGIN["offers"]
    server = scripted({step: each(reply(bye), drop)}, offers=offers)
    login = "max:secret@" if step == "AUTH" else ""
    api = make_api(f"smtp://{login}{server.authority}")
    api.ticket(assignees=[1])
    attempted(api)
    assert mails(api) == [("queued", 1, bye)]


def test_what_a_server_says_unasked_before_it_hangs_up_is_the_error(scripted, make_api):
    bye = "421 4.4.2 Error: timeout exceeded"
    server = scripted({"RCPT": each(go_well, reply(bye), drop)})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    attempted(api)
    assert mails(api) == [("queued", 1, bye)]


# ---------------------------------------------------------------- ways to log in


def refuse_way(way, words):
    """Refuse one mechanism, and take the others."""
    return lambda talk: talk.reply(words if way in talk.server.heard[-1] else "235 welcome")


def ways_tried(server):
    return [line.split()[1] for line in server.heard if line.startswith("AUTH")]


@pytest.mark.parametrize("words", ["504 5.7.4 Unrecognized authentication type", "502 not here"])
def test_where_one_way_to_log_in_is_not_to_be_had_the_next_is_tried(scripted, make_api, words):
    server = scripted({"AUTH": refuse_way("PLAIN", words)}, **LOGIN)
    api = make_api(f"smtp://max:secret@{server.authority}")
    api.ticket(assignees=[1])
    settled(api)
    assert mails(api) == [("sent", 1, None)]
    assert ways_tried(server) == ["PLAIN", "LOGIN"]


def test_a_wrong_password_is_tried_in_one_way_only(scripted, make_api):
    server = scripted({"AUTH": reply("535 5.7.8 no")}, **LOGIN)
    api = make_api(f"smtp://max:secret@{server.authority}")
    api.ticket(assignees=[1])
    assert paused(api) == "535 5.7.8 no"
    assert ways_tried(server) == ["PLAIN"]


def test_where_no_way_to_log_in_is_to_be_had_the_queue_pauses(scripted, make_api):
    server = scripted({"AUTH": reply("504 5.7.4 Unrecognized authentication type")}, **LOGIN)
    api = make_api(f"smtp://max:secret@{server.authority}")
    api.ticket(assignees=[1])
    assert paused(api).startswith("504")
    assert ways_tried(server) == ["PLAIN", "LOGIN"]
    assert mails(api) == [("queued", 0, None)]


# ---------------------------------------------------------------- addresses and time


@pytest.fixture
def resolve(monkeypatch):
    """Has mail.example.com stand for the addresses of these servers: resolve(server, ...)."""
    real = socket.getaddrinfo

    def stand_for(*servers):
        found = [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (host, int(port)))
            for host, _, port in (server.authority.partition(":") for server in servers)
        ]

        def getaddrinfo(host, *args, **kwargs):
            return found if host == "mail.example.com" else real(host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return "smtp://mail.example.com"

    return stand_for


@pytest.mark.parametrize("dead", [["refuse"], ["leave_no_room"], ["leave_no_room", "refuse"] * 2])
def test_each_address_of_a_host_is_tried(scripted, make_api, resolve, dead):
    ways = [getattr(ScriptedServer, name) for name in dead]
    server = scripted({})
    api = make_api(resolve(*[scripted({"connect": way}) for way in ways], server))
    api.app.mailer.server.connect_seconds = 1.5  # each has its own share
    api.ticket(assignees=[1, 2])
    settled(api)
    assert mails(api) == [("sent", 1, None)] * 2
    assert server.connections == 1


def test_a_host_all_of_whose_addresses_are_dead_is_a_server_that_is_down(
    scripted, make_api, resolve
):
    refusing = [scripted({"connect": ScriptedServer.refuse}) for _ in range(2)]
    api = make_api(resolve(*refusing))
    api.ticket(assignees=[1])
    attempted(api)
    assert "refused" in mails(api)[0][2]
    assert "refused" in health(api)["error"]


@pytest.mark.parametrize(
    ("step", "limits"),
    [
        ("greeting", (20, 30, 20)),
        ("EHLO", (20, 30, 20)),
        ("MAIL", (20, 30, 20)),
        ("RCPT", (20, 30, 20)),
        ("DATA", (20, 30, 20)),
        (".", (20, 20, 30)),  # the answer after the data has a time of its own
    ],
)
def test_a_slow_answer_is_waited_for(scripted, make_api, monkeypatch, step, limits):
    reached, real = threading.Event(), Client.reach

    def reach(client, *args):
        address = real(client, *args)
        reached.set()  # from here on it is the answer that is waited for
        return address

    def answer_late(talk):
        assert reached.wait(30)
        talk.pause(0.1)
        talk.server.passed += 25
        talk.pause(2 * SLICE)  # who waits sees that
        go_well(talk)

    monkeypatch.setattr(Client, "reach", reach)
    server = scripted({step: answer_late})
    api = make_api(server.url)
    post = api.app.mailer.server
    post.connect_seconds, post.answer_seconds, post.data_seconds = limits
    api.ticket(assignees=[1])
    settled(api)
    assert mails(api) == [("sent", 1, None)]
    assert len(server.seen) == 1


def test_the_waits_are_those_that_rfc_5321_grants(make_api):
    app = make_api("smtp://127.0.0.1:1", timeout=10).app
    kind = type(app.mailer.server)
    assert (kind.answer_seconds, kind.data_seconds) == (60, 600)


@pytest.mark.parametrize(
    ("step", "behaviour", "state"),
    [
        ("connect", ScriptedServer.leave_no_room, "queued"),
        ("greeting", hang, "queued"),
        ("greeting", drip_for_ever, "queued"),
        ("EHLO", hang, "queued"),
        ("STARTTLS", hang, "queued"),
        ("TLS", hang, "queued"),
        ("AUTH", hang, "queued"),
        ("MAIL", hang, "queued"),
        ("RCPT", hang, "queued"),
        ("DATA", hang, "queued"),
        ("DATA", read_slowly, "queued"),
        (".", hang, "queued"),
        (".", drip_for_ever, "queued"),
        ("RSET", hang, "failed"),
    ],
)
def test_the_tracker_ends_in_each_wait_for_a_server(
    scripted, make_api, step, behaviour, state, certificate
):
    script = {step: behaviour} | ({"RCPT": reply("550 5.1.1 no")} if step == "RSET" else {})
    offers = ("STARTTLS",) if step in ("STARTTLS", "TLS") else LOGIN["offers"]
    server = scripted(script, offers=offers, certificate=certificate)
    login = "max:secret@" if step == "AUTH" else ""
    api = make_api(f"smtp://{login}{server.authority}", timeout=600)
    api.ticket(assignees=[1])
    verb = {"greeting": "", "TLS": "STARTTLS", ".": "DATA", "connect": ""}.get(step, step)
    eventually(
        lambda: step == "connect" or (server.connections and verb in " ".join(server.heard).upper())
    )
    if step == ".":
        eventually(lambda: server.seen)
    ending = threading.Thread(target=api.app.close)
    ending.start()
    ending.join(30)  # 4 s are promised; a busy machine takes longer
    assert not ending.is_alive()
    eventually(lambda: mails(api)[0][:2] == (state, int(state == "failed")))
    server.cure()
    if state == "queued":
        api = make_api(server.url)
        settled(api)
        assert mails(api) == [("sent", 1, None)]


@pytest.fixture(scope="module")
def certificate(ca):
    return ca.issue_cert("127.0.0.1")


# ---------------------------------------------------------------- clocks


LONG = {"a day back": -1, "a month back": -30, "a month forward": 30}
STATES = {
    "new": {},
    "waiting": {"RCPT": reply("451 later")},
    "waiting, uncertain": {".": drop},
    "waiting, unclear": {"RCPT": reply("550 rejected")},
    "paused": {"MAIL": reply("550 who are you")},
    "down": {"greeting": drop},
}


@pytest.mark.parametrize("jump", LONG)
@pytest.mark.parametrize("state", STATES)
def test_mail_flows_within_its_step_whatever_is_done_to_the_clock(
    scripted, make_api, clock, state, jump
):
    server = scripted(STATES[state])
    api = make_api(server.url)
    if state == "new":
        api.app.mailer.close()
    api.ticket(assignees=[1, 2])
    if state == "paused":
        paused(api)
    elif state != "new":
        attempted(api)
    clock.set(days=LONG[jump])
    server.cure()
    if state == "new":
        api = make_api(server.url)
    else:
        in_time(api, clock, lambda: not api.emails(state="queued"))
    emails = settled(api)
    assert {mail["state"] for mail in emails} == {"sent"}
    assert max(mail["attempts"] for mail in emails) <= 3
    assert len(server.taken) == 2
    # And it goes on: what changes after the clock was set is mailed as well.
    api.change(1, status="closed")
    eventually(lambda: len(api.emails(state="sent")) == 4)


def test_no_time_that_is_absurdly_far_ahead_is_believed(scripted, make_api):
    server = scripted({"RCPT": reply("451 later")})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2])
    attempted(api)
    server.cure()
    with api.app.database.write() as conn:
        far = "UPDATE emails SET next_attempt_at = ? WHERE id = ?"
        conn.execute(far, ("9999-12-31T23:59:59.999Z", 1))
        conn.execute(far, ("2026-11-22T11:40:00.000Z", 2))  # the longest step is 66 minutes
    api.app.mailer.worker.wake()
    settled(api)
    assert mails(api) == [("sent", 2, None)] * 2


# ---------------------------------------------------------------- one bad row


BAD_ROWS = {
    "a body that is not UTF-8": ("UPDATE history SET body = CAST(x'61ff62' AS TEXT) WHERE id = 2"),
    "a body that is a blank": ("UPDATE history SET body = NULL WHERE id = 2"),
    "a time of the change that is none": (
        "UPDATE history SET changed_at = 'yesterday' WHERE id = 2"
    ),
    "attempts that cannot be counted": (
        "UPDATE emails SET attempts = 9223372036854775807 WHERE id = 2"
    ),
}


@pytest.mark.parametrize("damage", BAD_ROWS.values(), ids=BAD_ROWS)
def test_one_bad_row_stops_nothing(scripted, make_api, caplog, damage):
    server = scripted({})
    api = make_api(server.url)
    api.app.mailer.close()
    for number, person in enumerate((1, 2, 3)):
        api.ticket(assignees=[person], title=f"{number}")
    with api.app.database.write() as conn:
        conn.execute("PRAGMA ignore_check_constraints = 1")
        triggers = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
        triggers = conn.execute(f"{triggers} AND tbl_name IN ('history', 'emails')").fetchall()
        for name, _ in triggers:
            conn.execute(f"DROP TRIGGER {name}")
        conn.execute(damage)
        for _, sql in triggers:
            conn.execute(sql)
        conn.execute("PRAGMA ignore_check_constraints = 0")
    api.app.close()
    api = make_api(server.url)
    states = ["sent", "failed", "sent"]

    def read():
        with api.app.database.read() as conn:
            return list(conn.execute("SELECT state, error FROM emails ORDER BY id"))

    eventually(lambda: "queued" not in [state for state, _ in read()])
    found = read()
    assert [state for state, _ in found] == states
    assert found[1][1], "it says no reason"
    api.ticket(assignees=[1], title="afterwards")
    eventually(lambda: len(server.taken) >= 3)
    eventually(lambda: read()[3][0] == "sent")
    taken = Counter(recipient for recipient, _ in server.taken)
    assert (taken[MAX], taken[YARIS]) == (2, 1)
    assert taken[DAVE] <= 1  # as what is bad may be seen only when it is recorded
    assert health(api) == NOTHING_WAITS | {"failed": 1}
    assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) == 1


def test_a_time_of_the_next_attempt_that_is_none_stops_nothing(scripted, make_api):
    server = scripted({})
    api = make_api(server.url)
    api.app.mailer.close()
    api.ticket(assignees=[1, 2, 3])
    with api.app.database.write() as conn:
        conn.execute("PRAGMA ignore_check_constraints = 1")
        conn.execute("UPDATE emails SET next_attempt_at = 'soon' WHERE id = 2")
        conn.execute("PRAGMA ignore_check_constraints = 0")
    api.app.close()
    api = make_api(server.url)
    eventually(lambda: not api.emails(state="queued"))
    assert [mail["state"] for mail in api.emails()] == ["sent"] * 3


class Flaky:
    """The database, which cannot be read for a moment once a mail is looked up."""

    def __init__(self, database, bad):
        self.write, self.now, self.database = database.write, database.now, database
        self.may_deliver = database.may_deliver
        self.bad, self.reads = bad, 0

    def read(self):
        self.reads += 1
        if self.reads in self.bad:
            raise Unavailable("The database is locked.")
        return self.database.read()


def test_a_database_that_cannot_be_written_for_a_moment_fails_no_mail(
    scripted, make_api, database, monkeypatch
):
    blocker = sqlite3.connect(database, isolation_level=None, check_same_thread=False)

    def take_and_block(talk):
        blocker.execute("BEGIN IMMEDIATE")  # from here on nobody commits
        monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)  # nor tries for long
        go_well(talk)

    server = scripted({".": take_and_block})
    api = make_api(server.url)
    with closing(blocker):
        api.ticket(assignees=[1])
        eventually(lambda: "locked" in (api.app.mailer.trouble or ""))
        assert "locked" in api.problem("GET", "/health")["detail"]  # as nothing can be written
        server.cure()
        blocker.execute("ROLLBACK")
        settled(api)
    assert mails(api) == [("sent", 1, None)]
    assert len(server.taken) == 1
    eventually(lambda: health(api) == NOTHING_WAITS)


def test_a_database_that_cannot_be_read_for_a_moment_fails_no_mail(scripted, make_api, clock):
    server = scripted({})
    api = make_api(server.url)
    api.app.mailer.close()
    api.ticket(assignees=[1, 2])
    post = api.app.mailer.server
    post._stop.clear()
    deliverer = mailer.Mailer(Flaky(api.app.database, {2}), post, ("", SENDER))
    deliverer.monotonic = clock.monotonic
    for _ in range(3):
        with suppress(Unavailable):
            deliverer.deliver()
        clock.advance(minutes=2)
    assert {mail["state"] for mail in api.emails()} == {"sent"}


# ---------------------------------------------------------------- trouble of this machine


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOBUFS, "No buffer space available"),
        pytest.param(MemoryError()),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
def test_trouble_of_this_machine_is_as_a_server_that_cannot_be_reached(
    scripted, make_api, clock, monkeypatch, trouble
):
    server = scripted({})
    api = make_api(server.url)

    def fail(*args, **kwargs):
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr("plumbing.smtp.socket.getaddrinfo", fail)
        api.ticket(assignees=[1, 2])
        attempted(api)
        assert health(api)["error"]
    wait(api, clock, seconds=34)
    settled(api)
    assert mails(api) == [("sent", 2, None)] * 2
    assert health(api) == NOTHING_WAITS


def test_a_thread_that_is_not_to_be_had_is_in_health(make_app, mail_server, monkeypatch):
    real = threading.Thread.start

    def start(thread):
        if thread.name == "mailer":
            raise RuntimeError("can't start new thread")
        real(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        api = Api(make_app(smtp=mail_server.url))
        api.user()
        api.project()
        api.ticket(assignees=[1])
        error = health(api)["error"]
    api.get("/users")  # with the next request it starts
    settled(api)
    assert len(mail_server.to(MAX)) == 1
    assert "thread" in (error or "")
    assert health(api) == NOTHING_WAITS


# ---------------------------------------------------------------- by hand


@pytest.mark.parametrize("words", ["550 5.1.1 unknown", "451 later", "250 OK"])
def test_of_an_attempt_and_a_retry_meanwhile_the_newer_word_counts(
    scripted, make_api, clock, words
):
    go_on = threading.Event()

    def answer_late(talk):
        assert go_on.wait(30)
        talk.reply(words)

    server = scripted({"RCPT Max": answer_late})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    eventually(lambda: any(line.startswith("RCPT") for line in server.heard))
    clock.advance(seconds=1)
    api.put_json("/users/1", {"name": "Max", "email": "corrected@example.com"}, status=200)
    assert api.post("/emails/1/retry", status=202).json["to"] == "corrected@example.com"
    go_on.set()
    settled(api)
    (mail,) = api.emails()
    assert (mail["state"], mail["attempts"], mail["error"]) == ("sent", 1, None)
    assert mail["to"] == "corrected@example.com"
    assert [recipient for recipient, _ in server.taken][-1] == "corrected@example.com"


def test_a_mail_that_goes_out_while_it_is_tried_again_by_hand_goes_out_once(
    scripted, make_api, clock
):
    go_on = threading.Event()

    def answer_late(talk):
        assert go_on.wait(30)
        go_well(talk)

    server = scripted({"RCPT Max": answer_late})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    eventually(lambda: any(line.startswith("RCPT") for line in server.heard))
    clock.advance(seconds=1)
    api.post("/emails/1/retry", status=202)
    go_on.set()
    settled(api)
    assert mails(api) == [("sent", 1, None)]
    api.app.close()
    assert len(server.taken) == 1


def test_all_failed_mail_is_sent_again_at_once(scripted, make_api):
    server = scripted({"RCPT": reply("550 5.1.1 unknown")})
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    settled(api)
    assert health(api)["failed"] == 3
    server.cure()
    answer = api.post("/emails/retry", status=202)
    assert answer.json == {"retried": 3}
    settled(api)
    assert mails(api) == [("sent", 1, None)] * 3
    assert api.post("/emails/retry", status=202).json == {"retried": 0}
    assert len(server.taken) == 3


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "url",
    [
        "mail.example.com",
        "mail.example.com:25",
        "http://mail.example.com",
        "smtp://",
        "smtp://:25",
        "smtp://mail.example.com:port",
        "smtp://mail.example.com/inbox",
        "smtp://[::1",
        "smtp://mail.example.com:0",
        "smtp://mail.example.com:99999",
        "smtps://mail.example.com:65536",
        "smtp://mail.example.com:-1",
        "smtp://max:se/cret@mail.example.com",
        "smtp://max:se?cret@mail.example.com",
        "smtp://max:se#cret@mail.example.com",
        "smtp://max@mail.example.com",
        "smtp://::1",
        "smtp://[::1]:port",
        "ftp://mail.example.com",
    ],
)
def test_a_wrong_url_is_told_in_one_line_that_says_what_to_do(make_app, url):
    with pytest.raises(ValueError, match=r"--smtp \(TRACKER_SMTP\)") as refusal:
        make_app(smtp=url)
    words = str(refusal.value)
    assert "\n" not in words
    assert "cret" not in words
    assert "%2F for /" in words


def test_a_password_beyond_ascii_is_refused_at_once_and_not_shown(make_app):
    with pytest.raises(ValueError, match=r"--smtp \(TRACKER_SMTP\)") as refusal:
        make_app(smtp="smtp://max:p\xe4ssword@mail.example.com")
    assert "p\xe4ss" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "host", "port", "password", "shown"),
    [
        ("smtp://mail.example.com", "mail.example.com", 25, "", "smtp://mail.example.com:25"),
        ("smtps://mail.example.com", "mail.example.com", 465, "", "smtps://mail.example.com:465"),
        ("smtp://max:a%2Fb%40c@[::1]:587", "::1", 587, "a/b@c", "smtp://[::1]:587"),
        ("smtp://max:a@b@mail.example.com", "mail.example.com", 25, "a@b", None),
        ("smtp://[fe80::1%25eth0]:2525", "fe80::1%25eth0", 2525, "", None),
    ],
)
def test_a_url_is_understood(make_app, url, host, port, password, shown):
    server = make_app(smtp=url).mailer.server
    assert (server.host, server.port, server.password) == (host, port, password)
    assert shown is None or str(server) == shown


def test_mail_goes_to_an_ipv6_host(make_api):
    try:
        server = MailServer(host="::1")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    try:
        api = make_api(f"smtp://[::1]:{server.port}")
        api.ticket(assignees=[1])
        settled(api)
        assert len(server.to(MAX)) == 1
        api.app.close()
    finally:
        server.stop()


def test_the_start_warns_where_mail_has_no_sender(start, mail_server):
    (line,) = [
        line for line in start("--smtp", mail_server.url).lines if line.startswith("Warning: ")
    ]
    assert "tracker@localhost" in line
    assert "--sender" in line


@pytest.mark.parametrize("options", [["--sender", SENDER], []])
def test_the_start_warns_of_no_sender_nowhere_else(start, mail_server, options):
    options = [*options, "--smtp", mail_server.url] if options else []
    assert not [line for line in start(*options).lines if "Warning" in line]


@pytest.mark.parametrize(
    ("sender", "name"),
    [
        ("tracker@example.com", ""),
        ("<tracker@example.com>", ""),
        ("Tickets <tracker@example.com>", "Tickets"),
        (' "Doe, J. (Tickets)"  <tracker@example.com> ', "Doe, J. (Tickets)"),
        ("Größe & Co. <tracker@example.com>", "Größe & Co."),
        ("日本語 😀 <tracker@example.com>", "日本語 😀"),
        ("שלום <tracker@example.com>", "שלום"),
        (f"{'é' * 100} <tracker@example.com>", "é" * 100),
    ],
)
def test_mail_comes_from_the_sender_with_its_name(make_app, mail_server, sender, name):
    api = Api(make_app(smtp=mail_server.url, sender=sender))
    api.user()
    api.project()
    api.ticket(assignees=[1])
    settled(api)
    (message,) = mail_server.to(MAX)
    # Decoded by hand, as Python 3.11 puts blanks between the words of a long name.
    (raw,) = [value for header, value in message.raw_items() if header == "From"]
    shown = str(make_header(decode_header(re.sub(r"\r?\n", "", raw))))
    quoted = '"' + name + '"' if "," in name else name
    assert shown == (f"{quoted} <{SENDER}>" if name else SENDER)


# ---------------------------------------------------------------- whatever a server does


STEPS = ["greeting", "EHLO", "MAIL", "RCPT", "RCPT Max", "DATA", ". Max", ".", "RSET", "QUIT"]
DEEDS = {
    "goes well": go_well,
    "hangs": outlast,
    "drops": drop,
    "resets": reset,
    "garbles": garble,
    "says 250": reply("250 OK"),
    "says 354": reply("354 go on"),
    "says 421 and drops": each(reply("421 bye"), drop),
    "says 451": reply("451 later"),
    "says 550 of Max": reply("550 5.1.1 unknown"),
    "says 550 of us": reply("550 5.7.1 Sender rejected"),
    "says 550": reply("550 rejected"),
    "says it and drops": each(go_well, drop),
}


@pytest.mark.parametrize("seed", range(30))
def test_each_mail_ends_sent_or_queued_within_its_step_or_failed_with_a_reason(
    scripted, make_api, clock, seed
):
    chance = random.Random(seed)
    script = {
        step: DEEDS[chance.choice(list(DEEDS))]
        for step in chance.sample(STEPS, chance.choice([1, 2]))
    }
    server = scripted(script)
    api = make_api(server.url)
    api.ticket(assignees=[1, 2, 3])
    for _ in range(4):
        eventually(
            lambda: (
                health(api)["error"]
                or all(mail["attempts"] or mail["sent_at"] for mail in api.emails())
            )
        )
        for mail in api.emails():
            if mail["state"] == "queued":
                longest = mailer.LONGEST_RETRY * mailer.JITTER
                assert seconds_to_next_attempt(mail, clock) <= longest
                assert mail["error"] or health(api)["error"]
            elif mail["state"] == "failed":
                assert mail["error"]
            else:
                assert datetime.fromisoformat(mail["sent_at"]) <= clock()
        wait(api, clock, minutes=7)
    # A queue that waits is in /health, and flows as soon as the server does.
    server.cure()
    api.post("/emails/retry")
    in_time(api, clock, lambda: not api.emails(state="queued"))
    assert {mail["state"] for mail in api.emails()} <= {"sent", "failed"}
    with api.app.database.read() as conn:
        rows = conn.execute("SELECT coalesce(address, ''), uncertain FROM emails").fetchall()
    taken = Counter(recipient for recipient, _ in server.taken)
    for address, _ in rows:
        # Twice only where an answer was lost: "says it and drops" at the end of the mail.
        assert taken[address] <= 1 or script.get(".") or script.get(". Max")
