package localroot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTheFileIsDurableBeforeItsName(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "root.key")
	type synced struct{ name, content string }
	var got []synced
	err := write(path, "the line", func(f *os.File) error {
		content, err := os.ReadFile(path)
		got = append(got, synced{f.Name(), string(content)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []synced{{path, "the line"}, {dir, "the line"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(synced{})); diff != "" {
		t.Errorf("what was synchronized, and what the file held then (-want +got):\n%s", diff)
	}
}

func TestAFileThatCannotBeMadeDurableIsNotLeft(t *testing.T) {
	broken := errors.New("the disk is broken")
	for fail := range 2 {
		path := filepath.Join(t.TempDir(), "root.key")
		calls := 0
		err := write(path, "the line", func(*os.File) error {
			calls++
			if calls > fail {
				return broken
			}
			return nil
		})
		if !errors.Is(err, broken) || calls != fail+1 {
			t.Errorf("call %d fails: %v after %d calls", fail+1, err, calls)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("call %d fails: the file is there, %v", fail+1, err)
		}
	}
}
