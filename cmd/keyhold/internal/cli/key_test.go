package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

func TestWhyAVersionCannotBeChangedIsOneSentenceWithWhatToDo(t *testing.T) {
	const id = "kdkv_1"
	state := func(doing, why string) error {
		return fmt.Errorf("%s key version %s: %w: %s", doing, id, keyhold.ErrState, why)
	}
	used := &keyhold.InUseError{ID: id, References: []keyhold.Reference{
		{Column: keyhold.Column{Schema: "public", Table: "oidc", Column: "key_id"}, Rows: 3},
		{Column: keyhold.Column{Table: "note", Column: "about"}, Rows: 1},
	}}
	ours := keyhold.Reference{Column: keyhold.Column{Schema: "public", Table: "kms_data_key_version", Column: "root_key_version_id"}, Rows: 2}
	wraps := &keyhold.InUseError{ID: id, References: []keyhold.Reference{ours}}
	both := &keyhold.InUseError{ID: id, References: append([]keyhold.Reference{ours}, used.References...)}
	away := fmt.Errorf("destroy it: %w", keyhold.ErrUnavailable)
	for _, test := range []struct {
		name    string
		purpose key.Purpose
		state   key.State
		doing   string
		err     error
		want    problem
	}{
		{
			"disable the head", "p", key.Active, "disable", state("disable", "it is the head: rotate the key first"),
			problem{
				Code: "state", Message: "disable key version kdkv_1: it is the head: rotate the key first",
				Hint: "keyhold key rotate --purpose p 'org 42' makes another version the head",
			},
		},
		{
			"disable the head of a root key", "", key.Active, "disable", state("disable", "it is the head: rotate the key first"),
			problem{
				Code: "state", Message: "disable key version kdkv_1: it is the head: rotate the key first",
				Hint: "keyhold key rotate --rewrap 'org 42' makes another version the head",
			},
		},
		{
			"disable a pending one", "p", key.Pending, "disable", state("disable", "it is pending"),
			problem{
				Code: "state", Message: "disable key version kdkv_1: it is pending",
				Hint: "keyhold key rotate --purpose p 'org 42' ends the rotation that made it",
			},
		},
		{
			"enable a destroyed one", "p", key.Destroyed, "enable", state("enable", "it is destroyed"),
			problem{Code: "state", Message: "enable key version kdkv_1: it is destroyed"},
		},
		{
			"destroy the head", "p", key.Active, "destroy", state("destroy", "it is the head: rotate the key, and disable this version first"),
			problem{
				Code: "state", Message: "destroy key version kdkv_1: it is the head: rotate the key, and disable this version first",
				Hint: "keyhold key rotate --purpose p 'org 42' && keyhold key disable kdkv_1",
			},
		},
		{
			"destroy a retired one", "p", key.Retired, "destroy", state("destroy", "it is retired: disable it first"),
			problem{
				Code: "state", Message: "destroy key version kdkv_1: it is retired: disable it first",
				Hint: "keyhold key disable kdkv_1; whoever misses what it sealed will say so before it is gone",
			},
		},
		{
			"destroy one before its time", "p", key.Disabled, "destroy", state("destroy", "it has to be for another 5h0m0s (Config.Grace)"),
			problem{
				Code: "state", Message: "destroy key version kdkv_1: it has to be for another 5h0m0s",
				Hint: "wait until then, or give a shorter --grace if nobody can miss what it sealed",
			},
		},
		{
			"destroy one in use", "p", key.Disabled, "destroy", fmt.Errorf("destroy key version %s: %w", id, errors.Join(used, keyhold.ErrForeignKey)),
			problem{
				Code: "in_use", Message: "key version kdkv_1 is in use: rows that have its id: 3 in public.oidc.key_id, 1 in note.about",
				Hint: "write these rows anew, so that the newest version seals them, or delete them",
			},
		},
		{
			"disable a root key's version that wraps", "", key.Retired, "disable", wraps,
			problem{
				Code: "in_use", Message: wraps.Error(),
				Hint: "keyhold key rewrap 'org 42' brings what it wraps under the newest version",
			},
		},
		{
			"disable a root key's version that the application's rows have", "", key.Retired, "disable", used,
			problem{
				Code: "in_use", Message: used.Error(),
				Hint: "write these rows anew, so that the newest version seals them, or delete them",
			},
		},
		{
			"destroy a root key's version of both", "", key.Disabled, "destroy", both,
			problem{
				Code: "in_use", Message: both.Error(),
				Hint: "keyhold key rewrap 'org 42' brings what it wraps under the newest version, but not what the application has " +
					"in other tables: write these rows anew, so that the newest version seals them, or delete them",
			},
		},
		{
			"destroy a retired one of a root key", "", key.Retired, "destroy", state("destroy", "it is retired: disable it first"),
			problem{
				Code: "state", Message: "destroy key version kdkv_1: it is retired: disable it first",
				Hint: "keyhold key disable kdkv_1; what the application itself wrapped with it, which no rewrap moves, " +
					"will be missed before it is gone",
			},
		},
		{
			"destroy one that was in use", "p", key.Disabled, "destroy", fmt.Errorf("update: %w", keyhold.ErrForeignKey),
			problem{Code: "in_use", Message: "destroy key version kdkv_1: a row had its id a moment ago", Hint: "repeat it"},
		},
		{
			"its scope is gone", "p", key.Disabled, "destroy", fmt.Errorf("destroy: %w", keyhold.ErrNotFound),
			problem{
				Code: "unknown_version", Message: `there is no key version "kdkv_1"`,
				Hint: "keyhold key list shows the ids of all versions",
			},
		},
	} {
		v := version{keyhold.VersionInfo{ID: id, State: test.state}, key.Ref{Scope: "org 42", Purpose: test.purpose}, "kms", store.Family{}}
		test.want.exit = exitFailed
		got, ok := errors.AsType[*problem](v.explain(test.doing, test.err))
		if !ok || *got != test.want {
			t.Errorf("%s:\n%+v, want\n%+v", test.name, got, test.want)
		}
	}
	if got := (&version{}).explain("destroy", away); !errors.Is(got, keyhold.ErrUnavailable) {
		t.Errorf("what is not about the version is passed on: %v", got)
	}
}

