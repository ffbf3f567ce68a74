package dekimport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/key"
)

// Keys is their keys, opened.
type Keys struct {
	Keys []Key // by name

	// Beside: versions with other bytes than the one that has their place, by key and number, in words.
	Beside []string
	// Covered: how many rows there are under MEKs that were not given, of versions that are under one that was. Nobody
	// looked whether their bytes are the same.
	Covered int
}

// Key is one of them.
type Key struct {
	Name      key.Purpose
	Generator string // empty for the default one

	// Aside: a key that their database does not have by this name. Its versions are those of another whose numbers
	// others have now; no new ones are to be made.
	Aside bool

	Versions []keyhold.ImportedVersion // ascending by number; none of a name that is registered only
}

// Clear overwrites the keys.
func (k *Keys) Clear() {
	for i := range k.Keys {
		k.Keys[i].clear()
	}
}

func (k *Key) clear() {
	for _, v := range k.Versions {
		clear(v.Key)
	}
}

// Open opens all versions with the MEKs given: the one that the old system runs with, and older ones. Of a version that
// is there with different bytes, the newest MEK's keep its place, and the others become a key of their own, whose name
// ends in "#mek" and the older MEK's number. The caller clears what it gets. The error is a [*RefusedError], that of
// ctx, or nil.
func (o *Old) Open(ctx context.Context, current MEK, older ...MEK) (_ *Keys, err error) {
	meks, err := o.match(current, older)
	if err != nil {
		return nil, err
	}
	defer meks.close()
	w := work{meks: meks, keys: &Keys{}, byName: map[string]*Key{}, aside: map[string]*Key{}, missing: map[int64]int{}}
	defer func() {
		if err != nil {
			w.clear()
		}
	}()
	for name, generator := range o.generators {
		w.key(w.byName, name, generator)
	}
	for rows := o.rows; len(rows) > 0; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n := 1
		for n < len(rows) && rows[n].name == rows[0].name && rows[n].number == rows[0].number {
			n++
		}
		w.version(o.generators[rows[0].name], rows[:n])
		rows = rows[n:]
	}
	if err := w.result(o); err != nil {
		return nil, err
	}
	return w.keys, nil
}

// work is what was opened so far, and what is wrong with it.
type work struct {
	meks    opened
	keys    *Keys
	byName  map[string]*Key
	aside   map[string]*Key
	missing map[int64]int // how many versions are under a MEK that was not given, alone

	damaged, numbers, sizes []string
}

// clear overwrites what was opened.
func (w *work) clear() {
	for _, keys := range []map[string]*Key{w.byName, w.aside} {
		for _, k := range keys {
			k.clear()
		}
	}
}

// key is the key of a name, which is made if it is not there.
func (*work) key(in map[string]*Key, name, generator string) *Key {
	if in[name] == nil {
		if generator == keyhold.DefaultGenerator {
			generator = ""
		}
		in[name] = &Key{Name: key.Purpose(name), Generator: generator}
	}
	return in[name]
}

// version opens the rows of one version.
func (w *work) version(generator string, rows []row) {
	first := &rows[0]
	if first.number < 1 || first.number > key.MaxVersion {
		w.numbers = append(w.numbers, fmt.Sprintf("%d of %q", first.number, first.name))
		return
	}
	var place *keyhold.ImportedVersion
	var under int64
	for _, m := range w.meks {
		i := slices.IndexFunc(rows, func(r row) bool { return r.mek == m.id })
		if i < 0 {
			continue
		}
		r := &rows[i]
		material, wrong := m.open(r)
		if n := len(material); wrong == "" && (n < 1 || n > envelope.MaxRawKey) {
			clear(material)
			w.sizes = append(w.sizes, fmt.Sprintf("version %d of %q has %d", r.number, r.name, n))
			continue
		}
		next := keyhold.ImportedVersion{Number: key.Version(r.number), Created: r.created, Key: material}
		switch {
		case wrong != "":
			w.damaged = append(w.damaged, wrong)
		case place == nil:
			k := w.key(w.byName, r.name, generator)
			k.Versions = append(k.Versions, next)
			place, under = &k.Versions[len(k.Versions)-1], r.mek
		case bytes.Equal(place.Key, material):
			clear(material)
			if r.created.Before(place.Created) { // the copy is of the day when the MEK changed
				place.Created = r.created
			}
		default:
			w.beside(generator, r, next, under)
		}
	}
	for _, r := range rows {
		switch {
		case w.meks.has(r.mek):
		case slices.ContainsFunc(rows, func(r row) bool { return w.meks.has(r.mek) }):
			w.keys.Covered++
		default:
			w.missing[r.mek]++
		}
	}
}

