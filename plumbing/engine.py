"""What an engine of the database must be, and what both have in common.

An engine is a Database that hands out Connections. One is SQLite, in a file; the other is
PostgreSQL, by URL. Who writes SQL for both needs to know no more than stands here; an engine
says of its methods only what it promises beyond this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from . import Unavailable

Clock = Callable[[], datetime]

BUSY_SECONDS = 4.0  # how long a transaction waits for its turn


class Schema(NamedTuple):
    """What a database holds: how to create it, and how to bring older ones forward.

    The SQL is in files of `folder`: schema.sql and upgrades/*.sql are for SQLite, postgres.sql is
    for PostgreSQL.
    """

    folder: Path
    name: str  # of the schema, where one database has several
    application_id: int  # tells our files, or locks, from those of other programs
    functions: Mapping[str, Callable[[str], str]] = {}  # of one text, for the upgrades
    filled: str = ""  # SQL to run when all rows were copied into a file, past its triggers
    create: str = ""  # SQL of the newest version
    upgrades: Sequence[str] = ()  # the SQL that takes version 1 to 2, then 2 to 3, and so on

    def read(self, create: str, upgrades: str = "") -> Schema:
        """The schema with the SQL of these files."""
        files = sorted(self.folder.glob(upgrades)) if upgrades else []
        return self._replace(
            create=(self.folder / create).read_text("utf-8"),
            upgrades=[file.read_text("utf-8") for file in files],
        )

    @property
    def newest(self) -> int:
        """The version that `create` makes."""
        return 1 + len(self.upgrades)

    def refuse_newer(self, version: int) -> None:
        """Raise Unavailable if the version that was found is newer."""
        if version > self.newest:
            raise Unavailable(
                "The database was written by a newer version of the program"
                f" (schema {version}, and this one knows {self.newest})."
            )

    @property
    def tables(self) -> list[str]:
        """The tables, each behind those that it refers to."""
        return re.findall(r"^CREATE TABLE (\w+)", self.create, re.MULTILINE)

    @property
    def preset(self) -> list[str]:
        """Those of the tables that are not empty at the beginning."""
        return re.findall(r"^INSERT INTO (\w+)", self.create, re.MULTILINE)


class Cursor(Protocol):
    """The rows of a statement."""

    @property
    def rowcount(self) -> int: ...
    @property
    def description(self) -> Any: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """A connection in a transaction, with the one time that counts in it."""

    now: str  # RFC 3339 in UTC with milliseconds

    @property
    def IntegrityError(self) -> type[Exception]: ...  # noqa: N802

    @property
    def plans(self) -> bool:
        """Whether it weighs all ways by statistics, so that none is to be prescribed."""

    def contains(self, column: str, value: str) -> str:
        """SQL that is true where the text of the column holds the value."""

    def execute(self, sql: str, values: Mapping[str, Any] = ..., /) -> Cursor: ...

    def columns(self, table: str) -> list[str]:
        """The columns of a table, but for what is made of others."""

    def stream(self, sql: str) -> Iterable[tuple[Any, ...]]:
        """The rows of a query, however many."""

    def load(self, table: str, columns: list[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Add the rows to a table."""

    def highest_ids(self) -> dict[str, int]:
        """The highest id that was ever used, by table, at least where rows can be deleted."""

    def use_ids_above(self, highest: dict[str, int]) -> None:
        """Have new rows get higher ids than these, and than those that are there."""


class Database(Protocol):
    """Transactions on a database, which is made ready when it is opened.

    Between its calls it has nothing open until it is first read or written, so that a process
    may fork before that. `clock` tells the time in UTC.
    """

    name: str  # where it is, without a password
    remote: bool  # whether each statement waits for a network
    schema: Schema
    _clock: Clock
    _idle: list[Any]  # the connections that nobody uses just now
    _closed: bool = False
    failing: bool = False  # whether the last write did not succeed

    def __init__(self, name: str, schema: Schema, clock: Clock) -> None:
        self.name, self.schema, self._clock, self._idle = name, schema, clock, []

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state of the database, and changes nothing."""

    def write(self) -> AbstractContextManager[Any]:
        """A transaction that is committed at the end, or taken back on any exception."""

    def batch(self) -> AbstractContextManager[Any]:
        """One transaction for many writes, so that the disk is waited for once."""

    def look(self) -> None:
        """Raise Unavailable if there is nothing of ours to be read."""

    def try_write(self) -> None:
        """Raise Unavailable if no write can succeed now; waits for nobody."""

    def keep(self) -> AbstractContextManager[Connection]:
        """A transaction of any length while nobody writes."""

    def fill(self) -> AbstractContextManager[Connection]:
        """The same, to load what was written before, past the triggers."""

    def may_deliver(self) -> bool:
        """Whether this object is, now or still, the one that delivers for the database."""

    def stop_delivering(self) -> None:
        """Let somebody else deliver."""

    def backup(self, target: str, progress: Callable[[int, int], None]) -> None:
        """Write a consistent copy to the file `target`."""

    def close(self) -> None:
        """Close the connections: now those that are idle, the others after their use."""
        self._closed = True
        self._release()

    def _release(self) -> None:
        """Leave nothing open but what is in use just now."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def now(self) -> str:
        """The time of the clock, as it is written down."""
        moment = self._clock().astimezone(UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What follows a bare @ or / in a password would be taken for a host, and shown: it is refused.
URL = re.compile(r"(.*?://)(?:([^:@/]*)(?::[^@/]*)?(@))?([^@?]*)(\?.*)?", re.DOTALL)


def is_url(location: str | os.PathLike[str]) -> bool:
    """Whether the location is that of a server, and not a file."""
    return re.match(r"[\w+.-]+://", os.fspath(location)) is not None


def without_password(location: str | os.PathLike[str]) -> str:
    """The location, as it may be shown."""
    location = os.fspath(location)
    if not is_url(location):
        return location
    if not (url := URL.fullmatch(location)):
        return f"{location.partition('://')[0]}://..."
    *place, options = url.groups("")
    secret = r"([?&])\w*(?:password|secret|_key)=[^&]*&?"
    return "".join(place) + re.sub(secret, r"\1", options).rstrip("?&")
