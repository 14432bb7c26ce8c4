package revisions

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"fmt"

	"github.com/writ-dev/writ/policy/bundle"
	"github.com/writ-dev/writ/policy/bundle/owners"
)

// Parts returns what the publishers gave to a revision, in the order of their
// names, with the signatures under which it came. Number 0 is the one in force.
// A revision from before there were publishers is one part of "default", whose
// signature was not kept. ErrNone says that there is no such revision.
func (s *Store) Parts(ctx context.Context, number uint64) ([]bundle.Part, error) {
	info, content, err := s.Get(ctx, number)
	if err != nil {
		return nil, err
	}
	return s.PartsOf(ctx, info, content)
}

// PartsOf is Parts for what Get returned.
func (s *Store) PartsOf(ctx context.Context, info Info, content bundle.Content) ([]bundle.Part, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT publisher, key_id, paths, signatures FROM policy_parts
		JOIN policy_revision_parts ON part = id WHERE number = ? ORDER BY publisher`, info.Revision.Number)
	if err != nil {
		return nil, fmt.Errorf("read parts of policy revision %d: %w", info.Revision.Number, err)
	}
	defer rows.Close()
	var parts []bundle.Part
	for rows.Next() {
		var p bundle.Part
		var text []byte
		if err := rows.Scan(&p.Publisher, &p.KeyID, &text, &p.Signatures); err != nil {
			return nil, fmt.Errorf("read parts of policy revision %d: %w", info.Revision.Number, err)
		}
		var paths []string
		if err := json.Unmarshal(text, &paths); err != nil {
			return nil, fmt.Errorf("read parts of policy revision %d: %w", info.Revision.Number, err)
		}
		for _, path := range paths {
			file, ok := content.File(path)
			if !ok {
				return nil, fmt.Errorf("policy revision %d is damaged: %s of publisher %q is not in its content", info.Revision.Number, path, p.Publisher)
			}
			p.Content = append(p.Content, bundle.File{Path: path, Content: file})
		}
		parts = append(parts, p)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("read parts of policy revision %d: %w", info.Revision.Number, err)
	}
	if len(parts) == 0 && len(content) > 0 {
		parts = []bundle.Part{{Publisher: owners.Default, KeyID: info.KeyID, Content: content}}
	}
	return parts, nil
}

func addParts(ctx context.Context, tx *sql.Tx, number uint64, parts []bundle.Part) error {
	for _, p := range parts {
		paths := make([]string, len(p.Content))
		for i, f := range p.Content {
			paths[i] = f.Path
		}
		text, err := json.Marshal(paths)
		if err != nil {
			return err
		}
		id, err := partID(p.Publisher, p.KeyID, text, p.Signatures)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO policy_parts (id, publisher, key_id, paths, signatures) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (id) DO NOTHING`, id, p.Publisher, p.KeyID, text, p.Signatures); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO policy_revision_parts (number, part) VALUES (?, ?)`, number, id); err != nil {
			return err
		}
	}
	return nil
}

func partID(publisher, keyID string, paths, signatures []byte) ([]byte, error) {
	all, err := json.Marshal([]any{publisher, keyID, paths, signatures})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(all)
	return sum[:], nil
}
