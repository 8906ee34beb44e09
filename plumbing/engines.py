"""Which engine serves a location, and how all data moves from one to another."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from . import Unavailable, engine, sqlite
from .engine import Database, Schema, is_url, without_password

Clock = engine.Clock


def utc_now() -> datetime:
    """The time, for who does not give another clock."""
    return datetime.now(UTC)


def open_database(
    location: str | os.PathLike[str],
    schema: Schema,
    clock: Clock,
    progress: Callable[[str], None],
    only_read: bool,
) -> Database:
    """The database at the location, a file or a URL, made ready. Raises Unavailable."""
    if not is_url(location):
        sources = schema.read("schema.sql", "upgrades/*.sql")
        return sqlite.Database(location, sources, clock, progress, only_read)
    try:
        from . import postgres
    except ImportError as error:
        raise Unavailable(
            f"PostgreSQL needs psycopg 3.2 or newer: pip install 'psycopg[binary]' ({error})."
        ) from error
    return postgres.Database(os.fspath(location), schema.read("postgres.sql"), clock, only_read)


def copy_from_to(
    source: str, target: str, open: Callable[..., Database], progress: Callable[[str], None]
) -> str:
    """Copy all from one location to the other; what was done. Raises ValueError."""
    where = without_password(source)
    try:
        with closing(open(source, only_read=True)) as old:
            old.look()  # what is not there is not to be created
        with closing(open(source)) as old:
            in_use = not old.may_deliver()
            where = without_password(target)
            with closing(open(target)) as new:
                where = f"{old.name} to {new.name}"  # it may be either
                done = f"Copied {copy(old, new, progress):,} rows from {where}."
            if in_use:
                done += f" Warning: {old.name} is in use; what it still takes in is not copied."
            return done
    except Unavailable as error:
        raise ValueError(f"{where}: {error}") from error


def copy(source: Database, target: Database, progress: Callable[[str], None]) -> int:
    """Copy all rows, and with them which ids were ever used; how many rows there are.

    Both are locked for writing meanwhile, and the target has all or nothing. Raises Unavailable,
    also if the target is not empty.
    """
    copied = 0
    with source.keep() as old, target.fill() as new:
        tables = source.schema.tables
        for table in tables:
            [filled] = new.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()
            if filled and table not in target.schema.preset:
                raise Unavailable("The database is not empty, so nothing can be copied into it.")
        for table in target.schema.preset:
            new.execute(f"DELETE FROM {table}")
        for table in tables:
            [count] = old.execute(f"SELECT count(*) FROM {table}").fetchone()
            theirs = old.columns(table)
            columns = [f'"{name}"' for name in new.columns(table) if name in theirs]
            rows = old.stream(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1, 2")
            new.load(table, columns, _counted(rows, f"{table}: {{:,}} of {count:,}", progress))
            copied += count
        new.use_ids_above(old.highest_ids())
        progress("Making the indexes")
    progress(" " * 40 + "\n")
    return copied


def _counted(
    rows: Iterable[tuple[Any, ...]], words: str, progress: Callable[[str], None]
) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(rows, 1):
        if number % 1000 == 0:
            progress(words.format(number))
        yield row
