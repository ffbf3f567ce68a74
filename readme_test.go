package keyhold_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The README shows the code of the examples, so that it compiles and does what it says.
func TestReadmeShowsTheExamples(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	must(t, err)
	shown := strings.Split(string(readme), "```go\n")[1:]
	examples := []string{"example_test.go", "example_tx_test.go", "example_postgres_test.go", "example_raw_test.go"}
	if len(shown) != len(examples) {
		t.Fatalf("the README has %d pieces of code, and there are %d examples", len(shown), len(examples))
	}
	for i, file := range examples {
		readmeCode, _, closed := strings.Cut(shown[i], "```")
		if !closed {
			t.Fatal("the README has no end of its code")
		}
		if diff := cmp.Diff(marked(t, file, "README"), readmeCode); diff != "" {
			t.Errorf("README and %s differ (-example +README):\n%s", file, diff)
		}
	}
}

// So does what is said of running an application.
func TestOperationsShowTheExample(t *testing.T) {
	operations, err := os.ReadFile("docs/operations.md")
	must(t, err)
	if code := marked(t, "example_run_test.go", "operations.md"); !strings.Contains(string(operations), "```go\n"+code+"```\n") {
		t.Errorf("docs/operations.md does not show:\n%s", code)
	}
}

// marked is what an example has between the marks of a document that shows it.
func marked(t *testing.T, file, document string) string {
	t.Helper()
	example, err := os.ReadFile(file)
	must(t, err)
	_, rest, begin := strings.Cut(string(example), "// "+document+": begin\n")
	code, _, end := strings.Cut(rest, "\t// "+document+": end")
	if !begin || !end {
		t.Fatalf("%s has no marks", file)
	}
	return strings.ReplaceAll("\n"+code, "\n\t", "\n")[1:]
}
