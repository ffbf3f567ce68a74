package keyhold_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	// A test that a document names, with the path that stands with it, if one does: `TestName` in `path`. A name with a
	// star stands for all that begin so. What another package's name qualifies is not ours.
	namedTest = regexp.MustCompile("(?:^|[^\\w.])(Test[A-Z]\\w*\\*?)(?:` in `([^`]+)`)?")
	// A test, or what a test kit has of one: a function or a method.
	testFunc = regexp.MustCompile(`(?m)^func (?:\([^)]*\) )?(Test[A-Z]\w*)\(`)
)

// missingTests lists the tests that a text names and that are not there; there has the files of each.
func missingTests(text string, there map[string][]string) (missing []string, named int) {
	for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
		named++
		name, in := m[1], m[2]
		found := false
		for have, files := range there {
			if have != name && !(strings.HasSuffix(name, "*") && strings.HasPrefix(have, name[:len(name)-1])) {
				continue
			}
			found = found || slices.ContainsFunc(files, func(file string) bool {
				return in == "" || in == file || in == path.Dir(file)
			})
		}
		switch {
		case !found && in != "":
			missing = append(missing, fmt.Sprintf("%s in %s", name, in))
		case !found:
			missing = append(missing, name)
		}
	}
	return missing, named
}

// Every test that a document names is there, in the file or folder that it names.
func TestTheTestsThatDocumentsNameAreThere(t *testing.T) {
	there := map[string][]string{}
	documents := []string{"README.md", "CONTRIBUTING.md"}
	must(t, filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != "." && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		name = filepath.ToSlash(name)
		if strings.HasPrefix(name, "docs/") && path.Ext(name) == ".md" {
			documents = append(documents, name)
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		code, err := os.ReadFile(name)
		for _, m := range testFunc.FindAllStringSubmatch(string(code), -1) {
			there[m[1]] = append(there[m[1]], name)
		}
		return err
	}))
	if len(there) < 300 || len(documents) < 6 {
		t.Fatalf("%d tests and %d documents: it was not looked everywhere", len(there), len(documents))
	}
	all := 0
	for _, name := range documents {
		text, err := os.ReadFile(name)
		must(t, err)
		missing, n := missingTests(string(text), there)
		all += n
		for _, test := range missing {
			t.Errorf("%s names %s, which is not there", name, test)
		}
	}
	if all < 30 {
		t.Errorf("only %d tests are named: the documents were not understood", all)
	}
}

// What looks for them finds what is missing.
func TestTestsThatAreNotThereAreFound(t *testing.T) {
	there := map[string][]string{"TestThis": {"a/b_test.go"}, "TestThisToo": {"c_test.go", "d/e_test.go"}, "TestMain": {"c_test.go"}}
	for text, want := range map[string][]string{
		"`TestThis` and TestThisToo.":                         nil,
		"| `TestThis` in `a` | `TestThis` in `a/b_test.go` |": nil,
		"`TestThis*` in `d`":                                  nil,
		"no test; kms.TestDb is another's, MyTestThat none":   nil,
		"`TestThat`":                                      {"TestThat"},
		"TestThisTooo\nTestThi":                           {"TestThisTooo", "TestThi"},
		"`TestThat*`, `TestThis` in `c_test.go`":          {"TestThat*", "TestThis in c_test.go"},
		"`TestThis` in `b`, `TestThisToo` in `e_test.go`": {"TestThis in b", "TestThisToo in e_test.go"},
	} {
		if got, _ := missingTests(text, there); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
