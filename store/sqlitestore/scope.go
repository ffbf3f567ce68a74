package sqlitestore

import (
	"strconv"
	"strings"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/migrate"
)

// scopeColumns are the scope types in SQLite's words. A CHECK that is not text relies on the column's affinity leaving
// what is given as it is, and the functions here on giving it in the column's own type.
var scopeColumns = map[migrate.ScopeType]migrate.ScopeColumn{
	migrate.Text: {Type: "text", Check: `
        typeof(scope_id) = 'text'
        and length(cast(scope_id as blob)) between 1 and 512
        and instr(cast(scope_id as blob), x'00') = 0
        and scope_id not glob '*[' || char(1) || '-' || char(31) || char(127) || '-' || char(159) || ']*'`},
	migrate.UUID: {Type: "char(36)", Check: `
        typeof(scope_id) = 'text'
        and length(cast(scope_id as blob)) = 36
        and scope_id glob '????????-????-????-????-????????????'
        and length(replace(scope_id, '-', '')) = 32
        and replace(scope_id, '-', '') not glob '*[^0-9a-f]*'`},
	migrate.BigInt: {Type: "bigint", Check: `typeof(scope_id) = 'integer'`},
}

// scopeArg is scope as the column has it. The error is a [*key.InvalidError].
func (t *tables) scopeArg(scope key.Scope) (any, error) {
	text := string(scope)
	switch t.options.ScopeType {
	case migrate.BigInt:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || strconv.FormatInt(n, 10) != text {
			return nil, key.Invalid("scope", text, "scopes of these tables are integers of 64 bits, in decimal digits")
		}
		return n, nil
	case migrate.UUID:
		if !isUUID(text) {
			return nil, key.Invalid("scope", text, "scopes of these tables are UUIDs, in lower case with hyphens")
		}
	}
	return text, nil
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !strings.ContainsRune("0123456789abcdef", rune(c)) {
				return false
			}
		}
	}
	return true
}
