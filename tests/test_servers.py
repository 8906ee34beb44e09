"""The tracker under the servers that people run it with, and behind a real nginx.

Each server is a process on a port of its own choice. What it says goes to a file, in which no
traceback and no defect may be.
"""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path

import proxy
import pytest
from conftest import HERE, ROOT, eventually
from wire import ask

import mailer

PYTHON = sys.executable
# A worker that is told to end while it still boots may miss it; then its master ends it.
GUNICORN = [PYTHON, "-m", "gunicorn", "--bind=127.0.0.1:0", "--graceful-timeout=5"]
# A worker of uWSGI calls exit() in its signal handler. Where the signal came amid malloc it waits
# for ever on a lock that it holds itself (seen with gdb, once in 72 starts with workers that are
# recycled); its master ends it then, after a minute unless told.
UWSGI = [
    shutil.which("uwsgi", path=os.path.dirname(PYTHON)) or "uwsgi",
    "--die-on-term",
    "--master",
    "--worker-reload-mercy=5",
    "--module=wsgi:app",
]
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

    def __init__(self, folder, command, database, smtp="", wait=True):
        (folder / "wsgi.py").write_text(MODULE.format(database=str(database), smtp=smtp))
        self.output = folder / f"output-{time.monotonic_ns()}"
        environment = HERE | {"PYTHONPATH": f"{ROOT}:{folder}", "PYTHONUNBUFFERED": "1"}
        environment |= {"TRACKER_DB": str(database), "TRACKER_SMTP": smtp}
        environment["HOME"] = str(folder)  # where gunicorn keeps a socket
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all of it can be ended
            )
        try:
            self.port = int(eventually(self._find_port)[1])
            if wait:
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

    def ask(self, method, path, body=None):
        return ask(self, method, path, body, Connection="close")

    def stop(self):
        """Have all of it end, as systemd does; its exit status."""
        os.killpg(self.process.pid, signal.SIGTERM)
        return self.process.wait(timeout=30)

    def kill(self):
        """End all of it at once."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def run(tmp_path, database):
    """Starts servers on the one database of the test."""
    servers = []

    def run(command, smtp="", **more):
        servers.append(Foreign(tmp_path, command, database, smtp, **more))
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
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as conn:
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
        with closing(HTTPConnection("127.0.0.1", server.port, timeout=30)) as conn:
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


# ---------------------------------------------------------------- processes

RECYCLING = "--max-requests=25"
GTHREAD = ["--worker-class=gthread", "--threads=4"]
PRELOADED = [*GUNICORN, "--preload", "--workers=3", "wsgi:app"]
UWSGI_FORKS = [
    *UWSGI,
    HTTP_SOCKET,
    "--processes=3",
    "--min-worker-lifetime=0",
    "--forkbomb-delay=0",
]
FORKING = {
    "uWSGI": UWSGI_FORKS,
    "gunicorn, sync": PRELOADED,
    "gunicorn, gthread": [*PRELOADED, *GTHREAD],
    "gunicorn, gevent": [*PRELOADED, "--worker-class=gevent"],
}
TICKETS = 8

under_forking = pytest.mark.parametrize("command", FORKING.values(), ids=FORKING)


def fill(server):
    """Max, and as many tickets as there are clients."""
    ask(server, "POST", "/users", {"name": "Max", "email": "max@example.com"})
    ask(server, "POST", "/projects", {"name": "Website"})
    for _ in range(TICKETS):
        ticket = {"title": "New", "project_id": 1, "status": "open", "assignees": [1]}
        assert ask(server, "POST", "/tickets", ticket).status == 201


def change(find_server, ticket, title):
    """Rename the ticket, trying again where there is no answer; the process that did it."""
    while True:
        # Whoever hung up may have saved it: then the same once more changes nothing.
        with suppress(OSError, HTTPException, ValueError):
            answer = find_server().ask("PATCH", f"/tickets/{ticket}", {"title": title})
            assert answer.status in (200, 503), answer.json
            if answer.status == 200:
                return int(answer.headers["X-Process"])
        time.sleep(0.02)


def changes_of(database):
    """How often each ticket was given each title."""
    with closing(sqlite3.connect(database)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = conn.execute("""
            SELECT ticket_id, json_extract(changes, '$.title.to')
              FROM history
             WHERE changes IS NOT NULL""")
        return Counter(rows.fetchall())


def settle(server):
    """Wait until no mail is queued, then end the server as its master is asked to."""

    def nothing_waits():
        with suppress(OSError, HTTPException):  # of a worker that is being replaced
            return server.ask("GET", "/health").json["mail"]["queued"] == 0

    eventually(nothing_waits, timeout=300)
    assert server.stop() == 0
    assert not FAULTS.search(server.said), server.said


def ids_of(mail_server):
    """The Message-ID of each mail to Max that came."""
    return [message["Message-ID"] for message in mail_server.to("max@example.com")]


@under_forking
def test_forked_workers_that_are_recycled_lose_no_change_and_send_each_mail_once(
    run, mail_server, database, command
):
    server = run([*command, RECYCLING], mail_server.url)
    fill(server)

    def work(ticket):
        return Counter(change(lambda: server, ticket, f"Change {n}") for n in range(100))

    with ThreadPoolExecutor(TICKETS) as clients:
        writers = sum(clients.map(work, range(1, TICKETS + 1)), Counter())
    assert len(writers) > 5, "they were not recycled"
    settle(server)
    wanted = {(ticket, f"Change {n}") for ticket in range(1, TICKETS + 1) for n in range(100)}
    assert changes_of(database) == Counter(wanted)
    ids = ids_of(mail_server)
    assert len(set(ids)) == 800 + TICKETS
    killed = server.said.count("NO MERCY")  # that is uWSGI, see there
    assert len(ids) - len(set(ids)) <= killed * mailer.BATCH


@under_forking
def test_killed_workers_and_a_killed_master_lose_no_change_and_no_mail(
    run, mail_server, database, command
):
    servers, acknowledged, stop = [run(command, mail_server.url)], [], threading.Event()
    fill(servers[0])

    def work(ticket):
        n = 0
        while not stop.is_set():
            n += 1
            process = change(lambda: servers[-1], ticket, f"Change {n}")
            acknowledged.append((process, ticket, f"Change {n}"))

    def more():
        target = len(acknowledged) + 20
        eventually(lambda: len(acknowledged) >= target)

    with ThreadPoolExecutor(TICKETS) as clients:
        working = [clients.submit(work, ticket) for ticket in range(1, TICKETS + 1)]
        try:
            for signum in (signal.SIGKILL, signal.SIGTERM) * 3:
                more()
                with suppress(ProcessLookupError):
                    os.kill(acknowledged[-1][0], signum)
            os.kill(servers[0].process.pid, signal.SIGKILL)
            servers.append(run(command, mail_server.url))  # beside the orphans, if they live on
            more()
            servers[0].kill()
            more()
        finally:
            stop.set()
        assert [each.result() for each in working] == [None] * TICKETS
    settle(servers[1])
    changes = changes_of(database)
    assert changes == Counter({(ticket, title) for _, ticket, title in acknowledged})
    assert len(set(ids_of(mail_server))) == changes.total() + TICKETS


@pytest.mark.parametrize("part", range(3))
def test_in_thirty_starts_of_uwsgi_every_worker_reads_and_writes(run, mail_server, database, part):
    wanted = Counter()
    with ThreadPoolExecutor(TICKETS) as clients:
        for start in range(10):
            server = run(UWSGI_FORKS, mail_server.url)
            if start == 0:
                fill(server)
            wrote, read = set(), set()

            def work(ticket, title, server=server, wrote=wrote, read=read):
                wrote.add(change(lambda: server, ticket, title))
                answer = server.ask("GET", f"/tickets/{ticket}")
                assert answer.json["title"] == title
                read.add(answer.headers["X-Process"])
                wanted[ticket, title] += 1

            for n in itertools.count():
                list(clients.map(work, range(1, TICKETS + 1), [f"{start}, {n}"] * TICKETS))
                if len(wrote) == len(read) == 3:
                    break
            if start % 2 == 0:
                server.kill()
            elif start < 9:
                assert server.stop() == 0
        settle(server)
    assert changes_of(database) == wanted
    assert len(set(ids_of(mail_server))) == wanted.total() + TICKETS


def test_first_requests_that_come_at_once_do_not_wait_for_each_other_under_gevent(run):
    command = [*GUNICORN, "--preload", "--worker-class=gevent", "wsgi:app"]
    server = run(command, wait=False)
    worker = int(eventually(lambda: re.search(r"Booting worker with pid: (\d+)", server.said))[1])
    os.kill(worker, signal.SIGSTOP)
    with ThreadPoolExecutor(8) as clients:
        asked = [clients.submit(server.ask, "GET", "/projects") for _ in range(8)]
        eventually(lambda: waiting_at(server.port) == 8)
        os.kill(worker, signal.SIGCONT)
        assert [each.result().status for each in asked] == [200] * 8


def waiting_at(port):
    """How many connections to the port have sent something that nobody has read."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return sum(
        here.endswith(f":{port:04X}") and state == "01" and not queues.endswith(":00000000")
        for _, here, _, state, queues, *_ in lines[1:]
    )


