"""One writer at a time: what no exception, signal, damage or full disk may do to the others."""

import ctypes
import itertools
import os
import random
import resource
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest
from conftest import ROOT, Api, eventually
from wire import ask

import db
from plumbing import Unavailable, sqlite
from plumbing.lockfile import DELIVERS, WRITES, LockFile
from plumbing.sqlite import WAL_BYTES

# ---------------------------------------------------------------- nothing leaves the lock held


class Interrupted(BaseException):
    """What a host application may raise in its threads: a time-out, a cancellation."""


def interrupt(thread):
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted)
    )


def test_an_exception_in_any_thread_at_any_moment_leaves_others_able_to_write(app, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda args: None)  # and keeps no traceback
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 30)  # a slow disk is no lock that is left held
    chance = random.Random()
    stop = threading.Event()
    written, interrupted = [], []

    def write():
        while not stop.is_set():
            with suppress(Interrupted, Unavailable):
                try:
                    with app.database.write() as conn:
                        n = len(written)
                        written.append(n)
                        db.create_user(
                            conn, {"name": "Max", "email": f"{n}-{os.urandom(4).hex()}@x.example"}
                        )
                except Interrupted:
                    interrupted.append(1)

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for n in itertools.count():
            if n >= 300 and len(interrupted) > 50:
                break
            time.sleep(chance.uniform(0, 0.004))
            interrupt(chance.choice([thread for thread in threads if thread.is_alive()]))
            if n % 20 == 0:
                with app.database.write() as conn:  # it would raise Unavailable
                    db.create_project(conn, {"name": f"Project {n}"})
    finally:
        stop.set()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                with suppress(Interrupted):
                    thread.join(0.05)
    with LockFileHeldBy(app.database.path) as others:
        assert others.acquire(WRITES)


class LockFileHeldBy:
    """The lock file as another process has it."""

    def __init__(self, path):
        self.lock = LockFile(path)

    def __enter__(self):
        return self.lock

    def __exit__(self, *error):
        self.lock.close()


CTRL_C = """
import sys
from webtest import TestApp
import tracker
app = tracker.create_app(sys.argv[1], smtp="")
app.mailer.close()
api = TestApp(app)
api.get("/projects")
print("ready", flush=True)
n = refused = interrupted = 0
while n < 400:
    n += 1
    try:
        name = f"{sys.argv[2]} {n}"
        refused += api.post_json("/projects", {"name": name}, status="*").status_code == 503
    except KeyboardInterrupt:
        interrupted += 1
print(refused, interrupted, flush=True)
"""


def test_ctrl_c_during_writes_costs_no_other_process_a_write(database):
    db.open_database(database).close()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", CTRL_C, database, name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("One", "Two", "Three")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    while any(writer.poll() is None for writer in writers):
        for writer in writers[:2]:
            writer.send_signal(signal.SIGINT)
        time.sleep(0.005)
    told = [writer.communicate()[0].split() for writer in writers]
    assert [words[0] for words in told if words] == ["0"] * sum(map(bool, told))
    assert told[2] == ["0", "0"]


# ---------------------------------------------------------------- commits that are shared


def test_nobody_is_told_of_what_was_not_committed(start, database):
    server = start("--quiet")
    assert ask(server, "POST", "/projects", {"name": "Website"})[0] == 201
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    user = {"name": "Max", "email": "max@example.com"}
    with ThreadPoolExecutor(16) as pool:
        told = list(pool.map(lambda _: ask(server, "POST", "/users", user), range(64)))
    # Not 409: that somebody else has the address was seen in a transaction that was lost.
    assert {status for status, _, _ in told} == {503}
    assert ask(server, "GET", "/projects/1")[0] == 200
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    eventually(lambda: ask(server, "POST", "/users", user)[0] in (201, 409))
    assert len(ask(server, "GET", "/users")[2]) == 1


