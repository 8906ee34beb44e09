"""One SQLite file for many threads and processes: connections, the one writer, set-up, backup.

No statement about the domain stands here; what the file holds is told by a Schema.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import random
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any, TypeGuard
from urllib.parse import quote

from . import Unavailable, engine, lockfile
from .engine import BUSY_SECONDS, Clock, Schema
from .lockfile import DELIVERS, WRITES, LockFile

WAL_BYTES = 16 * 2**20  # beyond this the WAL is emptied, and who reads is waited for
RESTART_SECONDS = 1.0  # how long that may hold up those who write


class Connection(sqlite3.Connection):
    """An engine.Connection."""

    now: str
    plans = False
    patience = BUSY_SECONDS  # how long it waits for others

    def wait_for_others(self, seconds: float) -> None:
        """Wait so long, from now on."""
        if seconds != self.patience:
            self.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")
            self.patience = seconds

    @staticmethod
    def contains(column: str, value: str) -> str:
        return f"instr({column}, {value}) > 0"

    def columns(self, table: str) -> list[str]:
        return [name for (_, name, *_) in self.execute(f"PRAGMA table_info({table})")]

    def stream(self, sql: str) -> Iterable[tuple[Any, ...]]:
        return self.execute(sql)

    def load(self, table: str, columns: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
        places = ", ".join("?" * len(columns))
        self.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)

    def highest_ids(self) -> dict[str, int]:
        return dict(self.execute("SELECT name, seq FROM sqlite_sequence"))

    def use_ids_above(self, highest: dict[str, int]) -> None:
        query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%AUTOINCREMENT%'"
        for (table,) in self.execute(query).fetchall():
            values = {"table": table, "highest": highest.get(table, 0)}
            self.execute("DELETE FROM sqlite_sequence WHERE name = :table", values)
            self.execute("INSERT INTO sqlite_sequence VALUES (:table, :highest)", values)


class Database(engine.Database):
    """A database of the given schema in the file at `path`, created where there is none.

    A child that is forked when something is open is refused. `progress` is told what is done
    when an older database is brought forward. Where it is `only_read`, nothing is created or
    changed, and nothing is looked at yet. Raises Unavailable if the file cannot be opened or
    written, is damaged, another program's or a newer one.
    """

    remote = False
    _idle: list[Connection]

    def __init__(
        self,
        path: str | os.PathLike[str],
        schema: Schema,
        clock: Clock,
        progress: Callable[[str], None],
        only_read: bool,
    ) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise Unavailable(f"SQLite 3.37 or newer is needed, this is {sqlite3.sqlite_version}.")
        super().__init__(os.fspath(path), schema, clock)
        self.path = os.path.realpath(path)  # by whatever link it is opened: the same locks
        self.queue: deque[Callable[[], Write.Place | None]] = deque()  # of those who write
        self.queue_lock = threading.Lock()
        self.lock_file = LockFile(self.path)
        self.process: int | None = None  # the one that has something open
        self.wal_limit = WAL_BYTES
        self._only_read = only_read
        if not only_read:
            try:
                self._set_up(progress)
                self.try_write()
            finally:
                self._release()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def read(self) -> Iterator[Connection]:
        conn = self.lend()
        try:
            conn.wait_for_others(BUSY_SECONDS)
            conn.execute("BEGIN")
            conn.now = self.now()
            yield conn
        except BaseException as error:
            self.take_back(conn, error)
            if is_fault(error):
                raise unavailable(error) from error
            raise
        self.take_back(conn)

    def write(self) -> Write:
        return Write(self)

    def batch(self) -> Batch:
        return Batch(self)

    def keep(self) -> Write:
        return Write(self)

    @contextmanager
    def fill(self) -> Iterator[Connection]:
        with self.write() as conn:
            query = "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'"
            triggers = conn.execute(query).fetchall()
            for name, _ in triggers:
                conn.execute(f"DROP TRIGGER {name}")
            yield conn
            for statement in [*_statements(self.schema.filled), *(sql for _, sql in triggers)]:
                conn.execute(statement)

    def look(self) -> None:
        """Raise Unavailable if there is nothing of ours to be read; an older schema is as good."""
        if not os.path.exists(self.path):
            raise Unavailable("There is no such database.")
        if not (os.access(self.path, os.W_OK) or os.path.exists(self.path + "-shm")):
            # SQLite would read it, and leave files beside it that its owner may not write.
            raise Unavailable("The database is read-only for this user, and nobody serves it.")
        with self.read() as conn:
            if self._version(conn) == 0 == conn.execute("PRAGMA user_version").fetchone()[0]:
                raise Unavailable("The database is empty.")

    def try_write(self) -> None:
        """Raise Unavailable if no write can succeed now; waits for nobody.

        A page is written as it is, and taken back, which needs no disk. A full disk is told by
        a commit only, so where the last write failed, it is committed. That somebody else
        writes is no failure, unless our last write waited for them in vain.
        """
        try:
            with Write(self, patience=0) as conn:
                (version,) = conn.execute("PRAGMA user_version").fetchone()
                conn.execute(f"PRAGMA user_version = {version}")
                if not self.failing:
                    conn.execute("ROLLBACK")
                    conn.execute("BEGIN")  # what is committed is empty
        except Unavailable as error:
            if self.failing or not error.busy:
                raise

    def may_deliver(self) -> bool:
        """Whether this database object is, now or still, the one that delivers for the file.

        One at a time among all processes, until stop_delivering(), close() or death.
        """
        self.claim()
        return self.lock_file.acquire(DELIVERS)

    def stop_delivering(self) -> None:
        """Let somebody else deliver; a forked child has nothing to let go of."""
        if self.process != os.getpid():
            return
        self.lock_file.unlock[DELIVERS]()

    # ------------------------------------------------------------ connections

    def lend(self) -> Connection:
        """A connection for the use of this thread, until take_back(). Raises Unavailable."""
        self.claim()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        try:
            return self._connect()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise unavailable(error) from error

    def take_back(self, conn: Connection, error: BaseException | None = None) -> None:
        """End what the connection is in. It is given up where `error` is the file's fault.

        Only a new one sees that the file is mended; but while the disk is full none might be
        had, as each creates files.
        """
        try:
            if _code(error) in _FILE_AT_FAULT or _code(error and error.__cause__) in _FILE_AT_FAULT:
                conn.close()
            else:
                conn.rollback()
                self._idle.append(conn)
        except sqlite3.Error:
            conn.close()
        self.release_if_closed()

    def release_if_closed(self) -> None:
        """End what was in use when the database was closed, and is no longer."""
        if self._closed:
            self._release()

    def claim(self) -> None:
        """Have what is opened be of this process. Raises Unavailable in a child of one that has."""
        # Neither a connection nor SQLite's own book of locks may cross a fork: a child that
        # opened anew would commit without a real lock, and writes would be lost.
        if self.process not in (None, os.getpid()):
            raise Unavailable(
                "This process was forked from one that had the database open, which SQLite"
                " forbids. Fork before the first request, or create the application after it."
            )
        self.process = os.getpid()

    def _connect(self) -> Connection:
        conn: Connection = sqlite3.connect(
            f"file://{quote(os.fsencode(self.path))}?mode={'rw' if self._only_read else 'rwc'}",
            uri=True,
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
        if self.process not in (None, os.getpid()):
            return  # what is open belongs to the parent
        super()._release()
        if any(place() for place in list(self.queue)):
            return  # somebody writes, who comes here again
        self.lock_file.close()
        if not self._closed:
            self.process = None

    # ------------------------------------------------------------ set-up

    def _set_up(self, progress: Callable[[str], None]) -> None:
        """Have the newest schema in the file: nothing to do, create it, or bring it forward.

        1. Look, without a lock, as nearly always there is nothing to do.
        2. Take the turn to write, and look again: somebody else may have come first.
        3. Do it in one transaction, so that whoever is killed in it leaves it as it was.
        """
        self._give_to_owner()
        if os.path.exists(self.path) and not os.access(self.path, os.W_OK):
            # SQLite would read it, and leave files beside it that are read-only for ever.
            raise Unavailable("The database is read-only for this user.")
        conn = self.lend()
        try:
            if self._version(conn) < self.schema.newest:
                with Turn(self):
                    if (version := self._version(conn)) < self.schema.newest:
                        self._bring_forward(conn, version, progress)
            self._check(conn)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise unavailable(error) from error
        finally:
            conn.close()

    def _give_to_owner(self) -> None:
        """Have what root creates belong to the owner of its folder, who is to serve it."""
        if os.geteuid() == 0:
            with suppress(OSError):  # mostly, as it is there
                folder = os.stat(os.path.dirname(self.path))
                fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                os.fchown(fd, folder.st_uid, folder.st_gid)
                os.close(fd)

    def _version(self, conn: Connection) -> int:
        """The version of the schema in the file; 0 for an empty one, or without a WAL."""
        # In this order, as somebody else may be about to set it up.
        (filled,) = conn.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()
        (application,) = conn.execute("PRAGMA application_id").fetchone()
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        if filled and application != self.schema.application_id:
            raise Unavailable("The file is the database of another program.")
        self.schema.refuse_newer(version)
        (journal,) = conn.execute("PRAGMA journal_mode").fetchone()
        return int(version) if journal == "wal" or version < self.schema.newest else 0

    def _bring_forward(
        self, conn: Connection, version: int, progress: Callable[[str], None]
    ) -> None:
        if conn.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise Unavailable("The database is on a file system that cannot hold a WAL.")
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        scripts = self.schema.upgrades[version - 1 :] if version else [self.schema.create]
        script = "".join(scripts).replace("-- schema.sql --", self.schema.create)
        statements = list(_statements(script))
        for name, function in self.schema.functions.items():
            conn.create_function(name, 1, function, deterministic=True)
        conn.execute("PRAGMA foreign_keys = OFF")  # tables are renamed and dropped
        conn.execute("PRAGMA legacy_alter_table = ON")
        began, done = time.monotonic(), 0

        def tell() -> int:
            if version and (seconds := time.monotonic() - began) > 1:
                step = f"step {done} of {len(statements)}, {seconds:.0f} s"
                progress(f"Bringing {self.name} forward to schema {self.schema.newest}: {step}")
            return 0

        conn.set_progress_handler(tell, 20_000_000)  # a few times a second
        try:
            conn.execute("BEGIN IMMEDIATE")
            for statement in statements:
                conn.execute(statement)
                done += 1
            conn.execute(f"PRAGMA application_id = {self.schema.application_id}")
            conn.execute(f"PRAGMA user_version = {self.schema.newest}")
            conn.execute("COMMIT")
            if version and time.monotonic() > began + 1:
                progress(f"Brought {self.name} forward to schema {self.schema.newest}.\n")
        except sqlite3.IntegrityError as error:
            raise Unavailable(f"The database cannot be brought forward ({error}).") from error

    def _check(self, conn: Connection) -> None:
        """See that tables and rules are those of the schema, to the letter: others may be added."""
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(self.schema.create)
            query = "SELECT type, name, sql FROM sqlite_schema"
            ours = {row for row in model.execute(query) if (row[2] or ";") in self.schema.create}
            lacking = ours - set(conn.execute(query))
        if lacking:
            names = ", ".join(sorted(f"{type} {name}" for type, name, _ in lacking))
            raise Unavailable(f"The database is damaged: {names} is not as it should be.")

    # ------------------------------------------------------------ backup

    def backup(self, target: str, progress: Callable[[int, int], None]) -> None:
        """Write a consistent copy to the file `target`, or to what that links to.

        It has the owner and mode of the database, and replaces an older one only when it is
        whole and on the disk. `progress` is called with the pages done and the pages in all.
        Raises OSError if the target is no regular file or cannot be written, Unavailable if the
        database cannot be read.

        1. Remove the drafts of those who were killed in this: nobody has them locked.
        2. Copy to a locked draft beside the target, so that it is on the same file system.
        3. Look through it, as a damaged copy must not replace a good one.
        4. Have it on the disk, then give it its name.
        """

        def tell(_: int, left: int, all: int) -> None:
            if all:  # not known yet, where the first step fails
                progress(all - left, all)

        self.look()
        place = os.path.realpath(target)
        if place in {self.path + suffix for suffix in _BESIDE}:
            raise FileExistsError(f"{target} belongs to the database")
        is_there = os.path.lexists(place)
        if is_there and os.path.samefile(place, self.path):
            raise FileExistsError(f"{target} is the database itself")
        if target.endswith(os.sep) or (is_there and not os.path.isfile(place)):
            raise FileExistsError(f"{target} is not a regular file")
        _remove_drafts(place)
        with _new_draft(place) as (fd, draft):
            lockfile.make_alike(fd, os.stat(self.path))
            with closing(sqlite3.connect(draft)) as copy, self.read() as conn:
                # This read fixes the snapshot. Without it, each write by somebody else
                # would make the backup begin anew.
                conn.execute("SELECT 1 FROM sqlite_schema").fetchall()
                try:
                    conn.backup(copy, pages=1000, progress=tell)
                    copy.execute("PRAGMA journal_mode = DELETE")  # without a -wal beside it
                    [(found,)] = copy.execute("PRAGMA quick_check(1)").fetchall()
                except sqlite3.Error as error:
                    if error.sqlite_errorcode in _OF_READING:
                        raise
                    raise OSError(f"{target} cannot be written: {error}") from error
            if found != "ok":
                raise OSError(f"{target} is as it was: the copy is damaged ({found})")
            os.fsync(fd)
            os.replace(draft, place)


DRAFT = ".partial"  # how the name of a backup ends that is not whole
_BESIDE = ("-journal", "-wal", "-shm", "-lock")  # how the names end of what belongs to a database


@contextmanager
def _new_draft(place: str) -> Iterator[tuple[int, str]]:
    """A new file beside the place, open and locked; it is removed on any exception."""
    draft = ""  # its name is known before it is there, so that no Ctrl-C leaves it
    try:
        while True:
            draft = f"{place}.{os.urandom(4).hex()}{DRAFT}"
            fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                if _lock_draft(fd, draft):
                    yield fd, draft
                    return
            finally:
                os.close(fd)
    except BaseException:
        if draft:
            _remove(draft)
        raise


def _remove(draft: str) -> None:
    # The draft last: what is beside it is found by its name.
    for left in (*(draft + suffix for suffix in _BESIDE), draft):
        with suppress(OSError):
            os.unlink(left)


def _lock_draft(fd: int, draft: str) -> bool:
    """Whether it is ours; else another backup saw it before it was locked, and removes it."""
    try:
        lockfile.set_lock(fd, 0, fcntl.LOCK_EX | fcntl.LOCK_NB)()
        return os.path.samestat(os.stat(draft), os.fstat(fd))
    except OSError as error:  # where there are no locks, nobody removes it
        return error.errno not in (errno.EAGAIN, errno.ENOENT)


def _remove_drafts(place: str) -> None:
    for draft in glob.glob(f"{glob.escape(place)}.{'[a-z0-9_]' * 8}{DRAFT}"):
        with suppress(OSError):
            fd = os.open(draft, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                lockfile.set_lock(fd, 0, fcntl.LOCK_EX | fcntl.LOCK_NB)()
                _remove(draft)
            finally:
                os.close(fd)


# ---------------------------------------------------------------- writing


class Turn:
    """The right to write, which one has among all threads and processes. Raises Unavailable.

    1. Stand in the queue of this process's threads until first, then wait for the lock among
       processes, for BUSY_SECONDS in all, or as long as `patience` lasts.
    2. Let go at the end. The place in the queue is an object that only this one knows.
       Whatever ends this, an exception, a signal, Ctrl-C between any two instructions, ends
       that object, and the next is first: no line of code has to run for that. (So this is no
       @contextmanager: a generator can outlive the exception that ended it.)
    """

    class Place:
        """What stands in the queue as long as it lives."""

    def __init__(self, database: Database, patience: float | None = None) -> None:
        self._database = database
        self._patience = BUSY_SECONDS if patience is None else patience
        self._place: Turn.Place | None = None

    def __enter__(self) -> Any:
        database, deadline = self._database, time.monotonic() + self._patience
        try:
            database.claim()
            self._place = self.Place()
            database.queue.append(weakref.ref(self._place))
            while not (self._is_first() and database.lock_file.acquire(WRITES)):
                if time.monotonic() >= deadline:
                    raise Unavailable("The database is locked by another writer.", busy=True)
                time.sleep(random.uniform(0.0001, 0.001))
        except BaseException:
            self._let_go(None)
            raise

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._let_go(error)

    def __del__(self) -> None:
        self._let_go(None)

    def _is_first(self) -> bool:
        queue = self._database.queue
        with self._database.queue_lock:
            while (first := queue[0]()) is None:
                queue.popleft()
            return first is self._place

    def _let_go(self, error: BaseException | None) -> None:
        if self._place and self._is_first():  # else the lock is somebody else's
            self._database.lock_file.unlock[WRITES]()
        self._place = None
        self._database.release_if_closed()


class Write(Turn):
    """A transaction that writes: BEGIN, and COMMIT at the end, or roll back on any exception.

    Where the WAL has grown long, it is emptied before the turn ends. No other connection may
    commit while one checkpoints: SQLite 3.7.0 to 3.51.2 can lose a committed write otherwise
    ("the WAL-reset bug", sqlite.org/wal.html).
    """

    _conn: Connection | None = None

    def __enter__(self) -> Any:
        try:
            super().__enter__()
            self._conn = conn = self._database.lend()
            conn.wait_for_others(self._patience)
            # IMMEDIATE: a transaction that reads first and writes later fails at once
            # with "database is locked" if somebody else wrote in between.
            conn.execute("BEGIN IMMEDIATE")
            conn.now = self._database.now()
        except BaseException as error:
            self._let_go(error)
            failure = unavailable(error) if is_fault(error) else error
            if isinstance(failure, Unavailable) and (self._patience or not failure.busy):
                self._database.failing = True
            if failure is not error:
                raise failure from error
            raise
        return conn

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        failure = error
        try:
            if error is None and self._conn:
                self._conn.execute("COMMIT")
                self._database.failing = False
                if self._patience:
                    self._empty_wal(self._conn)
        except BaseException as of_commit:
            failure = of_commit
        self._let_go(failure)
        if isinstance(failure, Unavailable) or is_fault(failure):
            self._database.failing = True
        if is_fault(failure):
            raise unavailable(failure) from failure
        if failure and failure is not error:
            raise failure

    def _let_go(self, error: BaseException | None) -> None:
        conn, self._conn = self._conn, None
        try:
            if conn:
                self._database.take_back(conn, error)
        finally:
            super()._let_go(error)

    def _empty_wal(self, conn: Connection) -> None:
        # While reads overlap, some of them always need the WAL, and SQLite can never begin it
        # anew by itself. TRUNCATE waits until those who read now have ended; who comes later
        # finds all in the database and needs no WAL. Where one read lives on, it is waited for
        # again only when the WAL has grown as much again. It is tried several times, as SQLite
        # waits for a place of an old read also when reads that need no waiting for have taken
        # it over, one after the other; only the next try looks at it anew.
        with suppress(OSError, sqlite3.Error):
            size = os.path.getsize(self._database.path + "-wal")
            if size > WAL_BYTES:
                patience = RESTART_SECONDS if size > self._database.wal_limit else 0
                conn.wait_for_others(patience / 5)
                for _ in range(5 if patience else 1):
                    [(busy, *_)] = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                    if not busy:
                        break
                if patience or not busy:
                    self._database.wal_limit = WAL_BYTES + size * busy


class Batch(Write):
    """The same for many writes. Each is a part that can be taken back by itself."""

    def __enter__(self) -> Batch:
        super().__enter__()
        return self

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A part, which is kept at the end, or taken back on any exception."""
        conn = self._conn
        assert conn
        try:
            conn.execute("SAVEPOINT part")
            conn.now = self._database.now()
            yield conn
            conn.execute("RELEASE part")
        except BaseException as error:
            # Where SQLite has taken back more than this part, or may have, the batch is over.
            if is_fault(error) or not conn.in_transaction:
                raise unavailable(error) from error
            try:
                conn.execute("ROLLBACK TO part")
                conn.execute("RELEASE part")
            except sqlite3.Error as failure:
                raise unavailable(failure) from error
            raise


