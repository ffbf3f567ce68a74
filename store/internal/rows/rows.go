// Package rows puts what a store keeps together from the rows that its database returns.
package rows

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// A family is read as one list of rows of several tables, and names likewise. The first column says which.
const (
	Now = iota
	Root
	RootVersion
	RootTombstone
	Data
	DataVersion
	DataTombstone
	Name
	Epoch
)

// Row is one row of a family, as the statement of every store returns it. Which column has what, depends on Table.
type Row struct {
	Table         int
	ID, Owner     key.ID
	Name          string
	A, B, C, D, E int64
	X, Y, Z       []byte
}

// Columns is where the columns are scanned to, in their order.
func (r *Row) Columns() []any {
	return []any{&r.Table, &r.ID, &r.Owner, &r.Name, &r.A, &r.B, &r.C, &r.D, &r.E, &r.X, &r.Y, &r.Z}
}

// orphan is an error, as a statement that lost the order of its rows would otherwise lose versions.
func (r *Row) orphan() error {
	return &Error{string(r.ID), fmt.Sprintf("it was read without its key %q", r.Owner)}
}

// Error says that a row holds what no row can. What it quotes is not the database's word, and never to be classified.
type Error struct{ Row, Problem string }

func (e *Error) Error() string { return fmt.Sprintf("row %q: %s", e.Row, e.Problem) }

// Numbers collects those of a row that do not fit where they belong.
type Numbers []int64

// Fit is n as a T. Cut to T's size, a number that does not fit could stand for another: it is kept for Check instead.
func Fit[T ~uint8 | ~uint32 | ~uint64](bad *Numbers, n int64) T {
	if n < 0 || int64(T(n)) != n {
		*bad = append(*bad, n)
	}
	return T(n)
}

// Check is an [*Error] about the row if a number of it did not fit.
func (n Numbers) Check(row string) error {
	if len(n) == 0 {
		return nil
	}
	return &Error{row, fmt.Sprintf("the number %d is out of range", n[0])}
}

// Family is a family of which some rows were read. The zero value is one without any.
type Family struct {
	f    store.Family
	data map[key.ID]*store.Key
}

// Add adds a row. A version or tombstone comes after its key. The row's slices are kept.
func (f *Family) Add(r *Row) error {
	var n Numbers
	switch r.Table {
	case Now:
		f.f.Now, f.f.Epoch, f.f.Roots = r.A, Fit[uint64](&n, r.B), Fit[uint64](&n, r.C)
	case Root, Data:
		f.addKey(&n, r)
	case RootVersion, DataVersion:
		k := f.key(r.Owner)
		if k == nil {
			return r.orphan()
		}
		k.Versions = append(k.Versions, store.Version{
			ID: r.ID, Number: Fit[key.Version](&n, r.A), State: Fit[key.State](&n, r.B), Alg: Fit[key.Alg](&n, r.C), Created: r.D,
			Disabled: r.E, Commit: r.Y, Blob: r.Z, Parent: key.ID(r.Name), IKKID: r.X,
		})
	case RootTombstone, DataTombstone:
		k := f.key(r.Owner)
		if k == nil {
			return r.orphan()
		}
		k.Tombstones = append(k.Tombstones, store.Tombstone{
			ID: r.ID, Number: Fit[key.Version](&n, r.A), Alg: Fit[key.Alg](&n, r.C), Destroyed: r.D, Commit: r.Y,
		})
	}
	return n.Check(string(r.ID))
}

func (f *Family) addKey(n *Numbers, r *Row) {
	k := store.Key{ID: r.ID, Kind: key.KEK, Scope: key.Scope(r.Name), RotateAt: r.E, Manifest: store.Manifest{
		Seq: Fit[uint64](n, r.A), Head: Fit[key.Version](n, r.B),
		RotateEvery: Fit[uint64](n, r.C), MaxMessages: Fit[uint64](n, r.D), IKKID: r.X, MAC: r.Y,
	}}
	if r.Table == Root {
		f.f.Root = k
		return
	}
	k.Kind, k.Scope, k.RootKeyID, k.Purpose, k.Generator = key.DEK, "", r.Owner, key.Purpose(r.Name), string(r.Z)
	if f.data == nil {
		f.data = map[key.ID]*store.Key{}
	}
	f.data[k.ID] = &k
}

