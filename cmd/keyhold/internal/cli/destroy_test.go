package cli

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/sqlitestore"
)

func TestThePreviewOfADestructionNamesWhomDestroyRefusesFor(t *testing.T) {
	flags := installation(t)
	id := retiredVersion(t, flags)
	if code, _, stderr := run(t, nil, append([]string{"key", "disable", id}, flags...)...); code != exitDone {
		t.Fatal(stderr)
	}
	s, err := sqlitestore.Open(strings.TrimPrefix(flags[1], "sqlite:"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	epochs, err := s.Epochs(t.Context())
	ahead := epochs.Keys // of what a database knows that was restored
	for b := range ahead {
		ahead[b]++
	}
	for _, in := range []store.Instance{
		{ID: "ki_00000000000000000000000000", Name: "none", Life: 960},
		{ID: "ki_11111111111111111111111110", Name: "all", Seen: epochs.Keys, Life: 960},
		{ID: "ki_22222222222222222222222220", Name: "ahead", Seen: ahead, Life: 960},
	} {
		if err == nil {
			_, err = s.Sign(t.Context(), in)
		}
	}
	if err != nil {
		t.Fatal(err)
	}

	var preview struct{ Unseen []struct{ Name string } }
	code, stdout, stderr := run(t, nil, append([]string{"key", "destroy", id, "--grace", "0", "--json"}, flags...)...)
	if err := json.Unmarshal([]byte(stdout), &preview); err != nil || code != exitUsage || len(preview.Unseen) != 2 {
		t.Errorf("%v, exit code %d, %s, %s", err, code, stdout, stderr)
	}
	_, _, refused := run(t, nil, append([]string{"key", "destroy", id, "--grace", "0", "--yes"}, flags...)...)
	if !strings.Contains(refused, "have not seen the last change: ") || strings.Count(refused, "last sign") != len(preview.Unseen) {
		t.Errorf("it is refused for %s, and said for %v", refused, preview.Unseen)
	}
	for _, in := range preview.Unseen {
		if !strings.Contains(refused, in.Name+" (last sign") {
			t.Errorf("%s is not in %s", in.Name, refused)
		}
	}
	if err := errors.Join(s.Leave(t.Context(), "ki_00000000000000000000000000"), s.Leave(t.Context(), "ki_22222222222222222222222220")); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr = run(t, nil, append([]string{"key", "destroy", id, "--grace", "0"}, flags...)...)
	if code != exitUsage || strings.Contains(stdout, "seen") || !strings.Contains(stderr, "with --yes it is gone for ever") {
		t.Errorf("exit code %d, %s, %s", code, stdout, stderr)
	}
}
