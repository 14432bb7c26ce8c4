-- The issuer's marks on what leads to a name without being an entry, as in
-- registry_entries: on all columns, but for what is said here.
ALTER TABLE registry_authorities ADD COLUMN mark BLOB NOT NULL DEFAULT '';
ALTER TABLE registry_replicas ADD COLUMN mark BLOB NOT NULL DEFAULT ''; -- on name and journal
ALTER TABLE registry_join_tokens ADD COLUMN mark BLOB NOT NULL DEFAULT ''; -- not on used_at
ALTER TABLE registry_agents ADD COLUMN mark BLOB NOT NULL DEFAULT '';
ALTER TABLE registry_bundles ADD COLUMN mark BLOB NOT NULL DEFAULT ''; -- not on revision
ALTER TABLE registry_federation ADD COLUMN mark BLOB NOT NULL DEFAULT ''; -- not on revision