// AsName is a row of Name, which no family takes.
func (r *Row) AsName() (store.Name, error) {
	var n Numbers
	name := store.Name{
		RootKeyID: r.Owner, Purpose: key.Purpose(r.Name), Seq: Fit[uint64](&n, r.A), Last: Fit[key.Version](&n, r.B),
		Removed: r.C != 0, IKKID: r.X, MAC: r.Y, Generator: string(r.Z),
	}
	return name, n.Check(r.Name)
}

// CheckName looks at the rules for a name that is to be stored where from is the sequence number of what is.
func CheckName(from uint64, n *store.Name) error {
	if n.Seq <= from || n.Seq > math.MaxInt64 {
		return fmt.Errorf("the sequence number of a name cannot go from %d to %d", from, n.Seq)
	}
	return n.Purpose.Validate()
}

// key is nil for a key that was not read.
func (f *Family) key(id key.ID) *store.Key {
	if id == f.f.Root.ID {
		return &f.f.Root
	}
	return f.data[id]
}

// Family is what was read, in the contract's order. Without a root key it is [store.ErrNotFound], with Now.
func (f *Family) Family() (store.Family, error) {
	if f.f.Root.ID == "" {
		return store.Family{Now: f.f.Now}, store.ErrNotFound
	}
	for _, k := range f.data {
		sortKey(k)
		f.f.Data = append(f.f.Data, *k)
	}
	sortKey(&f.f.Root)
	slices.SortFunc(f.f.Data, func(a, b store.Key) int { return strings.Compare(string(a.Purpose), string(b.Purpose)) })
	return f.f, nil
}

func sortKey(k *store.Key) {
	slices.SortFunc(k.Versions, func(a, b store.Version) int { return int(a.Number) - int(b.Number) })
	slices.SortFunc(k.Tombstones, func(a, b store.Tombstone) int { return int(a.Number) - int(b.Number) })
}

// Families are families of which some rows were read, and the epochs. The zero value is none.
type Families struct {
	Epochs store.Epochs

	now   int64
	roots map[key.ID]*Family // by the ids of root keys and data keys
}

// Add adds a row. Those of the epochs come first, every row after that of its root key, and a version or tombstone
// after that of its key. The row's slices are kept, and the row is not.
func (f *Families) Add(r *Row) error {
	owner := r.Owner
	var n Numbers
	switch r.Table {
	case Now:
		f.now, f.Epochs.Inst, f.Epochs.Seq = r.A, r.X, Fit[uint64](&n, r.C)
		return n.Check("now")
	case Epoch:
		f.Epochs.Keys[Fit[uint64](&n, r.A)%store.Buckets] = Fit[uint64](&n, r.B)
		return n.Check("epochs")
	case Root:
		if f.roots == nil {
			f.roots = map[key.ID]*Family{}
		}
		f.roots[r.ID] = &Family{f: store.Family{Now: f.now, Roots: f.Epochs.Seq}}
		owner = r.ID
	case Data:
		if root := f.roots[owner]; root != nil {
			f.roots[r.ID] = root
		}
	}
	if family := f.roots[owner]; family != nil {
		return family.Add(r)
	}
	return r.orphan()
}

// Families are those of the scopes that are there, in the order of scopes, each with its epoch.
func (f *Families) Families(scopes []key.Scope) []store.Family {
	found := make(map[key.Scope]*Family, len(scopes))
	for _, family := range f.roots {
		found[family.f.Root.Scope] = family
	}
	list := make([]store.Family, 0, len(found))
	var ids []key.ID
	for _, scope := range scopes {
		family := found[scope]
		if family == nil {
			continue
		}
		delete(found, scope) // a scope may be named twice
		whole, err := family.Family()
		if err != nil {
			continue
		}
		ids = append(ids[:0], whole.Root.ID)
		for i := range whole.Data {
			ids = append(ids, whole.Data[i].ID)
		}
		whole.Epoch = f.Epochs.Of(ids...)
		list = append(list, whole)
	}
	return list
}
