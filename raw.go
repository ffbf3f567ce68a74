package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Raw returns a copy of the bytes of ref's raw key's head, for the application to use itself, and its number, to keep
// beside what is sealed with it. The copy is the caller's, who should clear it. keyhold knows nothing of what becomes
// of it, so it destroys no version of a raw key by itself.
//
// Where the key was used before it takes no round trip, and no lock; otherwise those of [Manager.Seal]. Errors:
// [ErrNotFound] for an unknown scope or name, and for one whose key is not made yet; [ErrPurpose]; [*InvalidError];
// [ErrRolledBack]; [*IntegrityError]; [ErrUnavailable], with [ErrStale] if the database has been away for
// [Config.SealFor].
func (m *Manager) Raw(ctx context.Context, ref Ref) ([]byte, Version, error) {
	return m.raw(ctx, ref, 0)
}

// RawOrMake is [Manager.Raw], and where there is no key, [Manager.MakeRaw] before it: of any number of processes that
// come first one makes the key, and all return it. Where it makes the key it takes two round trips more than MakeRaw.
// Errors: those of both.
func (m *Manager) RawOrMake(ctx context.Context, ref Ref, how RawKey) ([]byte, Version, error) {
	if material, number, ok := m.hotRaw(ref, 0); ok {
		return material, number, nil
	}
	for tries := 0; ; tries++ {
		material, n, err := m.coldRaw(ctx, ref, 0, true)
		if err == nil || !errors.Is(err, ErrNotFound) || tries > 2 { // somebody removes it again and again
			return material, n, err
		}
		if _, err := m.MakeRaw(ctx, ref, how); err != nil {
			return nil, 0, err
		}
	}
}

// RawVersion is [Manager.Raw] for the version of the given number, which may be an old one: for what was sealed with
// it. Errors besides: [ErrNotFound] for a number that the key never had; [ErrDisabled] for a disabled or destroyed
// version, and for the numbers that a removed key of that name had, once there is a new one. It is stale after
// [Config.OpenFor], and a key that was rolled back goes on.
func (m *Manager) RawVersion(ctx context.Context, ref Ref, n Version) ([]byte, error) {
	if n == 0 || n > key.MaxVersion {
		return nil, key.Invalid("version", fmt.Sprint(n), fmt.Sprintf("it is 1 to %d", key.MaxVersion))
	}
	material, _, err := m.raw(ctx, ref, n)
	return material, err
}

// rawName is what a version of a raw key is found by; of the number 0, the head.
func rawName(ref Ref, n Version) hotName {
	if n == 0 {
		return hotName{what: headOfRef, ref: ref}
	}
	return hotName{what: numberOfRef, ref: ref, number: n}
}

// hotRaw returns a copy of what is at hand of a version, or, of the number 0, of the head.
func (m *Manager) hotRaw(ref Ref, n Version) ([]byte, Version, bool) {
	name := rawName(ref, n)
	h, _ := m.hotKey(&name)
	if h == nil {
		return nil, 0, false
	}
	material, ok := h.material.Copy()
	if ok {
		m.telemetry.hits.add()
	}
	return material, h.number, ok
}

// raw returns the bytes of a version, or, of the number 0, of the head.
func (m *Manager) raw(ctx context.Context, ref Ref, n Version) ([]byte, Version, error) {
	if material, number, ok := m.hotRaw(ref, n); ok {
		return material, number, nil
	}
	material, number, err := m.coldRaw(ctx, ref, n, false)
	if err != nil {
		m.telemetry.refused(ctx, "raw", ref.Purpose, err)
	}
	return material, number, err
}

