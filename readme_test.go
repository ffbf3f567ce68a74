package keyhold_test

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The README shows the code of the example, so that it compiles and does what it says.
func TestReadmeShowsTheExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	must(t, err)
	example, err := os.ReadFile("example_test.go")
	must(t, err)

	_, rest, ok := strings.Cut(string(readme), "```go\n")
	shown, _, ok2 := strings.Cut(rest, "```")
	_, rest, ok3 := strings.Cut(string(example), "// README: begin\n")
	code, _, ok4 := strings.Cut(rest, "\t// README: end")
	if !ok || !ok2 || !ok3 || !ok4 {
		t.Fatal("the README has no code, or the example no marks")
	}
	code = strings.ReplaceAll("\n"+code, "\n\t", "\n")[1:]
	if diff := cmp.Diff(code, shown); diff != "" {
		t.Errorf("README and example differ (-example +README):\n%s", diff)
	}
}
