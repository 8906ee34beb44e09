"""What the database holds to, whoever writes; and what becomes of a request when it cannot."""

import json
import os
import random
import resource
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
from conftest import ROOT, Api

import db
from plumbing import Unavailable


@pytest.fixture
def sql(api, app, database):
    """A SQL prompt beside the running app, on a database with one of each."""
    api.project()
    api.user()
    api.ticket(assignees=[1])
    api.change(1, status="closed")
    app.mailer.close()  # so that only the prompt and the requests write
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
        "UPDATE tickets SET project_id = 2",
        "UPDATE tickets SET project_id = 'one'",
        "UPDATE users SET name = 'ab'",
        "UPDATE users SET email = 'nobody'",
        "INSERT INTO users (name, email) VALUES ('Imp', 'MAX@EXAMPLE.COM')",
        "INSERT INTO assignments VALUES (1, 2, '2026')",
        "INSERT INTO assignments VALUES (1, 1, '2026')",
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
    with pytest.raises(sqlite3.IntegrityError):
        sql.execute(statement)
    assert list(sql.iterdump()) == before


def test_foreign_keys_switched_off_do_not_make_a_ticket_deletable(sql):
    sql.execute("PRAGMA foreign_keys = OFF")
    with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
        sql.execute("DELETE FROM tickets")


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
        {"assignee_id": 1, "sort": "-updated"},
        {"assignee_id": 1, "after": (50, "2026"), "sort": "-updated"},
        {"text": "database"},
        {"after": (50, "2026")},
        {"after": (50, "2026"), "sort": "-updated"},
        {"after": (50, "2026"), "project_id": 1},
        {"after": (50, "2026"), "assignee_id": 1},
        {"after": (50, "2026"), "text": "database"},
    ],
)
def test_a_page_is_read_along_an_index_without_sorting_all_that_matches(app, api, sql, query):
    statements = []
    with app.database.read() as conn:
        conn.set_trace_callback(statements.append)
        db.list_tickets(conn, **query)
        conn.set_trace_callback(None)
    (statement,) = (text for text in statements if "AS touched_at" in text)
    plan = [row[3] for row in sql.execute(f"EXPLAIN QUERY PLAN {statement}")]
    assert not any("TEMP B-TREE" in step for step in plan), plan


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
    sql.execute("INSERT INTO users (name, email) VALUES ('Dave', 'dave@example.com')")
    sql.execute("INSERT INTO assignments VALUES (1, 2, '2026')")
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
    with closing(sqlite3.connect(database)) as conn:
        before = list(conn.iterdump())
        Api(make_app())
        assert list(conn.iterdump()) == before
        conn.executescript((ROOT / "schema.sql").read_text())
        assert list(conn.iterdump()) == before


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("PRAGMA user_version = 99", "newer version"),
        ("PRAGMA application_id = 1", "another program"),
    ],
)
def test_a_database_that_is_not_ours_is_refused_and_left_alone(api, database, statement, words):
    with closing(sqlite3.connect(database)) as conn:
        conn.execute(statement)
        before = list(conn.iterdump())
        with pytest.raises(Unavailable, match=words):
            db.open_database(database)
        assert list(conn.iterdump()) == before


