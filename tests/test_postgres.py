"""What PostgreSQL adds: rules at a SQL prompt, lost commits, locks, forks, and the move to it.

What the API does there is shown by the tests that run on both engines.
"""

import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from urllib.parse import urlsplit

import psycopg
import pytest
from conftest import ROOT, SENDER, Api, command, eventually, health, settled

import db
from plumbing import Unavailable, Unknown, engine, engines, idempotency, postgres


@pytest.fixture
def database(postgresql):
    url = postgresql.create(template="ready")
    yield url
    postgresql.drop(url)


@pytest.fixture
def sql(database):
    """A SQL prompt."""
    with psycopg.connect(database, autocommit=True) as conn:
        yield conn.execute


@pytest.fixture
def filled(api):
    """One of everything."""
    api.user("Max")
    api.user("Dave")
    api.project()
    api.project("Intranet")
    api.ticket(assignees=[1])
    settled(api)


# ---------------------------------------------------------------- the rules at a SQL prompt


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tickets",
        "TRUNCATE tickets CASCADE",
        "TRUNCATE projects CASCADE",
        "TRUNCATE users, assignments RESTART IDENTITY",
        "TRUNCATE system",
        "UPDATE tickets SET id = 9",
        "UPDATE tickets SET id = DEFAULT",
        "UPDATE tickets SET created_at = '2020-01-01T00:00:00.000Z'",
        "UPDATE tickets SET updated_at = '2020-01-01T00:00:00.000Z'",
        "UPDATE tickets SET updated_at = '2026-13-01T00:00:00.000Z'",
        "UPDATE tickets SET updated_at = '2030-02-30T00:00:00.000Z'",
        "UPDATE tickets SET updated_at = '2030-01-01T24:00:00.000Z'",
        "UPDATE tickets SET updated_at = '2030-01-01T00:00:00Z'",
        "UPDATE tickets SET updated_at = '2030-01-01 00:00:00.000Z'",
        "UPDATE tickets SET status = 'done'",
        "UPDATE tickets SET project_id = 99",
        "UPDATE tickets SET title = ''",
        "UPDATE tickets SET description = repeat('x', 10001)",
        "INSERT INTO tickets (id, project_id, status, created_at, title, text) VALUES"
        " (7, 1, 'open', '2026-01-01T00:00:00.000Z', 'x', 'x')",
        "DELETE FROM users WHERE id = 1",
        "DELETE FROM projects WHERE id = 1",
        "UPDATE users SET id = 9 WHERE id = 2",
        "UPDATE users SET email = 'MAX@example.com' WHERE id = 2",
        "INSERT INTO users (name, email) VALUES ('Imp', 'Max@Example.com')",
        "INSERT INTO users (name, email) VALUES ('Imp', 'nobody')",
        "UPDATE projects SET id = 9 WHERE id = 2",
        "UPDATE projects SET name_key = 'website' WHERE id = 2",
        "UPDATE projects SET open = 7",
        "INSERT INTO projects (name, name_key, open) VALUES ('New', 'new', 1)",
        "DELETE FROM system",
        "INSERT INTO system (only) VALUES (2)",
        "UPDATE assignments SET user_id = 2",
        "UPDATE emails SET state = 'queued'",
        "UPDATE emails SET state = 'failed'",
        "UPDATE history SET changes = '{'",
    ],
)
def test_the_database_refuses_also_by_hand(filled, sql, statement):
    sql("SET search_path = tracker")
    if "only" in statement:
        statement = statement.replace("only", '"only"')
    with pytest.raises(psycopg.Error):
        sql(statement)


def test_an_id_is_never_used_twice_whatever_id_somebody_gives_by_hand(filled, sql, api):
    sql("INSERT INTO tracker.users (id, name, email) VALUES (77, 'Yaris', 'yaris@example.com')")
    sql("DELETE FROM tracker.users WHERE name = 'Yaris'")
    assert api.user("Yaris")["id"] == 4


def test_what_is_shown_follows_whoever_writes(filled, sql, api):
    sql("UPDATE tracker.tickets SET title = 'Other WORDS', status = 'closed'")  # no search_path
    sql("UPDATE tracker.users SET name = 'Maximilian' WHERE id = 1")
    [ticket] = api.get("/tickets?text=other+words").json
    assert (ticket["status"], ticket["assignees"][0]["name"]) == ("closed", "Maximilian")
    assert api.get("/projects/1").json["tickets"] == {"open": 0, "in progress": 0, "closed": 1}


