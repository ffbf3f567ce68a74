package keyhold

import (
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// FamiliesOf makes the keys of many scopes, for tests that store them themselves.
func FamiliesOf(m *Manager, now int64, scopes []key.Scope) (keys []store.Key, err error) {
	for _, scope := range scopes {
		family, err := m.newFamily(now, scope)
		if err != nil {
			return nil, err
		}
		keys = append(keys, family...)
	}
	return keys, nil
}
