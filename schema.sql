-- The nouns of the ticket tracker, and the rules that hold whoever writes to the
-- database: the service, a script, or somebody at a SQL prompt. db.py applies this
-- file to a new database in one transaction; applying it again does no harm.
--
-- Ids are AUTOINCREMENT, so that none is ever used twice. Times are RFC 3339 text in
-- UTC with milliseconds ('2026-11-22T10:32:00.123Z'): it sorts as it reads. The views
-- at the end write the JSON of the API, so that each representation stands in one place.


-- ------------------------------------------------------------ users and projects

CREATE TABLE IF NOT EXISTS users (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    name  TEXT NOT NULL CHECK (length(name) BETWEEN 3 AND 100),
    -- Addresses are ASCII, so NOCASE knows all the case there is.
    email TEXT NOT NULL COLLATE NOCASE UNIQUE
          CHECK (length(email) <= 254 AND email LIKE '_%@_%._%')
) STRICT;

CREATE TABLE IF NOT EXISTS projects (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    name     TEXT NOT NULL CHECK (length(name) BETWEEN 3 AND 100),
    -- The name in the case-folded form of db.fold(): NOCASE would know ASCII only.
    name_key TEXT NOT NULL UNIQUE,
    -- Tickets per status, kept by the triggers below: counting them again at each
    -- GET /projects would make it slower with every ticket.
    open        INTEGER NOT NULL DEFAULT 0,
    in_progress INTEGER NOT NULL DEFAULT 0,
    closed      INTEGER NOT NULL DEFAULT 0
) STRICT;


-- ------------------------------------------------------------ tickets

CREATE TABLE IF NOT EXISTS tickets (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    project_id  INTEGER NOT NULL REFERENCES projects ON DELETE RESTRICT,
    status      TEXT NOT NULL CHECK (status IN ('open', 'in progress', 'closed')),
    created_at  TEXT NOT NULL,
    updated_at  TEXT,  -- NULL until the first change
    -- What the sort by update goes by: never updated counts as updated at creation.
    touched_at  TEXT NOT NULL GENERATED ALWAYS AS (coalesce(updated_at, created_at)) VIRTUAL,
    title       TEXT NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    description TEXT CHECK (length(description) <= 10000),
    -- The users of the table below, as the API shows them; kept by triggers.
    assignees   TEXT NOT NULL DEFAULT '[]',
    -- What the API shows, made at each write because reads are many: joining it together at
    -- each read would be most of what a page costs.
    document    TEXT NOT NULL GENERATED ALWAYS AS (
        json_object('id', id, 'title', title, 'description', description,
                    'project_id', project_id, 'status', status, 'assignees', json(assignees),
                    'created_at', created_at, 'updated_at', updated_at)) STORED
) STRICT;

-- Who has to do a ticket. A user is unassigned, with history and mail, before they can
-- be deleted; RESTRICT keeps anybody from taking the short cut.
CREATE TABLE IF NOT EXISTS assignments (
    ticket_id  INTEGER NOT NULL REFERENCES tickets ON DELETE RESTRICT,
    user_id    INTEGER NOT NULL REFERENCES users ON DELETE RESTRICT,
    touched_at TEXT NOT NULL,  -- that of the ticket, so that an index can order a user's tickets
    PRIMARY KEY (ticket_id, user_id)
) STRICT, WITHOUT ROWID;

-- What changed: {"status": {"from": "open", "to": "closed"}}. One row per change.
CREATE TABLE IF NOT EXISTS history (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    ticket_id  INTEGER NOT NULL REFERENCES tickets ON DELETE RESTRICT,
    changed_at TEXT NOT NULL,
    changes    TEXT NOT NULL CHECK (json_valid(changes))
) STRICT;

-- Finds text inside words, from three characters up. It holds the folded form of
-- db.fold(), since its own idea of case is not Python's. Its rowid is the ticket's id.
CREATE VIRTUAL TABLE IF NOT EXISTS ticket_texts
USING fts5 (title, description, tokenize = 'trigram case_sensitive 1');

