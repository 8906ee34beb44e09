"""An SMTP server that does what it is told, step by step: well, badly, slowly, or not at all."""

import re
import socket
import ssl
import struct
import threading
from contextlib import suppress
from email import message_from_bytes
from email.policy import default


class Over(Exception):
    """The connection ends here."""


class ScriptedServer:
    """An SMTP server on a raw socket. `script` maps steps to behaviours; the others go well.

    The steps: connect, greeting, the commands, TLS (the handshake) and "." (the end of a
    mail). "RCPT Max" is the step for Max alone, "EHLO encrypted" the one after STARTTLS.

    Time may pass for the client alone, so that one who is patient with a busy machine gives up
    at once where a test wants that: see `passed`.
    """

    def __init__(self, script, offers=(), host="127.0.0.1", certificate=None):
        self.script, self.offers, self.certificate = script, offers, certificate
        self.connections = 0
        self.passed = 0.0  # seconds; the fixture `scripted` adds them to the time of the client
        self.heard = []  # all commands
        self.seen = []  # (recipient, Message-ID) of each mail that came to its end
        self.taken = []  # the same, of those that were answered with 250
        self.over = threading.Event()
        self._listener = socket.socket()
        self._listener.bind((host, 0))
        self.authority = f"{host}:{self._listener.getsockname()[1]}"
        self.url = f"smtp://{self.authority}"
        self.sockets = []
        self._threads = []
        script.get("connect", ScriptedServer.listen)(self)

    def listen(self):
        self._listener.listen(100)
        self._listener.settimeout(0.01)  # closing a socket does not wake who accepts on it
        self._run(self._accept)

    def refuse(self):
        """Its port is taken, but nobody listens."""

    def leave_no_room(self):
        """Nobody accepts, and the queue is full: who connects gets no answer at all."""
        self._listener.listen(0)
        self.sockets = [socket.socket() for _ in range(3)]
        for filler in self.sockets:
            filler.setblocking(False)
            filler.connect_ex(self._listener.getsockname())

    def cure(self):
        """From now on all goes well, for each new step."""
        deaf, self.script = "connect" in self.script, {}
        if deaf:
            for filler in self.sockets:
                filler.close()
            self.listen()

    def stop(self):
        self.over.set()
        for thread in self._threads[:1]:  # who accepts, so that no socket is opened any more
            thread.join()
        for sock in self.sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self.sockets:
            sock.close()
        self._listener.close()

    def _run(self, target, *args):
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        while not self.over.is_set():
            with suppress(TimeoutError):
                sock, _ = self._listener.accept()
                sock.settimeout(None)
                self.connections += 1
                self.sockets.append(sock)
                self._run(self._talk, Talk(self, sock))

    def _talk(self, talk):
        with suppress(OSError, ValueError, Over):
            talk.run()
        talk.close()


USUAL = {
    "greeting": "220 ready",
    "STARTTLS": "220 go ahead",
    "AUTH": "235 welcome",
    "DATA": "354 go on",
    ".": "250 taken",
    "QUIT": "221 bye",
}


class Talk:
    """One connection to the scripted server."""

    def __init__(self, server, sock):
        self.server, self.sock, self.lines = server, sock, sock.makefile("rb")
        self.encrypted = False
        self.step = self.said = self.recipient = ""
        self.message_id = None

    def run(self):
        self.do("greeting")
        while line := self.lines.readline().decode():
            self.server.heard.append(line)
            verb = line.split()[0].upper()
            if verb == "RCPT":
                self.recipient = re.search("<(.*)>", line)[1]
            self.do(verb)
            if verb == "STARTTLS" and self.said.startswith("220"):
                self.do("TLS")
            if verb == "DATA" and self.said.startswith("354"):
                self.hear_mail()
                self.do(".")
            if verb == "QUIT":
                return

    def do(self, step):
        self.step, self.said = step, ""
        name = self.recipient.partition("@")[0].capitalize()
        script = self.server.script
        behaviour = script.get(f"{step} {name}") or script.get(step)
        if self.encrypted:
            behaviour = script.get(f"{step} encrypted") or behaviour
        (behaviour or go_well)(self)

    def usual(self):
        if self.step == "EHLO":
            done = {"STARTTLS"} if self.encrypted else set()
            offers = [f"250-{name}\r\n" for name in self.server.offers if name not in done]
            return "".join(["250-hello\r\n", *offers, "250 HELP"])
        return USUAL.get(self.step, "250 OK")

    def reply(self, text, already=0):
        """Say the text, of which so many characters were said already."""
        self.said = text
        if self.step == "." and text.startswith("2"):
            self.server.taken.append((self.recipient, self.message_id))
        self.say(f"{text}\r\n".encode("latin-1")[already:])

    def say(self, data):
        self.sock.sendall(data)

    def pause(self, seconds):
        if self.server.over.wait(seconds):
            raise Over

    def hear_mail(self):
        content = b""
        while not content.endswith(b"\r\n.\r\n"):
            if not (line := self.lines.readline()):
                raise Over
            content += line
        self.message_id = message_from_bytes(content, policy=default)["Message-ID"]
        self.server.seen.append((self.recipient, self.message_id))

    def encrypt(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.certificate.configure_cert(context)
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self.server.sockets.append(self.sock)
        self.lines = self.sock.makefile("rb")
        self.encrypted = True

    def close(self):
        self.lines.close()
        self.sock.close()


def go_well(talk):
    if talk.step == "TLS":
        talk.encrypt()
    else:
        talk.reply(talk.usual())


def reply(text):
    return lambda talk: talk.reply(text)


def hang(talk):
    talk.lines.read()
    raise Over


def outlast(talk):
    """Hang for longer than the client waits, for whom that time passes at once."""
    talk.pause(0.05)  # else it may begin to wait only now, and then wait in earnest
    talk.server.passed += 3600
    hang(talk)


def drop(talk):
    raise Over


def reset(talk):
    """Drop without the usual end: the client reads an error instead of an end."""
    talk.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raise Over


def garble(talk):
    talk.say(b"\x16\x03\x01 no such thing \xff\xfe\r\n" * 2)


def say_a_megabyte(talk):
    talk.say(b"2" * 2**20)
    hang(talk)


def say_lines_for_ever(talk):
    code = talk.usual()[:3].encode()
    while True:
        talk.say((code + b"-" + b"x" * 60 + b"\r\n") * 1000)


def drip_for_ever(talk):
    """Say a byte every half a second of the client."""
    while True:
        talk.say(b"2")
        talk.server.passed += 0.45
        talk.pause(0.05)


def drip(seconds):
    """The usual answer, but so many seconds for each byte."""

    def behaviour(talk):
        text = talk.usual()
        for char in text:
            talk.say(char.encode())
            talk.pause(seconds)
        talk.reply(text, already=len(text))

    return behaviour


def read_slowly(talk):
    """Have the mail sent, and read a byte every half a second of the client."""
    talk.reply("354 go on")
    while talk.sock.recv(1):
        talk.server.passed += 0.45
        talk.pause(0.05)
    raise Over


def each(*behaviours):
    """One after the other."""

    def behaviour(talk):
        for one in behaviours:
            one(talk)

    return behaviour


def after(seconds):
    return lambda talk: talk.pause(seconds)
