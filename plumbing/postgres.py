"""One PostgreSQL database for many trackers: connections, the one writer, set-up, lost commits.

No statement about the domain stands here; what the database holds is told by a Schema.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import conninfo, errors, generators, pq
from psycopg.abc import PQGen
from psycopg.adapt import AdaptersMap, Loader
from psycopg.types.numeric import Int8Dumper
from psycopg.types.string import StrDumper

from . import Unavailable, Unknown, engine
from .engine import BUSY_SECONDS, URL, Clock, Schema, without_password

log = logging.getLogger("tracker")

ANSWER_SECONDS = 35.0  # how long an answer is waited for: longer than the server is given
LOST_SECONDS = 10.0  # how long a server is waited for that may have committed
DOWN_SECONDS = 0.3  # how long a server that could not be reached is not asked again
TURN_SECONDS = 3.0  # how long who delivered may write down what they did, before another does

WRITES, DELIVERS = 0, 1  # advisory locks

# What each connection is set to. Without these limits a machine that is lost could hold a lock
# for hours.
_SETTINGS = f"""
    SET client_min_messages = warning;
    SET standard_conforming_strings = on;
    SET jit = off;  -- to compile costs more than any statement of ours, as does sharing one
    SET max_parallel_workers_per_gather = 0;
    SET random_page_cost = 1.1;  -- of a page in memory, or not on a disk that turns
    SET lock_timeout = '{BUSY_SECONDS:.0f}s';
    SET statement_timeout = '30s';
    SET idle_in_transaction_session_timeout = '10s';
    SET tcp_keepalives_idle = 5;
    SET tcp_keepalives_interval = 2;
    SET tcp_keepalives_count = 3;
    SELECT set_config('synchronous_commit', 'on', false)
     WHERE current_setting('synchronous_commit') = 'off'"""
# For psycopg.connect(), where the URL says nothing else.
_DEFAULTS: dict[str, Any] = {
    "connect_timeout": 3,
    "target_session_attrs": "read-write",
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_UNLIMITED = """
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SELECT set_config(name, '0', true) FROM pg_settings WHERE name = 'transaction_timeout'"""
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
# READ COMMITTED, as what others wrote before the lock was had must be seen.
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({})"

# What the engine itself keeps: the version of the schema, and the last commit of each connection.
_OWN = """
    CREATE TABLE schema_version (version integer NOT NULL);
    INSERT INTO schema_version VALUES ({version});
    CREATE TABLE commits (
        session text PRIMARY KEY,
        number  bigint NOT NULL,
        at      timestamptz NOT NULL
    );
