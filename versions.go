package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Disable takes a retired version out of use: nothing that it sealed opens until [Manager.Enable]. It is how a version
// is given up: what nobody misses while it is disabled may be destroyed. Disabling a disabled version does nothing.
//
// Errors: [ErrNotFound] if there is no such version; [ErrState] for the head and for a pending version; an
// [*InUseError] for a version of a root key that still wraps data keys; [ErrRolledBack]; [*IntegrityError];
// [ErrUnavailable]. It takes two round trips, four for a root key's version.
func (m *Manager) Disable(ctx context.Context, id key.ID) error {
	return m.changeVersion(ctx, m.committed, id, "disable", disable)
}

// Enable makes a disabled version a retired one again, which opens what it sealed. Of a version that is not disabled it
// changes nothing. Errors: [ErrState] for a destroyed version; the others are those of [Manager.Disable].
func (m *Manager) Enable(ctx context.Context, id key.ID) error {
	return m.changeVersion(ctx, m.committed, id, "enable", enable)
}

// Destroy deletes a disabled version for ever, and with it all that it sealed. What is left is a tombstone: its number,
// id and commitment. Destroying a destroyed version does nothing.
//
// It has to have been disabled for [Config.Grace], by the database's clock; else the error is [ErrState]. An
// [*UnseenError] names the instances that live and may not have seen the key's last change; [Manager.AwaitInstances]
// waits for them.
//
// An [*InUseError] says which rows of the application's still have its id, by a foreign key, whatever that does on
// delete, or in a column that was registered ([Manager.Register]); or which data keys a root key's version wraps.
// Nothing is destroyed then. [ErrState] for every version that is not disabled; the others are those of
// [Manager.Disable].
//
// The database may still have it in its log, on replicas and in backups.
func (m *Manager) Destroy(ctx context.Context, id key.ID) error {
	return m.changeVersion(ctx, m.committed, id, "destroy", destroy)
}

// DestroyTx is [Manager.Destroy] inside the application's transaction, beside the delete of the last rows that it
// sealed. After [ErrUnavailable] and [ErrUnknownOutcome] that has to be rolled back.
func (m *Manager) DestroyTx(ctx context.Context, tx store.Tx, id key.ID) error {
	return m.changeVersion(ctx, func() reader { return m.inside(tx) }, id, "destroy", destroy)
}

// change says what has to be written so that v of k is as the caller wants it. Nothing, if it is that way.
type change func(k *store.Key, v *store.Version) (changed store.Key, u store.Update, err error)

