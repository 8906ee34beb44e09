"""Our own server, and clients that are slow, many, greedy, or to the letter of HTTP."""

import http.client
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from conftest import Server, eventually
from wire import DAVE, MAX, ask, assert_problem, chunked, create, everything, exchange, post, sent


@pytest.fixture
def start_with(start):
    """Starts the tracker with other limits of the server: start_with(PATIENCE=2)."""

    def run(prelude="pass", **limits):
        set_limits = "".join(f"server.{name} = {value}; " for name, value in limits.items())
        prelude = f"import plumbing.server as server; {set_limits}{prelude}"
        return start("--quiet", prelude=prelude)

    return run


# ---------------------------------------------------------------- slow clients


HALF_REQUESTS = {
    "half a header": b"GET /health HTTP/1.1\r\nHost: local",
    "half a body": post("/users", b'{"name": ', "Content-Length: 100"),
    "half of the chunks": post("/users", b"4\r\n{   \r\n", "Transfer-Encoding: chunked"),
    "waits for 100": post("/users", b"", "Content-Length: 100", "Expect: 100-continue"),
}


def fill_a_page(server):
    """200 tickets whose list is more than the kernel takes from a server for a client."""
    create(server, "/projects", name="Website")
    body = {"project_id": 1, "status": "open", "description": "票" * 10_000}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: create(server, "/tickets", title=f"No. {n}", **body), range(200)))


PAGE = b"GET /tickets?limit=200 HTTP/1.1\r\nHost: localhost\r\n\r\n"


ANOTHER_TIME = (
    "import time, random; real = time.time; "
    "time.time = lambda: real() + random.choice((-86400, 86400))"
)


def drip(sock, data, every=0.2):
    """Send the data again and again, until the server hangs up."""
    deadline = time.monotonic() + 60
    with suppress(ConnectionError):
        while time.monotonic() < deadline:
            sock.sendall(data)
            sock.settimeout(every)
            with suppress(TimeoutError):
                if sock.recv(1000) == b"":
                    return
    assert time.monotonic() < deadline, "it is still waited for"


@pytest.mark.parametrize(
    ("begin", "data"),
    [
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", b"x"),
        (b"G", b""),
        (b"", b""),
        (b"", b"\r\n"),
        (post("/users", b"{", "Content-Length: 60000"), b" "),
        (post("/users", b"1\r\n{\r\n", "Transfer-Encoding: chunked"), b"1\r\n \r\n"),
        (post("/users", b"", "Content-Length: 100", "Expect: 100-continue"), b" "),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b""),
    ],
    ids=["head", "silence", "nothing", "lines", "body", "chunks", "continue", "idle"],
)
@pytest.mark.parametrize("prelude", ["pass", ANOTHER_TIME], ids=["", "with a mad clock"])
def test_a_client_that_drips_has_an_absolute_time_whatever_the_clock_does(
    start_with, begin, data, prelude
):
    server = start_with(prelude, PATIENCE=1)
    with sent(server, begin) as sock:
        drip(sock, data)
    with closing(sqlite3.connect(server.database)) as conn:
        assert conn.execute("SELECT * FROM users").fetchall() == []


def test_a_slow_client_that_makes_progress_is_served(start_with):
    server = start_with(ANOTHER_TIME, PATIENCE=4, SLOWEST=10)
    data = padded(LIMIT)
    with sent(server, post("/users", data[:20_000], f"Content-Length: {LIMIT}")) as sock:
        time.sleep(5)
        sock.sendall(data[20_000:])
        assert sock.recv(1000).startswith(b"HTTP/1.1 201 ")


def test_300_half_requests_block_nobody_and_are_dropped_like_those_who_never_read(start_with):
    server = start_with(PATIENCE=5)
    fill_a_page(server)
    with ExitStack() as stack:
        never_read = [stack.enter_context(sent(server, PAGE)) for _ in range(8)]
        waiting = [
            stack.enter_context(sent(server, half))
            for half in HALF_REQUESTS.values()
            for _ in range(75)
        ]
        for _ in range(15):
            assert ask(server, "GET", "/health")[0] == 200
        create(server, "/users", **MAX)
        for client in waiting:
            client.settimeout(60)
            with suppress(ConnectionError):
                assert client.recv(1000) in (b"", b"HTTP/1.1 100 Continue\r\n\r\n")
                assert client.recv(1000) == b""
        for client in never_read:  # what was under way comes, and then the end
            with client.makefile("rb") as reader, suppress(ConnectionError):
                assert len(reader.read(10**7)) < 6 * 10**6
        create(server, "/users", **DAVE)
    assert server.terminate() == 0
    assert "Traceback" not in "".join(server.lines)


