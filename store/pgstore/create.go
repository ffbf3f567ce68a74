package pgstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Create implements [store.Queries]. Keys without tombstones take one round trip besides the commit, however many
// there are.
func (q queries) Create(ctx context.Context, inst [16]byte, keys []store.Key) (int, error) {
	n := 0
	groups, err := q.tables.groups(keys)
	if err == nil {
		err = q.view.write(ctx, func(w *writer) error {
			n = 0
			return w.create(ctx, inst, groups, &n)
		})
	}
	if err != nil {
		return 0, q.tables.explain(ctx, "create keys", err)
	}
	return n, nil
}

// groups checks what only this side can see, and splits the keys into groups in which all root keys may be inserted
// before all data keys, as nothing tells that from the order given.
func (t *tables) groups(keys []store.Key) (groups [][]*store.Key, err error) {
	type named struct {
		scope   key.Scope
		root    key.ID
		purpose key.Purpose
	}
	seen := map[key.ID]named{}
	wanted := map[key.ID]bool{} // root keys of the group's data keys
	for i := range keys {
		k := &keys[i]
		if err := t.checkNew(k); err != nil {
			return nil, fmt.Errorf("key %s: %w", k.ID, err)
		}
		name := named{k.Scope, k.RootKeyID, k.Purpose}
		if other, again := seen[k.ID]; again && other == name {
			continue // its name is taken
		}
		seen[k.ID] = name
		if len(groups) == 0 || k.Kind == key.KEK && wanted[k.ID] {
			groups = append(groups, nil)
			clear(wanted)
		}
		if k.Kind == key.DEK {
			wanted[k.RootKeyID] = true
		}
		groups[len(groups)-1] = append(groups[len(groups)-1], k)
	}
	return groups, nil
}

func (t *tables) checkNew(k *store.Key) error {
	switch k.Kind {
	case key.KEK:
		if err := k.Scope.Validate(); err != nil {
			return err
		}
		if _, err := t.scopeArg(k.Scope); err != nil {
			return err
		}
		if k.RootKeyID != "" || k.Purpose != "" {
			return errors.New("a root key has no root key and no purpose")
		}
	case key.DEK:
		if err := k.Purpose.Validate(); err != nil {
			return err
		}
		if k.Scope != "" {
			return errors.New("a data key has no scope of its own")
		}
	case key.IK:
		fallthrough
	default:
		return fmt.Errorf("a key cannot be of kind %q", k.Kind)
	}
	if _, err := manifestOf(k.Kind, &k.Manifest, k.RotateAt); err != nil {
		return err
	}
	for i := range k.Versions {
		if err := checkWrapping(k.Kind, k.Versions[i].Parent, k.Versions[i].IKKID); err != nil {
			return fmt.Errorf("version %d: %w", k.Versions[i].Number, err)
		}
	}
	// The tables demand this only at the end of the transaction, which may be the application's.
	if !slices.ContainsFunc(k.Versions, func(v store.Version) bool { return v.Number == k.Head && v.State == key.Active }) {
		return errors.New("the head is not there, or not active")
	}
	return nil
}

// checkWrapping refuses what the version's table has no column for.
func checkWrapping(kind key.Kind, parent key.ID, ikKID []byte) error {
	switch {
	case kind == key.KEK && parent != "":
		return errors.New("a root key's version has no parent")
	case kind != key.KEK && len(ikKID) != 0:
		return errors.New("a data key's version has no ik_kid")
	}
	return nil
}

