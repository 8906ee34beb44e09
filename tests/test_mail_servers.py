"""Mail servers that misbehave: what becomes of the mail they were given, and of the next one.

Max (1), Dave (2) and Yaris (3) work on Website (1). Time passes only where a test says so.
"""

import json
import select
import sqlite3
import threading
import tracemalloc
import urllib.request
from collections import Counter
from contextlib import closing
from typing import NamedTuple

import pytest
import trustme
from conftest import (
    DAVE,
    MAX,
    NOTHING_WAITS,
    YARIS,
    attempted,
    be_patient,
    eventually,
    health,
    own_address,
    paused,
    seconds_to_next_attempt,
    settled,
    wait,
)
from scripted import (
    ScriptedServer,
    after,
    drip,
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
    say_a_megabyte,
    say_lines_for_ever,
)

from plumbing.lockfile import WRITES, LockFile
from plumbing.smtp import Client

# How long the tracker waits for servers that take none of the mail. Where one is to take some, a
# busy machine must not make it late: it outlasts the tracker, which waits for long.
SOON = {"timeout": 0.3}
LATE = "no answer in time"


@pytest.fixture(scope="module")
def certificates(ca):
    return {"good": ca.issue_cert("127.0.0.1"), "bad": trustme.CA().issue_cert("127.0.0.1")}


# ---------------------------------------------------------------- the table


class Outcome(NamedTuple):
    state: str
    attempts: int
    next_attempt: tuple[int, int] | None = None  # seconds from now


TRIED_AGAIN = Outcome("queued", 1, (30, 33))
FAILED = Outcome("failed", 1)
PAUSED = Outcome("queued", 0)  # not the fault of the mail; /health tells the error
SENT = Outcome("sent", 1)


class Row(NamedTuple):
    """What the server does, and what becomes of the mail to Max.

    That to Dave and Yaris behind it comes through if the server is bad to Max alone, and
    else it fares as the mail to Max.
    """

    script: dict
    outcome: Outcome
    error: str | None = None
    offers: tuple = ()
    login: str = ""
    timeout: float = 10


TLS = {"offers": ("STARTTLS",)}
LOGIN = {"offers": ("AUTH LOGIN PLAIN",), "login": "max:secret@"}
LOGIN_OVER_TLS = {"offers": ("STARTTLS", "AUTH PLAIN"), "login": "max:secret@"}
UNKNOWN = reply("550 5.1.1 unknown")