def is_open(sock):
    """Whether the server has not hung up."""
    sock.settimeout(0)
    try:
        return sock.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_connections_between_two_requests_give_way_to_new_ones_and_then_the_slowest(start_with):
    server = start_with(MOST_CONNECTIONS=20, PATIENCE=600)
    idle_request = b"GET /users HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        asking = [stack.enter_context(sent(server, HALF_REQUESTS["half a body"])) for _ in range(5)]
        for _ in range(40):
            idle = stack.enter_context(sent(server, idle_request))
            assert idle.recv(1000).endswith(b"[]")
        assert all(map(is_open, asking))
        more = [
            stack.enter_context(sent(server, HALF_REQUESTS["half a header"])) for _ in range(30)
        ]
        for _ in range(5):
            assert ask(server, "GET", "/health")[0] == 200
        eventually(lambda: not any(map(is_open, asking + more[:10])))
        assert is_open(more[-1])
    assert server.terminate() == 0
    assert server.lines[1:] == []


@pytest.mark.parametrize("files", [100, 256])
@pytest.mark.parametrize("later", [False, True], ids=["", "lowered while it runs"])
def test_with_few_file_descriptors_half_requests_neither_block_nor_spin_nor_fill_the_log(
    start_with, files, later
):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))"
    server = start_with("pass" if later else limit, PATIENCE=600)
    create(server, "/users", **MAX)
    if later:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (files - 60, files))
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(sent(server, HALF_REQUESTS["half a header"]))
        for _ in range(10):
            assert ask(server, "GET", "/users/1")[0] == 200
        before, began = processor_time(server), time.monotonic()
        time.sleep(1)
        assert processor_time(server) - before < (time.monotonic() - began) / 2
    create(server, "/users", **DAVE)
    assert server.terminate() == 0
    assert len("".join(server.lines[1:])) < 300
    assert "Traceback" not in "".join(server.lines)


def processor_time(server):
    """Seconds of CPU that the process has used."""
    with open(f"/proc/{server.process.pid}/stat") as file:
        user, system = file.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_too_few_file_descriptors_are_told_in_one_line(database):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))"
    with pytest.raises(RuntimeError, match="50 open files are too few") as told:
        Server(database, prelude=limit)
    assert len(str(told.value).splitlines()) == 1


def test_answers_that_nobody_reads_are_held_in_bounds_and_on_no_disk(start_with, tmp_path):
    server = start_with(
        "import tempfile; tempfile.tempdir = '/nowhere'", MOST_UNREAD=10**7, PATIENCE=600
    )
    fill_a_page(server)
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(sent(server, PAGE))
        assert ask(server, "GET", "/health")[0] == 200
        status, _, page = exchange(server, PAGE)
        assert (status, len(page)) == (200, 200)

        eventually(lambda: connections(server) <= 6)
    assert server.terminate() == 0
    assert server.lines[1:] == []


def connections(server):
    """The number of sockets that the process has open."""
    count = 0
    for file in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            count += os.readlink(file).startswith("socket:")
    return count


# ---------------------------------------------------------------- to the letter


def ask_on(client, method, path, **headers):
    """(status, headers, body) on a connection that stays open if the server wants that."""
    client.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
    answer = client.getresponse()
    return answer.status, answer.headers, answer.read()


def test_answers_without_a_body_keep_the_connection(start):
    server = start("--quiet")
    for n in range(3):
        create(server, "/projects", name=f"Website {n}")
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as client:
        client.connect()
        first = client.sock
        for n in (1, 2, 3):
            _, headers, _ = ask_on(client, "GET", f"/projects/{n}")
            status, headers, body = ask_on(
                client, "GET", f"/projects/{n}", If_None_Match=headers["ETag"]
            )
            assert (status, body, headers["Connection"]) == (304, b"", None)
            status, headers, body = ask_on(client, "HEAD", f"/projects/{n}")
            assert (status, body, headers["Connection"]) == (200, b"", None)
            assert int(headers["Content-Length"]) > 20
            status, headers, body = ask_on(client, "DELETE", f"/projects/{n}")
            assert (status, body, headers["Connection"]) == (204, b"", None)
            assert ask_on(client, "HEAD", f"/projects/{n}")[0] == 404
        assert client.sock is first