def test_mail_queued_before_the_start_goes_out_with_the_first_request(run, start, mail_server):
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        before = start("--smtp", f"smtp://127.0.0.1:{silent.getsockname()[1]}")
        fill(before)
        before.kill()
    assert mail_server.messages == []
    run(PRELOADED, mail_server.url)
    eventually(lambda: len(set(ids_of(mail_server))) == TICKETS)


def test_uwsgi_without_threads_tells_that_no_mail_goes_out(run):
    # The newer one from PyPI always has threads.
    if not (uwsgi := shutil.which("uwsgi_python3")):
        pytest.skip("Debian's uWSGI is not installed: apt-get install uwsgi-plugin-python3")
    command = [uwsgi, *UWSGI[1:], HTTP_SOCKET]
    command += [f"--pythonpath={path}" for path in (sysconfig.get_path("purelib"), ROOT)]
    server = run(command)
    trouble = "uWSGI runs no threads without --enable-threads"
    assert server.ask("GET", "/health").json["mail"]["error"] == trouble
    assert f"The mailer cannot start: {trouble}" in server.said
    server.stop()
    assert run([*command, "--enable-threads"]).ask("GET", "/health").json["mail"]["error"] is None


# ---------------------------------------------------------------- behind nginx

# /renamed and /forgotten are what people write who do not pass the Host on.
PROXY = """
    gzip on;
    gzip_types application/json;
    gzip_min_length 1;
    upstream tracker {{ server 127.0.0.1:{behind}; }}
    server {{
        listen 127.0.0.1:PORT;
        location / {{
            proxy_pass http://tracker;
            proxy_set_header Host $http_host;
            proxy_set_header X-User dave@example.com;
        }}
        location /renamed/ {{ proxy_pass http://tracker/; }}
        location /forgotten/ {{ proxy_pass http://127.0.0.1:{behind}/; }}
    }}
"""


