package rows

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

func family(t *testing.T, list ...Row) (store.Family, error) {
	t.Helper()
	var f Family
	for i := range list {
		if err := f.Add(&list[i]); err != nil {
			return store.Family{}, err
		}
	}
	return f.Family()
}

func some() []Row {
	return []Row{
		{Table: Now, A: 7, B: 11, C: 12},
		{Table: Root, ID: "krk_a", Name: "scope", A: 1, B: 2, C: 3, D: 4, E: 5, X: []byte("ik"), Y: []byte("mac")},
		{Table: RootVersion, ID: "krkv_a2", Owner: "krk_a", A: 2, B: 2, C: 1, D: 6, X: []byte("ik"), Y: []byte("commit"), Z: []byte("blob")},
		{Table: RootTombstone, ID: "krkv_a1", Owner: "krk_a", A: 1, C: 1, D: 8, Y: []byte("commit")},
		{Table: Data, ID: "kdk_z", Owner: "krk_a", Name: "z", A: 9, B: 3, Z: []byte("generator")},
		{Table: Data, ID: "kdk_b", Owner: "krk_a", Name: "b", A: 9, B: 1},
		{Table: DataVersion, ID: "kdkv_z3", Owner: "kdk_z", Name: "krkv_a2", A: 3, B: 2, C: 1, D: 6},
		{Table: DataVersion, ID: "kdkv_z2", Owner: "kdk_z", Name: "krkv_a2", A: 2, B: 4, C: 1, D: 6, E: 9},
		{Table: DataTombstone, ID: "kdkv_z1", Owner: "kdk_z", A: 1, C: 2, D: 8},
	}
}

