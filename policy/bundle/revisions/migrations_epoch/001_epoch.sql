-- Each raise of the epoch, with the statement that the decision key signed.
CREATE TABLE policy_epoch_raises (
    epoch       INTEGER PRIMARY KEY,
    from_epoch  INTEGER NOT NULL, -- 0 when nothing was in force
    from_number INTEGER NOT NULL,
    from_digest BLOB    NOT NULL,
    raised      INTEGER NOT NULL, -- nanoseconds since the Unix epoch
    actor       TEXT    NOT NULL,
    reason      TEXT    NOT NULL,
    statement   TEXT    NOT NULL
);

-- What was taken from a policy source, so that something older is not taken
-- again.
CREATE TABLE policy_taken (
    source TEXT    NOT NULL,
    digest BLOB    NOT NULL,
    taken  INTEGER NOT NULL, -- in the order in which it came
    PRIMARY KEY (source, digest)
);
