-- Schema 1 to 2: tickets without a stored document, texts of mail once per change.

DROP VIEW user_documents;
DROP VIEW project_documents;
DROP VIEW ticket_documents;
DROP VIEW history_documents;
DROP VIEW full_email_documents;
DROP VIEW email_documents;
DROP VIEW health_document;
DROP VIEW assignees_of_tickets;
DROP TRIGGER tickets_stay;
DROP TRIGGER tickets_are_not_replaced;
DROP TRIGGER tickets_keep_id_and_creation;
DROP TRIGGER tickets_counted_in;
DROP TRIGGER tickets_counted_again;
DROP TRIGGER assignments_shown;
DROP TRIGGER assignments_no_longer_shown;
DROP TRIGGER assignments_shown_again;
DROP TRIGGER assignments_touched;
DROP TRIGGER users_take_their_unsent_mail;
DROP TABLE ticket_texts;
DROP INDEX tickets_by_project;
DROP INDEX tickets_by_project_status;
DROP INDEX tickets_by_status;
DROP INDEX tickets_by_touch;
DROP INDEX tickets_by_project_touch;
DROP INDEX tickets_by_status_touch;
DROP INDEX tickets_by_all_and_touch;
DROP INDEX assignments_by_user;
DROP INDEX assignments_by_user_touch;
DROP INDEX history_by_ticket;
DROP INDEX emails_due;
DROP INDEX emails_unsent;
DROP INDEX emails_by_state;
DROP INDEX emails_by_ticket;
ALTER TABLE users RENAME TO old_users;
ALTER TABLE projects RENAME TO old_projects;
ALTER TABLE tickets RENAME TO old_tickets;
ALTER TABLE assignments RENAME TO old_assignments;
ALTER TABLE history RENAME TO old_history;
ALTER TABLE emails RENAME TO old_emails;

-- schema.sql --

INSERT INTO users (id, name, email)
SELECT id, name, email
  FROM old_users;

-- Of names that now read the same, the oldest keeps its key.
INSERT INTO projects (id, name, name_key)
SELECT id, name,
       iif(row_number() OVER (PARTITION BY name_key(name) ORDER BY id) = 1,
           name_key(name), name_key(name) || char(31) || id)
  FROM old_projects;

-- A clock that was set back is corrected: nothing was changed before it was created.
INSERT INTO tickets (id, project_id, status, created_at, updated_at, title, description, text)
SELECT id, project_id, status, created_at, max(updated_at, created_at), title, description,
       fold(title) || char(31) || fold(coalesce(description, '')) || char(31, 31)
  FROM old_tickets
 ORDER BY id;

INSERT INTO assignments (ticket_id, user_id)
SELECT ticket_id, user_id
  FROM old_assignments
 ORDER BY ticket_id, user_id;

INSERT INTO history (id, ticket_id, changed_at, changes)
SELECT id, ticket_id, changed_at, changes
  FROM old_history
 ORDER BY id;

-- Each text of mail gets a row of its own, behind all others and in the order of the mail.
INSERT INTO history (ticket_id, changed_at, subject, body)
SELECT ticket_id, created_at, subject, body
  FROM old_emails
 GROUP BY ticket_id, created_at, subject, body
 ORDER BY min(id);

CREATE INDEX texts_of_mail ON history (changed_at, ticket_id) WHERE body IS NOT NULL;

INSERT INTO emails (id, history_id, user_id, address, message_id, state, attempts, error,
                    next_attempt_at, sent_at)
SELECT id,
       (SELECT history.id
          FROM history
         WHERE history.body = old_emails.body
           AND history.subject = old_emails.subject
           AND history.changed_at = old_emails.created_at
           AND history.ticket_id IS old_emails.ticket_id),
       user_id, address, message_id, state, attempts, error, next_attempt_at, sent_at
  FROM old_emails
 ORDER BY id;

DROP INDEX texts_of_mail;

UPDATE system
   SET domain = (SELECT substr(message_id, instr(message_id, '@') + 1,
                               length(message_id) - instr(message_id, '@') - 1)
                   FROM old_emails
                  ORDER BY id DESC
                  LIMIT 1),
       error = (SELECT error FROM mail_server);

-- No id is used twice, also not that of a row that is gone.
DELETE FROM sqlite_sequence WHERE name IN ('users', 'projects', 'emails');
INSERT INTO sqlite_sequence (name, seq)
SELECT substr(name, 5), seq
  FROM sqlite_sequence
 WHERE name IN ('old_users', 'old_projects', 'old_emails');

DROP TABLE old_emails;
DROP TABLE old_history;
DROP TABLE old_assignments;
DROP TABLE old_tickets;
DROP TABLE old_projects;
DROP TABLE old_users;
DROP TABLE mail_server;
