package revisions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/writ-dev/writ/policy"
)

// ErrNoProposal is returned for a proposal that does not exist.
var ErrNoProposal = errors.New("no such policy proposal")

// States of a proposal.
const (
	ProposalOpen      = "open"
	ProposalActivated = "activated"
	ProposalWithdrawn = "withdrawn"
	// ProposalOutdated is when another revision came between, so that it would
	// not give the content that was proposed.
	ProposalOutdated = "outdated"
)

// Proposal is a content that waits to be put in force.
type Proposal struct {
	Number uint64
	// Digest of the content that would be in force.
	Digest [32]byte
	// Bundle is the pushed part with its signatures, as it came.
	Bundle       []byte
	Author       string
	Publisher    string
	KeyID        string
	Message      string
	SourceCommit string
	Proposed     time.Time
	// Base was in force; zero for nothing.
	Base  policy.Revision
	Tests Tests
	State string
	// Revision is what it became, 0 while it has not.
	Revision  uint64
	Approvals []Approval
}

// Approval is somebody's signature under a proposal.
type Approval struct {
	Approver  string
	KeyID     string
	Actor     string
	Time      time.Time
	Signature string
}

// Propose keeps a proposal as open and gives it its number. before is as in
// Add.
func (s *Store) Propose(ctx context.Context, p Proposal, before func(Proposal) error) (Proposal, error) {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return Proposal{}, fmt.Errorf("store policy proposal: %w", err)
	}
	defer tx.Rollback()
	p.State = ProposalOpen
	if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(number), 0) + 1 FROM policy_proposals`).Scan(&p.Number); err != nil {
		return Proposal{}, fmt.Errorf("store policy proposal: %w", err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO policy_proposals (number, digest, bundle, author, publisher, key_id, message, source_commit,
		proposed, base_epoch, base_number, base_digest, passed, failed, skipped, state, revision)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)`,
		p.Number, p.Digest[:], p.Bundle, p.Author, p.Publisher, p.KeyID, p.Message, p.SourceCommit, p.Proposed.UnixNano(),
		p.Base.Epoch, p.Base.Number, p.Base.Digest[:], p.Tests.Passed, p.Tests.Failed, p.Tests.Skipped, p.State); err != nil {
		return Proposal{}, fmt.Errorf("store policy proposal: %w", err)
	}
	if err := before(p); err != nil {
		return Proposal{}, err
	}
	if err := tx.Commit(); err != nil {
		return Proposal{}, fmt.Errorf("store policy proposal: %w", err)
	}
	return p, nil
}

// Approve keeps an approval, in the place of an earlier one by the same
// approver. before is as in Add.
func (s *Store) Approve(ctx context.Context, number uint64, a Approval, before func() error) error {
	return s.change(ctx, "store approval of policy", before,
		`INSERT INTO policy_approvals (proposal, approver, key_id, actor, approved, signature) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (proposal, approver) DO UPDATE SET key_id = excluded.key_id, actor = excluded.actor, approved = excluded.approved, signature = excluded.signature`,
		number, a.Approver, a.KeyID, a.Actor, a.Time.UnixNano(), a.Signature)
}

// Settle ends an open proposal as withdrawn or outdated. before is as in Add.
func (s *Store) Settle(ctx context.Context, number uint64, state string, before func() error) error {
	return s.change(ctx, "settle policy proposal", before, `UPDATE policy_proposals SET state = ? WHERE number = ? AND state = 'open'`, state, number)
}

// Activated marks a proposal as what became a revision, in the transaction of
// Add.
func (s *Store) Activated(ctx context.Context, tx *sql.Tx, number, revision uint64) error {
	_, err := tx.ExecContext(ctx, `UPDATE policy_proposals SET state = 'activated', revision = ? WHERE number = ?`, revision, number)
	return err
}

func (s *Store) change(ctx context.Context, what string, before func() error, query string, args ...any) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, query, args...); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := before(); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

const proposalColumns = `SELECT number, digest, author, publisher, key_id, message, source_commit, proposed,
	base_epoch, base_number, base_digest, passed, failed, skipped, state, revision, `

// Proposals returns those in one of the states, all when none is given, newest
// first and without their bundles.
func (s *Store) Proposals(ctx context.Context, states ...string) ([]Proposal, error) {
	approvals, err := s.approvals(ctx)
	if err != nil {
		return nil, fmt.Errorf("list policy proposals: %w", err)
	}
	rows, err := s.db.QueryContext(ctx, proposalColumns+`x'' FROM policy_proposals ORDER BY number DESC`)
	if err != nil {
		return nil, fmt.Errorf("list policy proposals: %w", err)
	}
	defer rows.Close()
	var all []Proposal
	for rows.Next() {
		p, err := scanProposal(rows)
		if err != nil {
			return nil, fmt.Errorf("list policy proposals: %w", err)
		}
		p.Approvals = approvals[p.Number]
		if len(states) == 0 || slices.Contains(states, p.State) {
			all = append(all, p)
		}
	}
	return all, rows.Err()
}

// Proposal returns one with its bundle. ErrNoProposal says that there is none.
func (s *Store) Proposal(ctx context.Context, number uint64) (Proposal, error) {
	p, err := scanProposal(s.db.QueryRowContext(ctx, proposalColumns+`bundle FROM policy_proposals WHERE number = ?`, number))
	if errors.Is(err, sql.ErrNoRows) {
		return Proposal{}, ErrNoProposal
	}
	if err != nil {
		return Proposal{}, fmt.Errorf("read policy proposal %d: %w", number, err)
	}
	approvals, err := s.approvals(ctx)
	if err != nil {
		return Proposal{}, fmt.Errorf("read policy proposal %d: %w", number, err)
	}
	p.Approvals = approvals[number]
	return p, nil
}

// approvals are all there are, by proposal, in the order in which they came.
func (s *Store) approvals(ctx context.Context) (map[uint64][]Approval, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT proposal, approver, key_id, actor, approved, signature FROM policy_approvals ORDER BY approved, approver`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[uint64][]Approval{}
	for rows.Next() {
		var (
			proposal uint64
			a        Approval
			at       int64
		)
		if err := rows.Scan(&proposal, &a.Approver, &a.KeyID, &a.Actor, &at, &a.Signature); err != nil {
			return nil, err
		}
		a.Time = time.Unix(0, at).UTC()
		all[proposal] = append(all[proposal], a)
	}
	return all, rows.Err()
}

func scanProposal(row interface{ Scan(...any) error }) (Proposal, error) {
	var (
		p                Proposal
		digest, baseOfIt []byte
		proposed         int64
	)
	err := row.Scan(&p.Number, &digest, &p.Author, &p.Publisher, &p.KeyID, &p.Message, &p.SourceCommit, &proposed,
		&p.Base.Epoch, &p.Base.Number, &baseOfIt, &p.Tests.Passed, &p.Tests.Failed, &p.Tests.Skipped, &p.State, &p.Revision, &p.Bundle)
	if err != nil {
		return Proposal{}, err
	}
	if len(digest) != 32 || len(baseOfIt) != 32 {
		return Proposal{}, fmt.Errorf("a digest of proposal %d is not a SHA-256", p.Number)
	}
	p.Digest, p.Base.Digest = [32]byte(digest), [32]byte(baseOfIt)
	p.Proposed = time.Unix(0, proposed).UTC()
	return p, nil
}