UPGRADE = """
import sqlite3, sys, db
db.UPGRADES += ["ALTER TABLE users ADD COLUMN phone TEXT;", sys.argv[2]]
try:
    db.open_database(sys.argv[1]).close()
except sqlite3.Error as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("second", "printed", "version"),
    [("UPDATE users SET phone = '112';", "", 3), ("UPDATE nothing;", "near", 1)],
)
def test_an_older_database_is_brought_forward_whole_or_not_at_all(
    app, api, database, second, printed, version
):
    api.user()
    app.close()
    done = subprocess.run(
        [sys.executable, "-c", UPGRADE, database, second], cwd=ROOT, capture_output=True, text=True
    )
    assert printed in done.stdout
    assert done.stderr == ""
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA user_version").fetchone() == (version,)
        columns = [row[1] for row in conn.execute("PRAGMA table_info(users)")]
        assert ("phone" in columns) == (version == 3)
        assert conn.execute("SELECT name FROM users").fetchall() == [("Max",)]


def test_what_is_no_database_is_refused(tmp_path):
    path = tmp_path / "tickets.db"
    path.write_text("Dear diary, " * 100)
    with pytest.raises(Unavailable, match="not a database"):
        db.open_database(path)
    assert path.read_text() == "Dear diary, " * 100
    with pytest.raises(Unavailable):
        db.open_database(tmp_path)
    with pytest.raises(Unavailable):
        db.open_database(tmp_path / "no" / "such" / "folder.db")


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


def test_many_that_create_one_database_at_once_do_not_meet(tmp_path):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # more ways to meet
    try:
        for n in range(20):
            with ThreadPoolExecutor(8) as pool:
                databases = list(pool.map(db.open_database, [tmp_path / f"{n}.db"] * 8))
            for each in databases:
                with each.read() as conn:
                    assert db.list_users(conn, 0, 1) == []
                each.close()
    finally:
        sys.setswitchinterval(interval)


# ---------------------------------------------------------------- transactions


def test_connections_are_set_up_to_lose_nothing(app):
    with app.database.read() as conn:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        values = [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert values == ["wal", 2, 1, db.BUSY_SECONDS * 1000]


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
            return rows, conn.execute("SELECT id, body FROM emails").fetchall()

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


def test_writers_wait_for_each_other_and_all_is_kept(app, api):
    api.project()
    api.ticket()

    def write(n):
        return Api(app).patch_json("/tickets/1", {"title": f"Title {n}"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(write, range(100))) == {200}
    history = api.get("/tickets/1/history?limit=200").json
    changes = [entry["changes"]["title"] for entry in history]
    assert len(changes) == 100
    assert [change["from"] for change in changes[1:]] == [change["to"] for change in changes[:-1]]


def test_of_writers_that_share_a_commit_each_fails_for_itself(app):
    def write(n):
        with app.database.write() as conn:
            db.create_user(conn, {"name": "Max", "email": f"{n}@example.com"})
            if n % 2:
                raise KeyError(n)
            return n

    with ThreadPoolExecutor(16) as pool:
        outcomes = [pool.submit(write, n) for n in range(200)]
    kept = {outcome.result() for outcome in outcomes if outcome.exception() is None}
    assert kept == set(range(0, 200, 2))
    assert {type(outcome.exception()) for outcome in outcomes} == {type(None), KeyError}
    with app.database.read() as conn:
        emails = {json.loads(user)["email"] for _, user in db.list_users(conn, 0, 1000)}
    assert emails == {f"{n}@example.com" for n in kept}


def test_of_many_that_know_the_same_state_exactly_one_wins(app, api):
    api.project()
    api.ticket()
    headers = {"If-Match": api.get("/tickets/1").headers["ETag"]}

    def write(n):
        body = {"title": f"Title {n}"}
        return Api(app).patch_json("/tickets/1", body, headers=headers, status="*").status_code

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(write, range(50))) == [200] + [412] * 49


WRITE_FOREVER = """
import sys, db
database = db.open_database(sys.argv[1])
for n in range(int(sys.argv[2])):
    with database.write() as conn:
        db.create_user(conn, {"name": "Max", "email": f"{sys.argv[3]}-{n}@example.com"})
