// Report makes docs/benchmarks.md and its plots of what go test -bench printed, or says which of the promised ratios
// do not hold.
//
//	go run ./report -document ../docs/benchmarks.md -plots ../docs/benchmarks RESULTS
//	go run ./report -judge RESULTS
//
// It ends with 1 where it cannot, and where a ratio does not hold.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("report", flag.ContinueOnError)
	document := flags.String("document", "", "write the tables into this `file`, between the marks that it has")
	plots := flags.String("plots", "", "write the plots into this `folder`")
	judging := flags.Bool("judge", false, "say which ratios do not hold")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("read the arguments: %w", err)
	}
	if flags.NArg() != 1 {
		return errors.New("give one file with results")
	}
	in, err := os.Open(flags.Arg(0))
	if err != nil {
		return fmt.Errorf("open the results: %w", err)
	}
	defer in.Close()
	r, err := read(in, flags.Arg(0))
	if err != nil {
		return err
	}
	if *judging {
		if broken := judge(stdout, r); len(broken) > 0 {
			return fmt.Errorf("promises that are not kept: %s", strings.Join(broken, "; "))
		}
	}
	if *plots != "" {
		for name, text := range charts(r) {
			if err := os.WriteFile(filepath.Join(*plots, name), []byte(text), 0o600); err != nil {
				return fmt.Errorf("write a plot: %w", err)
			}
		}
	}
	if *document == "" {
		return nil
	}
	return rewrite(*document, tables(r))
}

// tables are what stands in the document, by the name of its marks.
func tables(r *results) map[string]string {
	return map[string]string{
		"machine":   machineTable(r),
		"promises":  promisesTable(r),
		"seal":      systemsTable(r, "Seal", false),
		"open":      systemsTable(r, "Open", false),
		"seal-fips": systemsTable(r, "Seal", true),
		"open-fips": systemsTable(r, "Open", true),
		"others":    othersTable(r),
	}
}

// charts are the plots, by the name of their files.
func charts(r *results) map[string]string {
	return map[string]string{
		"seal.svg": systemsChart(r, "Seal").svg(),
		"open.svg": systemsChart(r, "Open").svg(),
		"flat.svg": flatChart(r).svg(),
	}
}

func rewrite(path string, tables map[string]string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	text, err := filled(string(old), tables)
	if err != nil {
		return fmt.Errorf("fill in %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	return nil
}

// filled puts each table between its marks. Every mark has to be there once: prose around them is written by hand, and
// nothing of it is lost.
func filled(text string, tables map[string]string) (string, error) {
	for name, table := range tables {
		begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
		before, rest, ok := strings.Cut(text, begin)
		_, after, ended := strings.Cut(rest, end)
		if !ok || !ended || strings.Contains(rest, begin) {
			return "", fmt.Errorf("there has to be one line %q and, after it, one %q", strings.TrimSpace(begin), end)
		}
		text = before + begin + "\n" + table + "\n" + end + after
	}
	return text, nil
}
