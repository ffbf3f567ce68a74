package keyhold

import (
	"fmt"
	"sync"
	"testing"

	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store/memstore"
)

func innerParent(t *testing.T) *seal.Parent {
	t.Helper()
	k, err := seal.Generate(seal.Identity{Kind: key.KEK, RootKeyID: "krk_0", Alg: key.Message})
	check(t, err)
	parent, err := k.Parent()
	check(t, err)
	return parent
}

// Whatever way a key leaves the cache, or does not get there, it is closed.
func TestWhatTheCacheDoesNotKeepIsClosed(t *testing.T) {
	made := func(t *testing.T, kid byte) openedKey {
		return openedKey{
			openedRow: openedRow{kid: key.KID{kid}}, parent: innerParent(t), messages: innerMessages(t),
			raw: secret.NewShared([]byte("raw")),
		}
	}
	gone := func(o openedKey) [3]bool { return [3]bool{o.parent.Closed(), o.messages.Closed(), o.raw.Cleared()} }
	all := [3]bool{true, true, true}
	ways := map[string]func(t *testing.T, c *cache, kind key.Kind, was openedKey) (leaves openedKey){
		"another was first": func(t *testing.T, c *cache, kind key.Kind, was openedKey) openedKey {
			second := made(t, 1)
			o := c.keep(kind, second)
			o.release()
			if o.messages != was.messages || gone(was) != [3]bool{} {
				t.Error("the first of two is not kept, or closed")
			}
			return second
		},
		"under another row": func(t *testing.T, c *cache, kind key.Kind, was openedKey) openedKey {
			second := made(t, 1)
			second.digest[0] = 1
			o := c.keep(kind, second)
			o.release()
			if o.messages != was.messages || o.openedRow != second.openedRow || gone(was) != [3]bool{} {
				t.Error("the key is not kept under its new row, or closed")
			}
			return second
		},
		"evicted": func(t *testing.T, c *cache, kind key.Kind, was openedKey) openedKey {
			o := c.keep(kind, made(t, 2))
			o.release()
			return was
		},
		"idle": func(_ *testing.T, c *cache, _ key.Kind, was openedKey) openedKey {
			c.dropIdle()
			c.dropIdle()
			return was
		},
		"cleared": func(_ *testing.T, c *cache, _ key.Kind, was openedKey) openedKey {
			c.clear()
			return was
		},
	}
	for name, leave := range ways {
		for _, kind := range []key.Kind{key.KEK, key.DEK} {
			t.Run(fmt.Sprint(name, " ", kind), func(t *testing.T) {
				c, was := newCache(1), made(t, 1)
				o := c.keep(kind, was)
				o.release()
				if got := gone(leave(t, c, kind, was)); got != all {
					t.Errorf("parent, messages, raw are closed: %v", got)
				}
			})
		}
	}
}

// A root key that is dropped while a call uses it is there until the call has released it.
func TestARootKeyIsThereAsLongAsACallUsesIt(t *testing.T) {
	c := newCache(1)
	is := openedRow{kid: key.KID{1}}
	parent := innerParent(t)
	first := c.keep(key.KEK, openedKey{openedRow: is, parent: parent})
	second, ok := c.find(key.KEK, is)
	c.clear()
	for _, o := range []opened{first, second} {
		if !ok || o.parent != parent || parent.Closed() {
			t.Fatal("it is closed while it is used")
		}
		o.release()
	}
	if !parent.Closed() {
		t.Error("it is not closed when nobody uses it any more")
	}
}

// Calls go on while the root keys that they need are dropped all the time, and Close leaves none.
func TestCallsGoOnWhileRootKeysAreDropped(t *testing.T) {
	m := innerManager(t, memstore.New())
	fam, err := m.committed().scope(t.Context(), inner.Scope)
	check(t, err)
	data := &fam.Data[0]
	var mu sync.Mutex
	var parents []*seal.Parent
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for range 500 {
				p, err := m.committed().anyParent(&fam.Family, data.Versions[0].Parent)
				if err != nil {
					t.Error(err)
					return
				}
				k, err := m.committed().unwrap(&fam.Family, data, &data.Versions[0])
				if err == nil {
					_, err = p.Wrap(k, 1, 1)
					k.Close()
				}
				p.Close()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				parents = append(parents, p)
				mu.Unlock()
			}
		})
	}
	stop := make(chan struct{})
	var dropping sync.WaitGroup
	dropping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				m.cache.clear()
			}
		}
	})
	calls.Wait()
	close(stop)
	dropping.Wait()
	p, err := m.committed().anyParent(&fam.Family, data.Versions[0].Parent)
	check(t, err)
	p.Close()
	if p.Closed() {
		t.Fatal("it is not kept, so that Close has nothing to close")
	}
	check(t, m.Close())
	for _, p := range append(parents, p) {
		if !p.Closed() {
			t.Fatal("a root key is not closed after Close")
		}
	}
}
