package envelope_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

func TestManifestsAppend(t *testing.T) {
	m := envelope.Manifest{Kind: key.DEK, Versions: []envelope.ManifestVersion{{Version: 1}, {Version: 2}}}
	n := envelope.NameManifest{RootKeyID: "krk_a", Purpose: "p", Generator: "g"}
	s := envelope.SlotsManifest{Slots: []envelope.Slot{{ID: "kr_a"}, {ID: "kr_b"}}}
	for name, appendTo := range map[string]func([]byte) []byte{"manifest": m.Append, "name": n.Append, "slots": s.Append} {
		if got := appendTo([]byte("before")); !bytes.Equal(got, append([]byte("before"), appendTo(nil)...)) {
			t.Errorf("%s: what was there before changes what is appended", name)
		}
	}
	swapped := s
	swapped.Slots = []envelope.Slot{s.Slots[1], s.Slots[0]}
	if bytes.Equal(s.Append(nil), swapped.Append(nil)) {
		t.Error("the order of the slots is not in their manifest")
	}
}

// few draws short texts of few letters, so that those of equal concatenation are frequent.
func few() *rapid.Generator[string] {
	return rapid.StringOfN(rapid.RuneFrom([]rune("ab")), 0, 2, -1)
}

func small() *rapid.Generator[uint64] { return rapid.Uint64Range(0, 2) }

func manifests() *rapid.Generator[envelope.Manifest] {
	return rapid.Custom(func(t *rapid.T) envelope.Manifest {
		m := envelope.Manifest{
			Kind: key.DEK, Owner: few().Draw(t, "owner"), Purpose: key.Purpose(few().Draw(t, "purpose")), KeyID: "kdk_a",
			Seq: small().Draw(t, "seq"), Head: key.Version(small().Draw(t, "head")),
			Policy: envelope.Policy{
				RotateEvery: small().Draw(t, "rotate"), MaxMessages: small().Draw(t, "messages"), Generator: few().Draw(t, "generator"),
			},
		}
		for n := range small().Draw(t, "versions") {
			m.Versions = append(m.Versions, envelope.ManifestVersion{
				Version: key.Version(n + 1), State: key.Destroyed, Alg: key.Alg(small().Draw(t, "alg")), ID: key.ID(few().Draw(t, "id")),
			})
		}
		return m
	})
}

func nameManifests() *rapid.Generator[envelope.NameManifest] {
	return rapid.Custom(func(t *rapid.T) envelope.NameManifest {
		return envelope.NameManifest{
			Inst: [16]byte{byte(small().Draw(t, "inst"))}, RootKeyID: key.ID(few().Draw(t, "root key")),
			Purpose: key.Purpose(few().Draw(t, "purpose")), Seq: small().Draw(t, "seq"), Generator: few().Draw(t, "generator"),
			Last: key.Version(small().Draw(t, "last")), Removed: rapid.Bool().Draw(t, "removed"),
		}
	})
}

func TestManifestsThatDifferHaveOtherBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := manifests().Draw(t, "a"), manifests().Draw(t, "b")
		if rapid.Bool().Draw(t, "only the policy differs") {
			policy := b.Policy
			b, b.Policy = a, policy
		}
		if got, same := bytes.Equal(a.Append(nil), b.Append(nil)), cmp.Equal(a, b); got != same {
			t.Fatalf("bytes equal: %v, manifests equal: %v", got, same)
		}
		m, n := nameManifests().Draw(t, "m"), nameManifests().Draw(t, "n")
		// Two neighbours differ at most, so that what is left out, or runs over into the next, shows.
		if field := rapid.IntRange(0, 6).Draw(t, "fields"); field < 6 {
			other := n
			n = m
			switch field {
			case 0:
				n.Inst, n.RootKeyID = other.Inst, other.RootKeyID
			case 1:
				n.RootKeyID, n.Purpose = other.RootKeyID, other.Purpose
			case 2:
				n.Purpose, n.Seq = other.Purpose, other.Seq
			case 3:
				n.Seq, n.Generator = other.Seq, other.Generator
			case 4:
				n.Generator, n.Last = other.Generator, other.Last
			case 5:
				n.Last, n.Removed = other.Last, other.Removed
			}
		}
		if got, same := bytes.Equal(m.Append(nil), n.Append(nil)), m == n; got != same {
			t.Fatalf("bytes equal: %v, names equal: %v", got, same)
		}
		if bytes.Equal(a.Append(nil), m.Append(nil)) {
			t.Fatal("a key and a name have the same bytes")
		}
	})
}

// tupleOf reads a tuple that nothing follows.
func tupleOf(t *testing.T, b []byte, wantLabel string) [][]byte {
	t.Helper()
	label, fields, rest, err := envelope.ParseTuple(b)
	if err != nil || label != wantLabel || len(rest) != 0 {
		t.Fatalf("%x is %q with %d bytes after it, %v; want %q", b, label, len(rest), err, wantLabel)
	}
	return fields
}

// FuzzManifests reads back what was written, by docs/format.md, section 7.
func FuzzManifests(f *testing.F) {
	f.Add("krk_jh4ek0ihehjf7d11gp4hp3uit4", "database", uint64(1), "aes128-random", uint32(0), false)
	f.Add("krk_jh4ek0ihehjf7d11gp4hp3uit4", "session-tokens", uint64(3), "", uint32(65535), true)
	f.Add("", "", uint64(0), "\x00\xff", uint32(1<<31), true)
	f.Fuzz(func(t *testing.T, root, purpose string, seq uint64, generator string, last uint32, removed bool) {
		state := envelope.U8(2)
		if removed {
			state = envelope.U8(5)
		}
		number := envelope.U64(uint64(last))
		name := envelope.NameManifest{
			Inst: [16]byte{7}, RootKeyID: key.ID(root), Purpose: key.Purpose(purpose), Seq: seq, Generator: generator,
			Last: key.Version(last), Removed: removed,
		}
		want := [][]byte{name.Inst[:], []byte(root), []byte(purpose), envelope.U64(seq), []byte(generator), number, state}
		if diff := cmp.Diff(want, tupleOf(t, name.Append(nil), "kh1/name")); diff != "" {
			t.Errorf("name (-want +got):\n%s", diff)
		}

		m := envelope.Manifest{
			Kind: key.DEK, Owner: root, Purpose: key.Purpose(purpose), KeyID: "kdk_a", Seq: seq, Head: key.Version(last),
			Policy: envelope.Policy{RotateEvery: uint64(last), MaxMessages: seq, Generator: generator},
		}
		policy := [][]byte{number, envelope.U64(seq)}
		if generator != "" {
			policy = append(policy, []byte(generator))
		}
		want = [][]byte{
			m.Inst[:], []byte("dek"), []byte(root), []byte(purpose), []byte("kdk_a"), envelope.U64(seq), number,
			envelope.Tuple("policy", policy...),
			{},
		}
		if diff := cmp.Diff(want, tupleOf(t, m.Append(nil), "kh1/manifest")); diff != "" {
			t.Errorf("manifest (-want +got):\n%s", diff)
		}
	})
}