BEHAVIOURS = {
    # The connection
    "refuses": Row({"connect": ScriptedServer.refuse}, TRIED_AGAIN, "refused"),
    "does not answer": Row({"connect": ScriptedServer.leave_no_room}, TRIED_AGAIN, LATE, **SOON),
    # The greeting
    "greets with 421": Row({"greeting": reply("421 4.3.2 busy")}, TRIED_AGAIN, "421 4.3.2 busy"),
    "greets with 554": Row({"greeting": reply("554 not here")}, TRIED_AGAIN, "554 not here"),
    "does not greet": Row({"greeting": hang}, TRIED_AGAIN, LATE, **SOON),
    "drops at once": Row({"greeting": drop}, TRIED_AGAIN, "closed"),
    "resets at once": Row({"greeting": reset}, TRIED_AGAIN, "reset"),
    "speaks something else": Row(
        {"greeting": reply("SSH-2.0-OpenSSH_9.6")}, TRIED_AGAIN, "SSH-2.0-OpenSSH_9.6"
    ),
    "greets with a megabyte": Row({"greeting": say_a_megabyte}, TRIED_AGAIN, "too long"),
    "greets for ever": Row({"greeting": say_lines_for_ever}, TRIED_AGAIN, "too long"),
    "greets byte by byte": Row({"greeting": drip(0.06)}, TRIED_AGAIN, LATE, **SOON),
    # EHLO
    "hangs at EHLO": Row({"EHLO": hang}, TRIED_AGAIN, LATE, **SOON),
    "drops at EHLO": Row({"EHLO": drop}, TRIED_AGAIN, "closed"),
    "has no time at EHLO": Row({"EHLO": reply("451 later")}, TRIED_AGAIN, "451 later"),
    "has no time at EHLO for who logs in": Row(
        {"EHLO": reply("451 later")}, TRIED_AGAIN, "451 later", **LOGIN
    ),
    "refuses EHLO and HELO": Row(
        {"EHLO": reply("502 what"), "HELO": reply("550 who")}, TRIED_AGAIN, "550 who"
    ),
    "knows HELO only": Row({"EHLO": reply("502 what")}, SENT),
    "garbles EHLO": Row({"EHLO": garble}, TRIED_AGAIN, "no such thing"),
    "offers for ever": Row({"EHLO": say_lines_for_ever}, TRIED_AGAIN, "too long"),
    # TLS
    "offers no TLS": Row({}, SENT),
    "cannot do TLS now": Row({"STARTTLS": reply("454 later")}, TRIED_AGAIN, "454 later", **TLS),
    "hangs at STARTTLS": Row({"STARTTLS": hang}, TRIED_AGAIN, LATE, **SOON, **TLS),
    "drops at STARTTLS": Row({"STARTTLS": drop}, TRIED_AGAIN, "closed", **TLS),
    "hangs in the handshake": Row({"TLS": hang}, TRIED_AGAIN, LATE, **SOON, **TLS),
    "drops in the handshake": Row({"TLS": drop}, TRIED_AGAIN, "", **TLS),
    "garbles the handshake": Row({"TLS": garble}, TRIED_AGAIN, "SSL", **TLS),
    "is slow to the handshake, then drips": Row(
        {
            "greeting": each(after(0.15), go_well),
            "TLS": each(after(0.25), go_well),
            "EHLO encrypted": drip_for_ever,
        },
        TRIED_AGAIN,
        LATE,
        **SOON,
        **TLS,
    ),
    "cannot be verified, on this machine": Row({}, SENT, **LOGIN_OVER_TLS),
    # The login
    "offers no login": Row({}, PAUSED, "no way to log in", login="max:secret@"),
    "refuses the password": Row({"AUTH": reply("535 5.7.8 no")}, PAUSED, "535 5.7.8 no", **LOGIN),
    "refuses the password and drops": Row(
        {"AUTH": each(reply("535 5.7.8 no"), drop)}, PAUSED, "535 5.7.8 no", **LOGIN
    ),
    "cannot check it now": Row({"AUTH": reply("454 later")}, TRIED_AGAIN, "454 later", **LOGIN),
    "hangs at AUTH": Row({"AUTH": hang}, TRIED_AGAIN, LATE, **SOON, **LOGIN),
    "drops at AUTH": Row({"AUTH": drop}, TRIED_AGAIN, "closed", **LOGIN),
    "garbles AUTH": Row({"AUTH": garble}, TRIED_AGAIN, "no such thing", **LOGIN),
    "says a megabyte at AUTH": Row({"AUTH": say_a_megabyte}, TRIED_AGAIN, "too long", **LOGIN),
    # MAIL
    "is busy at MAIL": Row({"MAIL": reply("451 4.3.0 later")}, TRIED_AGAIN, "451 4.3.0 later"),
    "closes at MAIL": Row({"MAIL": each(reply("421 closing"), drop)}, TRIED_AGAIN, "421 closing"),
    "refuses the sender": Row({"MAIL": reply("550 who are you")}, PAUSED, "550 who are you"),
    "hangs at MAIL": Row({"MAIL": hang}, TRIED_AGAIN, LATE, **SOON),
    "drops at MAIL": Row({"MAIL": drop}, TRIED_AGAIN, "closed"),
    "garbles MAIL": Row({"MAIL": garble}, TRIED_AGAIN, "no such thing"),
    # RCPT
    "is busy at RCPT": Row({"RCPT Max": reply("451 later")}, TRIED_AGAIN, "451 later"),
    "closes at RCPT": Row({"RCPT Max": each(reply("421 bye"), drop)}, TRIED_AGAIN, "421 bye"),
    "knows no Max": Row({"RCPT Max": UNKNOWN}, FAILED, "550 5.1.1 unknown"),
    "knows nobody": Row({"RCPT": UNKNOWN}, FAILED, "550 5.1.1 unknown"),
    "hangs at RCPT": Row({"RCPT Max": outlast}, TRIED_AGAIN, LATE),
    "drops at RCPT": Row({"RCPT Max": drop}, TRIED_AGAIN, "closed"),
    "drops at each RCPT": Row({"RCPT": drop}, TRIED_AGAIN, "closed"),
    "garbles RCPT": Row({"RCPT Max": garble}, TRIED_AGAIN, "no such thing"),
    "says a megabyte at RCPT": Row({"RCPT Max": say_a_megabyte}, TRIED_AGAIN, "too long"),
    "answers RCPT byte by byte": Row({"RCPT Max": drip_for_ever}, TRIED_AGAIN, LATE),
    # DATA
    "is full at DATA": Row({"DATA Max": reply("452 full")}, TRIED_AGAIN, "452 full"),
    "refuses at DATA": Row({"DATA Max": reply("554 spam")}, FAILED, "554 spam"),
    "has not understood DATA": Row({"DATA Max": reply("250 OK")}, TRIED_AGAIN, "250 OK"),
    "hangs at DATA": Row({"DATA Max": outlast}, TRIED_AGAIN, LATE),
    "drops at DATA": Row({"DATA Max": drop}, TRIED_AGAIN, "closed"),
    "reads slowly": Row({"DATA Max": read_slowly}, TRIED_AGAIN, LATE),
    # The final dot
    "is full in the end": Row({". Max": reply("452 full")}, TRIED_AGAIN, "452 full"),
    "refuses in the end": Row({". Max": reply("554 5.7.1 spam")}, FAILED, "554 5.7.1 spam"),
    "hangs in the end": Row({". Max": outlast}, TRIED_AGAIN, LATE),
    "drops in the end": Row({". Max": drop}, TRIED_AGAIN, "closed"),
    "garbles the end": Row({". Max": garble}, TRIED_AGAIN, "no such thing"),
    "never ends its answer": Row({". Max": say_lines_for_ever}, TRIED_AGAIN, "too long"),
    # Between two mails, where a lost connection is the fault of none
    "drops after each mail": Row({".": each(go_well, drop)}, SENT),
    "hangs after a refusal": Row({"RCPT Max": UNKNOWN, "RSET": outlast}, FAILED, "550"),
    "drops after a refusal": Row({"RCPT Max": UNKNOWN, "RSET": drop}, FAILED, "550"),
    "garbles after a refusal": Row({"RCPT Max": UNKNOWN, "RSET": garble}, FAILED, "550"),
    "closes after a refusal": Row(
        {"RCPT Max": UNKNOWN, "RSET": each(reply("421 closing"), drop)}, FAILED, "550"
    ),
    "knows no RSET": Row(
        {"RCPT Max": UNKNOWN, "RSET": reply("502 what"), "MAIL Max": reply("503 nested")},
        FAILED,
        "550",
    ),
    "closes at the second mail": Row({"MAIL Max": each(reply("421 enough"), drop)}, SENT),
    # QUIT
    "hangs at QUIT": Row({"QUIT": outlast}, SENT),
    "drops at QUIT": Row({"QUIT": drop}, SENT),
    "refuses QUIT": Row({"QUIT": reply("500 stay")}, SENT),
    "garbles QUIT": Row({"QUIT": garble}, SENT),
    "never ends its good-bye": Row({"QUIT": say_lines_for_ever}, SENT),
    # Strange, but not wrong
    "is slow, but not too slow": Row(dict.fromkeys(["greeting", "RCPT", "."], drip(0.001)), SENT),
    "has a lot to say": Row({"MAIL": reply("250-x\r\n" * 500 + "250 OK")}, SENT),
    # What `error` shows is one printable line
    "says nothing": Row({"RCPT Max": reply("550")}, TRIED_AGAIN, "550"),
    "says several lines": Row(
        {"RCPT Max": reply("550-5.1.1 un\r\n550 5.1.1 known")}, FAILED, "550 5.1.1 un 5.1.1 known"
    ),
    "says control characters": Row(
        {"RCPT Max": reply("550 5.1.1 \x1b[31mred\x07\x00\ttab")},
        FAILED,
        "550 5.1.1  [31mred   tab",
    ),
    "says what is not UTF-8": Row(
        {"RCPT Max": reply("550 unknown caf\xe9")}, FAILED, "550 unknown caf\ufffd"
    ),
    "says too much": Row(
        {"RCPT Max": reply("550 5.1.1 " + "x" * 5000)}, FAILED, "550 5.1.1 " + "x" * 290
    ),
}


