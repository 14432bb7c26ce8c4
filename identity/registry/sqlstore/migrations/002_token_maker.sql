-- 1: made on the admin socket. What was made before this column is taken for
-- the less trusted.
ALTER TABLE registry_join_tokens ADD COLUMN local INTEGER NOT NULL DEFAULT 0;
