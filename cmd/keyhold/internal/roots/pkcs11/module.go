//go:build pkcs11

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/miekg/pkcs11"
)

// module is a loaded library of a token. A library is set up once in a process, and ended once, for all who use it: two
// roots in the same token share it, and the first that is closed must not end the other's.
type module struct {
	path  string
	ctx   *pkcs11.Ctx
	users int // guarded by loadedMu

	// Calls of the library hold this for reading. Whoever sets it up or ends it holds it alone.
	inUse sync.RWMutex
	ready bool // the library is set up
	ours  bool // it was set up here, so it may be ended here
	gone  bool // the last user let go of it

	// A session for each slot that stays open, since the token forgets the login with the last session of a process.
	loginMu sync.Mutex
	logins  map[uint]pkcs11.SessionHandle
}

var (
	loadedMu sync.Mutex
	loaded   = map[string]*module{}
)

// load loads a library, and does not set it up yet.
func load(path string) (*module, error) {
	loadedMu.Lock()
	defer loadedMu.Unlock()
	if m := loaded[path]; m != nil {
		m.users++
		return m, nil
	}
	ctx := pkcs11.New(path)
	if ctx == nil {
		return nil, fmt.Errorf("load %s: it is not there, or is no library of PKCS #11", path)
	}
	m := &module{path: path, ctx: ctx, users: 1, logins: map[uint]pkcs11.SessionHandle{}}
	loaded[path] = m
	return m, nil
}

// release ends the module when nobody uses it any more. A call that nobody waits for may still be in the library: then
// it stays as it is, since what is ended under a call crashes.
func (m *module) release() error {
	loadedMu.Lock()
	defer loadedMu.Unlock()
	m.users--
	if m.users > 0 {
		return nil
	}
	delete(loaded, m.path)
	if !m.inUse.TryLock() {
		return nil
	}
	defer m.inUse.Unlock()
	err := m.end()
	m.gone = true
	m.ctx.Destroy()
	return err
}

// enter has the library set up, and keeps it so until leave.
func (m *module) enter() error {
	for {
		m.inUse.RLock()
		if m.ready {
			return nil
		}
		m.inUse.RUnlock()
		if err := m.setUp(); err != nil {
			return err
		}
	}
}

func (m *module) leave() { m.inUse.RUnlock() }

func (m *module) setUp() error {
	m.inUse.Lock()
	defer m.inUse.Unlock()
	if m.ready {
		return nil
	}
	if m.gone {
		return fmt.Errorf("set %s up: the root was closed", m.path)
	}
	err := m.ctx.Initialize()
	// Something else in this process may have set it up, and will end it.
	if m.ours = err == nil; !m.ours && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		return fmt.Errorf("set %s up: %w", m.path, err)
	}
	m.ready = true
	return nil
}

// end undoes setUp. Whoever calls it holds inUse alone.
func (m *module) end() error {
	its := m.ready && m.ours
	m.ready = false
	if !its {
		return nil
	}
	clear(m.logins)
	return m.ctx.Finalize()
}

// pauses are those before each further attempt.
var pauses = [...]time.Duration{
	20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond, 160 * time.Millisecond, 320 * time.Millisecond,
}

// persist calls f, and again when the module fails, or does not find what is asked for. SoftHSM does that while another
// process logs in, because a login writes the token's file, and then stays so until the library is set up again. What
// the token said about the PIN is never asked twice: a token locks itself after some wrong ones.
//
// If an attempt fails in the module, and a later one finds no key, the module's error stands.
func (m *module) persist(ctx context.Context, f func() error) error {
	var failed error
	for attempt := 0; ; attempt++ {
		err := f()
		if !again(err) {
			return err
		}
		if failed == nil || !errors.Is(err, ErrNoKey) {
			failed = err
		}
		if attempt == len(pauses) {
			return failed
		}
		pause := time.NewTimer(pauses[attempt])
		select {
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("%w: %w", ctx.Err(), failed)
		case <-pause.C:
		}
		if m.inUse.TryLock() { // otherwise the library serves somebody else, and is as good as new for that one
			_ = m.end() // it is in a state of which nothing is expected
			m.inUse.Unlock()
		}
	}
}

// again says whether an error may go away by itself.
func again(err error) bool {
	code, ok := errors.AsType[pkcs11.Error](err)
	switch {
	case !ok:
		return errors.Is(err, ErrNoKey)
	case code == pkcs11.CKR_USER_PIN_NOT_INITIALIZED, code == pkcs11.CKR_USER_NOT_LOGGED_IN: // no PIN was tried
		return true
	}
	return !errors.Is(err, ErrPIN) && !errors.Is(err, ErrRefused) && !errors.Is(err, ErrOpen)
}
