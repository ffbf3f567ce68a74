package keyhold

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

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
	found, err := m.checkNames(ctx)
	return append(findings, found...), err
}

// checkNames checks what is known of the names of raw keys.
func (m *Manager) checkNames(ctx context.Context) (findings []store.Finding, err error) {
	var names []store.Name
	err = m.step(ctx, func(ctx context.Context) (err error) {
		names, err = m.store.NamesNotUnder(ctx, [16]byte{}, math.MaxInt32) // no installation key has that kid
		if err == nil && slices.ContainsFunc(names, func(n store.Name) bool { return !m.ring.has(n.IKKID) }) {
			err = m.adopt(ctx)
		}
		return err
	})
	for i := range names {
		n := &names[i]
		if !m.nameFits(n) {
			findings = append(findings, store.Finding{Subject: fmt.Sprintf("name %q under %s", n.Purpose, n.RootKeyID), Problem: "its MAC does not fit"})
		}
	}
	return findings, err
}

// checkRows checks what can be seen without keys, and the slots.
func (m *Manager) checkRows(ctx context.Context) ([]store.Finding, error) {
	_, err := m.Installation(ctx)
	integrity, changed := errors.AsType[*IntegrityError](err)
	if err != nil && !changed {
		return nil, err
	}
	// It reads everything, so only the caller's own limit holds for it.
	findings, checkErr := store.Check(ctx, m.store)
	if changed {
		findings = append(findings, store.Finding{Subject: integrity.Subject, Problem: integrity.Reason})
	}
	return findings, checkErr
}

// checkScope checks the manifests of a scope's keys and unwraps all versions, without displacing what others keep in
// the cache.
func (m *Manager) checkScope(ctx context.Context, scope key.Scope) ([]store.Finding, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	r := reader{m: m, q: m.store, tx: true}
	fam, err := r.named(r.q.Scope(ctx, scope))
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil, nil // it was deleted since it was listed
	case err != nil:
		return nil, fmt.Errorf("scope %q: %w", scope, err)
	}
	var findings []store.Finding
	for _, k := range allKeys(&fam.Family) {
		if err := m.verifyKey(k); err != nil {
			findings = append(findings, finding(k, err))
			if k.Kind == key.KEK {
				return findings, nil // what a root key wraps cannot be judged before it is right itself
			}
			continue
		}
		for i := range k.Versions {
			opened, err := r.unwrap(&fam.Family, k, &k.Versions[i])
			if err != nil {
				findings = append(findings, finding(k, err))
				continue
			}
			opened.Close()
		}
	}
	return findings, nil
}

// finding says what is wrong with k, or with the key that the error names.
func finding(k *store.Key, err error) store.Finding {
	if integrity, ok := errors.AsType[*IntegrityError](err); ok {
		return store.Finding{Subject: integrity.Subject, Problem: integrity.Reason}
	}
	return store.Finding{Subject: describe(k), Problem: err.Error()}
}
