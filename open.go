package keyhold

import (
	"fmt"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// parent opens the root key version that wraps others. What a caller's transaction shows is never kept: it may be
// rolled back.
func (r reader) parent(fam *store.Family, id key.ID) (*seal.Parent, error) {
	v, ok := versionByID(&fam.Root, id)
	switch {
	case !ok:
		return nil, tampered(&fam.Root, fmt.Sprintf("version %s is missing, which wraps a data key", id))
	case !v.State.Opens():
		return nil, fmt.Errorf("root key version %s is %v: %w", id, v.State, ErrDisabled)
	}
	if o, ok := r.m.cache.find(v); ok {
		return o.parent, nil
	}
	k, err := r.unwrap(fam, &fam.Root, v)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	parent, err := k.Parent()
	if err != nil {
		return nil, fmt.Errorf("root key version %s: %w", id, err)
	}
	if r.tx {
		return parent, nil
	}
	return r.m.cache.keep(id, opened{commit: k.Commit(), parent: parent}).parent, nil
}

// messages opens a data key version for sealing and opening messages.
func (r reader) messages(fam *store.Family, data *store.Key, v *store.Version) (*seal.MessageKey, error) {
	if v.Alg != key.Message {
		return nil, fmt.Errorf("%s is of alg %v: %w", describe(data), v.Alg, ErrPurpose)
	}
	if o, ok := r.m.cache.find(v); ok {
		return o.messages, r.checkParent(fam, v)
	}
	k, err := r.unwrap(fam, data, v)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	messages, err := k.Messages()
	if err != nil {
		return nil, fmt.Errorf("key version %s: %w", v.ID, err)
	}
	if r.tx {
		return messages, nil
	}
	return r.m.cache.keep(v.ID, opened{commit: k.Commit(), messages: messages}).messages, nil
}

// checkParent says for a version that is cached what unwrapping it would say of its parent.
func (r reader) checkParent(fam *store.Family, v *store.Version) error {
	_, err := r.parent(fam, v.Parent)
	return err
}

// unwrap opens the wrapped key of a version of the root key or of a data key of fam. The caller closes what it gets.
func (r reader) unwrap(fam *store.Family, k *store.Key, v *store.Version) (*seal.Key, error) {
	var parent *seal.Parent
	if k.Kind == key.KEK {
		parent = r.m.ik.Parent()
		kid := parent.KID()
		if string(v.IKKID) != string(kid[:]) {
			return nil, tampered(k, fmt.Sprintf("version %d is wrapped under another installation key", v.Number))
		}
	} else {
		var err error
		if parent, err = r.parent(fam, v.Parent); err != nil {
			return nil, err
		}
	}
	// The manifest check has established that the commitment has 32 bytes and that the id follows from it.
	opened, err := parent.Unwrap(r.m.identity(fam, k, v.Alg), v.Number, v.Created, [32]byte(v.Commit), v.Blob)
	if err != nil {
		return nil, tampered(k, fmt.Sprintf("the wrapped key of version %d does not open", v.Number))
	}
	return opened, nil
}
