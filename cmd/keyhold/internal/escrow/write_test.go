package escrow_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"keyhold.example/keyhold/cmd/keyhold/internal/escrow"
	"keyhold.example/keyhold/internal/seal"
)

// A recipient whose identity protects nothing, and one that is refused.
const (
	alice = "age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj"
	ssh   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN alice@host"
)

func TestRecipientsAreRefused(t *testing.T) {
	a, b, hybrid := newIdentity(t, false), newIdentity(t, false), newIdentity(t, true)
	identity, err := os.ReadFile(a.path)
	if err != nil {
		t.Fatal(err)
	}
	list := func(lines ...string) string {
		path := filepath.Join(t.TempDir(), "recipients.txt")
		write(t, path, strings.Join(lines, "\n"))
		return "@" + path
	}
	secretLine := strings.Split(string(identity), "\n")[2]
	for name, c := range map[string]struct {
		recipients []string
		threshold  int
		says       string
	}{
		"none":                            {nil, 0, "there are none"},
		"an empty one":                    {[]string{""}, 0, "begins with neither"},
		"an empty file":                   {[]string{list("# nobody", "")}, 0, "names none"},
		"the same twice":                  {[]string{a.recipient, b.recipient, a.recipient}, 0, "named twice"},
		"the same in a file":              {[]string{a.recipient, list(b.recipient, a.recipient)}, 0, "named twice"},
		"two custodians with one key":     {[]string{a.recipient, a.recipient}, 2, "named twice"},
		"an SSH key":                      {[]string{ssh}, 0, "SSH"},
		"an SSH key in a file":            {[]string{list(a.recipient, "", ssh)}, 0, "line 3"},
		"an identity":                     {[]string{secretLine}, 0, "secret"},
		"an identity in small letters":    {[]string{strings.ToLower(secretLine)}, 0, "secret"},
		"a file of identities":            {[]string{"@" + a.path}, 0, "line 3"},
		"a file without its @":            {[]string{a.path}, 0, "begins with neither"},
		"a mistyped one":                  {[]string{alice[:30] + "q" + alice[31:]}, 0, "mistyped"},
		"a plugin's":                      {[]string{"age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t"}, 0, "plugin"},
		"a cut off hybrid one":            {[]string{hybrid.recipient[:500]}, 0, "cut off"},
		"two kinds":                       {[]string{a.recipient, hybrid.recipient}, 0, "one kind"},
		"two kinds of one custodian":      {[]string{list(a.recipient, hybrid.recipient), b.recipient}, 2, "one kind"},
		"a share is enough":               {[]string{a.recipient, b.recipient}, 1, "at least 2"},
		"more are needed than there are":  {[]string{a.recipient, b.recipient}, 3, "at most all"},
		"less than no share is needed":    {[]string{a.recipient, b.recipient}, -1, "at least 2"},
		"a file with all, for one of two": {[]string{list(a.recipient, b.recipient)}, 2, "at most all"},
	} {
		dir := t.TempDir()
		plan, err := escrow.Prepare(filepath.Join(dir, "recovery.age"), c.recipients, c.threshold)
		if plan != nil || !errors.Is(err, escrow.ErrRecipients) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: error is %v, want ErrRecipients that says %q", name, err, c.says)
		}
		showsNothing(t, name, fmt.Sprint(err))
		if len(fmt.Sprint(err)) > 400 {
			t.Errorf("%s: the error has %d characters", name, len(fmt.Sprint(err)))
		}
		empty(t, dir)
	}
	if _, err := escrow.Prepare("recovery.age", []string{"@" + filepath.Join(t.TempDir(), "none")}, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file of recipients that is not there: %v", err)
	}
	many := make([]string, seal.MaxShares+1)
	for i := range many {
		many[i] = newIdentity(t, false).recipient
	}
	if _, err := escrow.Prepare("recovery.age", many, 0); !errors.Is(err, escrow.ErrRecipients) {
		t.Errorf("more recipients than there can be: %v", err)
	}
}

func empty(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in the folder: %v, %v", left, err)
	}
}

func TestAFileOfRecipientsIsOneCustodian(t *testing.T) {
	ids, recipients := newIdentities(t, 1)
	desk, safe := newIdentity(t, false), newIdentity(t, false)
	path := filepath.Join(t.TempDir(), "bob.txt")
	write(t, path, "# Bob, his desk and his safe\r\n"+desk.recipient+"\r\n\r\n  "+safe.recipient)
	line := newLine(t)

	files := newEscrow(t, line, 2, recipients[0], "@"+path)
	opens(t, "with the first of two", line, 2, files, ids[0], desk)
	opens(t, "with the second of two", line, 2, files, ids[0], safe)
	opens(t, "not split", line, 0, newEscrow(t, line, 0, " "+recipients[0]+"\n", "@"+path), safe)
}

func TestTheLargestEscrowCanBeOpened(t *testing.T) {
	id := newIdentity(t, true)
	recipients := []string{id.recipient}
	for range seal.MaxShares - 1 {
		recipients = append(recipients, newIdentity(t, true).recipient)
	}
	line := newLine(t)
	opens(t, "as many hybrid recipients as there can be", line, 0, newEscrow(t, line, 0, recipients...), id)
}

