package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const header = "goos: linux\npkg: keyhold.example/keyhold/benchmarks\ncpu: some CPU\n"

func mustRead(t *testing.T, text string) *results {
	t.Helper()
	r, err := read(strings.NewReader(text), "results")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMediansAreOfTheRunsOfOneBenchmark(t *testing.T) {
	r := mustRead(t, "go: go1.26\nfips140: off\n"+header+`
BenchmarkSeal/size=64/system=gcm 	 100	 30 ns/op	 7 B/op	 1 allocs/op
BenchmarkSeal/size=64/system=gcm-2 	 100	 15 ns/op
BenchmarkSeal/size=64/system=gcm 	 100	 10 ns/op
PASS
BenchmarkSeal/size=64/system=gcm-append-2 	 100	 3 ns/op
fips140: on
`+header+`
BenchmarkSeal/size=64/system=gcm 	 100	 900 ns/op
fips140: off
BenchmarkSeal/size=64/system=gcm 	 100	 20 ns/op
`)
	const gcm, buffer = "Seal/size=64/system=gcm", "Seal/size=64/system=gcm-append"
	for _, c := range []struct {
		of   id
		want float64
	}{
		{id{here, gcm, 1, false}, 20}, {id{here, gcm, 2, false}, 15}, {id{here, gcm, 1, true}, 900}, {id{here, buffer, 2, false}, 3},
	} {
		if got, ok := r.median(c.of, "ns/op"); !ok || got.Center != c.want {
			t.Errorf("the median of %+v is %v (%v), want %v", c.of, got.Center, ok, c.want)
		}
	}
	if got, ok := r.median(id{here, buffer, 1, false}, "ns/op"); ok {
		t.Errorf("what was not measured has the median %v", got.Center)
	}
	if got, ok := r.center(here, gcm, "ns/op", 0); !ok || got != 15 {
		t.Errorf("on most cores it takes %v (%v), want 15", got, ok)
	}
	if r.config["go"] != "go1.26" || r.config["cpu"] != "some CPU" {
		t.Errorf("read %v", r.config)
	}
}

func TestResultsThatSayNothingAreRefused(t *testing.T) {
	for _, text := range []string{"", header + "PASS\n", header + "BenchmarkSeal 100 thirty ns/op\n"} {
		if _, err := read(strings.NewReader(text), "results"); err == nil {
			t.Errorf("%q was taken for results", text)
		}
	}
}

// kept are results that keep each promise of a ratio, all but one, which is off by so much.
func kept(but int, off float64) string {
	text := header
	for i, p := range promises {
		if p.gate.printed == nil {
			continue
		}
		v := p.gate.limit
		switch {
		case i == but:
			v += off
		case p.gate.than == "<":
			v -= 0.01
		}
		text += fmt.Sprintf("Benchmark%s-2 200 %.3f %s\n", p.name, v, p.unit)
	}
	return text
}

func TestTheGateFailsForEachRatioThatIsWorse(t *testing.T) {
	if broken := judge(io.Discard, mustRead(t, kept(-1, 0))); len(broken) > 0 {
		t.Errorf("ratios at their bounds do not hold: %v", broken)
	}
	gated := 0
	for i, p := range promises {
		if p.gate.printed == nil {
			continue
		}
		gated++
		broken := judge(io.Discard, mustRead(t, kept(i, 0.01)))
		if len(broken) != 1 || broken[0] != p.what {
			t.Errorf("where %q is worse, these do not hold: %q", p.what, broken)
		}
	}
	if gated < 10 {
		t.Errorf("%d ratios are looked at", gated)
	}
	// As .ci/bench-short runs it.
	file := filepath.Join(t.TempDir(), "results")
	for off, want := range map[float64]bool{0: true, 0.01: false} {
		if err := os.WriteFile(file, []byte(kept(0, off)), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := run([]string{"-judge", file}, io.Discard); (err == nil) != want {
			t.Errorf("with a ratio %v over its bound, the gate says %v", off, err)
		}
	}
}

func TestTheGateFailsWhereARatioIsMissing(t *testing.T) {
	text := kept(-1, 0)
	last := strings.LastIndex(strings.TrimSpace(text), "\n")
	if broken := judge(io.Discard, mustRead(t, text[:last+1])); len(broken) != 1 {
		t.Errorf("with one ratio not measured, these do not hold: %q", broken)
	}
}

func TestPromisesAreShownAsTheyAre(t *testing.T) {
	table := promisesTable(mustRead(t, kept(0, 0.5)))
	for _, want := range []string{
		fmt.Sprintf("| ≤ 1.60 | %.2f | **no** |", promises[0].gate.limit+0.5), "| ≤ 1.60 | 1.60 | yes |",
		fmt.Sprintf("| < 1.00 | %.2f | **no** |", promises[8].gate.limit), "| not measured |  |",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("there is no %q in\n%s", want, table)
		}
	}
}

// A promise whose benchmark or test has another name by now would be one that nobody looks at.
func TestWhatShowsAPromiseIsThere(t *testing.T) {
	var code strings.Builder
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		code.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range promises {
		name := p.test
		if name == "" {
			base, _, _ := strings.Cut(p.name, "/")
			name = "Benchmark" + base
		}
		if !strings.Contains(code.String(), "\nfunc "+name+"(") {
			t.Errorf("%q is shown by %s, which is not there", p.what, name)
		}
	}
}

func TestTablesStandBetweenTheirMarks(t *testing.T) {
	text := "by hand\n<!-- begin a -->\nold\n<!-- end a -->\nby hand too\n<!-- begin b -->\n<!-- end b -->\n"
	want := "by hand\n<!-- begin a -->\n\nA\n\n<!-- end a -->\nby hand too\n<!-- begin b -->\n\nB\n\n<!-- end b -->\n"
	for range 2 { // the second time it is as new
		got, err := filled(text, map[string]string{"a": "A\n", "b": "B\n"})
		if err != nil || got != want {
			t.Fatalf("filled in: %v\n%s", err, got)
		}
		text = got
	}
	for _, text := range []string{
		"", "<!-- begin a -->\n", "<!-- end a -->\n<!-- begin a -->\n", strings.Repeat("<!-- begin a -->\n<!-- end a -->\n", 2),
	} {
		if got, err := filled(text, map[string]string{"a": "A\n"}); err == nil {
			t.Errorf("%q was filled in: %q", text, got)
		}
	}
}

// Nobody edits a figure: the page and its plots are what was measured.
func TestTheDocumentIsMadeOfItsResults(t *testing.T) {
	const docs = "../../docs/"
	must := func(b []byte, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	r := mustRead(t, must(os.ReadFile(docs+"benchmarks/results.txt")))
	have := must(os.ReadFile(docs + "benchmarks.md"))
	want, err := filled(have, tables(r))
	if err != nil {
		t.Fatal(err)
	}
	if have != want {
		t.Error("docs/benchmarks.md has other figures than docs/benchmarks/results.txt: go -C benchmarks run ./report " +
			"-document ../docs/benchmarks.md -plots ../docs/benchmarks ../docs/benchmarks/results.txt")
	}
	for name, want := range charts(r) {
		if must(os.ReadFile(docs+"benchmarks/"+name)) != want {
			t.Errorf("docs/benchmarks/%s shows other figures than docs/benchmarks/results.txt", name)
		}
		if !strings.Contains(have, "(benchmarks/"+name+")") {
			t.Errorf("docs/benchmarks.md does not show %s", name)
		}
	}
}

func TestBarsAreAsLongAsTheirFigures(t *testing.T) {
	svg := chart{`a "b" <c>`, []panel{
		{"first", []bar{{"x & y", 50, "50 ns", true}, {"z", 100, "100 ns", false}}},
		{"none", nil},
		{"second", []bar{{"x", 3, "3 s", true}}},
	}}.svg()
	dec := xml.NewDecoder(strings.NewReader(svg))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg)
		}
	}
	var got []string
	for _, m := range regexp.MustCompile(`class="(\w+)" x="200" y="\d+" width="([\d.]+)"`).FindAllStringSubmatch(svg, -1) {
		got = append(got, m[1]+" "+m[2])
	}
	if want := "ours 210.0, other 420.0, ours 420.0"; strings.Join(got, ", ") != want {
		t.Errorf("the bars are %q, want %q", got, want)
	}
	for _, want := range []string{"x &amp; y", ">50 ns<", ">second<", "prefers-color-scheme: dark"} {
		if !strings.Contains(svg, want) {
			t.Errorf("there is no %q in\n%s", want, svg)
		}
	}
	if strings.Contains(svg, ">none<") {
		t.Error("a panel without bars is drawn")
	}
	if empty := (chart{title: "nothing"}).svg(); empty != "" {
		t.Errorf("a chart without bars is %q", empty)
	}
}

func TestFiguresHaveThreeDigits(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{nanoseconds(0.8251), "0.825 ns"},
		{nanoseconds(254.4), "254 ns"},
		{nanoseconds(9999), "9\u202f999 ns"},
		{nanoseconds(12345), "12.3 µs"},
		{nanoseconds(1.5e6), "1.5 ms"},
		{nanoseconds(2e9), "2 s"},
		{bytes(64), "64 B"},
		{bytes(1 << 10), "1 KiB"},
		{bytes(1900), "1.86 KiB"},
		{bytes(3 << 20), "3 MiB"},
		{digits(49123), "49\u202f123"},
		{digits(1234567), "1\u202f234\u202f567"},
		{digits(0), "0"},
		{digits(100), "100"},
		{times(1.254), "1.25"},
		{percent(0.7), "70 %"},
		{perSecond(3000), "3\u202f000 a second"},
		{inUnit(1500, "ns/key"), "1\u202f500 ns/key"},
		{inUnit(2e6, "ns/key"), "2 ms/key"},
		{inUnit(3, "calls"), "3 calls"},
	} {
		if c.got != c.want {
			t.Errorf("printed %q, want %q", c.got, c.want)
		}
	}
}
