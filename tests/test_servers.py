"""The tracker under the servers that people run it with, and behind a real nginx.

Each server is a process on a port of its own choice. What it says goes to a file, in which no
traceback and no defect may be.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse

import pytest
from conftest import ROOT, eventually

PYTHON = sys.executable
GUNICORN = [PYTHON, "-m", "gunicorn", "--bind=127.0.0.1:0"]
UWSGI = [
    shutil.which("uwsgi", path=os.path.dirname(PYTHON)) or "uwsgi",
    "--die-on-term",
    "--master",
]
UWSGI += ["--module=wsgi:app"]
HTTP_SOCKET = "--http-socket=127.0.0.1:0"

# How each is started in a folder where `wsgi.app` is the tracker.
SERVERS = {
    "our own": [PYTHON, ROOT / "tracker.py", "--quiet", "--port=0"],
    "waitress": [PYTHON, "-m", "waitress", "--listen=127.0.0.1:0", "wsgi:app"],
    "gunicorn, sync": [*GUNICORN, "wsgi:app"],
    "gunicorn, gthread": [*GUNICORN, "--worker-class=gthread", "--threads=4", "wsgi:app"],
    "gunicorn, gevent": [*GUNICORN, "--worker-class=gevent", "wsgi:app"],
    "uWSGI": [*UWSGI, HTTP_SOCKET, "--processes=2"],
    "cheroot": [PYTHON, "-c", """
from cheroot.wsgi import Server
from wsgi import app
server = Server(("127.0.0.1", 0), app)
server.max_request_body_size = 500_000  # else it makes room for what Content-Length says
server.prepare()
print("127.0.0.1:%s" % server.bind_addr[1], flush=True)
server.serve()
"""],
    "wsgiref": [PYTHON, "-c", """
from wsgiref.simple_server import make_server
from wsgi import app
server = make_server("127.0.0.1", 0, app)
print("127.0.0.1:%s" % server.server_port, flush=True)
server.serve_forever()
"""],
    "gevent": [PYTHON, "-c", """
from gevent import monkey
monkey.patch_all()
from gevent.pywsgi import WSGIServer
from wsgi import app
server = WSGIServer(("127.0.0.1", 0), app)
server.start()
print("127.0.0.1:%s" % server.server_port, flush=True)
server.serve_forever()
"""],
    "werkzeug": [PYTHON, "-c", """
from werkzeug.serving import WSGIRequestHandler, make_server
from wsgi import app
WSGIRequestHandler.protocol_version = "HTTP/1.1"
server = make_server("127.0.0.1", 0, app, threaded=True)
print("127.0.0.1:%s" % server.server_port, flush=True)
server.serve_forever()
"""],
}  # fmt: skip

FAULTS = re.compile("Traceback|defect")

# The tracker, which also tells who answers.
MODULE = """
import os
import tracker

tickets = tracker.create_app({database!r}, {smtp!r}, "tickets@example.com")

def app(environ, start_response):
    def start(status, headers, *rest):
        return start_response(status, [*headers, ("X-Process", str(os.getpid()))], *rest)
    return tickets(environ, start)