# ---------------------------------------------------------------- the same answers

ODD = '\\ " / \u2028 \U0001f600 é e\u0301 漢字'
READS = [
    *["/users", "/users/1", "/projects", "/projects/1", "/tickets", "/tickets/1", "/tickets/2"],
    *["/tickets/1/history", "/tickets/2/history", "/emails", "/emails/1", "/emails/4", "/health"],
    *["/tickets?sort=-updated&limit=1", "/tickets?status=open&status=closed", "/users?limit=1"],
    *[
        "/tickets?text=%C3%A9",
        "/tickets?text=%25_\\",
        "/tickets?assignee_id=none",
        "/emails?limit=2",
    ],
    *["/users?email=MAX@example.com", "/tickets?project_id=1&status=open", "/emails?ticket_id=1"],
]


def test_both_engines_give_the_same_answers_to_the_byte(make_app, tmp_path, database):
    def answers(where):
        api = Api(make_app(database=where, smtp="smtp://127.0.0.1:1"))
        api.app.mailer.close()
        api.user("Max")
        api.post_json("/users", {"name": "Max", "email": "MAX@example.com"}, status=409)
        api.user("Dave")
        api.project('Website \\ "é"')
        api.ticket(assignees=[2, 1], description=f"a\tb\r\n{ODD} 100%_\\")
        api.ticket(title="null")
        api.change(1, description=None, comment=ODD, status="closed", assignees=[1])
        api.change(2, title='{"from": [1, 2 , 3]}', description=" two  blanks : and , ")
        with api.app.database.write() as conn:
            [first, *_] = db.list_due(conn, "9", 9)
            db.record_failure(conn, first, "max@example.com", 'said "no"', None)
            conn.execute("UPDATE system SET token = 'token'")
        got = [(read, api.get(read)) for read in READS]
        return [(read, dict(answer.headers), answer.body) for read, answer in got]

    for one, other in zip(answers(tmp_path / "t.db"), answers(database), strict=True):
        assert one == other


# ---------------------------------------------------------------- to connect


def with_password(url):
    return url.replace("tracker@", "tracker:geheim@")


@pytest.mark.parametrize(
    "password", ["geheim", "%67eheim%40", "ge#geheim", "ge?x=geheim", "a:geheim"]
)
def test_a_password_is_not_shown_at_the_start(start, database, password):
    server = start(database=database.replace("tracker@", f"tracker:{password}@"))
    server.terminate()
    assert f"database {database}," in server.lines[-1]
    assert "geheim" not in "".join(server.lines)


def test_a_password_is_never_shown(database):
    nowhere = with_password(database).rpartition("/")[0] + "/nowhere"
    for bad in (
        nowhere,
        f"{nowhere}?password=geheim&x=y",
        "postgresql://x:geheim@[/y",
        "postgresql://x:very#geheim@127.0.0.1:1/y",
        "postgresql://x:very?geheim@127.0.0.1:1/y",
        "postgresql://x:a/geheim@h/y",
        "postgresql://x:1/geheim@h/y",
        "postgresql://x:a@geheim@h/y",
        "postgresql://x:geheim%ff@h/y",
        "postgresql+psycopg://x:geheim@h/y",
        "mysql://x:geheim@h/y",
    ):
        told = command("--db", bad, "--port", "0")
        assert told.returncode == 1
        assert "geheim" not in told.stdout + told.stderr
        assert told.stderr.count("\n") == 1, told.stderr
    for told in (
        command("copy", "missing.db", with_password(database)),
        command("copy", with_password(database), nowhere),
        command("backup", "x", "--db", with_password(database)),
    ):
        assert told.returncode == 1
        assert "geheim" not in told.stdout + told.stderr


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("tickets:a@b.db", "tickets:a@b.db"),
        ("postgresql://max:pass@h1:1,h2/db", "postgresql://max@h1:1,h2/db"),
        ("postgresql://h1:1,[::1]:2/db", "postgresql://h1:1,[::1]:2/db"),
        ("postgresql://:pass@h/db", "postgresql://@h/db"),
        ("postgresql://max:p?x#@h/db", "postgresql://max@h/db"),
        ("postgresql://max:p@ss@h/db", "postgresql://..."),
        ("postgresql://max:p/ss@h/db", "postgresql://..."),
        ("postgresql://h/db?password=a&sslmode=require", "postgresql://h/db?sslmode=require"),
        ("postgres://h/db?user=x&sslpassword=a", "postgres://h/db?user=x"),
        ("postgres://h/db?oauth_client_secret=a&user=x@y", "postgres://h/db?user=x@y"),
    ],
)
def test_a_location_is_shown_without_its_password(location, shown):
    assert engine.without_password(location) == shown


