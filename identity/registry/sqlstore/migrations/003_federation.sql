-- Bundles of other trust domains. revision is the registry's at the last change.
CREATE TABLE registry_bundles (
	trust_domain     TEXT PRIMARY KEY,
	x509_authorities BLOB NOT NULL, -- certificates, DER, one after the other
	jwt_authorities  TEXT NOT NULL, -- JSON [{key_id, public_key, expires_at}, …]
	refresh_hint     INTEGER NOT NULL, -- seconds
	sequence         INTEGER NOT NULL,
	revision         INTEGER NOT NULL
);

-- Where they come from.
CREATE TABLE registry_federation (
	trust_domain       TEXT PRIMARY KEY,
	endpoint_url       TEXT NOT NULL,
	profile            TEXT NOT NULL, -- https_web, https_spiffe
	endpoint_spiffe_id TEXT NOT NULL,
	revision           INTEGER NOT NULL
);
