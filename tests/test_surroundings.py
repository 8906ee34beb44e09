"""What surrounds the tracker may be hostile, too: files, terminals, signals and settings."""

import fcntl
import hashlib
import os
import random
import re
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import HERE, ROOT, TRACKER, UNCOVERED, Api, command, eventually
from test_process import assert_one_clear_line, make_fifo, make_folder, rows
from wire import ask, create, fill, free_port

import db
import tracker
from plumbing import Unavailable, lockfile, sqlite

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
        as_user(ids, *arguments),
        cwd=ROOT,
        env=UNCOVERED,
        capture_output=True,
        text=True,
        timeout=60,
    )


def end(server):
    """Ask it to end; the lines that it said since it was ready."""
    ready = len(server.lines)
    assert server.terminate() == 0, server.lines
    return server.lines[ready:]


@pytest.fixture
def folder():
    """A folder that other users can reach, which a folder of pytest is not.

    `start` stands behind it: or a tracker would make its files anew while they are removed.
    """
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


def test_it_works_where_only_the_folder_of_its_data_can_be_written(start, tmp_path):
    (tmp_path / "data").mkdir()
    prefix = [*unshared("-m"), "sh", "-c", READ_ONLY_ROOT, "sh", tmp_path]
    database = tmp_path / "data" / "tickets.db"
    env = UNCOVERED | {"ROOT_OF_TEST": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [*prefix, *TRACKER, "--db", database, "--port", 0, "--quiet"]
    server = start(line=line, env=env)
    fill(server)
    for _ in range(200):
        ticket = {"title": "Long", "project_id": 1, "status": "open", "description": "ö" * 10_000}
        create(server, "/tickets", **ticket)
    for _ in range(2):  # 4 MB, for which waitress would want a temporary file
        assert len(ask(server, "GET", "/tickets?limit=200")[2]) == 200
    assert ask(server, "GET", "/tickets?text=ööö&limit=1".replace("ö", "%C3%B6"))[0] == 200
    assert ask(server, "GET", "/health")[0] == 200
    assert end(server) == []


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
def test_a_database_that_was_read_only_at_a_start_is_served_when_it_no_longer_is(folder, start):
    os.chown(folder, MAX, MAX)
    database = folder / "tickets.db"
    db.open_database(database).close()
    os.unlink(f"{database}-lock")
    database.chmod(0o444)
    line = ("--db", database, "--port", 0)
    assert_one_clear_line(run_as(f"{MAX} {MAX}", *line), "read-only")
    database.chmod(0o644)
    server = start(line=as_user(f"{MAX} {MAX}", *line), env=UNCOVERED)
    create(server, "/projects", name="Website")


@needs_root
@pytest.mark.parametrize("first", ["send-test-mail", "backup"])
@pytest.mark.parametrize("exists", [True, False], ids=["after it", "before it"])
def test_what_root_does_before_the_service_starts_takes_nothing_from_it(
    folder, start, mail_server, first, exists
):
    os.chown(folder, MAX, MAX)
    database = folder / "tickets.db"
    line = as_user(f"{MAX} {MAX}", "--db", database, "--port", 0)
    if exists:
        end(start(line=line, env=UNCOVERED))
        os.unlink(f"{database}-lock")
    if first == "backup":
        done = command("--db", database, "backup", folder / "backup.db")
        assert done.returncode == (0 if exists else 1), done.stderr
        assert database.exists() == exists
    else:
        done = command("--db", database, "--smtp", mail_server.url, first, "m@example.com")
        assert done.returncode == 0, done.stderr
    server = start(line=line, env=UNCOVERED)
    create(server, "/projects", name="Website")
    assert ask(server, "GET", "/health")[0] == 200


@needs_root
def test_who_may_only_read_backs_up_what_is_served_and_takes_nothing_from_the_service(
    folder, start
):
    os.chown(folder, MAX, TEAM)
    folder.chmod(0o770)
    database, dave = folder / "tickets.db", f"{DAVE} {DAVE} {TEAM}"
    line = as_user(f"{MAX} {MAX}", "--db", database, "--port", 0)
    server = start(line=line, env=UNCOVERED)
    create(server, "/projects", name="Website")
    backup = ("--db", database, "backup", folder / "backup.db")
    done = run_as(dave, *backup)
    assert done.returncode == 0, done.stderr
    assert rows(folder / "backup.db", "SELECT name FROM projects") == [("Website",)]
    end(server)
    for refused in (backup, ("copy", database, folder / "new.db")):
        assert_one_clear_line(run_as(dave, *refused), database, "read-only for this user")
    assert sorted(os.listdir(folder)) == ["backup.db", "tickets.db", "tickets.db-lock"]
    create(start(line=line, env=UNCOVERED), "/projects", name="Intranet")


@needs_root
@pytest.mark.parametrize("folder_mode", [0o770, 0o2770], ids=["plain", "setgid"])
def test_two_users_of_one_group_serve_one_database_in_turn(folder, start, folder_mode):
    os.chown(folder, MAX, TEAM)
    folder.chmod(folder_mode)
    database = folder / "tickets.db"
    db.open_database(database).close()
    os.unlink(f"{database}-lock")
    os.chown(database, MAX, TEAM)
    database.chmod(0o660)
    for number, user in enumerate((DAVE, MAX, DAVE)):
        line = as_user(f"{user} {user} {TEAM}", "--db", database, "--port", 0)
        server = start(line=line, env=UNCOVERED)
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
        patch.setattr(lockfile, "set_lock", refuse)
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


# ---------------------------------------------------------------- backup


def nothing(done, pages):
    """No progress is shown."""


def digest(*paths):
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def drafts(folder):
    return [name for name in os.listdir(folder) if "partial" in name]


@pytest.fixture
def old_backup(tmp_path):
    """An older good backup, which must survive."""
    path = tmp_path / "backup.db"
    path.write_text("an older one")
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_a_backup_of_an_older_schema_changes_nothing(tmp_path, version):
    database, target = tmp_path / "old.db", tmp_path / "backup.db"
    shutil.copy(Path(__file__).with_name(f"schema{version}.sqlite"), database)
    before = digest(database)
    assert command("--db", database, "backup", target).returncode == 0
    assert digest(database) == before
    assert sorted(os.listdir(tmp_path)) == ["backup.db", "old.db"]
    assert rows(target, "PRAGMA user_version") == [(version,)]
    assert rows(target, "SELECT * FROM tickets") == rows(database, "SELECT * FROM tickets")
    db.open_database(target).close()  # and can be served


def test_a_backup_of_a_database_that_is_locked_for_writing_is_made(api, database, tmp_path):
    api.project()
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = command("--db", database, "backup", tmp_path / "backup.db")
    assert done.returncode == 0, done.stderr


def test_a_backup_of_a_backup_is_made_and_of_an_empty_file_is_not(api, database, tmp_path):
    api.project()
    first, second, empty = (tmp_path / name for name in ("first.db", "second.db", "empty.db"))
    assert command("--db", database, "backup", first).returncode == 0
    assert command("--db", first, "backup", second).returncode == 0
    assert rows(second, "SELECT name FROM projects") == [("Website",)]
    empty.touch()
    assert_one_clear_line(command("--db", empty, "backup", second), empty, "empty")
    assert rows(second, "SELECT name FROM projects") == [("Website",)]


def make_device(path):
    if os.geteuid():
        pytest.skip("only root can make a device")
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))  # of which nothing comes back