func (w *writer) create(ctx context.Context, inst [16]byte, groups [][]*store.Key, n *int) error {
	for i, group := range groups {
		inserted := map[key.ID]bool{}
		batch := w.insertKeys(inst, group, inserted)
		rounds := roundsOf(group, nil)
		batch = append(batch, w.insertVersions(true, &rounds[0])...)
		run := w.run
		if i == len(groups)-1 && len(rounds) == 1 && len(rounds[0].tombstones.versions) == 0 {
			run = w.last
		}
		if err := run(ctx, batch...); err != nil {
			return err
		}
		*n += len(inserted)
		// The rest is for imported keys alone. Which of them were inserted has to be known first.
		rounds = roundsOf(group, inserted)
		batch = w.insertTombstones(&rounds[0])
		for r := 1; r < len(rounds); r++ {
			batch = append(batch, w.insertVersions(false, &rounds[r])...)
			batch = append(batch, w.insertTombstones(&rounds[r])...)
		}
		if len(batch) > 0 {
			if err := w.run(ctx, batch...); err != nil {
				return err
			}
		}
	}
	return nil
}

// insertKeys leaves the ids of those that were inserted in inserted.
func (w *writer) insertKeys(inst [16]byte, group []*store.Key, inserted map[key.ID]bool) (batch []statement) {
	var root, data keyRows
	for _, k := range group {
		if k.Kind == key.KEK {
			root.add(k)
		} else {
			data.add(k)
		}
	}
	for _, st := range []statement{
		w.tables.statement(insertRootKeys, append(root.args(inst), root.scopes)...),
		w.tables.statement(insertDataKeys, append(data.args(inst), data.rootKeyIDs, data.purposes, data.generators)...),
	} {
		st.row = func(scan func(...any) error) error {
			var id key.ID
			err := scan(&id)
			inserted[id] = true
			return err
		}
		if len(st.args[1].([]string)) > 0 {
			batch = append(batch, st)
		}
	}
	return batch
}

// keyRows are new rows of one table, by column.
type keyRows struct {
	ids                                         []string
	seqs, heads, rotateEvery, maxMessages, dues []int64
	ikKIDs, macs                                [][]byte
	scopes, rootKeyIDs, purposes, generators    []string
}

func (r *keyRows) add(k *store.Key) {
	m, _ := manifestOf(k.Kind, &k.Manifest, k.RotateAt) // was checked
	r.ids = append(r.ids, string(k.ID))
	r.seqs = append(r.seqs, m.seq)
	r.heads = append(r.heads, m.head)
	r.rotateEvery = append(r.rotateEvery, m.rotateEvery)
	r.maxMessages = append(r.maxMessages, m.maxMessages)
	r.dues = append(r.dues, k.RotateAt)
	r.ikKIDs = append(r.ikKIDs, k.IKKID)
	r.macs = append(r.macs, k.MAC)
	r.scopes = append(r.scopes, string(k.Scope))
	r.rootKeyIDs = append(r.rootKeyIDs, storable(string(k.RootKeyID)))
	r.purposes = append(r.purposes, string(k.Purpose))
	r.generators = append(r.generators, k.Generator)
}

func (r *keyRows) args(inst [16]byte) []any {
	return []any{inst[:], r.ids, r.seqs, r.heads, r.rotateEvery, r.maxMessages, r.dues, r.ikKIDs, r.macs}
}

// manifest is the columns of one, as integers that they can hold.
type manifest struct{ seq, head, rotateEvery, maxMessages int64 }

func manifestOf(kind key.Kind, m *store.Manifest, rotateAt int64) (manifest, error) {
	seq, err1 := integer(m.Seq)
	every, err2 := integer(m.RotateEvery)
	most, err3 := integer(m.MaxMessages)
	err := errors.Join(err1, err2, err3)
	if rotateAt < 0 {
		err = errors.Join(err, fmt.Errorf("rotate_at is %d", rotateAt))
	}
	if kind == key.KEK && m.Generator != "" {
		err = errors.Join(err, errors.New("a root key has no generator"))
	}
	return manifest{seq, int64(m.Head), every, most}, err
}

// round is versions, and tombstones that come after them. The tables want both by number, each just after the one
// before, and the version that wraps before those that it wraps; only keys with tombstones take more than one round.
type round struct {
	root, data versionRows
	tombstones tombstoneRows
}

