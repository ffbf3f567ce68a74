package store_test

import (
	"errors"
	"strings"
	"testing"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
	"keyhold.example/keyhold/store/storetest"
)

// newNamed has three names in scope "a": "known" is registered, "gone" was removed at number 2, and the key "again"
// goes on from number 3 after such a removal.
func newNamed(t *testing.T) (*memstore.Store, *storetest.Maker, *store.Key) {
	t.Helper()
	s, m := newChecked(t)
	f, err := s.Key(t.Context(), rootRef)
	if err != nil {
		t.Fatal(err)
	}
	names := map[key.Purpose]store.Name{}
	for _, p := range []key.Purpose{"known", "gone", "again"} {
		n := m.Name(f.Root.ID, p)
		n.Last, n.Removed = 2, p == "gone"
		if err := s.PutName(t.Context(), m.Inst(), 0, n); err != nil {
			t.Fatal(err)
		}
		names[p] = n
	}
	if _, err := s.Create(t.Context(), m.Inst(), []store.Key{m.After(&f.Root, names["again"])}); err != nil {
		t.Fatal(err)
	}
	return s, m, &f.Root
}

func nameOf(d *memstore.Data, p key.Purpose) *store.Name {
	for i := range d.Names {
		if d.Names[i].Purpose == p {
			return &d.Names[i]
		}
	}
	panic("no such name")
}

func TestCheckFindsEachBrokenName(t *testing.T) {
	const knownName, againName = `name "known" of scope "a"`, `name "again" of scope "a"`
	known := func(edit func(n *store.Name)) func(*memstore.Data) {
		return func(d *memstore.Data) { edit(nameOf(d, "known")) }
	}
	for name, c := range map[string]struct {
		edit             func(*memstore.Data)
		subject, problem string
	}{
		"nothing":        {func(*memstore.Data) {}, "", ""},
		"MAC":            {known(func(n *store.Name) { n.MAC = n.MAC[1:] }), knownName, "MAC has 31 bytes"},
		"ik_kid":         {known(func(n *store.Name) { n.IKKID = n.IKKID[1:] }), knownName, "has 15 bytes"},
		"foreign ik_kid": {known(func(n *store.Name) { n.IKKID[0] ^= 1 }), knownName, "is no key of the installation"},
		"sequence":       {known(func(n *store.Name) { n.Seq = 0 }), knownName, "sequence number is 0"},
		"last number":    {known(func(n *store.Name) { n.Last = key.MaxVersion + 1 }), knownName, "went to 65536"},
		"generator": {known(func(n *store.Name) {
			n.Generator = strings.Repeat("g", 256)
		}), knownName, "generator"},
		"generator that is no line": {known(func(n *store.Name) {
			n.Generator = "a\nb"
		}), knownName, "generator"},
		"purpose": {known(func(n *store.Name) { n.Purpose = "known " }), `name "known " of scope "a"`, "white space"},
		"root key": {known(func(n *store.Name) {
			n.RootKeyID = "krk_none"
		}), "database", "krk_none"},
		"removed and there": {func(d *memstore.Data) { nameOf(d, "again").Removed = true }, againName, "it is removed"},
		"number used twice": {func(d *memstore.Data) { nameOf(d, "again").Last = 3 }, againName, "version 3 is there"},
		"a key's generator": {func(d *memstore.Data) {
			d.Key(rawRef).Generator = "\x7f"
		}, `key "raw" of scope "a"`, "generator"},
		"a root key's generator": {func(d *memstore.Data) {
			d.Key(rootRef).Generator = "g"
		}, `root key of scope "a"`, "generator"},
	} {
		s, _, _ := newNamed(t)
		s.Edit(c.edit)
		found, err := store.Check(t.Context(), s)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		about, others := 0, 0
		for _, f := range found {
			switch {
			case f.Subject != c.subject:
				others++
			case strings.Contains(f.Problem, c.problem):
				about++
			}
		}
		if about == 0 && c.subject != "" || others > 0 {
			t.Errorf("%s: want one about %q with %q alone, found:\n%v", name, c.subject, c.problem, lines(found))
		}
	}
}

// A name that is registered again after Check read the names, and gets its key before Check reads that, is no finding,
// nor is what changes while Check looks again.
func TestCheckReadsNamesBesideChanges(t *testing.T) {
	// Before Check reads the scope the key comes, and before the n-th of these calls it goes, and comes again.
	type nth struct {
		call string
		n    int
	}
	for _, c := range []struct{ goes, comes nth }{
		{},
		{goes: nth{"Name", 1}},
		{goes: nth{"Name", 1}, comes: nth{"Key", 1}},
		{goes: nth{"Key", 1}, comes: nth{"Name", 2}},
		{goes: nth{"Name", 2}},
	} {
		s, m, root := newNamed(t)
		f, err := s.Key(t.Context(), rawRef)
		if err != nil {
			t.Fatal(err)
		}
		n := m.Removed(&f.Data[0], store.Name{})
		if err := s.RemoveKey(t.Context(), m.Inst(), f.Data[0].ID, 1, 0, n); err != nil {
			t.Fatal(err)
		}
		again := func() {
			n = m.NextName(n)
			n.Removed = false
			if err := s.PutName(t.Context(), m.Inst(), n.Seq-1, n); err != nil {
				t.Errorf("PutName: %v", err)
			}
			if _, err := s.Create(t.Context(), m.Inst(), []store.Key{m.After(root, n)}); err != nil {
				t.Errorf("Create: %v", err)
			}
		}
		remove := func() {
			f, err := s.Key(t.Context(), rawRef)
			if err != nil || len(f.Data) != 1 {
				t.Fatalf("Key: %d, %v", len(f.Data), err)
			}
			from := n.Seq
			n = m.Removed(&f.Data[0], n)
			if err := s.RemoveKey(t.Context(), m.Inst(), f.Data[0].ID, f.Data[0].Seq, from, n); err != nil {
				t.Errorf("RemoveKey: %v", err)
			}
		}
		faults := faultstore.New(s)
		seen := map[string]int{}
		faults.Hook(func(made string) {
			seen[made]++
			switch (nth{made, seen[made]}) {
			case nth{"Scope", 1}, c.comes:
				again()
			case c.goes:
				remove()
			}
		})
		found, err := store.Check(t.Context(), faults)
		if err != nil || len(found) != 0 || seen["Name"] == 0 {
			t.Errorf("changed at %+v: %v, %d times looked again; found:\n%v", c, err, seen["Name"], lines(found))
		}
	}
}

func TestCheckReturnsTheErrorsOfLookingAgain(t *testing.T) {
	s, _, _ := newNamed(t)
	s.Edit(func(d *memstore.Data) { nameOf(d, "again").Removed = true })
	calls := map[string]int{}
	for n := 0; ; n++ {
		faults := faultstore.New(s)
		faults.Fail(n, faultstore.Before)
		_, err := store.Check(t.Context(), faults)
		if !faults.Fired() {
			break
		}
		calls[faults.Log()[n]]++
		if !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s, call %d, failed, Check: %v", faults.Log()[n], n, err)
		}
	}
	if calls["Name"] != 2 || calls["Key"] != 1 || calls["NamesNotUnder"] != 1 {
		t.Errorf("Check made these calls: %v", calls)
	}
}