def make_loop(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [make_fifo, make_device, make_folder, make_loop])
@pytest.mark.parametrize("linked", [False, True], ids=["", "through a link"])
def test_a_backup_to_what_is_no_regular_file_is_refused_and_leaves_it(
    api, database, tmp_path, make, linked
):
    api.project()
    target = link = tmp_path / "target"
    make(target)
    if linked:
        link = tmp_path / "link"
        link.symlink_to(target)
    before = os.lstat(target)
    assert_one_clear_line(command("--db", database, "backup", link), link.name)
    after = os.lstat(target)
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert drafts(tmp_path) == []


def test_a_backup_to_the_name_of_a_folder_that_is_not_there_is_refused(api, database, tmp_path):
    api.project()
    done = command("--db", database, "backup", f"{tmp_path}/backups/")
    assert_one_clear_line(done, f"{tmp_path}/backups/ is not a regular file")
    assert not (tmp_path / "backups").exists()


BACKUPS = """
import os, random, sys, time
import db
from plumbing import lockfile
_, seed, database, target = sys.argv
set_lock, choose = lockfile.set_lock, random.Random(seed)
def set_it_slowly(*arguments):
    time.sleep(choose.choice([0, 0.001, 0.003]))
    return set_lock(*arguments)
lockfile.set_lock = set_it_slowly
for _ in range(30):
    db.open_database(database, only_read=True).backup(target, lambda done, pages: None)
    print(oct(os.stat(target).st_mode & 0o777))
"""


