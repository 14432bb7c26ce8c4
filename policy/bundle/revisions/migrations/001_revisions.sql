-- The epoch is raised by a signed act after a backup was restored.
CREATE TABLE policy_epoch (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL
);
INSERT INTO policy_epoch (id, epoch) VALUES (1, 1);

-- Contents are kept once, however often they are activated.
CREATE TABLE policy_contents (
    digest BLOB PRIMARY KEY,
    bundle BLOB NOT NULL
);

-- The revision in force is the one with the highest epoch, then number.
CREATE TABLE policy_revisions (
    number      INTEGER PRIMARY KEY,
    epoch       INTEGER NOT NULL,
    digest      BLOB    NOT NULL REFERENCES policy_contents (digest),
    activated   INTEGER NOT NULL, -- nanoseconds since the Unix epoch
    author      TEXT    NOT NULL,
    key_id      TEXT    NOT NULL,
    message     TEXT    NOT NULL,
    rollback_of INTEGER NOT NULL, -- 0 is none
    passed      INTEGER NOT NULL,
    failed      INTEGER NOT NULL,
    skipped     INTEGER NOT NULL
);
