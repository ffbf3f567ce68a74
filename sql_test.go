package keyhold_test

import (
	"context"
	"testing"

	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/pgstore"
	"keyhold.example/keyhold/store/sqlitestore"
)

// tryExec runs SQL in the database of a store, past everything that is tested.
func tryExec(t testing.TB, s store.Store, text string) error {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	var err error
	switch s := s.(type) {
	case *sqlitestore.Store:
		_, err = s.DB().ExecContext(ctx, text)
	case *pgstore.Store:
		_, err = s.Pool().Exec(ctx, text)
	default:
		t.Fatalf("%T has no SQL", s)
	}
	return err
}

// asked is what the database of a store answers to a question for one text.
func asked(t testing.TB, s store.Store, question string) (text string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	switch s := s.(type) {
	case *sqlitestore.Store:
		must(t, s.DB().QueryRowContext(ctx, question).Scan(&text))
	case *pgstore.Store:
		must(t, s.Pool().QueryRow(ctx, question).Scan(&text))
	default:
		t.Fatalf("%T has no SQL", s)
	}
	return text
}
