// Package revisions keeps every policy revision that was in force, with its
// content, in the control plane's database.
//
// It stands apart from package bundle because a sidecar opens bundles and
// links no SQL driver.
package revisions

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/writ-dev/writ/internal/sqldb"
	"github.com/writ-dev/writ/policy"
	"github.com/writ-dev/writ/policy/bundle"
)

//go:embed migrations/*.sql
var migrations embed.FS

// ErrNone is returned for a revision that does not exist, and for the one in
// force before there is any.
var ErrNone = errors.New("no such policy revision")

// Store keeps revisions. It is safe for concurrent use.
type Store struct{ db *sql.DB }

// Open brings the tables of db up to date.
func Open(ctx context.Context, db *sql.DB) (*Store, error) {
	if err := sqldb.Migrate(ctx, db, "policy", migrations, "migrations"); err != nil {
		return nil, err
	}
	if err := migrateEpoch(ctx, db); err != nil {
		return nil, err
	}
	return &Store{db: db}, nil
}

// Info describes a revision.
type Info struct {
	Revision  policy.Revision
	Activated time.Time
	// Author pushed it; KeyID signed its sources, empty when nothing did.
	Author  string
	KeyID   string
	Message string
	// Active is whether it is in force.
	Active bool
	// RollbackOf is the number it took its content from, 0 for none.
	RollbackOf uint64
	Tests      Tests
	// SourceCommit that the sources were taken from, as their author says.
	SourceCommit string
	// Publisher of the part that was pushed.
	Publisher string
	// Proposal that it was, 0 for none, and who approved that.
	Proposal  uint64
	Approvals []Approval
	// Stage is All when empty in Add.
	Stage   string
	Rollout Rollout
	// Engine is compiled or topdown, and EngineReason why not compiled; empty
	// where nobody has said.
	Engine       string
	EngineReason string
}

// DivergedPrefix begins the EngineReason of a revision that is evaluated because
// its compiled form was seen to answer otherwise.
const DivergedPrefix = "diverged: "

// Diverged is how, empty when it has not.
func (i *Info) Diverged() string {
	if how, ok := strings.CutPrefix(i.EngineReason, DivergedPrefix); ok {
		return how
	}
	return ""
}

// Stages of a revision.
const (
	// All followers have it, or had it.
	All = "all"
	// Canary is for a share of the followers.
	Canary = "canary"
	// Halted was Canary and never got further.
	Halted = "halted"
)

// Rollout is how a revision is put in force at a share of the followers first.
// The zero Rollout is everybody at once.
type Rollout struct {
	// Percent of the followers, 1 to 99.
	Percent int
	// MaxDenyIncrease, per mille, is the growth of the share of denied requests
	// that halts it; 0 is never.
	MaxDenyIncrease int
	// MinDecisions before shares are compared.
	MinDecisions uint64
}

// Tests counts the tests that were run at activation.
type Tests struct{ Passed, Failed, Skipped int }

