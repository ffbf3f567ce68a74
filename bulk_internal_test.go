package keyhold

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

func TestPaceFindsTheSizeOfATransaction(t *testing.T) {
	// A database that writes so many rows in 100 ms, from the size that was found before.
	for _, step := range []struct {
		per100ms, least, most int
	}{
		{1_000_000, paceMost, paceMost},
		{1000, 500, 1000},
		{600, 300, 600},
		{1, paceLeast, paceLeast},
		{4000, 2000, 4000},
	} {
		p := &pace{rows: paceLeast}
		if step.per100ms < 700 {
			p.rows = paceMost
		}
		for range 20 {
			rows := p.next()
			p.took(rows, time.Duration(rows)*paceTarget/time.Duration(step.per100ms))
		}
		if got := p.next(); got < step.least || got > step.most {
			t.Errorf("%d rows in 100 ms: %d rows a transaction, want %d to %d", step.per100ms, got, step.least, step.most)
		}
	}
	var p pace
	p.took(paceFirst/2, time.Millisecond)
	if p.next() != paceFirst {
		t.Errorf("after a quick one that was not full: %d, want %d still", p.next(), paceFirst)
	}
	p.took(300, time.Second)
	if p.next() != paceFirst {
		t.Errorf("after a slow one of 300: %d, want %d still", p.next(), paceFirst)
	}
	for _, c := range []struct{ now, rows, next int }{
		{paceFirst, paceFirst, paceFirst},
		{paceLeast, paceMost, paceLeast},
		{2000, 2000, 1000},
		{2000, 10, paceLeast},
		{300, 300, paceLeast},
	} {
		p := pace{rows: c.now}
		p.took(c.rows, 5*time.Second)
		if p.next() != c.next {
			t.Errorf("after a slow one of %d, of at most %d: %d, want %d", c.rows, c.now, p.next(), c.next)
		}
	}
}

// However many rows an item has, transactions of whole items get as large as the database is quick.
func TestPaceGrowsWithItemsThatDoNotFillIt(t *testing.T) {
	for _, rows := range []int{1, 3, 7, 8, 51, 99, 101, 126, 130, 200, 249, 251, 400, 900} {
		var p pace
		for range 40 {
			_, total := p.cut(10_000, func(int) int { return rows })
			p.took(total, time.Millisecond)
		}
		if p.next() != paceMost {
			t.Errorf("items of %d rows: %d rows a transaction, want %d", rows, p.next(), paceMost)
		}
	}
}

// Scopes with many versions are read a few at a time, others 250.
func TestReadsGoByTheRowsOfThoseBefore(t *testing.T) {
	families := func(scopes, rows int) []store.Family {
		list := make([]store.Family, scopes)
		for i := range list {
			list[i].Root.Versions = make([]store.Version, 1)
			list[i].Data = []store.Key{{Versions: make([]store.Version, rows-3)}}
		}
		return list
	}
	var r readPace
	for _, c := range []struct{ scopes, rows, next int }{
		{0, 3, readFirst},
		{readFirst, 10, 2 * readFirst},
		{1, readRows, 1},
		{1, 3 * readRows, 1},
		{1, 10, 2},
		{2, 10, 4},
		{4, readRows / 5, 5},
		{5, 10, 10},
		{10, 10, 20},
		{20, 10, 40},
		{40, 10, 80},
		{80, 10, 160},
		{160, 10, bulkScopes},
		{bulkScopes, 10, bulkScopes},
		{bulkScopes, 50, 200},
	} {
		r.read(families(c.scopes, c.rows))
		if r.next() != c.next {
			t.Fatalf("after %d scopes of %d rows: %d, want %d", c.scopes, c.rows, r.next(), c.next)
		}
	}
}

func TestPaceCutsAtLeastOneItem(t *testing.T) {
	p := &pace{rows: 100}
	for _, c := range []struct{ rows, n, items int }{{40, 5, 2}, {50, 5, 2}, {101, 5, 1}, {1, 5, 5}, {0, 5, 5}, {1, 0, 0}} {
		if items, total := p.cut(c.n, func(int) int { return c.rows }); items != c.items || total != items*c.rows {
			t.Errorf("%d items of %d rows: %d with %d rows, want %d", c.n, c.rows, items, total, c.items)
		}
	}
}

func TestAheadEndsWithTheFirstError(t *testing.T) {
	ctx := t.Context()
	var made atomic.Int64
	next := func(context.Context) (int64, bool, error) {
		n := made.Add(1)
		return n, n < 5, nil
	}
	var used []int64
	use := func(_ context.Context, n int64) error { used = append(used, n); return nil }
	if err := ahead(ctx, next, use); err != nil || len(used) != 5 || used[4] != 5 {
		t.Errorf("used %v, %v", used, err)
	}
	wrong := errors.New("wrong")
	made.Store(0)
	err := ahead(ctx, next, func(context.Context, int64) error { return wrong })
	if !errors.Is(err, wrong) || made.Load() > 2 {
		t.Errorf("use failed: %v after %d were made", err, made.Load())
	}
	used = nil
	failing := func(context.Context) (int64, bool, error) { return 0, true, wrong }
	if err := ahead(ctx, failing, use); !errors.Is(err, wrong) || len(used) != 0 {
		t.Errorf("next failed: %v, used %v", err, used)
	}
	ctx, cancel := context.WithCancel(ctx)
	endless := func(context.Context) (int64, bool, error) { return 0, true, nil }
	err = ahead(ctx, endless, func(context.Context, int64) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("its context ended: %v", err)
	}
}

func TestInParallelDoesEachOnce(t *testing.T) {
	for _, n := range []int{0, 1, 1000} {
		done := make([]atomic.Int64, n)
		inParallel(n, func(i int) { done[i].Add(1) })
		for i := range done {
			if done[i].Load() != 1 {
				t.Errorf("%d of %d was done %d times", i, n, done[i].Load())
			}
		}
	}
}

func TestPagesGoOnBehindEmptyOnes(t *testing.T) {
	lists := map[key.ID][]key.Scope{"": make([]key.Scope, bulkScopes+1), "a": nil, "b": make([]key.Scope, 3)}
	nexts := map[key.ID]key.ID{"": "a", "a": "b", "b": ""}
	next := pages(&readPace{scopes: bulkScopes}, func(_ context.Context, after key.ID) ([]key.Scope, key.ID, error) {
		return lists[after], nexts[after], nil
	})
	var sizes []int
	for more := true; more; {
		var scopes []key.Scope
		var err error
		if scopes, more, err = next(t.Context()); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(scopes))
	}
	if want := []int{bulkScopes, 1, 0, 3}; len(sizes) != 4 || [4]int(sizes) != [4]int(want) {
		t.Errorf("pages of %v, want %v", sizes, want)
	}
}
