package dekimport

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// MEK is a master key that somebody gave.
type MEK struct {
	Shown string // where it is from; not secret
	Key   secret.Bytes
}

// given is a MEK that the tables know.
type given struct {
	id   int64
	from string
	key  *seal.Key
}

// opened is the MEKs given, as keys that open rows: the current one first, then the newest.
type opened []given

func (o opened) close() {
	for _, g := range o {
		g.key.Close()
	}
}

func (o opened) has(id int64) bool {
	return slices.ContainsFunc(o, func(g given) bool { return g.id == id })
}

// match finds out which of their MEKs the given ones are.
func (o *Old) match(current MEK, older []MEK) (_ opened, err error) {
	var all opened
	defer func() {
		if err != nil {
			all.close()
		}
	}()
	for i, m := range append([]MEK{current}, older...) {
		// Their hash is the SHA-256 of the MEK and nothing besides.
		sum := seal.BlobHash(m.Key.Reveal())
		hash := base64.StdEncoding.EncodeToString(sum[:])
		at := slices.IndexFunc(o.meks, func(its mek) bool { return its.hash == hash })
		if at < 0 {
			return nil, &RefusedError{
				"root", fmt.Sprintf("%s is none of the MEKs that the tables know, which are %s", m.Shown, o.mekList(func(mek) bool { return true })),
				"give the MEK that the old system runs with as --mek, and the one before as --old-mek",
			}
		}
		its := o.meks[at]
		if all.has(its.id) {
			return nil, &RefusedError{"usage", fmt.Sprintf("%s is MEK %d, which is given already", m.Shown, its.id), "leave it out"}
		}
		newer := o.mekList(func(m mek) bool { return m.id > its.id && m.rows > 0 })
		if i == 0 && newer != "none" {
			return nil, &RefusedError{
				"old_mek", fmt.Sprintf("%s is MEK %d of the old system, and there are keys under a newer one: %s", m.Shown, its.id, newer),
				"give the newest as --mek, and this one as --old-mek",
			}
		}
		// Only a key of this algorithm opens what was sealed elsewhere; that it is no root key does not matter to that.
		k, err := seal.FromBytes(seal.Identity{Kind: key.KEK, RootKeyID: "krk_mek", Alg: key.Imported}, m.Key)
		if err != nil {
			return nil, err
		}
		all = append(all, given{its.id, m.Shown, k})
	}
	slices.SortFunc(all[1:], func(a, b given) int { return cmp.Compare(b.id, a.id) })
	return all, nil
}

// mekList names the MEKs that are wanted.
func (o *Old) mekList(want func(mek) bool) string {
	var all []string
	for _, m := range o.meks {
		if want(m) {
			all = append(all, fmt.Sprint(m.id))
		}
	}
	return list(all, "none")
}

// open opens a row. What is wrong with it is said without its content.
func (g given) open(r *row) (material []byte, wrong string) {
	const shown = "row %d, version %d of %q: it %s"
	b, err := base64.StdEncoding.DecodeString(r.sealed)
	if err != nil {
		return nil, fmt.Sprintf(shown, r.id, r.number, r.name, "is no base64")
	}
	material, err = g.key.OpenImported(b, nil)
	if err != nil {
		return nil, fmt.Sprintf(shown, r.id, r.number, r.name, fmt.Sprintf("does not open with MEK %d, and was changed or cut off", g.id))
	}
	return material, ""
}

// list is words with commas between them.
func list(words []string, none string) string {
	if len(words) == 0 {
		return none
	}
	return strings.Join(words, ", ")
}