// beside keeps a version whose number is taken by the one under another MEK.
func (w *work) beside(generator string, r *row, v keyhold.ImportedVersion, under int64) {
	name := fmt.Sprintf("%s#mek%d", r.name, r.mek)
	k := w.key(w.aside, name, generator)
	k.Aside, k.Versions = true, append(k.Versions, v)
	w.keys.Beside = append(w.keys.Beside, fmt.Sprintf("version %d of %q has other bytes under MEK %d than under MEK %d: they become version %d of %q",
		r.number, r.name, r.mek, under, r.number, name))
}

// result is all keys by name, or why there are none.
func (w *work) result(o *Old) error {
	var names, generators []string
	for _, keys := range []map[string]*Key{w.byName, w.aside} {
		for name, k := range keys {
			if err := k.Name.Validate(); err != nil {
				names = append(names, reason(name, err))
			}
			if g, registered := o.generators[name]; registered {
				if err := key.Purpose(g).Validate(); err != nil {
					generators = append(generators, reason(g, err)+", of "+fmt.Sprintf("%q", name))
				}
			}
			if k.Aside && w.byName[name] != nil {
				names = append(names, fmt.Sprintf("%q: versions with other bytes are to have this name, and a key has it", name))
			}
			w.keys.Keys = append(w.keys.Keys, *k)
		}
	}
	slices.SortFunc(w.keys.Keys, func(a, b Key) int { return strings.Compare(string(a.Name), string(b.Name)) })

	const change = "change it in the old system first"
	var refused []*RefusedError
	refuse := func(code, what, hint string, all []string) {
		slices.Sort(all)
		if len(all) > 0 {
			refused = append(refused, &RefusedError{code, what + ": " + strings.Join(all, "; "), hint})
		}
	}
	refuse("root", "there are versions under MEKs that were not given, and under no other",
		"give these MEKs with --old-mek, which can be repeated", w.missingText())
	refuse("damaged", "rows of the old tables are damaged", "bring them back from a backup, or delete them there if nothing needs them", short(w.damaged))
	refuse("invalid", "names that keyhold does not take", change, names)
	refuse("invalid", "names of generators that keyhold does not take", change, generators)
	refuse("invalid", fmt.Sprintf("version numbers that are not from 1 to %d", key.MaxVersion), change, w.numbers)
	refuse("invalid", fmt.Sprintf("keys that do not have 1 to %d bytes", envelope.MaxRawKey), change, w.sizes)
	if len(refused) == 0 {
		return nil
	}
	all := *refused[0]
	for _, r := range refused[1:] {
		all.Text += "; and " + r.Text
	}
	return &all
}

// reason is what is wrong with a name.
func reason(name string, err error) string {
	if invalid, ok := errors.AsType[*keyhold.InvalidError](err); ok {
		return fmt.Sprintf("%q (%s)", name, invalid.Reason)
	}
	return fmt.Sprintf("%q", name)
}

func (w *work) missingText() (all []string) {
	for id, n := range w.missing {
		all = append(all, fmt.Sprintf("MEK %d (%d)", id, n))
	}
	return all
}

// short is a list of which no more than a page is said: a wrong restore may have damaged all rows.
func short(all []string) []string {
	const page = 50
	if more := len(all) - page; more > 0 {
		return append(all[:page:page], fmt.Sprintf("and %d more", more))
	}
	return all
}