@pytest.mark.parametrize(
    "setting",
    [
        "client_encoding = 'LATIN1'",
        "client_encoding = 'SQL_ASCII'",
        "search_path = ''",
        "standard_conforming_strings = off",
        "DateStyle = 'German, DMY'",
        "TimeZone = 'Asia/Kolkata'",
        "lock_timeout = 1",
        "idle_in_transaction_session_timeout = 1",
        "default_transaction_isolation = 'serializable'",
        "quote_all_identifiers = on",
        "row_security = off",
    ],
)
def test_what_a_database_sets_for_its_sessions_changes_no_answer(postgresql, make_app, setting):
    url = postgresql.create()
    postgresql.execute(f"ALTER DATABASE {url.rpartition('/')[2]} SET {setting}")
    api = Api(make_app(database=url))
    assert_that_it_works(api)
    api.app.close()
    postgresql.drop(url)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PGCLIENTENCODING", "LATIN1"),
        ("PGOPTIONS", "-c client_encoding=LATIN1 -c search_path=x -c DateStyle=German"),
        ("PGTZ", "Asia/Kolkata"),
        ("PGAPPNAME", "é ' x"),
    ],
)
def test_what_the_environment_says_to_libpq_changes_no_answer(
    make_app, monkeypatch, variable, value
):
    monkeypatch.setenv(variable, value)
    assert_that_it_works(Api(make_app()))


def assert_that_it_works(api):
    name = "\\ 漢 'é' \U0001f600"
    user = api.user(name, "max@example.com")
    assert user["name"] == name
    assert api.get("/users?email=MAX@example.com").json == [user]
    api.project()
    ticket = api.ticket(assignees=[1], description=ODD)
    assert api.get("/tickets?text=%E6%BC%A2%E5%AD%97").json == [ticket]
    api.change(1, title=name, comment=ODD)
    [entry] = api.get("/tickets/1/history").json
    assert (entry["comment"], entry["changes"]["title"]["to"]) == (ODD, name)
    assert entry["changed_at"] == "2026-11-22T10:32:00.123Z"
    assert settled(api)[0]["subject"].endswith(name)


def test_a_limit_of_the_server_for_transactions_is_no_damage_and_stops_no_copy(
    database, postgresql
):
    def set_limit(limit):
        name = database.rpartition("/")[2]
        postgresql.execute(f"ALTER DATABASE {name} SET transaction_timeout = '{limit}'")

    try:
        set_limit("60s")
    except psycopg.errors.UndefinedObject:
        pytest.skip("needs PostgreSQL 17 or newer")
    base = db.open_database(database)
    with base.keep() as conn:
        assert conn.execute("SHOW transaction_timeout").fetchone() == ("0",)
    base.close()
    set_limit("1s")
    with pytest.raises(Unavailable) as told, base.read() as conn:
        conn.execute("SELECT pg_sleep(60)")
    assert not told.value.damaged
    base.close()


def test_of_several_hosts_each_is_told_once():
    with pytest.raises(Unavailable) as told:
        db.open_database("postgresql://x@127.0.0.1:1,127.0.0.1:2/y")
    for port in "12":
        assert str(told.value).count(f"port {port} failed: ") == 1


def test_without_the_driver_one_line_says_what_to_install(monkeypatch, database):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "plumbing.postgres")
    monkeypatch.delattr("plumbing.postgres")
    with pytest.raises(Unavailable, match=r"pip install 'psycopg\[binary\]'"):
        db.open_database(database)


