package kmsimport_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/kmsimport"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
)

func TestEverythingThatTheOldSystemHasIsImported(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		o.exec(t, "update kms_data_key_version set key = key where version = 1") // which PostgreSQL moves behind the others
		scopes := o.read(t)
		for _, s := range scopes {
			if !slices.IsSortedFunc(s.Keys, func(a, b kmsimport.Key) int { return strings.Compare(string(a.Purpose), string(b.Purpose)) }) {
				t.Errorf("the keys of %s are in no order", s.Scope)
			}
		}
		stage, _ := o.stage(t, scopes)
		o.hasEverything(t, stage.Manager)
		o.goesOn(t, stage.Manager)
		o.hasEverything(t, stage.Manager)
	})
}

// A revoked version leaves a gap in the numbers, which stays one; and with every version of a key gone the key has just
// its new head.
func TestRevokedVersionsAreGaps(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		scope := o.Scopes[1] // it has three versions of everything
		keys := o.Keys[scope]
		gone, empty := keys[1], keys[2]
		o.exec(t, "delete from oidc",
			fmt.Sprintf("delete from kms_data_key_version where private_id = '%s'", gone.Versions[1].ID),
			fmt.Sprintf("delete from kms_data_key_version where data_key_id = '%s'", empty.ID))
		stage, _ := o.stage(t, o.read(t))
		infos, err := stage.Keys(t.Context(), scope)
		must(t, err)
		for _, k := range infos {
			switch k.ID {
			case gone.ID:
				v := k.Versions[1]
				if len(k.Versions) != 4 || v.State != key.Destroyed || v.ID != "" || k.Versions[2].ID != gone.Versions[2].ID || k.Head != 4 {
					t.Errorf("%+v", k)
				}
			case empty.ID:
				if len(k.Versions) != 1 || k.Head != 1 {
					t.Errorf("%+v", k)
				}
			}
		}
	})
}

// What is made for another database has that one's time.
func TestTheStageHasTheTimeThatItIsGiven(t *testing.T) {
	o := open(t, "sqlite")
	const now = 2_000_000_000
	root, err := localroot.Generate(filepath.Join(t.TempDir(), "root.key"))
	must(t, err)
	stage, err := kmsimport.NewStage(t.Context(), keyhold.Config{Root: root}, "other", now)
	must(t, err)
	must(t, stage.Import(t.Context(), o.openAll(t, o.read(t))))
	infos, err := stage.Keys(t.Context(), o.Scopes[0])
	must(t, err)
	for _, k := range infos {
		if head := k.Versions[k.Head-1]; head.Created.Unix() != now || k.RotateAt.Unix() <= now {
			t.Errorf("%v: made at %v, due at %v", k.Ref, head.Created, k.RotateAt)
		}
	}
	must(t, stage.Close())
}

func TestAWrongRootIsTold(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		scopes := o.read(t)
		short := aead(t, "AAAAAAAAAAAAAAAAAAAAAA==")
		for name, root := range map[string]kmsimport.Root{"another key": short, "one that panics": panicking{o.root}} {
			_, err := scopes[0].Open(t.Context(), root)
			wrong, ok := errors.AsType[*kmsimport.RootError](err)
			if !ok || wrong.KeyID != o.RootKeyID || wrong.Scope != scopes[0].Scope || strings.Contains(err.Error(), o.RootKeyB64) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// panicking is a wrapper with go-kms-wrapping's fault.
type panicking struct{ kmsimport.Root }

func (panicking) Decrypt(context.Context, *wrapping.BlobInfo, ...wrapping.Option) ([]byte, error) {
	panic("slice bounds out of range")
}

func TestDamagedKeysAreNotOpened(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		scopes := o.read(t)
		data := &scopes[0].Keys[1].Versions[0]
		root := &scopes[0].Keys[0].Versions[0]
		for name, damage := range map[string]func(){
			"a flipped bit":           func() { data.Blob[20] ^= 1 },
			"no BlobInfo":             func() { data.Blob = []byte{0xff} },
			"two bytes":               func() { data.Blob = []byte{0x0a, 0x02, 1, 2} },
			"a root key's two bytes":  func() { root.Blob = []byte{0x0a, 0x02, 1, 2} },
			"a root key of no length": func() { root.Blob = nil },
			"another key's parent": func() {
				data.Blob = slices.Concat(data.Blob[:62], []byte{0x2a, 0x06, 0x1a, 0x04}, []byte("krkv"))
			},
		} {
			oldData, oldRoot := *data, *root
			data.Blob = slices.Clone(data.Blob)
			damage()
			if k, err := scopes[0].Open(t.Context(), o.root); err == nil {
				t.Errorf("%s: opened %v", name, k)
			}
			*data, *root = oldData, oldRoot
		}
		if _, err := scopes[0].Open(t.Context(), o.root); err != nil {
			t.Error(err)
		}
	})
}

