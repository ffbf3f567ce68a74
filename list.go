package keyhold

import (
	"context"
	"encoding/hex"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// KeyInfo describes a key. It holds nothing secret.
type KeyInfo struct {
	ID          key.ID
	Ref         key.Ref // with an empty purpose for a root key
	Head        key.Version
	RotateEvery time.Duration // 0: never
	MaxMessages uint64        // that one version seals; 0: no limit
	RotateAt    time.Time     // when the next version is due; zero if never
	Due         bool          // whether that time has come, by the database's clock
	Versions    []VersionInfo // from 1 on
}

// VersionInfo describes one version of a key.
type VersionInfo struct {
	ID      key.ID
	Number  key.Version
	State   key.State
	Alg     key.Alg
	Parent  key.ID    // the root key version that wraps it; empty for a root key's own
	Created time.Time // zero for a destroyed version
	Behind  bool      // whether its parent is not the head of the root key, so that a rewrap is in order

	Disabled time.Time // since when it is disabled, by the database, which does not vouch for that; zero unless it is
}

// RootInfo describes one root slot: an external root that opens the installation, or did until it was removed.
type RootInfo struct {
	ID    key.ID
	Type  string    // of the wrapper
	KeyID string    // what the root called its key when it sealed
	State key.State // active, retired, or destroyed: it was removed
	Own   bool      // whether this process has opened the installation by it

	// Active says whether it is the one of which the processes rotate keys and change roots. While the installation is
	// rekeyed, a root has a slot for each of the two installation keys, and the one for the newer key is not in use
	// yet.
	Active          bool
	InstallationKey key.KID

	// When it was made, when it last became the active one, since when it is not the active one, and when it was
	// removed; zero if never. The database does not vouch for them.
	Created, Activated, Retired, Removed time.Time
}

// InstallationInfo describes the installation.
type InstallationInfo struct {
	ID      string // 32 hexadecimal digits
	Pin     string
	Created time.Time
	Rekeyed bool       // whether it gets another installation key just now; Pin is that one's then
	Roots   []RootInfo // in the order in which they were made
}

// Keys lists a scope's root key and then its data keys by purpose, after checking their manifests. It takes one round
// trip. Errors: [ErrNotFound], [*IntegrityError], [ErrUnavailable].
func (m *Manager) Keys(ctx context.Context, scope key.Scope) ([]KeyInfo, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	fam, err := m.committed().scope(ctx, scope)
	if err != nil {
		return nil, err
	}
	r := m.committed()
	var infos []KeyInfo
	for _, k := range allKeys(&fam.Family) {
		if err := r.timely(&fam.Family, k); err != nil {
			return nil, err
		}
		infos = append(infos, keyInfo(&fam.Family, k))
	}
	return infos, nil
}

func keyInfo(fam *store.Family, k *store.Key) KeyInfo {
	info := KeyInfo{
		ID:          k.ID,
		Ref:         key.Ref{Scope: fam.Root.Scope, Purpose: k.Purpose},
		Head:        k.Head,
		RotateEvery: time.Duration(k.RotateEvery) * time.Second,
		MaxMessages: k.MaxMessages,
	}
	if k.RotateAt != 0 {
		info.RotateAt, info.Due = time.Unix(k.RotateAt, 0).UTC(), k.RotateAt <= fam.Now
	}
	rootHead, _ := headOf(&fam.Root)
	live, dead := k.Versions, k.Tombstones
	for len(live)+len(dead) > 0 {
		if len(dead) > 0 && (len(live) == 0 || dead[0].Number < live[0].Number) {
			info.Versions = append(info.Versions, VersionInfo{
				ID: dead[0].ID, Number: dead[0].Number, State: key.Destroyed, Alg: dead[0].Alg,
			})
			dead = dead[1:]
			continue
		}
		v := &live[0]
		version := VersionInfo{
			ID: v.ID, Number: v.Number, State: v.State, Alg: v.Alg, Parent: v.Parent,
			Created: time.Unix(v.Created, 0).UTC(), Behind: k.Kind == key.DEK && v.Parent != rootHead.ID,
		}
		if v.Disabled != 0 {
			version.Disabled = time.Unix(v.Disabled, 0).UTC()
		}
		info.Versions = append(info.Versions, version)
		live = live[1:]
	}
	return info
}

// Installation describes the installation and its root slots. It takes one round trip.
func (m *Manager) Installation(ctx context.Context) (InstallationInfo, error) {
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return InstallationInfo{}, err
	}
	defer end()
	if err := m.adopt(ctx); err != nil {
		return InstallationInfo{}, err
	}
	now := m.slots.Load()
	info := InstallationInfo{
		ID: hex.EncodeToString(now.Inst), Pin: m.Pin(), Created: time.Unix(now.Created, 0).UTC(), Rekeyed: now.rekeyed(),
	}
	for i := range now.Slots {
		info.Roots = append(info.Roots, now.info(&now.Slots[i]))
	}
	return info, nil
}
