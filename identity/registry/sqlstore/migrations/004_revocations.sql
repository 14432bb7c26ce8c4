-- What is revoked before it expires. issued_before is 0 with a serial number;
-- an SVID issued before it, in Unix seconds, is revoked. number is the
-- registry's revision at the time.
CREATE TABLE registry_revocations (
	kind          TEXT NOT NULL, -- serial, spiffe-id, agent
	subject       TEXT NOT NULL,
	number        INTEGER NOT NULL,
	issued_before INTEGER NOT NULL,
	backdate      INTEGER NOT NULL, -- seconds
	revoked_at    INTEGER NOT NULL,
	expires_at    INTEGER NOT NULL,
	actor         TEXT NOT NULL,
	reason        TEXT NOT NULL,
	PRIMARY KEY (kind, subject)
);
