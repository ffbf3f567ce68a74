// Package store is the contract between keyhold and a database that holds wrapped keys.
//
// A store keeps rows and the rules that hold between them. It never sees an opened key: everything that it is given
// is wrapped, and nothing that it returns is trusted before its manifest was checked. The rules that every store
// keeps:
//
//   - One root key for a scope; one data key for a root key and purpose; one version for a key and number.
//   - The numbers of a key's versions and tombstones together are 1, 2, 3 and so on: none is skipped, none comes twice.
//   - Just one version of a key is active, and it is the head.
//   - What identifies a row never changes; a state changes only as [key.State.CanBecome] says.
//   - A key's manifest changes only from the sequence number that the caller saw to the next one.
//   - A version that is deleted leaves a tombstone, also when the application's own delete cascaded to it.
//   - A data key is deleted only with its root key, or when its name says that it is removed and how far its numbers
//     went; a new key of that name has greater ones.
//   - The installation keys that manifests and root key versions name are there, as long as anything names them.
//
// The stores are sqlitestore, pgstore and, as the executable specification and for tests, memstore; storetest holds
// them to this contract.
package store

import (
	"context"
	"fmt"
	"math"
	"strings"

	"keyhold.example/keyhold/key"
)

// SchemaVersion is the version of the tables that this program works with.
const SchemaVersion = 1

