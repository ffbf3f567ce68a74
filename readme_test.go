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
	examples := []string{"example_test.go", "example_tx_test.go", "example_postgres_test.go"}
	if len(shown) != len(examples) {
		t.Fatalf("the README has %d pieces of code, and there are %d examples", len(shown), len(examples))
	}
	for i, file := range examples {
		example, err := os.ReadFile(file)
		must(t, err)
		_, rest, begin := strings.Cut(string(example), "// README: begin\n")
		code, _, end := strings.Cut(rest, "\t// README: end")
		readmeCode, _, closed := strings.Cut(shown[i], "```")
		if !begin || !end || !closed {
			t.Fatalf("%s has no marks, or the README no end of its code", file)
		}
		code = strings.ReplaceAll("\n"+code, "\n\t", "\n")[1:]
		if diff := cmp.Diff(code, readmeCode); diff != "" {
			t.Errorf("README and %s differ (-example +README):\n%s", file, diff)
		}
	}
}