def fate(email, clock):
    window = None
    if email["state"] == "queued" and email["attempts"]:
        seconds = seconds_to_next_attempt(email, clock)
        window = (30, 33) if 30 <= seconds <= 33 else seconds
    return Outcome(email["state"], email["attempts"], window)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_mail_outlasts_a_server_that(
    name, scripted, make_api, clock, ca, certificates, tmp_path, monkeypatch
):
    row = BEHAVIOURS[name]
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = scripted(row.script, offers=row.offers, certificate=certificates["bad"])
    api = make_api(f"smtp://{row.login}{server.authority}", timeout=row.timeout)
    api.ticket(assignees=[1, 2, 3])

    for_max_alone = any(" Max" in step for step in row.script)
    outcomes = [row.outcome, *[SENT if for_max_alone else row.outcome] * 2]
    if row.outcome == PAUSED:
        assert row.error in paused(api)
    else:
        eventually(lambda: all(email["attempts"] for email in api.emails()))
    emails = api.emails()[::-1]
    assert [fate(email, clock) for email in emails] == outcomes
    error = emails[0]["error"]
    if row.outcome in (SENT, PAUSED):
        assert error is None
    else:
        assert row.error in error
        assert error.isprintable()
        assert len(error) <= 300

    server.cure()
    server.offers = row.offers or (LOGIN["offers"] if row.login else ())
    server.certificate = certificates["good"]
    be_patient(api, 10)
    for email in api.emails(state="failed"):
        api.post(f"/emails/{email['id']}/retry", status=202)
    wait(api, clock, seconds=34)
    eventually(lambda: len(api.emails(state="sent")) == 3)
    api.change(1, status="closed")
    eventually(lambda: len(api.emails(state="sent")) == 6)
    assert Counter(recipient for recipient, _ in server.taken) == {MAX: 2, DAVE: 2, YARIS: 2}
    assert len(set(server.seen)) == 6, "a mail that was sent again had another Message-ID"
    eventually(lambda: health(api) == NOTHING_WAITS)


