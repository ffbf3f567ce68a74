package seal

import (
	"crypto/cipher"
	"hash/maphash"
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

// cacheSeed keeps whoever chooses prefixes from choosing sets.
var cacheSeed = maphash.MakeSeed()

func (c *subkeyCache) set(owner *MessageKey, prefix *[prefixSize]byte) *[cacheWays]atomic.Pointer[subkey] {
	var b [len(owner.kid) + prefixSize]byte
	copy(b[copy(b[:], owner.kid[:]):], prefix[:])
	return &c.sets[maphash.Bytes(cacheSeed, b[:])%cacheSets]
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

// add keeps a cipher in place of another of its set.
func (c *subkeyCache) add(owner *MessageKey, prefix [prefixSize]byte, aead cipher.AEAD) {
	set := c.set(owner, &prefix)
	s := &subkey{owner: owner, prefix: prefix, aead: aead}
	for i := range set {
		if set[i].CompareAndSwap(nil, s) {
			return
		}
	}
	set[c.next.Add(1)%cacheWays].Store(s)
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
