-- What must not be forgotten or undone by an old row of another table that is put
-- back: who is banned or was evicted, which token was used, which replica was removed,
-- what authorities and federated bundles last were. Part of the registry's seal.
CREATE TABLE registry_facts (
	id       TEXT PRIMARY KEY, -- a kind, a space, whom it is about
	value    TEXT NOT NULL,
	until    INTEGER NOT NULL, -- Unix seconds, 0 for never: what it is about is over then
	revision INTEGER NOT NULL,
	mark     BLOB NOT NULL
);
-- Since which revision they are kept; 0: not yet.
ALTER TABLE registry_revision ADD COLUMN facts INTEGER NOT NULL DEFAULT 0;
