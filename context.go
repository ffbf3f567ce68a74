package keyhold

import (
	"errors"
	"fmt"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// AAD is what a plaintext belongs to, authenticated together with it: a ciphertext opens only with the same. [Context]
// makes it. The zero value is the empty context, which is to be chosen only where a ciphertext may be moved to any
// other place of the same key.
type AAD struct {
	parts envelope.Parts
	err   error
}

// Context names what a plaintext belongs to, from the general to the particular: table, column, id of the row. One part
// is its bytes; two to 255 parts are encoded so that no two lists of parts are alike. It never fails: what is wrong
// (too many or too long, 64 KiB in all; or one part that imitates the encoding of several) is an error of the call that
// it is given to.
func Context(parts ...string) (aad AAD) {
	aad.parts, aad.err = envelope.PartsOf(parts...)
	return aad
}

// invalid is what is wrong with it, if anything is.
func (a *AAD) invalid() error {
	if a.err == nil {
		return nil
	}
	if parts, ok := errors.AsType[*envelope.ContextError](a.err); ok {
		return key.Invalid("context", "", parts.Reason)
	}
	return fmt.Errorf("%w: %w", ErrTooLarge, a.err)
}
