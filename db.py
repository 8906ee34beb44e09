"""All SQL lives here, and with it connections, transactions and locks.

Nothing here knows about HTTP or the wording of mail. A function takes the connection of
the transaction that its caller began. A document is the JSON that a view of schema.sql
writes, as bytes in UTF-8, since nothing needs to decode it on its way. Errors: NotFound,
Conflict, and Unavailable when the database itself cannot be read or written now.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import sqlite3
import threading
import time
import unicodedata
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SCHEMA = Path(__file__).with_name("schema.sql")
UPGRADES: list[str] = []  # the SQL that takes schema version 1 to 2, then 2 to 3, and so on
APPLICATION_ID = 0x7469636B  # "tick": tells our files from those of other programs
BUSY_SECONDS = 4.0  # how long a transaction waits for its turn
GROUP = 64  # write transactions that share a commit, at most


class NotFound(Exception):
    """There is no such thing. Carries a sentence."""


class Conflict(Exception):
    """The state of the database forbids it. Carries a sentence and, in `facts`, its grounds."""

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence)
        self.facts = facts


class Unavailable(Exception):
    """The database cannot be read or written now; nothing was changed."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fold(text: str) -> str:
    """The form in which names are compared and texts are searched, without regard to case."""
    return unicodedata.normalize("NFC", text.casefold())


# ---------------------------------------------------------------- connections and locks


class Connection(sqlite3.Connection):
    """A connection in a transaction, with the one time that counts in it."""

    moment: datetime

    @property
    def now(self) -> str:
        return timestamp(self.moment)


class ProcessLock:
    """A lock among processes; the death of its holder frees it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds; whether it is ours now. Raises OSError."""
        deadline = time.monotonic() + timeout
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            if time.monotonic() >= deadline:
                self.forget()
                return False
            time.sleep(0.001)

    def release(self) -> None:
        if self._file is not None:  # closing is not enough while a forked child has it open
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self.forget()

    def forget(self) -> None:
        """In a forked child: the lock is the parent's, but the file is open here, too."""
        file, self._file = self._file, None  # first, as a fork could come before the second
        if file is not None:
            os.close(file)


class Group:
    """Write transactions that become one commit; `stack` ends with it the lock and the loan."""

    def __init__(self, stack: ExitStack, conn: Connection) -> None:
        self.stack, self.conn = stack, conn
        self.size = 0
        self.over = threading.Event()
        self.failure: BaseException | None = None

    def undo(self, error: BaseException) -> None:
        """Take back what the last of the transactions did, or all if the disk is at fault."""
        try:
            if _code(error) in _UNAVAILABLE:
                raise error
            self.conn.execute("ROLLBACK TO mine")
            self.conn.execute("RELEASE mine")
        except (sqlite3.Error, UnicodeDecodeError) as failure:
            self.failure = failure  # which tells all, as soon as the connection has told what it is


