package keyhold_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// trialRoot is a root that does something else before it does what it is called for.
type trialRoot struct {
	wrapping.Wrapper
	first func(ctx context.Context, call string) error
	noID  bool

	mu    sync.Mutex // of bytes, while calls are under way
	bytes [][]byte   // that it was given to seal, and that it returned opened
}

func (r *trialRoot) keep(b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.bytes = append(r.bytes, b)
}

func (r *trialRoot) Type(ctx context.Context) (wrapping.WrapperType, error) {
	if err := r.first(ctx, "Type"); err != nil {
		return "", err
	}
	return r.Wrapper.Type(ctx)
}

func (r *trialRoot) KeyId(ctx context.Context) (string, error) { //nolint:revive // the interface's spelling
	if err := r.first(ctx, "KeyId"); err != nil || r.noID {
		return "", err
	}
	return r.Wrapper.KeyId(ctx)
}

func (r *trialRoot) Encrypt(ctx context.Context, pt []byte, o ...wrapping.Option) (*wrapping.BlobInfo, error) {
	r.keep(pt)
	if err := r.first(ctx, "Encrypt"); err != nil {
		return nil, err
	}
	return r.Wrapper.Encrypt(ctx, pt, o...)
}

func (r *trialRoot) Decrypt(ctx context.Context, in *wrapping.BlobInfo, o ...wrapping.Option) ([]byte, error) {
	if err := r.first(ctx, "Decrypt"); err != nil {
		return nil, err
	}
	pt, err := r.Wrapper.Decrypt(ctx, in, o...)
	r.keep(pt)
	return pt, err
}

var errDenied = errors.New("denied")

// at does something at one of the calls.
func at(call string, do func(ctx context.Context) error) func(context.Context, string) error {
	return func(ctx context.Context, now string) error {
		if now != call {
			return nil
		}
		return do(ctx)
	}
}

func denies(context.Context) error { return errDenied }

// deaf takes 30 s, whatever its context says.
func deaf(context.Context) error {
	<-time.After(30 * time.Second)
	return nil
}

// slow would take 30 s, too, and ends with its context, as wrappers of clouds do.
func slow(ctx context.Context) error {
	select {
	case <-time.After(30 * time.Second):
		return nil
	case <-ctx.Done():
		return errors.New("POST: request canceled") //nolint:err113 // that it does not wrap ctx's is what is tried
	}
}

// passed lets time pass, until nobody does anything any more.
func passed(d time.Duration) {
	pass(d)
	synctest.Wait()
}

// What a root that does not open the installation may be: another one, which is to be configured, or the right one,
// which is to be tried again. No call of it outlasts New.
func TestWhatIsSaidOfARoot(t *testing.T) {
	const limit = "Config.Timeout (1s)"
	for name, c := range map[string]struct {
		first       func(context.Context, string) error
		noID, other bool
		again       bool  // whether trying again may help
		took        int64 // seconds
		says        string
		also        error
	}{
		"another":                  {other: true, says: "it is another one: "},
		"another, slow":            {other: true, first: at("Decrypt", slow), took: 1, says: "it is another one: ", also: context.DeadlineExceeded},
		"another, deaf":            {other: true, first: at("Decrypt", deaf), took: 1, says: limit, also: context.DeadlineExceeded},
		"another, denies":          {other: true, first: at("Decrypt", denies), says: "it is another one: ", also: errDenied},
		"denies":                   {first: at("Decrypt", denies), again: true, says: ") failed: ", also: errDenied},
		"panics":                   {first: at("Decrypt", func(context.Context) error { panic("no") }), again: true, says: ") failed: "},
		"slow":                     {first: at("Decrypt", slow), again: true, took: 1, says: limit, also: context.DeadlineExceeded},
		"deaf":                     {first: at("Decrypt", deaf), again: true, took: 1, says: limit, also: context.DeadlineExceeded},
		"has no id and denies":     {noID: true, first: at("Decrypt", denies), says: " failed, or it is another one", also: errDenied},
		"has no id, another":       {noID: true, other: true, says: " failed, or it is another one"},
		"has no id and is deaf":    {noID: true, first: at("Decrypt", deaf), again: true, took: 1, says: limit},
		"does not say its type":    {first: at("Type", denies), again: true, says: "the external root failed: ask for its type: ", also: errDenied},
		"deaf when asked its type": {first: at("Type", deaf), again: true, took: 1, says: limit},
		"deaf when asked its id":   {first: at("KeyId", deaf), again: true, took: 1, says: "ask for its key's id: no answer by the end of " + limit},
		"does not know its id yet": {first: at("KeyId", denies), other: true, says: " failed, or it is another one"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s, right := memstore.New(), newRoot(t)
				newManager(t, s, right)
				root := &trialRoot{Wrapper: right, first: c.first, noID: c.noID}
				if c.first == nil {
					root.first = func(context.Context, string) error { return nil }
				}
				if c.other {
					root.Wrapper = newRoot(t)
				}
				cfg := config(root)
				cfg.Timeout = time.Second
				began := time.Now()
				_, err := keyhold.New(t.Context(), s, cfg)
				if took := time.Since(began); took != time.Duration(c.took)*time.Second {
					t.Errorf("it took %v, want %d s", took, c.took)
				}
				fails(t, err, keyhold.ErrRoot)
				if got := errors.Is(err, keyhold.ErrRootUnavailable); got != c.again {
					t.Errorf("trying again may help: %v, want %v", got, c.again)
				}
				if c.also != nil {
					fails(t, err, c.also)
				}
				if errors.Is(err, keyhold.ErrUnavailable) {
					t.Error("it says that the database is away")
				}
				text := err.Error()
				if !strings.Contains(text, c.says) || strings.Contains(text, "does not open this installation") == c.again {
					t.Errorf("it says %q, want %q", text, c.says)
				}
				if strings.Contains(c.says, "it is another one: ") {
					for _, r := range []wrapping.Wrapper{root.Wrapper, right} {
						id, err := r.KeyId(t.Context())
						must(t, err)
						if !strings.Contains(text, id) {
							t.Errorf("it does not name %s: %s", id, text)
						}
					}
				}
				passed(time.Minute)
				if name == "deaf" && (len(root.bytes) != 1 || len(root.bytes[0]) != 65) {
					t.Fatalf("what came late is %d pieces", len(root.bytes))
				}
				for _, b := range root.bytes {
					if !bytes.Equal(b, make([]byte, len(b))) {
						t.Error("what came late is not cleared")
					}
				}
			})
		})
	}
}