"""


class Foreign:
    """A server that runs `wsgi.app` in a folder."""

    def __init__(self, folder, command, database, smtp=""):
        (folder / "wsgi.py").write_text(MODULE.format(database=str(database), smtp=smtp))
        self.output = folder / f"output-{time.monotonic_ns()}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TRACKER_")}
        environment |= {"PYTHONPATH": f"{ROOT}:{folder}", "TRACKER_DB": str(database)}
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment | {"TRACKER_SMTP": smtp, "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all of it can be ended
            )
        try:
            self.port = int(eventually(self._find_port)[1])
            eventually(self._answers)
        except BaseException:
            self.kill()
            raise

    def _find_port(self):
        assert self.process.poll() is None, self.said
        return re.search(r"127\.0\.0\.1:([1-9][0-9]*)", self.said)

    def _answers(self):
        with suppress(OSError, HTTPException):
            return self.ask("GET", "/openapi.json").status == 200

    @property
    def said(self):
        return self.output.read_text()

    def ask(self, method, path, body=None, headers=(), port=None):
        """The answer, with the JSON of its body as `json`, over a connection of its own."""
        headers = {"Connection": "close", **dict(headers)}
        if body is not None:
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        with closing(HTTPConnection("127.0.0.1", port or self.port, timeout=30)) as conn:
            conn.request(method, path, body, headers)
            answer = conn.getresponse()
            answer.text = answer.read()
            answer.json = json.loads(answer.text or "null")
            return answer

    def stop(self, signum=signal.SIGTERM):
        """Have all of it end; its exit status."""
        self.process.send_signal(signum)
        return self.process.wait(timeout=20)

    def kill(self):
        """End all of it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def run(tmp_path, database):
    """Starts servers on the one database of the test."""
    servers = []

    def run(command, smtp=""):
        servers.append(Foreign(tmp_path, command, database, smtp))
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


@pytest.fixture
def server(run, request):
    return run(SERVERS[request.param])


under_each = pytest.mark.parametrize("server", SERVERS, indirect=True)


# ---------------------------------------------------------------- bodies


def project(name):
    return json.dumps({"name": name}).encode()


def chunked(*parts):
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]


REFUSED = {400, 411, 413, 501}
BODY = project("Project 00")  # each row has its own number
SIZE = len(BODY)
LARGE = BODY + b" " * 65536
CHUNKED = "Transfer-Encoding: chunked"

