//go:build unix

package keyhold_test

import (
	"bytes"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// oldKey is the installation key that somebody has who had the recovery line.
func oldKey(t *testing.T, m *keyhold.Manager) *seal.IK {
	t.Helper()
	var ik *seal.IK
	must(t, m.Escrow(t.Context(), func(line []byte) (_ string, err error) {
		ik, err = seal.ParseRecovery(line)
		return "", err
	}))
	t.Cleanup(ik.Close)
	return ik
}

// keyTrial is how many of the stored things were tried with an installation key, and how many of them it opens or has
// made.
type keyTrial struct{ Wrapped, Opens, MACs, Made int }

// try tries an installation key on every wrapped root key, every manifest and every slot that is stored.
func (w *fleetWorld) try(t *testing.T, ik *seal.IK) (all keyTrial) {
	t.Helper()
	count := func(of *int, is bool) {
		if is {
			*of++
		}
	}
	for after := key.Scope(""); ; {
		scopes, err := w.store.Scopes(t.Context(), after, 500)
		must(t, err)
		if len(scopes) == 0 {
			break
		}
		after = scopes[len(scopes)-1]
		families, _, err := w.store.Families(t.Context(), scopes)
		must(t, err)
		for i := range families {
			root := &families[i].Root
			for _, v := range root.Versions {
				id := seal.Identity{Kind: key.KEK, Inst: ik.Inst(), RootKeyID: root.ID, Alg: v.Alg}
				opened, err := ik.Parent().Unwrap(id, v.Number, v.Created, [32]byte(v.Commit), v.Blob)
				all.Wrapped++
				count(&all.Opens, err == nil)
				if err == nil {
					opened.Close()
				}
			}
			all.MACs++
			count(&all.Made, ik.Verify(manifestBytes(ik.Inst(), root, string(root.Scope)), root.MAC))
			for j := range families[i].Data {
				data := &families[i].Data[j]
				all.MACs++
				count(&all.Made, ik.Verify(manifestBytes(ik.Inst(), data, string(data.RootKeyID)), data.MAC))
			}
		}
	}
	in := w.installation(t)
	slots := envelope.SlotsManifest{Inst: ik.Inst(), Seq: in.Seq, Active: in.ActiveSlot}
	kid := ik.KID()
	for _, s := range in.Slots {
		slots.Slots = append(slots.Slots, envelope.Slot{
			ID: s.ID, WrapperType: s.WrapperType, IKKID: key.KID(s.IKKID), State: s.State,
			BlobHash: seal.BlobHash(s.Blob),
		})
		all.Wrapped++
		count(&all.Opens, bytes.Equal(s.IKKID, kid[:]) && len(s.Blob) > 0)
	}
	all.MACs++
	count(&all.Made, ik.Verify(slots.Append(nil), in.MAC))
	return all
}

// manifestBytes is what the MAC of a key's manifest is over, of a key that has no tombstones.
func manifestBytes(inst [16]byte, k *store.Key, owner string) []byte {
	m := envelope.Manifest{
		Inst: inst, Kind: k.Kind, Owner: owner, Purpose: k.Purpose, KeyID: k.ID, Seq: k.Seq, Head: k.Head,
		Policy: envelope.Policy{RotateEvery: k.RotateEvery, MaxMessages: k.MaxMessages},
	}
	for _, v := range k.Versions {
		m.Versions = append(m.Versions, envelope.ManifestVersion{
			Version: v.Number, State: v.State, Alg: v.Alg, Commit: [32]byte(v.Commit), ID: v.ID,
		})
	}
	return m.Append(nil)
}

// left is how many scopes are not under the newest installation key.
func (w *fleetWorld) left(t *testing.T) (n int) {
	t.Helper()
	in := w.installation(t)
	kid := [16]byte(in.Keys[len(in.Keys)-1].KID)
	for after := key.ID(""); ; {
		scopes, next, err := w.store.NotUnder(t.Context(), kid, after, 1000)
		must(t, err)
		n += len(scopes)
		if after = next; after == "" {
			return n
		}
	}
}

// rekeyDeaths are the calls before which one process after the other dies in a rekey of so many scopes: before there is
// a new installation key, before it is stored that its recovery line was written, before the first batch, after as many
// as spread the rest evenly, and before the old key goes.
func rekeyDeaths(scopes, kills int) []fleetDeath {
	deaths := []fleetDeath{{1, "ChangeRoots"}, {1, "AddEscrow"}, {1, "Rekey"}}
	batches, parts := (scopes+49)/50, kills-4
	for range parts {
		deaths = append(deaths, fleetDeath{1 + batches/(parts+1), "Rekey"})
	}
	return append(deaths, fleetDeath{1, "ChangeRoots"})
}

// A rekey whose process is killed again and again ends. Nothing is unreadable then, neither for those who sealed and
// opened all through it nor for a fresh process, and the old installation key opens nothing that is stored.
func TestFleetRekeysThoughItIsKilledAgainAndAgain(t *testing.T) {
	scopes, kills, users, sample := 300, 6, 2, 20
	if fleetThorough() {
		scopes, kills, users, sample = 10_000, 20, 4, 500
	}
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		messages := w.fill(t, scopes, 1, secrets, session, search)
		w.write(t, "messages", messages)
		var some []message
		for i := range sample {
			some = append(some, messages[i*scopes/sample])
		}
		w.write(t, "some", some)
		m := w.open(t, w.store)
		w.newRoot(t, "second.key")
		_, err := m.AddRoot(t.Context(), w.root(t, "second.key"))
		must(t, err)
		old := oldKey(t, m)
		want := keyTrial{scopes + 2, scopes + 2, 4*scopes + 1, 4*scopes + 1}
		if got := w.try(t, old); got != want {
			t.Fatalf("the installation key opens and has made %+v before it is replaced, want %+v", got, want)
		}
		var using []*fleetProcess
		for range users {
			using = append(using, w.start(t,
				fleetSettings{Run: true},
				fleetSettings{fleetRoots: fleetRoots{Root: "second.key"}})...)
		}
		fleetObey(t, using, fleetOrder{Do: "use", Keys: refsOf(messages, 8), Every: 20 * time.Millisecond})

		was, before := w.installation(t).Seq, m.Pin()
		set := fleetSettings{fleetRoots: fleetRoots{OldRoots: []string{"second.key"}, fleetDeath: mortal}}
		for i, death := range rekeyDeaths(scopes, kills) {
			p := w.start(t, set)[0]
			p.say(t, fleetOrder{Do: "rekey", fleetRootsOrder: fleetRootsOrder{fleetDeath: death}})
			if _, died := p.died(t); !died {
				t.Fatalf("the process was not killed at %+v", death)
			}
			left := w.left(t)
			t.Logf("killed the %d. time, before call %d of %s: %d scopes are left", i+1, death.Die, death.DieCall, left)
			if i > 2 && i < kills-1 && (left == 0 || left >= scopes) || i == kills-1 && left > 0 {
				t.Errorf("%d scopes are left of %d", left, scopes)
			}
			fresh := w.start(t, fleetSettings{})[0]
			fresh.say(t, openOrder("some"))
			if a := fresh.answer(t); a.Count != sample {
				t.Errorf("a fresh process opened %d messages of %d", a.Count, sample)
			}
			fresh.end(t)
		}
		// The last process looks at the end of it alone.
		p := w.start(t, set)[0]
		done := fleetObey(t, []*fleetProcess{p}, fleetOrder{Do: "rekey"})[0]
		now := w.installation(t)
		if len(now.Keys) != 1 || now.Seq != was+2 || done.Pin == before || len(done.Pin) != 64 {
			t.Errorf("%d installation keys after %d changes of the roots, pin %s; want 1 after 2, another pin",
				len(now.Keys), now.Seq-was, done.Pin)
		}
		fleetUntil(t, "all have followed", func() bool {
			for _, a := range fleetObey(t, using, fleetOrder{Do: "pin"}) {
				if a.Pin != done.Pin {
					return false
				}
			}
			return true
		})
		undisturbed(t, using)
		fresh := w.start(t, fleetSettings{}, fleetSettings{fleetRoots: fleetRoots{Root: "second.key"}})
		for _, a := range fleetObey(t, fresh, openOrder("messages")) {
			if a.Count != scopes {
				t.Errorf("a fresh process opened %d messages of %d afterwards", a.Count, scopes)
			}
		}
		for _, a := range fleetObey(t, using, openOrder("some")) {
			if a.Count != sample {
				t.Errorf("a process that was there all the time opened %d messages of %d afterwards", a.Count, sample)
			}
		}
		got := w.try(t, old)
		if got.Opens > 0 || got.Made > 0 {
			t.Errorf("the old installation key opens, or has made: %+v; want none", got)
		}
		t.Logf("tried the old installation key on %d wrapped keys and %d manifests", got.Wrapped, got.MACs)
		m, _ = w.with(t, firstRoot)
		w.sound(t, m)
		w.timeRekey(t, "second.key")
	})
}

