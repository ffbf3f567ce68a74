// Package migrate renders a store's migration files for one installation, and applies them with golang-migrate.
//
// The files are templates, kept beside their store and named as golang-migrate wants it: NNNN_name.up.sql. There are
// no down files: going down would destroy keys.
package migrate

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// DefaultPrefix is the prefix of table names that an empty one stands for.
const DefaultPrefix = "kms"

// maxSchemaLen is the longest identifier of PostgreSQL, which would cut a longer one.
const maxSchemaLen = 63

// MaxPrefixLen is the longest prefix, in bytes: with it the longest name fits into PostgreSQL's 63 bytes.
const MaxPrefixLen = 24

// ScopeType is the type of the column with the scope's id, so that a foreign key to the application's own table
// fits. Empty is [Text].
type ScopeType string

// The types of scope ids.
const (
	Text   ScopeType = "text"
	UUID   ScopeType = "uuid"   // canonical: 36 characters, hexadecimal digits in lower case
	BigInt ScopeType = "bigint" // 64 bits, signed
)

// Options says how migrations are rendered. The zero value is the defaults.
type Options struct {
	// Prefix begins the name of every table, constraint, index and trigger: a lower-case letter, then lower-case
	// letters, digits and underscores, at most [MaxPrefixLen]. It does not begin as the databases' own names do,
	// with "sqlite" or "pg_". Empty is [DefaultPrefix].
	Prefix string

	// Schema is the schema that the tables are in, where the database has schemas. Empty is the connection's own.
	Schema string

	ScopeType ScopeType

	// ScopeTable and ScopeColumn, both or neither, are the application's table of scopes and the column of their
	// ids. Root keys then have a foreign key to it, with cascades on delete and update. On SQLite, which cannot add a
	// foreign key later on, the table may be made afterwards; on PostgreSQL it has to be there, where the connection's
	// search_path finds it, and the foreign key can also be added later.
	ScopeTable, ScopeColumn string

	// First is the number of the first file; the others follow it without gaps. Zero keeps the numbers as they are,
	// from 1.
	First uint

	// Name begins the name of every file, after its number: letters, digits, underscores, such as "keyhold_". Empty
	// adds nothing.
	Name string
}

// Source is a store's migration templates. In them, {prefix} is the prefix, {scope_type} and {scope_check} are the
// column type of the scope's id and the condition on it, {scope_reference} is the foreign key to the application's
// table. {schema} is the schema, quoted and with a dot after it, or nothing; {function_options} lets a function find
// the tables later where {schema} is nothing.
type Source struct {
	Files   fs.FS                     // *.up.sql, in the root folder
	Scope   map[ScopeType]ScopeColumn // for each type that the store knows
	Schemas bool                      // whether the database has schemas
}

// ScopeColumn is a scope type in the words of a database.
type ScopeColumn struct{ Type, Check string }

// OptionError says which option cannot be used and why.
type OptionError struct{ Option, Value, Reason string }

func (e *OptionError) Error() string {
	return fmt.Sprintf("%s %q of the tables: %s", e.Option, e.Value, e.Reason)
}

var (
	prefixForm  = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9_]*$`)
	placeholder = regexp.MustCompile(`\{[a-z_]+\}`)
)

// Checked returns o with its defaults filled in, or an [*OptionError].
func (o Options) Checked() (Options, error) {
	if o.Prefix == "" {
		o.Prefix = DefaultPrefix
	}
	if o.ScopeType == "" {
		o.ScopeType = Text
	}
	switch {
	case !prefixForm.MatchString(o.Prefix):
		return o, &OptionError{"prefix", o.Prefix, "it has to be a lower-case letter and then lower-case letters, digits, underscores"}
	case len(o.Prefix) > MaxPrefixLen:
		return o, &OptionError{"prefix", o.Prefix, fmt.Sprintf("it has more than %d characters", MaxPrefixLen)}
	// An underscore follows it in every name.
	case strings.HasPrefix(o.Prefix, "sqlite") || strings.HasPrefix(o.Prefix+"_", "pg_"):
		return o, &OptionError{"prefix", o.Prefix, "names that begin with sqlite or pg_ are the database's own"}
	case o.ScopeType != Text && o.ScopeType != UUID && o.ScopeType != BigInt:
		return o, &OptionError{"scope type", string(o.ScopeType), "it has to be text, uuid or bigint"}
	case (o.ScopeTable == "") != (o.ScopeColumn == ""):
		return o, &OptionError{"scope table", o.ScopeTable + "." + o.ScopeColumn, "table and column have to be given together"}
	case len(o.Schema) > maxSchemaLen || strings.ContainsRune(o.Schema, 0) || !utf8.ValidString(o.Schema):
		return o, &OptionError{"schema", o.Schema, fmt.Sprintf("it has to be text of at most %d bytes, without a zero byte", maxSchemaLen)}
	case strings.ContainsRune(o.ScopeTable+o.ScopeColumn, 0):
		return o, &OptionError{"scope table", o.ScopeTable + "." + o.ScopeColumn, "it contains a zero byte"}
	case !nameForm.MatchString(o.Name):
		return o, &OptionError{"file name", o.Name, "it has to be letters, digits, underscores"}
	case o.First > math.MaxInt32:
		return o, &OptionError{"first number", strconv.FormatUint(uint64(o.First), 10), "it is too great"}
	}
	return o, nil
}

// Quote is an identifier as SQL has it, in double quotes.
func Quote(identifier string) string { return `"` + strings.ReplaceAll(identifier, `"`, `""`) + `"` }

