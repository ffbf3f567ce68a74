package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Check reads the whole installation, checks every rule that its rows have to keep and every manifest, and unwraps
// every key. It returns what it found wrong, nothing if all is well. The error says that the check itself could not be
// ended. It changes nothing.
func (m *Manager) Check(ctx context.Context) ([]store.Finding, error) {
	findings, err := m.checkRows(ctx)
	if err != nil {
		return findings, err
	}
	for scope, err := range m.Scopes(ctx) {
		if err != nil {
			return findings, err
		}
		found, err := m.checkScope(ctx, scope)
		if err != nil {
			return findings, err
		}
		findings = append(findings, found...)
	}
	return findings, nil
}

// checkRows checks what can be seen without keys, and the slots.
func (m *Manager) checkRows(ctx context.Context) ([]store.Finding, error) {
	_, err := m.Installation(ctx)
	var integrity *IntegrityError
	if err != nil && !errors.As(err, &integrity) {
		return nil, err
	}
	// It reads everything, so only the caller's own limit holds for it.
	findings, checkErr := store.Check(ctx, m.store)
	if err != nil {
		findings = append(findings, store.Finding{Subject: "installation", Problem: err.Error()})
	}
	return findings, checkErr
}

// checkScope checks the manifests of a scope's keys and unwraps all versions.
func (m *Manager) checkScope(ctx context.Context, scope key.Scope) ([]store.Finding, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	fam, err := m.store.Scope(ctx, scope)
	if err != nil {
		return nil, fmt.Errorf("scope %q: %w", scope, err)
	}
	var findings []store.Finding
	keys := []*store.Key{&fam.Root}
	for i := range fam.Data {
		keys = append(keys, &fam.Data[i])
	}
	for _, k := range keys {
		if err := m.verifyKey(k); err != nil {
			findings = append(findings, store.Finding{Subject: describe(k), Problem: err.Error()})
			continue
		}
		for i := range k.Versions {
			if err := m.checkVersion(&fam, k, &k.Versions[i]); err != nil {
				findings = append(findings, store.Finding{Subject: describe(k), Problem: err.Error()})
			}
		}
	}
	return findings, nil
}

// checkVersion unwraps a version from what is stored, without the cache, and whatever the states are.
func (m *Manager) checkVersion(fam *store.Family, k *store.Key, v *store.Version) error {
	parent := m.ik.Parent()
	if k.Kind == key.DEK {
		rootVersion, ok := versionByID(&fam.Root, v.Parent)
		if !ok {
			return tampered(k, fmt.Sprintf("version %s is missing, which wraps version %d", v.Parent, v.Number))
		}
		kek, err := m.ik.Parent().Unwrap(
			m.identity(fam, &fam.Root, rootVersion.Alg), rootVersion.Number, rootVersion.Created, [32]byte(rootVersion.Commit), rootVersion.Blob)
		if err != nil {
			return tampered(&fam.Root, fmt.Sprintf("the wrapped key of version %d does not open", rootVersion.Number))
		}
		defer kek.Close()
		if parent, err = kek.Parent(); err != nil {
			return err
		}
	}
	opened, err := parent.Unwrap(m.identity(fam, k, v.Alg), v.Number, v.Created, [32]byte(v.Commit), v.Blob)
	if err != nil {
		return tampered(k, fmt.Sprintf("the wrapped key of version %d does not open", v.Number))
	}
	opened.Close()
	return nil
}
