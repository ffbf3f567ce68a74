package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// A promise is something that keyhold promises of itself, with the figure that shows whether it is kept.
type promise struct {
	what  string
	bound bound

	// A metric of a benchmark is the figure, or what is worked out from several; or a test sees to it.
	dir, name, unit string
	figure          func(*results) (float64, bool)
	test            string

	// gate is what make bench-short has the figure keep; nothing where it has no limit. Only ratios of what was
	// measured in turns are fit for that: times depend on the machine.
	gate bound
}

// A bound is what a figure has to be; it is printed as printed says.
type bound struct {
	than    string // "<", "≤" or "≥"
	limit   float64
	printed func(float64) string
}

func (b bound) String() string { return b.than + " " + b.printed(b.limit) }

func (b bound) holds(v float64) bool {
	switch b.than {
	case "<":
		return v < b.limit
	case "≤":
		return v <= b.limit
	}
	return v >= b.limit
}

// ratio is a promise about the time of one call in times of another's.
func ratio(op string, size int, pair string, promised, gate bound) promise {
	over, under, _ := strings.Cut(pair, "/")
	return promise{
		what:  fmt.Sprintf("%s %s: %s, in times of %s", op, bytes(float64(size)), labels[over], labels[under]),
		dir:   here,
		name:  fmt.Sprintf("Ratio/op=%s/size=%d", op, size),
		unit:  pair,
		bound: promised,
		gate:  gate,
	}
}

func atMost(v float64) bound { return bound{"≤", v, times} }

// less is that it takes less time.
var less = bound{"<", 1, times}

// promises are all that are shown in docs/benchmarks.md, in its order.
var promises = slices.Concat(ofCalls, ofDatabases, ofTests)

// The gate is the promise where that is kept with something to spare, and else more than what was reached by as much as
// it differs from run to run: little, but where most is the garbage collector's.
var ofCalls = []promise{
	ratio("seal", 64, "keyhold/gcm-less", atMost(1.6), atMost(1.8)),
	ratio("seal", 1024, "keyhold/gcm-less", atMost(1.25), atMost(1.4)),
	ratio("seal", 64, "keyhold-append/gcm-less-append", atMost(1.6), atMost(1.8)),
	ratio("seal", 1024, "keyhold-append/gcm-less-append", atMost(1.25), atMost(1.45)),
	ratio("seal", 64, "keyhold/gcm", atMost(1.6), atMost(1.6)),
	ratio("seal", 1024, "keyhold/gcm", atMost(1.25), atMost(1.35)),
	ratio("seal", 64, "keyhold-append/gcm-append", atMost(1.6), atMost(1.6)),
	ratio("seal", 1024, "keyhold-append/gcm-append", atMost(1.25), atMost(1.4)),
	ratio("seal", 64, "keyhold/tink", less, atMost(1.75)),
	ratio("seal", 1024, "keyhold/tink", less, atMost(1.35)),
	ratio("seal", 1024, "keyhold/kms-aead", atMost(0.5), atMost(0.75)),
	ratio("open", 64, "keyhold/tink", less, atMost(2.25)),
	ratio("open", 1024, "keyhold/tink", less, atMost(1.55)),
	ratio("open", 1024, "keyhold/kms-aead", atMost(0.5), atMost(1.1)),
	{
		what: "allocations of Seal", bound: bound{"≤", 1, count},
		dir: here, name: "Seal/size=1024/system=keyhold", unit: "allocs/op",
	},
	{
		what: "allocations of AppendSeal", bound: bound{"≤", 0, count},
		dir: here, name: "Seal/size=1024/system=keyhold-append", unit: "allocs/op",
	},
	{
		what: "allocations of AppendOpen", bound: bound{"≤", 0, count},
		dir: here, name: "Open/size=1024/system=keyhold-append", unit: "allocs/op",
	},
	{
		what: "finding the key that was used before, of 10", bound: bound{"≤", 60, nanoseconds},
		dir: ".", name: "HotLookup/keys=10/same", unit: "ns/op",
	},
	{
		what: "finding the key that was used before, of 100 000", bound: bound{"≤", 60, nanoseconds},
		dir: ".", name: "HotLookup/keys=100000/same", unit: "ns/op",
	},
	{
		what: "allocations of that", bound: bound{"≤", 0, count},
		dir: ".", name: "HotLookup/keys=100000/same", unit: "allocs/op",
	},
	{
		what: "finding any key of 100 000", bound: bound{"≤", 600, nanoseconds},
		dir: ".", name: "HotLookup/keys=100000/random", unit: "ns/op",
	},
	{
		what: "finding the same key on two cores, in times of one", bound: bound{"≥", 1.8, times},
		dir: ".", name: "HotLookup/keys=100000/same/parallel", figure: func(r *results) (float64, bool) {
			one, ok1 := r.center(".", "HotLookup/keys=100000/same/parallel", "ns/op", 1)
			two, ok2 := r.center(".", "HotLookup/keys=100000/same/parallel", "ns/op", 2)
			return one / two, ok1 && ok2
		},
	},
}

