package keyhold

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"keyhold.example/keyhold/internal/rotor"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Defaults of [Config].
const (
	DefaultTimeout = 30 * time.Second
	DefaultSealFor = 15 * time.Minute
	maxSealFor     = 7 * 24 * time.Hour
	DefaultOpenFor = 24 * time.Hour
	DefaultGrace   = 7 * 24 * time.Hour
)

// Durability says when a key may seal.
type Durability int

// The durabilities.
const (
	// SameDatabase: as soon as its commit was read. What is sealed is kept in the same database, so that a failover
	// which loses the key loses what it sealed with it.
	SameDatabase Durability = iota

	// Acknowledged: when a later commit of this process was acknowledged as durably as the database makes any. For
	// ciphertext that is kept outside the database, where that has synchronous standbys: a failover to one of them
	// loses no key that ever sealed. A key that is not in use yet takes one more round trip, and sealing with it is
	// refused while no standby answers. An administrator who cancels that commit while it waits defeats it.
	Acknowledged
)

// Config is how a [Manager] works. [New] copies it and checks all of it; changing it afterwards changes nothing.
type Config struct {
	// Root is the external root: any go-kms-wrapping wrapper, configured and ready. Required. It is called by New once,
	// and three times where it makes an installation; later only for an installation key that is new: see
	// [Manager.Rekey]. One that ignores its context may still be at work when New has returned.
	Root wrapping.Wrapper

	// OldRoots are roots that Root takes the place of. Where Root has no slot, the one of them that is the active one
	// gives it one, which becomes the active one: once, whichever of any number of processes is first. Where none of
	// them is, New returns [ErrOldRoot]: this may be a deployment that is over. [Recover] is for when it is not. A root
	// whose slot was removed gets no other one like that, but by [Manager.AddRoot]. It
	// takes one call to that root, and two to Root. The slots of old roots stay until they are removed; with Root in
	// its slot no old root is called, so that OldRoots may be configured for as long as is convenient.
	OldRoots []wrapping.Wrapper

	// RemoveRootsAfter is for how long a root that was the active one keeps its slot after another became that: then
	// [Manager.Run] removes it, as [Manager.RemoveRoot] does, as soon as no live instance depends on it; it looks every
	// hour. Zero is for ever; otherwise a minute at least.
	RemoveRootsAfter time.Duration

	// Purposes, RawPurposes and IndexPurposes are the data keys that every scope gets when it is created: for
	// messages, for raw bytes that the application uses itself, for blind indexes. A purpose stands in one of them,
	// once. What a purpose's key is for is fixed when the key is made. None is needed to use keys that are there.
	Purposes      []key.Purpose
	RawPurposes   []key.Purpose
	IndexPurposes []key.Purpose

	// Generators make the versions of raw keys that name them ([RawKey]), besides those that every process has
	// ([DefaultGenerator]). A process that lacks the one of a key leaves its rotation to others. The name is 1 to 255
	// bytes, of the form of a purpose.
	Generators map[string]Generator

	// Policies are the policies of new keys, by purpose; that of root keys stands under the empty purpose. Any other
	// key in it has to be one of the purposes above. A purpose that is not in it has the zero [Policy]. Keys that are
	// there keep theirs until [Manager.SetPolicy] changes it.
	Policies map[key.Purpose]Policy

	// Initialize makes what is not there yet: the tables, the installation key, and its first slot. It never changes
	// an installation that is there. The default is to make nothing: an empty database is then [ErrNotInitialized].
	Initialize bool

	// Pins are the pins of which the installation must have one, as [Manager.Pin] and "keyhold init" print them: 64
	// hexadecimal digits. With a pin, whoever can write to the database cannot put an installation of their own in
	// its place; an empty database is then [ErrPin], also with Initialize. The default accepts any installation that
	// Root opens.
	//
	// A rekey changes the pin. While it lasts, one pin, that of before, lets in a new installation key that was
	// announced with the one that has it; of more than one, the new key's has to be among them. When it is over,
	// processes that start need the new one. A pin that is not needed any more is to be taken out: whoever has had that
	// installation key could put it back, and the next rekey is refused.
	Pins []string

	// Strict makes every call read its key anew, so that none works with what the database no longer holds. The
	// default asks every 5 s whether any key has changed, and uses what it has read until then: a change is noticed
	// by every other process 5 s later, and at once by the one that made it, unless that was inside the application's
	// transaction; a version that another one made a moment ago opens at once.
	Strict bool

	// SealFor and OpenFor are for how long a key that was used before goes on sealing and opening while the database
	// does not answer, counted from its last answer, and for sealing from the last time that this process told the
	// others that it seals, which may be a minute before; then calls return [ErrStale]. So an instance that is cut off
	// seals with a version that was retired elsewhere for SealFor at most. Zero is [DefaultSealFor] and
	// [DefaultOpenFor]; less than 5 s, or negative, is 5 s, which is how long nobody asks anyway. SealFor is 7 days at
	// most: who destroys a version has to wait for so long for an instance that died. What a machine was suspended for
	// counts.
	SealFor, OpenFor time.Duration

	// CacheKeys is how many data keys, and as many versions, are kept ready at most. Zero is 32,768. One more has the
	// one that was not used for longest read again. A key that has sealed takes at most 2 KiB, of which 1 KiB is for
	// its one version, 0.4 KiB more where each key was first used in another minute, and about 1 KiB more where its
	// policy limits its messages.
	CacheKeys int

	// CacheFor is for how long a key is used before it is read again though nothing says that it has changed, while the
	// database answers. Zero is ten minutes. A change is noticed much sooner (Strict); this is against who hides one.
	CacheFor time.Duration

	// MaintainEvery is how often Run looks for what is to be rewrapped, given up, or removed of old roots; of all
	// instances one does it. Zero is an hour; otherwise a minute at least.
	MaintainEvery time.Duration

	// LeaseFor is for how long the others wait for an instance that died at its work before they go on with it. Zero is
	// a minute; otherwise 10 s to an hour. What one key takes has to be less than half of it.
	LeaseFor time.Duration

	// Durability says when a new key may seal; it matters to whoever keeps ciphertext outside the database.
	Durability Durability

	// Grace is for how long a version has to have been disabled before [Manager.Destroy] destroys it. Zero is
	// [DefaultGrace]; negative is no time at all.
	Grace time.Duration

	// Cleanup says which old versions [Manager.Run] gives up. The zero value is none.
	Cleanup Cleanup

	// Logger gets the events of Run and Sweep; nil is nobody. So does OnEvent, which is called by the goroutine that
	// did what it tells, and must not call Close.
	Logger  *slog.Logger
	OnEvent func(context.Context, Event)

	// Meter and Tracer are where metrics and traces go: docs/operations.md (Watching) lists them. Nil is nowhere: what
	// is registered globally with OpenTelemetry is not used. Spans are made for what takes a round trip, and none where
	// a key is at hand. Labels and attributes are ids, numbers and the purposes of keys that are there, which should
	// therefore be few and say nothing about anybody; scopes and texts of errors are in none. The metrics that are read
	// from time to time are removed by Close.
	Meter  metric.MeterProvider
	Tracer trace.TracerProvider

	// Timeout limits each call, besides the context that is given to it; of Scopes and Rewrap, which may have much
	// to do, it limits each step, and of Check the opening of each scope's keys. Zero is [DefaultTimeout]; negative
	// is no limit.
	Timeout time.Duration
}