// The same where the installation is to be made: nothing is stored, whatever comes late.
func TestWhatIsSaidOfARootThatIsToSeal(t *testing.T) {
	for name, c := range map[string]struct {
		first func(context.Context, string) error
		calls int
		took  int64
	}{
		"denies sealing": {first: at("Encrypt", denies), calls: 1},
		"denies opening": {first: at("Decrypt", denies), calls: 1},
		"slow to seal":   {first: at("Encrypt", slow), calls: 1, took: 1},
		"slow to open":   {first: at("Decrypt", slow), calls: 1, took: 1},
		"deaf to seal":   {first: at("Encrypt", deaf), calls: 1, took: 1},
		"deaf to open":   {first: at("Decrypt", deaf), calls: 2, took: 1},
		"has no type":    {first: at("Type", denies)},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s, root := memstore.New(), &trialRoot{Wrapper: newRoot(t), first: c.first}
				cfg := config(root)
				cfg.Timeout = time.Second
				began := time.Now()
				_, err := keyhold.New(t.Context(), s, cfg)
				if took := time.Since(began); took != time.Duration(c.took)*time.Second {
					t.Errorf("it took %v, want %d s", took, c.took)
				}
				fails(t, err, keyhold.ErrRoot)
				fails(t, err, keyhold.ErrRootUnavailable)
				if text := err.Error(); !strings.Contains(text, " failed: ") || strings.Contains(text, "Config.Timeout (1s)") != (c.took > 0) {
					t.Errorf("it says %q", text)
				}
				passed(time.Minute)
				_, err = s.Installation(t.Context())
				fails(t, err, store.ErrNotFound)
				if len(root.bytes) != c.calls {
					t.Errorf("%d pieces went through the root, want %d", len(root.bytes), c.calls)
				}
				for i, b := range root.bytes {
					if len(b) == 0 || !bytes.Equal(b, make([]byte, len(b))) {
						t.Errorf("piece %d is not cleared", i)
					}
				}
			})
		})
	}
}

// A root that does not end with its context may read what it is to seal for as long as it likes.
func TestADeafRootReadsWhatItWasGiven(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		root := &trialRoot{Wrapper: newRoot(t)}
		read := false
		root.first = at("Encrypt", func(ctx context.Context) error {
			_ = deaf(ctx)
			read = !bytes.Equal(root.bytes[0], make([]byte, len(root.bytes[0])))
			return nil
		})
		cfg := config(root)
		cfg.Timeout = time.Second
		_, err := keyhold.New(t.Context(), memstore.New(), cfg)
		fails(t, err, keyhold.ErrRootUnavailable)
		passed(time.Minute)
		if !read {
			t.Error("it was cleared while the root had it")
		}
	})
}

// What the caller's own context ends is not told as Config.Timeout's.
func TestTheCallerEndsACallOfTheRoot(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, right := memstore.New(), newRoot(t)
		newManager(t, s, right)
		why := errors.New("shut down")
		for _, do := range []func(context.Context) error{slow, deaf} {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(why) })
			began := time.Now()
			_, err := keyhold.New(ctx, s, config(&trialRoot{Wrapper: right, first: at("Decrypt", do)}))
			if took := time.Since(began); took != time.Second {
				t.Errorf("it took %v", took)
			}
			for _, want := range []error{keyhold.ErrRoot, context.Canceled, why} {
				fails(t, err, want)
			}
			if strings.Contains(err.Error(), "Config.Timeout") {
				t.Errorf("it says %v", err)
			}
			passed(time.Minute)
		}
	})
}