def test_a_database_of_a_newer_version_or_of_another_program_is_refused(database, sql, postgresql):
    sql("UPDATE tracker.schema_version SET version = 99")
    with pytest.raises(Unavailable, match="newer version"):
        db.open_database(database)
    sql("DELETE FROM tracker.schema_version")
    with pytest.raises(Unavailable, match="another program"):
        db.open_database(database)
    url = postgresql.create()
    with psycopg.connect(url) as conn:
        conn.execute("CREATE SCHEMA tracker CREATE TABLE tickets (id int)")
    with pytest.raises(Unavailable, match="another program"):
        db.open_database(url)
    postgresql.execute(
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    with pytest.raises(Unavailable, match="UTF8"):
        db.open_database(postgresql.url("latin"))


def test_a_rule_that_is_missing_is_told(database, sql):
    sql("ALTER TABLE tracker.tickets DISABLE TRIGGER tickets_stay")
    with pytest.raises(Unavailable, match="tickets_stay"):
        db.open_database(database)


def test_many_that_set_up_one_database_at_once_do_not_meet(postgresql):
    url, faults = postgresql.create(), []

    def set_up():
        try:
            db.open_database(url).close()
        except Unavailable as error:
            faults.append(error)

    threads = [threading.Thread(target=set_up) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_role_that_may_not_create_needs_a_schema_and_searches_without_the_index(
    postgresql, make_app, caplog
):
    postgresql.execute("CREATE DATABASE strict")
    postgresql.execute("CREATE ROLE poor LOGIN")
    url = postgresql.url("strict", "poor")
    with pytest.raises(Unavailable, match="may not be accessed"):
        db.open_database(url)
    postgresql.execute("CREATE SCHEMA tracker AUTHORIZATION poor", "strict")
    api = Api(make_app(database=url))
    assert "pg_trgm" in caplog.text
    api.project()
    api.ticket(title="Find me")
    assert len(api.get("/tickets?text=ind+m").json) == 1


# ---------------------------------------------------------------- commits whose answer is lost


class Wire:
    """Carries bytes between the tracker and the server, and is cut at a commit.

    `cut` says when: "before" the server gets it, or "after" it has answered; `gone` says that
    nobody gets through from then on. One that `hangs` is not cut: nothing flows then, and neither
    side is told, as with a server that is suspended.
    """

    COMMIT = b"INSERT INTO commits"

    def __init__(self, url):
        there = urlsplit(url)
        self.server = (there.hostname, there.port)
        self.cut, self.gone, self.hangs, self.cuts = None, False, False, 0
        self.flows = threading.Event()
        self.flows.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = url.replace(f":{there.port}/", f":{self.listener.getsockname()[1]}/")
        self.open = []
        self.thread = threading.Thread(target=self._accept)
        self.thread.start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                self.open.append(client)
                if self.gone and self.cuts:
                    self._hang_up(client)
                    continue
                server = socket.create_connection(self.server)
                self.open.append(server)
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(one, other, client, server)).start()

    def _carry(self, one, other, client, server):
        with suppress(OSError):
            while data := one.recv(65536):
                if self.COMMIT in data and self.cut == "after":
                    self.cut = server  # the answer that comes from there
                elif one is self.cut or (self.COMMIT in data and self.cut == "before"):
                    self.cut, self.cuts = None, self.cuts + 1
                    if not self.hangs:
                        break
                    self.flows.clear()
                self.flows.wait()
                other.sendall(data)
        self._hang_up(client, server)

    def _hang_up(self, *sockets):
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.flows.set()
        self._hang_up(self.listener)
        self.thread.join()
        self._hang_up(*self.open)
        for each in (self.listener, *self.open):
            each.close()


@pytest.fixture
def wire(database):
    with closing(Wire(database)) as wire:
        yield wire


@pytest.fixture
def far(make_app, wire):
    """An app on the far side of the wire, which delivers no mail."""
    app = make_app(database=wire.url)
    app.mailer.close()
    return Api(app)


def test_a_commit_whose_answer_is_lost_is_known_to_have_happened(far, wire, sql):
    far.project()
    wire.cut = "after"
    ticket = far.ticket(title="Kept")
    assert wire.cuts == 1
    assert far.get(f"/tickets/{ticket['id']}").json == ticket


def test_a_commit_that_never_arrived_is_known_not_to_have_happened(far, wire, sql):
    far.project()
    wire.cut = "before"
    answer = far.problem("POST", "/users", {"name": "Max", "email": "max@example.com"})
    assert answer["status"] == 503
    assert "Nothing was changed; trying again is safe." in answer["detail"]
    assert wire.cuts == 1
    assert far.get("/users").json == []
    assert far.user("Max")["id"] > 0


@pytest.mark.parametrize("cut", ["before", "after"])
def test_where_the_server_stays_away_nobody_claims_to_know(far, wire, sql, cut, monkeypatch):
    monkeypatch.setattr(postgres, "LOST_SECONDS", 1.0)
    wire.cut, wire.gone = cut, True
    answer = far.problem("POST", "/users", {"name": "Max", "email": "max@example.com"})
    assert answer["status"] == 503
    assert "It is not known whether this was saved" in answer["detail"]
    assert "Nothing was changed" not in answer["detail"]
    assert far.problem("GET", "/users")["status"] == 503
    wire.gone = False
    assert eventually(lambda: far.get("/users", status="*").status_code == 200)
    assert len(far.get("/users").json) == (cut == "after")


def test_a_server_that_says_nothing_is_given_up_in_the_end(far, wire, monkeypatch):
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 2.0)
    far.project()
    with ThreadPoolExecutor(4) as pool:  # so that there are several connections
        list(pool.map(lambda _: far.get("/users"), range(8)))
    wire.flows.clear()
    for _ in range(2):
        assert "cannot be reached" in far.problem("GET", "/users")["detail"]
    user = {"name": "Max", "email": "max@example.com"}
    assert "Nothing was changed" in far.problem("POST", "/users", user)["detail"]
    wire.flows.set()
    eventually(lambda: far.get("/users", status="*").status_code == 200)
    assert far.user("Max")["id"] == 1


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_that_is_never_answered_is_not_known(far, wire, monkeypatch, cut):
    monkeypatch.setattr(postgres, "ANSWER_SECONDS", 2.0)
    monkeypatch.setattr(postgres, "LOST_SECONDS", 0.5)
    far.project()
    wire.cut, wire.hangs = cut, True
    answer = far.problem("POST", "/users", {"name": "Max", "email": "max@example.com"})
    assert "It is not known whether this was saved" in answer["detail"]
    wire.flows.set()  # what was under way arrives, however late
    eventually(lambda: far.get("/users", status="*").status_code == 200)
    assert eventually(lambda: len(far.get("/users").json)) == 1