// Add keeps content as a new revision, in force unless info.Stage says
// otherwise: its number comes from the transaction, its digest from the content.
// info gives everything else. parts are what the publishers gave to content.
// before runs when the revision is known and before it is committed; its error
// leaves everything as it was. before must not write to the same database but
// by the transaction.
func (s *Store) Add(ctx context.Context, content bundle.Content, parts []bundle.Part, info Info, before func(*sql.Tx, Info) error) (Info, error) {
	archive, err := content.Archive(nil)
	if err != nil {
		return Info{}, err
	}
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return Info{}, fmt.Errorf("store policy revision: %w", err)
	}
	defer tx.Rollback()
	if info.Stage == "" {
		info.Stage = All
	}
	info.Revision.Digest = content.Digest()
	info.Active = info.Stage == All
	row := tx.QueryRowContext(ctx, `SELECT epoch, (SELECT COALESCE(MAX(number), 0) + 1 FROM policy_revisions) FROM policy_epoch`)
	if err := row.Scan(&info.Revision.Epoch, &info.Revision.Number); err != nil {
		return Info{}, fmt.Errorf("store policy revision: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO policy_contents (digest, bundle) VALUES (?, ?) ON CONFLICT (digest) DO NOTHING`,
		info.Revision.Digest[:], archive); err != nil {
		return Info{}, fmt.Errorf("store policy content: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO policy_revisions
		(number, epoch, digest, activated, author, key_id, message, rollback_of, passed, failed, skipped,
		source_commit, publisher, proposal, stage, engine, engine_reason, percent, max_deny_increase, min_decisions)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		info.Revision.Number, info.Revision.Epoch, info.Revision.Digest[:], info.Activated.UnixNano(), info.Author, info.KeyID,
		info.Message, info.RollbackOf, info.Tests.Passed, info.Tests.Failed, info.Tests.Skipped,
		info.SourceCommit, info.Publisher, info.Proposal, info.Stage, info.Engine, info.EngineReason,
		info.Rollout.Percent, info.Rollout.MaxDenyIncrease, int64(info.Rollout.MinDecisions)); err != nil {
		return Info{}, fmt.Errorf("store policy revision: %w", err)
	}
	if err := addParts(ctx, tx, info.Revision.Number, parts); err != nil {
		return Info{}, fmt.Errorf("store parts of policy revision: %w", err)
	}
	if err := before(tx, info); err != nil {
		return Info{}, err
	}
	if err := tx.Commit(); err != nil {
		return Info{}, fmt.Errorf("store policy revision: %w", err)
	}
	return info, nil
}

const (
	// The revision in force.
	inForce = `(SELECT number FROM policy_revisions WHERE stage = 'all' ORDER BY epoch DESC, number DESC LIMIT 1)`
	columns = `SELECT number, epoch, digest, activated, author, key_id, message, rollback_of, passed, failed, skipped,
	source_commit, publisher, proposal, stage, engine, engine_reason, percent, max_deny_increase, min_decisions,
	number = ` + inForce + ` FROM policy_revisions`
)

// List returns all revisions, newest first.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	approvals, err := s.approvals(ctx)
	if err != nil {
		return nil, fmt.Errorf("list policy revisions: %w", err)
	}
	rows, err := s.db.QueryContext(ctx, columns+` ORDER BY epoch DESC, number DESC`)
	if err != nil {
		return nil, fmt.Errorf("list policy revisions: %w", err)
	}
	defer rows.Close()
	var infos []Info
	for rows.Next() {
		info, err := scan(rows)
		if err != nil {
			return nil, fmt.Errorf("list policy revisions: %w", err)
		}
		info.Approvals = approvals[info.Proposal]
		infos = append(infos, info)
	}
	return infos, rows.Err()
}

// Info returns what is known of a revision. Number 0 is the one in force.
// ErrNone says that there is none.
func (s *Store) Info(ctx context.Context, number uint64) (Info, error) {
	query, args := columns+` WHERE number = ?`, []any{number}
	if number == 0 {
		query, args = columns+` WHERE number = `+inForce, nil
	}
	info, err := scan(s.db.QueryRowContext(ctx, query, args...))
	if errors.Is(err, sql.ErrNoRows) {
		return Info{}, ErrNone
	}
	if err != nil {
		return Info{}, fmt.Errorf("read policy revision: %w", err)
	}
	if info.Proposal != 0 {
		p, err := s.Proposal(ctx, info.Proposal)
		if err != nil {
			return Info{}, err
		}
		info.Approvals = p.Approvals
	}
	return info, nil
}

// Get returns a revision and its content. Number 0 is the one in force.
// ErrNone says that there is none.
func (s *Store) Get(ctx context.Context, number uint64) (Info, bundle.Content, error) {
	info, err := s.Info(ctx, number)
	if err != nil {
		return Info{}, nil, err
	}
	var archive []byte
	row := s.db.QueryRowContext(ctx, `SELECT bundle FROM policy_contents WHERE digest = ?`, info.Revision.Digest[:])
	if err := row.Scan(&archive); err != nil {
		return Info{}, nil, fmt.Errorf("read content of policy revision %d: %w", info.Revision.Number, err)
	}
	a, err := bundle.ReadArchive(archive)
	if err != nil {
		return Info{}, nil, fmt.Errorf("read content of policy revision %d: %w", info.Revision.Number, err)
	}
	if a.Content.Digest() != info.Revision.Digest {
		return Info{}, nil, fmt.Errorf("content of policy revision %d is damaged: its digest is not %x", info.Revision.Number, info.Revision.Digest)
	}
	return info, a.Content, nil
}

func scan(row interface{ Scan(...any) error }) (Info, error) {
	var (
		info      Info
		digest    []byte
		activated int64
	)
	err := row.Scan(&info.Revision.Number, &info.Revision.Epoch, &digest, &activated, &info.Author, &info.KeyID, &info.Message,
		&info.RollbackOf, &info.Tests.Passed, &info.Tests.Failed, &info.Tests.Skipped,
		&info.SourceCommit, &info.Publisher, &info.Proposal, &info.Stage, &info.Engine, &info.EngineReason,
		&info.Rollout.Percent, &info.Rollout.MaxDenyIncrease, &info.Rollout.MinDecisions, &info.Active)
	if err != nil {
		return Info{}, err
	}
	if len(digest) != len(info.Revision.Digest) {
		return Info{}, fmt.Errorf("digest of revision %d has %d bytes", info.Revision.Number, len(digest))
	}
	info.Revision.Digest = [32]byte(digest)
	info.Activated = time.Unix(0, activated).UTC()
	return info, nil
}