class Nginx(proxy.Nginx):
    """nginx before a tracker for tickets.example.com."""

    def ask(self, method, path, body=None, **headers):
        host = "tickets.example.com"
        return ask(self, method, path, body, Host=host, Connection="close", **headers)


@pytest.fixture
def nginx(tmp_path, start):
    if proxy.NGINX is None:
        pytest.skip(proxy.HOW_TO_GET_IT)
    behind = start("--quiet", "--allow-host", "tickets.example.com", "--user-header", "X-User")
    fill(behind)
    nginx = Nginx(tmp_path, PROXY.format(behind=behind.port))
    yield nginx
    nginx.kill()
    assert nginx.said == ""


def test_behind_an_nginx_that_compresses_a_tag_is_good_for_all_that_tags_are_for(nginx):
    def weak(path):
        answer = nginx.ask("GET", path, Accept_Encoding="gzip")
        assert answer.headers["Content-Encoding"] == "gzip"
        assert answer.headers["ETag"].startswith('W/"')
        return answer.headers["ETag"]

    first = weak("/tickets/1")
    assert nginx.ask("GET", "/tickets/1", If_None_Match=first).status == 304
    assert nginx.ask("PATCH", "/tickets/1", {"status": "closed"}, If_Match=first).status == 200
    assert nginx.ask("GET", "/tickets/1", If_None_Match=first).status == 200
    assert nginx.ask("PATCH", "/tickets/1", {"status": "open"}, If_Match=first).status == 412
    whole = nginx.ask("GET", "/tickets/1").json | {"title": "Fix the database"}
    second = weak("/tickets/1")
    assert nginx.ask("PUT", "/tickets/1", whole, If_Match=first).status == 412
    assert nginx.ask("PUT", "/tickets/1", whole, If_Match=second).status == 200
    tag = weak("/users/1")
    assert (
        nginx.ask("PUT", "/users/1", {"name": "Maximilian", "email": "m@example.com"}).status == 200
    )
    assert nginx.ask("DELETE", "/users/1", If_Match=tag).status == 412
    assert nginx.ask("DELETE", "/users/1", If_Match=weak("/users/1")).status == 204


def test_behind_nginx_links_lead_to_every_item_and_locations_to_the_new_one(nginx):
    seen, path = [], "/tickets?limit=3&sort=created"
    while path:
        answer = nginx.ask("GET", path)
        seen += [ticket["id"] for ticket in answer.json]
        link = re.fullmatch('<(/.*)>; rel="next"', answer.headers.get("Link", ""))
        path = link and link[1]
    assert seen == list(range(1, TICKETS + 1))
    created = nginx.ask("POST", "/projects", {"name": "Shop"})
    assert created.status == 201
    assert nginx.ask("GET", created.headers["Location"]).json == created.json


def test_behind_nginx_a_body_in_chunks_arrives_and_one_too_large_is_413(nginx):
    with closing(HTTPConnection("127.0.0.1", nginx.port, timeout=30)) as conn:
        headers = {"Host": "tickets.example.com", "Content-Type": "application/json"}
        conn.request("POST", "/projects", iter([BODY[:5], BODY[5:]]), headers, encode_chunked=True)
        answer = conn.getresponse()
        assert (answer.status, json.loads(answer.read())["name"]) == (201, "Project 00")
    answer = nginx.ask("POST", "/projects", {"name": "x" * 200_000})
    assert (answer.status, answer.json["status"]) == (413, 413)


def test_behind_nginx_it_says_who_made_a_change_and_the_client_does_not(nginx):
    nginx.ask("PATCH", "/tickets/1", {"status": "closed"}, X_User="yaris@example.com")
    [entry] = nginx.ask("GET", "/tickets/1/history").json
    assert entry["by"] == "dave@example.com"


def test_an_nginx_that_does_not_pass_the_host_on_is_told_so(nginx):
    for method, path in (("GET", "/renamed/projects"), ("POST", "/forgotten/projects")):
        body = {"name": "Shop"} if method == "POST" else None
        answer = nginx.ask(method, path, body, Origin="https://tickets.example.com")
        assert (answer.status, answer.json["status"]) == (403, 403)
        assert answer.headers["Content-Type"] == "application/problem+json"