"""


class _Context:
    """How values go to the server and come back."""

    adapters = AdaptersMap(psycopg.adapters)
    connection = None


class _AsBytes(Loader):
    """JSON as it comes: nothing needs to decode a document on its way."""

    def load(self, data: Any) -> bytes:
        return bytes(data)


_Context.adapters.register_loader("json", _AsBytes)
_Context.adapters.register_dumper(str, StrDumper)  # as text, and not as anything
_Context.adapters.register_dumper(int, Int8Dumper)  # so that each statement is planned once


T = TypeVar("T")


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """An engine.Connection, which takes a server for lost that is silent for `patience` seconds.

    One that is suspended, or whose disk or standby hangs, keeps no limit that it was given.
    """

    now: str
    plans = True
    patience = math.inf
    silent = False  # whether it was

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.process = os.getpid()
        self.token = os.urandom(16).hex()
        self.commits = 0
        self.warnings = deque[str | None](maxlen=1)  # the last one of the server
        self.add_notice_handler(partial(_note, self.warnings))

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        """Have psycopg wait for what `gen` waits for."""
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, gen: PQGen[T]) -> Generator[Any, Any, T]:
        until = time.monotonic() + self.patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted  # nothing, now and then
                if not ready and time.monotonic() > until:
                    self.silent = True
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"no answer in {self.patience:.0f} seconds")
                wanted = gen.send(ready)
        except StopIteration as end:
            result: T = end.value
            return result

    @staticmethod
    def contains(column: str, value: str) -> str:
        for char in ("\\", "%", "_"):
            value = f"replace({value}, '{char}', '\\{char}')"
        return f"{column} LIKE '%' || {value} || '%'"

    def execute(  # type: ignore[override]
        self, sql: str, values: Mapping[str, Any] | None = None, /
    ) -> Any:
        """Execute a statement with :name parameters."""
        # What a search costs depends on the text, so it is planned anew each time.
        prepare = False if "LIKE" in sql else None
        return super().execute(_translated(sql), values or {}, prepare=prepare)

    def columns(self, table: str) -> list[str]:
        sql = """
            SELECT attname FROM pg_attribute
             WHERE attrelid = to_regclass(:table) AND attnum > 0 AND attgenerated = ''
                   AND NOT attisdropped
             ORDER BY attnum"""
        return [name for (name,) in self.execute(sql, {"table": table})]

    def stream(self, sql: str) -> Iterable[tuple[Any, ...]]:
        with self.cursor(name="stream") as cursor:
            cursor.itersize = 1000
            yield from cursor.execute(_sent(sql))

    def load(self, table: str, columns: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
        sql = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with self.cursor() as cursor, cursor.copy(_sent(sql)) as copy:
            for row in rows:
                copy.write_row(row)

    def highest_ids(self) -> dict[str, int]:
        highest = {}
        for table, sequence in self._sequences():
            for (last,) in self.execute(f"SELECT last_value FROM {sequence} WHERE is_called"):
                highest[table] = last
        return highest

    def use_ids_above(self, highest: dict[str, int]) -> None:
        for table, sequence in self._sequences():
            sql = f"""
                SELECT setval(:sequence, highest)
                  FROM (SELECT greatest(:highest, max(id)) AS highest FROM {table}) AS found
                 WHERE highest > 0"""
            self.execute(sql, {"sequence": sequence, "highest": highest.get(table, 0)})

    def _sequences(self) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = self.execute("""
            SELECT refobjid::regclass::text, objid::regclass::text
              FROM pg_depend
              JOIN pg_class ON pg_class.oid = objid AND relkind = 'S'
             WHERE relnamespace = current_schema()::regnamespace AND deptype IN ('a', 'i')
               AND refclassid = 'pg_class'::regclass""").fetchall()
        return found

    def command(self, sql: str) -> str:
        """Execute what has no parameters, several statements in one way there and back."""
        self.pgconn.send_query(sql.encode())
        result = self.wait(generators.execute(self.pgconn))[-1]
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            raise errors.error_from_result(result, encoding="utf-8")
        return (result.command_status or b"").decode()

    def roll_back(self) -> None:
        """End the transaction, and leave the answer for resume(), as nobody needs it."""
        self.pgconn.send_query(b"ROLLBACK")

    def resume(self) -> None:
        """Have it ready for a transaction, after it was idle. Raises OperationalError."""
        self.patience = ANSWER_SECONDS  # it may have had no limit
        if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
            self.wait(generators.fetch_many(self.pgconn))

    def close(self) -> None:
        """End the session; in a child of a fork only its descriptor, as it is the parent's."""
        if self.process == os.getpid():
            self.pgconn.finish()
        elif not self.closed:
            with suppress(OSError):
                os.close(self.pgconn.socket)

    def __del__(self) -> None:  # type: ignore[override]
        if self.process == os.getpid():
            self.pgconn.finish()


def _note(warnings: deque[str | None], notice: errors.Diagnostic) -> None:
    if notice.severity_nonlocalized == "WARNING":
        warnings.append(notice.message_primary)


@lru_cache(1000)
def _translated(sql: str) -> LiteralString:
    return _sent(re.sub(r"(?<![:\w]):(\w+)", r"%(\1)s", sql.replace("%", "%%")))


def _sent(sql: str) -> LiteralString:
    return sql  # no part of it comes from outside: see db.py


