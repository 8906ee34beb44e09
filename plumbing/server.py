"""The server: waitress, bounded in time, size and number, with one thread for all writes.

It knows what a read and a write are and nothing of paths: which reads may take long is told
by the service.
"""

from __future__ import annotations

import logging
import queue
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.utilities import BadRequest, RequestEntityTooLarge

from .web import MAX_BODY, Answer, Application, Environ, Problem, title_of

log = logging.getLogger("tracker")

TOGETHER = 64  # writes that share a commit, at most
PATIENCE = 30.0  # seconds for the head of a request, between two, and to begin reading an answer
SLOWEST = 1024  # bytes in a second, of a body and of an answer, after that time
MOST_CONNECTIONS = 900
OTHER_FILES = 64  # the database in each thread, its locks, the log, the mail server
MOST_UNREAD = 64 * 2**20  # bytes of answers that are still to be read, of all clients


def serve(
    app: Application,
    host: str,
    port: int,
    slow: Callable[[str], bool],
    ready: Callable[[str], None],
) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is told the URL, port 0 means any.

    `slow` says of a query whether a read with it may take long. Raises OSError if the port
    cannot be had.
    """
    sockets: dict[int, Any] = {}
    dispatcher = Dispatcher(app, slow)
    try:
        if not 0 <= port < 65536:  # the system would take it modulo 65536
            raise OSError("a port is a number from 0 to 65535")
        settings = Adjustments(
            host=host,
            port=port,
            max_request_header_size=64 * 1024,
            max_request_body_size=8 * MAX_BODY,  # as chunks, each with its overhead
            log_socket_errors=False,  # clients may go when they like
            clear_untrusted_proxy_headers=False,  # nobody looks at them
            inbuf_overflow=2**40,  # no temporary files: their folder may be full
            outbuf_overflow=2**40,
        )
        listeners = [
            Listener(app, sockets, dispatcher=dispatcher, adj=settings, sockinfo=address)
            for address in settings.listen
        ]
    except (OSError, ValueError) as error:
        raise OSError(f"cannot listen on {host} port {port}: {error}") from error

    stop = threading.Event()
    # Only a flag: an exception raised here could meet an `except` of waitress, and get lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.set())
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a queue is no cause for alarm
    # Handing the interpreter over between its threads is what costs waitress most.
    sys.setswitchinterval(0.0005)
    port = listeners[-1].effective_port
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    while not stop.is_set():
        patience = 0 if dispatcher.quick else 0.2
        wasyncore.loop(timeout=patience, use_poll=True, map=sockets, count=1)
        dispatcher.answer_quick()
        for listener in listeners:
            listener.look_after()
    dispatcher.shutdown(timeout=0.8)


class Dispatcher:
    """Decides which thread answers a request.

    A quick read costs less than handing it to a thread and back, so the loop that receives
    it answers it (bench/). Reads that may take long have threads, and no write waits with
    them. All writes have one thread, which lets them share commits.
    """

    def __init__(self, app: Application, slow: Callable[[str], bool]) -> None:
        self._app, self._slow = app, slow
        self.quick: deque[HTTPChannel] = deque()  # whom the loop itself is to answer
        self._readers = ThreadedTaskDispatcher()
        self._readers.set_thread_count(4)
        self._writes: queue.SimpleQueue[Channel | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()

    def add_task(self, channel: Channel) -> None:
        """Take the channel's request. Called by the loop, and by a thread that has answered one."""
        request = channel.requests[0]
        if request.error:
            self.quick.append(channel)
        elif request.command not in ("GET", "HEAD"):
            self._writes.put(channel)
        elif self._slow(request.query):
            self._readers.add_task(channel)
        else:
            self.quick.append(channel)

    def answer_quick(self) -> None:
        """Answer what the loop answers itself, but look after the others soon, and at a signal."""
        until = time.monotonic() + 0.1
        while self.quick and time.monotonic() < until:
            _answer(self.quick.popleft())

    def shutdown(self, timeout: float) -> None:
        """End the threads, after what they are at; `timeout` seconds for each kind."""
        self._writes.put(None)
        self._writer.join(timeout)
        self._readers.shutdown(timeout=timeout)

    def _write(self) -> None:
        """Answer writes, as many with one commit as wait for it.

        1. Take the first, and begin. 2. After each, look whether more have come: to take
        only those that waited at the start halves the rate where the disk is slow. 3. When
        all is committed, let the answers out.
        """
        while (channel := self._writes.get()) is not None:
            taken = [channel]
            try:
                answers = self._app.answer_together(self._waiting(taken))
            except Exception:  # a defect; the thread must go on
                log.exception("Writes were interrupted")
                for channel in taken:
                    channel.cancel()  # whether it was saved is not known, so nothing is said
                continue
            for channel, channel.prepared in zip(taken, answers, strict=True):
                _answer(channel)

    def _waiting(self, taken: list[Channel]) -> Iterator[Environ]:
        """The request of the channel in `taken`, then what else waits, which is added to it."""
        yield Task(taken[0], taken[0].requests[0]).get_environment()
        with suppress(queue.Empty):
            while len(taken) < TOGETHER:
                if (channel := self._writes.get_nowait()) is None:
                    self._writes.put(None)  # for the thread, which ends after this
                    return
                taken.append(channel)
                yield Task(channel, channel.requests[0]).get_environment()