def test_backups_to_one_file_at_once_are_all_whole_and_as_private_as_the_database(
    api, database, tmp_path
):
    api.project()
    database.chmod(0o600)
    target = tmp_path / "backup.db"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BACKUPS, str(seed), database, target],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(3)
    ]
    assert [backup.communicate()[0].split() for backup in running] == [["0o600"] * 30] * 3
    assert rows(target, "SELECT name FROM projects") == [("Website",)]
    assert drafts(tmp_path) == []


def test_the_draft_of_a_killed_backup_goes_with_the_next_and_that_of_a_running_one_stays(
    app, api, tmp_path
):
    api.project()
    target = tmp_path / "backup.db"
    others = [
        tmp_path / name
        for name in ("backup.db.mine.partial", "other.db.abcdefgh.partial", "backup.db.partial")
    ]
    killed = [tmp_path / f"backup.db.abcdefg_.partial{rest}" for rest in ("", "-journal", "-wal")]
    for path in [*others, *killed]:
        path.write_text("part")
    seen = []

    def look(done, pages):
        if not seen:
            seen.extend(drafts(tmp_path))
            app.database.backup(str(target), nothing)

    app.database.backup(str(target), look)
    assert len(seen) == len(others) + 1
    assert sorted(drafts(tmp_path)) == sorted(path.name for path in others)
    assert rows(target, "SELECT name FROM projects") == [("Website",)]