var ofDatabases = []promise{
	{
		what: "10 000 scopes × 3 keys warmed up, PostgreSQL", bound: bound{"≤", 2e9, nanoseconds},
		dir: ".", name: "Warm/postgres", unit: "ns/op",
	},
	{
		what: "10 000 scopes × 3 keys warmed up, SQLite", bound: bound{"≤", 1e9, nanoseconds},
		dir: ".", name: "Warm/sqlite", unit: "ns/op",
	},
	{
		what: "scopes with 3 purposes created, PostgreSQL", bound: bound{"≥", 3000, perSecond},
		dir: ".", name: "CreateScopes/postgres", unit: "scopes/s",
	},
	{
		what: "scopes with 3 purposes created, SQLite", bound: bound{"≥", 3000, perSecond},
		dir: ".", name: "CreateScopes/sqlite", unit: "scopes/s",
	},
	{
		what: "versions rewrapped, of the rate of the bare statement, PostgreSQL", bound: bound{"≥", 0.7, percent},
		dir: ".", name: "Rewrap/keyhold", figure: func(r *results) (float64, bool) {
			ours, ok1 := r.center(".", "Rewrap/keyhold", "versions/s", 0)
			bare, ok2 := r.center(".", "Rewrap/bare", "versions/s", 0)
			return ours / bare, ok1 && ok2
		},
	},
	{
		what: "99th percentile of 8 readers meanwhile, in times of alone", bound: atMost(2),
		dir: ".", name: "Rewrap/keyhold_with_readers", figure: func(r *results) (float64, bool) {
			during, ok1 := r.center(".", "Rewrap/keyhold_with_readers", "p99-during-µs", 0)
			alone, ok2 := r.center(".", "Rewrap/keyhold_with_readers", "p99-alone-µs", 0)
			return during / alone, ok1 && ok2
		},
	},
	{
		what: "a sweep of 1 000 000 data keys that finds nothing, PostgreSQL", bound: bound{"≤", 10e6, nanoseconds},
		dir: ".", name: "Sweep/postgres/keys=1000000/due=0", unit: "ns/op",
	},
	{
		what: "the same, SQLite", bound: bound{"≤", 10e6, nanoseconds},
		dir: ".", name: "Sweep/sqlite/keys=1000000/due=0", unit: "ns/op",
	},
	{
		what: "1 000 due keys of 1 000 000 rotated, PostgreSQL", bound: bound{"≤", 2e9, nanoseconds},
		dir: ".", name: "Sweep/postgres/keys=1000000/due=1000", unit: "ns/op",
	},
	{
		what: "the same, SQLite", bound: bound{"≤", 2e9, nanoseconds},
		dir: ".", name: "Sweep/sqlite/keys=1000000/due=1000", unit: "ns/op",
	},
	{
		what: "the same of 1 000 000 keys, in times of 1 000, PostgreSQL", bound: atMost(1.2),
		dir: ".", name: "Sweep/postgres/keys=1000000/due=1000", figure: growth("postgres"),
	},
	{
		what: "the same of 1 000 000 keys, in times of 1 000, SQLite", bound: atMost(1.2),
		dir: ".", name: "Sweep/sqlite/keys=1000000/due=1000", figure: growth("sqlite"),
	},
	{
		what: "memory for a cached data key after one seal, one key a scope", bound: bound{"≤", 2048, bytes},
		dir: ".", name: "WhatACachedKeyTakes/100000x1", unit: "B/key",
	},
	{
		what: "the same, 100 keys a scope", bound: bound{"≤", 2048, bytes},
		dir: ".", name: "WhatACachedKeyTakes/1000x100", unit: "B/key",
	},
}

