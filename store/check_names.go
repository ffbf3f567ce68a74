package store

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode"
	"unicode/utf8"

	"keyhold.example/keyhold/key"
)

// readNames keeps all names, by their root keys. They are those that are not under a key with the kid of zeros, which
// none has.
func (c *checker) readNames(ctx context.Context, s Store) error {
	list, err := s.NamesNotUnder(ctx, [16]byte{}, math.MaxInt32)
	for _, n := range list {
		c.names[n.RootKeyID] = append(c.names[n.RootKeyID], n)
	}
	return err
}

// namesOf looks at the names under a root key. They were read before the family was: where the two do not fit together,
// both are read again.
func (c *checker) namesOf(ctx context.Context, s Store, scope key.Scope, f *Family) error {
	names := c.names[f.Root.ID]
	if len(names) == 0 {
		return nil
	}
	keys := make(map[key.Purpose]*Key, len(f.Data))
	for i := range f.Data {
		keys[f.Data[i].Purpose] = &f.Data[i]
	}
	for i := range names {
		n := &names[i]
		subject := fmt.Sprintf("name %q of scope %q", string(n.Purpose), string(scope))
		c.name(subject, n)
		if k := keys[n.Purpose]; k != nil && contradiction(n, k) != "" {
			if err := c.contradicted(ctx, s, subject, key.Ref{Scope: scope, Purpose: n.Purpose}); err != nil {
				return err
			}
		}
	}
	return nil
}

// name looks at a name by itself.
func (c *checker) name(subject string, n *Name) {
	if err := n.Purpose.Validate(); err != nil {
		c.add(subject, "%v", err)
	}
	c.length(subject, "installation key id", n.IKKID, 16)
	c.namesIK(subject, n.IKKID)
	c.length(subject, "MAC", n.MAC, 32)
	c.generator(subject, n.Generator)
	if n.Seq < 1 {
		c.add(subject, "the sequence number is 0")
	}
	if n.Last > key.MaxVersion {
		c.add(subject, "its numbers went to %d, and the highest is %d", n.Last, key.MaxVersion)
	}
}

func (c *checker) generator(subject, name string) {
	if len(name) > 255 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		c.add(subject, "the generator %.300q is not at most 255 bytes of UTF-8 without control characters", name)
	}
}

// contradiction is what n says that cannot be, as there is k, the data key of that name; empty if all is well.
func contradiction(n *Name, k *Key) string {
	if n.Removed {
		return fmt.Sprintf("it is removed, and there is its key %s", k.ID)
	}
	for _, v := range k.Versions {
		if v.Number <= n.Last {
			return fmt.Sprintf("the numbers of removed keys went to %d, and version %d is there", n.Last, v.Number)
		}
	}
	return ""
}

// contradicted reads a name before and after its key: what it says in both it said when the key was read.
func (c *checker) contradicted(ctx context.Context, s Store, subject string, ref key.Ref) error {
	_, before, err := s.Name(ctx, ref)
	if err != nil {
		return gone(err)
	}
	f, err := s.Key(ctx, ref)
	if err != nil {
		return gone(err)
	}
	_, after, err := s.Name(ctx, ref)
	if err != nil {
		return gone(err)
	}
	if len(f.Data) == 0 || before.Seq != after.Seq {
		return nil
	}
	if problem := contradiction(&after, &f.Data[0]); problem != "" {
		c.add(subject, "%s", problem)
	}
	return nil
}

// gone is nil if a scope is not there any more.
func gone(err error) error {
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
