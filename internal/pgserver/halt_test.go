package pgserver

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestHaltedServerHasItsDataWhenItIsResumed(t *testing.T) {
	const kept = "select oid::text from pg_largeobject_metadata"
	s := started(t, Options{})
	if _, err := answer(t.Context(), s.DSN("postgres"), "select lo_create(4242)::text"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Halt(t.Context()); err != nil {
			t.Fatal(err)
		}
		if text, err := answer(t.Context(), s.DSN("postgres"), kept); err == nil {
			t.Errorf("the halted server answers %q", text)
		}
		if err := s.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		if text, err := answer(t.Context(), s.DSN("postgres"), kept); err != nil || text != "4242" {
			t.Errorf("the resumed server says %q, %v", text, err)
		}
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
	// Only a broken pattern is an error.
	if left, _ := filepath.Glob(s.dir + "*"); len(left) > 0 {
		t.Errorf("%v is still there", left)
	}
	if _, err := os.Stat(s.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