class Database(engine.Database):
    """The schema `schema.name` of a PostgreSQL database, created where there is none.

    `url` may name several hosts. A forked child opens connections of its own. Raises
    Unavailable if it cannot be reached or written, is not in UTF-8, or is a newer one; where it
    is `only_read`, nothing is looked at yet.
    """

    remote = True

    def __init__(self, url: str, schema: Schema, clock: Clock, only_read: bool) -> None:
        super().__init__(without_password(url), schema, clock)
        self._url = url
        self._lock = f"{schema.application_id}, {{}}".format
        self._to_write = _WRITE.format(self._lock(WRITES))
        self._deliverer: Connection | None = None  # the one that holds the lock
        self._ask_again = self._deliver_from = 0.0  # by the monotonic clock
        self._trouble: str | None = None  # why that is not known
        self._begin()
        try:
            if not only_read:
                self._set_up()
                self.try_write()
        finally:
            self._release()

    # ------------------------------------------------------------ transactions

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._transaction(_READ) as conn:
            yield conn

    @contextmanager
    def write(self) -> Iterator[Connection]:
        try:
            with self._transaction(self._to_write) as conn:
                yield conn
                self._commit(conn)
                self.failing = False
        except Unavailable:
            self.failing = True
            raise

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        with self.write() as conn:
            yield Batch(self, conn)

    def look(self) -> None:
        """Raise Unavailable if there is nothing of ours to be read."""
        with self.read() as conn:
            if self._version(conn) == 0:
                raise Unavailable(f"The database holds no {self.schema.name}.")

    def try_write(self) -> None:
        """Raise Unavailable if no write can succeed now; waits for nobody.

        A row is written, and taken back. That somebody else writes is no failure, unless our
        last write waited for them in vain.
        """
        with self._transaction("BEGIN; SET LOCAL lock_timeout = '100ms'") as conn:
            free = conn.command(f"""
                INSERT INTO commits VALUES ('{os.urandom(16).hex()}', 0, now());
                SELECT 1 WHERE pg_try_advisory_xact_lock({self._lock(WRITES)})""")
            if free == "SELECT 1":
                self.failing = False
            elif self.failing:
                raise Unavailable("The database is locked by another writer.", busy=True)

    @contextmanager
    def keep(self) -> Iterator[Connection]:
        with self.write() as conn:
            conn.command(_UNLIMITED)
            conn.patience = math.inf
            yield conn

    @contextmanager
    def fill(self) -> Iterator[Connection]:
        with self.keep() as conn:
            # They count, row by row, which is quadratic within one transaction.
            for table in self.schema.tables:
                conn.command(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            yield conn
            for table in self.schema.tables:
                conn.command(f"ALTER TABLE {table} ENABLE TRIGGER USER")

    def may_deliver(self) -> bool:
        """Whether this database object is, now or still, the one that delivers.

        One at a time among all trackers, until stop_delivering(), close(), death, or the loss of
        the server.

        1. The lock lasts as long as its session, so who has it asks whether that lives.
        2. Who was refused or has lost the server asks again after TURN_SECONDS.
        3. Who was refused before and then gets the lock waits as long once more. The other may
           live on and have lost the server only: so it can write down what it has sent.
        """
        self._notice_fork()
        now = time.monotonic()
        if self._deliverer is None and now < self._ask_again:
            if self._trouble:
                raise Unavailable(self._trouble)
            return False
        try:
            if self._deliverer is None:
                self._deliverer = self._connect()
                sql = f"SELECT 1 WHERE pg_try_advisory_lock({self._lock(DELIVERS)})"
                if self._deliverer.command(sql) != "SELECT 1":
                    self.stop_delivering()
                    self._ask_again = self._deliver_from = now + TURN_SECONDS
                elif self._deliver_from:
                    self._deliver_from = now + TURN_SECONDS
            else:
                self._deliverer.command("SELECT 1")
            self._trouble = None
        except psycopg.Error as error:
            self.stop_delivering()
            self._ask_again, self._trouble = now + TURN_SECONDS, str(unavailable(error))
            raise unavailable(error) from error
        if self._deliverer is None or now < self._deliver_from:
            return False
        self._deliver_from = 0.0
        return True

    def stop_delivering(self) -> None:
        conn, self._deliverer = self._deliverer, None
        if conn:
            conn.close()

    def backup(self, target: str, progress: Callable[[int, int], None]) -> None:
        """Raise Unavailable, which says what to use."""
        raise Unavailable(f"PostgreSQL has its own: pg_dump --format=custom --file={target}.")

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        conn = None
        try:
            conn = self._lend(begin)
            conn.now = self.now()
            yield conn
        except BaseException as error:
            if conn:
                self._take_back(conn)
            if isinstance(error, psycopg.Error):
                raise unavailable(error) from error
            raise
        self._take_back(conn)

    def _commit(self, conn: Connection) -> None:
        """Commit, and know it. Raises Unknown if that cannot be known.

        1. The transaction ends by writing down its number, one more than the last of this
           connection; unless it has written nothing.
        2. If the answer is lost, it may have happened or not. So a new connection takes the
           lock, which waits for the end of the old transaction, and looks for the number. Its
           own commit waits for the standby, if there is a synchronous one.
        3. A warning at commit says that the standby was not waited for. That is not known to
           last, either.
        """
        conn.commits += 1
        conn.warnings.clear()
        try:
            done = conn.command(f"""
                INSERT INTO commits
                SELECT '{conn.token}', {conn.commits}, now()
                 WHERE pg_current_xact_id_if_assigned() IS NOT NULL
                    ON CONFLICT (session) DO UPDATE SET number = {conn.commits}, at = now();
                {self._to_tidy if conn.commits == 1 else ""}
                COMMIT""")
        except psycopg.Error as error:
            if not conn.closed:
                raise
            conn.close()  # the server sees it, and ends the old transaction
            committed = self._has_committed(conn)
            if committed is None:
                raise Unknown(f"The database was lost ({_told(error)}).") from error
            if not committed:
                raise
        else:
            if done != "COMMIT":
                raise Unavailable("The database has taken the transaction back.")
            if conn.warnings:
                raise Unknown(f"The database warns: {conn.warnings[-1]}.")

    _to_tidy = "DELETE FROM commits WHERE at < now() - interval '1 day';"

    def _has_committed(self, conn: Connection) -> bool | None:
        until = time.monotonic() + LOST_SECONDS
        look = "UPDATE commits SET at = now() WHERE session = :token AND number = :number"
        while time.monotonic() < until:
            with suppress(psycopg.Error):
                other = self._connect()
                other.patience = LOST_SECONDS
                other.command(self._to_write)
                values = {"token": conn.token, "number": conn.commits}
                found = other.execute(look, values).rowcount
                other.command("COMMIT")
                other.close()
                if not other.warnings:
                    return bool(found)
            time.sleep(0.1)
        return None

    # ------------------------------------------------------------ connections

    def _begin(self) -> None:
        self._process = os.getpid()
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._idle: list[Connection] = []
        self._deliverer = None
        self._down_until, self._down = 0.0, ""

    def _notice_fork(self) -> None:
        # The sessions are the parent's. But while a child has their sockets open, the server does
        # not see the parent's death, and keeps its locks.
        if self._process != os.getpid():
            for conn in list(self._all):
                conn.close()
            self._begin()

    def _lend(self, begin: str) -> Connection:
        """A connection in a new transaction, for the use of this thread until _take_back()."""
        self._notice_fork()
        while True:
            try:
                conn, used = self._idle.pop(), True
            except IndexError:
                conn, used = self._connect(), False
            try:
                if used:
                    conn.resume()
                conn.command(begin)
                return conn
            except psycopg.Error:
                others = used and conn.closed and not conn.silent
                self._take_back(conn)
                if not others:
                    raise

    def _take_back(self, conn: Connection) -> None:
        """End what the connection is in, and keep it if it is sound."""
        status, kinds = conn.pgconn.transaction_status, pq.TransactionStatus
        with suppress(psycopg.Error):
            if status in (kinds.INTRANS, kinds.INERROR):
                conn.roll_back()
                status = kinds.IDLE
        if status == kinds.IDLE and not conn.closed:
            self._idle.append(conn)
        else:
            conn.close()
        if self._closed or conn.silent:  # then the others are not to be waited for, either
            self._release()

    def _connect(self) -> Connection:
        if time.monotonic() < self._down_until:  # or each of many who wait would wait for it
            raise psycopg.OperationalError(self._down)
        try:
            if not URL.fullmatch(self._url):
                raise ValueError
            given = conninfo.conninfo_to_dict(self._url)
        except (psycopg.ProgrammingError, ValueError):  # their words may hold the password
            raise Unavailable(
                "The URL is not one of PostgreSQL; in a name or password, @ is %40 and / is %2F."
            ) from None
        mine = {"fallback_application_name": f"tracker {os.getpid()}"}
        try:
            conn = Connection.connect(
                **{**_DEFAULTS, **mine, **given, "client_encoding": "UTF8"},
                autocommit=True,
                context=_Context(),
            )
        except psycopg.OperationalError as error:
            self._down_until, self._down = time.monotonic() + DOWN_SECONDS, str(error)
            raise
        conn.patience = ANSWER_SECONDS
        self._all.add(conn)
        if (version := conn.info.server_version // 10000) < 13:
            raise Unavailable(f"PostgreSQL 13 or newer is needed, this is {version}.")
        if conn.info.parameter_status("server_encoding") != "UTF8":
            raise Unavailable("The database must have the encoding UTF8.")
        conn.command(f"{_SETTINGS}; SET search_path = {self.schema.name}")
        conn.warnings.clear()
        return conn

    def _release(self) -> None:
        if self._process != os.getpid():
            return  # what is open belongs to the parent
        super()._release()
        if self._closed:
            self.stop_delivering()

    # ------------------------------------------------------------ set-up

    def _set_up(self) -> None:
        """Have the schema in the database: nothing to do, or create it, in one transaction."""
        try:
            conn = self._connect()
            try:
                if self._version(conn) == 0:
                    conn.command(self._to_write)
                    if self._version(conn) == 0:  # still, now that nobody else sets it up
                        self._create(conn)
                    conn.command("COMMIT")
                self._check(conn)
            finally:
                conn.close()
        except psycopg.Error as error:
            raise unavailable(error) from error

    def _version(self, conn: Connection) -> int:
        """The version of the schema; 0 where there is none."""
        # Not to_regclass(): within a transaction it does not see what others create meanwhile.
        sql = """
            SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE nspname = :schema AND relname = 'schema_version'"""
        if not conn.execute(sql, {"schema": self.schema.name}).fetchone():
            return 0
        sql = f"SELECT coalesce(max(version), 0) FROM {self.schema.name}.schema_version"
        [version] = conn.execute(sql).fetchone()
        self.schema.refuse_newer(version)
        return int(version)

    def _create(self, conn: Connection) -> None:
        name = self.schema.name
        sql = "SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace(:name)"
        [others] = conn.execute(sql, {"name": name}).fetchone()
        if others:
            raise Unavailable(f"The schema {name} of the database is another program's.")
        # It may be there, given by somebody who may create it to somebody who may not.
        sql = "SELECT to_regnamespace(:name) IS NULL"
        if conn.execute(sql, {"name": name}).fetchone() == (True,):
            conn.command(f"CREATE SCHEMA {name}")
        conn.command(_OWN.format(version=self.schema.newest))
        conn.command(self.schema.create)
        if conn.warnings:
            log.warning("Warning: %s", conn.warnings[-1])

    def _check(self, conn: Connection) -> None:
        """See that tables and rules are there; others may be added."""
        ours = re.findall(
            r"^CREATE (?:UNIQUE )?(?:TABLE|INDEX|TRIGGER|VIEW) (\w+)",
            self.schema.create,
            re.MULTILINE,
        )
        sql = """
            SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace(:name)
             UNION ALL
            SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
             WHERE relnamespace = to_regnamespace(:name) AND tgenabled <> 'D'"""
        present = {row[0] for row in conn.execute(sql, {"name": self.schema.name})}
        if lacking := sorted(set(ours) - present):
            raise Unavailable(f"The database is damaged: it lacks {', '.join(lacking)}.")


class Batch:
    """A transaction of many writes. Each is a part that can be taken back by itself."""

    def __init__(self, database: Database, conn: Connection) -> None:
        self._database, self._conn = database, conn
        self._parts = 0

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A part, which is kept at the end, or taken back on any exception."""
        conn, last = self._conn, self._parts
        self._parts = mine = last + 1  # each has a name of its own, so that none ends another
        try:
            # The one before is released only now, in one way there and back, the last by COMMIT.
            release = f"RELEASE part{last};" if last else ""
            conn.command(f"{release} SAVEPOINT part{mine}")
            conn.now = self._database.now()
            yield conn
        except BaseException as error:
            if isinstance(error, psycopg.Error):  # then the batch is over
                raise unavailable(error) from error
            try:
                conn.command(f"ROLLBACK TO part{mine}")
            except psycopg.Error as failure:
                raise unavailable(failure) from error
            raise


# ---------------------------------------------------------------- faults

# By the SQLSTATE, or how it begins. All else is the fault of what is stored, as the statements
# are ours and tested, and what they are given was checked.
_WORDS = {
    "": "cannot be reached",
    "08": "cannot be reached",
    "25006": "is read-only",
    "25P03": "has waited too long for us",
    "25P04": "took too long",
    "28": "refuses the user",
    "3D": "does not exist",
    "40": "is locked by another writer",
    "42501": "may not be accessed",
    "53100": "cannot grow: the disk is full",
    "53": "does not get what it needs",
    "55P03": "is locked by another writer",
    "57014": "took too long",
    "57": "cannot be reached",
    "58": "cannot be read or written",
}


def unavailable(error: psycopg.Error) -> Unavailable:
    """The fault in words."""
    state = error.sqlstate or ("22" if isinstance(error, psycopg.DataError) else "")
    for known in (state, state[:2]):
        if known in _WORDS:
            busy = known in ("40", "55P03")
            return Unavailable(f"The database {_WORDS[known]} ({_told(error)}).", busy=busy)
    return Unavailable(f"The database is damaged ({_told(error)}).", damaged=True)


def _told(error: psycopg.Error) -> str:
    words = error.diag.message_primary or str(error)
    # Where there are several hosts, the words of the last one stand before those of all.
    return " ".join(words.rpartition("All failures were:")[2].split())
