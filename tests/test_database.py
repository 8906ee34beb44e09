"""What the database holds to, whoever writes; and what becomes of a request when it cannot."""

import io
import json
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import ROOT, Api, eventually

import db
import tracker
from plumbing import Unavailable
from plumbing.engine import BUSY_SECONDS
from plumbing.lockfile import WRITES, LockFile


@pytest.fixture
def sql(api, app, database):
    """A SQL prompt beside the running app, on a database with one of each, and another user."""
    api.project()
    app.mailer.close()  # so that the mail stays queued, and only the prompt and the requests write
    api.project("Shop")
    api.user()
    api.user("Dave")
    api.ticket(assignees=[1])
    api.change(1, status="closed")
    with closing(sqlite3.connect(database, isolation_level=None)) as conn:
        conn.execute("PRAGMA foreign_keys = ON")
        yield conn


# ---------------------------------------------------------------- the rules of the schema


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tickets",
        "DELETE FROM projects",
        "DELETE FROM users",
        "INSERT OR REPLACE INTO tickets (id, title, project_id, status, created_at)"
        " VALUES (1, 'x', 1, 'open', '2026')",
        "REPLACE INTO tickets (id, title, project_id, status, created_at)"
        " SELECT id, title, project_id, status, created_at FROM tickets",
        "UPDATE tickets SET id = 2",
        "UPDATE OR REPLACE tickets SET id = 2",
        "UPDATE tickets SET rowid = 2",
        "UPDATE OR REPLACE tickets SET oid = 2",
        "UPDATE tickets SET created_at = '1970'",
        "UPDATE tickets SET status = 'done'",
        "UPDATE tickets SET title = ''",
        "UPDATE tickets SET title = NULL",
        "UPDATE tickets SET project_id = 9",
        "UPDATE tickets SET project_id = 'one'",
        "UPDATE users SET name = 'ab'",
        "UPDATE users SET email = 'nobody'",
        "INSERT INTO users (name, email) VALUES ('Imp', 'MAX@EXAMPLE.COM')",
        "INSERT INTO users (id, name, email) VALUES (0, 'Imp', 'imp@example.com')",
        "INSERT INTO users (id, name, email) VALUES (-5, 'Imp', 'imp@example.com')",
        "INSERT INTO users (id, name, email) VALUES (9223372036854775807, 'Imp', 'i@example.com')",
        "REPLACE INTO users (id, name, email) VALUES (7, 'Imp', 'max@example.com')",
        "UPDATE users SET id = 7",
        "UPDATE projects SET id = 7",
        "INSERT INTO projects (id, name, name_key) VALUES (0, 'Shop', 'shop')",
        "INSERT INTO projects (name, name_key, open) VALUES ('Shop', 'shop', 5)",
        "UPDATE projects SET open = 99",
        "UPDATE projects SET closed = 0, counted = 0",
        "INSERT INTO tickets (id, title, project_id, status, created_at)"
        " VALUES (0, 'x', 1, 'open', '2026-11-22T10:32:00.123Z')",
        "INSERT INTO tickets (title, project_id, status, created_at)"
        " VALUES ('x', 1, 'open', '2026-11-22 10:32:00')",
        "UPDATE tickets SET updated_at = '2026'",
        "UPDATE tickets SET updated_at = '2026-11-22T10:32:00Z'",
        "UPDATE tickets SET updated_at = '2026-13-22T10:32:00.123Z'",
        "UPDATE tickets SET updated_at = '2020-01-01T00:00:00.000Z'",
        "UPDATE emails SET next_attempt_at = 'now' WHERE state = 'queued'",
        "UPDATE emails SET sent_at = '12'",
        "INSERT INTO assignments VALUES (1, 3)",
        "INSERT INTO assignments VALUES (1, 1)",
        "UPDATE assignments SET user_id = 2",
        "INSERT INTO history (ticket_id, changed_at, changes) VALUES (1, '2026', '{')",
        "UPDATE emails SET state = 'lost'",
        "UPDATE emails SET state = 'queued', sent_at = NULL, next_attempt_at = NULL",
        "DROP TABLE projects",
    ],
)
@pytest.mark.parametrize("recursive_triggers", ["ON", "OFF"])
def test_the_database_refuses(sql, statement, recursive_triggers):
    sql.execute(f"PRAGMA recursive_triggers = {recursive_triggers}")
    before = list(sql.iterdump())
    with pytest.raises((sqlite3.IntegrityError, sqlite3.OperationalError)):
        sql.execute(statement)
    assert list(sql.iterdump()) == before


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tickets",
        "DELETE FROM users WHERE id = 1",
        "DELETE FROM projects",
        "REPLACE INTO users (id, name, email) VALUES (7, 'Imp', 'max@example.com')",
        "REPLACE INTO projects (id, name, name_key) VALUES (7, 'Website', 'website')",
        "UPDATE users SET id = 7 WHERE id = 1",
        "UPDATE OR REPLACE users SET email = 'max@example.com' WHERE id = 2",
        "UPDATE OR REPLACE projects SET name_key = 'website' WHERE id = 2",
        "DELETE FROM system",
        "UPDATE projects SET id = 7",
    ],
)
def test_what_is_in_use_stays_also_where_foreign_keys_are_off(sql, statement):
    sql.execute("PRAGMA foreign_keys = OFF")
    before = list(sql.iterdump())
    with pytest.raises(sqlite3.IntegrityError):
        sql.execute(statement)
    assert list(sql.iterdump()) == before


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"sort": "updated"},
        {"project_id": 1},
        {"project_id": 1, "sort": "-updated"},
        {"project_id": 1, "statuses": ["open"]},
        {"statuses": ["open"]},
        {"statuses": ["open"], "sort": "updated"},
        {"statuses": ["open"], "project_id": 1, "sort": "-updated"},
        {"statuses": ["open", "closed"]},
        {"statuses": ["open", "closed"], "sort": "-updated"},
        {"statuses": ["open", "closed"], "project_id": 1, "sort": "updated"},
        {"assignee_id": 1},
        {"assignee_id": 0},
        {"assignee_id": 0, "project_id": 1, "sort": "-updated"},
        {"text": "database"},
        {"start": ("2026", 50)},
        {"start": ("2026", 50), "sort": "-updated"},
        {"start": ("2026", 50), "project_id": 1},
        {"start": ("2026", 50), "project_id": 1, "sort": "updated"},
        {"start": ("2026", 50), "assignee_id": 1},
        {"start": ("2026", 50), "text": "database"},
    ],
)
def test_a_page_is_read_along_an_index_without_sorting_all_that_matches(app, api, sql, query):
    statements = []
    with app.database.read() as conn:
        conn.set_trace_callback(statements.append)
        db.list_tickets(conn, **query)
        conn.set_trace_callback(None)
    (statement,) = (text for text in statements if "MATERIALIZED" in text)
    plan = [row[3] for row in sql.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert not any("TEMP B-TREE" in step for step in plan), plan
    assert not any(step in ("SCAN tickets", "SCAN assignments") for step in plan), plan


def test_a_text_that_very_many_tickets_hold_is_found_by_every_filter_and_order(app, api, clock):
    api.user()
    api.project("Website")
    api.project("Shop")
    with app.database.write() as conn:
        for n in range(1000):
            ticket = {"title": f"The database {n}", "description": None, "status": "open"}
            if n % 50 == 0:
                ticket["title"] = f"Something else {n}"
            assignees = [1] if n % 60 == 0 else []
            db.create_ticket(conn, ticket | {"project_id": 1 + n % 2, "assignees": assignees})
    for n in (70, 80, 90, 100):
        clock.advance(seconds=1)
        api.change(n, status="closed")
    expected = [n + 1 for n in range(1000) if n % 60 == 0 and n % 50]

    def found(**query):
        return [ticket["id"] for ticket in api.get("/tickets", {"text": "DATABASE", **query}).json]

    assert found(assignee_id=1, sort="created") == expected[:50]
    assert found(assignee_id=1, sort="-updated", limit=10) == expected[:-11:-1]
    assert found(sort="-updated", limit=3) == [100, 90, 80]
    assert found(project_id=2, limit=2) == [1000, 998]
    assert found(status="closed") == [100, 90, 80, 70]


def test_what_is_shown_follows_whoever_writes(api, sql):
    sql.execute("INSERT INTO assignments VALUES (1, 2)")
    sql.execute("UPDATE users SET name = 'Maxi' WHERE id = 1")
    shown = api.get("/tickets/1").json
    assert [user["name"] for user in shown["assignees"]] == ["Maxi", "Dave"]
    sql.execute("DELETE FROM assignments")
    sql.execute("UPDATE tickets SET title = 'Another'")
    shown = api.get("/tickets/1").json
    assert (shown["title"], shown["assignees"]) == ("Another", [])


# ---------------------------------------------------------------- versions


def test_opening_a_database_again_changes_nothing(api, database, make_app):
    api.project()
    api.app.mailer.close()
    with closing(sqlite3.connect(database)) as conn:
        before = list(conn.iterdump())
        make_app()
        assert list(conn.iterdump()) == before


def old_database(folder):
    """A database of schema 1, as version 1.0.0 before it was released wrote it."""
    path = folder / "old.db"
    shutil.copy(Path(__file__).with_name("schema1.sqlite"), path)
    return path


def test_a_database_of_the_first_schema_is_brought_forward_and_loses_nothing(make_app, tmp_path):
    path = old_database(tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        documents = {
            kind: [json.loads(row) for (row,) in conn.execute(f"SELECT document FROM {view}")]
            for kind, view in (
                ("users", "user_documents"),
                ("projects", "project_documents"),
                ("tickets", "ticket_documents"),
                ("emails", "full_email_documents"),
            )
        }
        history = {
            ticket: [json.loads(row) for (row,) in rows]
            for ticket in (1, 2)
            for rows in [
                conn.execute(
                    "SELECT document FROM history_documents WHERE ticket_id = ? ORDER BY id",
                    (ticket,),
                ).fetchall()
            ]
        }
        health = json.loads(conn.execute("SELECT document FROM health_document").fetchone()[0])
        ids = conn.execute("SELECT message_id FROM emails ORDER BY id").fetchall()
    api = Api(make_app(database=path))
    api.app.mailer.close()  # so that the mail stays as it is
    for kind in ("users", "projects"):
        assert api.get(f"/{kind}").json == documents[kind]
    assert api.get("/tickets?limit=200&sort=created").json == documents["tickets"]
    for email in documents["emails"]:
        assert api.get(f"/emails/{email['id']}").json == email
    assert [email["id"] for email in api.emails(ticket_id=1, limit=200)] == sorted(
        (email["id"] for email in documents["emails"] if email["ticket_id"] == 1), reverse=True
    )
    for ticket, entries in history.items():
        told = [entry | {"by": None, "comment": None} for entry in entries]
        assert api.get(f"/tickets/{ticket}/history").json == told
    assert api.get("/health").json == health
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT message_id FROM emails ORDER BY id").fetchall() == ids
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
    # What was deleted last leaves its number; what reads the same is taken; texts are found.
    assert api.user("Ada")["id"] == 5
    assert api.project("Shop")["id"] == 7
    assert api.problem("POST", "/projects", {"name": "Cafe\u0301 👩💻"})["status"] == 409
    for text in ("SEARCH: SS", "First\nsecond", "ticket 69"):
        assert len(api.get("/tickets", {"text": text}).json) == 1
    assert api.ticket(assignees=[1])["id"] == 73


def test_a_database_of_the_second_schema_is_brought_forward_and_loses_nothing(make_app, tmp_path):
    path = tmp_path / "old.db"
    shutil.copy(Path(__file__).with_name("schema2.sqlite"), path)  # as commit e048d0d wrote it
    before = contents(path)
    make_app(database=path)
    assert contents(path) == before | {"answers": []}
    assert Api(make_app(database=path)).get("/tickets?text=ticket+one").json[0]["id"] == 2


def contents(path):
    """All rows of all tables."""
    with closing(sqlite3.connect(path)) as conn:
        tables = conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        return {name: conn.execute(f'SELECT * FROM "{name}"').fetchall() for (name,) in tables}


def test_mail_of_the_first_schema_goes_out_with_the_ids_that_it_had(tmp_path, mail_server, clock):
    path = old_database(tmp_path)
    with closing(sqlite3.connect(path)) as conn:
        waiting = conn.execute(
            "SELECT message_id, ticket_id FROM emails WHERE state = 'queued'"
        ).fetchall()
    clock.advance(days=1)
    app = tracker.create_app(path, mail_server.url, "new@sender.example", clock=clock)
    with closing(app):
        app.start()
        eventually(lambda: len(mail_server.messages) == len(waiting))
        messages = {message["Message-ID"]: message for _, message in mail_server.messages}
        assert messages.keys() == {message_id for message_id, _ in waiting}
        threads = {
            ticket: {str(messages[id]["References"]) for id, its in waiting if its == ticket}
            for ticket in (1, 2)
        }
        assert threads[1] == {"<ticket-1.20261122103200123@example.com>"}


KILLED = """
import os, sys
import db
def die(text):
    if "STOP" in os.environ and text.startswith(os.environ["STOP"]):
        os.kill(os.getpid(), 9)
    return text.lower()
db.text.fold = die
db.open_database(sys.argv[1]).close()
"""


def test_whoever_is_killed_while_bringing_it_forward_leaves_it_as_it_was(make_app, tmp_path):
    path = old_database(tmp_path)
    before = path.read_bytes()
    for stop in ("Fix", "Ticket 0", "Ticket 69"):
        env = os.environ | {"STOP": stop}
        done = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, env=env)
        assert done.returncode == -9
        with closing(sqlite3.connect(path)) as conn:
            assert conn.execute("PRAGMA user_version").fetchone() == (1,)
            assert conn.execute("SELECT count(*) FROM ticket_documents").fetchone() == (72,)
    assert len(path.read_bytes()) == len(before)
    assert len(Api(make_app(database=path)).get("/tickets?limit=200").json) == 72


def test_a_database_that_cannot_be_brought_forward_is_told_and_left_as_it_was(tmp_path):
    path = old_database(tmp_path)
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE history SET changed_at = 'yesterday'")
        before = list(conn.execute("SELECT * FROM tickets"))
        with pytest.raises(Unavailable, match="brought forward"):
            db.open_database(path)
        assert list(conn.execute("SELECT * FROM tickets")) == before


def damages(whole):
    """What a bad disk makes of a file: its end missing, pages overwritten, bytes flipped."""
    yield from (whole[:length] for length in (100, 4096, 12288, len(whole) // 2))
    # Text that is no longer UTF-8, in a value and in the words of SQLite's own complaint.
    for text in (b"T 2", b"2026-11-22T", b"CREATE INDEX tickets_by_project "):
        yield whole.replace(text, text[:-2] + b"\xff\xfe")
    chance = random.Random(1)
    pages = len(whole) // 4096
    for extent in [1, 5, 20] * 5:
        damaged = bytearray(whole)
        for page in chance.sample(range(1, pages), extent):
            damaged[page * 4096 : (page + 1) * 4096] = chance.randbytes(4096)
        yield bytes(damaged)
        damaged = bytearray(whole)
        for place in chance.sample(range(100, len(whole)), 10 * extent):
            damaged[place] = chance.randrange(256)
        yield bytes(damaged)


def test_a_damaged_database_is_told_as_such_and_never_a_defect(make_app, api, tmp_path):
    api.user("Max")
    api.user("Dave")
    api.project()
    for n in range(100):
        api.ticket(title=f"T {n}", description="long " * 100, assignees=[1, 2])
    api.app.close()
    with closing(sqlite3.connect(api.app.database.path)) as conn:
        assert conn.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    whole = Path(api.app.database.path).read_bytes()
    refused, statuses = [], Counter()
    for n, damaged in enumerate(damages(whole)):
        path = tmp_path / f"damaged{n}.db"
        path.write_bytes(damaged)
        try:
            client = Api(make_app(database=path))
        except Unavailable as error:
            refused.append(str(error))
            continue
        for read in ("/users", "/projects", "/tickets?limit=200", "/tickets?text=long", "/emails"):
            statuses[client.get(read, status="*").status_code] += 1
        for status in ("in progress", "closed"):
            change = client.patch_json("/tickets/3", {"status": status}, status="*")
            statuses[change.status_code] += 1
        client.app.close()
    assert refused
    assert all("damaged" in words for words in refused)
    assert statuses.keys() == {200, 503}


@pytest.mark.parametrize("seed", range(1, 51))
def test_a_damaged_schema_is_told_as_such_and_never_a_defect(small_database, tmp_path, seed):
    """Flipped bytes in the text of the schema, before the start and under a running tracker."""
    chance = random.Random(seed)
    whole = small_database
    begin = whole.index(b"CREATE TABLE users")  # somewhere among the pages of the schema
    places = [chance.randrange(max(100, begin - 8000), begin + 8000) for _ in range(1 + seed % 7)]
    damaged = bytearray(whole)
    for place in places:
        damaged[place] ^= 1 << chance.randrange(8)
    before, under = tmp_path / "before.db", tmp_path / "under.db"
    before.write_bytes(damaged)
    under.write_bytes(whole)
    with closing(tracker.create_app(under, smtp="", output=io.StringIO())) as app:
        under.write_bytes(damaged)
        statuses = use_all(Api(app))
    try:
        with closing(tracker.create_app(before, smtp="", output=io.StringIO())) as app:
            statuses |= use_all(Api(app))
    except Unavailable:
        pass
    assert statuses <= {200, 201, 202, 204, 404, 409, 412, 422, 503}


@pytest.fixture(scope="module")
def small_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "tickets.db"
    with closing(tracker.create_app(path, smtp="", output=io.StringIO())) as app:
        api = Api(app)
        api.user("Max")
        api.project()
        for n in range(5):
            api.ticket(title=f"T {n}", assignees=[1])
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = DELETE")
        conn.execute("PRAGMA journal_mode = WAL")
    return path.read_bytes()


def use_all(api):
    """Read and write whatever there is; the statuses of the answers."""
    calls = [
        *[("GET", f"/{kind}", None) for kind in ("users", "projects", "tickets", "emails")],
        *[("GET", f"/{kind}/1", None) for kind in ("users", "projects", "tickets", "emails")],
        ("GET", "/tickets?text=T+1&sort=updated", None),
        ("GET", "/health", None),
        ("POST", "/users", {"name": "Dave", "email": "dave@example.com"}),
        ("POST", "/projects", {"name": "Shop"}),
        ("POST", "/tickets", {"title": "T", "project_id": 1, "status": "open", "assignees": [1]}),
        ("PATCH", "/tickets/1", {"status": "closed", "title": "Done"}),
        ("PUT", "/tickets/2/assignees/2", None),
        ("DELETE", "/tickets/3/assignees/1", None),
        ("GET", "/tickets/1/history", None),
        ("POST", "/emails/1/retry", None),
        ("DELETE", "/users/1", None),
        ("DELETE", "/projects/2", None),
    ]
    statuses = set()
    for method, path, body in calls:
        more = (
            {"body": json.dumps(body).encode(), "content_type": "application/json"} if body else {}
        )
        statuses.add(api.request(path, method=method, status="*", **more).status_code)
    return statuses


def test_many_that_create_one_database_at_once_do_not_meet(tmp_path):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # more ways to meet
    try:
        for n in range(20):
            with ThreadPoolExecutor(8) as pool:
                databases = list(pool.map(db.open_database, [tmp_path / f"{n}.db"] * 8))
            for each in databases:
                with each.read() as conn:
                    assert db.list_by_id(conn, "user", None, 1) == (b"[]", None)
                each.close()
    finally:
        sys.setswitchinterval(interval)


# ---------------------------------------------------------------- transactions


def test_connections_are_set_up_to_lose_nothing(app):
    with app.database.read() as conn:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "temp_store", "busy_timeout")
        values = [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == ["wal", 2, 1, 2, BUSY_SECONDS * 1000]


def test_an_exception_at_any_statement_leaves_nothing_behind(app, api, database):
    """A write is broken off at its first steps, then a little later, until it comes through."""
    api.project()
    api.user("Max")
    api.user("Dave")
    api.ticket(assignees=[1], description="before")
    change = {"title": "After", "description": None, "status": "closed", "assignees": [2]}

    def state():
        with closing(sqlite3.connect(database)) as conn:
            tables = ("tickets", "assignments", "history", "ticket_texts", "projects")
            rows = {table: conn.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
            return rows, conn.execute("SELECT * FROM emails").fetchall()

    app.mailer.close()  # so that one connection is enough, and is the one interrupted
    before = state()
    for allowed in range(10_000):
        steps = iter(range(allowed))

        def interrupt(steps=steps):
            return next(steps, None) is None

        with app.database.read() as conn:
            pass
        conn.set_progress_handler(interrupt, 10)  # asked every 10 steps of SQLite
        answer = api.patch_json("/tickets/1", change, status="*")
        with suppress(sqlite3.ProgrammingError):  # it was closed, as its rollback failed, too
            conn.set_progress_handler(None, 0)
        if answer.status_code == 200:
            break
        assert answer.status_code >= 500
        assert state() == before
    assert allowed > 50
    assert state() != before
    assert api.get("/tickets/1").json["title"] == "After"


def test_no_connection_checkpoints_while_another_commits(app):
    """The WAL-reset bug needs both at once; a commit, and the checkpoint it runs, hold the lock."""
    app.mailer.close()
    others = LockFile(app.database.path)  # as another process would have it
    commits = []

    def trace(statement):
        if statement == "COMMIT":
            commits.append(others.acquire(WRITES))

    for n in range(500):
        with app.database.write() as conn:
            conn.set_trace_callback(trace)
            db.create_user(conn, {"name": "x" * 100, "email": f"{n}@{'d' * 60}.example"})
        conn.set_trace_callback(None)
    assert commits == [False] * 500
    assert others.acquire(WRITES)
    others.close()
    size = os.path.getsize(app.database.path + "-wal")
    assert size < 1100 * 4200, "checkpoints have run, within those commits"


# ---------------------------------------------------------------- when it cannot be written


def test_a_disk_that_fills_up_under_many_writers_keeps_what_was_acknowledged_and_recovers(app, api):
    app.mailer.close()  # so that one connection is enough, and has the limit
    api.project()
    with app.database.read() as conn:
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages + 40}")
    body = {"title": "T", "project_id": 1, "status": "open", "description": "x" * 9000}

    def write(n):
        return Api(app).post_json("/tickets", body, status="*")

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(write, range(100)))
    created = {answer.json["id"] for answer in answers if answer.status_code == 201}
    assert created
    assert {answer.status_code for answer in answers} == {201, 503}
    assert any("full" in answer.json["detail"] for answer in answers if answer.status_code == 503)
    assert {ticket["id"] for ticket in api.get("/tickets?limit=200").json} == created
    assert api.get("/projects/1").json["tickets"]["open"] == len(created)
    with app.database.read() as conn:
        conn.execute("PRAGMA max_page_count = 1000000")
    assert write(101).status_code == 201


def test_a_read_only_database_is_503_and_recovers(app, api):
    app.mailer.close()  # so that one connection is enough
    api.project()
    with app.database.read() as conn:
        conn.execute("PRAGMA query_only = ON")
    assert "read-only" in api.problem("POST", "/projects", {"name": "Shop"})["detail"]
    assert api.project("Shop")["name"] == "Shop"


def test_writers_who_share_a_commit_that_fails_are_all_told(database):
    run = subprocess.run(
        [sys.executable, "-c", MANY_AT_THE_LIMIT, database],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.stdout.split() == ["201", "503", "True"], run.stderr


MANY_AT_THE_LIMIT = f"""
import os, resource, sys
from concurrent.futures import ThreadPoolExecutor
from webtest import TestApp
import tracker
app = tracker.create_app(sys.argv[1])
names = [f"Project {{n}} {{'x' * 80}}" for n in range(300)]
def write(name):
    return TestApp(app).post_json("/projects", {{"name": name}}, status="*").status_code
TestApp(app).get("/projects")
with ThreadPoolExecutor(16) as pool:
    limit = os.path.getsize(sys.argv[1] + "-wal") + 200_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, {resource.RLIM_INFINITY}))
    statuses = list(pool.map(write, names))
    resource.setrlimit(resource.RLIMIT_FSIZE, ({resource.RLIM_INFINITY}, {resource.RLIM_INFINITY}))
created = {{name for name, status in zip(names, statuses) if status == 201}}
api = TestApp(app)
first = api.get("/projects?limit=200")
shown = {{project["name"] for project in first.json}}
if "Link" in first.headers:
    link = first.headers["Link"].partition("<")[2].partition(">")[0]
    shown |= {{project["name"] for project in api.get(link).json}}
print(*sorted(set(statuses)), shown == created)
app.close()
"""


# ---------------------------------------------------------------- backup


def test_a_backup_is_like_the_database_and_goes_through_a_link_and_tells_how_far_it_is(
    app, api, tmp_path
):
    api.project()
    path = Path(app.database.path)
    path.chmod(0o600)
    old = tmp_path / "old.db"
    old.write_text("an older one")
    (tmp_path / "link.db").symlink_to(old)
    told = []
    app.database.backup(str(tmp_path / "link.db"), lambda done, pages: told.append((done, pages)))
    assert told[-1][0] == told[-1][1] > 0
    assert (tmp_path / "link.db").is_symlink()
    assert old.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(old)) as copy:
        assert copy.execute("SELECT name FROM projects").fetchall() == [("Website",)]


def test_a_restored_backup_is_written_to_while_others_read(app, api, tmp_path):
    api.project()
    target = tmp_path / "restored.db"
    app.database.backup(str(target), lambda done, pages: None)
    restored = db.open_database(target)
    with restored.read() as reader:
        assert db.list_by_id(reader, "project", None, 9)
        with restored.write() as writer:
            db.create_user(writer, {"name": "Max", "email": "max@example.com"})
    with restored.read() as conn:
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.get(conn, "user", 1)
    restored.close()


# ---------------------------------------------------------------- forks

HELD_BY_A_CHILD = """
import os, sys, time
from plumbing.lockfile import WRITES, LockFile
lock = LockFile(sys.argv[1])
assert lock.acquire(WRITES)
child = os.fork()
if not child:
    time.sleep(5)  # with the file open, as after a fork in the middle of a write
    os._exit(0)
lock.unlock[WRITES]()
print(LockFile(sys.argv[1]).acquire(WRITES))
os.kill(child, 9)
"""


def test_a_lock_that_was_let_go_is_free_whatever_a_forked_child_has_open(database):
    database.touch()
    done = subprocess.run(
        [sys.executable, "-c", HELD_BY_A_CHILD, database], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr
