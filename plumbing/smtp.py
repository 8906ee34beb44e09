"""An SMTP client that cannot be held or fooled: whatever a server does, a send ends in time.

It says what became of a message; what follows from that is decided by whoever sends.
"""

from __future__ import annotations

import ipaddress
import math
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from urllib.parse import unquote, urlsplit

LONGEST_ANSWER = 2**16  # bytes that a server may say at once
PER_CONNECTION = 100  # messages; many servers allow no more


class Failure(Exception):
    """A message did not go out; `about` says whom the reason concerns.

    "message": this one will never be taken. "now": this one was not taken now. "connection":
    it broke off, or fell silent, in the middle. "server": nothing can be brought to it now.
    "us": it takes nothing from us, for a wrong password or a rejected sender.
    """

    def __init__(self, about: str, words: str) -> None:
        super().__init__(words)
        self.about = about


class _Used(Exception):
    """The server has done with a connection that it took mail over; a new one may do."""


class Client(smtplib.SMTP):
    """smtplib's client, but it takes no answer without end, and not anything for one."""

    def getreply(self) -> tuple[int, bytes]:
        """The code and the text of the next answer. Raises OSError."""
        assert self.sock is not None
        self.file = self.file or self.sock.makefile("rb")
        lines: list[bytes] = []
        left = LONGEST_ANSWER
        while not lines or lines[-1][3:4] == b"-":
            line = self.file.readline(left)
            left -= len(line)
            if not left:
                raise OSError("the answer of the server is too long")
            if not line.endswith(b"\n"):
                raise OSError("the server closed the connection")
            if not re.match(rb"[2-5]\d\d", line):
                raise OSError(f"the answer is not SMTP: {line.decode('utf-8', 'replace').strip()}")
            lines.append(line)
        return int(lines[-1][:3]), b"\n".join(line[4:].strip() for line in lines)


class TlsClient(Client, smtplib.SMTP_SSL):
    """The same, with TLS from the start."""


