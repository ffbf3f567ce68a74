package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/internal/bubble"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/faultstore"
	"keyhold.example/keyhold/store/memstore"
)

// pass lets time pass in a bubble of synctest.
func pass(d time.Duration) { <-time.After(d) }

// sealing fails the test if nothing is sealed.
func sealing(t *testing.T, m *Manager, r Ref, text string) []byte {
	t.Helper()
	ct, err := m.Seal(t.Context(), r, []byte(text), AAD{})
	if err != nil {
		t.Error(err)
	}
	return ct
}

func reads(t *testing.T, m *Manager, ct []byte, want string) {
	t.Helper()
	if pt, err := m.Open(t.Context(), inner, ct, AAD{}); err != nil || string(pt) != want {
		t.Errorf("open: %q, %v; want %q", pt, err, want)
	}
}

func wants(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func wantsIntegrity(t *testing.T, err error) {
	t.Helper()
	if _, ok := errors.AsType[*IntegrityError](err); !ok {
		t.Errorf("got %v, want an IntegrityError", err)
	}
}

// two is one installation that two processes use: one changes keys, the other has read them before.
type two struct {
	store *memstore.Store
	calls *faultstore.Store // of the reader
	root  wrapping.Wrapper
	other *Manager
	*Manager
	config Config // of those that are opened, but for what all of them have
}

func (w *two) open(t *testing.T, s store.Store) *Manager {
	t.Helper()
	cfg := w.config
	cfg.Root, cfg.Purposes, cfg.Initialize = w.root, []Purpose{inner.Purpose, "another"}, true
	m, err := New(t.Context(), s, cfg)
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	return m
}

// inTwo runs f in a bubble, with the reader's key hot.
func inTwo(t *testing.T, f func(t *testing.T, w *two)) {
	t.Helper()
	inTwoWith(t, Config{}, f)
}

func inTwoWith(t *testing.T, cfg Config, f func(t *testing.T, w *two)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		root, err := localroot.Generate(t.TempDir() + "/root.key")
		check(t, err)
		w := &two{store: memstore.New(), root: root, config: cfg}
		w.calls = faultstore.New(w.store)
		w.other = w.open(t, w.store)
		check(t, w.other.CreateScope(t.Context(), inner.Scope))
		w.Manager = w.open(t, w.calls)
		sealing(t, w.Manager, inner, "x")
		f(t, w)
	})
}

// sealsWith asserts which version seals.
func (w *two) sealsWith(t *testing.T, want key.Version) {
	t.Helper()
	id, _, err := w.SealDetached(t.Context(), inner, nil, AAD{})
	check(t, err)
	fam, err := w.store.Key(t.Context(), inner)
	check(t, err)
	i := slices.IndexFunc(fam.Data[0].Versions, func(v store.Version) bool { return v.ID == id })
	if i < 0 || fam.Data[0].Versions[i].Number != want {
		t.Errorf("sealed with %s, which is not version %d", id, want)
	}
}

func (w *two) since(before int) []string { return w.calls.Log()[before:] }

func TestAnotherProcessSeesARotationAfterFiveSeconds(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		pass(5*time.Second - 1)
		w.sealsWith(t, 1)
		pass(1)
		w.sealsWith(t, 2)
	})
}

func TestTheProcessThatRotatesSeesItAtOnce(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		_, err := w.Rotate(t.Context(), inner)
		check(t, err)
		w.sealsWith(t, 2)
	})
}

// A change of one key costs a reader of others nothing but the one query for the epochs.
func TestOnlyChangedKeysAreReadAgain(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		others := make([]key.Ref, 40)
		for i := range others {
			others[i] = key.Ref{Scope: key.Scope(fmt.Sprint("s", i)), Purpose: inner.Purpose}
			check(t, w.other.CreateScope(t.Context(), others[i].Scope))
			sealing(t, w.Manager, others[i], "x")
		}
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		pass(5 * time.Second)
		for _, r := range append(others, inner) {
			before := w.calls.Calls()
			other, err := w.store.Key(t.Context(), r)
			check(t, err)
			shares := store.Bucket(other.Data[0].ID) == store.Bucket(fam.Data[0].ID) || store.Bucket(other.Root.ID) == store.Bucket(fam.Data[0].ID)
			sealing(t, w.Manager, r, "x")
			var want []string
			if r == others[0] {
				want = []string{"Epochs"}
			}
			if shares {
				want = append(want, "Key")
			}
			if got := w.since(before); !slices.Equal(got, want) {
				t.Errorf("%v: %v, want %v", r, got, want)
			}
		}
	})
}

