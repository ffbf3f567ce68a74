package seal

import (
	"crypto/cipher"
	"encoding/binary"
	"math/bits"
	"sync/atomic"
)

// subkeys is the one cache of subkeys of all keys of the process, so that memory is bounded however many keys there
// are: 4096 entries of about 900 bytes. Nothing is put in that was not first opened, so that made-up prefixes displace
// nothing.
var subkeys subkeyCache

const (
	cacheWays = 4
	cacheSets = 1024
)

// subkeyCache finds the cipher of a key and prefix that were opened before. An entry is in one of the few places of its
// set; looking and adding take no lock, and an addition that races with another may be lost, which costs one
// derivation.
type subkeyCache struct {
	sets [cacheSets][cacheWays]atomic.Pointer[subkey]
	next atomic.Uint32 // the place that the next addition to a full set takes
}

type subkey struct {
	owner  *MessageKey
	prefix [prefixSize]byte
	aead   cipher.AEAD
}

// cacheSeeds keep whoever chooses prefixes from choosing sets.
var cacheSeeds = func() [2]uint64 {
	var b [16]byte
	fill(b[:])
	return [2]uint64{binary.LittleEndian.Uint64(b[:]), binary.LittleEndian.Uint64(b[8:])}
}()

func (c *subkeyCache) set(owner *MessageKey, prefix *[prefixSize]byte) *[cacheWays]atomic.Pointer[subkey] {
	// A product of 128 bits, folded, of words of which each has a part of the prefix, and a secret in it.
	kid := binary.LittleEndian.Uint64(owner.kid[:])
	hi, lo := bits.Mul64(binary.LittleEndian.Uint64(prefix[:])^cacheSeeds[0],
		binary.LittleEndian.Uint64(prefix[4:])^kid^cacheSeeds[1])
	return &c.sets[(hi^lo)%cacheSets]
}

// find returns the cipher, or nil.
func (c *subkeyCache) find(owner *MessageKey, prefix *[prefixSize]byte) cipher.AEAD {
	set := c.set(owner, prefix)
	for i := range set {
		if s := set[i].Load(); s != nil && s.owner == owner && s.prefix == *prefix {
			return s.aead
		}
	}
	return nil
}

// add keeps a cipher in place of another of its set, unless its owner is closed.
func (c *subkeyCache) add(s *subkey) {
	if !s.owner.cached.Load() {
		s.owner.cached.Store(true)
	}
	set := c.set(s.owner, &s.prefix)
	place := -1
	for i := range set {
		if set[i].CompareAndSwap(nil, s) {
			place = i
			break
		}
	}
	if place < 0 {
		place = int(c.next.Add(1) % cacheWays)
		set[place].Store(s)
	}
	// Closing looks for the owner's subkeys after saying that it is closed, and may have looked here before.
	if s.owner.Closed() {
		set[place].CompareAndSwap(s, nil)
	}
}

// drop lets go of the subkeys of all owners that gone says so of. It looks at every entry.
func (c *subkeyCache) drop(gone func(owner *MessageKey) bool) {
	for i := range c.sets {
		for j := range c.sets[i] {
			if s := c.sets[i][j].Load(); s != nil && gone(s.owner) {
				c.sets[i][j].CompareAndSwap(s, nil)
			}
		}
	}
}
