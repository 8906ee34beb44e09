"""What surrounds the tracker may be hostile, too: files, terminals, signals and settings."""

import fcntl
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
from test_process import HERE, ask, assert_one_clear_line, command, create, fill, rows

import db
import tracker
from plumbing import Unavailable, sqlite

MAX = 1234  # the number of a user
DAVE = 1235
TEAM = 5000  # and of a group

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def unshared(*namespaces):
    """The beginning of a command line that runs in namespaces of its own."""
    prefix = ["unshare", *namespaces]
    if not shutil.which("unshare") or subprocess.run([*prefix, "true"]).returncode:
        pytest.skip(f"{' '.join(prefix)} (of util-linux, as root) is not permitted here")
    return prefix


AS_USER = """
import encodings.idna, os, sys, tracker
uid, gid, *groups = map(int, sys.argv[1].split())
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
os.umask(0o022)
sys.exit(tracker.main(sys.argv[2:]))
"""


def as_user(ids, *arguments):
    """The command line of a tracker that another user runs: "uid gid group..."."""
    return [sys.executable, "-c", AS_USER, ids, *map(str, arguments)]


def run_as(ids, *arguments):
    return subprocess.run(
        as_user(ids, *arguments), cwd=ROOT, env=HERE, capture_output=True, text=True, timeout=30
    )


def serve(line, **settings):
    """Start the tracker by the command line; the process, which has its port."""
    running = subprocess.Popen(
        list(map(str, line)),
        cwd=settings.pop("cwd", ROOT),
        env=settings.pop("env", HERE),
        stdout=subprocess.PIPE,
        stderr=settings.pop("stderr", subprocess.STDOUT),
        text=True,
    )
    STARTED.append(running)
    said = running.stdout.readline()
    assert "ready on" in said, said + running.stdout.read()
    running.port = int(re.search(r"ready on http://[^ ]*:([0-9]+),", said)[1])
    return running


STARTED = []


@pytest.fixture(autouse=True)
def nothing_goes_on():
    yield
    while STARTED:
        running = STARTED.pop()
        running.kill()
        running.communicate()


def end(running, signum=signal.SIGTERM):
    """Ask it to end; what it said."""
    running.send_signal(signum)
    said, _ = running.communicate(timeout=20)
    assert running.returncode == 0, said
    return said


TRACKER = [sys.executable, ROOT / "tracker.py"]


@pytest.fixture
def folder():
    """A folder that other users can reach, which a folder of pytest is not."""
    place = Path(tempfile.mkdtemp())
    yield place
    shutil.rmtree(place)


# ---------------------------------------------------------------- files


READ_ONLY_ROOT = """
set -e
mkdir "$1/root"
mount --bind / "$1/root"
mount -o remount,ro,bind "$1/root"
mount -t proc none "$1/root/proc"
mount --bind /dev "$1/root/dev"
mount --bind "$1/data" "$1/root$1/data"
shift
exec chroot "$ROOT_OF_TEST/root" "$@"
"""