class Database:
    """A tracker database: a pool of connections to one file, and the transactions on it.

    `clock` tells the time in UTC. Raises Unavailable if the file cannot be opened, is not
    a tracker database, or was written by a newer version.
    """

    def __init__(
        self, path: str | os.PathLike[str], clock: Callable[[], datetime] = utc_now
    ) -> None:
        if sqlite3.sqlite_version_info < (3, 37):
            raise Unavailable(f"SQLite 3.37 or newer is needed, this is {sqlite3.sqlite_version}.")
        self.name = os.fspath(path)
        self.path = os.path.realpath(path)  # by whatever link it is opened: the same locks
        self.clock = clock
        # SQLite 3.7.0 to 3.51.2 can lose a committed write if one connection commits while
        # another checkpoints ("the WAL-reset bug", sqlite.org/wal.html). A commit runs its
        # checkpoint itself, so one lock around each write transaction makes that impossible.
        self._writing = ProcessLock(self.path + "-lock")
        self.delivering = ProcessLock(self.path + "-mail-lock")
        self._turn = threading.Condition()
        self._waiting, self._writing_now = 0, False
        self._group: Group | None = None
        self._pool = threading.Condition()
        self._idle: list[Connection] = []
        self._in_use = 0
        self._forking = self._closed = False
        # The first connection stays open: on a full disk, SQLite could not create anew the
        # files that it deletes with the last one.
        with self._connection() as conn:
            self._set_up(conn)
        _databases.add(self)

    def transaction(self, write: bool = False) -> AbstractContextManager[Connection]:
        """Begin; commit at the end, or roll back on any exception. The one place for both.

        Raises Unavailable if the database is locked, full, read-only or broken.
        """
        return self._write() if write else self._read()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._connection() as conn:
            conn.execute("BEGIN")
            try:
                conn.moment = self.clock()
                yield conn
            finally:
                conn.rollback()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        # The commit is what costs, since it waits for the disk. So who finds others waiting hands
        # the open transaction on to the next, and all wait for the commit of the last (bench/).
        group = self._take_turn()
        try:
            group.conn.execute("SAVEPOINT mine")
            group.conn.moment = self.clock()
            yield group.conn
            group.conn.execute("RELEASE mine")
        except BaseException as error:
            group.undo(error)
            if not group.failure:
                raise
        finally:
            self._pass_turn(group)
        group.over.wait()
        if group.failure:
            raise group.failure

    def _take_turn(self) -> Group:
        with self._turn:
            self._waiting += 1
            free = self._turn.wait_for(lambda: not self._writing_now, BUSY_SECONDS)
            self._waiting -= 1
            if not free:
                raise Unavailable("The database is locked by another writer.")
            self._writing_now = True
        try:
            if self._group is None:
                with ExitStack() as stack:
                    stack.enter_context(self._only_process_to_write())
                    conn = stack.enter_context(self._connection())
                    # IMMEDIATE: a transaction that reads first and writes later fails at once
                    # with "database is locked" if somebody else wrote in between.
                    conn.execute("BEGIN IMMEDIATE")
                    self._group = Group(stack.pop_all(), conn)
            return self._group
        except BaseException:
            self._free_turn()
            raise

    def _pass_turn(self, group: Group) -> None:
        group.size += 1
        with self._turn:  # whoever waits now will take the turn, even in the last moment
            if self._waiting and group.size < GROUP and not group.failure:
                self._writing_now = False
                self._turn.notify()
                return
        self._group = None
        try:
            with group.stack:
                if group.failure:
                    raise group.failure
                group.conn.execute("COMMIT")
        except Exception as error:
            group.failure = error
        group.over.set()
        self._free_turn()

    def _free_turn(self) -> None:
        with self._turn:
            self._writing_now = False
            self._turn.notify()

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
            with closing(sqlite3.connect(partial)) as copy, self.transaction() as conn:
                # This read fixes the snapshot. Without it, each write by somebody else
                # would make the backup begin anew.
                conn.execute("SELECT id FROM users LIMIT 1").fetchall()
                conn.backup(
                    copy, pages=1000, progress=lambda _, left, all: progress(all - left, all)
                )
                copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a -wal beside it
            os.replace(partial, target)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(partial)
            raise

    def close(self) -> None:
        """Close the connections: now those that are idle, the others after their use."""
        with self._pool:
            self._closed = True
            self._close_idle()

    def _set_up(self, conn: Connection) -> None:
        # In this order, as somebody else may be about to set it up.
        (filled,) = conn.execute("SELECT EXISTS (SELECT 1 FROM sqlite_schema)").fetchone()
        (application,) = conn.execute("PRAGMA application_id").fetchone()
        (version,) = conn.execute("PRAGMA user_version").fetchone()
        if filled and application != APPLICATION_ID:
            raise Unavailable("The file is the database of another program.")
        newest = 1 + len(UPGRADES)
        if version > newest:
            raise Unavailable(
                "The database was written by a newer version of the tracker"
                f" (schema {version}, and this one knows {newest})."
            )
        (journal,) = conn.execute("PRAGMA journal_mode").fetchone()
        if version == newest and journal == "wal":  # a backup has another one
            return
        with self._only_process_to_write():
            if conn.execute("PRAGMA user_version").fetchone() != (version,):
                self._set_up(conn)  # somebody else came first
                return
            if conn.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                raise Unavailable("The database is on a file system that cannot hold a WAL.")
            if version == newest:
                return
            steps = UPGRADES[version - 1 :] if version else [SCHEMA.read_text("utf-8")]
            conn.executescript(f"""
                BEGIN IMMEDIATE;
                {"".join(steps)}
                PRAGMA application_id = {APPLICATION_ID};
                PRAGMA user_version = {newest};
                COMMIT;""")

    def _connect(self) -> Connection:
        conn: Connection = sqlite3.connect(
            self.path,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,  # the pool lends a connection to one thread at a time
            factory=Connection,
        )
        conn.execute("PRAGMA foreign_keys = ON")
        conn.execute("PRAGMA synchronous = FULL")  # on disk before it is acknowledged
        return conn

    @contextmanager
    def _only_process_to_write(self) -> Iterator[None]:
        try:
            mine = self._writing.acquire(BUSY_SECONDS)
        except OSError as error:
            raise Unavailable(f"The database cannot be locked ({error}).") from error
        if not mine:
            raise Unavailable("The database is locked by another writer.")
        try:
            yield
        finally:
            self._writing.release()

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        with self._pool:
            while self._forking:
                self._pool.wait()
            self._in_use += 1
            conn = self._idle.pop() if self._idle else None
        try:
            conn = conn or self._connect()
            yield conn
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # Where the file itself is at fault, only a new connection sees that it is mended;
            # while the disk is full, none might be had.
            if conn and (_code(error) in _FILE_AT_FAULT or conn.in_transaction):
                conn.close()
                conn = None
            if _code(error) not in _UNAVAILABLE:
                raise  # a defect of ours
            raise Unavailable(f"The database {_UNAVAILABLE[_code(error)]} ({error}).") from error
        finally:
            with self._pool:
                self._in_use -= 1
                if conn:
                    self._idle.append(conn)
                if self._closed:
                    self._close_idle()
                if self._forking:
                    self._pool.notify_all()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    # SQLite forbids to carry a connection over a fork.

    def _before_fork(self) -> None:
        with self._pool:
            self._forking = True
            self._pool.wait_for(lambda: not self._in_use, timeout=1)
            self._close_idle()

    def _after_fork_in_parent(self) -> None:
        with self._pool:
            self._forking = False
            self._pool.notify_all()

    def _after_fork_in_child(self) -> None:
        self._pool, self._turn = threading.Condition(), threading.Condition()
        self._in_use, self._forking = 0, False
        self._waiting, self._writing_now, self._group = 0, False, None
        self._writing.forget()
        self.delivering.forget()


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _at_fork(step: Callable[[Database], None]) -> Callable[[], None]:
    def run() -> None:
        for database in list(_databases):
            step(database)

    return run


