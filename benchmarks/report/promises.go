package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
)

// A promise is something that keyhold promises of itself, with the figure that shows whether it is kept.
type promise struct {
	what  string
	bound bound

	// A benchmark's metric is the figure, or what is worked out from several; or the promise is one that a test keeps.
	name, unit string
	figure     func(*results) (float64, bool)
	test       string

	// gate says that make bench-short fails where it is not kept. Only ratios of what was measured in turns are fit for
	// that: times depend on the machine.
	gate bool
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
func ratio(op string, size int, pair, than string, limit float64) promise {
	over, under, _ := strings.Cut(pair, "/")
	return promise{
		what:  fmt.Sprintf("%s %s: %s, in times of %s", op, bytes(float64(size)), labels[over], labels[under]),
		name:  fmt.Sprintf("Ratio/op=%s/size=%d", op, size),
		unit:  pair,
		bound: bound{than, limit, times},
		gate:  true,
	}
}

// promises are all that are shown in docs/benchmarks.md, in its order.
var promises = []promise{
	ratio("seal", 64, "keyhold/gcm", "≤", 1.6),
	ratio("seal", 1024, "keyhold/gcm", "≤", 1.25),
	ratio("seal", 64, "keyhold-append/gcm-append", "≤", 1.6),
	ratio("seal", 1024, "keyhold-append/gcm-append", "≤", 1.25),
	ratio("seal", 64, "keyhold/tink", "<", 1),
	ratio("seal", 1024, "keyhold/tink", "<", 1),
	ratio("seal", 1024, "keyhold/kms-aead", "≤", 0.5),
	ratio("open", 64, "keyhold/tink", "<", 1),
	ratio("open", 1024, "keyhold/tink", "<", 1),
	ratio("open", 1024, "keyhold/kms-aead", "≤", 0.5),
	{
		what: "allocations of Seal", bound: bound{"≤", 1, count},
		name: "Seal/size=1024/system=keyhold", unit: "allocs/op",
	},
	{
		what: "allocations of AppendSeal", bound: bound{"≤", 0, count},
		name: "Seal/size=1024/system=keyhold-append", unit: "allocs/op",
	},
	{
		what: "allocations of AppendOpen", bound: bound{"≤", 0, count},
		name: "Open/size=1024/system=keyhold-append", unit: "allocs/op",
	},
}

// measured is the figure of p; it says whether there is one.
func (p promise) measured(r *results) (float64, bool) {
	if p.figure != nil {
		return p.figure(r)
	}
	return r.center(p.name, p.unit, 0)
}

// command is what prints the figure of p.
func (p promise) command(r *results) string {
	if p.test != "" {
		return "go test -run '^" + p.test + "$' ."
	}
	base, _, _ := strings.Cut(p.name, "/")
	return fmt.Sprintf("go test -run '^$' -bench '^Benchmark%s$' %s", base, cmp.Or(r.dir[p.name], "."))
}

// judge prints the promises that the results have to keep, and returns those that they do not. A figure that is not
// there keeps nothing.
func judge(w io.Writer, r *results) (broken []string) {
	for _, p := range promises {
		if !p.gate {
			continue
		}
		v, ok := p.measured(r)
		verdict := "ok"
		if !ok {
			verdict = "not measured"
		} else if !p.bound.holds(v) {
			verdict = "NOT KEPT"
		}
		if verdict != "ok" {
			broken = append(broken, p.what)
		}
		_, _ = fmt.Fprintf(w, "%-12s %-75s %s, measured %s\n", verdict, p.what, p.bound, p.bound.printed(v))
	}
	return broken
}
