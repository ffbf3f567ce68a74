package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
)

// An id says which benchmark it was, and how it ran.
type id struct {
	dir   string // of its package, from the top of the repository: "." or "./benchmarks"
	name  string // without "Benchmark", and without the number of cores at its end
	cores int    // GOMAXPROCS
	fips  bool   // GODEBUG=fips140=on
}

// results are what the benchmarks of one or more runs printed.
type results struct {
	config map[string]string // the machine, the date and so on, as the last run has them
	order  []id              // as they first came
	values map[id]map[string][]float64
}

// read takes what go test -bench printed, and fails where that has no benchmark, or one that cannot be read.
func read(r io.Reader, name string) (*results, error) {
	res := &results{config: map[string]string{}, values: map[id]map[string][]float64{}}
	in := benchfmt.NewReader(r, name)
	var bad []error
	for in.Scan() {
		switch rec := in.Result().(type) {
		case *benchfmt.Result:
			res.add(rec)
		case *benchfmt.SyntaxError:
			bad = append(bad, rec)
		}
	}
	if err := errors.Join(append(bad, in.Err())...); err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	if len(res.order) == 0 {
		return nil, fmt.Errorf("read results: there is no benchmark in %s", name)
	}
	return res, nil
}

const module = "keyhold.example/keyhold"

func (r *results) add(rec *benchfmt.Result) {
	for _, c := range rec.Config {
		if c.File {
			r.config[c.Key] = string(c.Value)
		}
	}
	of := id{
		dir: "." + strings.TrimPrefix(rec.GetConfig("pkg"), module), name: string(rec.Name),
		cores: 1, fips: rec.GetConfig("fips140") == "on",
	}
	if _, parts := rec.Name.Parts(); len(parts) > 0 {
		last := string(parts[len(parts)-1])
		if n, err := strconv.Atoi(strings.TrimPrefix(last, "-")); err == nil && strings.HasPrefix(last, "-") {
			of.cores, of.name = n, strings.TrimSuffix(of.name, last)
		}
	}
	if r.values[of] == nil {
		r.order = append(r.order, of)
		r.values[of] = map[string][]float64{}
	}
	for _, v := range rec.Values {
		value, unit := v.Value, v.Unit
		if v.OrigUnit != "" { // as it was printed, not in seconds
			value, unit = v.OrigValue, v.OrigUnit
		}
		r.values[of][unit] = append(r.values[of][unit], value)
	}
}

// median is the median of the runs, with the range that holds it with 95 % confidence; both are those of benchstat. It
// says whether there is any.
func (r *results) median(of id, unit string) (benchmath.Summary, bool) {
	values := r.values[of][unit]
	if len(values) == 0 {
		return benchmath.Summary{}, false
	}
	sample := benchmath.NewSample(slices.Clone(values), &benchmath.DefaultThresholds)
	return benchmath.AssumeNothing.Summary(sample, 0.95), true
}

// center is the median without FIPS mode, on so many cores; 0 is the most that there was.
func (r *results) center(dir, name, unit string, cores int) (float64, bool) {
	if cores == 0 {
		for of := range r.values {
			if of.dir == dir && of.name == name && !of.fips {
				cores = max(cores, of.cores)
			}
		}
	}
	s, ok := r.median(id{dir, name, cores, false}, unit)
	return s.Center, ok
}

// runs are the fewest and the most times that a benchmark ran.
func (r *results) runs() (least, most int) {
	for _, units := range r.values {
		for _, values := range units {
			if n := len(values); least == 0 || n < least {
				least = n
			}
			most = max(most, len(values))
		}
	}
	return least, most
}
