-- The nouns and rules of schema.sql for PostgreSQL 13 or newer: the same tables, columns, rules and
-- views, with the same names and the same answers to the byte. Only what differs is explained.

-- ------------------------------------------------------------ what SQLite has of its own

-- Text is compared as SQLite does, byte by byte, whatever the locale of the database is.
CREATE DOMAIN moment AS text COLLATE "C"
    CHECK (to_char(VALUE::timestamp, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') = VALUE);

-- An email address is equal to a text without regard to case. It is ASCII, as is "C".
CREATE DOMAIN address AS text COLLATE "C" CHECK (length(VALUE) <= 254 AND VALUE LIKE '_%@_%._%');

CREATE FUNCTION is_same_address(address, text) RETURNS boolean LANGUAGE sql IMMUTABLE
    AS $$ SELECT lower($1::text) = lower($2 COLLATE "C") $$;

CREATE OPERATOR = (LEFTARG = address, RIGHTARG = text, FUNCTION = is_same_address);

-- A document is json, which keeps what it is given to the letter.
CREATE DOMAIN blob AS json;

CREATE FUNCTION joined(json[]) RETURNS text LANGUAGE sql IMMUTABLE
    AS $$ SELECT array_to_string($1, ',') $$;

CREATE AGGREGATE group_concat(json) (SFUNC = array_append, STYPE = json[], FINALFUNC = joined);

CREATE FUNCTION json_each(text) RETURNS TABLE (value bigint) LANGUAGE sql IMMUTABLE
    AS $$ SELECT item::bigint FROM json_array_elements_text($1::json) AS item $$;

-- Blanks that are not within a string go, as with SQLite's json().
CREATE FUNCTION without_blanks(text) RETURNS json LANGUAGE sql IMMUTABLE
    AS $$ SELECT regexp_replace($1, '("(?:[^"\\]|\\.)*")|\s+', '\1', 'g')::json $$;

-- ------------------------------------------------------------ users and projects

-- An id comes from a sequence alone, so that none is used twice; TRUNCATE is refused below. Of
-- users and projects it is drawn when the email or name is seen to be free: what is refused
-- leaves no gap.
CREATE TABLE users (
    id    bigint PRIMARY KEY CHECK (id BETWEEN 1 AND 999999999999999),
    name  text NOT NULL CHECK (length(name) BETWEEN 3 AND 100),
    email address NOT NULL
);

CREATE SEQUENCE users_ids OWNED BY users.id;
CREATE UNIQUE INDEX users_by_email ON users (lower(email::text));

CREATE TABLE projects (
    id          bigint PRIMARY KEY CHECK (id BETWEEN 1 AND 999999999999999),
    name        text NOT NULL CHECK (length(name) BETWEEN 3 AND 100),
    name_key    text COLLATE "C" NOT NULL UNIQUE,
    open        bigint NOT NULL DEFAULT 0,
    in_progress bigint NOT NULL DEFAULT 0,
    closed      bigint NOT NULL DEFAULT 0,
    counted     bigint NOT NULL DEFAULT 0
);

CREATE SEQUENCE projects_ids OWNED BY projects.id;

-- ------------------------------------------------------------ tickets

CREATE TABLE tickets (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
                CHECK (id BETWEEN 1 AND 999999999999999),
    project_id  bigint NOT NULL REFERENCES projects ON DELETE RESTRICT,
    status      text COLLATE "C" NOT NULL CHECK (status IN ('open', 'in progress', 'closed')),
    created_at  moment NOT NULL,
    updated_at  moment,
    touched_at  moment NOT NULL GENERATED ALWAYS AS (coalesce(updated_at, created_at)) STORED,
    title       text NOT NULL CHECK (length(title) BETWEEN 1 AND 200),
    description text CHECK (length(description) <= 10000),
    text        text COLLATE "C" NOT NULL CHECK (text <> ''),
    CHECK (updated_at >= created_at)
);

CREATE TABLE assignments (
    ticket_id bigint NOT NULL REFERENCES tickets ON DELETE RESTRICT,
    user_id   bigint NOT NULL REFERENCES users ON DELETE RESTRICT,
    PRIMARY KEY (ticket_id, user_id)
);

CREATE TABLE history (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
               CHECK (id BETWEEN 1 AND 999999999999999),
    ticket_id  bigint REFERENCES tickets ON DELETE RESTRICT,
    changed_at moment NOT NULL,
    changes    text CHECK (changes IS NULL OR changes::json IS NOT NULL),
    changed_by text,
    comment    text,
    subject    text,
    body       text
);

-- An index leads only to what is equal in all its columns but the last ones, which give the order.
CREATE INDEX tickets_by_touch          ON tickets (touched_at, id);
CREATE INDEX tickets_by_status         ON tickets (status, id);
CREATE INDEX tickets_by_status_touch   ON tickets (status, touched_at, id);
CREATE INDEX tickets_by_project        ON tickets (project_id, id);
CREATE INDEX tickets_by_project_touch  ON tickets (project_id, touched_at, id);
CREATE INDEX tickets_by_project_status ON tickets (project_id, status, id);
CREATE INDEX tickets_by_all_and_touch  ON tickets (project_id, status, touched_at, id);
CREATE INDEX assignments_by_user       ON assignments (user_id, ticket_id);
CREATE INDEX history_by_ticket         ON history (ticket_id, id);

-- Finds text inside words. Where the extension cannot be had, all tickets are looked at.
DO $$
BEGIN
    CREATE EXTENSION IF NOT EXISTS pg_trgm;
EXCEPTION WHEN insufficient_privilege OR feature_not_supported OR undefined_file THEN
    RAISE WARNING 'searches have no index: the extension pg_trgm cannot be had (%)', SQLERRM;
END $$;

DO $$
DECLARE
    place name := (SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'pg_trgm');
BEGIN
    IF place IS NOT NULL THEN
        EXECUTE format('CREATE INDEX ticket_texts ON tickets USING gin (text %s.gin_trgm_ops)',
                       place);
    END IF;
END $$;

-- ------------------------------------------------------------ the outbox

CREATE TABLE emails (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY
                    CHECK (id BETWEEN 1 AND 999999999999999),
    history_id      bigint NOT NULL REFERENCES history ON DELETE RESTRICT,
    user_id         bigint,
    address         text,
    message_id      text,
    state           text COLLATE "C" NOT NULL DEFAULT 'queued'
                    CHECK (state IN ('queued', 'sent', 'failed')),
    attempts        bigint NOT NULL DEFAULT 0,
    uncertain       bigint NOT NULL DEFAULT 0,
    error           text,
    next_attempt_at moment,
    sent_at         moment,
    CHECK (user_id IS NOT NULL OR address IS NOT NULL),
    CHECK ((state = 'queued') = (next_attempt_at IS NOT NULL)),
    CHECK ((state = 'sent') = (sent_at IS NOT NULL)),
    CHECK (state <> 'failed' OR error IS NOT NULL)
);

CREATE INDEX emails_due        ON emails (next_attempt_at, id) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX emails_failed     ON emails (id) WHERE state = 'failed';
CREATE INDEX emails_by_history ON emails (history_id, id);

CREATE TABLE system (
    "only" bigint PRIMARY KEY CHECK ("only" = 1),
    token  text NOT NULL DEFAULT left(replace(gen_random_uuid()::text, '-', ''), 16),
    domain text,
    error  text
);

INSERT INTO system ("only") VALUES (1);

CREATE TABLE answers (
    key         text COLLATE "C" PRIMARY KEY,
    request     text NOT NULL,
    answer      text NOT NULL,
    answered_at moment NOT NULL
);

CREATE INDEX answers_by_time ON answers (answered_at);

-- ------------------------------------------------------------ the rules

-- Users and projects in use stay by their foreign keys, which cannot be off here.

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER tickets_stay BEFORE DELETE ON tickets
FOR EACH ROW EXECUTE FUNCTION refuse('tickets are never deleted');

CREATE TRIGGER tickets_keep_id_and_creation BEFORE UPDATE ON tickets
FOR EACH ROW WHEN (NEW.id <> OLD.id OR NEW.created_at <> OLD.created_at)
EXECUTE FUNCTION refuse('id and created_at never change');

CREATE FUNCTION draw_user_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM tracker.users WHERE lower(email::text) = lower(NEW.email::text)) THEN
        RAISE EXCEPTION 'the email is taken' USING ERRCODE = 'unique_violation';
    END IF;
    NEW.id := nextval('tracker.users_ids');
    RETURN NEW;
END $$;

CREATE TRIGGER users_are_not_replaced BEFORE INSERT ON users
FOR EACH ROW EXECUTE FUNCTION draw_user_id();

CREATE FUNCTION draw_project_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM tracker.projects WHERE name_key = NEW.name_key) THEN
        RAISE EXCEPTION 'the name is taken' USING ERRCODE = 'unique_violation';
    END IF;
    NEW.id := nextval('tracker.projects_ids');
    RETURN NEW;
