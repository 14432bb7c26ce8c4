-- The CRLs of each replica's authorities as it signed them last, DER one after
-- another, with the issuer's mark on both columns.
CREATE TABLE registry_crls (
	replica TEXT PRIMARY KEY,
	lists   BLOB NOT NULL,
	mark    BLOB NOT NULL
);
