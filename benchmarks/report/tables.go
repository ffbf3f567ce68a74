package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// machineTable says where, when and how it was measured.
func machineTable(r *results) string {
	least, most := r.runs()
	runs := fmt.Sprint(least)
	if least != most {
		runs = fmt.Sprintf("%d to %d", least, most)
	}
	t := newTable("", "")
	for _, line := range [][2]string{
		{"measured", r.config["date"]},
		{"of", r.config["commit"]},
		{"CPU", r.config["cpu"]},
		{"cores", r.config["cores"]},
		{"system", r.config["os"]},
		{"Go", r.config["go"]},
		{"PostgreSQL", r.config["postgres"]},
		{"load of the machine before", r.config["load"]},
		{"runs of each benchmark", runs},
	} {
		t.row(line[0], cmp.Or(line[1], "unknown"))
	}
	return t.String()
}

// promisesTable has the promises, and what was measured. A test that is named is run by make test.
func promisesTable(r *results) string {
	t := newTable("promise", "bound", "measured", "kept", "shown by")
	for _, p := range promises {
		limit, figure, kept := "", "", "asserted"
		if p.test == "" {
			limit = p.bound.String()
			v, ok := p.measured(r)
			switch {
			case !ok:
				figure, kept = "not measured", ""
			case p.bound.holds(v):
				figure, kept = p.bound.printed(v), "yes"
			default:
				figure, kept = p.bound.printed(v), "**no**"
			}
		}
		t.row(p.what, limit, figure, kept, "`"+p.command()+"`")
	}
	return t.String()
}

// here is where the systems are compared.
const here = "./benchmarks"

var sizes = []int{64, 1 << 10, 64 << 10}

// systemsTable compares the systems in one operation, for one and for two cores.
func systemsTable(r *results, op string, fips bool) string {
	head := []string{""}
	for _, cores := range []int{1, 2} {
		for _, size := range sizes {
			head = append(head, fmt.Sprintf("%s, %s", bytes(float64(size)), counted(cores, "core")))
		}
	}
	t := newTable(append(head, "allocations of 1 KiB")...)
	for _, system := range order {
		row := []string{labels[system]}
		for _, cores := range []int{1, 2} {
			for _, size := range sizes {
				of := id{here, fmt.Sprintf("%s/size=%d/system=%s", op, size, system), cores, fips}
				row = append(row, r.cell(of, "ns/op"))
			}
		}
		of := id{here, fmt.Sprintf("%s/size=1024/system=%s", op, system), 1, fips}
		allocs := "not measured"
		if n, ok := r.median(of, "allocs/op"); ok {
			b, _ := r.median(of, "B/op")
			allocs = fmt.Sprintf("%s, %s", count(n.Center), inUnit(b.Center, "B/op"))
		}
		t.row(append(row, allocs)...)
	}
	return t.String()
}

// cell is a median and its range, or that there is none.
func (r *results) cell(of id, unit string) string {
	s, ok := r.median(of, unit)
	if !ok {
		return "not measured"
	}
	if around := s.PctRangeString(); around != "∞" { // as it is with fewer than six runs
		return inUnit(s.Center, unit) + " ±" + around
	}
	return inUnit(s.Center, unit)
}

// othersTable has every figure that is in no other table, by package.
func othersTable(r *results) string {
	t := newTable("benchmark", "cores", "runs", "figures")
	ids := slices.DeleteFunc(slices.Clone(r.order), func(of id) bool {
		base, _, _ := strings.Cut(of.name, "/")
		return of.dir == here && base != "Ratio"
	})
	slices.SortStableFunc(ids, func(a, b id) int { return cmp.Compare(a.dir, b.dir) })
	for _, of := range ids {
		var figures []string
		runs := 0
		for _, unit := range units(r.values[of]) {
			figures = append(figures, r.cell(of, unit))
			runs = max(runs, len(r.values[of][unit]))
		}
		name := fmt.Sprintf("`%s` in `%s`", of.name, of.dir)
		t.row(name, fmt.Sprint(of.cores), fmt.Sprint(runs), strings.Join(figures, ", "))
	}
	return t.String()
}

// units are those of a benchmark: the time first, memory last.
func units(of map[string][]float64) []string {
	rank := map[string]int{"ns/op": -1, "B/op": 1, "allocs/op": 2}
	all := make([]string, 0, len(of))
	for unit := range of {
		all = append(all, unit)
	}
	slices.SortFunc(all, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank[a], rank[b]), cmp.Compare(a, b))
	})
	return all
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// A table is one in Markdown.
type table struct{ text strings.Builder }

func newTable(head ...string) *table {
	t := &table{}
	t.row(head...)
	t.row(slices.Repeat([]string{"---"}, len(head))...)
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = strings.ReplaceAll(c, "|", `\|`)
	}
	_, _ = t.text.WriteString("| " + strings.Join(cells, " | ") + " |\n") // a Builder takes everything
}

func (t *table) String() string { return t.text.String() }
