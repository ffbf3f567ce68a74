package keyhold

import (
	"context"
	"fmt"
	"math"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Policy says when a key gets its next version, which [Manager.Run] makes. It is stored with the key and authenticated
// with it, so that all instances agree, whatever their own [Config] says.
type Policy struct {
	// RotateEvery is how old the newest version may get. Zero is 90 days, and 365 for a root key; negative is never.
	// It is rounded up to whole seconds, and at most a hundred years.
	RotateEvery time.Duration

	// MaxMessages is how many messages one version of a data key seals at most, over all instances. The next one is
	// made when four fifths are given out; when all are, sealing is [ErrUsedUp]. Zero is no limit. A key that is not
	// for messages has none. Each instance takes a part for itself, which grows to a sixty-fourth; what one that ends
	// has not used is lost: at most as many as it has sealed with the version. What a transaction of the application's
	// sealed may count only if that is committed, and is not to be kept otherwise. A limit that a key gets later counts
	// from the time that every instance has seen it, within 7 s; who wants all of a version's messages counted rotates
	// the key then.
	MaxMessages uint64
}

// The periods of keys for which no other was asked.
const (
	dataKeyPeriod = 90 * 24 * time.Hour
	rootKeyPeriod = 365 * 24 * time.Hour

	maxPeriod = 100 * 365 * 24 * time.Hour
)

// check returns the policy as a manifest has it.
func (p Policy) check(kind key.Kind, alg key.Alg) (store.Manifest, error) {
	every := p.RotateEvery
	switch {
	case every == 0 && kind == key.KEK:
		every = rootKeyPeriod
	case every == 0:
		every = dataKeyPeriod
	}
	seconds := uint64(0)
	if every > 0 {
		seconds = uint64((every-1)/time.Second) + 1
	}
	switch {
	case every > maxPeriod:
		return store.Manifest{}, key.Invalid("period", every.String(), "it is longer than a hundred years; never is negative")
	case p.MaxMessages > 0 && (kind == key.KEK || alg != key.Message):
		return store.Manifest{}, key.Invalid("number of messages", fmt.Sprint(p.MaxMessages), "only a data key for messages has a limit")
	case p.MaxMessages > math.MaxInt64:
		return store.Manifest{}, key.Invalid("number of messages", fmt.Sprint(p.MaxMessages), "it does not fit into 63 bits")
	}
	return store.Manifest{RotateEvery: seconds, MaxMessages: p.MaxMessages}, nil
}

// SetPolicy changes the policy of ref's key, or of the root key of its scope if the purpose is empty. If it already has
// that policy, nothing is written. A shorter period may make the key due at once. It takes two round trips. Errors:
// [*InvalidError], [ErrNotFound], [ErrRolledBack], [*IntegrityError], [ErrUnavailable].
func (m *Manager) SetPolicy(ctx context.Context, ref key.Ref, p Policy) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	r := m.committed()
	for {
		err := r.setPolicy(ctx, ref, p)
		if err == nil {
			return nil
		}
		if err := again(ctx, &r, err); err != nil {
			return fmt.Errorf("set the policy of %v: %w", ref, err)
		}
	}
}

func (r reader) setPolicy(ctx context.Context, ref key.Ref, p Policy) error {
	fam, k, err := r.forChange(ctx, ref)
	if err != nil {
		return err
	}
	head, _ := headOf(k)
	policy, err := p.check(k.Kind, head.Alg)
	if err != nil {
		return err
	}
	if err := r.timely(fam, k); err != nil {
		return err
	}
	changed := *k
	changed.RotateEvery, changed.MaxMessages = policy.RotateEvery, policy.MaxMessages
	if changed.Manifest.RotateEvery == k.RotateEvery && changed.MaxMessages == k.MaxMessages {
		return nil
	}
	return r.update(ctx, k, &changed, store.Update{})
}