class Smtp:
    """The server at smtp://user:password@host:port, or smtps:// for TLS from the start.

    smtp:// uses STARTTLS where it is offered. A password goes only over verified TLS or to
    this machine. `timeout` seconds are what connecting and each mail may take. Raises
    ValueError for a URL that cannot work.
    """

    def __init__(self, url: str, sender: str, timeout: float = 10) -> None:
        parts = urlsplit(url)
        self.user, self.password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname or any(parts[2:]):
            raise ValueError("the SMTP URL must look like smtp://user:password@host:port")
        if not (self.user + self.password).isascii():
            raise ValueError("user and password of the SMTP URL must be ASCII")
        self.tls = parts.scheme == "smtps"
        self.host, self.port = parts.hostname, parts.port or (465 if self.tls else 25)
        self.sender, self.timeout = sender, timeout
        self._smtp: Client | None = None
        self._taken = 0  # over this connection
        self._deadline = math.inf  # by time.monotonic()

    def __str__(self) -> str:
        return f"{'smtps' if self.tls else 'smtp'}://{self.host}:{self.port}"

    def send(self, recipient: str, message: bytes) -> None:
        """Give one message to the server, over the connection that there is. Raises Failure."""
        if self._taken == PER_CONNECTION:
            self.close()
        try:
            self._send(recipient, message)
        except _Used:  # it is not the fault of this message
            self._send(recipient, message)

    def close(self) -> None:
        """Take leave. A connection lost here is no loss: the mail was taken before."""
        if self._smtp is not None:
            with suppress(Failure), self._within_time("connection"):
                self._smtp.quit()
            self._drop()

    def interrupt(self) -> None:
        """Break off the waiting for the server; may be called from any thread."""
        _shut(self._smtp)

    @cached_property
    def _context(self) -> ssl.SSLContext:
        # Once, and only if needed: to read all the authorities takes longer than many mails.
        context = ssl.create_default_context()
        if not (self.tls or self.password):
            # With no secret to lose, encryption to anybody is better than none.
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _connect(self) -> None:
        # The name to greet with is given, or smtplib would ask the DNS for it, and wait.
        name = self.sender.rpartition("@")[2]
        if self.tls:
            smtp: Client = TlsClient("", 0, name, timeout=self.timeout, context=self._context)
        else:
            smtp = Client("", 0, name, timeout=self.timeout)
        # The name that TLS verifies: smtplib sets it only if it connects while constructed.
        smtp._host = self.host  # type: ignore[attr-defined]
        self._smtp, self._taken, self._over = smtp, 0, threading.Event()
        with self._within_time("server"):
            threading.Thread(target=self._watch, args=(smtp, self._over), daemon=True).start()
            code, answer = smtp.connect(self.host, self.port)
            if code != 220:
                raise smtplib.SMTPConnectError(code, answer)
            smtp.ehlo_or_helo_if_needed()
            if not self.tls and smtp.has_extn("starttls"):
                smtp.starttls(context=self._context)
                smtp.ehlo_or_helo_if_needed()
            if self.password:
                self._log_in(smtp)

    def _log_in(self, smtp: smtplib.SMTP) -> None:
        assert smtp.sock is not None
        here = ipaddress.ip_address(smtp.sock.getpeername()[0]).is_loopback
        if not here and not isinstance(smtp.sock, ssl.SSLSocket):
            raise Failure(
                "us", "the server offers no TLS, and a password is not sent in clear text"
            )
        # One way only: many servers hang up at a wrong password, and to try it in the next way
        # would then look like a lost connection.
        offered = smtp.esmtp_features.get("auth", "").split()
        ways = [way for way in ("PLAIN", "LOGIN", "CRAM-MD5") if way in offered]
        smtp.esmtp_features["auth"] = " ".join(ways[:1])
        try:
            smtp.login(self.user, self.password)
        except smtplib.SMTPServerDisconnected:
            raise
        except smtplib.SMTPException as error:
            if getattr(error, "smtp_code", 500) < 500:
                raise
            raise Failure("us", words(error)) from error

    def _send(self, recipient: str, message: bytes) -> None:
        if self._smtp is None:
            self._connect()
        smtp = self._smtp
        assert smtp is not None
        used, self._taken = self._taken > 0, self._taken + 1
        with self._within_time("connection"):
            # Step by step, as a refused sender means another thing than a refused recipient.
            try:
                code, answer = smtp.mail(self.sender)
            except OSError as error:
                if used:
                    raise _Used from error
                raise
            if code == 421 and used:
                raise _Used
            if code // 100 == 5:
                raise Failure("us", words(smtplib.SMTPResponseException(code, answer)))
            if code // 100 == 2:
                code, answer = smtp.rcpt(recipient)
            if code // 100 == 2:
                try:
                    code, answer = smtp.data(message)
                except smtplib.SMTPDataError as error:
                    code, answer = error.smtp_code, error.smtp_error  # type: ignore[assignment]
                    if code // 100 == 2:  # it takes for done what has not begun
                        raise OSError(f"the answer to DATA was {words(error)}") from error
            if code // 100 == 2:
                return
            reply = smtplib.SMTPResponseException(code, answer)
            if code == 421 or code // 100 not in (4, 5):
                raise reply
            try:
                clean = smtp.rset()[0] == 250
            except OSError:
                clean = False
            if not clean:
                self._drop()
        raise Failure("message" if code // 100 == 5 else "now", words(reply))

    def _drop(self) -> None:
        if self._smtp is not None:
            self._over.set()
            self._smtp.close()
            self._smtp, self._taken = None, 0

    @contextmanager
    def _within_time(self, about: str) -> Iterator[None]:
        self._deadline = deadline = time.monotonic() + self.timeout
        try:
            yield
        except (Failure, _Used):
            self._drop()
            raise
        except (OSError, ValueError) as error:  # of smtplib, and of a name or challenge undecodable
            late = time.monotonic() >= deadline or isinstance(error, TimeoutError)
            self._drop()
            raise Failure(
                about, f"no answer within {self.timeout:g} seconds" if late else words(error)
            ) from error
        finally:
            self._deadline = math.inf

    def _watch(self, smtp: Client, over: threading.Event) -> None:
        # A socket's time-out begins anew with each byte, so a server that sends one now and
        # then could hold us for ever: this thread of each connection ends a step in time.
        while not over.wait(max(0.05, min(self._deadline - time.monotonic(), 0.5))):
            if time.monotonic() >= self._deadline:
                _shut(smtp)  # again and again, as during a handshake there is nothing to shut


def _shut(smtp: Client | None) -> None:
    """Whoever waits for the server now is told that the connection is over."""
    sock = smtp and smtp.sock
    if sock:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def words(error: OSError | ValueError) -> str:
    """What the server said, or the system, as one printable line of at most 300 characters."""
    text = str(error) or type(error).__name__
    if isinstance(error, smtplib.SMTPResponseException):
        answer = error.smtp_error
        text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
        text = f"{error.smtp_code} {text}"
    return "".join(char if char.isprintable() else " " for char in text)[:300]
