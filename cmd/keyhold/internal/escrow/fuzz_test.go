package escrow_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/cmd/keyhold/internal/escrow"
	"keyhold.example/keyhold/internal/seal"
)

func FuzzOpen(f *testing.F) {
	needsAge(f)
	for _, name := range []string{"line.txt", "x25519.age", "hybrid.age", "shares-1-of-2.age"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("age-encryption.org/v1\n-> X25519"))
	f.Add([]byte("khs1_\nkhi1_"))
	golden, err := os.ReadFile("testdata/line.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := escrow.Source{
			Files: []string{"-"}, Stdin: bytes.NewReader(text),
			Identities: []string{"testdata/identity-x25519.txt", "testdata/identity-hybrid.txt"},
		}
		got, err := s.Open()
		if err != nil {
			for _, known := range []error{
				escrow.ErrDamaged, escrow.ErrIdentity, seal.ErrNotRecovery, seal.ErrNotShare, seal.ErrMistyped, seal.ErrSameShare, seal.ErrMixed,
			} {
				if errors.Is(err, known) {
					return
				}
			}
			if _, few := errors.AsType[*seal.TooFewSharesError](err); !few {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		ik, err := seal.ParseRecovery(got.Line.Reveal())
		if err != nil || !bytes.Equal(ik.Recovery().Reveal(), got.Line.Reveal()) {
			t.Fatalf("what opened is no recovery line: %v", err)
		}
		sealed := !bytes.Contains(text, got.Line.Reveal()) && got.Shares == 0
		if sealed && !bytes.Equal(bytes.TrimSpace(golden), got.Line.Reveal()) {
			t.Fatal("a file opened that nobody wrote")
		}
	})
}

func FuzzRecipients(f *testing.F) {
	needsAge(f)
	dir := f.TempDir()
	for _, text := range []string{alice, ssh, "# " + alice + "\n" + alice, "age1pq1", "AGE-SECRET-KEY-1", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "recipients.txt")
		write(t, path, text)
		plan, err := escrow.Prepare(filepath.Join(dir, "recovery.age"), []string{"@" + path}, 0)
		if err != nil {
			if !errors.Is(err, escrow.ErrRecipients) && !errors.Is(err, escrow.ErrDamaged) {
				t.Fatalf("an error of no kind: %v", err)
			}
			return
		}
		if !strings.Contains(text, "age1") || len(plan.Files()) != 1 {
			t.Fatalf("%q names recipients", text)
		}
	})
}