// timeRekey rekeys once more, without anybody else.
func (w *fleetWorld) timeRekey(t *testing.T, second string) {
	t.Helper()
	cfg := config(w.root(t, firstRoot))
	cfg.OldRoots = append(cfg.OldRoots, w.root(t, second))
	m, err := keyhold.New(t.Context(), w.store, cfg)
	must(t, err)
	began := time.Now()
	done, err := m.Rekey(t.Context(), keyhold.NoEscrow)
	must(t, err)
	t.Logf("a rekey of %d keys by itself took %v", done.Keys, time.Since(began))
	must(t, m.Close())
}

// Processes that were stopped through a whole rekey go on afterwards: what they open is still what it was, and what
// they write first, with the installation key that they know, is written under the new one.
func TestFleetGoesOnThoughItWasStoppedThroughARekey(t *testing.T) {
	fleetEach(t, func(t *testing.T, w *fleetWorld) {
		messages := w.fill(t, 8, 1, secrets, session)
		m := w.open(t, w.store)
		old := oldKey(t, m)
		// Each is to do something else first. The first two have nothing else to do, by which they would learn of it.
		running := fleetSettings{Run: true}
		all := w.start(t, fleetSettings{}, fleetSettings{}, fleetSettings{}, running, running)
		using := all[2:]
		fleetObey(t, using, fleetOrder{Do: "use", Keys: refsOf(messages, 8), Every: 20 * time.Millisecond})
		fleetPass(200 * time.Millisecond)
		t.Cleanup(func() { w.resume(t, all) }) // or they would never end
		w.suspend(t, all)
		done, err := m.Rekey(t.Context(), keyhold.NoEscrow)
		must(t, err)
		_, err = m.Rotate(t.Context(), messages[0].Ref)
		must(t, err)
		w.write(t, "messages", append(messages, message{
			Ref: messages[0].Ref, Text: "after", CT: sealed(t, m, messages[0].Ref, "after", keyhold.AAD{}),
		}))
		orders := []fleetOrder{
			{Do: "create", Keys: []key.Ref{{Scope: "new"}}},
			{Do: "rotate", Keys: []key.Ref{{Scope: messages[2].Ref.Scope}}},
			{Do: "rotate", Keys: []key.Ref{messages[1].Ref}},
			{Do: "open", fleetRootsOrder: fleetRootsOrder{File: "messages"}},
			{Do: "create", Keys: []key.Ref{{Scope: "newer"}}},
		}
		for i, p := range all {
			p.say(t, orders[i])
		}
		w.resume(t, all)
		for _, p := range all {
			p.answer(t)
		}
		fleetPass(300 * time.Millisecond)
		undisturbed(t, using)
		for i, a := range fleetObey(t, all, openOrder("messages")) {
			if a.Count != len(messages)+1 {
				t.Errorf("process %d opens %d messages afterwards", i, a.Count)
			}
		}
		for i, a := range fleetObey(t, all, fleetOrder{Do: "pin"}) {
			if a.Pin != done.Pin {
				t.Errorf("process %d has not followed", i)
			}
		}
		if got := w.try(t, old); got.Opens > 0 || got.Made > 0 {
			t.Errorf("under the old installation key: %+v", got)
		}
		scopes := 0
		for _, err := range m.Scopes(t.Context()) {
			must(t, err)
			scopes++
		}
		if want := len(messages) + 2; scopes != want {
			t.Errorf("%d scopes, want %d", scopes, want)
		}
		w.sound(t, m)
	})
}