def test_a_reset_is_told_as_one_however_early_it_comes(scripted, make_api, monkeypatch):
    def reach(client, *args):
        reached = real(client, *args)
        waiting = select.poll()
        waiting.register(client.sock, select.POLLHUP)
        assert waiting.poll(30_000)
        return reached

    real = Client.reach
    monkeypatch.setattr(Client, "reach", reach)
    api = make_api(scripted({"greeting": reset}).url)
    api.ticket(assignees=[1])
    (email,) = attempted(api)
    assert "reset by peer" in email["error"]


# ---------------------------------------------------------------- a server that is down


@pytest.mark.parametrize(
    "script",
    [
        {"greeting": drop},
        {"greeting": reply("421 4.3.2 busy")},
        {"AUTH": reply("454 later")},
    ],
    ids=lambda script: " ".join(script),
)
def test_a_server_that_is_down_is_asked_once_per_backoff_step_and_not_once_per_mail(
    script, scripted, make_api, clock
):
    server = scripted(script, offers=LOGIN["offers"])
    api = make_api(f"smtp://max:secret@{server.authority}")
    for number in range(20):
        api.ticket(title=f"{number}", assignees=[1])
    attempted(api)
    assert server.connections == 1
    for step, seconds in enumerate([30, 60, 120], start=1):
        # With its jitter, each mail comes due at another moment.
        clock.advance(seconds=seconds)
        for _ in range(7):
            wait(api, clock, seconds=seconds * 0.1 / 6)
            eventually(lambda: not due(api, clock))
        attempted(api, 1 + step)
        assert server.connections == 1 + step
    assert health(api)["error"]
    server.cure()
    wait(api, clock, seconds=240 * 1.1 + 30)
    settled(api)
    assert len(server.taken) == 20
    assert server.connections == 5
    assert health(api) == NOTHING_WAITS


