-- Schema 2 to 3: creations with an Idempotency-Key. (After 2.sql, which creates the newest
-- schema, this is there already.)
CREATE TABLE IF NOT EXISTS answers (
    key         TEXT PRIMARY KEY,
    request     TEXT NOT NULL,  -- a digest
    answer      TEXT NOT NULL,
    answered_at TEXT NOT NULL CHECK (answered_at IS strftime('%Y-%m-%dT%H:%M:%fZ', answered_at))
) STRICT;

CREATE INDEX IF NOT EXISTS answers_by_time ON answers (answered_at);