func TestFamily(t *testing.T) {
	got, err := family(t, some()...)
	want := store.Family{
		Now: 7, Epoch: 11, Roots: 12,
		Root: store.Key{
			ID: "krk_a", Kind: key.KEK, Scope: "scope", RotateAt: 5,
			Manifest: store.Manifest{Seq: 1, Head: 2, RotateEvery: 3, MaxMessages: 4, IKKID: []byte("ik"), MAC: []byte("mac")},
			Versions: []store.Version{{
				ID: "krkv_a2", Number: 2, State: 2, Alg: 1, Created: 6, IKKID: []byte("ik"), Commit: []byte("commit"), Blob: []byte("blob"),
			}},
			Tombstones: []store.Tombstone{{ID: "krkv_a1", Number: 1, Alg: 1, Destroyed: 8, Commit: []byte("commit")}},
		},
		Data: []store.Key{
			{ID: "kdk_b", Kind: key.DEK, RootKeyID: "krk_a", Purpose: "b", Manifest: store.Manifest{Seq: 9, Head: 1}},
			{
				ID: "kdk_z", Kind: key.DEK, RootKeyID: "krk_a", Purpose: "z", Manifest: store.Manifest{Seq: 9, Head: 3, Generator: "generator"},
				Versions: []store.Version{
					{ID: "kdkv_z2", Number: 2, State: 4, Disabled: 9, Alg: 1, Created: 6, Parent: "krkv_a2"},
					{ID: "kdkv_z3", Number: 3, State: 2, Alg: 1, Created: 6, Parent: "krkv_a2"},
				},
				Tombstones: []store.Tombstone{{ID: "kdkv_z1", Number: 1, Alg: 2, Destroyed: 8}},
			},
		},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

func TestFamiliesAreReadWithTheirEpochs(t *testing.T) {
	var all Families
	for _, r := range append([]Row{
		{Table: Now, A: 7, C: 12, X: []byte("inst")},
		{Table: Epoch, A: 0, B: 11},
		{Table: Epoch, A: 11, B: 5},
		{Table: Epoch, A: 31, B: 4},
		{Table: Root, ID: "krk_zz", Name: "other"},
	}, some()[1:]...) {
		if err := all.Add(&r); err != nil {
			t.Fatal(err)
		}
	}
	got := all.Families([]key.Scope{"scope", "none", "other", "scope"})
	if len(got) != 2 || got[0].Root.Scope != "scope" || got[1].Root.Scope != "other" {
		t.Fatalf("%+v; want two", got)
	}
	want, err := family(t, some()...)
	want.Epoch = all.Epochs.Of("krk_a", "kdk_b", "kdk_z")
	if d := cmp.Diff(want, got[0]); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	e := store.Epochs{Inst: []byte("inst"), Seq: 12}
	e.Keys[0], e.Keys[11], e.Keys[31] = 11, 5, 4
	if d := cmp.Diff(e, all.Epochs); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, r := range []Row{{Table: Epoch, A: -1}, {Table: Epoch, B: -1}, {Table: Now, C: -1}} {
		if bad, ok := errors.AsType[*Error](all.Add(&r)); !ok {
			t.Errorf("%+v: %v", r, bad)
		}
	}
}

func TestName(t *testing.T) {
	row := Row{Table: Name, Owner: "krk_a", Name: "n", A: 9, B: 65535, C: 1, X: []byte("ik"), Y: []byte("mac"), Z: []byte("generator")}
	want := store.Name{
		RootKeyID: "krk_a", Purpose: "n", Seq: 9, Generator: "generator", Last: 65535, Removed: true, IKKID: []byte("ik"), MAC: []byte("mac"),
	}
	if got, err := row.AsName(); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	row.C, want.Removed = 0, false
	if got, err := row.AsName(); err != nil || cmp.Diff(want, got) != "" {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, change := range []func(r *Row){
		func(r *Row) { r.A = -1 }, func(r *Row) { r.B = -1 }, func(r *Row) { r.B = 1<<32 + 7 },
	} {
		bad := row
		change(&bad)
		if got, err := bad.AsName(); !isOf(err, "n") {
			t.Errorf("%+v: %+v, %v; want an error about it", bad, got, err)
		}
	}
}

func isOf(err error, row string) bool {
	bad, ok := errors.AsType[*Error](err)
	return ok && bad.Row == row
}

func TestANameIsStoredOnlyForward(t *testing.T) {
	for _, c := range []struct {
		from, seq uint64
		purpose   key.Purpose
		good      bool
	}{
		{0, 1, "n", true},
		{7, 9, "n", true},
		{0, math.MaxInt64, "n", true},
		{0, 0, "n", false},
		{7, 7, "n", false},
		{7, 6, "n", false},
		{0, math.MaxInt64 + 1, "n", false},
		{0, 1, "", false},
		{0, 1, "n\x00", false},
	} {
		if err := CheckName(c.from, &store.Name{Seq: c.seq, Purpose: c.purpose}); (err == nil) != c.good {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestAVersionWithoutItsKeyIsAnError(t *testing.T) {
	for _, table := range []int{RootVersion, RootTombstone, DataVersion, DataTombstone} {
		row := Row{Table: table, ID: "lost", Owner: "kdk_lost", A: 1}
		var all Families
		_, err := family(t, append(some(), row)...)
		for _, err := range []error{err, all.Add(&row)} {
			if bad, ok := errors.AsType[*Error](err); !ok || bad.Row != "lost" {
				t.Errorf("table %d: %v", table, err)
			}
		}
	}
}

func TestNoRootKeyIsNotFoundWithTheTime(t *testing.T) {
	got, err := family(t, Row{Table: Now, A: 7})
	if !errors.Is(err, store.ErrNotFound) || got.Now != 7 {
		t.Errorf("%v, %v", got, err)
	}
}

// Cut to their fields' sizes, these numbers would be sensible ones.
func TestNumbersOutOfRangeAreNotReadAsOthers(t *testing.T) {
	for i, columns := range map[int]string{0: "BC", 1: "ABCD", 2: "ABC", 3: "AC", 4: "ABCD", 6: "ABC", 8: "AC"} {
		for column := range strings.SplitSeq(columns, "") {
			for _, change := range []int64{256, -256, 1 << 32, math.MinInt64} {
				list := some()
				r := &list[i]
				n := map[string]*int64{"A": &r.A, "B": &r.B, "C": &r.C, "D": &r.D}[column]
				*n += change
				fits := *n >= 0 && (r.Table == Now || r.Table == Root || r.Table == Data) &&
					(r.Table == Now || column != "B" || change == 256) ||
					*n >= 0 && change == 256 && column == "A"
				_, err := family(t, list...)
				bad, refused := errors.AsType[*Error](err)
				if refused == fits || refused && bad.Row != string(r.ID) {
					t.Errorf("%s, column %s %+d: %v", r.ID, column, change, err)
				}
			}
		}
	}
	if err := Numbers(nil).Check("x"); err != nil {
		t.Error(err)
	}
	if err := Numbers([]int64{-1}).Check("x"); fmt.Sprint(err) != `row "x": the number -1 is out of range` {
		t.Error(err)
	}
}