def test_it_works_where_only_the_folder_of_its_data_can_be_written(tmp_path):
    (tmp_path / "data").mkdir()
    prefix = [*unshared("-m"), "sh", "-c", READ_ONLY_ROOT, "sh", tmp_path]
    database = tmp_path / "data" / "tickets.db"
    env = HERE | {"ROOT_OF_TEST": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [*prefix, *TRACKER, "--db", database, "--port", 0, "--quiet"]
    server = serve(line, env=env)
    fill(server)
    for _ in range(200):
        ticket = {"title": "Long", "project_id": 1, "status": "open", "description": "ö" * 10_000}
        create(server, "/tickets", **ticket)
    for _ in range(2):  # 4 MB, for which waitress would want a temporary file
        assert len(ask(server, "GET", "/tickets?limit=200")[2]) == 200
    assert ask(server, "GET", "/tickets?text=ööö&limit=1".replace("ö", "%C3%B6"))[0] == 200
    assert ask(server, "GET", "/health")[0] == 200
    assert end(server) == ""


def private(path):
    """Root's, and nobody else's."""
    os.chown(path, 0, 0)
    path.chmod(0o600)


def make_database_private(folder):
    private(folder / "tickets.db")


def make_database_read_only(folder):
    (folder / "tickets.db").chmod(0o444)


def make_folder_read_only(folder):
    Path(folder / "tickets.db-lock").unlink()
    folder.chmod(0o555)


def make_lock_private(folder):
    private(folder / "tickets.db-lock")


@needs_root
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_database_private, "read-only for this user"),
        (make_database_read_only, "read-only for this user"),
        (make_folder_read_only, "or its folder is"),
        (make_lock_private, "tickets.db-lock"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_start_that_could_write_nothing_is_refused_in_one_line(folder, make, words):
    folder.chmod(0o777)
    database = folder / "tickets.db"
    mail = ("--smtp", "smtp://127.0.0.1:1", "send-test-mail", "max@example.com")
    created = run_as(f"{MAX} {MAX}", "--db", database, *mail)
    assert "queued" in created.stdout, created.stderr
    make(folder)
    done = run_as(f"{MAX} {MAX}", "--db", database, "--port", 0)
    assert_one_clear_line(done, "--db (TRACKER_DB)", database, words)


@needs_root
def test_a_database_that_was_read_only_at_a_start_is_served_when_it_no_longer_is(folder):
    os.chown(folder, MAX, MAX)
    database = folder / "tickets.db"
    db.open_database(database).close()
    os.unlink(f"{database}-lock")
    database.chmod(0o444)
    line = ("--db", database, "--port", 0)
    assert_one_clear_line(run_as(f"{MAX} {MAX}", *line), "read-only")
    database.chmod(0o644)
    server = serve(as_user(f"{MAX} {MAX}", *line))
    create(server, "/projects", name="Website")


@needs_root
@pytest.mark.parametrize("first", ["send-test-mail", "backup"])
@pytest.mark.parametrize("exists", [True, False], ids=["after it", "before it"])
def test_what_root_does_before_the_service_starts_takes_nothing_from_it(
    folder, mail_server, first, exists
):
    os.chown(folder, MAX, MAX)
    database = folder / "tickets.db"
    line = as_user(f"{MAX} {MAX}", "--db", database, "--port", 0)
    if exists:
        end(serve(line))
        os.unlink(f"{database}-lock")
    if first == "backup":
        done = command("--db", database, "backup", folder / "backup.db")
        assert done.returncode == (0 if exists else 1), done.stderr
        assert database.exists() == exists
    else:
        done = command("--db", database, "--smtp", mail_server.url, first, "m@example.com")
        assert done.returncode == 0, done.stderr
    server = serve(line)
    create(server, "/projects", name="Website")
    assert ask(server, "GET", "/health")[0] == 200


@needs_root
@pytest.mark.parametrize("folder_mode", [0o770, 0o2770], ids=["plain", "setgid"])
def test_two_users_of_one_group_serve_one_database_in_turn(folder, folder_mode):
    os.chown(folder, MAX, TEAM)
    folder.chmod(folder_mode)
    database = folder / "tickets.db"
    db.open_database(database).close()
    os.unlink(f"{database}-lock")
    os.chown(database, MAX, TEAM)
    database.chmod(0o660)
    for number, user in enumerate((DAVE, MAX, DAVE)):
        server = serve(as_user(f"{user} {user} {TEAM}", "--db", database, "--port", 0))
        create(server, "/projects", name=f"Project {number}")
        end(server)


def test_locks_that_the_file_system_refuses_are_told_everywhere_and_leak_nothing(
    app, api, tmp_path, monkeypatch
):
    api.project()
    app.mailer.close()
    before = len(os.listdir("/proc/self/fd"))

    def refuse(fd, byte, how):
        def call():
            raise OSError(37, "No locks available")

        return int if how == fcntl.LOCK_UN else call

    with monkeypatch.context() as patch:
        patch.setattr(sqlite, "_set_lock", refuse)
        app.database.lock_file.close()
        for _ in range(50):
            assert "No locks" in api.problem("POST", "/projects", {"name": "Shop"})["detail"]
            assert "No locks" in api.problem("GET", "/health")["detail"]
        with pytest.raises(Unavailable, match="No locks"):
            tracker.create_app(tmp_path / "other.db")
        assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert api.get("/health").json["status"] == "ok"
    assert api.project("Shop")


# ---------------------------------------------------------------- health


def test_health_is_503_while_no_lock_is_to_be_had(app, api, database):
    api.project()
    os.unlink(f"{database}-lock")
    os.mkdir(f"{database}-lock")
    assert "locked" in api.problem("GET", "/health")["detail"]
    os.rmdir(f"{database}-lock")
    assert api.get("/health").json["status"] == "ok"


def test_health_waits_for_no_writer_and_takes_none_for_a_failure(app, api, database, monkeypatch):
    api.project()
    app.mailer.close()
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 1000)  # the test would never end
    with app.database.write():
        assert api.get("/health").json["status"] == "ok"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert api.get("/health").json["status"] == "ok"
        monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
        assert api.problem("POST", "/projects", {"name": "Shop"})["status"] == 503
        # Now a write has waited in vain.
        assert "locked by another" in api.problem("GET", "/health")["detail"]
        other.execute("ROLLBACK")
    assert api.get("/health").json["status"] == "ok"


FULL = """
import json, os, resource, sys
from webtest import TestApp
import tracker
app = tracker.create_app(sys.argv[1])
app.mailer.close()
api = TestApp(app)
api.get("/projects")
def health():
    return api.get("/health", status="*").status_code
told = [health()]
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
limit(1)
told.append(health())  # nobody has tried
told.append(api.post_json("/projects", {"name": "Website"}, status="*").status_code)
told += [health(), health()]
limit(resource.RLIM_INFINITY)
told += [health(), health()]
print(*told)
app.close()
"""


def test_health_is_503_after_a_write_failed_and_well_again_without_another_write(database):
    done = subprocess.run(
        [sys.executable, "-c", FULL, database], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["200", "200", "503", "503", "503", "200", "200"], done.stderr
    assert rows(database, "SELECT * FROM projects") == []


def test_health_after_a_failed_write_changes_nothing(app, api, database):
    api.project()
    app.mailer.close()
    app.database.failing = True
    before = rows(database, "SELECT * FROM projects"), rows(database, "PRAGMA user_version")
    assert api.get("/health").json["status"] == "ok"
    assert not app.database.failing
    assert (rows(database, "SELECT * FROM projects"), rows(database, "PRAGMA user_version")) == (
        before
    )
