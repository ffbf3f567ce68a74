package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
)

// BlindIndex returns the first size bytes (4 to 32) of a keyed hash of value, for a column to search in: equal values
// of one index have equal results. ref names a key of [Config.IndexPurposes], name the index (1 to 255 bytes). Whoever
// sees the column sees which rows are equal and how often.
//
// After a rotation of the key new results differ from old ones; search for both until the column is written anew. It
// takes the round trips of [Manager.Seal], and has the errors of [Manager.Open], but [ErrOpen], and [ErrRolledBack].
func (m *Manager) BlindIndex(ctx context.Context, ref key.Ref, name string, value []byte, size int) ([]byte, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r := m.hot(opens)
	fam, _, err := r.dataKey(ctx, ref)
	if err != nil {
		return nil, err
	}
	data := &fam.Data[0]
	head, _ := headOf(data)
	if head.Alg != key.BlindIndex {
		return nil, fmt.Errorf("%s is of alg %v: %w", describe(data), head.Alg, ErrPurpose)
	}
	if err := errors.Join(fam.notOlder(), usableParent(&fam.Family, head.Parent)); err != nil {
		return nil, err
	}
	k, err := r.unwrap(&fam.Family, data, head)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	return k.BlindIndex(name, value, size)
}