// settings is a Config that was checked.
type settings struct {
	root       wrapping.Wrapper
	oldRoots   []wrapping.Wrapper
	purposes   []purposeOf
	initialize bool
	pins       [][32]byte
	strict     bool
	timeout    time.Duration
	sealFor    time.Duration
	openFor    time.Duration
	durability Durability
	grace      time.Duration
	rootPolicy store.Manifest
	cleanup    Cleanup
	logger     *slog.Logger
	onEvent    func(context.Context, Event)

	removeRootsAfter time.Duration

	generators    map[string]Generator
	cached        int
	snapshotLife  time.Duration
	maintainEvery time.Duration
	leaseFor      time.Duration
}

type purposeOf struct {
	purpose key.Purpose
	alg     key.Alg
	policy  store.Manifest
}

func (c Config) check(needsRoot bool) (settings, error) {
	s := settings{root: c.Root, initialize: c.Initialize, strict: c.Strict, timeout: c.Timeout}
	if err := c.checkRoots(needsRoot); err != nil {
		return settings{}, err
	}
	s.oldRoots, s.removeRootsAfter = slices.Clone(c.OldRoots), c.RemoveRootsAfter
	if err := errors.Join(c.checkGenerators(), c.checkTimes()); err != nil {
		return settings{}, err
	}
	s.generators = maps.Clone(c.Generators)
	s.cached, s.snapshotLife = cmp.Or(c.CacheKeys, defaultCached), cmp.Or(c.CacheFor, defaultSnapshotLife)
	s.maintainEvery, s.leaseFor = cmp.Or(c.MaintainEvery, maintainEvery), cmp.Or(c.LeaseFor, rotor.DefaultLease)
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	s.sealFor, s.openFor = orDefault(c.SealFor, DefaultSealFor), orDefault(c.OpenFor, DefaultOpenFor)
	if c.SealFor > maxSealFor {
		return settings{}, key.Invalid("Config.SealFor", c.SealFor.String(), fmt.Sprintf("it is longer than %v, for which others may have to wait", maxSealFor))
	}
	s.durability, s.grace, s.logger, s.onEvent = c.Durability, c.Grace, c.Logger, c.OnEvent
	s.cleanup = Cleanup{After: c.Cleanup.After, Purposes: slices.Clone(c.Cleanup.Purposes)}
	if s.grace == 0 {
		s.grace = DefaultGrace
	}
	seen := map[key.Purpose]bool{}
	for _, list := range []struct {
		alg      key.Alg
		purposes []key.Purpose
	}{{key.Message, c.Purposes}, {key.Raw, c.RawPurposes}, {key.BlindIndex, c.IndexPurposes}} {
		for _, p := range list.purposes {
			if err := p.Validate(); err != nil {
				return settings{}, err
			}
			if seen[p] {
				return settings{}, key.Invalid("purpose", string(p), "it is configured twice")
			}
			seen[p] = true
			policy, err := c.Policies[p].check(key.DEK, list.alg)
			if err != nil {
				return settings{}, fmt.Errorf("policy of %q: %w", p, err)
			}
			s.purposes = append(s.purposes, purposeOf{p, list.alg, policy})
		}
	}
	for p := range c.Policies {
		if p != "" && !seen[p] {
			return settings{}, key.Invalid("purpose", string(p), "it has a policy, and is in none of the lists of purposes")
		}
	}
	var err error
	if s.rootPolicy, err = c.Policies[""].check(key.KEK, key.Message); err != nil {
		return settings{}, fmt.Errorf("policy of root keys: %w", err)
	}
	if err := c.Cleanup.check(s.purposes); err != nil {
		return settings{}, err
	}
	if c.Durability != SameDatabase && c.Durability != Acknowledged {
		return settings{}, key.Invalid("durability", fmt.Sprint(int(c.Durability)), "it is SameDatabase or Acknowledged")
	}
	for _, text := range c.Pins {
		pin, err := hex.DecodeString(text)
		if err != nil || len(pin) != 32 {
			return settings{}, key.Invalid("pin", text, "it has to be 64 hexadecimal digits, as \"keyhold init\" prints them")
		}
		s.pins = append(s.pins, [32]byte(pin))
	}
	return s, nil
}

