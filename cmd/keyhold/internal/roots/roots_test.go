package roots

import (
	"bytes"
	"context"
	"crypto/fips140"
	"errors"
	"sync"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"google.golang.org/protobuf/proto"
)

var installationKey = bytes.Repeat([]byte{42}, 65)

// each runs a test with each vendor's stand-in.
func each(t *testing.T, test func(t *testing.T, s standIn)) {
	t.Helper()
	for _, s := range standIns() {
		t.Run(s.name, func(t *testing.T) {
			if s.name != "transit" && fips140.Enforced() {
				t.Skip("go-kms-wrapping's envelope chooses the nonces of AES-GCM itself, which is refused here")
			}
			test(t, s)
		})
	}
}

func open(t *testing.T, address string) *Root {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	root, err := Open(ctx, address)
	if err != nil {
		t.Fatalf("open %s: %v", address, err)
	}
	t.Cleanup(func() {
		if err := root.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return root
}

func keyID(t *testing.T, w wrapping.Wrapper) string {
	t.Helper()
	id, err := w.KeyId(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestEveryVendorSealsAndOpens(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		k, address := s.begin(t)
		root := open(t, address)
		if typ, err := root.Type(t.Context()); err != nil || string(typ) != s.name {
			t.Errorf("type %q, %v", typ, err)
		}
		if id := keyID(t, root); id != s.keyID {
			t.Errorf("the key's id before the first use is %q, want %q", id, s.keyID)
		}
		plaintext := bytes.Clone(installationKey)
		blob, err := root.Encrypt(t.Context(), plaintext)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(plaintext, installationKey) {
			t.Error("the caller's plaintext was changed")
		}
		if id := keyID(t, root); id != s.keyID || blob.GetKeyInfo().GetKeyId() != id {
			t.Errorf("the key's id is %q, and %q in the blob, want %q", id, blob.GetKeyInfo().GetKeyId(), s.keyID)
		}
		before := proto.Clone(blob)
		got, err := root.Decrypt(t.Context(), blob)
		if err != nil || !bytes.Equal(got, installationKey) {
			t.Errorf("opened %x, %v", got, err)
		}
		if !proto.Equal(before, blob) {
			t.Error("the caller's blob was changed")
		}
		proved := 0
		for _, host := range s.hosts {
			for _, r := range asked(host) {
				if s.proof(r) {
					proved++
				}
			}
		}
		if calls := k.count(); proved < calls {
			t.Errorf("%d of %d calls have the credentials of the environment", proved, calls)
		}
	})
}

// A rotation inside the vendor's key must not look like another root.
func TestAVendorsRotationChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		k, address := s.begin(t)
		root := open(t, address)
		old, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		k.rotate()
		later := open(t, address)
		again, err := later.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		if same := keyID(t, later) == s.keyID; same == s.rotates || again.GetKeyInfo().GetKeyId() != keyID(t, later) {
			t.Errorf("after the rotation, the key's id is %q, and %q in a blob", keyID(t, later), again.GetKeyInfo().GetKeyId())
		}
		for _, blob := range []*wrapping.BlobInfo{old, again} {
			if got, err := later.Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, installationKey) {
				t.Errorf("opened %x, %v", got, err)
			}
		}
	})
}

// What a program seals that makes the wrapper itself opens here, and the other way round.
func TestTheWrapperItselfOpensTheSame(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		_, address := s.begin(t)
		root := open(t, address)
		plain := s.plain()
		if s.name == "transit" {
			t.Setenv("VAULT_ADDR", address[len("transit:"):len(address)-len("/transit/k?namespace=team")])
		}
		if _, err := plain.SetConfig(t.Context(), s.config...); err != nil {
			t.Fatal(err)
		}
		for _, pair := range [][2]wrapping.Wrapper{{root, plain}, {plain, root}} {
			blob, err := pair[0].Encrypt(t.Context(), installationKey)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := pair[1].Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, installationKey) {
				t.Errorf("%T opened %x of %T, %v", pair[1], got, pair[0], err)
			}
		}
	})
}

func TestWhatIsWrongIsSaidInOneSentence(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		cases := map[mood]error{
			disabled: ErrDisabled, denied: ErrRefused, unknownKey: ErrNoKey, badCredentials: ErrCredentials, throttled: ErrThrottled,
			broken: ErrUnreachable,
		}
		if s.name == "ocikms" {
			delete(cases, unknownKey) // is the same answer as for who may not use it
			delete(cases, broken)     // is asked again for half a minute
		}
		k, address := s.begin(t)
		root := open(t, address)
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		for mood, want := range cases {
			if s.name == "azurekeyvault" && mood == badCredentials {
				continue // it has a token already; Open, below, needs one
			}
			k.becomes(mood)
			_, err := root.Decrypt(t.Context(), blob)
			if !errors.Is(err, want) || !oneSentence(err) {
				t.Errorf("decrypt, want %v: %v", want, err)
			}
			t.Log(err)
		}
		for mood, want := range cases {
			if s.name == "gcpckms" || mood == disabled { // opening asks for nothing, or finds nothing wrong
				continue
			}
			k.becomes(mood)
			_, err := Open(t.Context(), address)
			if !errors.Is(err, want) || !oneSentence(err) {
				t.Errorf("open, want %v: %v", want, err)
			}
		}
	})
}