def test_a_damaged_row_fails_for_those_whom_it_concerns_and_for_nobody_else(start, database):
    server = start("--quiet")
    ask(server, "POST", "/projects", {"name": "Website"})
    for n in range(8):
        ask(server, "POST", "/tickets", {"title": f"T {n}", "project_id": 1, "status": "open"})
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("UPDATE tickets SET title = CAST(x'ff41' AS TEXT) WHERE id = 4")
        conn.commit()

    def change(n):
        status = ("open", "closed")[n // 8 % 2]
        ticket = 1 + n % 8
        return ticket, ask(server, "PATCH", f"/tickets/{ticket}", {"status": status})[0]

    with ThreadPoolExecutor(32) as pool:
        answers = Counter(pool.map(change, range(400)))
    assert answers[4, 503] == 50
    assert {status for ticket, status in answers if ticket != 4} == {200}


def test_of_many_that_wait_each_is_answered_for_itself(start):
    """A few succeed, others are refused for many reasons, and all in the same commits."""
    server = start("--quiet")
    ask(server, "POST", "/projects", {"name": "Website"})
    stop = threading.Event()

    def fail():
        while not stop.is_set():
            body = {"title": "T", "project_id": 99, "status": "open"}
            assert ask(server, "POST", "/tickets", body)[0] == 422
            assert ask(server, "DELETE", "/users/99")[0] == 404
            assert ask(server, "POST", "/projects", {"name": "website"})[0] == 409
            assert ask(server, "POST", "/nothing", {})[0] == 404

    with ThreadPoolExecutor(9) as pool:
        failing = [pool.submit(fail) for _ in range(8)]
        try:
            for n in range(50):
                body = {"title": f"T {n}", "project_id": 1, "status": "open"}
                assert ask(server, "POST", "/tickets", body)[0] == 201
        finally:
            stop.set()
        assert [future.result() for future in failing] == [None] * 8
    assert ask(server, "GET", "/projects/1")[2]["tickets"]["open"] == 50


def test_a_batch_is_over_when_more_than_a_part_was_taken_back(app):
    """As where memory runs out: nobody may go on as if the transaction were still there."""

    def write():
        with app.database.batch() as batch:
            with batch.write() as conn:
                db.create_project(conn, {"name": "First"})
            with batch.write() as conn:
                conn.rollback()
                raise KeyError

    with pytest.raises(Unavailable):
        write()
    with app.database.read() as conn:
        assert db.list_by_id(conn, "project", None, 9).document == b"[]"


def test_who_waits_in_vain_does_not_let_go_of_the_lock_of_whoever_writes(app, monkeypatch):
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.1)
    with LockFileHeldBy(app.database.path) as others, app.database.write() as conn:
        db.create_project(conn, {"name": "Website"})
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(app.database.write().__enter__)
            assert isinstance(waiting.exception(), Unavailable)
        assert not others.acquire(WRITES)
        app.database.close()  # nor does the end of the application
        assert not others.acquire(WRITES)
    with LockFileHeldBy(app.database.path) as others:
        assert others.acquire(WRITES)


def test_a_child_lets_go_of_nothing_of_its_parent(app):
    app.mailer.close()
    assert app.database.may_deliver()
    if (child := os.fork()) == 0:
        app.database.stop_delivering()
        app.close()
        os._exit(0)
    os.waitpid(child, 0)
    with LockFileHeldBy(app.database.path) as others:
        assert not others.acquire(DELIVERS)


# ---------------------------------------------------------------- the lock file


def test_the_lock_file_has_the_owner_and_the_mode_of_the_database(tmp_path):
    for mode, owner in ((0o600, 0), (0o660, 1234), (0o644, 0)):
        path = tmp_path / f"{mode}.db"
        path.touch()
        path.chmod(mode)
        if os.geteuid() == 0:
            os.chown(path, owner, owner)
        db.open_database(path).close()
        there, like = os.stat(f"{path}-lock"), os.stat(path)
        assert stat.S_IMODE(there.st_mode) == mode
        assert (there.st_uid, there.st_gid) == (like.st_uid, like.st_gid)


