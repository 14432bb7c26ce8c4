-- The issuer's mark on a row: HMAC-SHA-256 of the entry's digest.
ALTER TABLE registry_entries ADD COLUMN mark BLOB NOT NULL DEFAULT '';
-- The key of marks and seal, by its ID, and the seal: HMAC-SHA-256 over the
-- revision and the sum of all entries. Empty: never sealed.
ALTER TABLE registry_revision ADD COLUMN key_id TEXT NOT NULL DEFAULT '';
ALTER TABLE registry_revision ADD COLUMN seal BLOB NOT NULL DEFAULT '';
