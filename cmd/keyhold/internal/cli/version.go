package cli

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold/store"
)

// formatVersion is the version of docs/format.md that this program writes.
const formatVersion = 1

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of the program, its tables and its format",
		Args:  args(),
		RunE: func(*cobra.Command, []string) error {
			version, revision := "(devel)", ""
			if info, ok := debug.ReadBuildInfo(); ok {
				version = info.Main.Version
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						revision = s.Value
					}
				}
			}
			if version == "" {
				version = "(devel)"
			}
			platform := runtime.GOOS + "/" + runtime.GOARCH
			return a.result(map[string]any{
				"version": version, "revision": revision, "schema": store.SchemaVersion, "format": formatVersion,
				"go": runtime.Version(), "platform": platform,
			}, func(w io.Writer) {
				line(w, fmt.Sprintf("keyhold %s, schema %d, format %d, %s %s",
					version, store.SchemaVersion, formatVersion, runtime.Version(), platform))
			})
		},
	}
}
