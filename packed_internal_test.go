package keyhold

import (
	"reflect"
	"testing"

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
	fam := store.Family{Data: []store.Key{{Versions: []store.Version{{Commit: make([]byte, 32), Blob: []byte{1, 2, 3}}}}}}
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
