"""The tracker as a process: how it starts, serves, is stopped or killed, and its commands."""

import asyncio
import http.client
import os
import re
import signal
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress

import pytest
from conftest import HERE, TRACKER, MailServer, command, eventually
from wire import ask, assert_problem, create, fill, free_port, post, sent, ticket


def assert_one_clear_line(done, *words):
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert str(word) in done.stderr


@pytest.fixture
def silent():
    """The URL of a mail server that takes connections and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield f"smtp://127.0.0.1:{listening.getsockname()[1]}"


def rows(database, sql):
    with closing(sqlite3.connect(database)) as conn:
        return conn.execute(sql).fetchall()


# ---------------------------------------------------------------- starting


def test_the_ready_line_names_the_address_the_database_and_where_mail_goes(start, database):
    server = start("--smtp", "smtp://max:secret@127.0.0.1:2525", "--sender", "t@example.com")
    [line] = server.lines
    assert f"http://127.0.0.1:{server.port}" in line
    assert str(database) in line
    assert "127.0.0.1:2525" in line
    assert "secret" not in line


def test_without_a_mail_server_mail_is_printed_to_the_terminal(start):
    server = start()
    assert "terminal" in server.lines[-1]
    fill(server)
    ticket(server, 1)
    [mail] = eventually(lambda: ask(server, "GET", "/emails?state=sent")[2])
    assert (mail["attempts"], mail["error"]) == (1, None)
    body = ask(server, "GET", "/emails/1")[2]["body"]
    server.terminate()
    output = "".join(server.lines)
    assert "max@example.com" in output
    assert "[Ticket #1] Fix the database\n" in output
    assert body in output


def test_each_request_is_one_line_with_method_path_status_and_milliseconds(start):
    server = start()
    create(server, "/projects", name="Website")
    ask(server, "GET", "/tickets?text=private")
    ask(server, "GET", "/users/7")
    ask(server, "GET", "/health%0AGET%20/forged%20200%201%20ms")
    server.terminate()
    lines = [re.sub(r" [0-9.]+ ms\n", " N ms", line) for line in server.lines[1:]]
    assert lines[:3] == [
        "POST /projects 201 N ms",
        "GET /tickets 200 N ms",
        "GET /users/7 404 N ms",
    ]
    assert len(lines) == 4
    assert lines[3].startswith("GET /health%0A")


def test_quiet_has_no_line_per_request(start):
    server = start("--quiet")
    ask(server, "GET", "/health")
    server.terminate()
    assert len(server.lines) == 1


def test_whoever_binds_to_all_addresses_is_warned_before_it_is_ready(start):
    server = start("--host", "0.0.0.0")
    assert "warning" in server.lines[0].lower()
    assert "0.0.0.0" in server.lines[0]
    assert ask(server, "GET", "/health")[0] == 200
    assert_problem(ask(server, "GET", "/health", Host="192.168.1.5:8080"), 403)


def test_whoever_binds_to_this_machine_only_is_not_warned(start):
    assert len(start("--host", "localhost").lines) == 1


def make_folder(path):
    path.mkdir()


def make_text(path):
    path.write_text("Buy milk.\n" * 100)


def make_other_program(path):
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE songs (title TEXT)")


def make_fifo(path):
    os.mkfifo(path)


def make_newer_version(path):
    command("send-test-mail", "max@example.com", "--db", path)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_folder, "cannot be opened"),
        (make_fifo, "cannot be read"),
        (make_text, "not a database"),
        (make_other_program, "another program"),
        (make_newer_version, "newer"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_database_that_is_none_of_ours_is_one_clear_line_and_left_alone(database, make, words):
    make(database)
    before = database.is_file() and database.read_bytes()
    done = command("--db", database, "--port", 0)
    assert_one_clear_line(done, "--db (TRACKER_DB)", database, words)
    assert (database.is_file() and database.read_bytes()) == before


def test_a_database_in_a_folder_that_is_not_there_is_one_clear_line(tmp_path):
    database = tmp_path / "nowhere" / "tickets.db"
    assert_one_clear_line(command("--db", database, "--port", 0), database)


@pytest.mark.parametrize(
    "options",
    [
        ("--sender", "a@example.com\r\nBcc: b@example.com"),
        ("--port", "99999"),
        ("--port", "-1"),
    ],
    ids=" ".join,
)
def test_a_setting_that_cannot_work_is_one_clear_line(database, options):
    assert_one_clear_line(command("--db", database, "--port", "0", *options))


def test_environment_variables_act_as_the_options_do(start, tmp_path, mail_server):
    env = HERE | {
        "TRACKER_DB": "elsewhere.db",
        "TRACKER_HOST": "localhost",
        "TRACKER_PORT": str(free_port()),
        "TRACKER_SMTP": mail_server.url,
        "TRACKER_SENDER": "tickets@example.org",
        "TRACKER_ALLOWED_HOSTS": "tracker.example.com,other.example.com",
    }
    server = start(line=TRACKER, env=env, cwd=tmp_path)
    assert f"http://localhost:{env['TRACKER_PORT']}" in server.lines[0]
    assert str(mail_server.port) in server.lines[0]
    assert (tmp_path / "elsewhere.db").exists()
    for host in ("tracker.example.com", "other.example.com:80", "localhost"):
        assert ask(server, "GET", "/health", Host=host)[0] == 200
    assert_problem(ask(server, "GET", "/health", Host="evil.example"), 403)
    fill(server)
    ticket(server, 1)
    [(recipient, message)] = eventually(lambda: mail_server.messages)
    assert (recipient, message["From"]) == ("max@example.com", "tickets@example.org")


def test_options_win_over_environment_variables(start, tmp_path, mail_server):
    env = HERE | {
        "TRACKER_DB": "/nowhere/tickets.db",
        "TRACKER_PORT": "1",
        "TRACKER_SMTP": "smtp://127.0.0.1:1",
        "TRACKER_SENDER": "nobody",
    }
    options = ("--smtp", mail_server.url, "--sender", "a@example.org")
    server = start(*options, database="tickets.db", env=env, cwd=tmp_path)
    assert (tmp_path / "tickets.db").exists()
    assert str(mail_server.port) in server.lines[0]


# ---------------------------------------------------------------- stopping, and being killed


class HangingMailServer(MailServer):
    """Takes a mail, and says nothing more."""

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        self.sessions = "hanging"
        while True:
            await asyncio.sleep(1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_time_while_the_mail_server_is_silent_and_loses_no_mail(
    start, silent, mail_server, signum
):
    server = start("--smtp", silent)
    fill(server)
    ticket(server, 1, 2)
    assert server.terminate(signum) == 0
    assert "Traceback" not in "".join(server.lines)
    start("--smtp", mail_server.url)
    eventually(lambda: len(mail_server.messages) == 2)


def test_it_ends_in_time_in_the_middle_of_a_mail_and_of_requests(start):
    with ExitStack() as stack:
        hanging = HangingMailServer()
        stack.callback(hanging.stop)
        server = start("--smtp", hanging.url)
        fill(server)
        ticket(server, 1)
        eventually(lambda: hanging.sessions == "hanging")
        for _ in range(10):
            stack.enter_context(sent(server, post("/users", b"{", "Content-Length: 100")))
        assert server.terminate() == 0
    [state] = rows(server.database, "SELECT state, attempts FROM emails")
    assert state == ("queued", 0)


def test_what_was_acknowledged_is_there_at_the_next_start_with_all_its_mail(start, mail_server):
    server = start("--smtp", mail_server.url, "--quiet")
    fill(server)
    acknowledged = []

    def write(number):
        with suppress(OSError, http.client.HTTPException):
            while True:
                acknowledged.append(ticket(server, 1, title=f"Of writer {number}"))

    with ThreadPoolExecutor(4) as pool:
        for number in range(4):
            pool.submit(write, number)
        eventually(lambda: len(acknowledged) > 60)
        server.process.terminate()  # test_dying.py kills
        server.process.wait(30)

    after = start("--smtp", mail_server.url, "--quiet")
    for known in acknowledged:
        assert ask(after, "GET", f"/tickets/{known['id']}")[2] == known
    eventually(lambda: ask(after, "GET", "/health")[2]["mail"]["queued"] == 0)
    # At least once: what goes out twice has the same Message-ID.
    subjects = {mail["Message-ID"]: mail["Subject"] for mail in mail_server.to("max@example.com")}
    assert sorted(subjects.values()) == sorted(
        f"[Ticket #{id}] {title}"
        for id, title in rows(after.database, "SELECT id, title FROM tickets")
    )
    assert rows(after.database, "PRAGMA integrity_check") == [("ok",)]


def test_mail_queued_before_a_kill_goes_out_at_the_next_start_without_another_write(
    start, silent, mail_server
):
    server = start("--smtp", silent)
    fill(server)
    ticket(server, 1, 2)
    server.kill()
    start("--smtp", mail_server.url)
    eventually(lambda: len(mail_server.messages) == 2)
    assert mail_server.to("max@example.com")
    assert mail_server.to("dave@example.com")


# ---------------------------------------------------------------- clients that are slow or wrong


# ---------------------------------------------------------------- Host and Origin


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8080", "app.localhost", "127.0.0.1:80", "127.1.2.3", "[::1]:1"],
)
def test_the_names_of_this_machine_are_served(start_once, host):
    assert ask(start_once, "GET", "/health", Host=host)[0] == 200


def test_allow_host_serves_another_name_and_a_star_serves_any(start):
    server = start("--allow-host", "Tracker.example.com", "--allow-host", "other.example.com")
    for host in ("tracker.example.com", "OTHER.example.com:8080", "localhost"):
        assert ask(server, "GET", "/health", Host=host)[0] == 200
    assert_problem(ask(server, "GET", "/health", Host="evil.example"), 403)
    assert ask(start("--allow-host", "*"), "GET", "/health", Host="evil.example")[0] == 200


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_a_write_of_its_own_page_is_taken(start, site):
    server = start()
    own = {"Origin": server.url, "Sec_Fetch_Site": site}
    assert ask(server, "POST", "/projects", {"name": "Website"}, **own)[0] == 201


# ---------------------------------------------------------------- many at once


def test_of_50_changes_at_once_with_the_same_if_match_one_succeeds(start):
    server = start("--quiet")
    fill(server)
    ticket(server)
    etag = ask(server, "GET", "/tickets/1")[1]["ETag"]

    def change(number):
        title = {"title": f"Change {number}"}
        return ask(server, "PATCH", "/tickets/1", title, If_Match=etag)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(change, range(50)))
    assert sorted(status for status, _, _ in answers) == [200] + [412] * 49
    [changed] = (answer for status, _, answer in answers if status == 200)
    assert ask(server, "GET", "/tickets/1")[2] == changed
    assert len(ask(server, "GET", "/tickets/1/history")[2]) == 1


def test_50_changes_at_once_without_if_match_are_all_kept_in_the_history(start):
    server = start("--quiet")
    fill(server)
    ticket(server, title="Change 0")

    def change(number):
        return ask(server, "PATCH", "/tickets/1", {"title": f"Change {number}"})[0]

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(change, range(1, 51))) == [200] * 50
    history = ask(server, "GET", "/tickets/1/history?limit=200")[2]
    steps = [entry["changes"]["title"] for entry in history]
    assert {step["to"] for step in steps} == {f"Change {number}" for number in range(1, 51)}
    titles = ["Change 0"] + [step["to"] for step in steps]
    assert [step["from"] for step in steps] == titles[:-1]
    assert ask(server, "GET", "/tickets/1")[2]["title"] == titles[-1]


def test_writes_that_wait_for_a_locked_database_hold_up_no_read(start, database):
    server = start("--quiet")
    fill(server)
    ticket(server, 1)

    def write(n):
        return ask(server, "PATCH", "/tickets/1", {"title": f"Title {n}"})

    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(12) as pool:
            writes = [pool.submit(write, n) for n in range(12)]
            for _ in range(20):
                assert ask(server, "GET", "/tickets/1")[0] == 200
            answers = [waiting.result() for waiting in writes]
    for answer in answers:
        assert_problem(answer, 503)
        assert int(answer[1]["Retry-After"]) > 0
        assert "locked" in answer[2]["detail"]
    assert write(12)[0] == 200


def test_two_servers_on_one_database_keep_every_write_and_send_every_mail_once(start, mail_server):
    servers = [start("--smtp", mail_server.url, "--quiet") for _ in range(2)]
    fill(servers[0])

    def write(number):
        return ticket(servers[number % 2], 1, 2, title=f"No. {number}")

    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(write, range(80)))
    for server in servers:
        listed = ask(server, "GET", "/tickets?limit=200&sort=created")[2]
        assert listed == sorted(written, key=lambda known: known["id"])
    eventually(lambda: ask(servers[1], "GET", "/health")[2]["mail"]["queued"] == 0)
    assert len(mail_server.messages) == 160
    assert len({message["Message-ID"] for _, message in mail_server.messages}) == 160


def test_when_the_server_that_delivers_is_killed_the_other_one_takes_over(start, mail_server):
    first, second = (start("--smtp", mail_server.url) for _ in range(2))
    fill(first)
    ticket(first, 1)
    eventually(lambda: len(mail_server.messages) == 1)
    first.kill()  # maybe before it has recorded what it sent: that goes out twice
    ticket(second, 1)
    eventually(lambda: len({message["Message-ID"] for _, message in mail_server.messages}) == 2)


# ---------------------------------------------------------------- backup


def test_a_backup_is_whole_while_the_server_is_written_to_and_can_be_served(
    start, mail_server, tmp_path
):
    server = start("--smtp", mail_server.url, "--quiet")
    fill(server)
    done, target = threading.Event(), tmp_path / "backup.db"

    def write():
        while not done.is_set():
            ticket(server, 1, 2)

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write) for _ in range(4)]
        try:
            for _ in range(3):
                backup = command("backup", target, "--db", server.database)
                assert backup.returncode == 0, backup.stderr
                check_backup(target)
        finally:
            done.set()
    assert [future.result() for future in writing] == [None] * 4

    restored = start("--smtp", mail_server.url, "--quiet", database=target)
    kept = len(rows(target, "SELECT id FROM tickets"))
    assert ask(restored, "GET", f"/tickets/{kept}")[0] == 200
    assert ticket(restored, 1)["id"] == kept + 1


def check_backup(target):
    assert rows(target, "PRAGMA integrity_check") == [("ok",)]
    assert rows(target, "PRAGMA foreign_key_check") == []
    mail = rows(
        target,
        "SELECT count(emails.id) FROM tickets LEFT JOIN history ON ticket_id = tickets.id"
        " LEFT JOIN emails ON history_id = history.id"
        " GROUP BY tickets.id",
    )
    assert mail
    assert set(mail) == {(2,)}


def test_a_backup_replaces_an_older_one_and_leaves_nothing_else_behind(start, tmp_path):
    folder = tmp_path / "backups"
    folder.mkdir()
    target = folder / "backup.db"
    server = start()
    assert command("backup", target, "--db", server.database).returncode == 0
    fill(server)
    assert command("backup", target, "--db", server.database).returncode == 0
    assert rows(target, "SELECT name FROM users") == [("Max",), ("Dave",)]
    assert os.listdir(folder) == ["backup.db"]


def test_a_backup_without_a_server_is_whole(start, tmp_path):
    server = start()
    fill(server)
    server.kill()  # what was written is still in the -wal
    target = tmp_path / "backup.db"
    assert command("backup", target, env=HERE | {"TRACKER_DB": str(server.database)}).stderr == ""
    assert rows(target, "SELECT name FROM users") == [("Max",), ("Dave",)]


def test_a_backup_of_a_database_that_is_not_there_is_one_clear_line(tmp_path):
    database, target = tmp_path / "missing.db", tmp_path / "backup.db"
    assert_one_clear_line(command("backup", target, "--db", database), database)
    assert os.listdir(tmp_path) == []


def test_a_backup_that_cannot_be_written_is_one_clear_line_and_leaves_nothing(start, tmp_path):
    server = start()
    fill(server)
    target = tmp_path / "nowhere" / "backup.db"
    assert_one_clear_line(command("backup", target, "--db", server.database), target)
    assert not target.parent.exists()


def test_a_backup_of_a_file_that_is_no_database_leaves_the_older_backup(tmp_path):
    database, target = tmp_path / "tickets.db", tmp_path / "backup.db"
    make_text(database)
    target.write_text("the older backup")
    assert_one_clear_line(command("backup", target, "--db", database), database, "not a database")
    assert target.read_text() == "the older backup"


@pytest.mark.parametrize("link", [None, os.symlink, os.link], ids=["same", "symlink", "hard link"])
def test_a_backup_onto_the_database_itself_is_refused(start, tmp_path, link):
    server = start()
    fill(server)
    target = server.database
    if link:
        target = tmp_path / "other-name.db"
        link(server.database, target)
    assert_one_clear_line(command("backup", target, "--db", server.database), target)
    assert len(ask(server, "GET", "/users")[2]) == 2


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-lock", "-journal"])
def test_a_backup_onto_what_belongs_to_the_database_is_refused(start, tmp_path, suffix):
    server = start()
    fill(server)
    beside = tmp_path / f"{server.database.name}{suffix}"
    link = tmp_path / "link.db"
    link.symlink_to(beside)
    for target in (beside, link):
        done = command("backup", target, "--db", server.database)
        assert_one_clear_line(done, target, "belongs to the database")
    server.kill()
    assert rows(server.database, "PRAGMA integrity_check") == [("ok",)]
    assert rows(server.database, "SELECT name FROM users") == [("Max",), ("Dave",)]


# ---------------------------------------------------------------- send-test-mail


@pytest.fixture(params=[True, False], ids=["with a server", "without a server"])
def send_test_mail(request, start, database):
    """Sends a test mail through the URL, with a server running on the same database or without."""

    def send(url, address="max@example.com"):
        if request.param:
            start("--smtp", url)
        return command("send-test-mail", address, "--db", database, "--smtp", url)

    return send


def test_a_test_mail_reaches_a_real_server(send_test_mail, mail_server, database):
    done = send_test_mail(mail_server.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "max@example.com" in done.stdout
    [(recipient, message)] = mail_server.messages
    assert (recipient, message["To"]) == ("max@example.com", "max@example.com")
    assert rows(database, "SELECT state FROM emails") == [("sent",)]


def test_a_test_mail_tells_if_another_process_sent_it(start, database, mail_server):
    server = start("--smtp", mail_server.url)
    fill(server)
    ticket(server, 1)
    eventually(lambda: mail_server.messages)  # from here on it is the one that delivers
    done = command(
        "--db", database, "--smtp", "smtp://127.0.0.1:1", "send-test-mail", "m@example.com"
    )
    assert done.returncode == 0
    assert "127.0.0.1:1" not in done.stdout
    assert "by the tracker that is running" in done.stdout


def test_a_test_mail_that_is_refused_tells_the_words_of_the_server(send_test_mail, mail_server):
    mail_server.replies["max@example.com"] = "550 5.1.1 there is no Max here"
    done = send_test_mail(mail_server.url)
    assert done.returncode == 1
    assert "550 5.1.1 there is no Max here" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_test_mail_with_a_refused_sender_tells_the_words_of_the_server(
    send_test_mail, mail_server
):
    mail_server.replies["MAIL"] = "553 5.7.1 not your address"
    done = send_test_mail(mail_server.url)
    assert done.returncode == 1
    assert "553 5.7.1 not your address" in done.stdout + done.stderr


def test_a_test_mail_to_a_port_where_nothing_listens_says_so_and_stays_queued(
    send_test_mail, database
):
    done = send_test_mail(f"smtp://127.0.0.1:{free_port()}")
    assert done.returncode == 1
    assert "refused" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert rows(database, "SELECT state FROM emails") == [("queued",)]


def test_a_test_mail_without_a_mail_server_says_so_and_touches_nothing(database):
    done = command("send-test-mail", "max@example.com", "--db", database)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "--smtp (TRACKER_SMTP)" in done.stderr
    assert not database.exists()


@pytest.mark.parametrize("address", ["max", "Max <max@example.com>", "a@b.example,c@d.example"])
def test_a_test_mail_to_what_is_no_address_is_one_clear_line(database, address):
    assert_one_clear_line(command("send-test-mail", address, "--db", database), address)
