package store

import (
	"context"

	"keyhold.example/keyhold/key"
)

// Fleet is what the processes that share an installation tell each other through its tables. Nothing that keeps keys
// right depends on it but for one thing: who destroys a version looks at the instances first. Each call is one
// transaction of its own.
type Fleet interface {
	// Sign writes that an instance lives and what it has seen, and reads the epochs as [Store.Epochs] does, in one
	// transaction. An instance that is not there, because it is new or was removed as gone, is registered, and Since is
	// then now; of one that is there Since alone stays as it was. An instance that breaks a rule of [Instance] is an
	// error. It returns when the commit is as durable as the database makes any: with synchronous standbys, when
	// these have it, whatever the session's default is. [ErrNotFound] if there is no installation; nothing is written
	// then.
	Sign(ctx context.Context, in Instance) (Epochs, error)

	// Leave removes an instance. It is no error if it is not there.
	Leave(ctx context.Context, id key.ID) error

	// Due lists at most limit keys at which there is something to do, from the first after the given one, or from the
	// beginning if that is zero: in the order of At, KeyID (by its bytes) and Why. Only those of the given buckets are
	// listed; a key that is due for several reasons comes once for each.
	Due(ctx context.Context, buckets BucketSet, after Due, limit int) ([]Due, error)

	// Upcoming is the time now, and the first rotate_at that is later, whatever bucket its key is in; 0 if there is
	// none. Of keys that are due by now it says nothing.
	Upcoming(ctx context.Context) (now, at int64, err error)

	// Lagging lists at most limit scopes with a data key version that is not wrapped under the head of its root key,
	// after the one with the given root key, by the root key's id, and what to give for the next page: empty if that
	// was the last one. It looks at a bounded number of rows, so a page may have fewer scopes, or none.
	Lagging(ctx context.Context, after key.ID, limit int) (scopes []key.Scope, next key.ID, err error)

	// Lease gives a name to owner for the given number of seconds from now, unless somebody else has it, or is just
	// about to get it, when it returns false. Of an owner who has it already it keeps its fence; else the fence is one
	// that the name never had before. Expired leases can be taken by anybody, by the database's clock: one that was
	// given for 0 seconds is over at once. Fewer are an error, and more than 2^31-1, and names and owners that break a
	// rule of [Lease].
	Lease(ctx context.Context, name string, owner key.ID, seconds int64) (Lease, bool, error)

	// Release ends a lease before its time, if it is held. It is no error if it is not, or if somebody else has it by
	// now.
	Release(ctx context.Context, l Lease) error

	// Tidy removes some of what nobody needs any more, and says whether there may be more: who calls it until there is
	// not has it all removed, but for what others are at. It adds up the epochs' rows, without changing an epoch, and
	// removes instances that have been gone for a day. What keeps the fences of a name from coming twice stays. It does
	// no more than takes about a second, and may run beside anything, itself also; it waits for nobody but where the
	// whole database has one writer.
	Tidy(ctx context.Context) (more bool, err error)
}

// Instance is a process that seals with keys that it has read earlier, or keeps them right.
type Instance struct {
	ID   key.ID          // ki_ and base32hex of 16 random bytes
	Name string          // for people: where it runs; at most 255 bytes of UTF-8, none of them zero; may be empty
	Seen [Buckets]uint64 // epochs, none over 2^63-1: it uses nothing any more that was read before these
	Life int64           // seconds, not negative, for which it may go on sealing after a sign, and a minute: then it is gone
	Slot key.ID          // the root slot by which it opened the installation; at most 64 bytes of ASCII, may be empty

	Since, Signed int64 // when it first and last signed; set by the store
}

// Gone says whether, at the given time, the instance seals no more, unless it signs again first.
func (in *Instance) Gone(now int64) bool { return now-in.Signed > in.Life }

// HasSeen says whether the instance has seen everything of a bucket's keys that was committed when its epoch was the
// given one.
func (in *Instance) HasSeen(bucket int, epoch uint64) bool { return in.Seen[bucket] >= epoch }

// Roll is the instances, and what there is for them to see.
type Roll struct {
	Now       int64           // the database's clock
	Epochs    [Buckets]uint64 // as [Store.Epochs] has them
	Instances []Instance      // gone ones also, by Since and ID
}

// Due is a key at which there is something to do, as a list of them has it; and where a list goes on, when only At,
// KeyID and Why count.
type Due struct {
	At      int64 // since when
	KeyID   key.ID
	Why     Why
	Scope   key.Scope
	Purpose key.Purpose // empty for a root key
	Head    key.Version
}

// Why is why a key is due.
type Why int

// The reasons, in their order.
const (
	Old     Why = 1 // its rotate_at has come; At is that
	Pending Why = 2 // its newest version is pending; At is when that was made
	Used    Why = 3 // four fifths of the messages that its head may seal were taken; At is when they were
)

func (w Why) String() string {
	switch w {
	case Old:
		return "old"
	case Pending:
		return "pending"
	case Used:
		return "used"
	default:
		return "unknown"
	}
}

// BucketSet is a set of buckets.
type BucketSet uint32

// AllBuckets has every bucket.
const AllBuckets = BucketSet(1<<Buckets - 1)

// Has says whether bucket b is in the set.
func (s BucketSet) Has(b int) bool { return s&(1<<b) != 0 }

// Lease is a name that one owner has for some time. It is held while the name has this owner and this fence, and its
// time is not over; its Until may have moved on. A write under a lease looks at that in its own transaction, and nobody
// else gets the name before that ends.
type Lease struct {
	Name  string // 1 to 64 bytes of ASCII, none of them zero
	Owner key.ID
	Fence int64 // grows with each new owner
	Until int64 // by the database's clock
}
