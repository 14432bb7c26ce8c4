-- Templates: names by a pattern of selectors. At most 1,000.
CREATE TABLE registry_templates (
	id             TEXT PRIMARY KEY,
	spiffe_id      TEXT NOT NULL, -- with variables, as in {unix:user}
	parent_id      TEXT NOT NULL,
	selectors      TEXT NOT NULL, -- JSON [type:value, …]
	x509_svid_ttl  INTEGER NOT NULL, -- seconds
	jwt_svid_ttl   INTEGER NOT NULL, -- seconds
	federates_with TEXT NOT NULL, -- JSON [trust domain, …]
	dns_names      TEXT NOT NULL, -- JSON [pattern, …]
	hint           TEXT NOT NULL,
	revision       INTEGER NOT NULL,
	created_at     INTEGER NOT NULL
);
-- The revision at which they last changed, and the seal on all of them:
-- HMAC-SHA-256 over that revision and their digests. 0 and empty: never any.
ALTER TABLE registry_revision ADD COLUMN templates_revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE registry_revision ADD COLUMN templates_seal BLOB NOT NULL DEFAULT '';
