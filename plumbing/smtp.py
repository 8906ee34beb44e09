"""An SMTP client that cannot be held or fooled: whatever a server does, a send ends in time.

It says what became of a message, and whom the reason of a refusal is about. What follows
from that is decided by whoever sends.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import re
import select
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from .message import Message
from .refusal import Failure, Reply, whom

LONGEST_ANSWER = 2**16  # bytes that a server may say at once
PER_CONNECTION = 100  # messages; many servers allow no more
SLICE = 0.2  # seconds after which who waits looks whether to go on

T = TypeVar("T")


# ---------------------------------------------------------------- one connection


class Client(smtplib.SMTP):
    """smtplib's client, with an end to every wait and every answer.

    A time-out of a socket starts anew with each byte. Here each step has a deadline as a
    whole: who waits is woken every SLICE, and looks whether it has come, or `stop`.
    """

    def __init__(self, name: str, stop: threading.Event) -> None:
        super().__init__(local_hostname=name)  # or it would ask the DNS for a name, and wait
        self.deadline = math.inf  # by time.monotonic()
        self._stop = stop
        self._unread = b""

    def reach(self, host: str, port: int, seconds: float) -> str:
        """Connect to the first address of the host that answers, each within the time; say which.

        A socket that was reset meanwhile could not tell any more to whom it was connected.
        """
        error: OSError = OSError("the host has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            self.within(seconds)
            self.sock = socket.socket(family, kind, protocol)
            try:
                self.sock.setblocking(False)
                code = self.sock.connect_ex(address)
                if code == errno.EINPROGRESS:
                    self._wait(self._connected)
                    code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code))
                self.sock.settimeout(SLICE)
                return str(address[0])
            except OSError as failed:
                error = failed
                self.sock.close()
                if self._stop.is_set():
                    break
        self.sock = None
        raise error

    def _connected(self) -> None:
        waiting = select.poll()
        waiting.register(self.sock, select.POLLOUT)  # type: ignore[arg-type]
        if not waiting.poll(SLICE * 1000):
            raise TimeoutError

    def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from here on. What was said before it is not believed."""
        assert self.sock is not None
        sock = context.wrap_socket(self.sock, server_hostname=host, do_handshake_on_connect=False)
        self.sock, self._unread = sock, b""
        self.ehlo_resp = self.helo_resp = None
        self.esmtp_features = {}
        self.does_esmtp = False
        self._wait(sock.do_handshake)

    def ask(self, command: str, seconds: float) -> Reply:
        """Give a command and wait for the answer, or only wait for it if the command is empty."""
        self.within(seconds)
        try:
            if command:
                self.send(f"{command}\r\n")
        except OSError:
            with suppress(OSError):  # a server may have said why before it hung up
                return self._reply()
            raise
        return self._reply()

    def within(self, seconds: float) -> None:
        """Have what follows end in time."""
        self.deadline = time.monotonic() + seconds

    def send(self, s: str | bytes) -> None:  # type: ignore[override]
        """Send all of it. Raises OSError."""
        assert self.sock is not None
        data = memoryview(s.encode("ascii") if isinstance(s, str) else s)
        while data:
            data = data[self._wait(lambda data=data: self.sock.send(data)) :]  # type: ignore

    def getreply(self) -> tuple[int, bytes]:
        """The code and the text of the next answer. Raises OSError."""
        lines: list[bytes] = []
        left = LONGEST_ANSWER
        while not lines or lines[-1][3:4] == b"-":
            while b"\n" not in self._unread:
                received = self._wait(lambda: self.sock.recv(4096))  # type: ignore[union-attr]
                if not received:
                    raise OSError("the server closed the connection")
                self._unread += received
                if (left := left - len(received)) <= 0:
                    raise OSError("the answer of the server is too long")
            line, self._unread = self._unread.split(b"\n", 1)
            if not re.match(rb"[2-5]\d\d([ -]|\r?$)", line):
                raise OSError(f"the answer is not SMTP: {line.decode('utf-8', 'replace').strip()}")
            lines.append(line.strip())
        return int(lines[-1][:3]), b"\n".join(line[4:].strip() for line in lines)

    def _reply(self) -> Reply:
        code, text = self.getreply()
        return Reply(code, text.decode("utf-8", "replace"))

    def _wait(self, act: Callable[[], T]) -> T:
        while True:
            if self._stop.is_set():
                raise OSError("it was broken off")
            if time.monotonic() >= self.deadline:
                raise TimeoutError("no answer in time")
            with suppress(TimeoutError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return act()


# ---------------------------------------------------------------- the server


class Smtp:
    """The server at smtp://user:password@host:port, or smtps:// for TLS from the start.

    smtp:// uses STARTTLS where it is offered. A password goes only over verified TLS or to
    this machine. The waits are as long as RFC 5321, 4.5.3.2, grants them. Raises ValueError
    for a URL that cannot work.
    """

    connect_seconds = 10.0  # for each address of the host
    answer_seconds = 300.0  # for the greeting, and each answer
    data_seconds = 600.0  # for the answer after the data

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        self.user, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        host = re.fullmatch(r"[\w.:%-]+", parts.hostname or "")
        usable = parts.scheme in ("smtp", "smtps") and host and port != 0
        if not usable or any(parts[2:]) or bool(self.user) != bool(self.password):
            raise ValueError(
                "must look like smtp://user:password@host:port, with a port from 1 to 65535 and,"
                " in user and password, %2F for /, %40 for @, %3A for :, %3F for ? and %23 for #"
            )
        if not (self.user + self.password).isascii():
            raise ValueError("must have user and password in ASCII")
        self.tls = parts.scheme == "smtps"
        self.host, self.port = parts.hostname or "", port or (465 if self.tls else 25)
        self.sender = ""  # of the message at hand
        self._stop = threading.Event()
        self._client: Client | None = None
        self._taken = 0  # over this connection

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'smtps' if self.tls else 'smtp'}://{host}:{self.port}"

    def send(self, message: Message) -> None:
        """Give one message to the server, over the connection that there is. Raises Failure."""
        recipient, content, self.sender = message.recipient, message.encode(), message.sender[1]
        if self._taken >= PER_CONNECTION:
            self.close()
        used = self._client is not None
        if not (used and self._send(recipient, content, used)):
            self._send(recipient, content, False)

    def close(self) -> None:
        """Take leave. A connection lost here is no loss: the mail was taken before."""
        if self._client is not None:
            with suppress(OSError):
                self._client.ask("QUIT", 1)
            self._drop()

    def interrupt(self) -> None:
        """Break off all waiting for the server, for good; may be called from any thread."""
        self._stop.set()

    def _send(self, recipient: str, content: bytes, used: bool) -> bool:
        """Send the message; False if a `used` connection had ended, so a new one may do."""
        client = self._client or self._connect()
        step = "MAIL"
        try:
            for step, command in (
                ("MAIL", f"MAIL FROM:<{self.sender}>"),
                ("RCPT", f"RCPT TO:<{recipient}>"),
                ("DATA", "DATA"),
            ):
                reply = client.ask(command, self.answer_seconds)
                if reply.code == 421 and used and step == "MAIL":
                    self._drop()
                    return False
                if reply.code // 100 != (3 if step == "DATA" else 2):
                    raise self._refused(client, step, reply)
            client.within(self.data_seconds)
            client.send(re.sub(rb"(?m)^\.", b"..", content.removesuffix(b"\r\n")) + b"\r\n.\r\n")
            step = "."
            reply = client.ask("", self.data_seconds)
            if reply.code // 100 != 2:
                raise self._refused(client, step, reply)
        except (OSError, ValueError) as error:  # of a name or challenge that cannot be read
            self._drop()
            if used and step == "MAIL":
                return False
            if step == ".":
                words = f"the server never answered after it had all of the message: {error}"
                raise Failure("uncertain", words) from error
            raise Failure("connection", str(error) or type(error).__name__) from error
        self._taken += 1
        return True

    def _refused(self, client: Client, step: str, reply: Reply) -> Failure:
        about = whom(step, reply) if reply.code // 100 in (4, 5) else "connection"
        try:  # the next message begins anew
            if about in ("connection", "us") or client.ask("RSET", self.answer_seconds).code != 250:
                self._drop()
        except OSError:
            self._drop()
        return Failure(about, f"{reply.code} {reply.text}")

    def _connect(self) -> Client:
        """Be connected, encrypted and logged in. Raises Failure about the server or us."""
        self._client = client = Client(self.sender.rpartition("@")[2], self._stop)
        self._taken = 0
        try:
            address = client.reach(self.host, self.port, self.connect_seconds)
            here = ipaddress.ip_address(address.partition("%")[0]).is_loopback
            if self.tls:
                self._encrypt(client, here)
            self._expect(client, "greeting", client.ask("", self.answer_seconds))
            self._greet(client)
            if not self.tls and client.has_extn("starttls"):
                self._expect(client, "STARTTLS", client.ask("STARTTLS", self.answer_seconds))
                self._encrypt(client, here)
                self._greet(client)
            if self.password:
                self._log_in(client, here)
        except (OSError, ValueError) as error:
            self._drop()
            raise Failure("server", str(error) or type(error).__name__) from error
        except BaseException:  # no half of a client is left behind
            self._drop()
            raise
        return client

    def _greet(self, client: Client) -> None:
        client.within(self.answer_seconds)
        code, words = client.ehlo()
        if code // 100 == 5:  # it knows no EHLO; what is said for now, it would say of HELO too
            code, words = client.helo()
        self._expect(client, "HELO", Reply(code, words.decode("utf-8", "replace")))

    def _expect(self, client: Client, step: str, reply: Reply) -> None:
        if reply.code // 100 != 2:
            about = "us" if whom(step, reply) == "us" else "server"
            raise Failure(about, f"{reply.code} {reply.text}")

    def _encrypt(self, client: Client, here: bool) -> None:
        client.within(self.answer_seconds)
        # To this machine, or with no secret to lose, encryption to anybody is better than none.
        trusting = here or not (self.tls or self.password)
        client.encrypt(self._trusting if trusting else self._strict, self.host)

    # Once, and only if needed: to read all the authorities takes longer than many mails.

    @cached_property
    def _strict(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    @cached_property
    def _trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def _log_in(self, client: Client, here: bool) -> None:
        if not here and not isinstance(client.sock, ssl.SSLSocket):
            raise Failure(
                "us", "the server offers no TLS, and a password is not sent in clear text"
            )
        offered = client.esmtp_features.get("auth", "").upper().split()
        ways = [way for way in ("PLAIN", "LOGIN", "CRAM-MD5") if way in offered]
        client.user, client.password = self.user, self.password
        reply = Reply(503, "the server offers no way to log in that this client knows")
        for way in ways:
            client.within(self.answer_seconds)
            try:
                client.auth(way, getattr(client, f"auth_{way.lower().replace('-', '_')}"))
                return
            except smtplib.SMTPAuthenticationError as error:
                words = error.smtp_error
                text = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
                reply = Reply(error.smtp_code, text)
            # Another way only where this one is not to be had: many servers hang up at a wrong
            # password, which would then look like a lost connection.
            if reply.code not in (502, 504):
                break
        self._expect(client, "AUTH", reply)

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None and client.sock is not None:
            client.sock.close()
            client.sock = None