os.register_at_fork(
    before=_at_fork(Database._before_fork),
    after_in_parent=_at_fork(Database._after_fork_in_parent),
    after_in_child=_at_fork(Database._after_fork_in_child),
)

_UNAVAILABLE = {
    sqlite3.SQLITE_PERM: "may not be accessed",
    sqlite3.SQLITE_BUSY: "is locked by another writer",
    sqlite3.SQLITE_LOCKED: "is locked by another writer",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_IOERR: "cannot be read or written",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened",
    sqlite3.SQLITE_PROTOCOL: "is locked by another writer",
    sqlite3.SQLITE_NOTADB: "is not a database",
}


_FILE_AT_FAULT = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
}


def _code(error: BaseException) -> int:
    # Without a code they come from Python: text is not UTF-8, in a value or in SQLite's words.
    damaged = isinstance(error, (sqlite3.OperationalError, UnicodeDecodeError))
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT if damaged else 0) & 0xFF


# ---------------------------------------------------------------- users and projects


def _get(conn: Connection, what: str, id: int) -> bytes:
    row: tuple[bytes] | None = conn.execute(
        f"SELECT CAST(document AS BLOB) FROM {what}_documents WHERE id = ?", (id,)
    ).fetchone()
    if row is None:
        raise NotFound(f"There is no {what.replace('full_', '')} {id}.")
    return row[0]


