package cli

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold/localroot"
)

func (a *app) rootKeygenCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keygen FILE",
		Short: "Make a new local root in a new file",
		Long: `Makes a new local root and writes it as one line to FILE, which only its owner can read. A file that is there already is
never touched. It prints the root's id, which is not secret.`,
		Args: args("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			path := args[0]
			if path == "" {
				return usageError("FILE is empty", "")
			}
			root, err := localroot.Generate(path)
			switch {
			case errors.Is(err, fs.ErrExist):
				return failed("exists", path+" is there already, and was not touched", "a root that is lost cannot be made again: choose another name")
			case err != nil:
				return failed("root", "cannot write the root "+path+": "+keygenReason(path, err), "")
			}
			id, err := root.KeyId(nil) //nolint:staticcheck // a local root needs no context to say its id
			if err != nil {
				return err
			}
			a.say("made a new root in %s; keep a copy of it in a safe place: without it nothing that it protects can be opened", path)
			if a.json {
				return writeError(encode(a.out, map[string]string{"id": id, "root": "file:" + path}))
			}
			return a.write([]byte(id + "\n"))
		},
	}
}

// keygenReason is why a root's file could not be written.
func keygenReason(path string, err error) string {
	if at, ok := errors.AsType[*fs.PathError](err); ok && at.Path != path && errors.Is(err, fs.ErrPermission) {
		return "its folder has to be readable too, so that the file outlasts a crash"
	}
	return pathReason(err)
}
