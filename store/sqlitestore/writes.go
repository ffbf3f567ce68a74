package sqlitestore

import (
	"context"
	"errors"
	"fmt"
	"math"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// errNoRight ends a write that is for another installation, or under a lease that is not held.
var errNoRight = errors.New("another installation, or a lease that is over")

var (
	isInstallation = define(`select exists (select 1 from {prefix}_installation where inst = ?)`)

	isHeld = define(`
select exists (
    select 1 from {prefix}_lease
    where name = ? and owner = ? and fence = ? and until > cast(strftime('%s', 'now') as integer))`)
)

func (w *writer) checkInstallation(ctx context.Context, inst [16]byte) error {
	is, err := w.is(ctx, isInstallation, inst[:])
	if err == nil && !is {
		return errNoRight
	}
	return err
}

// checkRight looks at the installation and, unless it is nil, at the lease, which nobody else gets before the
// transaction ends: there is one writer at a time.
func (w *writer) checkRight(ctx context.Context, inst [16]byte, under *store.Lease) error {
	if err := w.checkInstallation(ctx, inst); err != nil || under == nil {
		return err
	}
	held, err := w.is(ctx, isHeld, under.Name, string(under.Owner), under.Fence)
	if err == nil && !held {
		return errNoRight
	}
	return err
}

var isInstallationKey = define(`select exists (select 1 from {prefix}_installation_key where ik_kid = ?)`)

// execUnder is exec of a statement that writes something under an installation key, or of a data key's version under
// none. [store.ErrConflict] if that is not there: of the foreign keys that a statement breaks SQLite names none.
func (w *writer) execUnder(ctx context.Context, ikKID []byte, q query, args ...any) (int64, error) {
	n, err := w.exec(ctx, q, args...)
	if len(ikKID) == 0 || classify(err) != classForeignKey {
		return n, err
	}
	there, lookErr := w.is(ctx, isInstallationKey, ikKID)
	switch {
	case lookErr != nil:
		return 0, lookErr
	case !there:
		return 0, fmt.Errorf("%w: its installation key is not there any more", store.ErrConflict)
	}
	return 0, err
}

var (
	// Not "on conflict do nothing": the tables refuse whatever meets a row that is there before SQLite looks for
	// conflicts.
	insertRootKey = define(`
insert into {prefix}_root_key (private_id, scope_id, seq, head_version, rotate_every, max_messages, ik_kid, mac, rotate_at)
select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9
where not exists (select 1 from {prefix}_root_key where scope_id = ?2)`)

	insertDataKey = define(`
insert into {prefix}_data_key
    (private_id, root_key_id, purpose, seq, head_version, rotate_every, max_messages, ik_kid, mac, rotate_at, generator)
select ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11
where exists (select 1 from {prefix}_root_key where private_id = ?2)
    and not exists (select 1 from {prefix}_data_key where root_key_id = ?2 and purpose = ?3)`)

	insertRootKeyVersion = define(`
insert into {prefix}_root_key_version (private_id, root_key_id, version, state, alg, commitment, key, created, ik_kid)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)`)

	insertDataKeyVersion = define(`
insert into {prefix}_data_key_version (private_id, data_key_id, version, state, alg, commitment, key, created, root_key_version_id)
values (?, ?, ?, ?, ?, ?, ?, ?, ?)`)

	insertTombstone = define(`
insert into {prefix}_tombstone (key_id, version, private_id, kind, alg, commitment) values (?, ?, ?, ?, ?, ?)`)

	// The tables demand this only at the end of the transaction, which may be the application's.
	rootHeadIsActive = define(`
select exists (
    select 1
    from {prefix}_root_key k
    join {prefix}_root_key_version v on v.root_key_id = k.private_id and v.version = k.head_version
    where k.private_id = ? and v.state = 2)`)

	dataHeadIsActive = define(`
select exists (
    select 1
    from {prefix}_data_key k
    join {prefix}_data_key_version v on v.data_key_id = k.private_id and v.version = k.head_version
    where k.private_id = ? and v.state = 2)`)
)

// statements are those that exist for both kinds of keys.
type statements struct {
	insertVersion, headIsActive          query
	update, changeState, destroy, rewrap query
	idOf, rekey                          query
}

func of(kind key.Kind) statements {
	if kind == key.KEK {
		return statements{
			insertVersion: insertRootKeyVersion, headIsActive: rootHeadIsActive,
			update: updateRootKey, changeState: changeRootKeyVersion, destroy: destroyRootKeyVersion, rewrap: rewrapRootKeyVersion,
			idOf: rootVersionID, rekey: rekeyRootKey,
		}
	}
	return statements{
		insertVersion: insertDataKeyVersion, headIsActive: dataHeadIsActive,
		update: updateDataKey, changeState: changeDataKeyVersion, destroy: destroyDataKeyVersion, rewrap: rewrapDataKeyVersion,
		idOf: dataVersionID, rekey: rekeyDataKey,
	}
}

// Create implements [store.Queries].
func (q queries) Create(ctx context.Context, inst [16]byte, keys []store.Key) (int, error) {
	n := 0
	err := q.view.write(ctx, func(w *writer) error {
		if err := w.checkInstallation(ctx, inst); err != nil {
			return err
		}
		for i := range keys {
			inserted, err := w.create(ctx, &keys[i])
			if err != nil {
				return fmt.Errorf("key %s: %w", keys[i].ID, err)
			}
			if inserted {
				n++
			}
		}
		return nil
	})
	if errors.Is(err, errNoRight) {
		return 0, nil
	}
	if err != nil {
		return 0, q.tables.explain(ctx, "create keys", err)
	}
	return n, nil
}

func (w *writer) create(ctx context.Context, k *store.Key) (bool, error) {
	inserted, err := w.insertKey(ctx, k)
	if err != nil || !inserted {
		return false, err
	}
	versions, tombstones := k.Versions, k.Tombstones
	for len(versions)+len(tombstones) > 0 {
		if len(tombstones) == 0 || len(versions) > 0 && versions[0].Number < tombstones[0].Number {
			if err := w.insertVersion(ctx, k.Kind, k.ID, &versions[0]); err != nil {
				return false, err
			}
			versions = versions[1:]
			continue
		}
		t := tombstones[0]
		if _, err := w.exec(ctx, insertTombstone, string(k.ID), int64(t.Number), string(t.ID), string(k.Kind), int64(t.Alg),
			t.Commit); err != nil {
			return false, fmt.Errorf("tombstone %d: %w", t.Number, err)
		}
		tombstones = tombstones[1:]
	}
	return true, w.checkHead(ctx, k.Kind, k.ID)
}

func (w *writer) insertKey(ctx context.Context, k *store.Key) (bool, error) {
	manifest, err := manifestArgs(k.Kind, k.Manifest, k.RotateAt)
	if err != nil {
		return false, err
	}
	var n int64
	switch k.Kind {
	case key.KEK:
		if err := k.Scope.Validate(); err != nil {
			return false, err
		}
		scope, err := w.tables.scopeArg(k.Scope)
		if err != nil {
			return false, err
		}
		if k.RootKeyID != "" || k.Purpose != "" {
			return false, errors.New("a root key has no root key and no purpose")
		}
		n, err = w.execUnder(ctx, k.IKKID, insertRootKey, append([]any{string(k.ID), scope}, manifest...)...)
		return n == 1, err
	case key.DEK:
		if err := k.Purpose.Validate(); err != nil {
			return false, err
		}
		if k.Scope != "" {
			return false, errors.New("a data key has no scope of its own")
		}
		args := append([]any{string(k.ID), string(k.RootKeyID), string(k.Purpose)}, manifest...)
		n, err = w.execUnder(ctx, k.IKKID, insertDataKey, args...)
		return n == 1, err
	}
	return false, fmt.Errorf("a key cannot be of kind %q", k.Kind)
}

func (w *writer) insertVersion(ctx context.Context, kind key.Kind, id key.ID, v *store.Version) error {
	args := []any{string(v.ID), string(id), int64(v.Number), int64(v.State), int64(v.Alg), v.Commit, v.Blob, v.Created}
	wrapped, err := wrappedUnder(kind, v.Parent, v.IKKID)
	if err == nil {
		_, err = w.execUnder(ctx, v.IKKID, of(kind).insertVersion, append(args, wrapped)...)
	}
	if err != nil {
		return fmt.Errorf("version %d: %w", v.Number, err)
	}
	return nil
}

// wrappedUnder is the value of the column that says which key a version is wrapped under.
func wrappedUnder(kind key.Kind, parent key.ID, ikKID []byte) (any, error) {
	switch {
	case kind == key.KEK && parent != "":
		return nil, errors.New("a root key's version has no parent")
	case kind == key.KEK:
		return ikKID, nil
	case len(ikKID) != 0:
		return nil, errors.New("a data key's version has no ik_kid")
	}
	return string(parent), nil
}

func (w *writer) checkHead(ctx context.Context, kind key.Kind, id key.ID) error {
	active, err := w.is(ctx, of(kind).headIsActive, string(id))
	if err == nil && !active {
		err = errors.New("the head is not there, or not active")
	}
	return err
}

// manifestArgs end with the generator for a data key, whose table alone has one.
func manifestArgs(kind key.Kind, m store.Manifest, rotateAt int64) ([]any, error) {
	if kind == key.KEK && m.Generator != "" {
		return nil, errors.New("a root key has no generator")
	}
	if err := checkGenerator(m.Generator); err != nil {
		return nil, err
	}
	n, err := integers(m.Seq, m.RotateEvery, m.MaxMessages)
	if err != nil {
		return nil, err
	}
	var at any
	if rotateAt != 0 {
		at = rotateAt
	}
	args := []any{n[0], int64(m.Head), n[1], n[2], m.IKKID, m.MAC, at}
	if kind == key.DEK {
		args = append(args, m.Generator)
	}
	return args, nil
}

// integers refuses what an integer column cannot hold.
func integers(numbers ...uint64) ([]int64, error) {
	var out []int64
	for _, n := range numbers {
		if n > math.MaxInt64 {
			return nil, fmt.Errorf("the number %d is too great", n)
		}
		out = append(out, int64(n))
	}
	return out, nil
}