END $$;

CREATE TRIGGER projects_are_not_replaced BEFORE INSERT ON projects
FOR EACH ROW EXECUTE FUNCTION draw_project_id();

CREATE TRIGGER users_keep_their_id BEFORE UPDATE ON users
FOR EACH ROW WHEN (NEW.id <> OLD.id) EXECUTE FUNCTION refuse('an id never changes');

CREATE TRIGGER projects_keep_their_id BEFORE UPDATE ON projects
FOR EACH ROW WHEN (NEW.id <> OLD.id) EXECUTE FUNCTION refuse('an id never changes');

CREATE TRIGGER system_stays BEFORE DELETE ON system
FOR EACH ROW EXECUTE FUNCTION refuse('this is what there is once');

CREATE TRIGGER assignments_are_not_given_away BEFORE UPDATE ON assignments
FOR EACH ROW EXECUTE FUNCTION refuse('unassign one, then assign the other');

-- TRUNCATE asks no other trigger, and could begin the ids anew.
CREATE TRIGGER users_are_not_truncated BEFORE TRUNCATE ON users
EXECUTE FUNCTION refuse('unassign, then delete');
CREATE TRIGGER projects_are_not_truncated BEFORE TRUNCATE ON projects
EXECUTE FUNCTION refuse('a project with tickets stays');
CREATE TRIGGER tickets_are_not_truncated BEFORE TRUNCATE ON tickets
EXECUTE FUNCTION refuse('tickets are never deleted');
CREATE TRIGGER assignments_are_not_truncated BEFORE TRUNCATE ON assignments
EXECUTE FUNCTION refuse('unassign one by one');
CREATE TRIGGER history_is_not_truncated BEFORE TRUNCATE ON history
EXECUTE FUNCTION refuse('what happened stays');
CREATE TRIGGER emails_are_not_truncated BEFORE TRUNCATE ON emails
EXECUTE FUNCTION refuse('no id is used twice');
CREATE TRIGGER system_is_not_truncated BEFORE TRUNCATE ON system
EXECUTE FUNCTION refuse('this is what there is once');

