-- The nouns of the ticket tracker, and the rules that hold whoever writes: the service, a script,
-- or somebody at a SQL prompt. No id is ever used twice: those of rows that can be deleted are
-- AUTOINCREMENT. Times are RFC 3339 text in UTC with milliseconds ('2026-11-22T10:32:00.123Z'): it
-- sorts as it reads. The views at the end write the JSON of the API, so that it stands once.

-- ------------------------------------------------------------ users and projects

CREATE TABLE users (
    id    INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 999999999999999),
    name  TEXT NOT NULL CHECK (length(name) BETWEEN 3 AND 100),
    -- Addresses are ASCII, so NOCASE knows all the case there is.
    email TEXT NOT NULL COLLATE NOCASE UNIQUE
          CHECK (length(email) <= 254 AND email LIKE '_%@_%._%')
) STRICT;

CREATE TABLE projects (
    id       INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 999999999999999),
    name     TEXT NOT NULL CHECK (length(name) BETWEEN 3 AND 100),
    -- The name in the form in which names are compared: NOCASE would know ASCII only.
    name_key TEXT NOT NULL UNIQUE,
    -- Tickets per status, kept by triggers, as counting them at each GET /projects would cost
    -- more with every ticket. At each step of the triggers counted grows by one; who changes a
    -- count by hand does not know of that, and is refused.
    open        INTEGER NOT NULL DEFAULT 0,
    in_progress INTEGER NOT NULL DEFAULT 0,
    closed      INTEGER NOT NULL DEFAULT 0,
    counted     INTEGER NOT NULL DEFAULT 0
) STRICT;

-- ------------------------------------------------------------ tickets

CREATE TABLE tickets (
    id          INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 999999999999999),
    project_id  INTEGER NOT NULL REFERENCES projects ON DELETE RESTRICT,
    status      TEXT NOT NULL CHECK (status IN ('open', 'in progress', 'closed')),
    created_at  TEXT NOT NULL CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%fZ', created_at)),
    updated_at  TEXT CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%fZ', updated_at)),
    -- What the sort by update goes by: NULL, never updated, counts as updated at creation.
    touched_at  TEXT NOT NULL GENERATED ALWAYS AS (coalesce(updated_at, created_at)) VIRTUAL,
    title       TEXT NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    description TEXT CHECK (length(description) <= 10000),
    -- What is searched: title and description in folded form, each with a U+001F behind it,
    -- and one more, so that every two characters of it begin a group of three.
    text        TEXT NOT NULL CHECK (text <> ''),
    CHECK (updated_at >= created_at)
) STRICT;

-- Who has to do a ticket. A user is unassigned, with history and mail, before they are deleted.
CREATE TABLE assignments (
    ticket_id INTEGER NOT NULL REFERENCES tickets ON DELETE RESTRICT,
    user_id   INTEGER NOT NULL REFERENCES users ON DELETE RESTRICT,
    PRIMARY KEY (ticket_id, user_id)
) STRICT, WITHOUT ROWID;

-- A change of a ticket, or its creation if somebody is told of that, and what is mailed about it.
CREATE TABLE history (
    id         INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 999999999999999),
    ticket_id  INTEGER REFERENCES tickets ON DELETE RESTRICT,  -- NULL: a test mail
    changed_at TEXT NOT NULL CHECK (changed_at IS strftime('%Y-%m-%dT%H:%M:%fZ', changed_at)),
    -- {"status": {"from": "open", "to": "closed"}}; NULL: a creation, or a test mail
    changes    TEXT CHECK (changes IS NULL OR json_valid(changes)),
    changed_by TEXT,  -- NULL: not known
    comment    TEXT,
    -- The text of the mail, the same to everybody; NULL where nobody is told.
    subject    TEXT,
    body       TEXT
) STRICT;

-- Listings run along an index, by id or touched_at; "any status" is asked for as the three.
CREATE INDEX tickets_by_status         ON tickets (status);
CREATE INDEX tickets_by_status_touch   ON tickets (status, touched_at);
CREATE INDEX tickets_by_project        ON tickets (project_id, status);
CREATE INDEX tickets_by_project_touch  ON tickets (project_id, status, touched_at);
CREATE INDEX assignments_by_user       ON assignments (user_id, ticket_id);
CREATE INDEX history_by_ticket         ON history (ticket_id);

