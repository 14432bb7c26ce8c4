-- Contents whose compiled form was seen to answer otherwise than its sources,
-- each with the compiler that made it. Such a content is evaluated whenever it
-- is in force, until another compiler makes its compiled form.
CREATE TABLE policy_divergences (
    digest   BLOB NOT NULL, -- of the content
    compiler TEXT NOT NULL, -- the compiler's version
    detail   TEXT NOT NULL, -- how it was seen
    PRIMARY KEY (digest, compiler)
) WITHOUT ROWID;

-- Before there was this table, there was version 1 of the compiler only.
INSERT INTO policy_divergences (digest, compiler, detail)
SELECT digest, '1', MIN(SUBSTR(engine_reason, 11)) FROM policy_revisions
WHERE engine_reason LIKE 'diverged: %' GROUP BY digest;
