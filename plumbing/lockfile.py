"""Locks among processes, on bytes of one file beside the database."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from . import Unavailable

WRITES, DELIVERS = 0, 1  # bytes of the lock file


class LockFile:
    """The file with the locks of a database.

    Death frees them, unless a child that was forked meanwhile lives on. The file has the owner
    and mode of the database, is opened once, and where it was removed or replaced, the new one
    counts. On Linux the locks belong to the open file, so that two databases in one process
    exclude each other, too.
    """

    def __init__(self, database: str) -> None:
        self._database, self._path = database, database + "-lock"
        self._opening = threading.Lock()
        self._fd: int | None = None
        # Lets go of each byte in one call that no signal can come before; these do nothing.
        self.unlock: list[Callable[[], object]] = [int, int]

    def acquire(self, byte: int) -> bool:
        """Whether the lock is ours, now or still. Raises Unavailable if it cannot be had."""
        try:
            with self._opening:
                if self._fd is None or not self._is_current(self._fd):
                    self._close()
                    self._fd = fd = self._open()
                    self.unlock = [set_lock(fd, n, fcntl.LOCK_UN) for n in (WRITES, DELIVERS)]
                set_lock(self._fd, byte, fcntl.LOCK_EX | fcntl.LOCK_NB)()
                return self._is_current(self._fd)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES) and error.filename is None:
                return False  # somebody else has it
            raise Unavailable(f"The database cannot be locked ({error}).") from error

    def close(self) -> None:
        """Let go of all locks, and of the file."""
        with self._opening:
            self._close()

    def _close(self) -> None:
        fd, self._fd, self.unlock = self._fd, None, [int, int]
        if fd is not None:
            os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(FileNotFoundError):
            return os.open(self._path, flags)
        like = os.stat(self._database)
        fd = os.open(self._path, flags | os.O_CREAT, 0o600)
        make_alike(fd, like, at_least=0o600)  # also while the database is read-only
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(fd))
        except FileNotFoundError:
            return False


def make_alike(fd: int, like: os.stat_result, at_least: int = 0) -> None:
    """Give a new file the mode and the owner of another, as far as that is allowed."""
    with suppress(OSError):
        os.fchmod(fd, like.st_mode & 0o666 | at_least)
    with suppress(OSError):
        os.fchown(fd, -1, like.st_gid)  # to a group of one's own
    with suppress(OSError):
        os.fchown(fd, like.st_uid, -1)  # only root may


def set_lock(fd: int, byte: int, how: int) -> Callable[[], object]:
    """The system call that locks or unlocks the byte; it raises OSError."""
    if sys.platform != "linux":
        return partial(fcntl.lockf, fd, how, 1, byte)
    # The locks of lockf() belong to the process, which loses all of them when any part of it
    # opens and closes the file. These belong to the open file.
    kind = fcntl.F_UNLCK if how == fcntl.LOCK_UN else fcntl.F_WRLCK
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
    return partial(fcntl.fcntl, fd, fcntl.F_OFD_SETLK, lock)