// growth is how much longer it takes to rotate a key where there are a thousand times as many.
func growth(store string) func(*results) (float64, bool) {
	return func(r *results) (float64, bool) {
		few, ok1 := r.center(".", "Sweep/"+store+"/keys=1000/due=1000", "us/key", 0)
		many, ok2 := r.center(".", "Sweep/"+store+"/keys=1000000/due=1000", "us/key", 0)
		return many / few, ok1 && ok2
	}
}

var ofTests = []promise{
	{what: "a key in use seals and opens without a question to the database or the root", test: "TestHotMessagesAskNobody"},
	{what: "a cold key takes one round trip", test: "TestAColdKeyTakesOneRoundTrip"},
	{what: "a thousand goroutines at a cold key read it once", test: "TestAStampedeReadsAColdKeyOnce"},
	{what: "one call to the external root, however many keys there are", test: "TestTheRootIsCalledOnceHoweverManyKeysThereAre"},
	{what: "moving to a new external root takes one unwrap and one wrap", test: "TestFleetMovesToANewRootHoweverManyScopesThereAre"},
	{what: "how many round trips each call takes; creating a scope two", test: "TestRoundTripsToPostgres"},
	{what: "32 processes at 1 000 due keys make 1 000 versions", test: "TestFleetMakesOneVersionOfEachDueKey"},
	{what: "nothing is lost whatever fails, at every statement", test: "TestEveryOperationSurvivesEveryFault"},
	{what: "nothing is lost whichever message of PostgreSQL is the last", test: "TestAnyMessageMayBeTheLast", dir: "./store/pgstore"},
	{what: "nothing is lost whichever statement of SQLite fails", test: "TestAnyStatementMayFail", dir: "./store/sqlitestore"},
	{what: "a rekey whose processes are killed loses nothing", test: "TestFleetRekeysThoughItIsKilledAgainAndAgain"},
	{what: "what was changed or moved in the database is refused", test: "TestChangedRowsAreRefused"},
	{
		what: "messages, wrapped keys and manifests that were changed anywhere, or moved, are refused",
		test: "TestTamperingIsRefusedEverywhereWithTheSameError", dir: "./internal/seal",
	},
}

// measured is the figure of p; it says whether there is one.
func (p promise) measured(r *results) (float64, bool) {
	if p.figure != nil {
		return p.figure(r)
	}
	return r.center(p.dir, p.name, p.unit, 0)
}

// command is what prints the figure of p.
func (p promise) command() string {
	if p.test != "" {
		return "go test -run '^" + p.test + "$' " + cmp.Or(p.dir, ".")
	}
	base, _, _ := strings.Cut(p.name, "/")
	return fmt.Sprintf("go test -run '^$' -bench '^Benchmark%s$' %s", base, p.dir)
}

// judge prints the promises that the results have to keep, and returns those that they do not. A figure that is not
// there keeps nothing.
func judge(w io.Writer, r *results) (broken []string) {
	for _, p := range promises {
		if p.gate.printed == nil {
			continue
		}
		v, ok := p.measured(r)
		verdict := "ok"
		if !ok {
			verdict = "not measured"
		} else if !p.gate.holds(v) {
			verdict = "NOT KEPT"
		}
		if verdict != "ok" {
			broken = append(broken, p.what)
		}
		_, _ = fmt.Fprintf(w, "%-12s %-75s %s, measured %s\n", verdict, p.what, p.gate, p.gate.printed(v))
	}
	return broken
}