-- Finds text inside words, from three characters up, in the tickets up to system.indexed: 64
-- are taken in at once, as that costs little more than one; the newest are looked at singly.
CREATE VIRTUAL TABLE ticket_texts
USING fts5 (text, content = 'tickets', content_rowid = 'id', columnsize = 0,
            tokenize = 'trigram case_sensitive 1');

-- ------------------------------------------------------------ the outbox

-- A row per message and recipient, written with the change. A failed send is recorded in it.
CREATE TABLE emails (
    id              INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id BETWEEN 1 AND 999999999999999),
    history_id      INTEGER NOT NULL REFERENCES history ON DELETE RESTRICT,
    -- Without a foreign key, because what was sent outlives the user; as no id is used
    -- twice, it can never come to mean somebody else. NULL: a test mail.
    user_id         INTEGER,
    -- Where it went at the last attempt. Until it is sent, the user's address counts.
    address         TEXT,
    message_id      TEXT,  -- of mail that was queued before schema 2; else made of the id
    state           TEXT NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'sent', 'failed')),
    attempts        INTEGER NOT NULL DEFAULT 0,
    uncertain       INTEGER NOT NULL DEFAULT 0,  -- of them, those after which the server may have it
    error           TEXT,
    next_attempt_at TEXT CHECK (next_attempt_at IS strftime('%Y-%m-%dT%H:%M:%fZ', next_attempt_at)),
    sent_at         TEXT CHECK (sent_at IS strftime('%Y-%m-%dT%H:%M:%fZ', sent_at)),
    CHECK (user_id IS NOT NULL OR address IS NOT NULL),
    CHECK ((state = 'queued') = (next_attempt_at IS NOT NULL)),
    CHECK ((state = 'sent') = (sent_at IS NOT NULL)),
    CHECK (state <> 'failed' OR error IS NOT NULL)
) STRICT;

