// Package ddl compares what migrations make with what a database's catalogue says that there is.
//
// It knows the statements that the stores' migrations have, and no more of SQL.
package ddl

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"keyhold.example/keyhold/migrate"
)

// The kinds of objects, in the order in which differences are told.
const (
	Table      = "table"
	Column     = "column"
	Constraint = "constraint"
	Index      = "index"
	Function   = "function"
	Trigger    = "trigger"
)

var kinds = []string{Table, Column, Constraint, Index, Function, Trigger}

// Object is something that a migration makes.
type Object struct {
	Kind  string
	Table string // what it belongs to; a table's own name; empty for a function
	Name  string // of a function with its parameters; empty for a table
}

// String names it in a sentence.
func (o Object) String() string {
	switch o.Kind {
	case Table:
		return "table " + o.Table
	case Function:
		return "function " + o.Name
	}
	return fmt.Sprintf("%s %s of table %s", o.Kind, o.Name, o.Table)
}

// Schema is objects and how they are defined: a column and a constraint by what follows the name, a table by what
// follows its columns, the others by their whole statement.
type Schema map[Object]Tokens

// Read is the schema that the migrations in the root folder of fsys make, all together. What they name in namespace, it
// takes for what has no such name before it, but not in the bodies of functions; an empty one is none. A statement that
// Read does not know is an error.
func Read(fsys fs.FS, namespace string) (Schema, error) {
	files, err := migrate.List(fsys)
	if err != nil {
		return nil, err
	}
	schema := Schema{}
	for _, f := range files {
		text, err := fs.ReadFile(fsys, f.File)
		if err != nil {
			return nil, err
		}
		for _, statement := range split(Scan(string(text)).Unqualified(namespace)) {
			if err := schema.Add(statement); err != nil {
				return nil, fmt.Errorf("read %s: %w", f.File, err)
			}
		}
	}
	return schema, nil
}

// split cuts at semicolons, but not inside of a trigger.
func split(all Tokens) (statements []Tokens) {
	start, depth := 0, 0
	for i, token := range all {
		switch token.Text {
		case "begin", "case":
			depth++
		case "end":
			depth--
		case ";":
			if depth == 0 {
				statements = append(statements, all[start:i])
				start = i + 1
			}
		}
	}
	if start < len(all) {
		statements = append(statements, all[start:])
	}
	return statements
}

// Add adds what a statement makes.
func (s Schema) Add(st Tokens) error {
	switch {
	case st.StartWithWords("create", "table"):
		return s.table(st)
	case st.StartWithWords("create", "index"), st.StartWithWords("create", "unique", "index"):
		return s.onTable(Index, st)
	case st.StartWithWords("create", "trigger"), st.StartWithWords("create", "constraint", "trigger"):
		return s.onTable(Trigger, st)
	case st.StartWithWords("create", "function"):
		return s.function(st)
	case st.StartWithWords("alter", "table") && len(st) > 4 && st[3].Text == "add":
		return s.element(st[2].Text, st[4:])
	case st.StartWithWords("insert"):
		return nil // rows are no matter of the schema
	}
	return fmt.Errorf("statement of a kind that is not known: %.60q", st.String())
}

func (s Schema) table(st Tokens) error {
	open := st.Index("(")
	if open != 3 {
		return fmt.Errorf("a table without its columns: %.60q", st.String())
	}
	name, elements := st[2].Text, st[open:]
	end := elements.Closing()
	if end < 0 {
		return fmt.Errorf("table %s has no end", name)
	}
	s[Object{Kind: Table, Table: name}] = elements[end+1:]
	for rest := elements[1:end]; len(rest) > 0; {
		comma := rest.Index(",")
		if comma < 0 {
			comma = len(rest)
		}
		if err := s.element(name, rest[:comma]); err != nil {
			return err
		}
		rest = rest[min(comma+1, len(rest)):]
	}
	return nil
}

func (s Schema) element(table string, e Tokens) error {
	kind := Column
	if e.StartWithWords("constraint") {
		kind, e = Constraint, e[1:]
	}
	if len(e) == 0 {
		return fmt.Errorf("table %s has a %s without a name", table, kind)
	}
	s[Object{kind, table, e[0].Text}] = e[1:]
	return nil
}

func (s Schema) onTable(kind string, st Tokens) error {
	on := st.Index("on")
	name := slices.IndexFunc(st, func(t Token) bool { return t.Text == kind }) + 1
	if on < name || on+1 >= len(st) {
		return fmt.Errorf("no table is named: %.60q", st.String())
	}
	s[Object{kind, st[on+1].Text, st[name].Text}] = st
	return nil
}

func (s Schema) function(st Tokens) error {
	open := st.Index("(")
	if open < 3 {
		return fmt.Errorf("a function without parameters: %.60q", st.String())
	}
	end := open + st[open:].Closing()
	s[Object{Kind: Function, Name: strings.ReplaceAll(st[open-1:end+1].String(), "\n", " ")}] = st
	return nil
}

// Difference is an object that is missing, or that is not what it was made.
type Difference struct {
	Object

	Missing bool
}

// String is a sentence that says what to do.
func (d Difference) String() string {
	if d.Missing {
		return d.Object.String() + " is missing: make it again as the migrations make it (keyhold migrate print)"
	}
	return d.Object.String() + " is not what the migrations make: change it back to that (keyhold migrate print)"
}

// Compare returns how have differs from s. What only have has does not count, and of a table that is missing nothing
// else is told. same compares two definitions.
func (s Schema) Compare(have Schema, same func(o Object, want, have Tokens) bool) (found []Difference) {
	for o, definition := range s {
		other, there := have[o]
		_, table := have[Object{Kind: Table, Table: o.Table}]
		switch {
		case !there && (table || o.Kind == Table || o.Kind == Function):
			found = append(found, Difference{o, true})
		case there && !same(o, definition, other):
			found = append(found, Difference{o, false})
		}
	}
	slices.SortFunc(found, func(a, b Difference) int {
		return cmp.Or(
			cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
			cmp.Compare(a.Object.String(), b.Object.String()))
	})
	return found
}