def due(api, clock):
    now = clock().isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return [email for email in api.emails(state="queued") if email["next_attempt_at"] <= now]


def test_a_server_that_is_well_again_gets_each_mail_at_its_next_attempt(scripted, make_api, clock):
    server = scripted({"greeting": drop})
    api = make_api(server.url)
    for number in range(20):
        api.ticket(title=f"{number}", assignees=[1])
    attempted(api)
    server.cure()
    clock.advance(seconds=30)
    for _ in range(7):
        wait(api, clock, seconds=0.5)
        eventually(lambda: not due(api, clock))
    assert [(email["state"], email["attempts"]) for email in api.emails()] == [("sent", 2)] * 20


def test_new_mail_shares_the_finding_that_the_server_is_down(scripted, make_api):
    server = scripted({"greeting": drop})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    attempted(api)
    api.ticket(assignees=[2])
    attempted(api)
    assert server.connections == 1
    assert len({email["error"] for email in api.emails()}) == 1


def test_no_request_waits_for_a_mail_server(scripted, make_api):
    server = scripted({"greeting": hang})
    api = make_api(server.url)
    api.ticket(assignees=[1])
    eventually(lambda: server.connections)
    api.change(1, status="closed")
    api.delete("/users/1")
    assert api.emails() == []
    assert server.connections == 1  # it still holds the first
    server.stop()  # or the end of the app would wait for it


# ---------------------------------------------------------------- memory, passwords, kills


@pytest.mark.parametrize("step", ["greeting", "EHLO", "RCPT", "."])
def test_an_answer_without_end_does_not_fill_the_memory(scripted, make_api, step):
    server = scripted({step: say_lines_for_ever})
    api = make_api(server.url, timeout=1)
    tracemalloc.start()
    try:
        api.ticket(assignees=[1])
        attempted(api)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_password_never_goes_in_clear_text_over_the_network(scripted, make_api):
    server = scripted({}, offers=LOGIN["offers"], host=own_address())
    api = make_api(f"smtp://max:secret@{server.authority}")
    api.ticket(assignees=[1])
    assert "TLS" in paused(api)
    assert [email["attempts"] for email in api.emails()] == [0]
    eventually(lambda: server.heard)
    assert [line.split()[0] for line in server.heard] == ["ehlo"]


def test_a_mail_whose_sending_a_kill_left_unrecorded_goes_out_again_as_the_same(
    scripted, start, database
):
    def ask(path, **body):
        request = urllib.request.Request(
            tracker.url + path,
            json.dumps(body).encode() if body else None,
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    blocker = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    taken = threading.Event()

    def take_and_block(talk):
        blocker.execute("BEGIN IMMEDIATE")  # from here on nobody commits
        go_well(talk)
        taken.set()
        hang(talk)

    def records():
        """Whether the tracker has begun to: it has the lock before it waits for the database."""
        lock = LockFile(str(database))
        with closing(lock):
            return not lock.acquire(WRITES)

    server = scripted({".": take_and_block})
    with closing(blocker):
        tracker = start("--quiet", "--smtp", server.url)
        ask("/users", name="Max", email=MAX)
        ask("/projects", name="Website")
        ask("/tickets", title="Fix the database", project_id=1, status="open", assignees=[1])
        assert taken.wait(30)
        eventually(records)
        tracker.kill()
    assert len(server.taken) == 1
    server.cure()
    tracker = start("--quiet", "--smtp", server.url)
    eventually(lambda: [email["state"] for email in ask("/emails")] == ["sent"])
    assert len(server.taken) == 2
    assert len(set(server.taken)) == 1, "it has another Message-ID"
