"""Every question and every statement of the tracker, in SQL.

Nothing here knows about HTTP, the wording of mail, or which engine holds the data. A
function takes the connection of the transaction that its caller began. A document is the
JSON that a view of schema.sql writes, as bytes in UTF-8, since nothing needs to decode it
on its way. Errors: NotFound, Conflict, and what the engine raises when it fails.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING or not __package__:
    from plumbing import engine, engines, text
else:
    from .plumbing import engine, engines, text

Connection = engine.Connection
Database = engine.Database


class NotFound(Exception):
    """There is no such thing. Carries a sentence."""


class Conflict(Exception):
    """The state of the database forbids it. Carries a sentence and, in `facts`, its grounds."""

    def __init__(self, sentence: str, **facts: Any) -> None:
        super().__init__(sentence)
        self.facts = facts


class Page(NamedTuple):
    """A part of a list: a JSON array, and where the next one starts."""

    document: bytes
    next: Start | None


Start = tuple[str, int]  # the first item of a page: what orders it, where not the id, and its id


def open_database(
    location: str | os.PathLike[str],
    clock: engines.Clock = engines.utc_now,
    progress: Callable[[str], None] = lambda text: None,
    only_read: bool = False,
) -> Database:
    """The tracker database at `location`, a file or a URL, made ready. Raises Unavailable."""
    schema = engine.Schema(
        folder=Path(__file__).parent,
        name="tracker",
        application_id=0x7469636B,  # "tick"
        functions={"fold": text.fold, "name_key": text.name_key},
        filled="""
            INSERT INTO ticket_texts (ticket_texts) VALUES ('rebuild');
            UPDATE system SET indexed = (SELECT coalesce(max(id), 0) FROM tickets);""",
    )
    return engines.open_database(location, schema, clock, progress, only_read)


# ---------------------------------------------------------------- documents and pages


def get(conn: Connection, what: str, id: int) -> bytes:
    """The document of a "user", "project", "ticket", "email" or "full_email". Raises NotFound."""
    sql = f"SELECT CAST(document AS BLOB) FROM {what}_documents WHERE id = :id"
    row: tuple[bytes] | None = conn.execute(sql, {"id": id}).fetchone()
    if row is None:
        raise NotFound(f"There is no {what.removeprefix('full_')} {id}.")
    return row[0]


def _insert(conn: Connection, sql: str, values: dict[str, Any]) -> int:
    [(row_id,)] = conn.execute(f"{sql} RETURNING id", values).fetchall()
    return int(row_id)


def _page(conn: Connection, what: str, places: str, values: dict[str, Any], limit: int) -> Page:
    """The documents of at most `limit` of the (place, id) that the query `places` finds."""
    # In one row, as the interpreter is let go at each: with four threads this is four times
    # as fast. One place more than are shown tells where the next page starts.
    sql = f"""
        WITH page AS MATERIALIZED ({places} LIMIT :limit + 1)
        SELECT (SELECT CAST('[' || group_concat(document) || ']' AS BLOB)
                  FROM (SELECT (SELECT document
                                  FROM {what}_documents
                                 WHERE id = page.id) AS document
                          FROM page
                         LIMIT :limit) AS shown),
               (SELECT place FROM page LIMIT 1 OFFSET :limit),
               (SELECT id FROM page LIMIT 1 OFFSET :limit)"""
    document, place, id = conn.execute(sql, {**values, "limit": limit}).fetchone()
    return Page(document or b"[]", None if id is None else (str(place), id))


def list_by_id(
    conn: Connection, what: str, start: Start | None, limit: int, email: str | None = None
) -> Page:
    """All of "user" or "project", or the user with that address, by id."""
    filters = "id >= :start AND email = :email" if email else "id >= :start"
    places = f"SELECT '' AS place, id FROM {what}s WHERE {filters} ORDER BY id"
    return _page(conn, what, places, {"start": start[1] if start else 0, "email": email}, limit)


@contextmanager
def _unique(conn: Connection, what: str, value: str) -> Iterator[None]:
    # Nothing else can be wrong with what was checked before.
    try:
        yield
    except conn.IntegrityError as error:
        raise Conflict(f"The {what} {value} is taken.") from error


# ---------------------------------------------------------------- users and projects


def find_user_name(conn: Connection, email: str) -> str | None:
    """The name of the user with that address, if there is one."""
    row = conn.execute("SELECT name FROM users WHERE email = :email", {"email": email}).fetchone()
    return row and str(row[0])


def create_user(conn: Connection, user: dict[str, Any]) -> int:
    """Save a new user and return the id. Raises Conflict if the email is taken."""
    with _unique(conn, "email address", user["email"]):
        return _insert(conn, "INSERT INTO users (name, email) VALUES (:name, :email)", user)


def update_user(conn: Connection, user_id: int, user: dict[str, Any]) -> None:
    """Replace name and email. Raises Conflict if the email is taken."""
    with _unique(conn, "email address", user["email"]):
        sql = "UPDATE users SET name = :name, email = :email WHERE id = :id"
        conn.execute(sql, {**user, "id": user_id})


def delete_user(conn: Connection, user_id: int, by: str | None = None) -> Iterator[Change]:
    """Unassign the user from all tickets, then delete them and their unsent mail.

    Yields the change of each of the tickets, for the caller to tell.
    """
    sql = "SELECT ticket_id FROM assignments WHERE user_id = :id ORDER BY ticket_id"
    for (ticket_id,) in conn.execute(sql, {"id": user_id}).fetchall():
        ticket = json.loads(get(conn, "ticket", ticket_id))
        others = [user["id"] for user in ticket["assignees"] if user["id"] != user_id]
        _, change = update_ticket(conn, ticket, {"assignees": others}, by=by)
        if change:
            yield change
    conn.execute("DELETE FROM users WHERE id = :id", {"id": user_id})


def create_project(conn: Connection, project: dict[str, Any]) -> int:
    """Save a new project and return the id. Raises Conflict if the name is taken."""
    values = {"name": project["name"], "key": text.name_key(project["name"])}
    with _unique(conn, "project name", project["name"]):
        return _insert(conn, "INSERT INTO projects (name, name_key) VALUES (:name, :key)", values)


def update_project(conn: Connection, project_id: int, project: dict[str, Any]) -> None:
    """Replace the name. Raises Conflict if it is taken."""
    values = {"name": project["name"], "key": text.name_key(project["name"]), "id": project_id}
    with _unique(conn, "project name", project["name"]):
        conn.execute("UPDATE projects SET name = :name, name_key = :key WHERE id = :id", values)


def delete_project(conn: Connection, project_id: int) -> None:
    """Delete the project. Raises Conflict, with the counts, if it has tickets."""
    counts = json.loads(get(conn, "project", project_id))["tickets"]
    if any(counts.values()):
        told = ", ".join(f"{count} {status}" for status, count in counts.items())
        raise Conflict(f"The project still has tickets: {told}.", tickets=counts)
    conn.execute("DELETE FROM projects WHERE id = :id", {"id": project_id})


# ---------------------------------------------------------------- tickets

STATUSES = ("open", "in progress", "closed")
Ticket = dict[str, Any]  # what its document says
Changes = dict[str, dict[str, Any]]  # {"status": {"from": "open", "to": "closed"}}
Saved = tuple[bytes, "Change | None"]  # the document of a ticket, and what there is to tell


class Change(NamedTuple):
    """What happened to a ticket, as it is told to people."""

    history_id: int
    ticket: Ticket  # as it is now
    changes: Changes | None  # None: it is new
    by: str | None
    comment: str | None


def list_tickets(
    conn: Connection,
    *,
    project_id: int | None = None,
    assignee_id: int | None = None,  # 0: nobody is assigned
    statuses: Sequence[str] = (),
    text: str = "",
    sort: str = "-created",
    start: Start | None = None,
    limit: int = 50,
) -> Page:
    """The tickets that meet all the filters, in the order of `sort`. `text` is in folded form.

    1. What leads the query gives its rows in order, so that a page is read without sorting all
       that matches: each status its part of an index, the assignments of a user, or the
       tickets that hold a rare text. The database merges the parts.
    2. A common text is looked for along the other filters' order, where a page of it is found
       soon, while the index of texts gives all that the other filters would throw away.
    3. Only what is written here enters the statement; every value is a parameter.
    """
    way, at = ("DESC", "<=") if sort.startswith("-") else ("ASC", ">=")
    by_touch = sort.endswith("updated")
    statuses = sorted(set(statuses))
    any_status = ", ".join(f":{n}" for n in range(len(statuses)))
    any_status = f"status IN ({any_status})" if statuses else "TRUE"
    statuses = statuses or list(STATUSES)
    filtered = project_id or assignee_id is not None or by_touch
    indexed = not conn.plans and len(text) >= 3 and _is_rare(conn, text, filtered)
    # Of each part the id, as the index that leads it has it, and the rest of the query.
    if conn.plans:
        parts = [("tickets.id", f"tickets WHERE {any_status}")]
    elif indexed:
        found = "ticket_texts CROSS JOIN tickets WHERE tickets.id = ticket_texts.rowid"
        newest = "tickets WHERE tickets.id > (SELECT indexed FROM system)"
        parts = [
            ("ticket_texts.rowid", f"{found} AND ticket_texts MATCH :phrase AND {any_status}"),
            ("tickets.id", f"{newest} AND {any_status}"),
        ]
    elif assignee_id:
        theirs = "assignments CROSS JOIN tickets WHERE tickets.id = assignments.ticket_id"
        parts = [("assignments.ticket_id", f"{theirs} AND user_id = :user AND {any_status}")]
    else:
        parts = [("tickets.id", f"tickets WHERE status = :{n}") for n in range(len(statuses))]
    filters = ""
    if project_id:
        filters += " AND project_id = :project"
    if assignee_id == 0:
        filters += " AND NOT EXISTS (SELECT 1 FROM assignments WHERE ticket_id = tickets.id)"
    if assignee_id and (conn.plans or indexed):
        filters += """ AND EXISTS (SELECT 1 FROM assignments
                                    WHERE ticket_id = tickets.id AND user_id = :user)"""
    if text:  # also of what the index finds: it takes some characters for others
        filters += f" AND {conn.contains('tickets.text', ':text')}"
    if start and by_touch:
        filters += f" AND (touched_at, tickets.id) {at} (:place, :start)"
    places = " UNION ALL ".join(
        f"SELECT {id} AS id, touched_at AS place FROM {part} {filters}"
        + (f" AND {id} {at} :start" if start and not by_touch else "")
        for id, part in parts
    )
    order = f"place {way}, id {way}" if by_touch else f"id {way}"
    values: dict[str, Any] = {str(n): status for n, status in enumerate(statuses)}
    values |= {"text": text, "phrase": _phrase(text), "project": project_id, "user": assignee_id}
    values |= {"place": start and start[0], "start": start and start[1]}
    return _page(conn, "ticket", f"{places} ORDER BY {order}", values, limit)


def _phrase(text: str) -> str:
    # A phrase costs its length times the texts, so the index looks for its beginning only.
    return '"' + text[:32].replace('"', '""') + '"'


def _is_rare(conn: Connection, text: str, filtered: object) -> bool:
    """Whether the index of texts finds a page of what holds `text` sooner than a look at all."""
    if not filtered:
        return True  # it gives the order that is asked for
    # As a page of what n of N tickets hold is found among N / n, both cost the same at about:
    [newest] = conn.execute("SELECT coalesce(max(id), 0) FROM tickets").fetchone()
    values = {"phrase": _phrase(text), "common": math.isqrt(30 * newest) + 1}
    sql = """
        SELECT count(*)
          FROM (SELECT 1 FROM ticket_texts WHERE ticket_texts MATCH :phrase LIMIT :common)"""
    [found] = conn.execute(sql, values).fetchone()
    return bool(found < values["common"])


def list_missing(conn: Connection, projects: list[int], users: list[int]) -> set[tuple[str, int]]:
    """Those of the ids that nothing has, as ("project", 7) or ("user", 3)."""
    sql = """
        SELECT 'project', value FROM json_each(:projects)
         WHERE NOT EXISTS (SELECT 1 FROM projects WHERE id = value)
         UNION ALL
        SELECT 'user', value FROM json_each(:users)
         WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = value)"""
    return set(conn.execute(sql, {"projects": json.dumps(projects), "users": json.dumps(users)}))


def create_ticket(conn: Connection, ticket: Ticket, by: str | None = None) -> Saved:
    """Save a new ticket with its assignees: its document, and what there is to tell, if so."""
    sql = """
        INSERT INTO tickets (title, description, project_id, status, created_at, text)
        VALUES (:title, :description, :project_id, :status, :now, :text)"""
    ticket_id = _insert(conn, sql, {**ticket, "now": conn.now, "text": _searched(ticket)})
    _assign(conn, ticket_id, set(ticket["assignees"]))
    document = get(conn, "ticket", ticket_id)
    if not ticket["assignees"]:
        return document, None
    return document, _record(conn, conn.now, Change(0, json.loads(document), None, by, None))


def update_ticket(
    conn: Connection, ticket: Ticket, fields: Ticket, why: str | None = None, by: str | None = None
) -> Saved:
    """Give the ticket the values of `fields`, and write down what that changed, and why.

    Returns its document, and the change: none where nothing differs as it reads, and there is
    no `why`. `fields["assignees"]` is the list of all user ids.
    """
    changed: dict[str, Any] = {
        field: fields[field]
        for field in ("title", "description", "project_id", "status")
        if field in fields and not text.same(str(fields[field] or ""), str(ticket[field] or ""))
    }
    present = {user["id"] for user in ticket["assignees"]}
    wanted = set(fields.get("assignees", present))
    if not changed and wanted == present and not why:
        return get(conn, "ticket", ticket["id"]), None

    # The clock may have been set back: a ticket is never changed before it was.
    now = max(conn.now, ticket["updated_at"] or ticket["created_at"])
    values = {"id": ticket["id"], "now": now, "text": _searched(ticket | changed), **changed}
    # Only the columns that differ: the database moves the index entries of each that is named.
    named = [*changed, *(["text"] if changed.keys() & {"title", "description"} else [])]
    columns = "".join(f"{column} = :{column}, " for column in named)
    conn.execute(f"UPDATE tickets SET {columns} updated_at = :now WHERE id = :id", values)
    if "text" in named:  # once more, for a change of case only, which looks like one by hand
        conn.execute("UPDATE tickets SET text = :text WHERE id = :id AND text <> :text", values)
    _assign(conn, ticket["id"], wanted - present)
    for user_id in present - wanted:
        sql = "DELETE FROM assignments WHERE ticket_id = :ticket AND user_id = :user"
        conn.execute(sql, {"ticket": ticket["id"], "user": user_id})
    document = get(conn, "ticket", ticket["id"])
    after = json.loads(document)
    changes: Changes = {name: {"from": ticket[name], "to": new} for name, new in changed.items()}
    if wanted != present:
        changes["assignees"] = {
            side: [{"id": user["id"], "name": user["name"]} for user in state["assignees"]]
            for side, state in (("from", ticket), ("to", after))
        }
    return document, _record(conn, now, Change(0, after, changes, by, why or None))


def list_history(conn: Connection, ticket_id: int, start: Start | None, limit: int) -> Page:
    """The changes of the ticket, oldest first. Raises NotFound."""
    get(conn, "ticket", ticket_id)
    changes = """
        SELECT '' AS place, id
          FROM history
         WHERE ticket_id = :ticket AND id >= :start AND changes IS NOT NULL
         ORDER BY id"""
    values = {"ticket": ticket_id, "start": start[1] if start else 0}
    return _page(conn, "history", changes, values, limit)


def _searched(ticket: Ticket) -> str:
    """The text of a ticket in the form in which it is searched; see schema.sql."""
    return f"{text.fold(ticket['title'])}\x1f{text.fold(ticket['description'] or '')}\x1f\x1f"


def _assign(conn: Connection, ticket_id: int, user_ids: set[int]) -> None:
    sql = "INSERT INTO assignments (ticket_id, user_id) SELECT :id, value FROM json_each(:users)"
    if user_ids:
        conn.execute(sql, {"id": ticket_id, "users": json.dumps(list(user_ids))})


def _record(conn: Connection, now: str, change: Change) -> Change:
    sql = """
        INSERT INTO history (ticket_id, changed_at, changes, changed_by, comment)
        VALUES (:ticket, :now, :changes, :by, :comment)"""
    values = {**change._asdict(), "ticket": change.ticket["id"], "now": now}
    if change.changes is not None:
        values["changes"] = json.dumps(change.changes, ensure_ascii=False)
    return change._replace(history_id=_insert(conn, sql, values))


# ---------------------------------------------------------------- the outbox


def list_emails(
    conn: Connection, state: str | None, ticket_id: int | None, start: Start | None, limit: int
) -> Page:
    """The mail that meets both filters, newest first."""
    source, order, filters = "emails", "emails.id DESC", ""
    if ticket_id:
        source = "history CROSS JOIN emails"
        order = "history.id DESC, emails.id DESC"  # that is the same, and along an index
        filters += " AND emails.history_id = history.id AND history.ticket_id = :ticket"
    if state == "queued":
        filters += " AND next_attempt_at IS NOT NULL"  # an index knows these
    elif state:
        filters += f" AND state = '{'failed' if state == 'failed' else 'sent'}'"
    if start:
        filters += " AND emails.id <= :start"
    if start and ticket_id:
        filters += """ AND history.id <= (SELECT history_id FROM emails
                                           WHERE id <= :start ORDER BY id DESC LIMIT 1)"""
    places = f"SELECT '' AS place, emails.id FROM {source} WHERE TRUE {filters} ORDER BY {order}"
    return _page(conn, "email", places, {"ticket": ticket_id, "start": start and start[1]}, limit)


def queue_emails(
    conn: Connection, history_id: int, subject: str, body: str, user_ids: list[int]
) -> None:
    """Queue the message about a change to each of the users, due now."""
    text = {"id": history_id, "subject": subject, "body": body}
    conn.execute("UPDATE history SET subject = :subject, body = :body WHERE id = :id", text)
    sql = """
        INSERT INTO emails (history_id, user_id, next_attempt_at)
        SELECT :id, value, :now FROM json_each(:users)"""
    conn.execute(sql, {"id": history_id, "users": json.dumps(user_ids), "now": conn.now})


def queue_test_mail(conn: Connection, address: str, subject: str, body: str) -> int:
    """Queue a message about no ticket to an address, due now, and return its id."""
    values: dict[str, Any] = {"subject": subject, "body": body, "now": conn.now}
    sql = "INSERT INTO history (changed_at, subject, body) VALUES (:now, :subject, :body)"
    values |= {"history": _insert(conn, sql, values), "address": address}
    sql = "INSERT INTO emails (history_id, address, next_attempt_at)"
    return _insert(conn, f"{sql} VALUES (:history, :address, :now)", values)


def retry_email(conn: Connection, email_id: int) -> None:
    """Queue the mail anew, due now, and have the mail server asked now.

    Raises NotFound, and Conflict if it is sent already.
    """
    if json.loads(get(conn, "email", email_id))["state"] == "sent":
        raise Conflict(f"Email {email_id} is already sent.")
    retry_emails(conn, email_id)


def retry_emails(conn: Connection, email_id: int | None = None) -> int:
    """The same for all failed mail, or the one; how much there was."""
    set_mail_error(conn, None)
    sql = f"""
        UPDATE emails
           SET state = 'queued', attempts = 0, uncertain = 0, error = NULL, next_attempt_at = :now
         WHERE {"id = :id" if email_id else "state = 'failed'"}"""
    return conn.execute(sql, {"id": email_id, "now": conn.now}).rowcount


class Due(NamedTuple):
    """A mail whose time has come, as it is queued; a retry by hand would change that."""

    id: int
    attempts: int
    uncertain: int
    next_attempt_at: str


def list_due(conn: Connection, longest: str, limit: int) -> list[Due]:
    """The mail whose time has come, the longest due first.

    `longest` is the time after the longest wait: what is later was written by a wrong clock.
    """
    sql = """
        SELECT id, attempts, uncertain, next_attempt_at
          FROM emails
         WHERE next_attempt_at IS NOT NULL  -- it is queued
           AND (next_attempt_at <= :now OR next_attempt_at > :longest)
         ORDER BY next_attempt_at, id
         LIMIT :limit"""
    rows = conn.execute(sql, {"now": conn.now, "longest": longest, "limit": limit})
    return [Due(*row) for row in rows]


def get_outgoing(conn: Connection, email_id: int) -> dict[str, Any]:
    """All that is needed to compose a mail, with the address as it is now.

    id, message_id, address, subject, body, changed_at, ticket_id, ticket_created_at,
    project_id, project, token, domain.
    """
    sql = """
        SELECT emails.id, message_id, subject, body, changed_at,
               CASE WHEN user_id IS NULL THEN address ELSE users.email END AS address,
               ticket_id, tickets.created_at AS ticket_created_at,
               project_id, projects.name AS project, token, domain
          FROM emails
          JOIN history ON history.id = emails.history_id
          LEFT JOIN users ON users.id = emails.user_id
          LEFT JOIN tickets ON tickets.id = history.ticket_id
          LEFT JOIN projects ON projects.id = tickets.project_id
         CROSS JOIN system
         WHERE emails.id = :id"""
    rows = conn.execute(sql, {"id": email_id})
    names = [column[0] for column in rows.description]
    for row in rows.fetchall():
        return dict(zip(names, row, strict=True))
    raise NotFound(f"There is no email {email_id}.")


def record_sent(conn: Connection, due: Due, address: str) -> None:
    """The server took the mail for this address; no matter for what was queued anew to another."""
    sql = """
        UPDATE emails
           SET state = 'sent', attempts = attempts + 1, error = NULL,
               address = :address, next_attempt_at = NULL, sent_at = :now
         WHERE id = :id AND state <> 'sent'
           AND (next_attempt_at = :next_attempt_at
                OR :address = coalesce((SELECT email FROM users WHERE id = user_id), address))"""
    conn.execute(sql, {**due._asdict(), "address": address, "now": conn.now})


def record_failure(
    conn: Connection, due: Due, address: str | None, error: str, again: str | None
) -> bool:
    """An attempt failed; the next one is at `again`, or the mail is failed for good.

    Whether it was written down: not for what was queued anew meanwhile.
    """
    sql = """
        UPDATE emails
           SET state = CASE WHEN CAST(:again AS TEXT) IS NULL THEN 'failed' ELSE 'queued' END,
               attempts = attempts + 1, uncertain = :uncertain, error = :error,
               next_attempt_at = :again, address = coalesce(:address, address)
         WHERE id = :id AND next_attempt_at = :next_attempt_at"""
    values = {**due._asdict(), "address": address, "error": error, "again": again}
    return bool(conn.execute(sql, values).rowcount)


def give_up(conn: Connection, email_id: int, error: str) -> None:
    """Have a mail failed whatever is in its row."""
    sql = """
        UPDATE emails
           SET state = 'failed', error = :error, next_attempt_at = NULL, sent_at = NULL
         WHERE id = :id"""
    conn.execute(sql, {"id": email_id, "error": error})


def get_mail_error(conn: Connection) -> str | None:
    """What is wrong with the mail server, as far as the deliverer knows."""
    [error] = conn.execute("SELECT error FROM system").fetchone()
    return error and str(error)


def set_mail_error(conn: Connection, error: str | None) -> None:
    """Write down what is wrong; None has the server asked at once."""
    conn.execute("UPDATE system SET error = :error", {"error": error})


def begin_delivery(conn: Connection, domain: str | None) -> None:
    """Forget what others learned of the mail server: it may be another, with another password.

    `domain`, if there is one, is that of the Message-IDs, unless mail was delivered before.
    """
    set_mail_error(conn, None)
    conn.execute("UPDATE system SET domain = :domain WHERE domain IS NULL", {"domain": domain})


def get_health(conn: Connection) -> bytes:
    """The document of /health: how much mail waits, since when, how much failed, and why."""
    [document] = conn.execute("SELECT CAST(document AS BLOB) FROM health_document").fetchone()
    return bytes(document)
