//go:build pkcs11

package pkcs11

import (
	"errors"
	"fmt"
	"sync"

	"github.com/miekg/pkcs11"
)

// module is a loaded library of a token. A library is set up once in a process, and ended once, for all who use it: two
// roots in the same token share it, and the first that is closed must not end the other's.
type module struct {
	path  string
	ctx   *pkcs11.Ctx
	users int
}

var (
	loadedMu sync.Mutex
	loaded   = map[string]*module{}
)

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
	// Something else in this process may have set it up, and will end it.
	if err := ctx.Initialize(); err != nil && !errors.Is(err, pkcs11.Error(pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED)) {
		ctx.Destroy()
		return nil, fmt.Errorf("set %s up: %w", path, err)
	}
	m := &module{path: path, ctx: ctx, users: 1}
	loaded[path] = m
	return m, nil
}

// release ends the module when nobody uses it any more.
func (m *module) release() error {
	loadedMu.Lock()
	defer loadedMu.Unlock()
	m.users--
	if m.users > 0 {
		return nil
	}
	delete(loaded, m.path)
	err := m.ctx.Finalize()
	m.ctx.Destroy()
	return err
}
