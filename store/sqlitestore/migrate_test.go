package sqlitestore

import (
	"errors"
	"path/filepath"
	"testing"

	"keyhold.example/keyhold/store"
)

// TestNoTableOfOursIsTakenForOneOfTheApplications makes each of our names alone, as another system could.
func TestNoTableOfOursIsTakenForOneOfTheApplications(t *testing.T) {
	template := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	rows, err := template.DB().Query("select name from sqlite_master where type = 'table' and name glob 'kms_*'")
	must(t, err)
	defer rows.Close()
	found := 0
	for rows.Next() {
		var name string
		must(t, rows.Scan(&name))
		if name == "kms_schema_version" || name == "kms_schema_migrations" {
			continue
		}
		found++
		s := open(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
		mustExec(t, s, "create table "+name+" (id integer)")
		var schema *store.SchemaError
		if err := s.CheckSchema(t.Context()); !errors.As(err, &schema) || schema.Foreign == "" {
			t.Errorf("%s alone: %v; want a %T about another system", name, err, schema)
		}
	}
	must(t, rows.Err())
	if found < 8 {
		t.Errorf("only %d tables found", found)
	}
}

func TestTablesWithoutTheirVersionAreNoneYet(t *testing.T) {
	s := migrated(t, Config{}, filepath.Join(t.TempDir(), "keys.db"))
	mustExec(t, s, "delete from kms_schema_version")
	var schema *store.SchemaError
	if err := s.CheckSchema(t.Context()); !errors.As(err, &schema) || schema.Have != 0 || schema.Foreign != "" {
		t.Errorf("%v; want a %T that says that migrations are missing", err, schema)
	}
}