HEALTH = b"GET /health HTTP/1.%d\r\nHost: localhost\r\n%s\r\n"


@pytest.mark.parametrize(
    "options",
    [b"close", b"Close", b"close, TE", b"TE , close", b"keep-alive, close", b"x,close,y"],
)
def test_a_client_that_wants_to_close_is_hung_up_on(start_once, options):
    for version in (0, 1):
        request = HEALTH % (version, b"Connection: %s\r\n" % options)
        answered = everything(start_once, request + request)
        assert answered.count(b"HTTP/1.") == 1
        assert b"\r\nConnection: close\r\n" in answered
    two_lines = HEALTH % (1, b"Connection: TE\r\nConnection: close\r\n")
    assert b"\r\nConnection: close\r\n" in everything(start_once, two_lines)


def test_a_client_of_http_1_0_that_wants_to_stay_may(start_once):
    request = HEALTH % (0, b"Connection: Keep-Alive, TE\r\n")
    with sent(start_once, request) as sock:
        assert b"\r\nConnection: Keep-Alive\r\n" in sock.recv(1000)
        sock.sendall(request)
        assert sock.recv(1000).startswith(b"HTTP/1.0 200 OK\r\n")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://evil.example/health", "localhost", b"403"),
        ("http://evil.example:80/health", "localhost", b"403"),
        ("http://localhost/health", "evil.example", b"200"),
        ("http://LOCALHOST:1/health", "", b"200"),
        ("http://evil.example@localhost/health", "localhost", b"403"),
        ("http://localhost@evil.example/health", "localhost", b"403"),
        ("//evil.example/health", "localhost", b"404"),
    ],
)
def test_the_host_of_an_absolute_target_counts(start_once, target, host, status):
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    assert everything(start_once, request.encode()).split()[1] == status


@pytest.mark.parametrize(
    "headers",
    ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost, evil.example\r\n"],
)
def test_a_request_without_one_host_is_400(start_once, headers):
    assert_problem(exchange(start_once, f"GET / HTTP/1.1\r\n{headers}\r\n".encode()), 400)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"HEAD /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (b"\r\nHEAD /" + b"x" * 300_000, 431),
        (b"HEAD /health HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"HEAD /health HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"HEAD /health HTTP/1.1\r\n\r\n", 400),
        (b"HEAD /he alth HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (post("/x", b"").replace(b"POST", b"HEAD")[:-2] + b"Content-Length: 99999\r\n\r\n", 413),
    ],
)
def test_no_error_has_a_body_where_it_answers_head(start_once, request_, status):
    answered = everything(
        start_once, request_.replace(b"\r\nHost", b"\r\nConnection: close\r\nHost")
    )
    assert answered.split()[1] == str(status).encode()
    assert answered.endswith(b"\r\n\r\n")
    assert answered.count(b"\r\n\r\n") == 1


# ---------------------------------------------------------------- sizes and lengths


def padded(size):
    """A user as JSON, of that many bytes."""
    return json.dumps(MAX).encode().ljust(size)


LIMIT = 64 * 1024


def test_a_body_of_64_kib_is_taken_and_one_byte_more_is_413(start):
    server = start()
    too_large = post("/users", padded(LIMIT + 1), f"Content-Length: {LIMIT + 1}")
    assert_problem(exchange(server, too_large), 413)
    taken = post("/users", padded(LIMIT), f"Content-Length: {LIMIT}")
    assert exchange(server, taken)[0] == 201


