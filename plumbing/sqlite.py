"""One SQLite file for many threads and processes: connections, the one writer, set-up, backup.

No statement about the domain stands here; what the file holds is told by a Schema.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import sqlite3
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from . import Unavailable

BUSY_SECONDS = 4.0  # how long a transaction waits for its turn
WAL_BYTES = 16 * 2**20  # beyond this the WAL is emptied, and who reads is waited for
RESTART_SECONDS = 1.0  # how long that may hold up those who write


class Schema(NamedTuple):
    """What a database holds: how to create it, and how to bring older ones forward."""

    application_id: int  # tells our files from those of other programs
    create: str  # SQL of the newest version
    upgrades: tuple[str, ...]  # the SQL that takes version 1 to 2, then 2 to 3, and so on
    functions: Mapping[str, Callable[[str], str]]  # of one text, for the upgrades


class Connection(sqlite3.Connection):
    """A connection in a transaction, with the one time that counts in it."""

    now: str  # RFC 3339 in UTC with milliseconds


class Database:
    """A database of the given schema in the file at `path`, created where there is none.

    Between its calls it has nothing open until it is first read or written, so that a
    process may fork before that; a child forked later is refused. `clock` tells the time in
    UTC. `progress` is told what is done when an older database is brought forward. Raises
    Unavailable if the file cannot be opened, is damaged, another program's or a newer one.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: Schema,
        clock: Callable[[], datetime],
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise Unavailable(f"SQLite 3.37 or newer is needed, this is {sqlite3.sqlite_version}.")
        self.name = os.fspath(path)
        self.path = os.path.realpath(path)  # by whatever link it is opened: the same locks
        self._schema, self._clock = schema, clock
        self._turn = Turn()
        self._file = LockFile(self.path)
        self._mine = threading.local()  # .conn: the connection of the batch that a thread is in
        self._idle: list[Connection] = []
        self._process: int | None = None  # the one that has something open
        self._closed = False
        try:
            self._set_up(progress)
        finally:
            self._release()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database, and changes nothing."""
        with self._connection() as conn:
            conn.execute("BEGIN")
            try:
                conn.now = self._now()
                yield conn
            finally:
                conn.rollback()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or taken back on any exception.

        In a thread that is in a batch() it becomes a part of that, and is committed with it.
        """
        conn: Connection | None = getattr(self._mine, "conn", None)
        if conn is None:
            with self.batch(), self.write() as conn:
                yield conn
            return
        conn.execute("SAVEPOINT part")
        try:
            conn.now = self._now()
            yield conn
            conn.execute("RELEASE part")
        except BaseException as error:
            if _is_fault(error):  # the batch is over, and with it this part of it
                raise _unavailable(error) from error
            conn.execute("ROLLBACK TO part")
            conn.execute("RELEASE part")
            raise

    @contextmanager
    def batch(self) -> Iterator[None]:
        """One transaction for all that this thread writes until the end: one wait for the disk.

        1. Wait for the turn among this process's threads, then for the lock among processes.
        2. BEGIN. Each write() is a savepoint in it, and can be taken back by itself.
        3. COMMIT, or roll back all on any exception, which is passed on.
        4. Where the WAL has grown long, empty it. No other connection may commit while one
           checkpoints: SQLite 3.7.0 to 3.51.2 can lose a committed write otherwise ("the
           WAL-reset bug", sqlite.org/wal.html). That is why the lock is held up to here.
        5. Let go, in a `finally`; see Turn for why nothing can leave it held.
        """
        self._refuse_children()
        deadline = time.monotonic() + BUSY_SECONDS
        with (
            self._turn.taken(deadline),
            self._file.locked(WRITES, deadline),
            self._connection() as conn,
        ):
            # IMMEDIATE: a transaction that reads first and writes later fails at once
            # with "database is locked" if somebody else wrote in between.
            conn.execute("BEGIN IMMEDIATE")
            try:
                self._mine.conn = conn
                yield
                conn.execute("COMMIT")
            finally:
                self._mine.conn = None
                conn.rollback()  # does nothing after the commit
            self._empty_wal(conn)

    def may_deliver(self) -> bool:
        """Whether this database object is, now or still, the one that delivers for the file.

        One at a time among all processes, until stop_delivering(), close() or death.
        """
        self._refuse_children()
        self._process = os.getpid()
        return self._file.acquire(DELIVERS)

    def stop_delivering(self) -> None:
        """Let somebody else deliver."""
        self._file.release(DELIVERS)

    def close(self) -> None:
        """Close the connections: now those that are idle, the others after their use."""
        self._closed = True
        self._release()

    def _now(self) -> str:
        moment = self._clock().astimezone(UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _empty_wal(self, conn: Connection) -> None:
        # While reads overlap, some of them always need the WAL, and SQLite can never begin it
        # anew by itself. TRUNCATE waits until those who read now have ended; who comes later
        # finds all in the database and needs no WAL.
        with suppress(OSError, sqlite3.Error):
            if os.path.getsize(self.path + "-wal") > WAL_BYTES:
                conn.execute(f"PRAGMA busy_timeout = {RESTART_SECONDS * 1000:.0f}")
                try:
                    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                finally:
                    conn.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000:.0f}")

    # ------------------------------------------------------------ connections

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection for this thread's use. Raises Unavailable for what SQLite cannot do."""
        self._refuse_children()
        conn = None
        try:
            with suppress(IndexError):
                conn = self._idle.pop()
            conn = conn or self._connect()
            yield conn
        except BaseException as error:
            # A connection is given up unless it has only been told of an error of ours. Where
            # the file is at fault, only a new one sees that it is mended; but while the disk is
            # full none might be had, as each creates files.
            cause = error.__cause__ or error
            if conn and (conn.in_transaction or _code(cause) in _FILE_AT_FAULT):
                with suppress(sqlite3.Error):
                    conn.close()
                conn = None
            if _is_fault(error):
                raise _unavailable(error) from error
            raise
        finally:
            if conn:
                self._idle.append(conn)
            if self._closed:
                self._release()

    def _refuse_children(self) -> None:
        # Neither a connection nor SQLite's own book of locks may cross a fork: a child that
        # opened anew would commit without a real lock, and writes would be lost.
        if self._process not in (None, os.getpid()):
            raise Unavailable(
                "This process was forked from one that had the database open, which SQLite"
                " forbids. Fork before the first request, or create the application after it."
            )

    def _connect(self) -> Connection:
        self._process = os.getpid()
        conn: Connection = sqlite3.connect(
            self.path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,  # it is lent to one thread at a time
            factory=Connection,
        )
        try:
            conn.execute("PRAGMA foreign_keys = ON")
            conn.execute("PRAGMA synchronous = FULL")  # on disk before it is acknowledged
            conn.execute("PRAGMA temp_store = MEMORY")  # SQLite's own temporary files need a folder
        except BaseException:
            conn.close()
            raise
        return conn

    def _release(self) -> None:
        """Leave nothing open but what is in use just now."""
        if self._process not in (None, os.getpid()):
            return  # what is open belongs to the parent
        with suppress(IndexError):
            while True:
                self._idle.pop().close()
        self._file.close()
        if not self._closed:
            self._process = None

    # ------------------------------------------------------------ set-up

    def _set_up(self, progress: Callable[[str], None]) -> None:
        """Have the newest schema in the file: nothing to do, create it, or bring it forward.

        1. Look, without a lock, as nearly always there is nothing to do.
        2. Take the turn to write, and look again: somebody else may have come first.
        3. Do it in one transaction, so that whoever is killed in it leaves it as it was.
        """
        version = self._version()
        if version < self._newest:
            deadline = time.monotonic() + BUSY_SECONDS
            with self._turn.taken(deadline), self._file.locked(WRITES, deadline):
                version = self._version()
                if version < self._newest:
                    self._bring_forward(progress)
        with self._connection() as conn:
            self._check(conn)

    @property
    def _newest(self) -> int:
        return 1 + len(self._schema.upgrades)

    def _version(self) -> int:
        """The version of the schema in the file; 0 for an empty one, or without a WAL."""
        with self._connection() as conn:
            # In this order, as somebody else may be about to set it up.
            (filled,) = conn.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()
            (application,) = conn.execute("PRAGMA application_id").fetchone()
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            if filled and application != self._schema.application_id:
                raise Unavailable("The file is the database of another program.")
            if version > self._newest:
                raise Unavailable(
                    "The database was written by a newer version of the program"
                    f" (schema {version}, and this one knows {self._newest})."
                )
            (journal,) = conn.execute("PRAGMA journal_mode").fetchone()
            return int(version) if journal == "wal" or version < self._newest else 0

    def _bring_forward(self, progress: Callable[[str], None]) -> None:
        with self._connection() as conn:
            if conn.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise Unavailable("The database is on a file system that cannot hold a WAL.")
            (version,) = conn.execute("PRAGMA user_version").fetchone()
            script = self._schema.create if not version else ""
            for upgrade in self._schema.upgrades[version - 1 :] if version else ():
                script += upgrade.replace("-- schema.sql --", self._schema.create)
            for name, function in self._schema.functions.items():
                conn.create_function(name, 1, function, deterministic=True)
            statements = list(_statements(script))
            conn.execute("PRAGMA foreign_keys = OFF")  # tables are renamed and dropped
            conn.execute("PRAGMA legacy_alter_table = ON")
            began, done = time.monotonic(), 0

            def tell() -> int:
                if version and time.monotonic() > began + 1:
                    seconds = time.monotonic() - began
                    progress(
                        f"Bringing {self.name} forward to schema {self._newest}:"
                        f" step {done} of {len(statements)}, {seconds:.0f} s"
                    )
                return 0

            conn.set_progress_handler(tell, 1_000_000)  # about twice a second
            try:
                conn.execute("BEGIN IMMEDIATE")
                for statement in statements:
                    conn.execute(statement)
                    done += 1
                conn.execute(f"PRAGMA application_id = {self._schema.application_id}")
                conn.execute(f"PRAGMA user_version = {self._newest}")
                conn.execute("COMMIT")
            except sqlite3.IntegrityError as error:
                raise Unavailable(f"The database cannot be brought forward ({error}).") from error
            finally:
                conn.rollback()
                conn.set_progress_handler(None, 0)

    def _check(self, conn: Connection) -> None:
        """See that tables and rules are those of the schema, to the letter: others may be added."""
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(self._schema.create)
            query = "SELECT type, name, sql FROM sqlite_schema"
            ours = {row for row in model.execute(query) if (row[2] or ";") in self._schema.create}
            lacking = ours - set(conn.execute(query))
        if lacking:
            names = ", ".join(sorted(f"{type} {name}" for type, name, _ in lacking))
            raise Unavailable(f"The database is damaged: {names} is not as it should be.")

    # ------------------------------------------------------------ backup

    def backup(self, target: str, progress: Callable[[int, int], None]) -> None:
        """Write a consistent copy to `target`, replacing it only when the copy is whole.

        `progress` is called with the pages done and the pages in all. Raises OSError if
        the target cannot be written, Unavailable if the database cannot be read.
        """
        partial = f"{target}.partial"
        for path in (target, partial):
            if os.path.exists(path) and os.path.samefile(path, self.path):
                raise FileExistsError(f"{path} is the database itself")
        Path(partial).write_bytes(b"")  # says better than SQLite what is wrong with the place
        try:
            with closing(sqlite3.connect(partial)) as copy, self.read() as conn:
                # This read fixes the snapshot. Without it, each write by somebody else
                # would make the backup begin anew.
                conn.execute("SELECT 1 FROM sqlite_schema").fetchall()
                conn.backup(
                    copy, pages=1000, progress=lambda _, left, all: progress(all - left, all)
                )
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a -wal beside it
            os.replace(partial, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(partial)
            raise


# ---------------------------------------------------------------- locks

WRITES, DELIVERS = 0, 1  # bytes of the lock file


class Turn:
    """A lock among the threads of a process that nothing can leave held.

    It is held by an object as long as that lives, and only the frame of its holder knows the
    object. Whatever ends that frame, an exception, a signal, Ctrl-C between any two
    instructions, ends the object, and the turn is free. Who waits looks again and again.
    """

    class Holder:
        """What holds the turn by being alive."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holder: Callable[[], Turn.Holder | None] = lambda: None

    @contextmanager
    def taken(self, deadline: float) -> Iterator[None]:
        """Have the turn. Raises Unavailable at the deadline, by time.monotonic()."""
        me = self.Holder()
        try:
            while not self._take(weakref.ref(me)):
                _wait(deadline)
            yield
        finally:
            del me  # a traceback may keep the frame

    def _take(self, holder: Callable[[], Holder | None]) -> bool:
        with self._mutex:
            if free := self._holder() is None:
                self._holder = holder
            return free


class LockFile:
    """Locks among processes on bytes of one file beside the database; death frees them.

    The file has the owner and mode of the database, is opened once, and where it was
    removed or replaced meanwhile, the new one counts. On Linux the locks belong to the open
    file, so that two databases in one process exclude each other, too.
    """

    def __init__(self, database: str) -> None:
        self._database, self._path = database, database + "-lock"
        self._opening = threading.Lock()
        self._fd: int | None = None

    @contextmanager
    def locked(self, byte: int, deadline: float) -> Iterator[None]:
        """Hold the lock. Raises Unavailable at the deadline, by time.monotonic()."""
        try:
            while not self.acquire(byte):
                _wait(deadline)
            yield
        finally:
            self.release(byte)  # no harm where it is not held

    def acquire(self, byte: int) -> bool:
        """Whether the lock is ours, now or still. Raises Unavailable if it cannot be had."""
        try:
            with self._opening:
                if self._fd is None or not self._is_current(self._fd):
                    self._close()
                    self._fd = self._open()
                _lock_byte(self._fd, byte, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self._is_current(self._fd)
        except (BlockingIOError, PermissionError) as error:
            if error.errno in (errno.EAGAIN, errno.EACCES) and error.filename is None:
                return False  # somebody else has it
            raise Unavailable(f"The database cannot be locked ({error}).") from error
        except OSError as error:
            raise Unavailable(f"The database cannot be locked ({error}).") from error

    def release(self, byte: int) -> None:
        """Let go of the lock."""
        if self._fd is not None:
            with suppress(OSError):
                _lock_byte(self._fd, byte, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of all locks, and of the file."""
        with self._opening:
            self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with suppress(FileNotFoundError):
            return os.open(self._path, flags)
        like = os.stat(self._database)
        fd = os.open(self._path, flags | os.O_CREAT, 0o600)
        with suppress(OSError):  # only root may give a file away
            os.fchmod(fd, like.st_mode & 0o666)
            os.fchown(fd, like.st_uid, like.st_gid)
        return fd

    def _is_current(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(fd))
        except FileNotFoundError:
            return False


def _lock_byte(fd: int, byte: int, how: int) -> None:
    if sys.platform == "linux":
        # The locks of lockf() belong to the process, which loses all of them when any part of
        # it opens and closes the file. These belong to the open file.
        kind = fcntl.F_UNLCK if how == fcntl.LOCK_UN else fcntl.F_WRLCK
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    else:
        fcntl.lockf(fd, how, 1, byte)


def _wait(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise Unavailable("The database is locked by another writer.")
    time.sleep(random.uniform(0.0001, 0.001))


# ---------------------------------------------------------------- faults

_WORDS = {
    sqlite3.SQLITE_PERM: "may not be accessed",
    sqlite3.SQLITE_BUSY: "is locked by another writer",
    sqlite3.SQLITE_LOCKED: "is locked by another writer",
    sqlite3.SQLITE_NOMEM: "does not get the memory that it needs",
    sqlite3.SQLITE_INTERRUPT: "was interrupted",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PROTOCOL: "is locked by another writer",
    sqlite3.SQLITE_NOTADB: "is not a database",
}
_FILE_AT_FAULT = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
}


def _code(error: BaseException) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF


def _is_fault(error: BaseException) -> bool:
    # All that SQLite complains of is the fault of the file or the machine, as the statements
    # are ours and tested, and what they are given was checked: damage shows as a broken rule,
    # as an unknown column, or as text that is not UTF-8, in a value or in SQLite's own words.
    misused = isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError))
    return isinstance(error, (sqlite3.Error, UnicodeDecodeError)) and not misused


def _unavailable(error: BaseException) -> Unavailable:
    return Unavailable(f"The database {_WORDS.get(_code(error), 'is damaged')} ({error}).")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: executescript() would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