CREATE TRIGGER projects_begin_empty BEFORE INSERT ON projects
FOR EACH ROW WHEN ((NEW.open, NEW.in_progress, NEW.closed) <> (0, 0, 0))
EXECUTE FUNCTION refuse('the counts are kept by the tickets');

CREATE TRIGGER projects_are_counted_by_tickets
BEFORE UPDATE OF open, in_progress, closed, counted ON projects
FOR EACH ROW WHEN (NEW.counted <> OLD.counted + 1)
EXECUTE FUNCTION refuse('the counts are kept by the tickets');

-- Functions of triggers name the schema, as who writes by hand may have another search_path.
CREATE FUNCTION count_ticket() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tracker.projects
       SET open = open + (NEW.status = 'open')::int, counted = counted + 1,
           in_progress = in_progress + (NEW.status = 'in progress')::int,
           closed = closed + (NEW.status = 'closed')::int
     WHERE id = NEW.project_id;
    RETURN NULL;
END $$;

CREATE TRIGGER tickets_counted AFTER INSERT ON tickets
FOR EACH ROW EXECUTE FUNCTION count_ticket();

CREATE FUNCTION count_ticket_again() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE tracker.projects
       SET open        = open        + (id = NEW.project_id AND NEW.status = 'open')::int
                                     - (id = OLD.project_id AND OLD.status = 'open')::int,
           in_progress = in_progress + (id = NEW.project_id AND NEW.status = 'in progress')::int
                                     - (id = OLD.project_id AND OLD.status = 'in progress')::int,
           closed      = closed      + (id = NEW.project_id AND NEW.status = 'closed')::int
                                     - (id = OLD.project_id AND OLD.status = 'closed')::int,
           counted     = counted + 1
     WHERE id IN (NEW.project_id, OLD.project_id);
    RETURN NULL;
END $$;

CREATE TRIGGER tickets_counted_again AFTER UPDATE OF project_id, status ON tickets
FOR EACH ROW WHEN (NEW.project_id <> OLD.project_id OR NEW.status <> OLD.status)
EXECUTE FUNCTION count_ticket_again();

