"""Messages of plain text: how they are written (RFC 5322, 7 bits), and shown on a terminal."""

from __future__ import annotations

import binascii
import re
from email.header import Header
from typing import NamedTuple, Protocol, TextIO

from .refusal import Failure


class Message(NamedTuple):
    """A mail to one recipient; all values of `headers` are text as people write it."""

    sender: tuple[str, str]  # name, which may be empty, and address
    recipient: str
    subject: str
    headers: dict[str, str]  # others, in ASCII
    body: str

    def encode(self) -> bytes:
        """The message as it goes over the wire.

        By hand, as the email package takes longer for it than a server takes (bench/).
        """
        text = re.sub(r"\r\n?|\n", "\r\n", self.body).encode()
        encoded = not text.isascii() or max(map(len, text.split(b"\r\n"))) >= 990
        headers = {
            "From": named(*self.sender, header="From"),
            "To": self.recipient,
            "Subject": _encode_words(self.subject, "Subject"),
            **self.headers,
            "MIME-Version": "1.0",
            "Content-Type": f'text/plain; charset="{"utf-8" if encoded else "us-ascii"}"',
            "Content-Transfer-Encoding": "quoted-printable" if encoded else "7bit",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode("ascii") + b"\r\n" + (binascii.b2a_qp(text) if encoded else text)


def named(name: str, id: str, header: str) -> str:
    """`name <id>`, as From and List-Id have it; only the id where the name is empty."""
    if not name:
        return id
    words = _encode_words(name, header)
    if words != name:  # the line of an encoded word has at most 76 characters (RFC 2047)
        return f"{words}\r\n <{id}>"
    if not re.fullmatch(r"[\w !#$%&'*+/=?^`{|}~-]*", name):
        words = '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
    return f"{words} <{id}>"


def _encode_words(text: str, header: str) -> str:
    # What only looks like an encoded word is encoded too, or it would be decoded on arrival.
    if text.isascii() and "=?" not in text:
        return text
    return Header(text, "utf-8", maxlinelen=75, header_name=header).encode(linesep="\r\n")


class Outlet(Protocol):
    """Where mail goes: plumbing.smtp.Smtp, or a Console."""

    def send(self, message: Message) -> None: ...
    def close(self) -> None: ...
    def interrupt(self) -> None: ...


class Console:
    """Where mail goes while there is no server: it is shown, and counts as sent."""

    def __init__(self, output: TextIO) -> None:
        self.output = output

    def __str__(self) -> str:
        return "this terminal"

    def send(self, message: Message) -> None:
        """Show the mail. Raises Failure."""
        try:
            head = f"--- mail to {message.recipient}\nSubject: {message.subject}\n\n"
            encoding = getattr(self.output, "encoding", None) or "utf-8"
            text = f"{head}{message.body}---".encode(encoding, "backslashreplace")
            print(text.decode(encoding), file=self.output, flush=True)
        except (OSError, ValueError) as error:  # a closed terminal
            raise Failure("server", str(error)) from error

    def close(self) -> None:
        """Nothing is open."""

    def interrupt(self) -> None:
        """Nothing waits."""