# What is wrong or right, headers, parts of the body, what ends it, and the statuses that are
# right: 201 stores the project, all else stores nothing. None: no answer is fine as well.
BODIES = [
    ("it is whole", f"Content-Length: {SIZE}", [BODY], "", {201}),
    ("it comes in parts", f"Content-Length: {SIZE}", [BODY[:5], BODY[5:9], BODY[9:]], "", {201}),
    ("100-continue", f"Content-Length: {SIZE}\r\nExpect: 100-continue", [b"", BODY], "", {201}),
    ("more follows", f"Content-Length: {SIZE}", [BODY + b"and more"], "", {201}),
    ("a part of more", f"Content-Length: {SIZE - 2}", [BODY], "", {400}),
    ("chunks", CHUNKED, [*chunked(BODY), b"0\r\n\r\n"], "", {201} | REFUSED),
    ("chunks", CHUNKED, [*chunked(BODY[:7], BODY[7:]), b"0\r\n\r\n"], "", {201} | REFUSED),
    ("chunks at once", CHUNKED, [b"".join(chunked(BODY[:7], BODY[7:])) + b"0\r\n\r\n"], "",
     {201} | REFUSED),
    ("no chunk size", CHUNKED, [b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"], "half", REFUSED | {None}),
    ("a negative chunk size", CHUNKED, [b"-5\r\n" + BODY + b"\r\n0\r\n\r\n"], "half",
     REFUSED | {None}),
    ("a vast chunk size", CHUNKED, [b"f" * 20 + b"\r\n" + BODY + b"\r\n0\r\n\r\n"], "half",
     REFUSED | {None}),
    ("a chunk without its end", CHUNKED, [b"%x\r\n%s0\r\n\r\n" % (SIZE, BODY)], "half",
     REFUSED | {None}),
    ("chunks without an end", CHUNKED, chunked(BODY), "half", REFUSED | {None}),
    ("half a chunk", CHUNKED, [b"%x\r\n%s" % (SIZE, BODY[:-1])], "half", REFUSED | {None}),
    ("half a chunk, gone", CHUNKED, [b"%x\r\n%s" % (SIZE, BODY[:-1])], "close", {None}),
    ("chunks without an end, gone", CHUNKED, chunked(BODY), "close", {None}),
    ("it is shorter", f"Content-Length: {SIZE + 1}", [BODY], "half", REFUSED | {None}),
    ("it is shorter, gone", f"Content-Length: {SIZE + 1}", [BODY], "close", {None}),
    ("nothing comes, gone", f"Content-Length: {SIZE + 1}", [], "close", {None}),
    ("no length", "X-Length: none", [BODY], "half", REFUSED),
    ("no body", "Content-Length: 0", [], "", {400}),
    *((f"a length {junk!r}", f"Content-Length: {junk}", [BODY], "half", REFUSED | {None})
      for junk in ("-1", "+19", "1_9", "0x13", "19, 20", "19 20", "many", f"1{0:018}")),
    ("two lengths", "Content-Length: 9\r\nContent-Length: 10", [BODY], "half", REFUSED),
    ("a length and chunks", f"Content-Length: 5\r\n{CHUNKED}", [*chunked(BODY), b"0\r\n\r\n"],
     "half", {201} | REFUSED),
    ("too large", f"Content-Length: {len(LARGE)}", [LARGE], "", {413}),
    ("too large in chunks", CHUNKED, [*chunked(LARGE[:40000], LARGE[40000:]), b"0\r\n\r\n"], "",
     REFUSED),
    ("far too large", f"Content-Length: {10**11}", [LARGE], "half", {413}),
]  # fmt: skip


def send(port, headers, parts, end):
    """The status of the answer to a POST of a project; None: there is none."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST /projects HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        conn.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        with suppress(OSError):  # it was refused before all was sent
            for part in parts:
                time.sleep(0.02)
                conn.sendall(part)
            if end == "half":
                conn.shutdown(socket.SHUT_WR)
        if end == "close":
            return None
        answer = HTTPResponse(conn, method="POST")
        try:
            answer.begin()
            answer.read()
        except (HTTPException, ConnectionError):
            return None
        return answer.status


@under_each
def test_every_body_is_understood_or_refused_and_never_a_defect(server):
    wrong, stored = [], []
    for number, (what, headers, parts, end, right) in enumerate(BODIES):
        name = f"Project {number:02}"
        parts = [part.replace(b"Project 00", name.encode()) for part in parts]
        status = send(server.port, headers, parts, end)
        if status == 201:
            stored.append(name)
        if status not in right:
            wrong.append((what, headers[:40], end, status))
    assert not wrong, (wrong, server.said)
    assert stored == [project["name"] for project in server.ask("GET", "/projects").json]
    assert not FAULTS.search(server.said), server.said


HIDDEN = b"DELETE /projects/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"

# Requests that are answered without a look at their body, which spells another request.
UNREAD = [
    ("GET", "/projects", "application/json", 200),
    ("DELETE", "/projects/7", "application/json", 404),
    ("POST", "/nowhere", "application/json", 404),
    ("PATCH", "/projects", "application/json", 405),
    ("POST", "/projects", "text/plain", 415),
    ("POST", "/projects?colour=red", "application/json", 400),
    ("POST", "/projects", "application/json", 400),  # this one is read
]


@under_each
def test_a_body_that_nobody_reads_is_never_taken_for_the_next_request(server):
    server.ask("POST", "/projects", {"name": "Website"})
    for method, path, kind, status in UNREAD:
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=20)) as conn:
            conn.request(method, path, HIDDEN, {"Content-Type": kind})
            answer = conn.getresponse()
            answer.read()
            assert answer.status == status, (method, path)
            # http.client connects anew where the server has told that it hangs up.
            with suppress(ConnectionError):  # it hung up without telling
                conn.request("GET", "/projects/1")
                answer = conn.getresponse()
                assert json.loads(answer.read())["name"] == "Website", (method, path)
    assert [project["name"] for project in server.ask("GET", "/projects").json] == ["Website"]
    assert not FAULTS.search(server.said), server.said