func (m *Manager) changeVersion(ctx context.Context, read func() reader, id key.ID, doing string, change change) error {
	if err := id.Validate(); err != nil {
		return err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := read()
	for {
		err := r.tryChange(ctx, id, change)
		if err == nil {
			return nil
		}
		if err := again(ctx, &r, err); err != nil {
			return fmt.Errorf("%s key version %s: %w", doing, id, err)
		}
	}
}

// destroyable says why v cannot be destroyed yet: it was not disabled long enough, or an instance may still use it.
func (r reader) destroyable(ctx context.Context, fam *store.Family, k *store.Key, v *store.Version) error {
	if left := time.Unix(v.Disabled, 0).Add(r.m.grace).Sub(time.Unix(fam.Now, 0)); r.m.grace > 0 && left > 0 {
		return fmt.Errorf("%w: it has been disabled since %s, and has to be for another %v (Config.Grace)",
			ErrState, time.Unix(v.Disabled, 0).UTC().Format(time.RFC3339), left)
	}
	roll, err := r.q.Roll(ctx)
	if err != nil {
		return err
	}
	return r.m.unseen(roll, bucketOf(rootOf(k))|bucketOf(k.ID), roll.Epochs)
}

func bucketOf(id key.ID) store.BucketSet { return 1 << store.Bucket(id) }

// errDone is that there is nothing to change.
var errDone = errors.New("it is that way already")

func (r reader) tryChange(ctx context.Context, id key.ID, change change) error {
	fam, err := r.keyOfVersion(ctx, id)
	if err != nil {
		return err
	}
	if err := fam.notOlder(); err != nil {
		return err
	}
	k := &fam.Root
	if kind, _ := id.Kind(); kind == key.DEK {
		k = &fam.Data[0]
	}
	v, ok := versionByID(k, id)
	if !ok {
		v = &store.Version{ID: id, State: key.Destroyed}
	}
	changed, u, err := change(k, v)
	if errors.Is(err, errDone) {
		return nil
	}
	if err != nil {
		return err
	}
	if len(u.Destroy) > 0 {
		if err := r.destroyable(ctx, &fam.Family, k, v); err != nil {
			return err
		}
	}
	return r.update(ctx, k, &changed, u)
}

func disable(k *store.Key, v *store.Version) (store.Key, store.Update, error) {
	switch v.State {
	case key.Disabled:
		return store.Key{}, store.Update{}, errDone
	case key.Active:
		return store.Key{}, store.Update{}, fmt.Errorf("%w: it is the head: rotate the key first", ErrState)
	case key.Retired:
		return inState(k, v, key.Disabled)
	case key.Pending, key.Destroyed:
	}
	return store.Key{}, store.Update{}, fmt.Errorf("%w: it is %v", ErrState, v.State)
}

func enable(k *store.Key, v *store.Version) (store.Key, store.Update, error) {
	switch v.State {
	case key.Disabled:
		return inState(k, v, key.Retired)
	case key.Destroyed:
		return store.Key{}, store.Update{}, fmt.Errorf("%w: it is %v", ErrState, v.State)
	case key.Pending, key.Active, key.Retired:
	}
	return store.Key{}, store.Update{}, errDone
}

func inState(k *store.Key, v *store.Version, to key.State) (store.Key, store.Update, error) {
	changed := *k
	changed.Versions = slices.Clone(k.Versions)
	next, _ := versionOf(&changed, v.Number)
	next.State = to
	return changed, store.Update{States: []store.StateChange{{Number: v.Number, From: v.State, To: to}}}, nil
}

func destroy(k *store.Key, v *store.Version) (store.Key, store.Update, error) {
	switch v.State {
	case key.Destroyed:
		return store.Key{}, store.Update{}, errDone
	case key.Active:
		return store.Key{}, store.Update{}, fmt.Errorf("%w: it is the head: rotate the key, and disable this version first", ErrState)
	case key.Disabled:
	case key.Pending, key.Retired:
		return store.Key{}, store.Update{}, fmt.Errorf("%w: it is %v: disable it first, and see that nobody misses it", ErrState, v.State)
	}
	changed := *k
	changed.Versions = slices.DeleteFunc(slices.Clone(k.Versions), func(other store.Version) bool { return other.ID == v.ID })
	dead := store.Tombstone{ID: v.ID, Number: v.Number, Alg: v.Alg, Commit: v.Commit}
	at, _ := slices.BinarySearchFunc(k.Tombstones, dead, func(a, b store.Tombstone) int { return int(a.Number) - int(b.Number) })
	changed.Tombstones = slices.Insert(slices.Clone(k.Tombstones), at, dead)
	return changed, store.Update{Destroy: []key.Version{v.Number}}, nil
}

// Column is a column of a table that has ids of key versions in it.
type Column = store.Column

// Reference is a column that has ids of key versions in it, and how many rows have one.
type Reference = store.Reference

// InUseError says what has the id of a version that was not to be in use any more. It is an [ErrForeignKey], too.
type InUseError = store.InUseError

// References lists the columns that have ids of key versions in them, and how many rows have the given one; or, of an
// empty id, of any data key's version. They are those with a foreign key to the table of versions, in every schema, and
// those that were registered. For a root key's version they are those with a foreign key to the table of those:
// keyhold's own, which counts the data key versions that it wraps, and any of the application's.
//
// It counts in the application's tables, which it needs the right to read; that takes time where such a column has no
// index. It takes two round trips. Errors: [*InvalidError]; [ErrUnavailable].
func (m *Manager) References(ctx context.Context, id key.ID) ([]Reference, error) {
	if id != "" {
		if err := id.Validate(); err != nil {
			return nil, err
		}
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return m.store.References(ctx, id)
}

// Register says that a column of the application's has ids of data key versions in it, without a foreign key to
// kms_data_key_version(private_id): [Manager.Destroy] looks there, too. Unlike with a foreign key, a row that is
// inserted while a version is destroyed is not noticed. Registering a column twice does nothing.
//
// It has to be a column of text in a table of the application's. Errors: [ErrNotFound] if there is no such column; an
// [*InvalidError] if it is one of a view, of a temporary table or of keyhold's own, or of another type, in which an id
// would not be found. (In SQLite a column may have any type, and ids that are stored as blobs are found, too.)
func (m *Manager) Register(ctx context.Context, c Column) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return m.store.Register(ctx, c)
}

// Unregister takes back what [Manager.Register] said. [ErrNotFound] if nobody said it.
func (m *Manager) Unregister(ctx context.Context, c Column) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return m.store.Unregister(ctx, c)
}
