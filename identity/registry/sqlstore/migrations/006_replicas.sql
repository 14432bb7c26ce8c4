-- The control planes that sign, on PostgreSQL where there may be several. Times
-- are Unix seconds by the database's clock.
CREATE TABLE registry_replicas (
	name     TEXT PRIMARY KEY,
	journal  BLOB NOT NULL,    -- its authorities, a JSON document; empty: none yet
	sequence INTEGER NOT NULL, -- grows with each change of journal or state
	state    TEXT NOT NULL,    -- empty, lapsed or removed
	joined   INTEGER NOT NULL,
	alive    INTEGER NOT NULL,
	seen     TEXT NOT NULL     -- JSON {name: sequence} of the others, as far as this one publishes them
);