def test_a_lost_commit_of_many_is_told_to_all_of_them(far, wire, monkeypatch):
    monkeypatch.setattr(postgres, "LOST_SECONDS", 0.5)
    far.project()
    wire.cut, wire.gone = "after", True

    def write():
        with far.app.database.batch() as batch:
            for n in range(3):
                with batch.write() as conn:
                    db.create_user(conn, {"name": "Max", "email": f"max{n}@example.com"})

    with pytest.raises(Unknown):
        write()


def test_a_repeat_with_the_same_key_finds_what_was_saved(far, wire, monkeypatch):
    monkeypatch.setattr(postgres, "LOST_SECONDS", 0.5)
    far.project()
    wire.cut, wire.gone = "after", True

    def create(status):
        body = {"title": "Once", "project_id": 1, "status": "open"}
        return far.post_json("/tickets", body, headers={"Idempotency-Key": "k"}, status=status)

    create(503)
    wire.gone = False
    eventually(lambda: far.get("/users", status="*").status_code == 200)
    assert create(201).json["id"] == 1
    assert len(far.get("/tickets").json) == 1


def test_a_commit_that_did_not_wait_for_the_standby_is_not_claimed_to_last(
    api, postgresql, database
):
    name = database.rpartition("/")[2]
    api.app.mailer.close()
    postgresql.execute(f"ALTER DATABASE {name} SET synchronous_commit = 'remote_apply'")
    postgresql.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    postgresql.execute("SELECT pg_reload_conf()")
    try:
        eventually(lambda: postgresql.execute("SHOW synchronous_standby_names") == [("nobody",)])
        waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        helper = threading.Thread(target=lambda: eventually(lambda: postgresql.execute(waiting)))
        helper.start()
        answer = api.problem("POST", "/users", {"name": "Max", "email": "max@example.com"})
        helper.join()
        assert "It is not known whether this was saved" in answer["detail"]
    finally:
        postgresql.execute("ALTER SYSTEM RESET synchronous_standby_names")
        postgresql.execute("SELECT pg_reload_conf()")
        eventually(lambda: postgresql.execute("SHOW synchronous_standby_names") == [("",)])


# ---------------------------------------------------------------- connections and locks