// FS renders the templates of src into files that golang-migrate runs, alone or among an application's own. The
// error is an [*OptionError] if o is what is wrong.
func FS(src Source, o Options) (fs.FS, error) {
	o, err := o.Checked()
	if err != nil {
		return nil, err
	}
	column, ok := src.Scope[o.ScopeType]
	if !ok {
		return nil, &OptionError{"scope type", string(o.ScopeType), "this database has none"}
	}
	if o.Schema != "" && !src.Schemas {
		return nil, &OptionError{"schema", o.Schema, "this database has none"}
	}
	schema, functionOptions := "", "set search_path from current "
	if o.Schema != "" {
		schema, functionOptions = Quote(o.Schema)+".", ""
	}
	reference := ""
	if o.ScopeTable != "" {
		reference = fmt.Sprintf(",\n    constraint %s_root_key_scope_id_fkey foreign key (scope_id)\n"+
			"        references %s (%s) on delete cascade on update cascade", o.Prefix, Quote(o.ScopeTable), Quote(o.ScopeColumn))
	}
	words := map[string]string{
		"{prefix}":           o.Prefix,
		"{schema}":           schema,
		"{function_options}": functionOptions,
		"{scope_type}":       column.Type,
		"{scope_check}":      column.Check,
		"{scope_reference}":  reference,
	}
	files, err := List(src.Files)
	if err != nil {
		return nil, err
	}
	// An archive in memory is the standard library's own way to make an fs.FS, outside of tests.
	var archive bytes.Buffer
	out := zip.NewWriter(&archive)
	for i, f := range files {
		text, err := fs.ReadFile(src.Files, f.File)
		if err != nil {
			return nil, fmt.Errorf("read migration: %w", err)
		}
		var unknown error
		rendered := placeholder.ReplaceAllStringFunc(string(text), func(word string) string {
			value, ok := words[word]
			if !ok {
				unknown = fmt.Errorf("render migration %s: there is no %s", f.File, word)
			}
			return value
		})
		if unknown != nil {
			return nil, unknown
		}
		number := f.Number
		if o.First > 0 {
			number = o.First + uint(i)
		}
		name := fmt.Sprintf("%04d_%s%s.up.sql", number, o.Name, f.Name)
		w, err := out.Create(name)
		if err == nil {
			_, err = w.Write([]byte(rendered))
		}
		if err != nil {
			return nil, fmt.Errorf("render migration %s: %w", f.File, err)
		}
	}
	if err := out.Close(); err != nil {
		return nil, fmt.Errorf("render migrations: %w", err)
	}
	return zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
}

// File is one migration.
type File struct {
	Number uint
	Name   string // without number and ending
	File   string // the file's name
}

var fileForm = regexp.MustCompile(`^([0-9]+)_(.+)\.up\.sql$`)

// List returns the migrations in the root folder of fsys by number, and an error if there is none or a file is not
// named like one.
func List(fsys fs.FS) ([]File, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var files []File
	for _, e := range entries {
		m := fileForm.FindStringSubmatch(e.Name())
		if m == nil {
			return nil, fmt.Errorf("list migrations: %s is not named like one", e.Name())
		}
		n, err := strconv.ParseUint(m[1], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("list migrations: the number of %s: %w", e.Name(), err)
		}
		files = append(files, File{Number: uint(n), Name: m[2], File: e.Name()})
	}
	if len(files) == 0 {
		return nil, errors.New("list migrations: there are none")
	}
	slices.SortFunc(files, func(a, b File) int { return int(a.Number) - int(b.Number) })
	return files, nil
}