// However many calls there are, one query every five seconds tells them whether anything has changed.
func TestOneQueryForAllCalls(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		before := w.calls.Calls()
		pass(5 * time.Second)
		for range 4 {
			var wg sync.WaitGroup
			for range 100 {
				wg.Go(func() {
					if _, err := w.Seal(t.Context(), inner, nil, AAD{}); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			pass(5 * time.Second / 2)
		}
		if got := w.since(before); !slices.Equal(got, []string{"Epochs", "Epochs"}) {
			t.Errorf("%v, want the epochs twice in ten seconds", got)
		}
	})
}

func TestWhatAnotherProcessSealedOpensAtOnce(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		for i := range 3 {
			_, err := w.other.Rotate(t.Context(), inner)
			check(t, err)
			ct := sealing(t, w.other, inner, fmt.Sprint(i))
			began := time.Now()
			reads(t, w.Manager, ct, fmt.Sprint(i))
			if took := time.Since(began); took > 100*time.Millisecond {
				t.Errorf("it took %v", took)
			}
			pt, r, err := w.OpenAny(t.Context(), ct, AAD{})
			if err != nil || r != inner || string(pt) != fmt.Sprint(i) {
				t.Errorf("%q, %v, %v", pt, r, err)
			}
		}
	})
}

// Messages of versions that do not exist cost the database ten small queries a second, however many there are.
func TestUnknownVersionsAreNoLoad(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		foreign := Ref{Scope: inner.Scope, Purpose: "another"}
		ct := sealing(t, w.other, foreign, "x")
		before := w.calls.Calls()
		began := time.Now()
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				for range 20 {
					_, err := w.Open(t.Context(), inner, ct, AAD{})
					wants(t, err, ErrOpen)
				}
			})
		}
		wg.Wait()
		calls := w.since(before)
		limit := 2 * (int(time.Since(began)/(100*time.Millisecond)) + 1) // a question under way may have to be asked again
		if slices.Contains(calls, "Key") || len(calls) > limit {
			t.Errorf("%d calls, want at most %d, none for a key: %v", len(calls), limit, calls)
		}
	})
}

func TestADisabledVersionIsRefusedAfterFiveSecondsAndOpensAgainAtOnce(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		step(t, w.other, inner, 1, key.Disabled)
		reads(t, w.Manager, ct, "x")
		pass(5 * time.Second)
		_, err = w.Open(t.Context(), inner, ct, AAD{})
		wants(t, err, ErrDisabled)
		step(t, w.other, inner, 1, key.Retired)
		reads(t, w.Manager, ct, "x")
	})
}

func TestADeletedScopeIsGoneAfterFiveSeconds(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		check(t, w.store.DeleteScope(t.Context(), inner.Scope))
		pass(5 * time.Second)
		_, err := w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrNotFound)
		_, err = w.Open(t.Context(), inner, ct, AAD{})
		wants(t, err, ErrNotFound)
		_, _, err = w.OpenAny(t.Context(), ct, AAD{})
		wants(t, err, ErrOpen)
	})
}

// A scope that is deleted and made again has other keys; the process that makes it must not seal with those of before.
func TestAScopeThatIsMadeAgainHasItsNewKeysAtOnce(t *testing.T) {
	for name, create := range map[string]func(t *testing.T, w *two) error{
		"by itself": func(t *testing.T, w *two) error { return w.CreateScope(t.Context(), inner.Scope) },
		"in the application's transaction": func(t *testing.T, w *two) error {
			tx := w.store.Begin()
			return errors.Join(w.CreateScopeTx(t.Context(), w.store.InTx(tx), inner.Scope), tx.Commit())
		},
		"by another process, and then it is there": func(t *testing.T, w *two) error {
			return errors.Join(w.other.CreateScope(t.Context(), inner.Scope), w.CreateScope(t.Context(), inner.Scope))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTwo(t, func(t *testing.T, w *two) {
				check(t, w.store.DeleteScope(t.Context(), inner.Scope))
				check(t, create(t, w))
				w.sealsWith(t, 1)
				reads(t, w.other, sealing(t, w.Manager, inner, "x"), "x")
			})
		})
	}
}

func TestARenamedScopeIsRefusedAfterFiveSeconds(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		_, _, err := w.OpenAny(t.Context(), ct, AAD{})
		check(t, err)
		check(t, w.store.RenameScope(t.Context(), inner.Scope, "renamed"))
		pass(5 * time.Second)
		_, err = w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrNotFound)
		_, _, err = w.OpenAny(t.Context(), ct, AAD{})
		wantsIntegrity(t, err)
	})
}

