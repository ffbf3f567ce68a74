package keyhold

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Names of the things that keyhold manages; package key describes them.
type (
	Scope   = key.Scope
	Purpose = key.Purpose
	Ref     = key.Ref
	Version = key.Version
)

// Manager seals, opens, creates and rotates the keys of one installation. It is safe for concurrent use.
type Manager struct {
	settings
	store  store.Store
	ring   *keyring
	slots  atomic.Pointer[slots]
	cache  *cache
	epochs *epochs
	self   store.Instance

	// Apart, as the ids of key versions come with ciphertext from whoever sends it.
	unknownIDs, unknownRefs *limiter

	telemetry telemetry
	watch     watch
	hotKeys   hotKeys
	standing  atomic.Pointer[standing] // by which they are used

	// What one goroutine tells another, once of many times.
	heard     chan struct{} // a key has changed somewhere
	ownChange chan struct{} // m has changed one

	adopting   chan struct{} // held by whoever learns of a change of the slots
	unfollowed atomic.Pointer[unfollowed]

	made bool // by New

	mu     sync.RWMutex // held for reading by every call under way, so that Close waits for them
	closed bool
}

// New opens the installation in s with the external root of cfg, which it calls once. The store stays the caller's: it
// is not closed with the Manager. No goroutine is started.
//
// Where there is no installation, New returns [ErrNotInitialized], or makes one if cfg.Initialize is set; however many
// processes do so at once, all get the same. Other errors: a [*SchemaError] for tables of another version; [ErrRoot] if
// the root opens no slot, with [ErrRootUnavailable] if trying again may help; [ErrPin]; an [*IntegrityError] if the
// slots were changed behind keyhold's back; [ErrUnavailable].
//
// It takes two round trips to the database where there is an installation.
func New(ctx context.Context, s store.Store, cfg Config) (*Manager, error) {
	m, err := prepared(s, cfg, true)
	if err != nil {
		return nil, err
	}
	ctx, cancel := m.bound(ctx)
	defer cancel()
	in, err := m.installation(ctx)
	if err != nil {
		return nil, err
	}
	if err := m.openInstallation(ctx, in); err != nil {
		return nil, err
	}
	if err := m.telemetry.observe(m); err != nil {
		m.ring.close()
		return nil, fmt.Errorf("make the instruments of Config.Meter: %w", err)
	}
	for _, e := range m.warnings() {
		m.log(ctx, e) // the application's own hook may need m
	}
	return m, nil
}

// prepared is a Manager that has not opened the installation yet.
func prepared(s store.Store, cfg Config, needsRoot bool) (*Manager, error) {
	set, err := cfg.check(needsRoot)
	if err != nil {
		return nil, err
	}
	m := &Manager{settings: set, store: s, cache: newCache(set.cached)}
	if m.telemetry, err = newTelemetry(cfg.Meter, cfg.Tracer); err != nil {
		return nil, fmt.Errorf("make the instruments of Config.Meter: %w", err)
	}
	m.unknownIDs, m.unknownRefs = newLimiter(), newLimiter()
	m.adopting = make(chan struct{}, 1)
	m.heard, m.ownChange = make(chan struct{}, 1), make(chan struct{}, 1)
	m.epochs, err = m.newEpochs()
	return m, err
}

// warnings are what whoever runs the process should know when it starts.
func (m *Manager) warnings() (events []Event) {
	now := m.slots.Load()
	if err := now.oldRoot(); err != nil {
		events = append(events, Event{Kind: OldRoot, ID: now.own, Err: err})
	}
	if len(m.pins) == 0 {
		events = append(events, Event{Kind: NoPin})
	}
	return events
}

// Made says whether [New] made the installation, and did not find one or another process's.
func (m *Manager) Made() bool { return m.made }

// installation reads the installation, and makes it first if that is wanted and there is none.
func (m *Manager) installation(ctx context.Context) (store.Installation, error) {
	err := m.store.CheckSchema(ctx)
	var schema *store.SchemaError
	switch {
	case err == nil:
		in, err := m.store.Installation(ctx)
		if !errors.Is(err, store.ErrNotFound) {
			return in, err
		}
	case errors.As(err, &schema) && schema.Have == 0 && schema.Foreign == "":
		if m.initialize && len(m.pins) == 0 {
			err := m.store.Migrate(ctx)
			if errors.Is(err, store.ErrUnknownOutcome) && ctx.Err() == nil {
				err = m.store.Migrate(ctx)
			}
			if err != nil {
				return store.Installation{}, err
			}
		}
	default:
		return store.Installation{}, err
	}

	switch {
	case len(m.pins) > 0:
		return store.Installation{}, fmt.Errorf("%w: the database is empty; check its address, or remove the pin to make a new installation", ErrPin)
	case !m.initialize:
		return store.Installation{}, ErrNotInitialized
	}
	return m.makeInstallation(ctx)
}

// Pin is the pin of the installation, 64 hexadecimal digits. It is not secret. See [Config.Pins].
func (m *Manager) Pin() string { return m.ring.pinText() }

// Format prints that it is a Manager, and of which installation. Some external roots hold their keys in the open, and
// would be printed with the rest.
func (m *Manager) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "keyhold.Manager(pin %s)", m.Pin())
}

// Close waits for the calls under way and clears the keys that m holds. Calls that begin afterwards return [ErrClosed],
// and so does [Manager.Run], which has to be ended first. It does not wait for a call with a key in use, which may end
// with its result a moment after. The store and the external root stay as they are. Closing twice is allowed. It must
// not be called from within a call of m's.
//
// If m has sealed, Close tells the other instances, with one round trip of at most 2 s, that it does not any more. The
// error says that this was not possible: they count m as live for so long as it might have sealed.
func (m *Manager) Close() error {
	return errors.Join(m.close(), m.telemetry.unobserve())
}

func (m *Manager) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.epochs.close()
	m.cache.clear()
	m.hotKeys.slots.Store(nil)
	m.ring.close()
	ctx, cancel := context.WithTimeoutCause(context.Background(), askLimit, //nolint:forbidigo // there is no caller's
		fmt.Errorf("no answer within %v: %w: %w", askLimit, ErrUnavailable, context.DeadlineExceeded))
	defer cancel()
	if l, ok := m.store.(listener); ok && len(m.ownChange) > 0 {
		_ = l.Notify(ctx) // the others will ask anyway
	}
	if !m.epochs.registers() {
		return nil
	}
	if err := m.store.Leave(ctx, m.self.ID); err != nil {
		return fmt.Errorf("leave the other instances: %w", err)
	}
	return nil
}

// begin starts a call, which lasts until end is called: it limits the call's time and keeps m open meanwhile.
func (m *Manager) begin(ctx context.Context) (_ context.Context, end func(), _ error) {
	if !m.mu.TryRLock() { // Close has it, or waits for the calls: also for one that this one is a part of
		return nil, nil, ErrClosed
	}
	if m.closed {
		m.mu.RUnlock()
		return nil, nil, ErrClosed
	}
	ctx, cancel := m.bound(ctx)
	return ctx, func() { cancel(); m.mu.RUnlock() }, nil
}
