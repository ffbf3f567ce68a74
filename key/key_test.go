package key_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"keyhold.example/keyhold/key"
)

func TestNamesWithinTheRulesAreValid(t *testing.T) {
	for _, s := range []string{"a", " ", " a ", "日本語", "e\u0301", "a/b", "'", strings.Repeat("x", key.MaxScopeLen)} {
		if err := key.Scope(s).Validate(); err != nil {
			t.Errorf("scope %q: %v", s, err)
		}
	}
	for _, s := range []string{"a", "a b", "日本語", strings.Repeat("x", key.MaxPurposeLen)} {
		if err := key.Purpose(s).Validate(); err != nil {
			t.Errorf("purpose %q: %v", s, err)
		}
	}
}

func TestNamesThatBreakARuleAreInvalid(t *testing.T) {
	both := []string{"", "a\x00", "\x1f", "\x7f", "\u0080", "\u009f", "\xff", "a\xc3", "line\n"}
	scopes := append([]string{strings.Repeat("x", key.MaxScopeLen+1)}, both...)
	purposes := append([]string{strings.Repeat("x", key.MaxPurposeLen+1)}, both...)
	// Every code point of Unicode's White_Space.
	for _, r := range "\t\n\v\f\r \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000" {
		purposes = append(purposes, string(r)+"a", "a"+string(r))
	}
	var invalid *key.InvalidError
	for _, s := range scopes {
		if err := key.Scope(s).Validate(); !errors.As(err, &invalid) {
			t.Errorf("scope %q: got %v, want an InvalidError", s, err)
		}
	}
	for _, s := range purposes {
		if err := key.Purpose(s).Validate(); !errors.As(err, &invalid) {
			t.Errorf("purpose %q: got %v, want an InvalidError", s, err)
		}
	}
	if err := key.Scope(strings.Repeat("x", 1<<20)).Validate(); len(err.Error()) > 300 {
		t.Errorf("an error of %d bytes repeats its input", len(err.Error()))
	}
}

func TestRefNamesOneKey(t *testing.T) {
	refs := []key.Ref{{"ab", "c"}, {"a", "bc"}, {"abc", ""}, {`a" of scope "b`, "c"}, {"b", `c" of scope "a`}}
	seen := map[string]key.Ref{}
	for _, r := range refs {
		if other, ok := seen[r.String()]; ok {
			t.Errorf("%#v and %#v are both %v", r, other, r)
		}
		seen[r.String()] = r
		if err := r.Validate(); err != nil {
			t.Errorf("%v: %v", r, err)
		}
	}
	for _, r := range []key.Ref{{}, {"", "a"}, {"a", " "}, {"\n", "a"}} {
		if r.Validate() == nil {
			t.Errorf("%#v is valid", r)
		}
	}
}

func TestStateChangesAreThoseOfTheFormat(t *testing.T) {
	allowed := map[[2]key.State]bool{
		{key.Pending, key.Active}: true, {key.Pending, key.Destroyed}: true, {key.Active, key.Retired}: true,
		{key.Retired, key.Disabled}: true, {key.Disabled, key.Retired}: true, {key.Disabled, key.Destroyed}: true,
	}
	opens := map[key.State]bool{key.Pending: true, key.Active: true, key.Retired: true}
	for from := range key.State(8) {
		for to := range key.State(8) {
			if got := from.CanBecome(to); got != allowed[[2]key.State{from, to}] {
				t.Errorf("%v to %v: %v", from, to, got)
			}
		}
		if from.Opens() != opens[from] {
			t.Errorf("%v opens: %v", from, from.Opens())
		}
	}
}

func TestTextOfBytesIsReadBackAndHasOneForm(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(t, "bytes")
		s := key.Base32(b)
		back, ok := key.ParseBase32(s)
		if !ok || string(back) != string(b) {
			t.Fatalf("%x became %q and then %x", b, s, back)
		}
	})
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(`[0-9a-zA-Z=]{0,40}`).Draw(t, "text")
		if b, ok := key.ParseBase32(s); ok && key.Base32(b) != s {
			t.Fatalf("%q was read as %x, whose text is %q", s, b, key.Base32(b))
		}
	})
}

// A kid is read from its text without the detour of bytes on the heap: of what ParseBase32 reads, and of nothing else.
func TestKIDsAreReadAsTheirTextIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(
			rapid.StringMatching(`[0-9a-w]{25,27}`), rapid.StringN(24, 28, -1),
			rapid.Map(rapid.SliceOfN(rapid.Byte(), 15, 17), key.Base32),
		).Draw(t, "text")
		want, ok := key.ParseBase32(text)
		ok = ok && len(want) == 16
		got, read := key.ID(key.PrefixDataKeyVersion + text).KID()
		if read != ok || ok && !bytes.Equal(got[:], want) {
			t.Errorf("%q is read as %x, %v; want %x, %v", text, got, read, want, ok)
		}
	})
	id := key.VersionID(key.DEK, key.KID{1, 2, 3})
	if n := testing.AllocsPerRun(100, func() { id.KID() }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestVersionIDsSayWhatTheyAre(t *testing.T) {
	kid := key.KID{1, 2, 3}
	for kind, prefix := range map[key.Kind]string{key.KEK: "krkv_", key.DEK: "kdkv_"} {
		id := key.VersionID(kind, kid)
		if !strings.HasPrefix(string(id), prefix) || len(id) != 31 || id.Validate() != nil {
			t.Errorf("id %q", id)
		}
		if got, ok := id.KID(); !ok || got != kid {
			t.Errorf("%s: kid %x, %v", id, got, ok)
		}
		if got, ok := id.Kind(); !ok || got != kind {
			t.Errorf("%s: kind %v, %v", id, got, ok)
		}
	}
	for id, kind := range map[key.ID]key.Kind{"krk_0": key.KEK, "kdk_0": key.DEK, "kr_0": "", "x": "", "": ""} {
		if got, ok := id.Kind(); got != kind || ok != (kind != "") {
			t.Errorf("%q: kind %q, %v", id, got, ok)
		}
	}
	// An imported id is valid and has no kid; nor has one with a bit too many at its end.
	for _, id := range []key.ID{"kdkv_2bGIs8JSfV", "kdkv_00000000000000000000000001"} {
		if _, ok := id.KID(); ok || id.Validate() != nil {
			t.Errorf("%s: has a kid, or is not valid", id)
		}
	}
	for _, id := range []key.ID{"", "kdkv_", "kdk_00", "kdkv_a b", "kdkv_\x00", key.ID("kdkv_" + strings.Repeat("a", 60))} {
		if id.Validate() == nil {
			t.Errorf("%q is valid", id)
		}
	}
}