def test_a_backup_that_is_killed_at_any_moment_leaves_the_older_one(api, database, tmp_path):
    api.project()
    target = tmp_path / "backup.db"
    assert command("--db", database, "backup", target).returncode == 0
    choose = random.Random(9)
    for _ in range(12):
        backup = subprocess.Popen([*TRACKER, "--db", database, "backup", target])
        time.sleep(choose.uniform(0.1, 0.4))
        backup.kill()
        backup.wait()
        assert rows(target, "SELECT name FROM projects") == [("Website",)]
    assert command("--db", database, "backup", target).returncode == 0
    assert drafts(tmp_path) == []


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("when", ["as the draft is made", "as it is filled"])
def test_ctrl_c_in_a_backup_leaves_the_older_one_and_no_draft(
    app, api, tmp_path, old_backup, when, monkeypatch
):
    api.project()
    make = os.open

    def make_and_interrupt(path, *how, **more):
        fd = make(path, *how, **more)
        if str(path).endswith(sqlite.DRAFT) and when == "as the draft is made":
            os.close(fd)
            raise KeyboardInterrupt
        return fd

    monkeypatch.setattr(os, "open", make_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        app.database.backup(str(old_backup), interrupt)
    assert old_backup.read_text() == "an older one"
    assert drafts(tmp_path) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_a_command_is_one_line(database, tmp_path, old_backup, signum):
    db.open_database(database).close()
    with closing(sqlite3.connect(database, isolation_level=None)) as conn:
        conn.execute("CREATE TABLE ballast AS SELECT zeroblob(50000000) AS zeros")
    for _ in range(20):
        backup = subprocess.Popen(
            [*TRACKER, "--db", database, "backup", old_backup], stderr=subprocess.PIPE, text=True
        )
        eventually(lambda ended=backup.poll: drafts(tmp_path) or ended() is not None)
        backup.send_signal(signum)
        _, said = backup.communicate(timeout=30)
        assert drafts(tmp_path) == []
        if backup.returncode:
            assert (backup.returncode, said) == (128 + signum, "tracker: interrupted\n")
            return
    pytest.fail("it was never interrupted")


INTERRUPTED_AT_THE_END = """
import atexit, os, sys, tracker
atexit.register(os.kill, os.getpid(), int(sys.argv[1]))
sys.exit(tracker.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_when_a_command_has_done_its_work_changes_nothing(api, database, tmp_path, signum):
    api.project()
    arguments = [str(int(signum)), "--db", database, "backup", tmp_path / "backup.db"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_THE_END, *arguments],
        cwd=ROOT,
        env=HERE,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Backed up ")


ON_A_SMALL_DISK = """
set -e
mount -t tmpfs -o "size=$3" none "$1"
cp "$2" "$1/backup.db"
shift 3
"$@" || code=$?
ls "$OLDPWD" > /dev/null
sha256sum < "$DISK/backup.db"
ls "$DISK"
exit $code
"""


@pytest.mark.parametrize(
    ("size", "zeros"),
    [("4k", 0), ("200k", 200_000), ("1m", 10_000_000)],
    ids=["from the start", "at the end", "while more is written than SQLite holds in memory"],
)
def test_a_backup_to_a_full_disk_leaves_the_older_one_and_blames_no_database(
    api, database, tmp_path, old_backup, size, zeros
):
    api.project()
    with closing(sqlite3.connect(database, isolation_level=None)) as conn:
        conn.execute(f"CREATE TABLE ballast AS SELECT zeroblob({zeros}) AS zeros")
    disk = tmp_path / "disk"
    disk.mkdir()
    prefix = [*unshared("-m"), "sh", "-c", ON_A_SMALL_DISK, "sh", disk, old_backup, size]
    done = subprocess.run(
        [*prefix, *TRACKER, "--db", database, "backup", disk / "backup.db"],
        capture_output=True,
        text=True,
        env=HERE | {"DISK": str(disk), "OLDPWD": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stdout.split() == [*digest(old_backup), "-", "backup.db"]
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"{disk}/backup.db cannot be written" in done.stderr
    assert "database" not in done.stderr.replace("database or disk is full", "")


def test_a_backup_that_may_not_grow_leaves_the_older_one(app, api, tmp_path, old_backup):
    api.project()
    with resource_limit(resource.RLIMIT_FSIZE, 20_000), pytest.raises(OSError, match="written"):
        app.database.backup(str(old_backup), nothing)
    assert old_backup.read_text() == "an older one"
    assert drafts(tmp_path) == []


class resource_limit:  # noqa: N801
    """A limit of this process for a while."""

    def __init__(self, what, most):
        self.what, self.most = what, most

    def __enter__(self):
        self.before = resource.getrlimit(self.what)
        resource.setrlimit(self.what, (self.most, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(self.what, self.before)


def test_a_backup_of_a_damaged_database_does_not_replace_a_good_one(
    api, app, database, tmp_path, old_backup
):
    api.project()
    for n in range(40):
        api.ticket(description="x" * 10_000, title=f"Ticket {n}")
    app.close()
    with open(database, "r+b") as file:
        file.seek(200_000)
        file.write(os.urandom(50_000))
    done = command("--db", database, "backup", old_backup)
    assert_one_clear_line(done, old_backup, "damaged")
    assert old_backup.read_text() == "an older one"
    assert drafts(tmp_path) == []


# ---------------------------------------------------------------- terminals and signals

STARTED = []


@pytest.fixture(autouse=True)
def nothing_goes_on():
    yield
    while STARTED:
        running = STARTED.pop()
        running.kill()
        running.communicate()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_terminal_that_is_closed_stops_nothing(database, tmp_path, closed):
    port = free_port()
    line = [*TRACKER, "--db", database, "--port", port]
    with (tmp_path / "out").open("w") as out:
        running = subprocess.Popen(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *map(str, line)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=HERE,
        )
    STARTED.append(running)
    running.port = port
    eventually(lambda: answers(running))
    fill(running)
    ticket = {"title": "Fix the database", "project_id": 1, "status": "open", "assignees": [1]}
    create(running, "/tickets", **ticket)
    eventually(lambda: ask(running, "GET", "/health")[2]["mail"]["queued"] == 0)
    running.terminate()
    assert running.wait(30) == 0
    assert "Traceback" not in (tmp_path / "out").read_text()
    assert rows(database, "PRAGMA integrity_check") == [("ok",)]


def answers(server):
    try:
        return ask(server, "GET", "/health")[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_log_that_nobody_reads_holds_up_nobody(start, signum):
    server = start(stderr=subprocess.PIPE)
    for number in range(300):  # 300 KB of lines, and the pipe takes 64
        assert ask(server, "GET", f"/{number:01000d}")[0] == 404
        assert ask(server, "POST", f"/{number:01000d}", {})[0] == 404
    create(server, "/projects", name="Website")
    server.process.send_signal(signum)
    assert server.process.wait(30) == 0  # and nobody has read a line yet
    server.process.stderr.close()


def test_mail_that_is_printed_where_nobody_reads_holds_up_nobody(start, database):
    server = start("--quiet")
    fill(server)
    for _ in range(20):
        ticket = {"title": "Fix it", "project_id": 1, "status": "open", "assignees": [1, 2]}
        create(server, "/tickets", description="x" * 10_000, **ticket)
    assert ask(server, "GET", "/health")[2]["mail"]["queued"] > 0
    server.process.terminate()
    assert server.process.wait(30) == 0
    assert "Fatal" not in server.process.stdout.read()
    assert rows(database, "SELECT count(*) FROM tickets") == [(20,)]


def test_a_log_whose_reader_has_gone_stops_nothing(start):
    server = start()
    server.process.stdout.close()
    fill(server)
    for number in range(50):
        assert ask(server, "GET", f"/{number}")[0] == 404
    server.process.terminate()
    assert server.process.wait(30) == 0


@pytest.mark.parametrize("what", [["--help"], ["backup", "b.db"]])
def test_a_command_whose_output_nobody_reads_does_its_work(app, api, database, tmp_path, what):
    api.project()
    done = subprocess.run(
        ["sh", "-c", '("$@"; echo $? >&2) | true', "sh", *TRACKER, "--db", database, *what],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=HERE,
    )
    assert done.stderr == "0\n"


def test_all_that_is_logged_before_the_end_is_written(start):
    server = start()
    for number in range(100):
        ask(server, "GET", f"/{number}")
    assert len(end(server)) == 100


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"Current assignees: \u017b\xf3\u0142\u0107, \u042e"),
        (
            {"PYTHONIOENCODING": "ascii:strict"},
            r"Current assignees: \u017b\xf3\u0142\u0107, \u042e",
        ),
        ({"PYTHONIOENCODING": "latin-1"}, r"Current assignees: \u017bó\u0142\u0107, \u042e"),
        ({"LANG": "C", "LC_ALL": "C"}, ""),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"\u017b"),
    ],
    ids=str,
)
def test_a_terminal_of_any_encoding_shows_mail_and_names(start, tmp_path, env, shown):
    database = tmp_path / "żółć.db"
    plain = {k: v for k, v in HERE.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    encoding = env.get("PYTHONIOENCODING", "utf-8").partition(":")[0]
    server = start(database=database, env=plain | env, encoding=encoding)
    for name in ("Żółć", "Юрий"):
        create(server, "/users", name=name, email=f"u{ord(name[0])}@example.com")
    create(server, "/projects", name="Сайт")
    create(server, "/tickets", title="Исправить", project_id=1, status="open", assignees=[1, 2])
    eventually(lambda: len(ask(server, "GET", "/emails?state=sent")[2]) == 2)
    said = "".join(end(server))
    assert shown in said
    assert "Traceback" not in said


SLOW_UPGRADE = """
import os, sys, time, tracker
from pathlib import Path
def dawdle(text):
    Path(os.environ["BEGUN"]).touch()
    time.sleep(0.2)
    return text.lower()
tracker.db.text.fold = dawdle
sys.exit(tracker.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("first", [False, True], ids=["", "as process 1"])
def test_it_can_be_stopped_while_it_brings_a_database_forward(tmp_path, signum, first):
    database, begun = tmp_path / "old.db", tmp_path / "begun"
    shutil.copy(Path(__file__).with_name("schema1.sqlite"), database)
    prefix = unshared("-p", "-f", "--mount-proc") if first else []
    line = [sys.executable, "-c", SLOW_UPGRADE, "--db", str(database), "--port", "0"]
    running = subprocess.Popen(
        [*prefix, *line],
        cwd=ROOT,
        env=HERE | {"BEGUN": str(begun)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(running)
    eventually(begun.exists)
    os.kill(child_of(running) if first else running.pid, signum)
    out, err = running.communicate(timeout=30)
    assert (running.returncode, out, err) == (0, "", "tracker: interrupted\n")
    assert rows(database, "PRAGMA user_version") == [(1,)]


def child_of(running):
    path = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    return int(eventually(path.read_text).split()[0])


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_as_process_1_too(start, database, signum):
    prefix = unshared("-p", "-f", "--mount-proc")
    server = start(line=[*prefix, *TRACKER, "--db", database, "--port", 0])
    create(server, "/projects", name="Website")
    os.kill(child_of(server.process), signum)
    said, _ = server.process.communicate(timeout=30)
    assert server.process.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_ctrl_c_at_any_moment_of_the_start_shows_no_traceback(database, signum):
    for number in range(12):
        running = subprocess.Popen(
            [*TRACKER, "--db", database, "--port", "0"],
            env=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        STARTED.append(running)
        maps = Path(f"/proc/{running.pid}/maps")
        # From here on it is our code that runs, not that which begins Python.
        eventually(lambda maps=maps: "_ssl" in maps.read_text())
        time.sleep(0.02 * number)
        running.send_signal(signum)
        said, _ = running.communicate(timeout=30)
        assert "Traceback" not in said
        assert running.returncode in (0, 128 + signum), said


# ---------------------------------------------------------------- settings

BAD = {
    "--port": ("TRACKER_PORT", "tcp://10.96.0.1:8080", "is not a port"),
    "--host": ("TRACKER_HOST", "tickets..example", "cannot be resolved"),
    "--smtp": ("TRACKER_SMTP", "mail.example.com", "must look like smtp://"),
    "--sender": ("TRACKER_SENDER", "nobody", "is not an email address"),
    "--url": ("TRACKER_URL", "tickets.example.com", "is not an absolute http or https URL"),
    "--user-header": ("TRACKER_USER_HEADER", "X User", "is not the name of a header"),
    "--allow-host": ("TRACKER_ALLOWED_HOSTS", "tickets.example.com:8080", "write tickets.example"),
}


@pytest.mark.parametrize("flag", BAD)
@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_bad_value_names_the_option_and_the_variable(database, flag, way):
    variable, value, words = BAD[flag]
    given, env = ([flag, value], HERE) if way == "option" else ([], HERE | {variable: value})
    done = command("--db", database, *given, env=env)
    assert_one_clear_line(done, f"{flag} ({variable}): ", words)
    assert not database.exists()


def test_a_bad_value_concerns_only_the_commands_that_use_it(start, database, tmp_path, mail_server):
    start()
    bad = {variable: value for variable, value, _ in BAD.values()}
    done = command("backup", tmp_path / "b.db", env=HERE | bad | {"TRACKER_DB": str(database)})
    assert (done.returncode, done.stderr) == (0, "")
    del bad["TRACKER_SMTP"], bad["TRACKER_SENDER"]
    line = ("send-test-mail", "max@example.com", "--db", database, "--smtp", mail_server.url)
    done = command(*line, env=HERE | bad)
    assert (done.returncode, done.stderr) == (0, "")
    done = command(*line, "--sender", "nobody", env=HERE | bad)
    assert_one_clear_line(done, "--sender (TRACKER_SENDER)")


def test_a_port_that_is_taken_and_an_address_of_another_machine_name_both_options(database):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = command("--db", database, "--port", port)
        assert_one_clear_line(done, "--host (TRACKER_HOST)", "--port (TRACKER_PORT)", "in use")
    done = command("--db", database, "--port", 0, "--host", "192.0.2.1")
    assert_one_clear_line(done, "--host (TRACKER_HOST)", "192.0.2.1")


def test_blank_variables_count_as_not_set_and_blanks_around_a_value_do_not_count(start, tmp_path):
    blank = {variable: " " for variable, _, _ in BAD.values()} | {"TRACKER_DB": ""}
    env = HERE | blank | {"TRACKER_PORT": " 0 ", "TRACKER_SENDER": " Max <max@example.com>\r"}
    server = start(line=TRACKER, env=env, cwd=tmp_path)
    assert ask(server, "GET", "/health")[0] == 200
    assert (tmp_path / "tickets.db").exists()
    assert ask(server, "GET", "/health", Host="evil.example")[0] == 403


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("tickets.example.com:8080", "write tickets.example.com"),
        ("https://tickets.example.com/", "write tickets.example.com"),
        ("https://tickets.example.com:8443", "write tickets.example.com"),
        ("tickets.example.com/tracker", "write tickets.example.com"),
        ("me@tickets.example.com", "write tickets.example.com"),
        ("[::1]:8080", "write ::1"),
        ("*.example.com", "is not the name of a host"),
        ("tickets.müller.example", "is not the name of a host"),
        ("tickets_example com:80", "write com"),
        ("http://", "is not the name of a host"),
        ("http://[", "is not the name of a host"),
        (":8080", "is not the name of a host"),
    ],
)
def test_a_host_that_would_never_match_is_explained(make_app, value, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        make_app(allowed_hosts=[value])
    assert "allowed_hosts, --allow-host (TRACKER_ALLOWED_HOSTS): " in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ("Tickets.example.com", "tickets.example.com:8080"),
        ("other.example, tickets.example.com", "tickets.example.com"),
        (["a.example b.example"], "b.example"),
        (["[::2]"], "[::2]:80"),
        (["2001:DB8::1"], "[2001:db8::1]"),
        (["intranet"], "intranet"),
        (["my_host.example"], "my_host.example"),
        ("*", "anything.example"),
    ],
)
def test_hosts_are_served_however_they_are_listed(make_app, given, host):
    Api(make_app(allowed_hosts=given)).get("/health", headers={"Host": host}, status=200)


@pytest.mark.parametrize(
    ("parameter", "value", "names"),
    [
        ("smtp", "mail.example.com", "smtp, --smtp (TRACKER_SMTP): "),
        ("sender", "nobody", "sender, --sender (TRACKER_SENDER): "),
        ("url", "tickets", "url, --url (TRACKER_URL): "),
        ("user_header", "X User", "user_header, --user-header (TRACKER_USER_HEADER): "),
        ("allowed_hosts", ["a:1"], "allowed_hosts, --allow-host (TRACKER_ALLOWED_HOSTS): "),
    ],
)
def test_a_host_application_is_told_the_parameter(make_app, database, parameter, value, names):
    with pytest.raises(ValueError, match=re.escape(names)):
        make_app(**{parameter: value})
    assert not database.exists()


def test_a_refused_host_is_told_what_to_set(api):
    detail = api.problem("GET", "/", headers={"Host": "tickets.example.com:8080"})["detail"]
    assert "--allow-host tickets.example.com " in detail
    assert "TRACKER_ALLOWED_HOSTS=tickets.example.com" in detail
    odd = api.problem("GET", "/", headers={"Host": "a b"})["detail"]
    assert "not the name of a host" in odd
    assert "--allow-host" not in odd


def test_a_write_through_a_proxy_that_forgot_host_is_told_so(make_app):
    api = Api(make_app(allowed_hosts=["tickets.example.com"]))
    headers = {
        "Host": "127.0.0.1:8080",
        "Origin": "https://tickets.example.com",
        "X-Forwarded-Host": "tickets.example.com",
        "Sec-Fetch-Site": "same-origin",
    }
    detail = api.problem("POST", "/projects", {"name": "Website"}, headers=headers)["detail"]
    for word in ("tickets.example.com", "127.0.0.1:8080", "proxy", "Host", "X-Forwarded-Host"):
        assert word in detail
    headers["Host"] = "tickets.example.com"
    api.post_json("/projects", {"name": "Website"}, headers=headers, status=201)


def test_the_help_shows_variables_and_defaults_and_the_version_is_told():
    for line in (["--help"], ["backup", "--help"]):
        said = " ".join(command(*line).stdout.split())
        for option in tracker.OPTIONS:
            assert option.flag in said
            assert option.variable in said
            assert option.default in said
        assert "backup" in said
    assert "send-test-mail" in command("--help").stdout
    assert command("--version").stdout == f"tracker {tracker.__version__}\n"
