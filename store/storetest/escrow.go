package storetest

import (
	"fmt"
	"strings"

	"keyhold.example/keyhold/store"
)

var escrowTests = []test{
	{"what became of escrows is listed in its order", initialized(func(e *env) {
		var want []store.Escrow
		kids := [][]byte{e.m.IKKID(), e.m.Bytes(16)}
		for i, detail := range []string{
			"", "age to 2 recipients: age1abc, age1def", "'; drop table kms_escrow; --", "tab\tnew\nline\x7f",
			"\u202e\U0010FFFF", strings.Repeat("é", 2048), "%s{prefix}?1$1",
		} {
			row := store.Escrow{IKKID: kids[i%2], Event: []string{"written", "verified"}[i/2%2], Detail: detail}
			before := e.roll().Now
			given := row
			given.At = 7
			e.addEscrow(e.m.Inst(), given, nil)
			want = append(want, row)
			for _, s := range e.handles(2) {
				got, err := s.Escrows(e.ctx)
				if err != nil || len(got) != len(want) {
					e.Fatalf("Escrows: %d, %v; want %d", len(got), err, len(want))
				}
				if last := got[i].At; last < before || last > e.roll().Now {
					e.Errorf("stored at %d; want from %d on", last, before)
				}
				for j := range got {
					got[j].At = 0
				}
				if d := diff(want, got); d != "" {
					e.Errorf("Escrows (-stored +read):\n%s", d)
				}
			}
		}
	})},
	{"what cannot be is refused, and another installation's is not stored", initialized(func(e *env) {
		good := store.Escrow{IKKID: e.m.IKKID(), Event: "written", Detail: "age"}
		e.addEscrow(e.m.Inst(), good, nil)
		e.unchanged(func() {
			for _, change := range []func(r *store.Escrow){
				func(r *store.Escrow) { r.IKKID = nil },
				func(r *store.Escrow) { r.IKKID = r.IKKID[:15] },
				func(r *store.Escrow) { r.IKKID = append(r.IKKID, 0) },
				func(r *store.Escrow) { r.Event = "" },
				func(r *store.Escrow) { r.Event = "Written" },
				func(r *store.Escrow) { r.Detail = "a\x00b" },
				func(r *store.Escrow) { r.Detail = "a\xffb" },
				func(r *store.Escrow) { r.Detail = strings.Repeat("é", 2048) + "a" },
			} {
				bad := good
				bad.IKKID = e.m.IKKID()
				change(&bad)
				e.addEscrow(e.m.Inst(), bad, errRefused)
			}
			e.addEscrow(NewMaker(2).Inst(), good, nil)
		})
	})},
	{"without an installation there are none", func(e *env) {
		e.migrate()
		e.addEscrow(e.m.Inst(), store.Escrow{IKKID: e.m.IKKID(), Event: "written"}, nil)
		if list, err := e.s.Escrows(e.ctx); len(list) != 0 || err != nil {
			e.Errorf("Escrows: %v, %v; want none", list, err)
		}
	}},
	{"they outlast their installation key, and slices belong to the caller", initialized(func(e *env) {
		row := store.Escrow{IKKID: e.m.IKKID(), Event: "verified"}
		e.addEscrow(e.m.Inst(), row, nil)
		in := e.installation()
		in = e.changeRoots(e.m.AddKey(&in))
		e.changeRoots(e.m.DropKey(&in, row.IKKID))
		clear(row.IKKID)
		for range 2 {
			list, err := e.s.Escrows(e.ctx)
			if err != nil || len(list) != 1 {
				e.Fatalf("Escrows: %v, %v; want one", list, err)
			}
			if d := diff(e.m.IKKID(), list[0].IKKID); d != "" {
				e.Errorf("the installation key (-stored +read):\n%s", d)
			}
			clear(list[0].IKKID)
			list[0] = store.Escrow{}
		}
	})},
	{"of 16 at once none is lost", initialized(func(e *env) {
		for i, err := range e.race(16, func(i int, s store.Store) error {
			row := store.Escrow{IKKID: e.m.IKKID(), Event: "written", Detail: fmt.Sprint(i)}
			return s.AddEscrow(e.ctx, e.m.Inst(), row)
		}) {
			if err != nil {
				e.Errorf("AddEscrow, caller %d: %v", i, err)
			}
		}
		list, err := e.s.Escrows(e.ctx)
		details := map[string]bool{}
		for _, row := range list {
			details[row.Detail] = true
		}
		if len(list) != 16 || len(details) != 16 || err != nil {
			e.Errorf("Escrows: %v, %v; want 16", list, err)
		}
	})},
}

func (e *env) addEscrow(inst [16]byte, row store.Escrow, want error) {
	e.Helper()
	err := e.s.AddEscrow(e.ctx, inst, row)
	e.wantClass(fmt.Sprintf("AddEscrow of %x, %q, %.40q", row.IKKID, row.Event, row.Detail), err, want)
}
