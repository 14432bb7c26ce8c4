ALTER TABLE policy_revisions ADD COLUMN source_commit TEXT NOT NULL DEFAULT '';
ALTER TABLE policy_revisions ADD COLUMN publisher TEXT NOT NULL DEFAULT 'default';
ALTER TABLE policy_revisions ADD COLUMN proposal INTEGER NOT NULL DEFAULT 0; -- 0 is none
-- all, canary or halted. In force is the highest revision for all.
ALTER TABLE policy_revisions ADD COLUMN stage TEXT NOT NULL DEFAULT 'all';
ALTER TABLE policy_revisions ADD COLUMN engine TEXT NOT NULL DEFAULT '';
ALTER TABLE policy_revisions ADD COLUMN engine_reason TEXT NOT NULL DEFAULT '';
-- As they were asked for; percent 0 is no rollout.
ALTER TABLE policy_revisions ADD COLUMN percent INTEGER NOT NULL DEFAULT 0;
ALTER TABLE policy_revisions ADD COLUMN max_deny_increase INTEGER NOT NULL DEFAULT 0;
ALTER TABLE policy_revisions ADD COLUMN min_decisions INTEGER NOT NULL DEFAULT 0;

-- What a publisher gave. A part is kept once, however many revisions have it.
-- Its files are those of the content at these paths.
CREATE TABLE policy_parts (
    id         BLOB PRIMARY KEY, -- SHA-256 of the rest
    publisher  TEXT NOT NULL,
    key_id     TEXT NOT NULL,    -- empty: not signed
    paths      TEXT NOT NULL,    -- JSON, in order
    signatures BLOB              -- .signatures.json as it came
);
CREATE TABLE policy_revision_parts (
    number INTEGER NOT NULL REFERENCES policy_revisions (number),
    part   BLOB    NOT NULL REFERENCES policy_parts (id),
    PRIMARY KEY (number, part)
) WITHOUT ROWID;

-- Revisions without parts are from before there were publishers, and one part
-- of "default", whose signature was not kept.

CREATE TABLE policy_proposals (
    number        INTEGER PRIMARY KEY,
    digest        BLOB    NOT NULL, -- of the content that would be in force
    bundle        BLOB    NOT NULL, -- the pushed part, as it came
    author        TEXT    NOT NULL,
    publisher     TEXT    NOT NULL,
    key_id        TEXT    NOT NULL,
    message       TEXT    NOT NULL,
    source_commit TEXT    NOT NULL,
    proposed      INTEGER NOT NULL, -- nanoseconds since the Unix epoch
    base_epoch    INTEGER NOT NULL, -- what was in force; 0 is nothing
    base_number   INTEGER NOT NULL,
    base_digest   BLOB    NOT NULL,
    passed        INTEGER NOT NULL,
    failed        INTEGER NOT NULL,
    skipped       INTEGER NOT NULL,
    state         TEXT    NOT NULL, -- open, activated, withdrawn or outdated
    revision      INTEGER NOT NULL  -- what it became; 0 is nothing
);

-- The signature is kept: it is what the approval is.
CREATE TABLE policy_approvals (
    proposal  INTEGER NOT NULL REFERENCES policy_proposals (number),
    approver  TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    actor     TEXT    NOT NULL,
    approved  INTEGER NOT NULL, -- nanoseconds since the Unix epoch
    signature TEXT    NOT NULL,
    PRIMARY KEY (proposal, approver)
) WITHOUT ROWID;

-- The rollout that runs, if one does: of the highest revision, whose stage is
-- canary.
CREATE TABLE policy_rollout (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    number    INTEGER NOT NULL REFERENCES policy_revisions (number),
    -- Followers whose hash is at most the first have it, and those of the rest;
    -- each 8 bytes, big endian.
    threshold BLOB    NOT NULL,
    -- Whether there was a follower to have it.
    settled   INTEGER NOT NULL
);