func TestColumnsAreReadAsTheyArePrinted(t *testing.T) {
	for text, want := range map[string]keyhold.Column{
		"oidc.key_id":         {Table: "oidc", Column: "key_id"},
		"app.oidc.key_id":     {Schema: "app", Table: "oidc", Column: "key_id"},
		"Übersicht.Key Id":    {Table: "Übersicht", Column: "Key Id"},
		`"a.b".key_id`:        {Table: "a.b", Column: "key_id"},
		`"a""b"."c."."""d"`:   {Schema: `a"b`, Table: "c.", Column: `"d`},
		`app."""".`:           {},
		`"a.b"x.key_id`:       {},
		`"a.b.key_id`:         {},
		`a"b".key_id`:         {},
		`"".key_id`:           {},
		"key_id":              {},
		"":                    {},
		".":                   {},
		"oidc.":               {},
		".key_id":             {},
		"app..key_id":         {},
		"db.app.oidc.key_id":  {},
		"oidc.key_id.":        {},
		`oidc."key_id"."more`: {},
	} {
		got, ok := parseColumn(text)
		if got != want || ok != (want != keyhold.Column{}) {
			t.Errorf("%s: %+v, %v", text, got, ok)
		}
		if !ok {
			continue
		}
		ref := referencesToJSON([]keyhold.Reference{{Column: want}})[0]
		if printed := ref.tableText() + "." + nameText(ref.Column); printed != text {
			t.Errorf("%s is printed as %s", text, printed)
		}
	}
}

func TestOfBrokenScopesOneErrorIsSaidAndTheOthersAreCounted(t *testing.T) {
	broken := func(subject string) error {
		return fmt.Errorf("read: %w", &keyhold.IntegrityError{Subject: subject, Reason: "it differs"})
	}
	away := fmt.Errorf("reconcile: %w", keyhold.ErrUnavailable)
	refused := fmt.Errorf("purpose: %w", keyhold.ErrPurpose)
	for _, test := range []struct {
		name string
		err  error
		want error
		more int
	}{
		{"nothing is wrong", nil, nil, 0},
		{"another error", refused, refused, 0},
		{"one, by two purposes", errors.Join(broken("a"), broken("a")), broken("a"), 0},
		{"three, by two purposes", errors.Join(broken("a"), broken("b"), broken("c"), broken("a"), broken("c")), broken("a"), 2},
		{"the database goes away afterwards", errors.Join(broken("a"), broken("b"), away), away, 0},
	} {
		got := onlyScopes(test.err)
		more := 0
		if several, ok := errors.AsType[*brokenError](got); ok {
			more = several.more
		}
		if fmt.Sprint(got) != fmt.Sprint(test.want) || more != test.more {
			t.Errorf("%s: %v with %d more; want %v with %d", test.name, got, more, test.want, test.more)
		}
	}
}

// retiredVersion rotates the key for "p" of the scope "s", and returns the id of its first version.
func retiredVersion(t *testing.T, flags []string) string {
	t.Helper()
	code, _, stderr := run(t, nil, append([]string{"key", "rotate", "s", "--purpose", "p"}, flags...)...)
	if code != exitDone {
		t.Fatal(stderr)
	}
	_, stdout, stderr := run(t, nil, append([]string{"key", "list", "s", "--json"}, flags...)...)
	var keys []keyJSON
	if err := json.Unmarshal([]byte(stdout), &keys); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	return string(keys[1].Versions[0].ID)
}