func TestAnotherKeysBlobIsRefused(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		k, address := s.begin(t)
		root := open(t, address)
		own := k.key
		k.mu.Lock()
		k.key = "another"
		k.mu.Unlock()
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		k.mu.Lock()
		k.key = own
		k.mu.Unlock()
		if _, err = root.Decrypt(t.Context(), blob); s.name == "alicloudkms" {
			// Its API takes no key, and the wrapper does not say which one it was.
			if err != nil {
				t.Errorf("docs/roots.md says that this opens: %v", err)
			}
		} else if !errors.Is(err, ErrNotItsKey) || !oneSentence(err) {
			t.Errorf("opened what the vendor's key did not seal: %v", err)
		}
		if s.rotates {
			return // names the key in the call by nothing but its version
		}
		blob.KeyInfo.KeyId = "arn:aws:kms:eu-central-1:999999999999:key/of-a-stranger"
		calls := k.count()
		if _, err := root.Decrypt(t.Context(), blob); !errors.Is(err, ErrNotItsKey) || k.count() != calls {
			t.Errorf("a blob that names another key: %v, after %d calls", err, k.count()-calls)
		}
	})
}

func TestWhatOpensAsSomethingElseIsRefused(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		if s.name == "transit" {
			return // it has no envelope that could show it: the caller's own check does
		}
		k, address := s.begin(t)
		root := open(t, address)
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		k.becomes(otherText)
		if got, err := root.Decrypt(t.Context(), blob); !errors.Is(err, ErrNotItsKey) || !oneSentence(err) {
			t.Errorf("opened %x, %v", got, err)
		}
	})
}

func TestDamagedBlobsAreErrors(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		_, address := s.begin(t)
		root := open(t, address)
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, damage := range map[string]func(b *wrapping.BlobInfo){
			"nothing":       func(b *wrapping.BlobInfo) { proto.Reset(b) },
			"no key info":   func(b *wrapping.BlobInfo) { b.KeyInfo = nil },
			"no ciphertext": func(b *wrapping.BlobInfo) { b.Ciphertext = nil },
			"short nonce":   func(b *wrapping.BlobInfo) { b.Iv, b.Ciphertext = []byte{1}, append([]byte{1}, b.Ciphertext...) },
			"mechanism":     func(b *wrapping.BlobInfo) { b.KeyInfo.Mechanism, b.Ciphertext = 77, append([]byte{1}, b.Ciphertext...) },
			"no key":        func(b *wrapping.BlobInfo) { b.KeyInfo.WrappedKey, b.Ciphertext = nil, b.Ciphertext[:2] },
		} {
			damaged := proto.Clone(blob).(*wrapping.BlobInfo)
			damage(damaged)
			if got, err := root.Decrypt(t.Context(), damaged); err == nil || !oneSentence(err) {
				t.Errorf("%s: opened %x, %v", name, got, err)
			}
		}
	})
}

func TestSeveralGoroutinesMayUseARoot(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		_, address := s.begin(t)
		root := open(t, address)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				blob, err := root.Encrypt(t.Context(), installationKey)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := root.Decrypt(t.Context(), blob); err != nil || !bytes.Equal(got, installationKey) {
					t.Errorf("opened %x, %v", got, err)
				}
			})
		}
		group.Wait()
	})
}

// A vendor that does not answer holds nobody up for longer than the context says.
func TestCallsEndWithTheirContext(t *testing.T) {
	each(t, func(t *testing.T, s standIn) {
		k, address := s.begin(t)
		root := open(t, address)
		blob, err := root.Encrypt(t.Context(), installationKey)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { close(k.released) })
		k.becomes(hung)
		for name, f := range map[string]func(context.Context) error{
			"encrypt": func(ctx context.Context) error { _, err := root.Encrypt(ctx, installationKey); return err },
			"decrypt": func(ctx context.Context) error { _, err := root.Decrypt(ctx, blob); return err },
			"open": func(ctx context.Context) error {
				if s.name == "gcpckms" {
					return errors.Join(ErrUnreachable, context.DeadlineExceeded) // makes no call
				}
				_, err := Open(ctx, address)
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			began, calls := time.Now(), k.count()
			err := f(ctx)
			if !errors.Is(err, ErrUnreachable) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 3*time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(began))
			}
			cancel()
			for n := calls; s.stops && n < k.count(); n++ {
				select {
				case <-k.gone: // the call itself has ended, too
				case <-time.After(5 * time.Second):
					t.Errorf("%s: the call goes on after its context", name)
				}
			}
		}
		after := k.count()
		if _, err := root.Encrypt(ended0(t), installationKey); !errors.Is(err, context.Canceled) || k.count() != after {
			t.Errorf("with a context that has ended: %v, after %d calls", err, k.count()-after)
		}
	})
}

// The libraries repeat what fails. That, too, has to end with the context.
func TestRepeatedCallsEndWithTheirContext(t *testing.T) {
	stopped := map[string]*fake{}
	counts := map[string]int{}
	each(t, func(t *testing.T, s standIn) {
		if !s.stops {
			return // the wrapper gives its library no context: what was begun goes on until the library gives up
		}
		k, address := s.begin(t)
		root := open(t, address)
		k.becomes(broken)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		before := k.count()
		if _, err := root.Encrypt(ctx, installationKey); !errors.Is(err, ErrUnreachable) || k.count() == before {
			t.Errorf("%v after %d calls", err, k.count()-before)
		}
		stopped[s.name] = k
	})
	for name, k := range stopped {
		counts[name] = k.count()
	}
	<-time.After(2 * time.Second) // longer than each of them waits before it tries again
	for name, k := range stopped {
		if n := k.count(); n != counts[name] {
			t.Errorf("%s was called %d times after the context had ended", name, n-counts[name])
		}
	}
}

func ended0(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}
