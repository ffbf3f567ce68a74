package keyhold

import (
	"bytes"
	"fmt"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// anyRow fills whatever fields a row has, with texts that often come twice, so that a field that is added later and is
// not packed is noticed.
func anyRow(t *rapid.T, v reflect.Value) {
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			anyRow(t, field)
		}
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.SampledFrom([]string{"", "krk_0123456789abcdefghijklmnop", "org_42", "a"}), rapid.String()).Draw(t, "text"))
	case reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "time"))
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		v.SetUint(rapid.Uint64().Draw(t, "number") >> (64 - v.Type().Bits()))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			few := rapid.SampledFrom([][]byte{nil, []byte("org_42"), {0}, make([]byte, 300)})
			if b := rapid.OneOf(few, rapid.SliceOf(rapid.Byte())).Draw(t, "bytes"); len(b) > 0 {
				v.SetBytes(b)
			}
			return
		}
		if n := rapid.IntRange(0, 4).Draw(t, "length"); n > 0 {
			v.Set(reflect.MakeSlice(v.Type(), n, n))
		}
		for i := range v.Len() {
			anyRow(t, v.Index(i))
		}
	default:
		t.Fatalf("rows have fields of kind %v now", v.Kind())
	}
}

// Nothing of any row is lost by packing it.
func TestAFamilyIsUnpackedAsItWasPacked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fam := store.Family{Data: make([]store.Key, 1)}
		for _, part := range []any{&fam.Root, &fam.Data[0], &fam.Now, &fam.Epoch, &fam.Roots} {
			anyRow(t, reflect.ValueOf(part).Elem())
		}
		for _, k := range allKeys(&fam) {
			for i := range k.Versions {
				if v := &k.Versions[i]; len(v.Commit) >= 16 && rapid.Bool().Draw(t, "made here") {
					v.ID = key.VersionID(rapid.SampledFrom([]key.Kind{key.KEK, key.DEK}).Draw(t, "kind"), key.KID(v.Commit))
				}
			}
		}
		p := pack(&fam)
		if got := p.family(); !reflect.DeepEqual(got, fam) {
			t.Fatalf("%+v became %+v", fam, got)
		}
		if root, data := p.ids(); root != fam.Root.ID || data != fam.Data[0].ID {
			t.Fatalf("the ids are %q, %q", root, data)
		}
		if ref := p.ref(); ref.Scope != fam.Root.Scope || ref.Purpose != fam.Data[0].Purpose {
			t.Fatalf("it is found by %v", ref)
		}
		if p.epoch() != fam.Epoch {
			t.Fatalf("the epoch is %d", p.epoch())
		}
		if now, root, data := p.times(); now != fam.Now || root != newestCreated(&fam.Root) || data != newestCreated(&fam.Data[0]) {
			t.Fatalf("the times are %d, %d, %d", now, root, data)
		}
	})
	if n := reflect.TypeFor[store.Family]().NumField(); n != 5 {
		t.Errorf("a family has %d fields, and this was written when it had 5", n)
	}
}

// What is unpacked is the caller's, who changes nothing with it that is kept, nor, by appending, what is beside it.
func TestWhatIsUnpackedIsTheCallers(t *testing.T) {
	fam := store.Family{Data: []store.Key{{Versions: []store.Version{{Commit: []byte("commitment"), Blob: []byte{1, 2, 3}}}}}}
	p := pack(&fam)
	first := p.family()
	_ = append(first.Data[0].Versions[0].Commit, 9, 9, 9)
	if !reflect.DeepEqual(first, fam) {
		t.Errorf("%+v became %+v when something was appended", fam, first)
	}
	first.Data[0].Versions[0].Blob[0] = 9
	if got := p.family(); !reflect.DeepEqual(got, fam) {
		t.Errorf("%+v became %+v", fam, got)
	}
}

// withVersions is a family whose data key has n versions, all of one root key version.
func withVersions(n int) *store.Family {
	text := func(of string, length int) []byte { return bytes.Repeat(markOfText(of), 1+length/16)[:length] }
	kid := func(of string) key.KID { return key.KID(text(of, 16)) }
	root, parent := key.NewID(key.PrefixRootKey, kid("root")), key.VersionID(key.KEK, kid("parent"))
	fam := &store.Family{
		Root: store.Key{ID: root, Kind: key.KEK, Scope: "scope", Versions: []store.Version{
			{ID: parent, Commit: text("parent", 32), Blob: text("wrapped", 74), IKKID: text("ik", 16), Number: 1},
		}},
		Data: []store.Key{{ID: key.NewID(key.PrefixDataKey, kid("data")), Kind: key.DEK, Scope: "scope", RootKeyID: root}},
	}
	for i := range n {
		commit := text(fmt.Sprint("data", i), 32)
		fam.Data[0].Versions = append(fam.Data[0].Versions, store.Version{
			ID: key.VersionID(key.DEK, key.KID(commit)), Parent: parent, Commit: commit,
			Blob: text(fmt.Sprint("blob", i), 74), Number: key.Version(i + 1),
		})
	}
	return fam
}

func markOfText(s string) []byte {
	m := markOf(key.ID(s))
	return m[:]
}

// A version more takes as long to pack, and as much room, however many there are.
func TestPackingTakesAsLongForEachVersion(t *testing.T) {
	few, many := withVersions(300), withVersions(3000)
	if one, all := len(pack(few))-len(pack(withVersions(0))), len(pack(many)); all > 11*one {
		t.Errorf("3000 versions take %d bytes, and 300 take %d", all, one)
	}
	took := func(fam *store.Family) time.Duration {
		least := time.Hour
		for range 5 {
			began := time.Now()
			pack(fam)
			least = min(least, time.Since(began))
		}
		return least
	}
	if one, all := took(few), took(many); all > 40*one && all > 20*time.Millisecond {
		t.Errorf("3000 versions take %v, and 300 take %v", all, one)
	}
}

func BenchmarkPack(b *testing.B) {
	for _, n := range []int{1, 10, 3000} {
		fam := withVersions(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				pack(fam)
			}
		})
	}
}