func (c Config) checkTimes() error {
	switch {
	case c.CacheKeys < 0:
		return key.Invalid("Config.CacheKeys", fmt.Sprint(c.CacheKeys), "it is negative")
	case c.CacheFor < 0 || c.CacheFor > maxPeriod:
		return key.Invalid("Config.CacheFor", c.CacheFor.String(), "it is negative, or longer than a hundred years")
	case c.MaintainEvery != 0 && (c.MaintainEvery < time.Minute || c.MaintainEvery > maxPeriod):
		return key.Invalid("Config.MaintainEvery", c.MaintainEvery.String(), "it is a minute to a hundred years")
	case c.LeaseFor != 0 && (c.LeaseFor < 10*time.Second || c.LeaseFor > time.Hour):
		return key.Invalid("Config.LeaseFor", c.LeaseFor.String(), "it is 10 s to an hour")
	}
	return nil
}

func (c Config) checkRoots(needed bool) error {
	switch {
	case c.Root == nil && needed:
		return errors.New("Config.Root is required: an external root, such as localroot.Open(\"root.key\")")
	case slices.Contains(c.OldRoots, nil):
		return errors.New("Config.OldRoots: one of them is nil")
	case c.RemoveRootsAfter != 0 && c.RemoveRootsAfter < time.Minute:
		return key.Invalid("Config.RemoveRootsAfter", c.RemoveRootsAfter.String(), "it is less than a minute")
	}
	return nil
}

// policyOf is the policy of a new data key for messages.
func (s settings) policyOf(p key.Purpose) store.Manifest {
	for _, of := range s.purposes {
		if of.purpose == p {
			return of.policy
		}
	}
	policy, _ := Policy{}.check(key.DEK, key.Message) // the zero policy is a right one
	return policy
}

// orDefault is for how long what is known will do without the database.
func orDefault(d, otherwise time.Duration) time.Duration {
	switch {
	case d == 0:
		return otherwise
	default:
		return max(d, epochLife)
	}
}

// limited is d, or the configured limit if that is less.
func (s settings) limited(d time.Duration) time.Duration {
	if s.timeout < 0 {
		return d
	}
	return min(d, s.timeout)
}

// bound puts the configured limit on ctx, so that no call of ours waits for ever.
func (s settings) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.timeout < 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.timeout,
		fmt.Errorf("no answer within %v (Config.Timeout): %w: %w", s.timeout, ErrUnavailable, context.DeadlineExceeded))
}