def end_sessions(postgresql, which):
    """End those sessions, and wait until they have ended."""
    activity = "FROM pg_stat_activity WHERE"
    ended = postgresql.execute(f"SELECT pid, pg_terminate_backend(pid) {activity} {which}")
    for pid, _ in ended:
        eventually(lambda pid=pid: not postgresql.execute(f"SELECT 1 {activity} pid = {pid}"))


def test_connections_that_died_while_idle_cost_no_request(api, postgresql, database):
    name = database.rpartition("/")[2]
    api.user("Max")
    for _ in range(3):
        end_sessions(postgresql, f"datname = '{name}'")
        assert len(api.get("/users").json) == 1
        api.change(api.ticket(api.project(str(os.urandom(8)))["id"])["id"], status="closed")


def test_a_transaction_whose_session_ends_is_503_and_the_next_one_works(app, api, postgresql):
    def write():
        with app.database.write() as conn:
            [pid] = conn.execute("SELECT pg_backend_pid()").fetchone()
            db.create_user(conn, {"name": "Max", "email": "max@example.com"})
            end_sessions(postgresql, f"pid = {pid}")
            db.create_user(conn, {"name": "Dave", "email": "dave@example.com"})

    with pytest.raises(Unavailable, match="cannot be reached"):
        write()
    assert api.get("/users").json == []
    api.user("Max")


def test_writers_wait_for_each_other_and_all_is_kept(app, api):
    def write(thread):
        for n in range(10):
            user = {"name": "Max", "email": f"{thread}-{n}@example.com"}
            with app.database.write() as conn:
                [before] = conn.execute("SELECT count(*) FROM users").fetchone()
                db.create_user(conn, user)
                assert conn.execute("SELECT count(*) FROM users").fetchone() == (before + 1,)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.get("/users?limit=200").json) == 60


def test_a_holder_of_the_lock_that_hangs_loses_it(make_app, api, monkeypatch):
    monkeypatch.setattr(postgres, "_SETTINGS", postgres._SETTINGS.replace("'4s'", "'300ms'"))
    api.app.mailer.close()  # which would wait for the lock in vain, and have that be in /health
    other, body = make_app(), {"name": "Max", "email": "max@example.com"}

    def hang():
        with other.database.write() as conn:
            db.create_user(conn, {"name": "Dave", "email": "dave@example.com"})
            assert api.get("/health").json["status"] == "ok"  # others may write
            answer = api.problem("POST", "/users", body)
            assert "is locked by another writer" in answer["detail"]
            assert "is locked by another writer" in api.problem("GET", "/health")["detail"]
            eventually(lambda: api.post_json("/users", body, status="*").status_code == 201)
            db.create_user(conn, {"name": "Yaris", "email": "yaris@example.com"})

    with pytest.raises(Unavailable):
        hang()
    assert api.get("/health").json["status"] == "ok"
    assert [user["name"] for user in api.get("/users").json] == ["Max"]


def test_a_part_of_a_batch_that_fails_takes_back_only_itself(app, api):
    with app.database.batch() as batch:
        for email in ("max@example.com", "MAX@example.com", "dave@example.com"):
            with suppress(db.Conflict), batch.write() as conn:
                db.create_user(conn, {"name": "Somebody", "email": email})
    assert [user["id"] for user in api.get("/users").json] == [1, 2]


def test_an_interrupt_as_a_part_of_a_batch_begins_takes_back_no_part_before_it(
    app, api, monkeypatch
):
    command, committed = postgres.Connection.command, False

    def interrupted(conn, sql):
        if "RELEASE" in sql:
            raise KeyboardInterrupt
        return command(conn, sql)

    def write():
        with app.database.batch() as batch:
            with batch.write() as conn:
                db.create_user(conn, {"name": "Max", "email": "max@example.com"})
            monkeypatch.setattr(postgres.Connection, "command", interrupted)
            with suppress(KeyboardInterrupt), batch.write():
                pass
            monkeypatch.undo()

    try:
        write()
        committed = True
    except Unavailable:
        monkeypatch.undo()
    assert len(api.get("/users").json) == committed


def test_a_change_that_changes_nothing_writes_nothing(filled, api, sql):
    commits = "SELECT sum(number) FROM tracker.commits"
    before = sql(commits).fetchone()
    api.change(1, status="open")
    assert sql(commits).fetchone() == before