func TestFilesAreForTheirOwnerAndNeverOverwritten(t *testing.T) {
	_, recipients := newIdentities(t, 3)
	line, dir := newLine(t), t.TempDir()
	path := filepath.Join(dir, "recovery.age")
	plan, err := escrow.Prepare(path, recipients, 2)
	if err != nil {
		t.Fatal(err)
	}
	empty(t, dir)

	// Somebody else's, made after the check.
	theirs := plan.Files()[1]
	write(t, theirs, "theirs")
	if err := plan.Write(line); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), theirs) {
		t.Errorf("a file is there: %v", err)
	}
	if text, err := os.ReadFile(theirs); err != nil || string(text) != "theirs" {
		t.Errorf("the file that was there holds %q, %v", text, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left besides: %v", left)
	}
	if _, err := escrow.Prepare(path, recipients, 2); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file is there before: %v", err)
	}
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), theirs); err != nil {
		t.Fatal(err)
	}
	if err := plan.Write(line); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a link is there: %v", err)
	}
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	if err := plan.Write(line); err != nil {
		t.Fatal(err)
	}
	for _, file := range plan.Files() {
		if info, err := os.Stat(file); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v", file, info.Mode(), err)
		}
	}
}

func TestFilesAreDurableBeforeTheirNames(t *testing.T) {
	_, recipients := newIdentities(t, 3)
	dir := t.TempDir()
	plan, err := escrow.Prepare(filepath.Join(dir, "recovery.age"), recipients, 2)
	if err != nil {
		t.Fatal(err)
	}
	var synced []string
	err = plan.WriteWith(newLine(t), func(f *os.File) error {
		synced = append(synced, f.Name())
		if info, err := f.Stat(); err != nil || !info.IsDir() && info.Size() == 0 {
			t.Errorf("%s is empty when it is made durable, %v", f.Name(), err)
		}
		return nil
	})
	if want := append(plan.Files(), dir); err != nil || fmt.Sprint(synced) != fmt.Sprint(want) {
		t.Errorf("made durable: %v, %v, want %v", synced, err, want)
	}
}

func TestAllFilesAreWrittenOrNone(t *testing.T) {
	_, recipients := newIdentities(t, 3)
	broken := errors.New("the disk is broken")
	for fail := range 4 {
		dir := t.TempDir()
		plan, err := escrow.Prepare(filepath.Join(dir, "recovery.age"), recipients, 2)
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		err = plan.WriteWith(newLine(t), func(*os.File) error {
			if calls++; calls > fail {
				return broken
			}
			return nil
		})
		if !errors.Is(err, broken) || calls != fail+1 {
			t.Errorf("call %d fails: %v after %d calls", fail+1, err, calls)
		}
		empty(t, dir)
	}
}

func TestWhereNoFileCanBeIsAnError(t *testing.T) {
	id := newIdentity(t, false)
	dir := t.TempDir()
	plan, err := escrow.Prepare(filepath.Join(dir, "none", "recovery.age"), []string{id.recipient}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Write(newLine(t)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	write(t, filepath.Join(dir, "file"), "")
	if _, err := escrow.Prepare(filepath.Join(dir, "file", "recovery.age"), []string{id.recipient}, 0); err == nil {
		t.Error("a file for a folder is in order")
	}
	if os.Getuid() == 0 {
		t.Log("permissions are not looked at: root has all")
		return
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if plan, err = escrow.Prepare(filepath.Join(dir, "recovery.age"), []string{id.recipient}, 0); err == nil {
		err = plan.Write(newLine(t))
	}
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("a folder that may not be written to: %v", err)
	}
}

func TestWhatIsNoRecoveryLineIsNotWritten(t *testing.T) {
	_, recipients := newIdentities(t, 2)
	line := string(newLine(t))
	for _, threshold := range []int{0, 2} {
		for name, text := range map[string]string{"nothing": "", "cut off": line[:50], "mistyped": line[:20] + "w" + line[21:]} {
			dir := t.TempDir()
			to := recipients
			if threshold == 0 {
				to = recipients[:1]
			}
			plan, err := escrow.Prepare(filepath.Join(dir, "recovery.age"), to, threshold)
			if err != nil {
				t.Fatal(err)
			}
			err = plan.Write([]byte(text))
			if !errors.Is(err, seal.ErrNotRecovery) && !errors.Is(err, seal.ErrMistyped) {
				t.Errorf("%s: %v", name, err)
			}
			showsNothing(t, name, fmt.Sprint(err))
			empty(t, dir)
		}
	}
}

// The test runs itself, as the mode is chosen when a process starts.
func TestAgeIsRefusedInFIPSOnlyMode(t *testing.T) {
	if os.Getenv("KEYHOLD_TEST_FIPS_ONLY") == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAgeIsRefusedInFIPSOnlyMode$", "-test.timeout=1m")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "KEYHOLD_TEST_FIPS_ONLY=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, threshold := range []int{0, 2} {
		if _, err := escrow.Prepare(filepath.Join(t.TempDir(), "r.age"), []string{alice}, threshold); !errors.Is(err, escrow.ErrFIPS) {
			t.Errorf("prepare: %v", err)
		}
	}
	for _, name := range []string{"x25519", "hybrid"} {
		got, err := open([]string{"testdata/" + name + ".age"}, identity{path: "testdata/identity-" + name + ".txt"})
		refused(t, name, got, err, escrow.ErrFIPS)
	}
	line := string(newLine(t))
	for name, text := range map[string]string{"line": line, "shares": strings.Join(typedShares(t, line)[1:], "\n")} {
		s := escrow.Source{Files: []string{"-"}, Stdin: strings.NewReader(text)}
		if got, err := s.Open(); err != nil || string(got.Line.Reveal()) != line {
			t.Errorf("typed %s: %v", name, err)
		}
	}
}
