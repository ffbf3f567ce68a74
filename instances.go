package keyhold

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// lifeMargin is how much longer than it may seal an instance counts as live: its clock and the database's need not run
// alike.
const lifeMargin = time.Minute

// InstanceInfo is a process that seals with what it has read earlier, or has [Manager.Run] at work, as it registered
// itself.
type InstanceInfo struct {
	ID     string
	Name   string // its host, program and process id
	Since  time.Time
	Signed time.Time // when it last gave a sign, by the database's clock
	Until  time.Time // when it counts as gone unless it gives another: a minute after it may seal no more
	Gone   bool      // whether that is so long ago that it cannot seal any more
	Slot   key.ID    // the root slot by which it opened the installation
	Self   bool      // whether it is this Manager
}

// newEpochs makes the epochs' side of m, and what m is called among the instances.
func (m *Manager) newEpochs() (*epochs, error) {
	id, err := seal.RandomID(key.PrefixInstance)
	if err != nil {
		return nil, err
	}
	m.self = store.Instance{ID: id, Name: processName(), Life: int64((m.sealFor + lifeMargin) / time.Second)}
	life, end := context.WithCancel(context.Background()) //nolint:forbidigo // it ends with Close
	clock, mono := clocks()
	return &epochs{
		life: life, end: end, limit: m.limited(askLimit),
		slot:      func() key.ID { return m.slots.Load().own },
		clock:     clock,
		mono:      mono,
		telemetry: &m.telemetry,
		lives:     [2]time.Duration{opens: m.openFor, seals: m.sealFor},
		read: func(ctx context.Context, signs bool, seen [store.Buckets]uint64) (store.Epochs, error) {
			if !signs {
				return m.store.Epochs(ctx)
			}
			self := m.self
			self.Seen, self.Slot = seen, m.slots.Load().own
			e, err := m.store.Sign(ctx, self)
			if errors.Is(err, store.ErrUnknownOutcome) { // the next one says the same: it matters to nobody
				err = &wordedError{err.Error(), []error{ErrUnavailable}}
			}
			return e, err
		},
	}, nil
}

// processName is for people who look for the process.
func processName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	name := fmt.Sprintf("%s %s %d", host, filepath.Base(os.Args[0]), os.Getpid())
	name = strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, name), "?")
	return strings.ToValidUTF8(name[:min(len(name), 255)], "")
}

// changed says that m has changed a key of the root key or the scope, or may have.
func (m *Manager) changed(root key.ID, scope key.Scope) {
	m.cache.forget(root, scope)
	m.epochs.changed()
	signal(m.ownChange)
}

// changedKey is changed for one key alone: of a data key the others of its scope stay as they are.
func (m *Manager) changedKey(k *store.Key) {
	if k.Kind == key.KEK {
		m.changed(k.ID, "")
		return
	}
	m.cache.forgetKey(k.ID, key.Ref{Scope: k.Scope, Purpose: k.Purpose})
	m.epochs.changed()
	signal(m.ownChange)
}

// Instances lists the processes that seal with keys of this installation or have [Manager.Run] at work, oldest first,
// and those that did and are gone for less than a day. One that only opens without Run, or without Run has
// [Config.Strict] set, is not among them. It takes one round trip.
func (m *Manager) Instances(ctx context.Context) ([]InstanceInfo, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	roll, err := m.store.Roll(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]InstanceInfo, 0, len(roll.Instances))
	for i := range roll.Instances {
		infos = append(infos, m.instanceInfo(&roll.Instances[i], roll.Now))
	}
	return infos, nil
}

func (m *Manager) instanceInfo(in *store.Instance, now int64) InstanceInfo {
	return InstanceInfo{
		ID: string(in.ID), Name: in.Name, Gone: in.Gone(now), Self: in.ID == m.self.ID,
		Since: time.Unix(in.Since, 0).UTC(), Signed: time.Unix(in.Signed, 0).UTC(),
		Until: time.Unix(in.Signed+in.Life, 0).UTC(), Slot: in.Slot,
	}
}

// UnseenError says which instances may still work with what a key was before its last change.
type UnseenError struct{ Instances []InstanceInfo }

func (e *UnseenError) Error() string {
	return "instances that have not seen the last change yet: " + instanceNames(e.Instances)
}

func instanceNames(instances []InstanceInfo) string {
	var names []string
	for _, in := range instances {
		switch {
		case in.Self && in.Signed.IsZero():
			names = append(names, fmt.Sprintf("%q (this process)", in.Name))
		default:
			names = append(names, fmt.Sprintf("%q (last sign %s, live until %s)",
				in.Name, in.Signed.Format(time.RFC3339), in.Until.Format(time.RFC3339)))
		}
	}
	return strings.Join(names, ", ")
}

// unseen is an [*UnseenError] if a live instance other than m may not have seen the committed epochs of the given
// buckets.
func (m *Manager) unseen(roll store.Roll, buckets store.BucketSet, committed [store.Buckets]uint64) error {
	var unseen []InstanceInfo
	for i := range roll.Instances {
		in := &roll.Instances[i]
		if in.ID != m.self.ID && !in.Gone(roll.Now) && !hasSeen(in, buckets, committed, roll.Epochs) {
			unseen = append(unseen, m.instanceInfo(in, roll.Now))
		}
	}
	if len(unseen) == 0 {
		return nil
	}
	return &UnseenError{unseen}
}

// hasSeen says whether an instance has seen the committed epochs. One that has seen more than there is by now knows a
// database that has since lost something.
func hasSeen(in *store.Instance, buckets store.BucketSet, committed, now [store.Buckets]uint64) bool {
	for b, epoch := range committed {
		if buckets.Has(b) && (!in.HasSeen(b, epoch) || in.Seen[b] > now[b]) {
			return false
		}
	}
	return true
}

// awaitEvery is how often AwaitInstances looks.
const awaitEvery = 500 * time.Millisecond

// AwaitInstances returns when every live instance has seen all that was committed of any key before the call, which
// takes two of their questions, about ten seconds: from then on none of them seals with a version that was retired
// before, and none opens with one that was disabled. An instance that is silent counts as gone, and is not waited for
// any more, a minute after the time for which it may seal without the database. When ctx ends, the error is an
// [*UnseenError] that names the others, and ctx's. [Config.Timeout] does not limit it.
func (m *Manager) AwaitInstances(ctx context.Context) error {
	var committed *[store.Buckets]uint64
	var unseen *UnseenError
	for {
		err := m.step(ctx, func(ctx context.Context) error {
			roll, err := m.store.Roll(ctx)
			if err != nil {
				return err
			}
			if committed == nil {
				committed = &roll.Epochs
			}
			return m.unseen(roll, store.AllBuckets, *committed)
		})
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil && unseen != nil:
			return fmt.Errorf("%w: %w", unseen, store.ContextError(ctx))
		case !errors.As(err, &unseen):
			return err
		}
		timer := time.NewTimer(awaitEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// step is a call of its own, with the limit of one.
func (m *Manager) step(ctx context.Context, do func(context.Context) error) error {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	return do(ctx)
}