CREATE INDEX emails_due        ON emails (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX emails_failed     ON emails (state) WHERE state = 'failed';
CREATE INDEX emails_by_history ON emails (history_id);

-- What there is once.
CREATE TABLE system (
    only         INTEGER PRIMARY KEY CHECK (only = 1),
    indexed      INTEGER NOT NULL DEFAULT 0,  -- the highest ticket in ticket_texts
    -- A Message-ID is made of the id of a mail, this token, and the domain of the sender who
    -- first delivered: so it is the same at every attempt, and all mail of a ticket is one
    -- thread, also after the sender was changed.
    token        TEXT NOT NULL DEFAULT (lower(hex(randomblob(8)))),
    domain       TEXT,
    error        TEXT  -- what is wrong with the mail server, as far as the deliverer knows
) STRICT;

INSERT INTO system (only) VALUES (1);

-- What was answered to a creation that came with an Idempotency-Key. It counts for a day.
CREATE TABLE answers (
    key         TEXT PRIMARY KEY,
    request     TEXT NOT NULL,  -- a digest
    answer      TEXT NOT NULL,
    answered_at TEXT NOT NULL CHECK (answered_at IS strftime('%Y-%m-%dT%H:%M:%fZ', answered_at))
) STRICT;

CREATE INDEX answers_by_time ON answers (answered_at);

-- ------------------------------------------------------------ the rules

-- A ticket is never deleted: not by DELETE, not by INSERT OR REPLACE (which deletes
-- without asking a DELETE trigger), and not by giving its id away.
CREATE TRIGGER tickets_stay BEFORE DELETE ON tickets
BEGIN SELECT RAISE(ABORT, 'tickets are never deleted'); END;

CREATE TRIGGER tickets_are_not_replaced BEFORE INSERT ON tickets
WHEN EXISTS (SELECT 1 FROM tickets WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'tickets are never deleted'); END;

CREATE TRIGGER tickets_keep_id_and_creation BEFORE UPDATE ON tickets  -- not OF id: rowid is it, too
WHEN NEW.id <> OLD.id OR NEW.created_at <> OLD.created_at
BEGIN SELECT RAISE(ABORT, 'id and created_at never change'); END;

-- Users and projects in use stay, whether or not foreign keys are on.
CREATE TRIGGER users_in_use_stay BEFORE DELETE ON users
WHEN EXISTS (SELECT 1 FROM assignments WHERE user_id = OLD.id)
BEGIN SELECT RAISE(ABORT, 'the user is assigned to tickets'); END;

CREATE TRIGGER users_are_not_replaced BEFORE INSERT ON users
WHEN EXISTS (SELECT 1 FROM users WHERE id = NEW.id OR email = NEW.email)
BEGIN SELECT RAISE(ABORT, 'the id or email is taken'); END;

CREATE TRIGGER users_keep_their_id BEFORE UPDATE ON users
WHEN NEW.id <> OLD.id OR EXISTS (SELECT 1 FROM users WHERE email = NEW.email AND id <> OLD.id)
BEGIN SELECT RAISE(ABORT, 'an id never changes, and the email may be taken'); END;

CREATE TRIGGER projects_in_use_stay BEFORE DELETE ON projects
WHEN EXISTS (SELECT 1 FROM tickets WHERE project_id = OLD.id)
BEGIN SELECT RAISE(ABORT, 'the project has tickets'); END;

CREATE TRIGGER projects_are_not_replaced BEFORE INSERT ON projects
WHEN EXISTS (SELECT 1 FROM projects WHERE id = NEW.id OR name_key = NEW.name_key)
BEGIN SELECT RAISE(ABORT, 'the id or name is taken'); END;

CREATE TRIGGER projects_keep_their_id BEFORE UPDATE ON projects WHEN NEW.id <> OLD.id
  OR EXISTS (SELECT 1 FROM projects WHERE name_key = NEW.name_key AND id <> OLD.id)
BEGIN SELECT RAISE(ABORT, 'an id never changes, and the name may be taken'); END;

CREATE TRIGGER system_stays BEFORE DELETE ON system
BEGIN SELECT RAISE(ABORT, 'this is what there is once'); END;

CREATE TRIGGER assignments_are_not_given_away BEFORE UPDATE ON assignments
BEGIN SELECT RAISE(ABORT, 'unassign one, then assign the other'); END;

CREATE TRIGGER projects_begin_empty BEFORE INSERT ON projects
WHEN (NEW.open, NEW.in_progress, NEW.closed) <> (0, 0, 0)
BEGIN SELECT RAISE(ABORT, 'the counts are kept by the tickets'); END;

CREATE TRIGGER projects_are_counted_by_tickets
BEFORE UPDATE OF open, in_progress, closed, counted ON projects
WHEN NEW.counted <> OLD.counted + 1
BEGIN SELECT RAISE(ABORT, 'the counts are kept by the tickets'); END;

CREATE TRIGGER tickets_counted AFTER INSERT ON tickets
BEGIN
    UPDATE projects
       SET open = open + (NEW.status = 'open'), counted = counted + 1,
           in_progress = in_progress + (NEW.status = 'in progress'),
           closed = closed + (NEW.status = 'closed')
     WHERE id = NEW.project_id;
END;

CREATE TRIGGER tickets_counted_again AFTER UPDATE OF project_id, status ON tickets
WHEN NEW.project_id <> OLD.project_id OR NEW.status <> OLD.status
BEGIN
    UPDATE projects
       SET open        = open        + (id = NEW.project_id AND NEW.status = 'open')
                                     - (id = OLD.project_id AND OLD.status = 'open'),
           in_progress = in_progress + (id = NEW.project_id AND NEW.status = 'in progress')
                                     - (id = OLD.project_id AND OLD.status = 'in progress'),
           closed      = closed      + (id = NEW.project_id AND NEW.status = 'closed')
                                     - (id = OLD.project_id AND OLD.status = 'closed'),
           counted     = counted + 1
     WHERE id IN (NEW.project_id, OLD.project_id);
END;

-- Who writes by hand knows no folded text: lower() is near enough.
CREATE TRIGGER tickets_changed_by_hand AFTER UPDATE OF title, description ON tickets
WHEN NEW.text = OLD.text
 AND (NEW.title <> OLD.title OR NEW.description IS NOT OLD.description)
BEGIN
    UPDATE tickets
       SET text = lower(title) || char(31) || lower(coalesce(description, '')) || char(31, 31)
     WHERE id = NEW.id;
END;

CREATE TRIGGER tickets_taken_in AFTER INSERT ON tickets
WHEN NEW.id NOT BETWEEN (SELECT indexed FROM system) AND (SELECT indexed + 63 FROM system)
BEGIN
    INSERT INTO ticket_texts (rowid, text)
    SELECT id, text FROM tickets WHERE id = NEW.id OR id > (SELECT indexed FROM system);
    UPDATE system SET indexed = (SELECT max(id) FROM tickets);
END;

CREATE TRIGGER tickets_taken_in_again AFTER UPDATE OF text ON tickets
WHEN NEW.text <> OLD.text AND NEW.id <= (SELECT indexed FROM system)
BEGIN
    INSERT INTO ticket_texts (ticket_texts, rowid, text) VALUES ('delete', OLD.id, OLD.text);
    INSERT INTO ticket_texts (rowid, text) VALUES (NEW.id, NEW.text);
END;

-- A deleted user gets no mail any more, and what had failed cannot be sent by hand either.
CREATE TRIGGER users_take_their_unsent_mail AFTER DELETE ON users
BEGIN
    DELETE FROM emails WHERE next_attempt_at IS NOT NULL AND user_id = OLD.id;
    DELETE FROM emails WHERE state = 'failed' AND user_id = OLD.id;
END;

-- ------------------------------------------------------------ what the API shows

CREATE VIEW user_documents AS
SELECT id, json_object('id', id, 'name', name, 'email', email) AS document
  FROM users;

CREATE VIEW project_documents AS
SELECT id,
       json_object('id', id, 'name', name, 'tickets', json_object(
                   'open', open, 'in progress', in_progress, 'closed', closed)) AS document
  FROM projects;

CREATE VIEW ticket_documents AS
SELECT id,
       json_object(
           'id', id, 'title', title, 'description', description, 'project_id', project_id,
           'status', status, 'assignees', json((
               SELECT json_group_array(
                          json_object('id', users.id, 'name', users.name, 'email', users.email))
                 FROM assignments
                CROSS JOIN users ON users.id = assignments.user_id  -- CROSS: in order of the id
                WHERE assignments.ticket_id = tickets.id)),
           'created_at', created_at, 'updated_at', updated_at) AS document
  FROM tickets;

CREATE VIEW history_documents AS
SELECT id, ticket_id,
       json_object('id', id, 'ticket_id', ticket_id, 'changed_at', changed_at,
                   'by', changed_by, 'comment', comment, 'changes', json(changes)) AS document
  FROM history
 WHERE changes IS NOT NULL;

CREATE VIEW email_documents AS
SELECT emails.id,
       json_object(
           'id', emails.id, 'ticket_id', ticket_id, 'user_id', user_id,
           'to', iif(state = 'sent', address, coalesce(users.email, address)),
           'subject', subject, 'state', state, 'attempts', attempts, 'error', error,
           'created_at', changed_at, 'next_attempt_at', next_attempt_at,
           'sent_at', sent_at) AS document
  FROM emails
  JOIN history ON history.id = emails.history_id
  LEFT JOIN users ON users.id = emails.user_id;

CREATE VIEW full_email_documents AS
SELECT email_documents.id, json_insert(document, '$.body', body) AS document
  FROM email_documents
  JOIN emails ON emails.id = email_documents.id
  JOIN history ON history.id = history_id;

CREATE VIEW health_document AS
SELECT json_object('status', 'ok', 'mail', json_object(
           'queued', (SELECT count(*) FROM emails WHERE next_attempt_at IS NOT NULL),
           'failed', (SELECT count(*) FROM emails WHERE state = 'failed'),
           'oldest_queued_at', (SELECT changed_at FROM history WHERE id = (  -- +: not by its index
               SELECT min(+history_id) FROM emails WHERE next_attempt_at IS NOT NULL)),
           -- The server's trouble, or what it said for good of mail that is tried again.
           'error', coalesce(error, (
               SELECT error FROM (SELECT error FROM emails WHERE next_attempt_at IS NOT NULL
                                   ORDER BY next_attempt_at LIMIT 100)
                WHERE error GLOB '5*')))) AS document
  FROM system;