-- Listings run along an index: the order is the id, or touched_at and then the id.
CREATE INDEX IF NOT EXISTS tickets_by_project         ON tickets (project_id);
CREATE INDEX IF NOT EXISTS tickets_by_project_status  ON tickets (project_id, status);
CREATE INDEX IF NOT EXISTS tickets_by_status          ON tickets (status);
CREATE INDEX IF NOT EXISTS tickets_by_touch           ON tickets (touched_at);
CREATE INDEX IF NOT EXISTS tickets_by_project_touch   ON tickets (project_id, touched_at);
CREATE INDEX IF NOT EXISTS tickets_by_status_touch    ON tickets (status, touched_at);
CREATE INDEX IF NOT EXISTS tickets_by_all_and_touch   ON tickets (project_id, status, touched_at);
CREATE INDEX IF NOT EXISTS assignments_by_user        ON assignments (user_id, ticket_id);
CREATE INDEX IF NOT EXISTS assignments_by_user_touch  ON assignments (user_id, touched_at, ticket_id);
CREATE INDEX IF NOT EXISTS history_by_ticket          ON history (ticket_id);

-- A ticket is never deleted: not by DELETE, not by INSERT OR REPLACE (which deletes
-- without asking a DELETE trigger), and not by giving its id away.
CREATE TRIGGER IF NOT EXISTS tickets_stay
BEFORE DELETE ON tickets
BEGIN
    SELECT RAISE(ABORT, 'tickets are never deleted');
END;

CREATE TRIGGER IF NOT EXISTS tickets_are_not_replaced
BEFORE INSERT ON tickets WHEN EXISTS (SELECT 1 FROM tickets WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'tickets are never deleted');
END;

CREATE TRIGGER IF NOT EXISTS tickets_keep_id_and_creation
BEFORE UPDATE ON tickets  -- not OF id: that would let "SET rowid" through
WHEN NEW.id <> OLD.id OR NEW.created_at <> OLD.created_at
BEGIN
    SELECT RAISE(ABORT, 'id and created_at never change');
END;

CREATE TRIGGER IF NOT EXISTS tickets_counted_in
AFTER INSERT ON tickets
BEGIN
    UPDATE projects
       SET open        = open        + (NEW.status = 'open'),
           in_progress = in_progress + (NEW.status = 'in progress'),
           closed      = closed      + (NEW.status = 'closed')
     WHERE id = NEW.project_id;
END;

CREATE TRIGGER IF NOT EXISTS tickets_counted_again
AFTER UPDATE OF project_id, status ON tickets
WHEN NEW.project_id <> OLD.project_id OR NEW.status <> OLD.status
BEGIN
    UPDATE projects
       SET open        = open        - (OLD.status = 'open'),
           in_progress = in_progress - (OLD.status = 'in progress'),
           closed      = closed      - (OLD.status = 'closed')
     WHERE id = OLD.project_id;
    UPDATE projects
       SET open        = open        + (NEW.status = 'open'),
           in_progress = in_progress + (NEW.status = 'in progress'),
           closed      = closed      + (NEW.status = 'closed')
     WHERE id = NEW.project_id;
END;

-- Who is assigned is shown in the ticket. Where a user is renamed, in each of theirs.
CREATE VIEW IF NOT EXISTS assignees_of_tickets AS
SELECT id AS ticket_id,
       (SELECT json_group_array(
                   json_object('id', users.id, 'name', users.name, 'email', users.email))
          FROM assignments
         CROSS JOIN users ON users.id = assignments.user_id  -- CROSS: in order of the id
         WHERE assignments.ticket_id = tickets.id) AS assignees
  FROM tickets;

CREATE TRIGGER IF NOT EXISTS assignments_shown
AFTER INSERT ON assignments
BEGIN
    UPDATE tickets
       SET assignees = (SELECT assignees FROM assignees_of_tickets WHERE ticket_id = NEW.ticket_id)
     WHERE id = NEW.ticket_id;
END;

CREATE TRIGGER IF NOT EXISTS assignments_no_longer_shown
AFTER DELETE ON assignments
BEGIN
    UPDATE tickets
       SET assignees = (SELECT assignees FROM assignees_of_tickets WHERE ticket_id = OLD.ticket_id)
     WHERE id = OLD.ticket_id;
END;

CREATE TRIGGER IF NOT EXISTS assignments_shown_again
AFTER UPDATE ON users
BEGIN
    UPDATE tickets
       SET assignees = (SELECT assignees FROM assignees_of_tickets WHERE ticket_id = tickets.id)
     WHERE id IN (SELECT ticket_id FROM assignments WHERE user_id = NEW.id);
END;

CREATE TRIGGER IF NOT EXISTS assignments_touched
AFTER UPDATE OF updated_at ON tickets
BEGIN
    UPDATE assignments SET touched_at = NEW.touched_at WHERE ticket_id = NEW.id;
END;


-- ------------------------------------------------------------ the outbox