def _answer(channel: HTTPChannel) -> None:
    try:
        channel.service()
    except Exception:  # of waitress; others wait
        log.exception("A connection broke")
        channel.will_close = True


class Task(WSGITask):
    """A request; one that the writing thread has answered already is only sent."""

    prepared: Answer | None = None

    def execute(self) -> None:
        """Answer the request."""
        application = self.channel.server.application
        self.tell(self.prepared or application.answer(self.get_environment()))

    def tell(self, answer: Answer) -> None:
        """Send the answer: to HEAD without its body."""
        self.complete = True
        self.status = f"{answer.status} {title_of(answer.status)}"
        self.response_headers += answer.headers.items()
        self.content_length = len(answer.body)
        head = self.build_response_header()
        self.wrote_header = True
        self.channel.write_soon(head if self.request.is_head else head + answer.body)  # at once

    def set_close_on_finish(self) -> None:
        """Close the connection after the answer, but not as it has no body, like a 204."""
        if self.has_body or self.version == "1.0" or self.request.connection_close:
            super().set_close_on_finish()


class ProblemTask(Task):
    """Says as a problem what waitress itself refuses."""

    def execute(self) -> None:
        """Answer what is no request, and drop what comes after it."""
        self.set_close_on_finish()
        self.tell(Problem(self.request.error.code, self.request.error.body).answer)
        self.channel.refused = 16 * MAX_BODY