// Store is the tables of one installation. Each call is one transaction of its own, on the primary, and is safe for
// concurrent use by any number of goroutines and processes.
type Store interface {
	Queries
	Fleet

	// Epochs reads what tells whether keys that were read earlier may have changed since. [ErrNotFound] if there is no
	// installation.
	Epochs(ctx context.Context) (Epochs, error)

	// CheckSchema returns nil if the tables are there in [SchemaVersion], and a [*SchemaError] if they are not.
	CheckSchema(ctx context.Context) error

	// Migrate brings the tables to [SchemaVersion], all or nothing; where they are there already, it does nothing.
	// Any number of processes may do it at once, and all succeed. A [*SchemaError] if the tables are newer, or not
	// keyhold's.
	Migrate(ctx context.Context) error

	// Initialize stores a new installation with its slots, and IKKID as its only installation key, whatever Keys says.
	// [ErrConflict] if there is one already, which is then untouched.
	Initialize(ctx context.Context, in Installation) error

	// ChangeRoots changes the slots, and which installation keys there are, all or nothing. [ErrConflict] if the
	// sequence number of the slots' manifest is not c.From, if c.Inst is not the installation, or if something still
	// names an installation key that was to go: a key's manifest, or a root key's version. What would break a rule of
	// [Installation] or [RootsChange] is another error.
	ChangeRoots(ctx context.Context, c RootsChange) error

	// UpdateAll makes changes in one transaction, each of which as [Queries.Update] does, but waits for nobody: it
	// leaves out keys that are not there or have another sequence number, and may leave out those of a scope at which
	// somebody else is at work. It says of each whether it was made: none, if Inst is not the installation, or Lease
	// is one that is not held. Other errors are those of Update, also [ErrConflict]; then nothing was changed. Each
	// key is named once, Inst and Lease are the same in all, and none destroys or disables a version: else it is an
	// error.
	UpdateAll(ctx context.Context, updates []Update) (made []bool, err error)

	// Rekey replaces manifests by others of the same keys, under another installation key, and with those of root keys
	// all their versions' wrapped keys: each key only where its sequence number is still the old one, and whole. It
	// says how many keys it replaced. It leaves out keys that are not there, and does nothing unless inst is the
	// installation's, and, if under is a lease, that is held (see [Lease]). [ErrConflict] if an installation key that
	// is named is not there, or if of a root key that it would replace there is another version than the given ones, a
	// given one is not there, or has another wrapped key than Old; nothing is replaced then. Each key is named once.
	// If the keys are of several root keys, it may leave out those of one that somebody else is at.
	Rekey(ctx context.Context, inst [16]byte, keys []Rekey, under *Lease) (int, error)

	// NotUnder lists at most limit scopes that have a manifest, or a root key version, that names another installation
	// key than the one with the given kid, after the one with the given root key, by the root key's id, and what to
	// give for the next page: empty if that was the last one. It looks at a bounded number of rows, so a page may have
	// fewer scopes, or none. A scope that is changed meanwhile may be missed, or listed though it is done.
	NotUnder(ctx context.Context, kid [16]byte, after key.ID, limit int) (scopes []key.Scope, next key.ID, err error)

	// Escrows lists what AddEscrow stored, oldest first.
	Escrows(ctx context.Context) ([]Escrow, error)

	// AddEscrow stores that an installation key was written to recovery files, or that such were tried. It does
	// nothing unless inst is the installation's.
	AddEscrow(ctx context.Context, inst [16]byte, e Escrow) error

	// Families reads the root keys of the given scopes and all their data keys, each as Scope does, in the order given,
	// and the epochs, all in one statement. Scopes that are not there are left out, and one that is named twice is
	// there once. Without an installation the epochs are zero. It is an error to ask for more than [MaxFamilies].
	Families(ctx context.Context, scopes []key.Scope) ([]Family, Epochs, error)

	// Keys reads keys, each as [Queries.Key] does, in the order given: without a root key where the scope is not there,
	// and without the data key where that is not. It does not set Epoch. Families of one scope have the same root key,
	// down to its bytes.
	Keys(ctx context.Context, refs []key.Ref) ([]Family, error)

	// Lacking lists at most limit scopes that have no data key for the purpose, in the order of Scopes, from the first
	// after the given one; fewer only if there are no more. It may look several times, and list a scope that gets such
	// a key meanwhile.
	Lacking(ctx context.Context, p key.Purpose, after key.Scope, limit int) ([]key.Scope, error)

	// WasDestroyed says whether there is a tombstone of the version with the given id, whether its key is still there
	// or gone. No version can have that id again.
	WasDestroyed(ctx context.Context, id key.ID) (bool, error)

	// Named lists at most limit of what there is under a root key's purposes for raw bytes, by purpose, after the given
	// one: data keys whose head is of [key.Raw], and names that are registered. It is empty if there is no such scope.
	// Nothing of it was checked.
	Named(ctx context.Context, scope key.Scope, after key.Purpose, limit int) ([]Named, error)

	// NamesNotUnder lists at most limit names that name another installation key than the one with the given kid.
	NamesNotUnder(ctx context.Context, kid [16]byte, limit int) ([]Name, error)

	// PutName stores what is known of a name, where from is the sequence number that is stored now, 0 if none is.
	// [ErrConflict] if another one is stored, if the root key or the installation key is not there, if inst is not the
	// installation's, or if n.Removed and there is a data key of that name. An n that is not greater than from, or
	// whose Last is less than the stored one, is another error.
	PutName(ctx context.Context, inst [16]byte, from uint64, n Name) error

	// RemoveKey deletes a data key with its versions, each of which leaves a tombstone, and stores what is known of its
	// name from then on, as PutName does; n says that it is removed, and n.Last is at least its highest number.
	// [ErrConflict] if the key's sequence number is not keyFrom, or if it is not there, or as for PutName; an
	// [*InUseError] as for Update, about one of its versions.
	RemoveKey(ctx context.Context, inst [16]byte, id key.ID, keyFrom, from uint64, n Name) error

	// Purposes lists the purposes that AddPurposes has stored, by name.
	Purposes(ctx context.Context) ([]Purpose, error)

	// AddPurposes stores purposes. One that is there stays as it is.
	AddPurposes(ctx context.Context, purposes []Purpose) error

	// Register stores that a column has ids of data key versions in it. If it is stored already, nothing is done.
	// [ErrNotFound] if there is no such column; a [*key.InvalidError] if it is one of a view, of a temporary table or
	// of the store's own, or of a type in which an id is never found.
	Register(ctx context.Context, c Column) error

	// Unregister takes back what Register stored, whether the column is still there or not. [ErrNotFound] if nothing
	// was.
	Unregister(ctx context.Context, c Column) error

	// Integrity asks the database itself what is wrong with the tables: tables, columns, constraints, indexes, triggers
	// and functions that are missing, turned off or not what the migrations make, broken references, damaged pages,
	// rows that no constraint could refuse. What an application added to the tables is nothing wrong. One sentence for
	// each, which names it; none if all is well. It reads everything, but where tables are so wrong that statements
	// about their rows need not work, it says that alone.
	Integrity(ctx context.Context) ([]string, error)

	// Close releases what the store opened, and nothing that it was given. The store cannot be used afterwards.
	Close() error
}

