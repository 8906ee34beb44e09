"""A thread that does one thing again and again, beside what a service answers."""

from __future__ import annotations

import atexit
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta

log = logging.getLogger("tracker")

JITTER = 1.1  # a wait is up to so many times as long, so that not all come at once


def backoff(attempts: int, first: float, longest: float) -> float:
    """Seconds to wait after one more failure: twice as long each time, up to the longest."""
    return min(first * 2.0 ** min(attempts, 60), longest) * random.uniform(1.0, JITTER)


def later(now: str, seconds: float) -> str:
    """A time, in RFC 3339 with milliseconds, so many seconds after another."""
    moment = datetime.fromisoformat(now) + timedelta(seconds=seconds)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Worker:
    """Calls `work` when woken, and every `seconds`, in a thread of the process that starts it.

    Nothing is started before start(), which may be called at each request; a forked child has
    no part in the thread of its parent. `interrupt` breaks off what `work` waits for.
    """

    def __init__(
        self, name: str, work: Callable[[], None], interrupt: Callable[[], None], seconds: float
    ) -> None:
        self._name, self._work, self._interrupt, self._seconds = name, work, interrupt, seconds
        self._starting = threading.Lock()
        self._awake = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: int | None = None  # the one whose thread it is
        self.trouble: str | None = None  # why it cannot start

    @property
    def stopping(self) -> bool:
        """Whether `work` should come to its end."""
        return self._stop.is_set()

    def start(self) -> None:
        """Run the thread, unless it runs. Where no thread is to be had, the next call tries."""
        # Nobody waits for another who starts it: where gevent makes a greenlet of each thread,
        # after this lock was made, that would stop the thread in which they both run.
        if self._process is None and not self.stopping and self._starting.acquire(blocking=False):
            try:
                if self._process is None:
                    self._start()
            finally:
                self._starting.release()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            # Only present in uWSGI, whose older versions run no threads unless told.
            if not getattr(sys.modules.get("uwsgi"), "has_threads", True):
                raise RuntimeError("uWSGI runs no threads without --enable-threads")
            # Signals are for the server: of two at once the second meets another thread, and
            # uWSGI ends its process in whichever that is, where it waits for ever.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                thread.start()  # with this mask
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        except RuntimeError as error:
            if not self.trouble:
                log.warning("The %s cannot start: %s", self._name, error)
            self.trouble = str(error)
            return
        self.trouble = None
        self._thread, self._process = thread, os.getpid()
        atexit.register(self.close)  # so that a process does not end amid the work

    def wake(self) -> None:
        """Have the work done now."""
        self._awake.set()

    def wait(self, seconds: float) -> bool:
        """For use in `work`: wait, but not beyond close(); whether it is time to stop."""
        return self._stop.wait(seconds)

    def close(self) -> None:
        """End the thread within 3 seconds: first politely, then by an interrupt."""
        if self._process not in (None, os.getpid()):
            return
        self._stop.set()
        self._awake.set()
        atexit.unregister(self.close)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1)
            if self._thread.is_alive():
                self._interrupt()
                self._thread.join(2)

    def _run(self) -> None:
        while not self.stopping:
            self._awake.clear()
            self._work()
            self._awake.wait(self._seconds)