// coldRaw asks the database where that is needed. makes says that the key is to be made if it is not there.
func (m *Manager) coldRaw(ctx context.Context, ref Ref, n Version, makes bool) ([]byte, Version, error) {
	if ref.IsRoot() {
		return nil, 0, key.Invalid("purpose", "", "it is empty")
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer end()
	u := seals
	if n != 0 {
		u = opens
	}
	r := m.hot(u)
	r.makes = makes
	for {
		before := m.counts()
		fam, v, err := r.rawVersion(ctx, ref, n)
		if err != nil {
			return nil, 0, err
		}
		shared, material, err := r.rawBytes(&fam, v)
		if err != nil {
			return nil, 0, err
		}
		if material == nil { // it was dropped from the cache just now
			continue
		}
		if shared != nil {
			m.keepHot(before, &hotKey{hotName: rawName(ref, n), material: shared}, &fam, v)
		}
		return material, v.Number, nil
	}
}

// rawVersion reads ref's raw key, and the version of it that is asked for.
func (r reader) rawVersion(ctx context.Context, ref Ref, n Version) (family, *store.Version, error) {
	fam, kept, err := r.dataKey(ctx, ref)
	if err != nil {
		return fam, nil, err
	}
	v, err := r.rawNumber(&fam, n)
	if err == nil || n == 0 || !kept {
		return fam, v, err
	}
	// Another process may have made it a moment ago.
	if err := r.m.epochs.renew(ctx); err != nil {
		return fam, nil, err
	}
	fam, now, err := r.snapshotOf(ctx, ref)
	if err != nil {
		return fam, nil, err
	}
	v, err = r.rawNumber(&fam, n)
	if err != nil && now != nil && now.away != nil {
		err = now.away // nobody knows
	}
	return fam, v, err
}

func (r reader) rawNumber(fam *family, n Version) (*store.Version, error) {
	data := &fam.Data[0]
	if err := r.isRaw(data); err != nil {
		return nil, err
	}
	if n == 0 {
		head, _ := headOf(data)
		return head, errors.Join(fam.notOlder(), r.timely(&fam.Family, data), usableParent(&fam.Family, head.Parent))
	}
	v, ok := versionOf(data, n)
	switch {
	case !ok && n <= newestNumber(data):
		return nil, fmt.Errorf("version %d of %s was destroyed: %w", n, describe(data), ErrDisabled)
	case !ok:
		return nil, fmt.Errorf("version %d of %s: %w", n, describe(data), ErrNotFound)
	case v.Alg != key.Raw:
		return nil, fmt.Errorf("version %d of %s is of alg %v: %w", n, describe(data), v.Alg, ErrPurpose)
	case !v.State.Opens():
		return nil, fmt.Errorf("version %d of %s is %v: %w", n, describe(data), v.State, ErrDisabled)
	}
	return v, usableParent(&fam.Family, v.Parent)
}

// rawBytes opens a version of a raw key: a copy of its bytes, and, unless it is not kept, what the next copy may be
// made of. The copy is nil if that was cleared meanwhile.
func (r reader) rawBytes(fam *family, v *store.Version) (*secret.Shared, []byte, error) {
	o, err := r.open(&fam.Family, &fam.Data[0], v)
	if err != nil {
		return nil, nil, err
	}
	defer o.release()
	material, _ := o.raw.Copy()
	return o.raw, material, nil
}

// ExportRaw returns a copy of the bytes of the version with the given id, and whose it is, if it is one of a raw key:
// for checking, and for leaving. The copy is the caller's. It takes one round trip. Errors: those of [Manager.Raw], and
// [ErrDisabled].
func (m *Manager) ExportRaw(ctx context.Context, id key.ID) ([]byte, Ref, Version, error) {
	if err := id.Validate(); err != nil {
		return nil, Ref{}, 0, err
	}
	ctx, end, err := m.begin(ctx)
	if err != nil {
		return nil, Ref{}, 0, err
	}
	defer end()
	r := m.committed()
	fam, err := r.keyOfVersion(ctx, id)
	if err != nil {
		return nil, Ref{}, 0, err
	}
	if len(fam.Data) != 1 {
		return nil, Ref{}, 0, fmt.Errorf("%s is for wrapping: %w", describe(&fam.Root), ErrPurpose)
	}
	data := &fam.Data[0]
	v, err := opening(data, id)
	switch {
	case errors.Is(err, ErrOpen):
		return nil, Ref{}, 0, tampered(data, "it has no version "+string(id))
	case err != nil:
		return nil, Ref{}, 0, err
	case v.Alg != key.Raw:
		return nil, Ref{}, 0, fmt.Errorf("version %d of %s is of alg %v, and only raw keys leave: %w", v.Number, describe(data), v.Alg, ErrPurpose)
	}
	ref := Ref{Scope: fam.Root.Scope, Purpose: data.Purpose}
	opened, err := r.unwrap(&fam.Family, data, v)
	if err != nil {
		return nil, Ref{}, 0, err
	}
	defer opened.Close()
	return append([]byte(nil), opened.Bytes().Reveal()...), ref, v.Number, nil
}