def _list(conn: Connection, what: str, after: int, limit: int) -> list[tuple[int, bytes]]:
    return conn.execute(
        f"""
        SELECT id, CAST(document AS BLOB)
          FROM {what}_documents
         WHERE id > ?
         ORDER BY id
         LIMIT ?""",
        (after, limit),
    ).fetchall()


def _insert(conn: Connection, sql: str, values: dict[str, Any]) -> int:
    row_id = conn.execute(sql, values).lastrowid
    assert row_id is not None
    return row_id


@contextmanager
def _unique(what: str, value: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise
        raise Conflict(f"The {what} {value} is taken.") from error


def list_users(conn: Connection, after: int, limit: int) -> list[tuple[int, bytes]]:
    """(id, document) of users by id, from the first id above `after`."""
    return _list(conn, "user", after, limit)


def get_user(conn: Connection, user_id: int) -> bytes:
    """The document of the user. Raises NotFound."""
    return _get(conn, "user", user_id)


def create_user(conn: Connection, user: dict[str, Any]) -> int:
    """Save a new user and return the id. Raises Conflict if the email is taken."""
    with _unique("email address", user["email"]):
        return _insert(conn, "INSERT INTO users (name, email) VALUES (:name, :email)", user)


def update_user(conn: Connection, user_id: int, user: dict[str, Any]) -> None:
    """Replace name and email. Raises Conflict if the email is taken."""
    with _unique("email address", user["email"]):
        conn.execute(
            "UPDATE users SET name = :name, email = :email WHERE id = :id", user | {"id": user_id}
        )


def delete_user(conn: Connection, user_id: int) -> Iterator[tuple[dict[str, Any], Changes]]:
    """Unassign the user from all tickets, then delete them and their unsent mail.

    Yields each of the tickets with its changes, for the caller to tell; see update_ticket.
    """
    tickets = conn.execute("SELECT ticket_id FROM assignments WHERE user_id = ?", (user_id,))
    for (ticket_id,) in tickets.fetchall():
        before = json.loads(get_ticket(conn, ticket_id))
        others = [user["id"] for user in before["assignees"] if user["id"] != user_id]
        yield update_ticket(conn, before, {"assignees": others})
    conn.execute("DELETE FROM users WHERE id = ?", (user_id,))


def list_projects(conn: Connection, after: int, limit: int) -> list[tuple[int, bytes]]:
    """(id, document) of projects by id, from the first id above `after`."""
    return _list(conn, "project", after, limit)


def get_project(conn: Connection, project_id: int) -> bytes:
    """The document of the project, with its ticket counts. Raises NotFound."""
    return _get(conn, "project", project_id)


def create_project(conn: Connection, project: dict[str, Any]) -> int:
    """Save a new project and return the id. Raises Conflict if the name is taken."""
    with _unique("project name", project["name"]):
        return _insert(
            conn,
            "INSERT INTO projects (name, name_key) VALUES (:name, :key)",
            project | {"key": fold(project["name"])},
        )


def update_project(conn: Connection, project_id: int, project: dict[str, Any]) -> None:
    """Replace the name. Raises Conflict if it is taken."""
    with _unique("project name", project["name"]):
        conn.execute(
            "UPDATE projects SET name = :name, name_key = :key WHERE id = :id",
            project | {"key": fold(project["name"]), "id": project_id},
        )


def delete_project(conn: Connection, project_id: int) -> None:
    """Delete the project. Raises Conflict, with the counts, if it has tickets."""
    try:
        conn.execute("DELETE FROM projects WHERE id = ?", (project_id,))
    except sqlite3.IntegrityError as error:
        counts = json.loads(get_project(conn, project_id))["tickets"]
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        raise Conflict(f"The project still has tickets: {told}.", tickets=counts) from error


# ---------------------------------------------------------------- tickets

Changes = dict[str, dict[str, Any]]  # {"status": {"from": "open", "to": "closed"}}


def list_tickets(
    conn: Connection,
    *,
    project_id: int | None = None,
    assignee_id: int | None = None,
    statuses: Sequence[str] = (),
    text: str = "",
    sort: str = "-created",
    after: tuple[int, str] | None = None,
    limit: int = 50,
) -> list[tuple[int, str, bytes]]:
    """(id, touched_at, document) of the tickets that meet all the filters, in order.

    `after` is the id and touched_at of the ticket to go on behind.
    """
    way, beyond = ("DESC", "<") if sort.startswith("-") else ("ASC", ">")
    by_touch = sort.endswith("updated")
    words = fold(text)
    phrase = '"' + words[:32].replace('"', '""') + '"'
    indexed = len(words) >= 3  # trigrams; what is shorter is looked for ticket by ticket
    if indexed and (by_touch or project_id or assignee_id or statuses):
        # So is what is common: in the order asked for, a page of it is found soon, while the
        # index gives another order, and all that the other filters will throw away. As a page
        # of what n of N tickets hold is found among N / n, both ways cost the same at about:
        (newest,) = conn.execute("SELECT coalesce(max(id), 0) FROM tickets").fetchone()
        common = math.isqrt(30 * newest) + 1
        (found,) = conn.execute(
            """
            SELECT count(*)
              FROM (SELECT 1 FROM ticket_texts WHERE ticket_texts MATCH ? LIMIT ?)""",
            (phrase, common),
        ).fetchone()
        indexed = found < common
    # What leads the join gives the rows in order, so that a page is read without sorting all
    # that matches. CROSS JOIN keeps SQLite from turning it round.
    id, touched_at, source = "tickets.id", "tickets.touched_at", "tickets"
    if indexed:
        id = "ticket_texts.rowid"
        source = f"ticket_texts CROSS JOIN tickets ON tickets.id = {id}"
    elif assignee_id:
        id, touched_at = "assignments.ticket_id", "assignments.touched_at"
        source = f"assignments CROSS JOIN tickets ON tickets.id = {id}"
    clauses = {
        "TRUE": True,
        "ticket_texts MATCH :phrase": indexed,
        # A phrase costs its length times the texts, so the index looks for its beginning only.
        "(instr(ticket_texts.title, :words) OR instr(ticket_texts.description, :words))": indexed
        and len(words) > 32,
        """EXISTS (SELECT 1 FROM ticket_texts
                    WHERE rowid = tickets.id
                      AND (instr(title, :words) OR instr(description, :words)))""": words
        and not indexed,
        "assignments.user_id = :user": assignee_id and not indexed,
        """EXISTS (SELECT 1 FROM assignments
                    WHERE ticket_id = tickets.id AND user_id = :user)""": assignee_id and indexed,
        "tickets.project_id = :project": project_id,
        f"{id} {beyond} :id": after and not by_touch,
        f"({touched_at}, {id}) {beyond} (:touched_at, :id)": after and by_touch,
    }
    # Only what is written above enters the statement; every value is a parameter.
    matching = f"""
        SELECT {id} AS id, {touched_at} AS touched_at, CAST(document AS BLOB)
          FROM {source}
         WHERE {" AND ".join(clause for clause, wanted in clauses.items() if wanted)}"""
    # Each status has its part of an index in order; SQLite merges them. IN would sort.
    wanted = sorted(set(statuses))
    parts = [f"{matching} AND tickets.status = :status{n}" for n in range(len(wanted))]
    return conn.execute(
        f"""
        {" UNION ALL ".join(parts or [matching])}
         ORDER BY {"touched_at " + way + "," if by_touch else ""} id {way}
         LIMIT :limit""",
        {
            "phrase": phrase,
            "words": words,
            "user": assignee_id,
            "project": project_id,
            "id": after and after[0],
            "touched_at": after and after[1],
            "limit": limit,
            **{f"status{n}": status for n, status in enumerate(wanted)},
        },
    ).fetchall()


def get_ticket(conn: Connection, ticket_id: int) -> bytes:
    """The document of the ticket, with its assignees. Raises NotFound."""
    return _get(conn, "ticket", ticket_id)


def list_missing(conn: Connection, table: str, ids: list[int]) -> list[int]:
    """Those of the ids that `table`, "users" or "projects", does not have."""
    rows = conn.execute(
        f"SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM {table})",
        (json.dumps(ids),),
    )
    return [id for (id,) in rows]


def create_ticket(conn: Connection, ticket: dict[str, Any]) -> int:
    """Save a new ticket with its assignees and return the id."""
    ticket_id = _insert(
        conn,
        """
        INSERT INTO tickets (title, description, project_id, status, created_at)
        VALUES (:title, :description, :project_id, :status, :now)""",
        {**ticket, "now": conn.now},
    )
    _assign(conn, ticket_id, set(ticket["assignees"]))
    conn.execute(
        "INSERT INTO ticket_texts (rowid, title, description) VALUES (?, ?, ?)",
        (ticket_id, fold(ticket["title"]), fold(ticket["description"] or "")),
    )
    return ticket_id


def update_ticket(
    conn: Connection, before: dict[str, Any], fields: dict[str, Any]
) -> tuple[dict[str, Any], Changes]:
    """Give the ticket `before` the values of `fields`, and write down what that changed.

    Returns the ticket as it is now, and its changes; where nothing differs, nothing is
    written and the changes are empty. `fields["assignees"]` is the list of all user ids.
    """
    changes: Changes = {
        field: {"from": before[field], "to": fields[field]}
        for field in ("title", "description", "project_id", "status")
        if field in fields and fields[field] != before[field]
    }
    present = {user["id"] for user in before["assignees"]}
    wanted = set(fields.get("assignees", present))
    if not changes and wanted == present:
        return before, {}

    conn.execute(
        """
        UPDATE tickets
           SET title = :title, description = :description,
               project_id = :project_id, status = :status, updated_at = :now
         WHERE id = :id""",
        {**before, **fields, "now": conn.now, "assignees": None},
    )
    if changes.keys() & {"title", "description"}:
        text = {**before, **fields}
        conn.execute(
            "UPDATE ticket_texts SET title = ?, description = ? WHERE rowid = ?",
            (fold(text["title"]), fold(text["description"] or ""), before["id"]),
        )
    _assign(conn, before["id"], wanted - present)
    conn.executemany(
        "DELETE FROM assignments WHERE ticket_id = ? AND user_id = ?",
        [(before["id"], user_id) for user_id in present - wanted],
    )
    after = json.loads(get_ticket(conn, before["id"]))
    if wanted != present:
        changes["assignees"] = {
            side: [{"id": user["id"], "name": user["name"]} for user in ticket["assignees"]]
            for side, ticket in (("from", before), ("to", after))
        }
    conn.execute(
        "INSERT INTO history (ticket_id, changed_at, changes) VALUES (?, ?, ?)",
        (before["id"], conn.now, json.dumps(changes, ensure_ascii=False)),
    )
    return after, changes


def list_history(
    conn: Connection, ticket_id: int, after: int, limit: int
) -> list[tuple[int, bytes]]:
    """(id, document) of the changes of the ticket, oldest first, from the first above `after`."""
    return conn.execute(
        """
        SELECT id, CAST(document AS BLOB)
          FROM history_documents
         WHERE ticket_id = :ticket AND id > :after
         ORDER BY id
         LIMIT :limit""",
        {"ticket": ticket_id, "after": after, "limit": limit},
    ).fetchall()


def _assign(conn: Connection, ticket_id: int, user_ids: set[int]) -> None:
    conn.executemany(
        "INSERT INTO assignments (ticket_id, user_id, touched_at) VALUES (?, ?, ?)",
        [(ticket_id, user_id, conn.now) for user_id in user_ids],
    )


# ---------------------------------------------------------------- the outbox


def list_emails(
    conn: Connection, state: str | None, ticket_id: int | None, after: int | None, limit: int
) -> list[tuple[int, bytes]]:
    """(id, document) of the mail that meets both filters, newest first, from below `after`."""
    clauses = {"TRUE": True, "state = ?1": state, "ticket_id = ?2": ticket_id, "id < ?3": after}
    return conn.execute(
        f"""
        SELECT id, CAST(document AS BLOB)
          FROM email_documents
         WHERE {" AND ".join(clause for clause, wanted in clauses.items() if wanted)}
         ORDER BY id DESC
         LIMIT ?4""",
        (state, ticket_id, after, limit),
    ).fetchall()


def get_email(conn: Connection, email_id: int) -> bytes:
    """The document of the mail, with its body. Raises NotFound."""
    return _get(conn, "full_email", email_id)


def queue_emails(conn: Connection, emails: Iterable[dict[str, Any]]) -> list[int]:
    """Queue mail, due now, and return the ids.

    Of each: ticket_id, user_id, address (without a user), subject, body, message_id.
    """
    return [
        _insert(
            conn,
            """
            INSERT INTO emails (ticket_id, user_id, address, subject, body, message_id,
                                created_at, queued_at, next_attempt_at)
            VALUES (:ticket_id, :user_id, :address, :subject, :body, :message_id,
                    :now, :now, :now)""",
            email | {"now": conn.now},
        )
        for email in emails
    ]


def retry_email(conn: Connection, email_id: int) -> None:
    """Queue the mail anew, due now, and have the mail server asked now.

    Raises NotFound, and Conflict if it is sent already.
    """
    email = json.loads(get_email(conn, email_id))
    if email["state"] == "sent":
        raise Conflict(f"Email {email_id} is already sent.")
    conn.execute(
        """
        UPDATE emails
           SET state = 'queued', attempts = 0, error = NULL,
               queued_at = :now, next_attempt_at = :now
         WHERE id = :id""",
        {"id": email_id, "now": conn.now},
    )
    set_mail_server(conn, "ok")


def list_due(conn: Connection, limit: int) -> list[dict[str, Any]]:
    """The mail whose time has come, the longest due first, with the addresses as they are now.

    Of each: id, attempts, queued_at, subject, body, message_id, address, ticket_id,
    ticket_created_at.
    """
    rows = conn.execute(
        """
        SELECT emails.id, attempts, queued_at, subject, body, message_id,
               CASE WHEN user_id IS NULL THEN address ELSE users.email END AS address,
               ticket_id, tickets.created_at AS ticket_created_at
          FROM emails
          LEFT JOIN users ON users.id = emails.user_id
          LEFT JOIN tickets ON tickets.id = emails.ticket_id
         WHERE next_attempt_at <= ?  -- only what is queued has one
         ORDER BY next_attempt_at, emails.id
         LIMIT ?""",
        (conn.now, limit),
    )
    names = [column[0] for column in rows.description]
    return [dict(zip(names, row, strict=True)) for row in rows]


def record_sent(conn: Connection, email_id: int, address: str) -> None:
    """The server took the mail for this address."""
    conn.execute(
        """
        UPDATE emails
           SET state = 'sent', attempts = attempts + 1, error = NULL,
               address = :address, next_attempt_at = NULL, sent_at = :now
         WHERE id = :id AND state = 'queued'""",
        {"id": email_id, "address": address, "now": conn.now},
    )


def record_failure(conn: Connection, email_id: int, error: str, again: str | None) -> None:
    """An attempt failed; the next one is at `again`, or the mail is failed for good."""
    conn.execute(
        """
        UPDATE emails
           SET state = iif(:again IS NULL, 'failed', 'queued'),
               attempts = attempts + 1, error = :error, next_attempt_at = :again,
               address = coalesce((SELECT email FROM users WHERE id = user_id), address)
         WHERE id = :id AND state = 'queued'""",
        {"id": email_id, "error": error, "again": again},
    )


def get_mail_server(conn: Connection) -> tuple[str, str | None, str | None]:
    """(state, error, ask_again_at): what the deliverer last learned of the mail server."""
    row: tuple[str, str | None, str | None] = conn.execute(
        "SELECT state, error, ask_again_at FROM mail_server"
    ).fetchone()
    return row


def set_mail_server(
    conn: Connection, state: str, error: str | None = None, ask_again_at: str | None = None
) -> None:
    """See the table in schema.sql; ("ok", None, None) has the server asked at once."""
    conn.execute(
        "UPDATE mail_server SET state = ?, error = ?, ask_again_at = ?",
        (state, error, ask_again_at),
    )


def get_health(conn: Connection) -> bytes:
    """The document of /health: how much mail waits, since when, how much failed, and why."""
    row: tuple[bytes] = conn.execute(
        "SELECT CAST(document AS BLOB) FROM health_document"
    ).fetchone()
    return row[0]
