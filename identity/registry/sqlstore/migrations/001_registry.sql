-- One row; revision grows with every transaction that changed something.
CREATE TABLE registry_revision (
	only     INTEGER PRIMARY KEY CHECK (only = 1),
	revision INTEGER NOT NULL
);
INSERT INTO registry_revision (only, revision) VALUES (1, 0);

-- Times are Unix seconds, 0 for never. similarity is the hash of SPIFFE ID,
-- parent and selectors.
CREATE TABLE registry_entries (
	id             TEXT PRIMARY KEY,
	spiffe_id      TEXT NOT NULL,
	parent_id      TEXT NOT NULL,
	selectors      TEXT NOT NULL, -- JSON [[type, value], …]
	similarity     BLOB NOT NULL UNIQUE,
	x509_svid_ttl  INTEGER NOT NULL, -- seconds
	jwt_svid_ttl   INTEGER NOT NULL, -- seconds
	federates_with TEXT NOT NULL, -- JSON [trust domain, …]
	dns_names      TEXT NOT NULL, -- JSON [name, …]
	admin          INTEGER NOT NULL,
	downstream     INTEGER NOT NULL,
	store_svid     INTEGER NOT NULL,
	hint           TEXT NOT NULL,
	expires_at     INTEGER NOT NULL,
	revision       INTEGER NOT NULL,
	created_at     INTEGER NOT NULL
);
CREATE INDEX registry_entries_parent ON registry_entries (parent_id);

CREATE TABLE registry_agents (
	id               TEXT PRIMARY KEY,
	attestation_type TEXT NOT NULL,
	selectors        TEXT NOT NULL, -- JSON [[type, value], …]
	can_reattest     INTEGER NOT NULL,
	banned           INTEGER NOT NULL,
	serial           TEXT NOT NULL,
	expires_at       INTEGER NOT NULL,
	new_serial       TEXT NOT NULL,
	new_expires_at   INTEGER NOT NULL
);

CREATE TABLE registry_join_tokens (
	hash       BLOB PRIMARY KEY,
	expires_at INTEGER NOT NULL,
	alias      TEXT NOT NULL,
	used_at    INTEGER NOT NULL -- 0: not yet
);

-- One row: the authorities of this trust domain, a JSON document.
CREATE TABLE registry_authorities (
	only    INTEGER PRIMARY KEY CHECK (only = 1),
	journal BLOB NOT NULL
);
