"""A program in its surroundings: how it speaks, how it is interrupted, and how it ends.

Whatever becomes of the terminal, closed, full, or of another encoding, stops no service.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TextIO

from .engine import without_password
from .settings import Command, Option, read_command_line

LINES = 1000  # that wait to be written to the log, at most


def run(
    program: str,
    about: str,
    options: Sequence[Option],
    commands: Sequence[Command],
    blame: Mapping[type[Exception], str],
    argv: Sequence[str] | None,
) -> int:
    """Do what the command line says; the exit status. What goes wrong is told in one line.

    `blame` names the setting that an exception is about. SIGTERM and Ctrl-C end every command,
    with 128 and the number of the signal, as shells count; the one without a name, which runs
    until then, with 0.
    """
    take_terminal()
    command, arguments, settings = read_command_line(program, about, options, commands, argv)
    name, stopped = program.split()[0], list[int]()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        raise KeyboardInterrupt

    _on_signals(stop)
    try:
        status = command.run(settings, *arguments)
        _on_signals(signal.SIG_IGN)  # it is about to end
        return status
    except BaseException as error:
        _on_signals(signal.SIG_IGN)
        if stopped:  # whatever became of it: SQLite has errors of its own for an interrupt
            say(f"{name}: interrupted", sys.stderr)
            return 128 + stopped[0] if command.usage else 0
        for kind, setting in blame.items():
            if isinstance(error, kind):
                shown = without_password(settings[setting])
                error = settings.fault(f"{shown}: {error}", setting)
        if not isinstance(error, (ValueError, OSError)):
            raise
        say(" ".join(f"{name}: {error}".splitlines()), sys.stderr)
        return 1


def _on_signals(act: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, act)


def say(words: str, output: TextIO | None = None) -> None:
    """Tell whoever still listens."""
    with suppress(OSError, ValueError):
        print(words, file=output or sys.stdout, flush=True)


def show_progress(words: str) -> None:
    """Show on a terminal, in one line, how far something is."""
    if sys.stderr and sys.stderr.isatty():
        with suppress(OSError, ValueError):
            print(f"\r{words} ", end="", file=sys.stderr, flush=True)


def show_share(done: int, all: int) -> None:
    """Show in the same way which part is done."""
    show_progress(f"{100 * done // all} %" + "\n" * (done == all))


def take_terminal() -> None:
    """Have standard output and error fail no program, and the log hold up nobody.

    1. What is closed is opened on nothing, or a file that is opened later takes its number.
    2. They have no buffer, whose rest the end of Python would wait for, or complain about. What
       their encoding lacks is escaped.
    3. The log is written by a thread: see Log.
    """
    with suppress(OSError):
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(fd)
    sys.stdout, sys.stderr = _unbuffered(1, sys.stdout), _unbuffered(2, sys.stderr)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Log(sys.stderr)])


def _unbuffered(fd: int, like: TextIO | None) -> TextIO:
    return io.TextIOWrapper(
        io.FileIO(fd, "w", closefd=False),  # as `python -u` has it
        encoding=like.encoding if like else "utf-8",
        errors="backslashreplace",
    )


class Log(logging.Handler):
    """Writes the log in a thread of its own, so that a pipe that nobody reads holds up nobody.

    So many lines wait for it; when more come, the oldest are dropped.
    """

    def __init__(self, output: TextIO) -> None:
        super().__init__()
        self._output = output
        self._lines: deque[str] = deque(maxlen=LINES)
        self._filled, self._writing = threading.Event(), False
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have it written soon."""
        self._lines.append(self.format(record))
        self._filled.set()

    def flush(self) -> None:
        """Wait until all is written, but not long; the end of the program calls this."""
        until = time.monotonic() + 0.5
        while (self._lines or self._writing) and time.monotonic() < until:
            time.sleep(0.005)

    def _write(self) -> None:
        while self._filled.wait():
            time.sleep(0.01)  # each line by itself would cost the server a change of threads
            self._filled.clear()
            self._writing = True
            words = "\n".join(self._lines.popleft() for _ in range(len(self._lines)))
            if words:
                say(words, self._output)
            self._writing = False
