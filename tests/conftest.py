"""What the tests share: an app on a file database, a clock to move, real servers on sockets.

The named cast is Max, Dave and Yaris; they work on the project Website.
"""

import asyncio
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from types import SimpleNamespace

import clusters
import pytest
import trustme
from aiosmtpd.controller import Controller
from scripted import ScriptedServer
from webtest import TestApp

import db
import tracker
from plumbing import smtp
from plumbing.engine import is_url

pytest_plugins = ["hostile"]  # its fixtures

ROOT = Path(tracker.__file__).parent
HERE = {k: v for k, v in os.environ.items() if not k.startswith("TRACKER_")}
# Not measured: coverage writes beside the project, where another user may not, and in a child
# it waits for ever for its lock, or SQLite's, if a thread of the parent held that at the fork.
UNCOVERED = {k: v for k, v in HERE.items() if not k.startswith("COVERAGE")}
TRACKER = [sys.executable, ROOT / "tracker.py"]


class Clock:
    """A clock that stands still until the test moves it."""

    def __init__(self):
        self.now = datetime(2026, 11, 22, 10, 32, 0, 123000, tzinfo=UTC)
        self.passed = 0.0

    def __call__(self):
        return self.now

    def monotonic(self):
        return self.passed

    def advance(self, **how_much):
        """Time passes."""
        self.now += timedelta(**how_much)
        self.passed += timedelta(**how_much).total_seconds()

    def set(self, **how_much):
        """Somebody sets the clock forward, or back; no time passes."""
        self.now += timedelta(**how_much)


def eventually(condition, timeout=60):
    """The first true value of condition(), which is asked again and again."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
    return value


def own_address():
    """An address of this machine that is not loopback. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        if not (address := probe.getsockname()[0]).startswith(("127.", "0.")):
            return address
    return pytest.skip("this machine has no address but loopback")


class Api(TestApp):
    """A WebTest client that also knows the domain; each method returns the JSON of the answer."""

    def user(self, name="Max", email=None):
        body = {"name": name, "email": email or f"{name.lower()}@example.com"}
        return self.post_json("/users", body, status=201).json

    def project(self, name="Website"):
        return self.post_json("/projects", {"name": name}, status=201).json

    def ticket(self, project_id=1, assignees=(), title="Fix the database", status="open", **more):
        body = {"title": title, "project_id": project_id, "status": status}
        body |= {"assignees": list(assignees)} | more
        return self.post_json("/tickets", body, status=201).json

    def change(self, ticket_id, **fields):
        return self.patch_json(f"/tickets/{ticket_id}", fields, status=200).json

    def emails(self, **filters):
        return self.get("/emails", filters).json

    def problem(self, method, path, body=None, **more):
        """The problem details of a request that must be refused."""
        if body is not None:
            more |= {"params": json.dumps(body), "content_type": "application/json"}
        answer = self.request(path, method=method, status="*", **_as_environ(more))
        assert answer.status_code >= 400, answer
        assert answer.content_type == "application/problem+json"
        assert answer.json["status"] == answer.status_code
        assert answer.json["title"]
        assert answer.json["detail"]
        return answer.json


def _as_environ(more):
    if (params := more.pop("params", None)) is not None:
        more["body"] = params if isinstance(params, bytes) else params.encode()
    return more


class OnAnyPort(Controller):
    """Port 0 means any, which aiosmtpd itself does not understand; stop() hangs up."""

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]
        super()._trigger_server()

    def stop(self):
        # aiosmtpd leaves open connections to the garbage collector, which complains at some
        # later test.
        asyncio.run_coroutine_threadsafe(self._hang_up(), self.loop).result(timeout=30)
        super().stop()

    async def _hang_up(self):
        # Not server.close(): asyncio would forget the connections that are being made just now.
        self.loop.remove_reader(self.server.sockets[0].fileno())
        for _ in range(10):  # rounds of the loop
            for transport in list(self.loop._transports.values()):
                transport.abort()
            await asyncio.sleep(0)


class MailServer:
    """A real SMTP server. `replies` maps "MAIL", an address or "DATA" to a refusal."""

    def __init__(self, port=0, host="127.0.0.1", **settings):
        self.messages = []  # (recipient, parsed message)
        self.replies = {}
        self.sessions = 0
        settings |= {"hostname": host, "port": port, "ready_timeout": 30}
        self._controller = OnAnyPort(self, **settings)
        self._controller.start()
        self.port = self._controller.port
        self.url = f"smtp://{host}:{self.port}"

    async def handle_EHLO(self, server, session, envelope, hostname, responses):  # noqa: N802
        self.sessions += 1
        session.host_name = hostname
        return responses

    async def handle_MAIL(self, server, session, envelope, address, options):  # noqa: N802
        if "MAIL" in self.replies:
            return self.replies["MAIL"]
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        if address in self.replies:
            return self.replies[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        if "DATA" in self.replies:
            return self.replies["DATA"]
        for recipient in envelope.rcpt_tos:
            self.messages.append((recipient, message_from_bytes(envelope.content, policy=default)))
        return "250 OK"

    def to(self, address):
        return [message for recipient, message in self.messages if recipient == address]

    def stop(self):
        self._controller.stop()


def command(*arguments, **settings):
    """The outcome of a command of the tracker that ends by itself."""
    settings = {"timeout": 60, "env": HERE} | settings
    line = [*TRACKER, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, **settings)


class Server:
    """The tracker as a process of its own, as a user starts it. Port 0 means any.

    `prelude` is a line of Python that is run in it first; `line` is another command line, of all.
    """

    def __init__(self, database, *options, port=0, prelude="", line=None, **settings):
        self.database = database if is_url(database) else Path(database)
        start = TRACKER
        if prelude:
            where = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
            prelude = f"{where}{prelude}; import tracker; sys.exit(tracker.main())"
            start = [sys.executable, "-c", prelude]
        settings = {"stderr": subprocess.STDOUT, "text": True, "env": HERE, "cwd": ROOT} | settings
        self.process = subprocess.Popen(
            list(map(str, line or [*start, "--db", database, "--port", port, *options])),
            stdout=subprocess.PIPE,
            **settings,
        )
        self.lines = []
        while not self.lines or "ready on" not in self.lines[-1]:
            line = self.process.stdout.readline()
            if not line:
                self.process.wait()
                self.process.stdout.close()
                raise RuntimeError("".join(self.lines) or "it ended without a word")
            self.lines.append(line)
        self.url = re.search(r"http://[^, ]+", self.lines[-1])[0]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self):
        self.process.kill()
        self.process.wait()

    def end(self):
        """Have nothing left of it, whatever became of it."""
        self.kill()
        self.process.stdout.close()

    def terminate(self, signum=signal.SIGTERM):
        """Ask it to end, for which a busy machine has time; returns the exit status."""
        self.process.send_signal(signum)
        rest, _ = self.process.communicate(timeout=30)
        self.lines += rest.splitlines(keepends=True)
        return self.process.returncode


