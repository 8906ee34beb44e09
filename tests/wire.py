"""Requests on sockets of their own: what is sent and answered, to the byte."""

import http.client
import json
import socket
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple

MAX = {"name": "Max", "email": "max@example.com"}
DAVE = {"name": "Dave", "email": "dave@example.com"}


def free_port():
    """A port where nobody else can come between, as long as this process lives.

    It is bound and stays so. One server after the other may listen on it, as that asks for the
    address to be shared, as servers do, and this has said so as well, but only afterwards.
    """
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    port = sock.getsockname()[1]
    sock.detach()  # it is never closed
    return port


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    json: object  # None where the body is empty, or compressed


def ask(server, method, path, body=None, **headers):
    """What one request on a connection of its own is answered. Raises OSError, HTTPException."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)) as connection:
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        text = answer.read()
        readable = text and "Content-Encoding" not in answer.headers
        return Answer(answer.status, answer.headers, json.loads(text) if readable else None)


def create(server, path, **body):
    status, _, created = ask(server, "POST", path, body)
    assert status == 201, created
    return created


def ticket(server, *assignees, title="Fix the database"):
    body = {"title": title, "project_id": 1, "status": "open", "assignees": list(assignees)}
    return create(server, "/tickets", **body)


def fill(server):
    """The cast and their project."""
    create(server, "/users", **MAX)
    create(server, "/users", **DAVE)
    create(server, "/projects", name="Website")


@contextmanager
def sent(server, data):
    """A connection on which the bytes were sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as sock:
        with suppress(ConnectionError):  # it may be refused before its end
            sock.sendall(data)
        yield sock


def exchange(server, data):
    """What is answered to the bytes; None if it only hangs up."""
    with sent(server, data) as sock, closing(http.client.HTTPResponse(sock)) as answer:
        try:
            answer.begin()
            text = answer.read()
        except (ConnectionError, http.client.BadStatusLine):
            return None
        return Answer(answer.status, answer.headers, json.loads(text) if text else None)


def everything(server, data):
    """All that is answered to the bytes, until the server hangs up."""
    with sent(server, data) as sock, sock.makefile("rb") as reader, suppress(ConnectionError):
        return reader.read()
    return b""


def post(path, body, *headers):
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body, size):
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def assert_problem(answer, status):
    assert answer is not None, "it only hung up"
    assert answer[0] == answer[2]["status"] == status, answer[2]
    assert answer[1]["Content-Type"] == "application/problem+json"
    assert answer[2]["title"]
    assert answer[2]["detail"]