// Tx is the tables inside a transaction of the application's, which alone decides whether what was done stays. Its
// calls see what the transaction sees. It is as safe for concurrent use as that transaction is, which is: not. A
// store's InTx makes it.
type Tx struct{ Queries }

// Queries is what can be asked of the tables, by a [Store] or inside a [Tx]. Every read is one statement, so that
// what it returns fits together. Times are seconds since 1970 by the database's clock. Returned slices belong to the
// caller, and given ones are not kept.
//
// Besides the errors named, every call may return the context's error or [ErrUnavailable], when nothing was changed;
// every call that writes also [ErrUnknownOutcome], when it is unknown whether all of it or nothing was.
type Queries interface {
	// Installation reads the installation and all its slots. [ErrNotFound] if there is none.
	Installation(ctx context.Context) (Installation, error)

	// Key reads the root key of ref's scope and, unless ref names a root key, the data key for its purpose. Data is
	// empty if there is none; [ErrNotFound] if there is no such scope. Now is right in both cases.
	Key(ctx context.Context, ref key.Ref) (Family, error)

	// KeyOfVersion reads the key that has the version with the given id, live or as a tombstone, together with its
	// root key. [ErrNotFound] if no existing key has.
	KeyOfVersion(ctx context.Context, id key.ID) (Family, error)

	// Scope reads the root key of a scope and all its data keys, by purpose. [ErrNotFound] as for Key.
	Scope(ctx context.Context, scope key.Scope) (Family, error)

	// Name reads what is known of a name, and the root key, without its data keys. A name of which nothing is known has
	// the sequence number 0. [ErrNotFound] if there is no such scope.
	Name(ctx context.Context, ref key.Ref) (Family, Name, error)

	// Scopes lists at most limit scopes in the order of the database's own type for them, from the first after the
	// given one, or from the beginning if that is empty.
	Scopes(ctx context.Context, after key.Scope, limit int) ([]key.Scope, error)

	// Create inserts root keys and data keys with their versions and says how many keys it inserted. One whose name
	// is taken (the scope, or root key and purpose) is left out with its versions, and so is a data key whose root
	// key is not there: whoever loses a race reads again. Keys are inserted in the order given. [ErrForeignKey] if
	// the application's tables refuse the scope, [ErrConflict] if a root key version that is to wrap is disabled, if an
	// installation key that is named is not there, or if a data key's [Name] is removed, or its Last not less than the
	// new head; nothing is inserted then. It does nothing unless inst is the installation's.
	Create(ctx context.Context, inst [16]byte, keys []Key) (int, error)

	// Update changes one key, all or nothing. [ErrConflict] if the key's sequence number is not u.From, if the key is
	// not there, if u.Inst is not the installation, if u.Lease is a lease that is not held (see [Lease]), if the root
	// key version that wraps an added version is disabled, or if an installation key that is named is not there. An
	// [*InUseError] if anything that References names has the id of a version that was to be destroyed, or of a root
	// key's that was to be disabled, whatever a foreign key would do on delete. A row that is inserted meanwhile is
	// seen, or refused by its foreign key.
	Update(ctx context.Context, u Update) error

	// Shred deletes the root key of a scope, with its data keys and all versions, each of which leaves a tombstone.
	// [ErrNotFound] if there is no such scope, or if inst is not the installation's; an [*InUseError] as for Update,
	// about one data key version of the scope.
	Shred(ctx context.Context, inst [16]byte, scope key.Scope) (Shredded, error)

	// References lists the columns that have ids of versions in them, by schema, table and name, and counts the rows
	// with the given one: of a data key's version the columns that reference its table, in whatever schema, and those
	// that were registered; of a root key's version the columns that reference its table, the store's own among them.
	// An empty id stands for those of all data key versions. It is an error if a registered column is gone, or an id
	// cannot be found in it any more.
	References(ctx context.Context, id key.ID) ([]Reference, error)

	// Take takes n messages of what a data key version may seal, or what is left of them, and returns how many: 0 if
	// none is left. At most max are ever given out, however many instances take. From four fifths of max on, Due lists
	// the key as [Used], while the version is its head. Where it gives nothing, it writes nothing, but for the key's
	// becoming due by that, or not being so any more. [ErrNotFound] if there is no such version; it is an error if max
	// is 0, or either more than 2^63-1. Inside a transaction, others that take of the version wait until that ends, and
	// so does who deletes the version or its scope.
	Take(ctx context.Context, id key.ID, n, max uint64) (uint64, error)

	// Roll lists the instances that are registered, and reads the epochs.
	Roll(ctx context.Context) (Roll, error)

	// Rewrap replaces wrapped keys by others of the same keys, each only where the stored one is still the old one,
	// and says how many it replaced. It leaves out versions that are not there, and does nothing unless inst is the
	// installation's, and, if under is a lease, that is held (see [Lease]). [ErrConflict] if a root key version that is
	// to wrap is disabled, or an installation key that is named is not there; nothing is replaced then. If the rows
	// have several parents, it may leave out those under one whose root key somebody else is at.
	Rewrap(ctx context.Context, inst [16]byte, rows []Rewrap, under *Lease) (int, error)
}

