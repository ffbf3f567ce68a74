package storetest

import (
	"errors"
	"fmt"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

var referenceTests = []test{
	{"a foreign key to the versions is found, and its rows are counted", initialized(func(e *env) {
		if e.h.Refer == nil {
			e.Skip("the harness cannot refer to versions")
		}
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		used, other := keys[1].Versions[0].ID, keys[2].Versions[0].ID
		e.h.Refer(e.T, e.s, used)
		for id, want := range map[key.ID]int64{used: 1, other: 0, "": 1} {
			refs := e.references(id)
			if len(refs) != 1 || refs[0].Table != "secret" || refs[0].Column.Column != "key_id" || !refs[0].ForeignKey || refs[0].Rows != want {
				e.Errorf("References(%q): %+v; want secret.key_id with %d rows", id, refs, want)
			}
		}
	})},
	{"of a root key's version it is what it wraps", initialized(func(e *env) {
		keys := e.m.Scope(e.scope(1), "one", "two")
		e.create(keys...)
		refs := e.references(keys[0].Versions[0].ID)
		if len(refs) != 1 || refs[0].Column.Column != "root_key_version_id" || refs[0].Rows != 2 {
			e.Errorf("References: %+v; want one column with 2 rows", refs)
		}
	})},
	{"a column that is not there cannot be registered, nor what was not registered be unregistered", initialized(func(e *env) {
		for _, c := range []store.Column{{}, {Table: "no_such"}, {Table: "", Column: "x"}} {
			e.wantClass(fmt.Sprintf("Register(%v)", c), e.s.Register(e.ctx, c), store.ErrNotFound)
		}
		e.wantClass("Unregister", e.s.Unregister(e.ctx, store.Column{Table: "no_such", Column: "x"}), store.ErrNotFound)
	})},
	{"purposes are stored once, and stay as they were", initialized(func(e *env) {
		if list, err := e.s.Purposes(e.ctx); err != nil || len(list) != 0 {
			e.Errorf("Purposes: %v, %v; want none", list, err)
		}
		for _, add := range [][]store.Purpose{
			nil,
			{{Purpose: "z", Alg: key.Message}, {Purpose: "a", Alg: key.Raw}},
			{{Purpose: "a", Alg: key.BlindIndex}, {Purpose: "m", Alg: key.BlindIndex}, {Purpose: "m", Alg: key.Raw}},
		} {
			if err := e.s.AddPurposes(e.ctx, add); err != nil {
				e.Fatalf("AddPurposes: %v", err)
			}
		}
		list, err := e.s.Purposes(e.ctx)
		if err != nil || len(list) != 3 {
			e.Fatalf("Purposes: %v, %v; want 3", list, err)
		}
		for i, want := range []store.Purpose{{Purpose: "a", Alg: key.Raw}, {Purpose: "m", Alg: key.BlindIndex}, {Purpose: "z", Alg: key.Message}} {
			nearNow(e.T, "Created", list[i].Created)
			want.Created = list[i].Created
			if list[i] != want {
				e.Errorf("purpose %d is %v, want %v", i, list[i], want)
			}
		}
		for _, bad := range []store.Purpose{{Purpose: "", Alg: key.Message}, {Purpose: "x", Alg: key.Imported}, {Purpose: "x", Alg: 4}} {
			if err := e.s.AddPurposes(e.ctx, []store.Purpose{{Purpose: "good", Alg: key.Raw}, bad}); err == nil {
				e.Errorf("AddPurposes(%v): no error", bad)
			}
		}
		if again, err := e.s.Purposes(e.ctx); err != nil || len(again) != 3 {
			e.Errorf("Purposes after refused ones: %v, %v", again, err)
		}
	})},
	{"scopes that lack a purpose are listed in pages, each once", initialized(func(e *env) {
		var lacking []key.Scope
		for i := range 25 {
			if i%3 == 0 {
				e.create(e.m.Scope(e.scope(i), "one", "two")...)
			} else {
				e.create(e.m.Scope(e.scope(i), "one")...)
			}
		}
		all, err := e.s.Scopes(e.ctx, "", 100)
		if err != nil {
			e.Fatalf("Scopes: %v", err)
		}
		for _, scope := range all {
			if f, err := e.s.Scope(e.ctx, scope); err != nil || len(f.Data) == 1 {
				lacking = append(lacking, scope)
			}
		}
		var got []key.Scope
		for after := key.Scope(""); ; {
			page, err := e.s.Lacking(e.ctx, "two", after, 4)
			if err != nil || len(page) > 4 {
				e.Fatalf("Lacking: %v, %v", page, err)
			}
			if len(page) == 0 {
				break
			}
			got, after = append(got, page...), page[len(page)-1]
		}
		if fmt.Sprint(got) != fmt.Sprint(lacking) || len(got) != 16 {
			e.Errorf("Lacking: %v\nwant %v", got, lacking)
		}
		for p, want := range map[key.Purpose]int{"one": 0, "three": 25} {
			if page, err := e.s.Lacking(e.ctx, p, "", 100); err != nil || len(page) != want {
				e.Errorf("Lacking(%q): %d, %v; want %d", p, len(page), err, want)
			}
		}
	})},
	{"families are read as Scope reads each", initialized(func(e *env) {
		e.create(e.m.Scope(e.scope(1), "one", "two")...)
		e.create(e.m.Scope(e.scope(2))...)
		e.create(e.m.Scope(e.scope(3), "one")...)
		asked := []key.Scope{e.scope(3), e.scope(9), e.scope(1), e.scope(3), e.scope(2)}
		got, _, err := e.s.Families(e.ctx, asked)
		if err != nil || len(got) != 3 {
			e.Fatalf("Families: %d, %v; want 3", len(got), err)
		}
		for i, scope := range []key.Scope{e.scope(3), e.scope(1), e.scope(2)} {
			want, err := e.s.Scope(e.ctx, scope)
			if d := diff(want, got[i]); d != "" || err != nil {
				e.Errorf("%v (-Scope +Families):\n%s", err, d)
			}
			nearNow(e.T, "Now", got[i].Now)
		}
		if none, _, err := e.s.Families(e.ctx, nil); err != nil || len(none) != 0 {
			e.Errorf("Families of none: %v, %v", none, err)
		}
	})},
	{"families of many scopes, and of too many", initialized(func(e *env) {
		e.create(e.m.Scope(e.scope(1), "one")...)
		e.create(e.m.Scope(e.scope(40), "one")...)
		var asked []key.Scope
		for n := range store.MaxFamilies {
			asked = append(asked, e.scope(n+1))
		}
		for _, n := range []int{1, 2, 40, 600, store.MaxFamilies} {
			want := min(n/40, 1) + 1
			if got, _, err := e.s.Families(e.ctx, asked[:n]); err != nil || len(got) != want {
				e.Errorf("Families of %d scopes: %d, %v; want %d", n, len(got), err, want)
			}
		}
		if _, _, err := e.s.Families(e.ctx, append(asked, e.scope(0))); err == nil {
			e.Errorf("Families of more than %d scopes: no error", store.MaxFamilies)
		}
	})},
	{"families of a malformed scope are an error", initialized(func(e *env) {
		if e.h.ScopeName == nil {
			e.Skip("any text is a scope")
		}
		_, _, err := e.s.Families(e.ctx, []key.Scope{e.scope(1), "no such type"})
		if _, ok := errors.AsType[*key.InvalidError](err); !ok {
			e.Errorf("Families: %v, want an InvalidError", err)
		}
	})},
}

func (e *env) references(id key.ID) []store.Reference {
	e.Helper()
	refs, err := e.s.References(e.ctx, id)
	if err != nil {
		e.Fatalf("References(%q): %v", id, err)
	}
	return refs
}