@pytest.fixture
def clock():
    return Clock()


def pytest_generate_tests(metafunc):
    """Tests that are marked so run on both engines, those that use no database once."""
    if metafunc.definition.get_closest_marker("engines") and "database" in metafunc.fixturenames:
        metafunc.parametrize("database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(scope="session")
def postgresql():
    """A server with a database `ready` that is set up, to be copied by each test."""
    if not clusters.find_programs():
        pytest.skip(clusters.HOW_TO_GET_IT)
    cluster = clusters.Cluster()
    cluster.execute("CREATE DATABASE ready OWNER tracker TEMPLATE template0")
    db.open_database(cluster.url("ready")).close()
    yield cluster
    cluster.remove()


@pytest.fixture
def database(request, tmp_path):
    """Where the data of the test is: a file that is not there yet, or a URL."""
    if getattr(request, "param", "sqlite") == "sqlite":
        yield tmp_path / "tickets.db"
        return
    cluster = request.getfixturevalue("postgresql")
    url = cluster.create(template="ready")
    yield url
    cluster.drop(url)


@pytest.fixture
def printed():
    """What is printed where no mail server is configured."""
    return io.StringIO()


@pytest.fixture
def make_app(database, clock, printed):
    """Makes apps on the one database of the test; all are closed at its end."""
    apps = []

    def make(**settings):
        settings = {"database": database, "smtp": "", "clock": clock, "output": printed} | settings
        apps.append(tracker.create_app(**settings))
        if settings["clock"] is clock:
            apps[-1].mailer.monotonic = clock.monotonic
        return apps[-1]

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def app(make_app):
    return make_app()


@pytest.fixture
def api(app):
    return Api(app)


@pytest.fixture
def mail_server():
    server = MailServer()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def ca():
    """Issues certificates, which nobody trusts unless told."""
    return trustme.CA()


@pytest.fixture
def scripted(monkeypatch):
    """Starts scripted servers: scripted(script)."""
    servers = []

    def monotonic():
        return time.monotonic() + sum(server.passed for server in servers)

    def start(script, **settings):
        monkeypatch.setattr(smtp, "time", SimpleNamespace(monotonic=monotonic))
        servers.append(ScriptedServer(script, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def start(database):
    """Starts the tracker as a process: start("--smtp", url); killed at the end of the test."""
    servers = []

    def run(*options, **settings):
        settings = {"database": database} | settings
        servers.append(Server(settings.pop("database"), *options, **settings))
        return servers[-1]

    yield run
    for server in servers:
        server.end()


@pytest.fixture(scope="module")
def start_once(tmp_path_factory):
    """A server for the tests that change nothing."""
    server = Server(tmp_path_factory.mktemp("once") / "tickets.db", "--quiet")
    yield server
    server.end()


# ---------------------------------------------------------------- mail

CAST = ("Max", "Dave", "Yaris")
MAX, DAVE, YARIS = (f"{name.lower()}@example.com" for name in CAST)
SENDER = "tracker@example.com"
NOTHING_WAITS = {"queued": 0, "failed": 0, "oldest_queued_at": None, "error": None}


@pytest.fixture
def make_api(make_app):
    """Makes clients of apps on the one database: make_api(URL of the mail server)."""

    def make(smtp, timeout=10):
        app = make_app(smtp=smtp, sender=SENDER)
        api = Api(app)
        if smtp:
            be_patient(api, timeout)
        if not api.get("/users").json:
            for name in CAST:
                api.user(name)
            api.project("Website")
        return api

    return make


def be_patient(api, seconds):
    """Have the mail server waited for so long, each time."""
    server = api.app.mailer.server
    server.connect_seconds = server.answer_seconds = server.data_seconds = seconds


def settled(api):
    """Wait until no mail is queued; all of it, newest first."""
    eventually(lambda: not api.emails(state="queued"))
    return api.emails()


def attempted(api, times=1):
    """Wait until all mail that is queued was tried that often; all of it, oldest first."""

    def tried():
        emails = api.emails(state="queued")
        return emails and all(email["attempts"] == times for email in emails) and emails

    return eventually(tried)[::-1]


def wait(api, clock, **how_long):
    clock.advance(**how_long)
    api.app.mailer.worker.wake()


def health(api):
    return api.get("/health").json["mail"]


def paused(api):
    """Wait until the queue is paused; why, as /health tells."""
    return eventually(lambda: health(api)["error"])


def seconds_to_next_attempt(email, clock):
    return (datetime.fromisoformat(email["next_attempt_at"]) - clock()).total_seconds()
