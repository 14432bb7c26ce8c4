package sqlstore

import (
	"context"
	"errors"
	"fmt"
)

// crls are the CRLs of all replicas, by name. One without its mark is none, with an
// alarm.
func (t *Tx) crls() (map[string][]byte, error) {
	rows, err := t.tx.QueryContext(t.ctx, `SELECT replica, lists, mark FROM registry_crls`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string][]byte{}
	for rows.Next() {
		var name string
		var lists, mark []byte
		if err := rows.Scan(&name, &lists, &mark); err != nil {
			return nil, err
		}
		if t.checkRow(kindCRLs, name, mark, name, lists) == nil && t.stale(factCRLs, name, "CRLs", mark) == nil {
			all[name] = lists
		}
	}
	return all, rows.Err()
}

// SaveCRLs implements ca.Peers. The others are told.
func (m *Member) SaveCRLs(ctx context.Context, lists []byte) error {
	if lists == nil {
		lists = []byte{}
	}
	err := m.s.Update(ctx, func(tx *Tx) error {
		if tx.holds(factRemoved, m.name) {
			return ErrRemoved
		}
		tx.replicasChanged = true
		mark := m.s.rowMark(kindCRLs, m.name, lists)
		err := tx.exec(`INSERT INTO registry_crls (replica, lists, mark) VALUES (?, ?, ?)
			ON CONFLICT (replica) DO UPDATE SET lists = excluded.lists, mark = excluded.mark`, m.name, lists, mark)
		if err != nil {
			return err
		}
		return tx.setLatest(factCRLs, m.name, mark)
	})
	if err != nil && !errors.Is(err, ErrRemoved) {
		return fmt.Errorf("save CRLs: %w", err)
	}
	return err
}