func TestOpenedKeysAreClearedAndNotPrinted(t *testing.T) {
	o := open(t, "sqlite")
	root, err := base64.StdEncoding.DecodeString(o.RootKeyB64)
	must(t, err)
	for _, k := range o.openAll(t, o.read(t)) {
		material := k.Keys[0].Versions[0].Key
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
			text := fmt.Sprintf(verb, k)
			if strings.Contains(text, fmt.Sprintf("%x", material)) || strings.Contains(text, strings.Trim(fmt.Sprint(material), "[]")) {
				t.Errorf("%s shows a key", verb)
			}
			text = fmt.Sprintf(verb, o.root)
			if strings.Contains(text, fmt.Sprintf("%x", root)) || strings.Contains(text, strings.Trim(fmt.Sprint(root), "[]")) {
				t.Errorf("%s shows the root", verb)
			}
		}
		k.Clear()
		for _, from := range k.Keys {
			for _, v := range from.Versions {
				if slices.ContainsFunc(v.Key, func(b byte) bool { return b != 0 }) {
					t.Errorf("%v is not cleared", v)
				}
			}
		}
	}
}

func TestOtherTablesAreRefused(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		another := o.tables
		another.Prefix = `an"other`
		if _, err := another.Read(t.Context()); !errors.Is(err, kmsimport.ErrNoTables) {
			t.Errorf("another prefix: %v", err)
		}
		for _, c := range []struct{ change, version string }{
			{"update kms_schema_version set version = 'v0.0.1'", "v0.0.1"},
			{"delete from kms_schema_version", ""},
		} {
			o.exec(t, c.change)
			_, err := o.tables.Read(t.Context())
			if other, ok := errors.AsType[*kmsimport.VersionError](err); !ok || other.Have != c.version {
				t.Errorf("%s: %v", c.change, err)
			}
		}
		o.exec(t, "insert into kms_schema_version (version) values ('v0.0.2')", "drop table kms_collection_version")
		if _, err := o.tables.Read(t.Context()); !errors.Is(err, kmsimport.ErrNoTables) {
			t.Errorf("without a table: %v", err)
		}
	})
}

func TestAnyPrefixIsRead(t *testing.T) {
	each(t, func(t *testing.T, o *old) {
		for _, name := range []string{"schema_version", "collection_version", "root_key", "root_key_version", "data_key", "data_key_version"} {
			o.exec(t, fmt.Sprintf(`alter table kms_%s rename to "My Keys_%s"`, name, name))
		}
		o.tables.Prefix = "My Keys"
		if scopes := o.read(t); len(scopes) != len(o.Scopes) {
			t.Errorf("%d scopes", len(scopes))
		}
	})
}

func TestAnAEADRootIsAFileWithAKeyInBase64(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "text": "no base64!", "short": "c2hvcnQ="} {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		if _, err := kmsimport.AEADRoot(path, "x"); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := kmsimport.AEADRoot(filepath.Join(dir, "none"), "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