// Installation is the row of the installation, its keys and its slots. ActiveSlot is the active slot of the
// installation key IKKID, and no installation key has two. What a slot that is not removed holds is one of Keys.
type Installation struct {
	Inst       []byte // 16 bytes
	IKKID      []byte // 16 bytes: the installation key that the manifest of the slots is under
	Seq        uint64 // of the slots' manifest
	ActiveSlot key.ID
	MAC        []byte // 32 bytes: the slots' manifest
	Created    int64  // set by the store
	Slots      []Slot // in the order in which they were made, which the slots' MAC depends on

	// Keys are the installation keys that manifests and wrapped keys may name, oldest first: one, or two while the
	// installation is rekeyed, of which the second follows the first.
	Keys []InstallationKey
}

// InstallationKey says that there is an installation key, and which one it follows. Link is that by which whoever has
// the one before knows it (docs/format.md, section 2).
type InstallationKey struct {
	KID      []byte // 16 bytes
	Previous []byte // 16 bytes: the kid of the one before, which may be gone; empty if it is the first
	Link     []byte // 32 bytes; empty if it is the first
	Created  int64  // set by the store
}

// RootsChange moves the slots from the manifest From to the next.
type RootsChange struct {
	Inst [16]byte
	From uint64 // the sequence number that has to be stored now

	Seq        uint64 // the new one, greater than From
	IKKID      []byte
	ActiveSlot key.ID
	MAC        []byte

	Add    []Slot           // active or retired, after those that are there
	States []SlotChange     // of slots that are there, each once; from Destroyed nothing leads away, and its blob goes
	AddKey *InstallationKey // follows the only one that is there; nil if none
	Drop   []byte           // the kid of one that nothing names any more, nor IKKID; empty if none, or if one is added
}

// SlotChange is a slot's step from one state to another.
type SlotChange struct {
	ID       key.ID
	From, To key.State
}