class Parser(HTTPRequestParser):
    """Refuses early what is too large or contradicts itself, and takes one request at a time."""

    REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+( HTTP/[0-9]\.[0-9])?")
    is_head = False  # also of what is refused before its head is read

    def received(self, data: bytes) -> int:
        """Take what came; how much of it belongs to this request."""
        if not self.headers_finished:
            self.is_head = (self.header_plus[:99] + data[:99]).lstrip().startswith(b"HEAD ")
        consumed: int = super().received(data)
        body = self.body_rcv
        if max(self.content_length, 0 if body is None else len(body)) > MAX_BODY:
            self.error: Any = RequestEntityTooLarge(f"The body is larger than {MAX_BODY:,} bytes.")
            self.completed = True
        if self.completed:
            self.expect_continue = False  # waitress would wait for more, in vain
            if consumed < len(data) and not self.empty:
                # No pipelining: who asks on and on but reads no answers would block a thread.
                self.close_after()
                consumed = len(data)
        return consumed

    def close_after(self) -> None:
        """Have the connection closed after the answer."""
        self.headers["CONNECTION"], self.connection_close = "close", True

    def parse_header(self, header_plus: bytes) -> None:
        """Read the head. Raises ParsingError."""
        # The patterns of waitress take minutes for a long request line that is wrong, and for a
        # header full of blanks; and control characters would vanish from the path in silence.
        line, _, rest = header_plus.partition(b"\r\n")
        if not self.REQUEST_LINE.fullmatch(line.rstrip()):
            raise ParsingError("The request line is not valid.")
        if b" " * 100 in rest.replace(b"\t", b" ") or re.search(rb"\r\n[ \t]", header_plus):
            raise ParsingError("A header is folded, or holds too many blanks.")
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # of an address in brackets, of a length of 5,000 digits
            raise ParsingError(f"The request is not valid: {error}.") from error
        if "TRANSFER_ENCODING" in self.headers:  # RFC 9112, 6.1: HTTP/1.0 knows no chunks
            raise ParsingError("Transfer-Encoding needs HTTP/1.1.")
        if self.chunked and "CONTENT_LENGTH" in self.headers:  # who is right? RFC 9112, 6.3
            raise ParsingError("Content-Length and Transfer-Encoding contradict each other.")
        if self.version == "1.1" and ("HOST" not in self.headers or "," in self.headers["HOST"]):
            raise ParsingError("One Host is needed.")  # RFC 9112, 3.2
        if self.proxy_netloc:  # the host of an absolute target counts: RFC 9112, 3.2.2
            self.headers["HOST"] = self.proxy_netloc
        # Of the options, which waitress takes for one word, only these mean something here.
        options = re.split(r"[ \t]*,[ \t]*", self.headers.get("CONNECTION", "").lower())
        if "close" in options:
            self.close_after()
        elif "keep-alive" in options:
            self.headers["CONNECTION"] = "keep-alive"


class Channel(HTTPChannel):
    """A connection that knows how long its client is waited for, and hangs up gently.

    To close it while the client is still sending would reset it, and the client would
    never read why. So what comes after a refusal is dropped for a while, then it is closed.
    """

    parser_class = Parser
    error_task_class = ProblemTask
    request: Parser | None  # what of it has come
    prepared: Answer | None = None  # of the request that is served next
    refused = 0  # bytes that may still come
    lingering = False
    asking = False  # some of a request has come
    resting = False  # between two requests

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.begin_turn()

    def begin_turn(self) -> None:
        """From now on it is the client's turn: with a request, or to read an answer."""
        # By a clock that nobody sets. The bytes of a head do not count: it has a fixed time.
        self.since, self.progress = time.monotonic(), 0

    def patience(self, now: float) -> float:
        """The seconds for which the client will be waited for, by the monotonic clock."""
        if self.requests:  # it is our turn
            return PATIENCE
        return self.since + PATIENCE + self.progress / SLOWEST - now

    def received(self, data: bytes) -> bool:
        """Take what came."""
        if not self.asking:  # only once: blank lines before a request begin no new time
            self.asking, self.resting = True, False
            self.begin_turn()
        if self.request and self.request.headers_finished:
            self.progress += len(data)
        return bool(super().received(data))

    def service(self) -> None:
        """Answer the request."""
        super().service()
        self.asking, self.resting = False, True
        self.begin_turn()

    def send(self, data: bytes, do_close: bool = True) -> int:
        """Send some of the answer; how much of it went."""
        sent: int = super().send(data, do_close)
        self.progress += sent
        if sent == self.total_outbufs_len:  # that was the rest
            self.begin_turn()
        return sent

    def drop(self) -> None:
        """Close the connection at once."""
        self.refused = 0
        self.handle_close()

    def task_class(self, channel: Channel, request: Parser) -> Task:
        """The task that answers the request."""
        task = Task(channel, request)
        task.prepared, self.prepared = self.prepared, None
        return task

    def writable(self) -> bool:
        """Whether the loop has something to send."""
        if self.will_close:  # waitress would wait until the client reads, which it may never do
            self.handle_close()
            return False
        # Not while a thread is about to: the loop would ask again and again, in vain, and keep
        # the interpreter from that thread. It is woken when the thread is done.
        return not self.requests and bool(super().writable())

    def handle_close(self) -> None:
        """Close the connection, or begin to."""
        if not self.refused or self.lingering:
            super().handle_close()
        else:
            self.lingering, self.will_close = True, False
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def handle_read(self) -> None:
        """Take what the client sends; where that ends amid a body, tell so who may still listen."""
        if not self.lingering:
            if self.request and self.request.headers_finished and self._has_ended():
                self.request.error = BadRequest("The body breaks off.")
                self.requests.append(self.request)
                self.request = None
                self.server.add_task(self)
            else:
                super().handle_read()
        elif self.refused > 0:
            self.refused -= len(self.recv(MAX_BODY))
        else:
            super().handle_close()

    def _has_ended(self) -> bool:
        with suppress(OSError):
            return not self.socket.recv(1, socket.MSG_PEEK)
        return False