-- One row per message and recipient, written in the transaction of the change that it
-- tells of. A failed send is recorded here: attempts, error, next_attempt_at.
CREATE TABLE IF NOT EXISTS emails (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    ticket_id       INTEGER REFERENCES tickets ON DELETE RESTRICT,  -- NULL: a test mail
    -- Without a foreign key, because what was sent outlives the user; as no id is used
    -- twice, it can never come to mean somebody else.
    user_id         INTEGER,
    -- Where it went at the last attempt. Until it is sent, the user's address counts.
    address         TEXT,
    subject         TEXT NOT NULL,
    body            TEXT NOT NULL,
    message_id      TEXT NOT NULL UNIQUE,
    state           TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sent', 'failed')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    error           TEXT,
    created_at      TEXT NOT NULL,
    queued_at       TEXT NOT NULL,  -- at creation or at the retry by hand: the five days
    next_attempt_at TEXT,
    sent_at         TEXT,
    CHECK (user_id IS NOT NULL OR address IS NOT NULL),
    CHECK ((state = 'queued') = (next_attempt_at IS NOT NULL)),
    CHECK ((state = 'sent') = (sent_at IS NOT NULL)),
    CHECK (state <> 'failed' OR error IS NOT NULL)
) STRICT;

CREATE INDEX IF NOT EXISTS emails_due       ON emails (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS emails_unsent    ON emails (user_id) WHERE state <> 'sent';
CREATE INDEX IF NOT EXISTS emails_by_state  ON emails (state);
CREATE INDEX IF NOT EXISTS emails_by_ticket ON emails (ticket_id);

-- A deleted user gets no mail any more, and what had failed cannot be sent by hand either.
CREATE TRIGGER IF NOT EXISTS users_take_their_unsent_mail
AFTER DELETE ON users
BEGIN
    DELETE FROM emails WHERE user_id = OLD.id AND state <> 'sent';
END;

-- What the deliverer last learned of the mail server, for /health and for whoever
-- delivers next. 'down': each due mail counts a failed attempt, and nobody asks the
-- server again before ask_again_at. 'refusing' (password, sender): no mail counts it.
CREATE TABLE IF NOT EXISTS mail_server (
    only         INTEGER PRIMARY KEY CHECK (only = 1),
    state        TEXT NOT NULL DEFAULT 'ok' CHECK (state IN ('ok', 'down', 'refusing')),
    error        TEXT,
    ask_again_at TEXT,
    CHECK ((state = 'ok') = (error IS NULL) AND (state = 'ok') = (ask_again_at IS NULL))
) STRICT;

INSERT OR IGNORE INTO mail_server (only) VALUES (1);


-- ------------------------------------------------------------ what the API shows

CREATE VIEW IF NOT EXISTS user_documents AS
SELECT id,
       json_object('id', id, 'name', name, 'email', email) AS document
  FROM users;

CREATE VIEW IF NOT EXISTS project_documents AS
SELECT id,
       json_object('id', id, 'name', name, 'tickets',
                   json_object('open', open, 'in progress', in_progress, 'closed', closed)
       ) AS document
  FROM projects;

CREATE VIEW IF NOT EXISTS ticket_documents AS
SELECT id, document
  FROM tickets;

CREATE VIEW IF NOT EXISTS history_documents AS
SELECT id, ticket_id,
       json_object('id', id, 'ticket_id', ticket_id, 'changed_at', changed_at,
                   'changes', json(changes)) AS document
  FROM history;

CREATE VIEW IF NOT EXISTS email_documents AS
SELECT emails.id, ticket_id, state,
       json_object(
           'id', emails.id,
           'ticket_id', ticket_id,
           'user_id', user_id,
           'to', iif(state = 'sent', address, coalesce(users.email, address)),
           'subject', subject,
           'state', state,
           'attempts', attempts,
           'error', error,
           'created_at', created_at,
           'next_attempt_at', next_attempt_at,
           'sent_at', sent_at
       ) AS document
  FROM emails
  LEFT JOIN users ON users.id = emails.user_id;

CREATE VIEW IF NOT EXISTS full_email_documents AS
SELECT id, json_insert(document, '$.body', body) AS document
  FROM email_documents
  JOIN emails USING (id);

CREATE VIEW IF NOT EXISTS health_document AS
SELECT json_object('status', 'ok', 'mail', json_object(
           'queued', (SELECT count(*) FROM emails WHERE state = 'queued'),
           'failed', (SELECT count(*) FROM emails WHERE state = 'failed'),
           'oldest_queued_at', (
               SELECT created_at FROM emails WHERE state = 'queued' ORDER BY id LIMIT 1),
           'error', error
       )) AS document
  FROM mail_server;