// roundsOf is at least one round. Where only is not nil, the other keys are left out, and which round is whose stays.
func roundsOf(group []*store.Key, only map[key.ID]bool) []round {
	rounds := []round{{}}
	at := func(i int) *round {
		for i >= len(rounds) {
			rounds = append(rounds, round{})
		}
		return &rounds[i]
	}
	last := map[key.ID]int{} // the round with the last version of each root key, which comes before its data keys
	for _, k := range group {
		i, dead := last[k.RootKeyID], false
		versions, tombstones := k.Versions, k.Tombstones
		for len(versions)+len(tombstones) > 0 {
			isDead := len(tombstones) > 0 && (len(versions) == 0 || versions[0].Number >= tombstones[0].Number)
			if dead && !isDead {
				i++
			}
			dead = isDead
			switch wanted := only == nil || only[k.ID]; {
			case isDead && wanted:
				at(i).tombstones.add(k, &tombstones[0])
			case wanted && k.Kind == key.KEK:
				at(i).root.add(k.ID, &versions[0])
			case wanted:
				at(i).data.add(k.ID, &versions[0])
			}
			if isDead {
				tombstones = tombstones[1:]
			} else {
				versions = versions[1:]
			}
		}
		if k.Kind == key.KEK {
			last[k.ID] = i
		}
	}
	return rounds
}

// versionRows are new rows of one table, by column.
type versionRows struct {
	ids, keyIDs            []string
	versions, states, algs []int64
	commits, blobs, ikKIDs [][]byte
	created                []int64
	parents                []string
}

func (r *versionRows) add(id key.ID, v *store.Version) {
	r.ids = append(r.ids, string(v.ID))
	r.keyIDs = append(r.keyIDs, string(id))
	r.versions = append(r.versions, int64(v.Number))
	r.states = append(r.states, int64(v.State))
	r.algs = append(r.algs, int64(v.Alg))
	r.commits = append(r.commits, v.Commit)
	r.blobs = append(r.blobs, v.Blob)
	r.created = append(r.created, v.Created)
	r.parents = append(r.parents, string(v.Parent))
	r.ikKIDs = append(r.ikKIDs, v.IKKID)
}

// insertVersions with newOnly inserts only versions of keys that have none yet.
func (w *writer) insertVersions(newOnly bool, r *round) (batch []statement) {
	args := func(v *versionRows) []any {
		return []any{newOnly, v.ids, v.keyIDs, v.versions, v.states, v.algs, v.commits, v.blobs, v.created}
	}
	if len(r.root.ids) > 0 {
		batch = append(batch, w.tables.statement(insertRootKeyVersions, append(args(&r.root), r.root.ikKIDs)...))
	}
	if len(r.data.ids) > 0 {
		batch = append(batch, w.tables.statement(insertDataKeyVersions, append(args(&r.data), r.data.parents)...))
	}
	return batch
}

// tombstoneRows are new rows of tombstones, by column.
type tombstoneRows struct {
	keyIDs   []string
	versions []int64
	ids      []string
	kinds    []string
	algs     []int64
	commits  [][]byte
}

func (r *tombstoneRows) add(k *store.Key, t *store.Tombstone) {
	r.keyIDs = append(r.keyIDs, string(k.ID))
	r.versions = append(r.versions, int64(t.Number))
	r.ids = append(r.ids, string(t.ID))
	r.kinds = append(r.kinds, string(k.Kind))
	r.algs = append(r.algs, int64(t.Alg))
	r.commits = append(r.commits, t.Commit)
}

func (w *writer) insertTombstones(r *round) []statement {
	t := &r.tombstones
	if len(t.versions) == 0 {
		return nil
	}
	return []statement{w.tables.statement(insertTombstones, t.keyIDs, t.versions, t.ids, t.kinds, t.algs, t.commits)}
}
