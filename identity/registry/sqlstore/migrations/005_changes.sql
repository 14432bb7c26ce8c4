-- What each transaction changed, by the revision that it made, so that other
-- processes on the same database can follow. Written on PostgreSQL only: a
-- SQLite database has one process. Everything after log_floor is there.
CREATE TABLE registry_changes (
	revision INTEGER PRIMARY KEY,
	changed  TEXT NOT NULL -- JSON {"entries": [id, …], "agents": [SPIFFE ID, …], "federation": true, "revocations": true}
);
ALTER TABLE registry_revision ADD COLUMN log_floor INTEGER NOT NULL DEFAULT 0;
UPDATE registry_revision SET log_floor = revision;