// Another installation whose epochs are those of the old one is not taken for it.
func TestAReplacedInstallationIsSeenAfterFiveSeconds(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		fresh := memstore.New()
		innerManager(t, fresh)
		var rows memstore.Data
		fresh.Edit(func(d *memstore.Data) { rows = *d })
		w.store.Edit(func(d *memstore.Data) { d.Installation = rows.Installation })
		pass(5 * time.Second)
		before := w.calls.Calls()
		sealing(t, w.Manager, inner, "x") // the key itself is still there
		if got := w.since(before); !slices.Equal(got, []string{"Epochs", "Key"}) {
			t.Errorf("%v, want the key to be read again", got)
		}

		// A change of the slots is none of the keys.
		w.store.Edit(func(d *memstore.Data) { d.Installation.Seq++ })
		pass(5 * time.Second)
		before = w.calls.Calls()
		sealing(t, w.Manager, inner, "x")
		if got := w.since(before); !slices.Equal(got, []string{"Epochs"}) {
			t.Errorf("%v, want the key not to be read again", got)
		}
	})
}

// A failover loses a rotation, which this process had seen and reports; then somebody repeats it, and by chance the
// epochs are what they were. The lost version does not seal again.
func TestALostVersionDoesNotSealAgainWhenEpochsAreAsBefore(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		var before, after memstore.Data
		copied := func(into *memstore.Data) {
			w.store.Edit(func(d *memstore.Data) {
				*into = *d
				into.Keys = slices.Clone(d.Keys)
				for i := range into.Keys {
					into.Keys[i].Versions = slices.Clone(d.Keys[i].Versions)
				}
			})
		}
		copied(&before)
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		pass(5 * time.Second)
		w.sealsWith(t, 2)
		copied(&after)

		w.store.Edit(func(d *memstore.Data) { *d = before })
		pass(5 * time.Second)
		_, err = w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrRolledBack)

		fresh := w.open(t, w.store)
		_, err = fresh.Rotate(t.Context(), inner)
		check(t, err)
		w.store.Edit(func(d *memstore.Data) { d.Epochs = after.Epochs })
		pass(5 * time.Second)
		w.sealsWith(t, 2) // the one that is there
	})
}

// Epochs can be held back by whoever can write to the database; then keys are read anew after a while all the same.
func TestHiddenChangesAreSeenAfterTenMinutes(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = make([]byte, 32) })
		for range 100 {
			pass(6*time.Second - time.Millisecond)
			sealing(t, w.Manager, inner, "x")
		}
		pass(100 * time.Millisecond)
		_, err := w.Seal(t.Context(), inner, nil, AAD{})
		wantsIntegrity(t, err)
	})
	inTwo(t, func(t *testing.T, w *two) {
		ct := sealing(t, w.Manager, inner, "x")
		_, _, err := w.OpenAny(t.Context(), ct, AAD{})
		check(t, err)
		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = make([]byte, 32) })
		pass(9 * time.Minute)
		_, _, err = w.OpenAny(t.Context(), ct, AAD{})
		check(t, err)
		pass(time.Minute + time.Second)
		_, _, err = w.OpenAny(t.Context(), ct, AAD{})
		wantsIntegrity(t, err)
	})
}

// Whoever waits for another call's question is not harmed by that call's being given up.
func TestAQuestionThatIsGivenUpIsAskedAgain(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		pass(5 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		first := atomic.Bool{}
		first.Store(true)
		w.calls.Hook(func(string) {
			if first.CompareAndSwap(true, false) {
				<-ctx.Done()
			}
		})
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := w.Seal(ctx, inner, nil, AAD{})
			wants(t, err, context.Canceled)
		})
		synctest.Wait()
		for range 10 {
			wg.Go(func() { sealing(t, w.Manager, inner, "x") })
		}
		synctest.Wait()
		cancel()
		wg.Wait()
	})
}

// A key that is read before a change, and whose answer comes after everybody knows of it, is not used again.
func TestALateAnswerDoesNotBringAnOldKeyBack(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		pass(5 * time.Second)
		_, err := w.other.Rotate(t.Context(), inner)
		check(t, err)
		late := &lateStore{Store: w.calls, read: make(chan struct{}), answer: make(chan struct{})}
		m := w.open(t, late)
		var wg sync.WaitGroup
		wg.Go(func() { sealing(t, m, inner, "with version 2") })
		<-late.read
		_, err = w.other.Rotate(t.Context(), inner)
		check(t, err)
		pass(5 * time.Second)
		late.pass.Store(true)
		sealing(t, m, key.Ref{Scope: inner.Scope, Purpose: "another"}, "reads the epochs")
		close(late.answer)
		wg.Wait()
		id, _, err := m.SealDetached(t.Context(), inner, nil, AAD{})
		check(t, err)
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		if head := fam.Data[0].Versions[2]; head.ID != id {
			t.Errorf("sealed with %s, want version 3, %s", id, head.ID)
		}
	})
}

// lateStore holds back the first answer about a key until it is told to pass it on.
type lateStore struct {
	store.Store
	pass         atomic.Bool
	read, answer chan struct{}
}