def _most_files() -> int:
    """How many files the process may have open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if files == resource.RLIM_INFINITY else files


class Listener(TcpWSGIServer):
    """Accepts connections, and has those who keep it waiting make room for others.

    1. Whoever takes too long, with a request, with reading an answer, or between the two, is
       dropped: see Channel.patience().
    2. Where places or files are short, the one who was waited for longest gives way to who
       comes, and those between two requests before all others.
    3. Where too much waits to be read, those who are slowest at it are dropped.
    """

    channel_class = Channel
    _look_again = _accept_again = _warn_again = 0.0  # by the monotonic clock
    _places = MOST_CONNECTIONS
    _knocking = False  # somebody comes, and there is no place

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        if (files := _most_files()) < OTHER_FILES + 4:
            raise OSError(f"{files} open files are too few: at least {OTHER_FILES + 4} are needed")

    def readable(self) -> bool:
        """Whether somebody may come."""
        return time.monotonic() >= self._accept_again

    def look_after(self) -> None:
        """Drop who must be dropped. Called by the loop between its rounds.

        Within a round the number of a file that is closed might come again, and what was heard
        of the old connection would be taken for the new one.
        """
        now = time.monotonic()
        if self._knocking:
            self._knocking = False
            if slowest := self._slowest(now):
                slowest.drop()
            else:  # to ask again at once would be in vain
                self._accept_again = now + 0.2
        if now >= self._look_again:
            self._look_again = now + 0.2
            self._places = max(4, min(_most_files() - OTHER_FILES, MOST_CONNECTIONS))
            self._drop_the_slow(now)

    def handle_accept(self) -> None:
        """Take a connection, or have room made for it before the next round."""
        self._knocking = len(self._map) >= self._places
        try:
            if not self._knocking and (accepted := self.accept()) is not None:
                connection, address = accepted
                self.set_socket_options(connection)
                Channel(self, connection, address, self.adj, map=self._map)
        except OSError as error:  # no file, or no memory
            self._knocking = True
            if (now := time.monotonic()) >= self._warn_again:
                log.warning("Connections must wait: %s", error)
                self._warn_again = now + 60

    def _channels(self) -> list[Channel]:
        """Those whose turn it is."""
        return [
            channel
            for channel in self._map.values()
            if isinstance(channel, Channel) and not channel.requests
        ]

    def _slowest(self, now: float) -> Channel | None:
        def position(channel: Channel) -> tuple[bool, float]:
            return not channel.resting or channel.total_outbufs_len > 0, channel.patience(now)

        return min(self._channels(), key=position, default=None)

    def _drop_the_slow(self, now: float) -> None:
        channels = sorted(self._channels(), key=lambda channel: channel.patience(now))
        unread = sum(channel.total_outbufs_len for channel in channels)
        for channel in channels:
            size = channel.total_outbufs_len
            if channel.patience(now) < 0 or (size and unread > MOST_UNREAD):
                channel.drop()
                unread -= size