// Rekey is a key's manifest under another installation key; nothing else of it changes.
type Rekey struct {
	Kind     key.Kind
	KeyID    key.ID
	From     uint64 // the sequence number that has to be stored now
	Seq      uint64 // the new one, greater than From
	IKKID    []byte
	MAC      []byte
	Versions []Rewrap // of a root key all its versions; none of a data key
}

// Escrow is what became once of the installation key's copies outside the database. It holds nothing secret. Detail
// says what, for people: the kind of it, and to whom it was sealed.
type Escrow struct {
	IKKID  []byte // 16 bytes
	Event  string // "written" or "verified"
	Detail string // at most 4096 bytes of UTF-8, none of them zero
	At     int64  // set by the store
}

// Shredded is what became of a scope.
type Shredded struct {
	Versions int      // how many there were, of all its keys
	Remains  []string // where the database still has them, wrapped, or may have, for people
}

// Purpose is a purpose of the installation's, and what its keys are for.
type Purpose struct {
	Purpose key.Purpose
	Alg     key.Alg
	Created int64 // set by the store
}

// Column is a column of a table in the database. An empty schema is, on PostgreSQL, that in which the connection finds
// the table; SQLite has no other.
type Column struct{ Schema, Table, Column string }

func (c Column) String() string {
	s := c.Table + "." + c.Column
	if c.Schema != "" {
		s = c.Schema + "." + s
	}
	return s
}

// Reference is a column that has ids of versions in it. A foreign key to other columns of the versions' table than the
// id is one, too: then Column.Column is the names of its columns, in parentheses.
type Reference struct {
	Column
	ForeignKey bool // whether the database knows; otherwise it was registered
	Rows       int64
}

// String is how many rows there are, and the column.
func (r Reference) String() string { return fmt.Sprintf("%d in %v", r.Rows, r.Column) }

// Buckets is how many epochs the keys of an installation share.
const Buckets = 32

// Epochs is what is compared to learn whether keys may have changed: those of an installation all, if Inst is another;
// else a key whose [Bucket] has another epoch, by a change of its manifest or of its scope, or as it was deleted. A new
// key and [Queries.Rewrap] change none. Epochs only grow, by steps that nobody foresees, unless the database itself
// goes back.
type Epochs struct {
	Inst []byte // the installation's, 16 bytes
	Seq  uint64 // of the slots' manifest
	Keys [Buckets]uint64
}

// Of is what the epochs of the given keys' buckets add up to, each bucket counted once.
func (e *Epochs) Of(ids ...key.ID) (sum uint64) {
	var counted [Buckets]bool
	for _, id := range ids {
		if b := Bucket(id); !counted[b] {
			counted[b] = true
			sum = (sum + e.Keys[b]) % math.MaxInt64
		}
	}
	return sum
}

// Bucket is the index in [Epochs.Keys] of the key with the given id: the first character after the prefix of four, as
// a digit; 0 if it is none.
func Bucket(id key.ID) int {
	if len(id) < 5 {
		return 0
	}
	c := id[4]
	if c >= 'A' && c <= 'Z' {
		c += 'a' - 'A'
	}
	return max(0, strings.IndexByte("0123456789abcdefghijklmnopqrstuv", c))
}

// Slot is the installation key sealed by one external root.
type Slot struct {
	ID           key.ID
	WrapperType  string    // what the wrapper says of itself
	WrapperKeyID string    // the root's own id of its key when it sealed, for people
	IKKID        []byte    // 16 bytes: the installation key in it
	State        key.State // active, or retired: opens but is not the one in use; destroyed: removed, the blob is empty
	Blob         []byte    // a marshalled go-kms-wrapping BlobInfo
	Created      int64     // set by the store, as are the following
	Activated    int64     // when it last became the active one; 0 if it never was
	Retired      int64     // since when it is not the active one, removed or not; 0 while it is
	Removed      int64     // 0 until removed
}