func (s *lateStore) Key(ctx context.Context, ref key.Ref) (store.Family, error) {
	fam, err := s.Store.Key(ctx, ref)
	if !s.pass.Load() {
		close(s.read)
		<-s.answer
	}
	return fam, err
}

// slowStore takes a while to answer for the epochs, which it has read at once.
type slowStore struct {
	store.Store
	takes  atomic.Int64 // a time.Duration
	asked  atomic.Int64
	during func() // once, while the answer is on its way
}

func (s *slowStore) Sign(ctx context.Context, in store.Instance) (store.Epochs, error) {
	return s.answer(ctx, func() (store.Epochs, error) { return s.Store.Sign(ctx, in) })
}

func (s *slowStore) Epochs(ctx context.Context) (store.Epochs, error) {
	return s.answer(ctx, func() (store.Epochs, error) { return s.Store.Epochs(ctx) })
}

func (s *slowStore) answer(ctx context.Context, read func() (store.Epochs, error)) (store.Epochs, error) {
	s.asked.Add(1)
	e, err := read()
	if during := s.during; during != nil {
		s.during = nil
		during()
	}
	select {
	case <-time.After(time.Duration(s.takes.Load())):
		return e, err
	case <-ctx.Done():
		return store.Epochs{}, store.ContextError(ctx)
	}
}

// inSlow is inTwo with a reader whose store is slow.
func inSlow(t *testing.T, f func(t *testing.T, w *two, s *slowStore)) {
	t.Helper()
	inSlowWith(t, Config{}, f)
}

func inSlowWith(t *testing.T, cfg Config, f func(t *testing.T, w *two, s *slowStore)) {
	t.Helper()
	inTwoWith(t, cfg, func(t *testing.T, w *two) {
		s := &slowStore{Store: w.calls}
		w.Manager = w.open(t, s)
		sealing(t, w.Manager, inner, "x")
		f(t, w, s)
	})
}

// Epochs are as old as the question, not as the answer.
func TestASlowAnswerIsAsOldAsItsQuestion(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		pass(5 * time.Second)
		s.takes.Store(int64(1500 * time.Millisecond))
		s.during = func() {
			_, err := w.other.Rotate(t.Context(), inner)
			check(t, err)
		}
		w.sealsWith(t, 1)
		s.takes.Store(0)
		pass(3500*time.Millisecond - 1)
		w.sealsWith(t, 1)
		pass(1)
		w.sealsWith(t, 2)
	})
}

// A connection that leads nowhere is given up after two seconds, and the question asked again.
func TestAQuestionThatTakesTooLongIsAskedAgain(t *testing.T) {
	inSlowWith(t, Config{SealFor: -1}, func(t *testing.T, w *two, s *slowStore) {
		pass(5 * time.Second)
		s.takes.Store(int64(time.Hour))
		go func() {
			pass(5 * time.Second)
			s.takes.Store(0)
		}()
		began := time.Now()
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { sealing(t, w.Manager, inner, "x") })
		}
		wg.Wait()
		if took := time.Since(began); took < 5*time.Second || took > 6*time.Second {
			t.Errorf("it took %v, want 5 s and a question", took)
		}
	})
}

// Where nothing answers any more, and what is known is too old, a call ends when that has been so for some time, and
// says that it was the database.
func TestASilentDatabaseIsUnavailable(t *testing.T) {
	inSlowWith(t, Config{SealFor: -1}, func(t *testing.T, w *two, s *slowStore) {
		pass(5 * time.Second)
		s.takes.Store(int64(24 * time.Hour))
		began := time.Now()
		_, err := w.Seal(t.Context(), inner, nil, AAD{})
		wants(t, err, ErrUnavailable)
		wants(t, err, ErrStale)
		if took := time.Since(began); took > 3*epochLife {
			t.Errorf("it took %v", took)
		}
		for range 100 { // others do not wait at all
			began = time.Now()
			_, err = w.Seal(t.Context(), inner, nil, AAD{})
			wants(t, err, ErrStale)
			if took := time.Since(began); took != 0 {
				t.Errorf("it took %v", took)
			}
		}
	})
}

// What was asked before this process changed a key says nothing of the time after.
func TestAnAnswerFromBeforeAnOwnChangeIsNotUsedAfterIt(t *testing.T) {
	inSlow(t, func(t *testing.T, w *two, s *slowStore) {
		pass(5 * time.Second)
		s.takes.Store(int64(time.Second))
		s.during = func() {
			_, err := w.Rotate(t.Context(), inner)
			check(t, err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { sealing(t, w.Manager, inner, "x") })
		synctest.Wait()
		w.sealsWith(t, 2)
		wg.Wait()
		w.sealsWith(t, 2)
	})
}