CREATE FUNCTION fold_ticket() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.text := lower(NEW.title COLLATE "C") || chr(31)
             || lower(coalesce(NEW.description, '') COLLATE "C") || chr(31) || chr(31);
    RETURN NEW;
END $$;

CREATE TRIGGER tickets_changed_by_hand BEFORE UPDATE OF title, description ON tickets
FOR EACH ROW WHEN (NEW.text = OLD.text AND (NEW.title <> OLD.title
                   OR NEW.description IS DISTINCT FROM OLD.description))
EXECUTE FUNCTION fold_ticket();

CREATE FUNCTION take_unsent_mail() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM tracker.emails WHERE next_attempt_at IS NOT NULL AND user_id = OLD.id;
    DELETE FROM tracker.emails WHERE state = 'failed' AND user_id = OLD.id;
    RETURN NULL;
END $$;

CREATE TRIGGER users_take_their_unsent_mail AFTER DELETE ON users
FOR EACH ROW EXECUTE FUNCTION take_unsent_mail();

-- ------------------------------------------------------------ what the API shows

-- row_to_json writes as SQLite does; json_build_object and json_agg would add blanks.

CREATE VIEW user_documents AS
SELECT id, (SELECT row_to_json(d) FROM (SELECT id, name, email) AS d) AS document
  FROM users;

CREATE VIEW project_documents AS
SELECT id,
       (SELECT row_to_json(d)
          FROM (SELECT id, name, (SELECT row_to_json(t)
                                    FROM (SELECT open, in_progress AS "in progress", closed) AS t)
                                 AS tickets) AS d) AS document
  FROM projects;

CREATE VIEW ticket_documents AS
SELECT id,
       (SELECT row_to_json(d)
          FROM (SELECT id, title, description, project_id, status,
                       (SELECT ('[' || coalesce(string_agg(row_to_json(u)::text, ','
                                                           ORDER BY u.id), '') || ']')::json
                          FROM (SELECT users.id, users.name, users.email
                                  FROM assignments
                                  JOIN users ON users.id = assignments.user_id
                                 WHERE assignments.ticket_id = tickets.id) AS u) AS assignees,
                       created_at, updated_at) AS d) AS document
  FROM tickets;

CREATE VIEW history_documents AS
SELECT id, ticket_id,
       (SELECT row_to_json(d)
          FROM (SELECT id, ticket_id, changed_at, changed_by AS by, comment,
                       without_blanks(changes) AS changes) AS d) AS document
  FROM history
 WHERE changes IS NOT NULL;

CREATE VIEW email_documents AS
SELECT emails.id,
       (SELECT row_to_json(d)
          FROM (SELECT emails.id, ticket_id, user_id,
                       CASE WHEN state = 'sent' THEN address ELSE coalesce(users.email, address) END
                       AS "to",
                       subject, state, attempts, error, changed_at AS created_at,
                       next_attempt_at, sent_at) AS d) AS document
  FROM emails
  JOIN history ON history.id = emails.history_id
  LEFT JOIN users ON users.id = emails.user_id;

CREATE VIEW full_email_documents AS
SELECT email_documents.id,
       (left(document::text, -1) || ',"body":' || coalesce(to_json(body)::text, 'null') || '}')::json
       AS document
  FROM email_documents
  JOIN emails ON emails.id = email_documents.id
  JOIN history ON history.id = history_id;

CREATE VIEW health_document AS
SELECT (SELECT row_to_json(h)
          FROM (SELECT 'ok' AS status, (SELECT row_to_json(m) FROM (
                    SELECT (SELECT count(*) FROM emails WHERE next_attempt_at IS NOT NULL)
                           AS queued,
                           (SELECT count(*) FROM emails WHERE state = 'failed') AS failed,
                           (SELECT changed_at FROM history WHERE id = (
                               SELECT min(history_id) FROM emails
                                WHERE next_attempt_at IS NOT NULL)) AS oldest_queued_at,
                           coalesce(error, (
                               SELECT e.error
                                 FROM (SELECT error FROM emails WHERE next_attempt_at IS NOT NULL
                                        ORDER BY next_attempt_at LIMIT 100) AS e
                                WHERE e.error LIKE '5%' LIMIT 1)) AS error) AS m) AS mail) AS h)
       AS document
  FROM system;
