package pgstore

import (
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
)

// scopeColumns are the scope types in PostgreSQL's words.
var scopeColumns = map[migrate.ScopeType]migrate.ScopeColumn{
	migrate.Text: {Type: `text collate "C"`, Check: `
        octet_length(scope_id) between 1 and 512
        and scope_id !~ '[\u0001-\u001f\u007f-\u009f]'`},
	migrate.UUID:   {Type: "uuid", Check: `scope_id is not null`},
	migrate.BigInt: {Type: "bigint", Check: `scope_id is not null`},
}

var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// scopeArg is scope as text that the column's type takes, and only for the scope that has just this text. The error
// is a [*key.InvalidError].
func (t *tables) scopeArg(scope key.Scope) (string, error) {
	text := string(scope)
	switch t.options.ScopeType {
	case migrate.BigInt:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != text {
			return "", key.Invalid("scope", text, "scopes of these tables are integers of 64 bits, in decimal digits")
		}
	case migrate.UUID:
		if !uuidForm.MatchString(text) {
			return "", key.Invalid("scope", text, "scopes of these tables are UUIDs, in lower case with hyphens")
		}
	}
	return storable(text), nil
}

// storable is s, or, if s is what no column of PostgreSQL's can hold, the empty text, which is in no column here
// either. The server would refuse the whole statement, and with it the transaction that it is in.
func storable(s string) string {
	if strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
		return ""
	}
	return s
}