// Name is what is known of the name of a raw data key besides the key, which may be there or not: how its versions are
// to be made, and where the numbers of a new key go on.
type Name struct {
	RootKeyID key.ID
	Purpose   key.Purpose
	Seq       uint64      // grows with every change; 0 if nothing is known of the name
	Generator string      // by which versions are made, at most 255 bytes; empty for the default one
	Last      key.Version // the highest number of any key of this name that was removed; 0 if none was
	Removed   bool        // whether there is no such key, and is not to be one until the name is registered again
	IKKID     []byte      // 16 bytes: the installation key that MAC is under
	MAC       []byte      // 32 bytes (docs/format.md, section 7)
}

// Named is a raw data key as it is listed, or a name for which there is none yet.
type Named struct {
	Purpose     key.Purpose
	Generator   string
	Head        key.Version // 0 if there is no key yet
	RotateEvery uint64      // of the key; seconds, 0: never
}

// Manifest is what a key's row says of the whole key, with the MAC over it (docs/format.md, section 7).
type Manifest struct {
	Seq         uint64
	Head        key.Version
	RotateEvery uint64 // seconds, 0: never
	MaxMessages uint64 // 0: unlimited
	Generator   string // by which versions of a raw data key are made, at most 255 bytes; empty for the default one
	IKKID       []byte // 16 bytes: the installation key that MAC is under
	MAC         []byte // 32 bytes
}

// Key is a root key or a data key with all its versions.
type Key struct {
	ID        key.ID
	Kind      key.Kind    // KEK or DEK
	Scope     key.Scope   // of a root key; a data key has none of its own
	RootKeyID key.ID      // of a data key
	Purpose   key.Purpose // of a data key
	Manifest
	RotateAt   int64 // when the next version is due; 0 if never
	Versions   []Version
	Tombstones []Tombstone
}

// Version is one key version as it is stored. Lists of them are ascending by number.
type Version struct {
	ID      key.ID
	Number  key.Version
	State   key.State // never Destroyed
	Alg     key.Alg
	Commit  []byte // 32 bytes
	Blob    []byte // the wrapped key
	Parent  key.ID // of a data key's version: the root key version that wraps it
	IKKID   []byte // of a root key's version: 16 bytes, the installation key that wraps it
	Created int64  // as authenticated with Blob

	// Disabled is since when it is disabled, 0 if it is not; set by the store, and not authenticated.
	Disabled int64
}

// Tombstone is what is kept of a destroyed version. Lists of them are ascending by number.
type Tombstone struct {
	ID        key.ID // empty, with a commitment of zeros, for a number that an import found missing
	Number    key.Version
	Alg       key.Alg
	Commit    []byte
	Destroyed int64 // when, set by the store, also in Create
}

// MaxFamilies is how many scopes [Store.Families] reads at most.
const MaxFamilies = 8192

// Family is a root key with some of its data keys, read in one statement.
type Family struct {
	Now int64 // the database's clock
	// Epoch is [Epochs.Of] the keys that were read, as the statement saw it. [Store.Keys] does not set it.
	Epoch uint64
	// Roots is [Installation.Seq], as the statement saw it, 0 if there is no installation.
	Roots uint64
	Root  Key
	Data  []Key
}

// Update moves one key from manifest From to the next. States, Destroy and Add name each version at most once; the
// store applies them in an order that its constraints allow.
type Update struct {
	Inst     [16]byte
	Kind     key.Kind
	KeyID    key.ID
	From     uint64   // the sequence number that has to be stored now
	Manifest Manifest // the new one, its Seq greater than From
	RotateAt int64
	Lease    *Lease        // under which it is done; nil if under none
	Add      *Version      // a new version, pending
	States   []StateChange // what becomes of versions that are there
	Destroy  []key.Version // versions that become tombstones: pending or disabled ones
}

// StateChange is a version's step from one state to another.
type StateChange struct {
	Number   key.Version
	From, To key.State
}

// Rewrap replaces the wrapped key of one version.
type Rewrap struct {
	ID     key.ID
	Old    []byte // the blob that has to be stored now
	Blob   []byte
	Parent key.ID // of a data key's version
	IKKID  []byte // of a root key's version
}
