"""The server: waitress, bounded in size and number, with one thread for all writes.

It knows what a read and a write are and nothing of paths: which reads may take long is told
by the service.
"""

from __future__ import annotations

import logging
import queue
import re
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import BaseWSGIServer, create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask
from waitress.utilities import RequestEntityTooLarge

from .web import MAX_BODY, Answer, Application, Environ, Problem, title_of

log = logging.getLogger("tracker")

TOGETHER = 64  # writes that share a commit, at most


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
        create_server(
            app,
            map=sockets,
            host=host,
            port=port,
            _dispatcher=dispatcher,
            connection_limit=900,  # and the files of the database within the usual 1024
            channel_timeout=30,
            cleanup_interval=5,
            max_request_header_size=64 * 1024,
            outbuf_overflow=16 * 2**20,  # beyond it a temporary file, which may not be to be had
            max_request_body_size=8 * MAX_BODY,  # as chunks, each with its overhead
            asyncore_use_poll=True,
        )
    except (OSError, ValueError) as error:
        raise OSError(f"cannot listen on {host} port {port}: {error}") from error
    for listener in sockets.values():
        if isinstance(listener, BaseWSGIServer):
            listener.channel_class = Channel
            port = listener.effective_port

    stop = threading.Event()
    # Only a flag: an exception raised here could meet an `except` of waitress, and get lost.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, frame: stop.set())
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a queue is no cause for alarm
    # Handing the interpreter over between its threads is what costs waitress most.
    sys.setswitchinterval(0.0005)
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    while not stop.is_set():
        wasyncore.loop(timeout=0.2, use_poll=True, map=sockets, count=1)
        dispatcher.answer_quick()
    dispatcher.shutdown(timeout=0.8)


class Dispatcher:
    """Decides which thread answers a request.

    A quick read costs less than handing it to a thread and back, so the loop that receives
    it answers it (bench/). Reads that may take long have threads, and no write waits with
    them. All writes have one thread, which lets them share commits.
    """

    def __init__(self, app: Application, slow: Callable[[str], bool]) -> None:
        self._app, self._slow = app, slow
        self._quick: deque[HTTPChannel] = deque()
        self._readers = ThreadedTaskDispatcher()
        self._readers.set_thread_count(4)
        self._writes: queue.SimpleQueue[Channel | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()

    def add_task(self, channel: Channel) -> None:
        """Take the channel's request. Called by the loop, and by a thread that has answered one."""
        request = channel.requests[0]
        if request.error:
            self._quick.append(channel)
        elif request.command not in ("GET", "HEAD"):
            self._writes.put(channel)
        elif self._slow(request.query):
            self._readers.add_task(channel)
        else:
            self._quick.append(channel)

    def answer_quick(self) -> None:
        """Answer what the loop has received and answers itself."""
        while self._quick:
            _answer(self._quick.popleft())

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
        if self.prepared is None:
            super().execute()
            return
        self.complete = True
        self.status = f"{self.prepared.status} {title_of(self.prepared.status)}"
        self.response_headers = list(self.prepared.headers.items())
        self.content_length = len(self.prepared.body)
        self.write(self.prepared.body)


class ProblemTask(ErrorTask):
    """Says as a problem what waitress itself refuses."""

    def execute(self) -> None:
        """Answer what is no request, and drop what comes after it."""
        answer = Problem(self.request.error.code, self.request.error.body).answer
        self.status = f"{answer.status} {title_of(answer.status)}"
        self.response_headers.extend(answer.headers.items())
        self.set_close_on_finish()
        self.content_length = len(answer.body)
        self.write(answer.body)
        self.channel.refused = 16 * MAX_BODY


class Parser(HTTPRequestParser):
    """Refuses early what is too large or contradicts itself, and takes one request at a time."""

    REQUEST_LINE = re.compile(rb"[!-~]+ [!-~]+( HTTP/[0-9]\.[0-9])?")

    def received(self, data: bytes) -> int:
        """Take what came; how much of it belongs to this request."""
        consumed: int = super().received(data)
        body = self.body_rcv
        if max(self.content_length, 0 if body is None else len(body)) > MAX_BODY:
            self.error: Any = RequestEntityTooLarge(f"The body is larger than {MAX_BODY:,} bytes.")
            self.completed = True
        if self.completed:
            self.expect_continue = False  # waitress would wait for more, in vain
            if consumed < len(data) and not self.empty:
                # No pipelining: who asks on and on but reads no answers would block a thread.
                self.headers["CONNECTION"] = "close"
                consumed = len(data)
        return consumed

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


class Channel(HTTPChannel):
    """A connection that hangs up gently.

    To close it while the client is still sending would reset it, and the client would
    never read why. So what comes after a refusal is dropped for a while, then it is closed.
    """

    parser_class = Parser
    error_task_class = ProblemTask
    prepared: Answer | None = None  # of the request that is served next
    refused = 0  # bytes that may still come
    lingering = False

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
        """Take what the client sends."""
        if not self.lingering:
            super().handle_read()
        elif self.refused > 0:
            self.refused -= len(self.recv(MAX_BODY))
        else:
            super().handle_close()