def test_a_lock_that_cannot_be_had_is_503_and_leaks_nothing(app, api, database):
    api.project()
    app.mailer.close()  # which may open a connection at any moment, or take the lock
    lock = f"{database}-lock"
    others = LockFile(str(database))
    before = len(os.listdir("/proc/self/fd"))
    os.unlink(lock)
    os.mkdir(lock)
    for n in range(150):
        assert api.post_json("/projects", {"name": f"Project {n}"}, status="*").status_code == 503
    assert "locked" in api.problem("GET", "/health")["detail"]
    os.rmdir(lock)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert api.project("Shop")
    others.close()


def test_a_lock_file_that_is_removed_is_noticed(app, api, database):
    api.project()
    app.mailer.close()  # which may take the lock at any moment
    with LockFileHeldBy(str(database)) as others:
        os.unlink(f"{database}-lock")
        assert api.project("Shop")["id"] == 2
        assert others.acquire(WRITES)
        problem = api.problem("POST", "/projects", {"name": "Intranet"})
        assert problem["status"] == 503
        assert "locked" in problem["detail"]
    assert api.project("Intranet")["id"] == 3


def test_one_write_opens_no_file(app, api):
    api.project()
    opened = []
    sys.addaudithook(lambda event, args: event == "open" and opened.append(args))
    api.project("Shop")
    assert [args for args in opened if "tickets.db" in str(args[0])] == []


# ---------------------------------------------------------------- the WAL


def test_the_wal_does_not_grow_without_bound_while_reads_overlap(app, database, monkeypatch):
    app.mailer.close()
    monkeypatch.setattr(sqlite, "RESTART_SECONDS", 10)  # each read ends, on a busy machine later
    stop = threading.Event()

    def read():
        while not stop.is_set():
            with app.database.read() as conn:
                conn.execute("SELECT count(*) FROM tickets").fetchone()
                time.sleep(0.05)

    readers = [threading.Thread(target=read) for _ in range(3)]
    with app.database.write() as conn:
        db.create_project(conn, {"name": "Website"})
    for reader in readers:
        reader.start()
        time.sleep(0.015)
    largest = 0
    ticket = {"title": "T", "project_id": 1, "status": "open", "assignees": []}
    try:
        for n in range(150):
            with app.database.batch() as batch:
                for m in range(16):
                    with batch.write() as conn:
                        text = f"{n} {m} " * 800
                        db.create_ticket(conn, ticket | {"description": text[:9000]})
            largest = max(largest, os.path.getsize(f"{database}-wal"))
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert os.path.getsize(database) > 3 * WAL_BYTES / 2
    assert largest < 1.5 * WAL_BYTES
    for n in range(3):
        with app.database.write() as conn:
            db.create_project(conn, {"name": f"Project {n}"})
    assert os.path.getsize(f"{database}-wal") <= WAL_BYTES * 1.1


# ---------------------------------------------------------------- clocks


def test_a_ticket_is_never_changed_before_it_was(api, clock):
    api.project()
    api.ticket()
    clock.advance(days=-1)
    changed = api.change(1, status="closed")
    assert changed["updated_at"] == changed["created_at"]
    clock.advance(days=2)
    later = api.change(1, status="open")["updated_at"]
    clock.advance(days=-2)
    assert api.change(1, status="closed")["updated_at"] == later
    moments = [entry["changed_at"] for entry in api.get("/tickets/1/history").json]
    assert moments == sorted(moments)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata"])
def test_a_clock_in_another_zone_tells_the_same_time(make_app, clock, zone, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    api = Api(make_app(clock=lambda: clock().astimezone()))
    api.project()
    assert api.ticket()["created_at"] == "2026-11-22T10:32:00.123Z"
    monkeypatch.undo()
    time.tzset()
