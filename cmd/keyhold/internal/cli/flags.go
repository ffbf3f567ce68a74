package cli

import (
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold/cmd/keyhold/internal/roots"
	"keyhold.example/keyhold/migrate"
)

// checkFlags checks those flags that all commands have and whose zero value would mean something else than it says.
func (a *app) checkFlags(c *cobra.Command) error {
	a.given = c.Flags().Changed
	for _, f := range []struct{ name, value, instead string }{
		{"db", a.db, "KEYHOLD_DB"},
		{"root", a.root, "KEYHOLD_ROOT"},
		{"schema", a.schema, "the schema where the search_path finds the tables"},
		{"prefix", a.prefix, "the default, " + migrate.DefaultPrefix},
	} {
		if a.given(f.name) && f.value == "" {
			return usageError("--"+f.name+" is empty", "leave it out for "+f.instead)
		}
	}
	if a.timeout == 0 {
		return usageError("--timeout 0 leaves no time for anything", "give a time such as 30s, or a negative one for no limit")
	}
	return nil
}

// setting is a flag's value, or where it was not given, the environment's.
func setting(flag, env string) string {
	if flag != "" {
		return flag
	}
	return os.Getenv(env)
}

// allPins is the pins that the installation may have; without any, it may have every one.
func (a *app) allPins() ([]string, error) {
	given := os.Getenv("KEYHOLD_PIN")
	if len(a.pins) > 0 || given == "" {
		return a.pins, nil
	}
	var pins []string
	for pin := range strings.SplitSeq(given, ",") {
		if pin = strings.TrimSpace(pin); pin != "" {
			pins = append(pins, pin)
		}
	}
	if len(pins) == 0 {
		return nil, usageError("KEYHOLD_PIN is set, and there is no pin in it", "give it pins, separated by commas, or unset it")
	}
	return pins, nil
}

// elsewhere is commands that do not act on the installation of the command that names them.
var elsewhere = []string{"keyhold", "keyhold help", "keyhold version", "keyhold demo", "keyhold root keygen", "keyhold import kms"}

// commandsOf is a pattern that finds the commands below c that act on an installation, where they are to be pasted into
// a shell.
func commandsOf(c *cobra.Command) *regexp.Regexp {
	var paths []string
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, below := range c.Commands() {
			walk(below)
		}
		if !c.HasSubCommands() && !slices.Contains(elsewhere, c.CommandPath()) {
			paths = append(paths, regexp.QuoteMeta(c.CommandPath()))
		}
	}
	walk(c)
	return regexp.MustCompile(`\b(` + strings.Join(paths, "|") + `)( --help)?\b`)
}

// pasted is a text with the flags that say which installation it is in each command that it names, as they were given:
// without them, the command would act on that of the environment. What may be secret of an address is never repeated.
func (a *app) pasted(text string) string {
	if a.commands == nil || !a.commands.MatchString(text) {
		return text
	}
	flags, note := "", ""
	if where, err := parseAddress(a.db); a.db != "" && err == nil && where.whole {
		flags += " --db " + shellQuote(a.db)
	} else if a.db != "" {
		note = " (with --db as it was given)"
	}
	if roots.Printable(a.root) {
		flags += " --root " + shellQuote(a.root)
	}
	if a.prefix != migrate.DefaultPrefix {
		flags += " --prefix " + shellQuote(a.prefix)
	}
	if a.schema != "" {
		flags += " --schema " + shellQuote(a.schema)
	}
	var old strings.Builder
	for _, address := range a.oldRoots {
		if roots.Printable(address) {
			old.WriteString(" --old-root " + shellQuote(address))
		}
	}
	return a.commands.ReplaceAllStringFunc(text, func(command string) string {
		if strings.HasSuffix(command, " --help") {
			return command
		}
		if strings.HasSuffix(command, " root rekey") { // which needs them all
			return command + flags + old.String()
		}
		return command + flags
	}) + note
}