"""


def test_writers_of_several_processes_queue_up_fairly(database):
    db.open_database(database).close()
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, database, "200", name], cwd=ROOT)
        for name in ("a", "b", "c")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with db.open_database(database).read() as conn:
        assert conn.execute("SELECT count(*) FROM users").fetchone() == (600,)
        assert conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_no_connection_checkpoints_while_another_commits(app):
    """The WAL-reset bug needs both at once; a commit, and the checkpoint it runs, hold the lock."""
    app.mailer.close()
    others = db.ProcessLock(app.database.path + "-lock")  # as another process would have it
    commits = []

    def trace(statement):
        if statement == "COMMIT":
            commits.append(others.acquire(0))

    for n in range(500):
        with app.database.write() as conn:
            conn.set_trace_callback(trace)
            db.create_user(conn, {"name": "x" * 100, "email": f"{n}@{'d' * 60}.example"})
        conn.set_trace_callback(None)
    assert commits == [False] * 500
    assert others.acquire(0)
    others.release()
    size = os.path.getsize(app.database.path + "-wal")
    assert size < 1100 * 4200, "checkpoints have run, within those commits"


# ---------------------------------------------------------------- when it cannot be written


def test_a_database_locked_by_another_program_is_503_and_recovers(api, sql):
    sql.execute("BEGIN IMMEDIATE")
    answer = api.post_json("/users", {"name": "Dave", "email": "dave@example.com"}, status=503)
    assert answer.content_type == "application/problem+json"
    assert int(answer.headers["Retry-After"]) > 0
    assert "locked" in answer.json["detail"]
    assert api.get("/users/1").json["name"] == "Max"  # reading goes on
    sql.execute("ROLLBACK")
    assert api.user("Dave")["id"] == 2


def test_a_full_disk_is_503_loses_nothing_and_recovers(app, api):
    app.mailer.close()  # so that one connection is enough, and has the limit
    api.project()
    with app.database.read() as conn:
        (pages,) = conn.execute("PRAGMA page_count").fetchone()
        conn.execute(f"PRAGMA max_page_count = {pages}")
    body = {"title": "T", "project_id": 1, "status": "open", "description": "x" * 9000}
    answers = [api.post_json("/tickets", body, status="*") for _ in range(20)]
    created = [answer.json for answer in answers if answer.status_code == 201]
    refused = [answer.json["detail"] for answer in answers if answer.status_code == 503]
    assert len(created) + len(refused) == 20
    assert "full" in refused[-1]
    assert api.get("/tickets?sort=created").json == created
    assert api.get("/projects/1").json["tickets"]["open"] == len(created)
    with app.database.read() as conn:
        conn.execute("PRAGMA max_page_count = 1000000")
    assert api.post_json("/tickets", body).status_code == 201


def test_a_disk_that_fills_up_under_many_writers_keeps_what_was_acknowledged(app, api):
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
    assert {ticket["id"] for ticket in api.get("/tickets?limit=200").json} == created
    assert api.get("/projects/1").json["tickets"]["open"] == len(created)


def test_a_read_only_database_is_503_and_recovers(app, api):
    app.mailer.close()  # so that one connection is enough
    api.project()
    with app.database.read() as conn:
        conn.execute("PRAGMA query_only = ON")
    assert "read-only" in api.problem("POST", "/projects", {"name": "Shop"})["detail"]
    assert api.project("Shop")["name"] == "Shop"


def test_a_file_that_may_not_grow_is_503_and_recovers(database):
    app = subprocess.run(
        [sys.executable, "-c", FILE_LIMIT, database], cwd=ROOT, capture_output=True, text=True
    )
    assert app.stdout.split() == ["503", "200", "201"], app.stderr


FILE_LIMIT = f"""
import resource, sys
from webtest import TestApp
import tracker
app = tracker.create_app(sys.argv[1])
api = TestApp(app)
body = {{"name": "Website"}}
resource.setrlimit(resource.RLIMIT_FSIZE, (1, {resource.RLIM_INFINITY}))
print(api.post_json("/projects", body, status="*").status_code)
print(api.get("/projects").status_code)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, {resource.RLIM_INFINITY}))
print(api.post_json("/projects", body, status="*").status_code)
app.close()
"""


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


def test_a_backup_is_whole_while_the_database_is_written_to(app, api, tmp_path):
    api.project()
    api.user()
    stop = threading.Event()

    def write():
        while not stop.is_set():
            Api(app).ticket(assignees=[1], description="x" * 5000)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for n in range(5):
            told = []
            target = tmp_path / f"backup{n}.db"
            app.database.backup(
                str(target), lambda done, pages, told=told: told.append((done, pages))
            )
            assert told[-1][0] == told[-1][1] > 0
            with closing(sqlite3.connect(target)) as copy:
                assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                (lacking,) = copy.execute("""
                    SELECT count(*) FROM tickets
                     WHERE id NOT IN (SELECT ticket_id FROM emails)""").fetchone()
                assert lacking == 0
    finally:
        stop.set()
        writer.join()
    assert sorted(path.name for path in tmp_path.glob("backup*")) == [
        f"backup{n}.db" for n in range(5)
    ]


def test_a_backup_onto_the_database_itself_is_refused(app, api, database):
    api.project()
    with pytest.raises(FileExistsError):
        app.database.backup(str(database), lambda done, pages: None)
    assert api.get("/projects/1").status_code == 200


def test_a_backup_whose_draft_would_be_the_database_is_refused(tmp_path):
    database = db.open_database(tmp_path / "tickets.partial")
    with pytest.raises(FileExistsError):
        database.backup(str(tmp_path / "tickets"), lambda done, pages: None)
    with database.read() as conn:
        assert db.list_users(conn, 0, 1) == []
    database.close()


def test_a_restored_backup_is_written_to_while_others_read(app, api, tmp_path):
    api.project()
    target = tmp_path / "restored.db"
    app.database.backup(str(target), lambda done, pages: None)
    restored = db.open_database(target)
    with restored.read() as reader:
        assert db.list_projects(reader, 0, 9)
        with restored.write() as writer:
            db.create_user(writer, {"name": "Max", "email": "max@example.com"})
    with restored.read() as conn:
        assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.get_user(conn, 1)
    restored.close()


# ---------------------------------------------------------------- forks

HELD_BY_A_CHILD = """
import os, sys, time, db
lock = db.ProcessLock(sys.argv[1])
assert lock.acquire(1)
child = os.fork()
if not child:
    time.sleep(5)  # with the file open, as after a fork in the middle of a write
    os._exit(0)
lock.release()
print(db.ProcessLock(sys.argv[1]).acquire(1))
os.kill(child, 9)
"""


def test_a_lock_that_was_let_go_is_free_whatever_a_forked_child_has_open(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HELD_BY_A_CHILD, tmp_path / "lock"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "True\n", done.stderr