def test_a_forked_child_works_and_leaves_the_parents_sessions_alone(app, api, sql):
    api.user("Max")
    app.mailer.close()  # as one thread at a time asks for delivery
    assert eventually(app.database.may_deliver)
    with app.database.read() as conn:  # also one that is in use
        assert conn.execute("SELECT count(*) FROM users").fetchone() == (1,)
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                with app.database.write() as mine:
                    db.create_user(mine, {"name": "Child", "email": "child@example.com"})
                app.database.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0
        assert conn.execute("SELECT count(*) FROM users").fetchone() == (1,)
    assert app.database.may_deliver()
    assert [user["name"] for user in api.get("/users").json] == ["Max", "Child"]


def test_the_death_of_a_parent_frees_its_locks_although_a_child_lives(start, database, postgresql):
    script = (
        "import os, sys, time, db\n"
        "base = db.open_database(sys.argv[1])\n"
        "assert base.may_deliver()\n"
        "if os.fork() == 0:\n"
        "    with base.read(): pass\n"
        "    print('child', flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, database], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert parent.stdout.readline() == "child\n"
        parent.kill()
        other = db.open_database(database)
        eventually(other.may_deliver)
        other.close()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, 9)
        parent.wait()
        parent.stdout.close()


def test_reads_are_not_answered_in_the_loop_that_all_share(start, database, sql):
    server = start()
    with psycopg.connect(database) as conn:
        conn.execute("SET search_path = tracker")
        conn.execute("LOCK TABLE users IN ACCESS EXCLUSIVE MODE")
        waiting = socket.create_connection(("127.0.0.1", server.port))
        waiting.sendall(b"GET /users HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with closing(socket.create_connection(("127.0.0.1", server.port))) as other:
            other.settimeout(30)
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in other.recv(4096)
        conn.rollback()
    waiting.settimeout(30)
    assert b"200 OK" in waiting.recv(4096)
    waiting.close()


def test_backup_says_what_to_use(database, tmp_path):
    told = command("backup", tmp_path / "b.db", "--db", database)
    assert told.returncode == 1
    assert "pg_dump" in told.stderr
    assert told.stderr.count("\n") == 1


def test_what_pg_dump_has_taken_can_be_restored_and_served(old, database, postgresql, make_app):
    assert command("copy", old, database).returncode == 0
    restored = postgresql.create()
    dump = postgresql.folder / "tickets.dump"
    admin = [each.replace("tracker@", "postgres@") for each in (database, restored)]
    postgresql.run("pg_dump", "--format=custom", f"--file={dump}", admin[0])
    postgresql.run("pg_restore", "--exit-on-error", f"--dbname={admin[1]}", dump)
    assert rows(restored) == rows(database)
    api = Api(make_app(database=restored, smtp="smtp://127.0.0.1:1"))
    assert api.user("New")["id"] == 5
    assert len(api.get("/tickets?text=number+6").json) == 11
    api.app.close()
    postgresql.drop(restored)


# ---------------------------------------------------------------- to copy


def rows(location):
    """All that is in the database, as far as both engines have it."""
    base = db.open_database(location)
    found = {}
    with base.read() as conn:
        for table in base.schema.tables:
            names = sorted(set(conn.columns(table)) - {"indexed"})
            columns = ", ".join(f'"{name}"' for name in names)
            found[table] = sorted(conn.stream(f"SELECT {columns} FROM {table}"), key=repr)
        ids = conn.highest_ids()
    base.close()
    return found, {table: ids.get(table) for table in ("users", "projects", "emails")}


@pytest.fixture
def old(make_app, tmp_path):
    """A file with mail of every state, history, texts of all kinds, and ids that are gone."""
    api = Api(make_app(database=tmp_path / "old.db", smtp="smtp://127.0.0.1:1", sender=SENDER))
    api.app.mailer.close()
    for name in ("Max", "Dave", "Yaris", "Gone"):
        api.user(name)
    for name in ("Website", "Intranet", "Gone"):
        api.project(name)
    api.ticket(assignees=[1, 2, 4], description=f"{ODD}\r\n\ttabs\\N \\. {ODD}")
    api.ticket(2, title="\\N")
    for status in ("closed", "open", "in progress"):
        api.change(1, status=status, comment=ODD)
    api.delete("/users/4")
    api.delete("/projects/3")
    with api.app.database.write() as conn:
        for due, state in zip(db.list_due(conn, "9", 3), ["sent", "failed", "queued"], strict=True):
            if state == "sent":
                db.record_sent(conn, due, "max@example.com")
            else:
                again = None if state == "failed" else "2027-01-01T00:00:00.000Z"
                db.record_failure(conn, due, None, f"5.7.1 \u2028 {ODD}", again)
        db.queue_test_mail(conn, "max@example.com", "Test", "Body")
        idempotency.remember(conn, "key", "request", '{"a": 1}')
        conn.execute("UPDATE system SET domain = 'example.com', error = 'it is down'")
    for n in range(70):  # more than the index of texts takes in at once
        api.ticket(title=f"Ticket number {n}")
    api.app.close()
    return tmp_path / "old.db"


def test_there_and_back_all_is_the_same(old, database, tmp_path, make_app):
    before = rows(old)
    assert before[1] == {"users": 4, "projects": 3, "emails": before[1]["emails"]}
    for source, target in ((old, database), (database, tmp_path / "new.db")):
        told = command("copy", source, target)
        assert (told.returncode, told.stderr) == (0, "")
        assert f" to {target}." in told.stdout
        assert rows(target) == before
    for where in (old, database, tmp_path / "new.db"):  # and it works
        api = Api(make_app(database=where, smtp="smtp://127.0.0.1:1"))
        api.app.mailer.close()
        assert len(api.get("/tickets?text=number+6").json) == 11
        assert api.user("New")["id"] == 5
        assert api.project("New")["id"] == 4
        assert api.ticket(assignees=[5])["id"] == 73
        assert api.get("/projects/2").json["tickets"]["open"] == 1
        api.problem("DELETE", "/projects/2")
        assert health(api)["failed"] == 1


def test_only_an_empty_database_is_copied_into(old, database, tmp_path, api):
    api.user("Max")
    full = rows(database)
    for source, target in ((old, database), (database, old)):
        told = command("copy", source, target)
        assert told.returncode == 1
        assert "is not empty" in told.stderr
        assert told.stderr.startswith(f"tracker: {source} to {target}: ")
    assert rows(database) == full


def test_what_cannot_be_copied_whole_is_not_copied_at_all(old, database):
    base = db.open_database(old)
    with base.write() as conn:
        conn.execute("UPDATE system SET error = char(0)")  # the last but one table
    base.close()
    told = command("copy", old, database)
    assert told.returncode == 1
    assert "The database is damaged" in told.stderr
    assert told.stderr.count("\n") == 1
    assert rows(database)[0]["users"] == []


def test_a_source_that_is_not_there_is_not_created(database, tmp_path):
    told = command("copy", tmp_path / "missing.db", database)
    assert (told.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "There is no such database" in told.stderr


def test_a_source_that_holds_no_tracker_is_refused_and_neither_side_is_touched(
    postgresql, tmp_path
):
    other = postgresql.create()
    empty, target = tmp_path / "empty.db", tmp_path / "new.db"
    empty.touch()
    for source, words in ((other, "holds no tracker"), (empty, "is empty")):
        told = command("copy", source, target)
        assert (told.returncode, told.stdout) == (1, "")
        assert told.stderr == f"tracker: {source}: The database {words}.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]
    assert empty.stat().st_size == 0
    sql = "SELECT count(*) FROM pg_namespace WHERE nspname = 'tracker'"
    assert postgresql.execute(sql, other.rpartition("/")[2]) == [(0,)]
    postgresql.drop(other)


@pytest.mark.parametrize("direction", ["to the server", "from the server"])
def test_who_copies_what_a_tracker_still_serves_is_told(
    old, database, tmp_path, make_app, direction
):
    source, target = (old, database)
    if direction == "from the server":
        assert command("copy", old, database).returncode == 0
        source, target = (database, tmp_path / "new.db")
    app = make_app(database=source, smtp="smtp://127.0.0.1:1", sender=SENDER)
    app.start()
    eventually(lambda: app.mailer.delivers)
    told = command("copy", source, target)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.endswith(
        f" to {target}. Warning: {source} is in use; what it still takes in is not copied.\n"
    )


def test_nobody_writes_to_either_side_while_it_is_copied(old, database, make_app, monkeypatch):
    source, target = db.open_database(old), db.open_database(database)
    tried = []

    def try_to_write(progress):
        if not tried:
            tried.append(True)
            for where in (old, database):
                with pytest.raises(Unavailable, match="locked"), db.open_database(where).write():
                    pass

    engines.copy(source, target, try_to_write)
    assert tried
    source.close()
    target.close()
