package kmsimport

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// RootError says that the external root does not open a root key: it is not the one that sealed it, or did not answer.
type RootError struct {
	Scope key.Scope
	ID    key.ID // of the root key's version
	KeyID string // what the root that sealed it called its key; empty if it did not say
	Err   error
}

func (e *RootError) Error() string {
	text := fmt.Sprintf("the root does not open root key version %s of scope %q", e.ID, e.Scope)
	if e.KeyID != "" {
		text += ", which was sealed with a key of the id " + e.KeyID
	}
	return text
}

// Unwrap returns what the root said.
func (e *RootError) Unwrap() error { return e.Err }

// Keys is the opened keys of one scope. It prints as the names of them.
type Keys struct {
	Scope key.Scope
	Keys  []keyhold.ImportedKey
}

// Clear overwrites the keys.
func (k Keys) Clear() {
	for _, from := range k.Keys {
		for _, v := range from.Versions {
			clear(v.Key)
		}
	}
}

// Open opens all keys of a scope: those of the root key with the external root, which is called once for each
// version, and with them those of the data keys. The caller clears what it gets. Errors: [*RootError]; one that names
// the version that does not open.
func (s Scope) Open(ctx context.Context, root Root) (_ Keys, err error) {
	opened := Keys{Scope: s.Scope}
	defer func() {
		if err != nil {
			opened.Clear()
		}
	}()
	parents := map[string]*seal.Key{}
	defer func() {
		for _, p := range parents {
			p.Close()
		}
	}()
	for i, from := range s.Keys {
		k := keyhold.ImportedKey{ID: from.ID, Purpose: from.Purpose}
		for _, v := range from.Versions {
			var material []byte
			if i == 0 {
				material, err = s.openRootKey(ctx, root, v)
			} else {
				material, err = openDataKey(parents, v)
			}
			if err != nil {
				break
			}
			k.Versions = append(k.Versions, keyhold.ImportedVersion{ID: v.ID, Number: v.Number, Created: v.Created, Key: material})
			if i > 0 {
				continue
			}
			if parents[string(v.ID)], err = asParent(from.ID, material); err != nil {
				break
			}
		}
		opened.Keys = append(opened.Keys, k)
		if err != nil {
			return opened, err
		}
	}
	return opened, nil
}

func (s Scope) openRootKey(ctx context.Context, root Root, v Version) (material []byte, err error) {
	info, err := parse(v)
	if err != nil {
		return nil, err
	}
	defer func() {
		// Some wrappers panic on a ciphertext that is too short.
		if r := recover(); r != nil {
			material, err = nil, &RootError{s.Scope, v.ID, info.GetKeyInfo().GetKeyId(), errors.New("the wrapper panicked")}
		}
	}()
	material, err = root.Decrypt(ctx, info)
	if err != nil {
		return nil, &RootError{s.Scope, v.ID, info.GetKeyInfo().GetKeyId(), err}
	}
	return material, nil
}

// asParent is a root key's version for opening the data keys below it.
func asParent(id key.ID, material []byte) (*seal.Key, error) {
	copied := secret.New(bytes.Clone(material))
	defer copied.Clear()
	return seal.FromBytes(seal.Identity{Kind: key.KEK, RootKeyID: id, Alg: key.Imported}, copied)
}

func openDataKey(parents map[string]*seal.Key, v Version) ([]byte, error) {
	info, err := parse(v)
	if err != nil {
		return nil, err
	}
	id := info.GetKeyInfo().GetKeyId()
	parent := parents[id]
	if parent == nil {
		return nil, fmt.Errorf("key version %s is sealed with %q, which is not there", v.ID, id)
	}
	material, err := parent.OpenImported(info.GetCiphertext(), nil)
	if err != nil {
		return nil, fmt.Errorf("key version %s does not open with %s", v.ID, id)
	}
	return material, nil
}

func parse(v Version) (*wrapping.BlobInfo, error) {
	var info wrapping.BlobInfo
	if err := proto.Unmarshal(v.Blob, &info); err != nil {
		return nil, fmt.Errorf("what is stored as key version %s is no BlobInfo", v.ID)
	}
	return &info, nil
}

// Root is what is needed of an external root; every go-kms-wrapping Wrapper is one.
type Root interface {
	Decrypt(ctx context.Context, info *wrapping.BlobInfo, options ...wrapping.Option) ([]byte, error)
}

// aeadRoot opens what go-kms-wrapping's aead wrapper sealed.
type aeadRoot struct {
	key *seal.Key
	id  string
}

// AEADRoot is what opens what go-kms-wrapping's aead wrapper sealed with the key in a file: in base64, as that
// wrapper's configuration has it. id is what that calls the key; only errors say it. No error holds anything of the
// file.
func AEADRoot(path, id string) (Root, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	text = bytes.TrimSpace(text)
	material := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	defer clear(material)
	n, err := base64.StdEncoding.Decode(material, text)
	if err != nil {
		return nil, errors.New("it does not hold a key in base64")
	}
	if n != 16 && n != 24 && n != 32 {
		return nil, fmt.Errorf("its key has %d bytes, and AES has keys of 16, 24 or 32", n)
	}
	// Only such a key opens what was sealed elsewhere; that it is no root key does not matter to that.
	k, err := asParent("krk_root", material[:n])
	if err != nil {
		return nil, err
	}
	return aeadRoot{k, id}, nil
}

// Decrypt opens with no additional authenticated data, which extras/kms never gives.
func (r aeadRoot) Decrypt(_ context.Context, info *wrapping.BlobInfo, _ ...wrapping.Option) ([]byte, error) {
	plaintext, err := r.key.OpenImported(info.GetCiphertext(), nil)
	if err != nil {
		return nil, fmt.Errorf("the key given as %q does not open it", r.id)
	}
	return plaintext, nil
}