# ---------------------------------------------------------------- faults

_LOCKED = "is locked by another writer"
_WORDS = {
    sqlite3.SQLITE_PERM: "may not be accessed",
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_NOMEM: "does not get the memory that it needs",
    sqlite3.SQLITE_INTERRUPT: "was interrupted",
    sqlite3.SQLITE_READONLY: "is read-only, or its folder is",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PROTOCOL: _LOCKED,
    sqlite3.SQLITE_NOTADB: "is not a database",
}
_FILE_AT_FAULT = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
}
_OF_READING = {
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
}


def _code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF


def is_fault(error: BaseException | None) -> TypeGuard[BaseException]:
    """Whether the database is at fault, and not whoever uses it."""
    # All that SQLite complains of is the fault of the file or the machine, as the statements
    # are ours and tested, and what they are given was checked: damage shows as a broken rule,
    # as an unknown column, or as text that is not UTF-8, in a value or in SQLite's own words.
    misused = isinstance(error, (sqlite3.ProgrammingError, sqlite3.InterfaceError))
    return isinstance(error, (sqlite3.Error, UnicodeDecodeError, MemoryError)) and not misused


def unavailable(error: BaseException) -> Unavailable:
    """The fault in words."""
    code = sqlite3.SQLITE_NOMEM if isinstance(error, MemoryError) else _code(error)
    words = _WORDS.get(code, "is damaged")
    return Unavailable(f"The database {words} ({error}).", code not in _WORDS, words == _LOCKED)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: executescript() would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