@pytest.mark.parametrize("sent_body", [b"", b"{", b'{"name": "Website"'])
@pytest.mark.parametrize(
    ("header", "first"),
    [
        ("Content-Length: 19", b""),
        ("Content-Length: 19\r\nExpect: 100-continue", b""),
        ("Transfer-Encoding: chunked", b"13\r\n"),
        ("Transfer-Encoding: chunked", b"1\r\n \r\n13\r\n"),
    ],
)
def test_a_body_that_breaks_off_is_400_to_who_still_listens(start_once, header, first, sent_body):
    with sent(start_once, post("/projects", first + sent_body, header)) as sock:
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as reader:
            answer = reader.read().removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"The body breaks off." in answer
    assert ask(start_once, "GET", "/projects")[2] == []


@pytest.mark.parametrize("length", [LIMIT + 1, 10**8, 10**12, 10**30])
def test_a_body_announced_as_too_large_is_413_before_it_is_sent(start_once, length):
    for sends in (b"", b"{"):
        announced = post("/users", sends, f"Content-Length: {length}")
        assert_problem(exchange(start_once, announced), 413)


def test_a_client_that_asks_before_it_sends_too_much_is_told_413(start_once):
    headers = (f"Content-Length: {LIMIT + 1}", "Expect: 100-continue")
    assert_problem(exchange(start_once, post("/users", b"", *headers)), 413)


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(start):
    server = start()
    body = json.dumps(MAX).encode()
    headers = (f"Content-Length: {len(body)}", "Expect: 100-continue")
    with sent(server, post("/users", b"", *headers)) as sock:
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert sock.recv(1000).startswith(b"HTTP/1.1 201 ")


def test_a_body_far_too_large_is_413_also_to_a_client_that_sends_it_all(start_once):
    body = b" " * 5_000_000
    assert_problem(exchange(start_once, post("/users", body, f"Content-Length: {len(body)}")), 413)
    assert ask(start_once, "GET", "/health")[0] == 200


@pytest.mark.parametrize("size", [1000, LIMIT + 1])
def test_chunks_that_are_too_large_together_are_413_before_their_end(start_once, size):
    chunks = chunked(padded(LIMIT + 1000), size).removesuffix(b"0\r\n\r\n")
    assert_problem(exchange(start_once, post("/users", chunks, "Transfer-Encoding: chunked")), 413)


@pytest.mark.parametrize("size", [1, 7, 4096, LIMIT])
def test_a_chunked_body_of_proper_size_is_taken(start, size):
    server = start()
    chunks = chunked(padded(LIMIT), size)
    assert exchange(server, post("/users", chunks, "Transfer-Encoding: chunked"))[0] == 201


def test_giant_headers_are_a_problem(start_once):
    giant = exchange(start_once, post("/users", b"", "X-Giant: " + "x" * 300_000))
    assert_problem(giant, 431)
    endless = b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = exchange(start_once, endless)
    assert 400 <= answer[0] < 500
    assert_problem(answer, answer[0])
    assert ask(start_once, "GET", "/health")[0] == 200


@pytest.fixture
def crowd(start_with):
    """A server, and 400 clients who ask for much, all at one moment, and read little."""
    server = start_with()
    fill_a_page(server)
    with ExitStack() as stack:
        clients = [stack.enter_context(sent(server, HEALTH % (1, b""))) for _ in range(400)]
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        server.process.send_signal(signal.SIGSTOP)
        for client in clients:
            client.sendall(PAGE)
        server.process.send_signal(signal.SIGCONT)
        yield server, clients


def test_many_who_ask_for_much_at_one_moment_cost_little_memory(crowd):
    server, clients = crowd
    for client in clients:
        client.settimeout(60)
        with suppress(ConnectionError):
            client.recv(1000)
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [peak] = re.findall(r"VmHWM:\s+([0-9]+) kB", status)
    assert int(peak) < 400 * 1024


def test_many_who_ask_for_much_at_one_moment_do_not_delay_the_end(crowd):
    server, clients = crowd
    assert clients[0].recv(1000).startswith(b"HTTP/1.1 200 ")
    assert server.terminate() == 0


@pytest.mark.parametrize("line", [b"GET /" + b"x" * 60_000, b"X" * 60_000 + b" /"])
def test_who_asks_with_long_lines_fills_no_log(start, line):
    server = start()
    exchange(server, line + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert server.terminate() == 0
    assert max(map(len, server.lines)) < 3000
    assert any(" 40" in logged for logged in server.lines[1:])
