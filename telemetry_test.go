package keyhold

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/protobuf/proto"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/localroot"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/memstore"
)

// seen is what is told to OpenTelemetry.
type seen struct {
	meter *sdkmetric.ManualReader
	spans *tracetest.SpanRecorder
}

// telling lets the managers of cfg tell what they do.
func telling(cfg *Config) *seen {
	s := &seen{sdkmetric.NewManualReader(), tracetest.NewSpanRecorder()}
	cfg.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(s.meter))
	cfg.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(s.spans))
	return s
}

// watched opens a manager that tells what it does, beside those of w that do not.
func (w *two) watched(t *testing.T) (*Manager, *seen) {
	t.Helper()
	s := telling(&w.config)
	m := w.open(t, w.calls)
	w.config.Meter, w.config.Tracer = nil, nil
	return m, s
}

func (s *seen) collect(t *testing.T) metricdata.ResourceMetrics {
	t.Helper()
	var all metricdata.ResourceMetrics
	check(t, s.meter.Collect(t.Context(), &all))
	return all
}

// value is the sum of a metric's points that have all the given labels, as "name=value", and whether there is one. Of a
// histogram it is how often something was measured.
func (s *seen) value(t *testing.T, name string, labels ...string) (sum float64, ok bool) {
	t.Helper()
	add := func(attrs attribute.Set, v float64) {
		var have []string
		for _, kv := range attrs.ToSlice() {
			have = append(have, string(kv.Key)+"="+kv.Value.String())
		}
		for _, l := range labels {
			if !slices.Contains(have, "keyhold."+l) {
				return
			}
		}
		sum, ok = sum+v, true
	}
	for _, scope := range s.collect(t).ScopeMetrics {
		for _, m := range scope.Metrics {
			if m.Name != name {
				continue
			}
			switch d := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					add(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[int64]:
				for _, p := range d.DataPoints {
					add(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range d.DataPoints {
					add(p.Attributes, p.Value)
				}
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					add(p.Attributes, float64(p.Count))
				}
			default:
				t.Fatalf("%s is a %T", name, d)
			}
		}
	}
	return sum, ok
}

// moves asserts by how much a metric moves while f runs.
func (s *seen) moves(t *testing.T, by float64, f func(), name string, labels ...string) {
	t.Helper()
	before, _ := s.value(t, name, labels...)
	f()
	if after, _ := s.value(t, name, labels...); after-before != by {
		t.Errorf("%s %v moved by %v, want %v", name, labels, after-before, by)
	}
}

func (s *seen) is(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	if got, ok := s.value(t, name, labels...); !ok || math.Abs(got-want) > 1e-6 {
		t.Errorf("%s %v is %v (there: %v), want %v", name, labels, got, ok, want)
	}
}

func (s *seen) isAbsent(t *testing.T, name string) {
	t.Helper()
	if got, ok := s.value(t, name); ok {
		t.Errorf("%s is %v, and nothing is known of it", name, got)
	}
}

// named is the spans of that name that have ended.
func (s *seen) named(name string) (spans []sdktrace.ReadOnlySpan) {
	for _, span := range s.spans.Ended() {
		if span.Name() == name {
			spans = append(spans, span)
		}
	}
	return spans
}

func of(span sdktrace.ReadOnlySpan, k attribute.Key) string {
	for _, kv := range span.Attributes() {
		if kv.Key == k {
			return kv.Value.String()
		}
	}
	return ""
}

func TestMetricsOfTheDatabase(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		const age, questions = "keyhold.database.age", "keyhold.epochs.questions"
		s.isAbsent(t, age)
		s.moves(t, 1, func() { sealing(t, m, inner, "x") }, questions, "result=answered")
		s.is(t, 0, age)
		pass(4 * time.Second)
		s.is(t, 4, age)
		s.moves(t, 0, func() { sealing(t, m, inner, "x") }, questions)
		w.away(true)
		pass(4 * time.Second)
		s.moves(t, 1, func() { sealing(t, m, inner, "x") }, questions, "result=unavailable")
		s.is(t, 8, age)
		w.away(false)
	})
}

func TestMetricsOfTheCache(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		const kept, evicted, lookups = "keyhold.cache.entries", "keyhold.cache.evictions", "keyhold.cache.lookups"
		m, s := w.watched(t)
		check(t, w.other.CreateScope(t.Context(), "second"))
		second := Ref{Scope: "second", Purpose: inner.Purpose}
		var ct []byte
		s.moves(t, 1, func() { ct = sealing(t, m, inner, "x") }, lookups, "result=miss")
		s.is(t, 1, kept, "kind=key")
		s.is(t, 1, kept, "kind=version")
		s.moves(t, 2, func() { sealing(t, m, inner, "x"); reads(t, m, ct, "x") }, lookups, "result=hit")
		s.is(t, 1, lookups, "result=miss")
		m.cache.snapshots.limit, m.cache.opened.limit = 1, 1
		s.moves(t, 1, func() { sealing(t, m, second, "x") }, evicted, "kind=key")
		s.is(t, 1, evicted, "kind=version")
		s.is(t, 1, kept, "kind=key")

		openAny := func() {
			_, _, err := m.OpenAny(t.Context(), ct, AAD{})
			check(t, err)
		}
		s.moves(t, 1, openAny, lookups, "result=miss")
		s.moves(t, 1, openAny, lookups, "result=hit")
	})
}

// Each reason for which a call does not seal or open is told apart, and its purpose said where there is such a key.
func TestMetricsOfRefusals(t *testing.T) {
	policies := map[Purpose]Policy{"another": {MaxMessages: 1}}
	inTwoWith(t, Config{SealFor: time.Minute, Policies: policies}, func(t *testing.T, w *two) {
		const name = "keyhold.refusals"
		m, s := w.watched(t)
		ct := sealing(t, m, inner, "x")
		seals := func(r Ref, want error) func() {
			return func() {
				_, err := m.Seal(t.Context(), r, nil, AAD{})
				wants(t, err, want)
			}
		}
		opens := func(ct []byte, want error) func() {
			return func() {
				_, err := m.Open(t.Context(), inner, ct, AAD{})
				wants(t, err, want)
			}
		}
		another := Ref{Scope: inner.Scope, Purpose: "another"}
		sealing(t, m, another, "x")
		s.moves(t, 1, seals(another, ErrUsedUp), name, "operation=seal", "reason=used_up", "purpose=another")
		s.moves(t, 1, opens(append(slices.Clone(ct), 0), ErrOpen), name, "operation=open", "reason=open", "purpose=client-secrets")
		s.moves(t, 1, opens([]byte("x"), ErrOpen), name, "operation=open", "reason=open")
		s.moves(t, 1, func() {
			_, _, err := m.OpenAny(t.Context(), []byte("x"), AAD{})
			wants(t, err, ErrOpen)
		}, name, "operation=open", "reason=open")
		s.moves(t, 1, func() {
			_, err := m.OpenDetached(t.Context(), inner, "x", nil, AAD{})
			wantsError(t, err)
		}, name, "operation=open", "reason=other")

		made := Ref{Scope: inner.Scope, Purpose: "made up"}
		s.moves(t, 1, seals(made, ErrNotFound), name, "operation=seal", "reason=not_found")
		if _, ok := s.value(t, name, "purpose=made up"); ok {
			t.Error("what a caller made up is a label")
		}

		root, err := m.Wrapper(t.Context(), innerRoot)
		check(t, err)
		blob, err := root.Encrypt(t.Context(), []byte("x"))
		check(t, err)
		blob.Ciphertext = append(blob.Ciphertext, 0)
		s.moves(t, 1, func() {
			_, err := root.Decrypt(t.Context(), blob)
			wants(t, err, ErrOpen)
		}, name, "operation=open", "reason=open")
		blob.KeyInfo.Mechanism = 0
		s.moves(t, 1, func() {
			_, err := root.Decrypt(t.Context(), blob)
			wants(t, err, ErrOpen)
		}, name, "operation=open", "reason=open")
		check(t, w.other.CreateScope(t.Context(), "gone"))
		gone, err := m.Wrapper(t.Context(), Ref{Scope: "gone"})
		check(t, err)
		_, err = w.other.Shred(t.Context(), "gone")
		check(t, err)
		s.moves(t, 1, func() {
			_, err := gone.Encrypt(t.Context(), []byte("x"))
			wants(t, err, ErrNotFound)
		}, name, "operation=seal", "reason=not_found")

		_, err = m.Rotate(t.Context(), inner)
		check(t, err)
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		check(t, m.Disable(t.Context(), fam.Data[0].Versions[0].ID))
		s.moves(t, 1, opens(ct, ErrDisabled), name, "operation=open", "reason=disabled", "purpose=client-secrets")

		seq := m.cache.sequence(fam.Data[0].ID)
		m.cache.saw(fam.Data[0].ID, seq+1)
		m.changed("", inner.Scope)
		s.moves(t, 1, seals(inner, ErrRolledBack), name, "operation=seal", "reason=rolled_back", "purpose=client-secrets")

		mac := []byte(nil)
		w.store.Edit(func(d *memstore.Data) { mac, d.Key(inner).MAC = d.Key(inner).MAC, make([]byte, 32) })
		m.changed("", inner.Scope)
		s.moves(t, 1, func() {
			_, err := m.Seal(t.Context(), inner, nil, AAD{})
			wantsIntegrity(t, err)
		}, name, "operation=seal", "reason=integrity")
		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = mac })

		w.away(true)
		s.moves(t, 1, seals(inner, ErrUnavailable), name, "operation=seal", "reason=unavailable")
		pass(2 * time.Minute)
		s.moves(t, 1, seals(inner, ErrStale), name, "operation=seal", "reason=stale")
		w.away(false)
		check(t, m.Close())
		s.moves(t, 1, seals(inner, ErrClosed), name, "operation=seal", "reason=closed")
	})
}

func wantsError(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Error("got no error")
	}
}

func TestMetricsOfRotation(t *testing.T) {
	policies := map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}, "another": {RotateEvery: -1}, "": {RotateEvery: -1}}
	inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
		const rotations, took, found, next = "keyhold.rotations", "keyhold.sweep.duration", "keyhold.sweep.keys", "keyhold.rotation.next"
		m, s := w.watched(t)
		s.isAbsent(t, found)
		s.isAbsent(t, next)
		pass(time.Hour)
		sweep := func() { _, err := m.Sweep(t.Context()); check(t, err) }
		s.moves(t, 1, func() {
			s.moves(t, 1, sweep, rotations, "result=done", "purpose=client-secrets")
		}, took, "result=done")
		s.is(t, 1, found, "result=done")
		s.is(t, 0, found, "result=failed")

		s.moves(t, 1, func() { _, err := m.Rotate(t.Context(), innerRoot); check(t, err) }, rotations, "result=done", "purpose=")
		s.moves(t, 3, func() { _, err := m.Rewrap(t.Context(), inner.Scope); check(t, err) }, "keyhold.versions.rewrapped")

		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = make([]byte, 32) })
		pass(time.Hour)
		s.moves(t, 1, sweep, rotations, "result=failed", "purpose=client-secrets")
		s.is(t, 1, found, "result=failed")

		// A sweep that the database ends says nothing new of the keys.
		w.away(true)
		s.moves(t, 1, func() { _, err := m.Sweep(t.Context()); wants(t, err, ErrUnavailable) }, took, "result=failed")
		s.is(t, 1, found, "result=failed")
		w.away(false)
	})
}

// With another instance that has not seen it, a version is pending; and the time to the next rotation runs on while
// nobody sweeps, and below zero.
func TestMetricsOfWhatIsToCome(t *testing.T) {
	policies := map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}, "another": {RotateEvery: -1}, "": {RotateEvery: -1}}
	inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		stop := running(t, m)
		pass(10 * time.Minute)
		s.is(t, 0, "keyhold.sweep.keys")
		if in, ok := s.value(t, "keyhold.rotation.next"); !ok || math.Abs(in-50*60) > 2 {
			t.Errorf("the next rotation is in %v s, want 50 minutes", in)
		}
		stop()
		pass(time.Hour)
		if in, _ := s.value(t, "keyhold.rotation.next"); math.Abs(in+10*60) > 2 {
			t.Errorf("the next rotation is in %v s, want -10 minutes", in)
		}
		sealing(t, w.other, inner, "x")
		_, err := m.Sweep(t.Context())
		check(t, err)
		s.is(t, 1, "keyhold.sweep.keys", "result=pending")
	})
}

func TestMetricsOfBudgets(t *testing.T) {
	inTwoWith(t, Config{Policies: map[Purpose]Policy{inner.Purpose: {MaxMessages: 64 * 10}}}, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		s.moves(t, 4, func() { // of 1, 1, 2 and 4 messages
			for range 8 {
				sealing(t, m, inner, "x")
			}
		}, "keyhold.budget.blocks", "purpose=client-secrets")
		if spans := s.named("keyhold.take"); len(spans) != 4 || of(spans[0], attrPurpose) != "client-secrets" {
			t.Errorf("spans for the four blocks: %v", spans)
		}
	})
}

func TestMetricsOfTheRoot(t *testing.T) {
	root, err := localroot.Generate(t.TempDir() + "/root.key")
	check(t, err)
	other, err := localroot.Generate(t.TempDir() + "/other.key")
	check(t, err)
	cfg := Config{Root: root, Initialize: true}
	s := telling(&cfg)
	db := memstore.New()
	m, err := New(t.Context(), db, cfg)
	check(t, err)
	const name = "keyhold.root.calls"
	s.is(t, 1, name, "operation=encrypt", "result=done")
	s.is(t, 2, name, "operation=decrypt", "result=done")
	if got := len(s.named("keyhold.root.encrypt")) + len(s.named("keyhold.root.decrypt")); got != 3 {
		t.Errorf("%d spans of the root, want 3", got)
	}
	cfg.Root = other
	db.Edit(func(d *memstore.Data) { // as if it were this root's
		slot := &d.Installation.Slots[0]
		var info wrapping.BlobInfo
		check(t, proto.Unmarshal(slot.Blob, &info))
		slot.WrapperKeyID, err = other.KeyId(t.Context())
		check(t, err)
		info.KeyInfo.KeyId = slot.WrapperKeyID
		slot.Blob, err = proto.Marshal(&info)
		check(t, err)
	})
	_, err = New(t.Context(), db, cfg)
	wants(t, err, ErrRoot)
	s.is(t, 1, name, "operation=decrypt", "result=failed")
	if spans := s.named("keyhold.root.decrypt"); len(spans) != 3 || of(spans[2], attrError) == "" {
		t.Error("the span of the call that was in vain does not say so")
	}
	check(t, m.Close())
}

// What was registered with a MeterProvider is gone after Close, so that it can be used for the next Manager, and
// nothing of a closed one is kept for it.
func TestCloseEndsWhatIsObserved(t *testing.T) {
	inTwo(t, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		sealing(t, m, inner, "x")
		s.is(t, 1, "keyhold.cache.entries", "kind=key")
		check(t, m.Close())
		for _, name := range []string{"keyhold.cache.entries", "keyhold.database.age", "keyhold.cache.lookups"} {
			s.isAbsent(t, name)
		}
		check(t, m.Close())
	})
}

func TestSpansAreMadeForWhatTakesARoundTrip(t *testing.T) {
	policies := map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour}}
	inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		names := func(f func()) (names []string) {
			s.spans.Reset()
			f()
			for _, span := range s.spans.Ended() {
				names = append(names, strings.TrimPrefix(span.Name(), "keyhold."))
			}
			return names
		}
		want := func(f func(), want ...string) {
			t.Helper()
			if got := names(f); !slices.Equal(got, want) {
				t.Errorf("spans %v, want %v", got, want)
			}
		}
		var ct []byte
		want(func() { ct = sealing(t, m, inner, "x") }, "epochs", "read")
		fam, err := w.store.Key(t.Context(), inner)
		check(t, err)
		read := s.named("keyhold.read")[0]
		if of(read, attrPurpose) != string(inner.Purpose) || of(read, attrKey) != string(fam.Data[0].ID) || of(read, attrVersion) != "1" {
			t.Errorf("a read key is told as %v", read.Attributes())
		}
		want(func() {
			for range 100 {
				sealing(t, m, inner, "x")
				reads(t, m, ct, "x")
				m.Health()
			}
		})
		want(func() { _, err := m.Rotate(t.Context(), inner); check(t, err) }, "read", "read", "rotate")
		want(func() { _, err := m.Rotate(t.Context(), Ref{Scope: "none"}); wants(t, err, ErrNotFound) }, "read", "rotate")
		if of(s.named("keyhold.rotate")[0], attrError) != "not_found" {
			t.Error("the span does not say that there is no such key")
		}
		want(func() { _, err := m.Rewrap(t.Context(), inner.Scope); check(t, err) }, "read", "rewrap")
		pass(time.Hour)
		got := names(func() { _, err := m.Sweep(t.Context()); check(t, err) })
		for _, name := range []string{"sweep", "rotate", "maintain", "read"} {
			if !slices.Contains(got, name) {
				t.Errorf("a sweep has no span %q: %v", name, got)
			}
		}
		sweep, rotate := s.named("keyhold.sweep")[0], s.named("keyhold.rotate")[0]
		if rotate.Parent().SpanID() != sweep.SpanContext().SpanID() {
			t.Error("a rotation is no part of its sweep")
		}
	})
}

// What seals and opens with keys at hand costs no memory more with instruments than without.
func TestInstrumentsCostNoMemoryPerMessage(t *testing.T) {
	allocs := func(cfg Config) float64 {
		root, err := localroot.Generate(t.TempDir() + "/root.key")
		check(t, err)
		cfg.Root, cfg.Purposes, cfg.Initialize = root, []Purpose{inner.Purpose}, true
		m, err := New(t.Context(), memstore.New(), cfg)
		check(t, err)
		defer func() { check(t, m.Close()) }()
		check(t, m.CreateScope(t.Context(), inner.Scope))
		text := make([]byte, 1024)
		least := math.Inf(1)
		for range 5 { // under the race detector pools lose some of what they keep
			least = min(least, testing.AllocsPerRun(1000, func() {
				ct, err := m.Seal(t.Context(), inner, text, AAD{})
				if err == nil {
					_, err = m.Open(t.Context(), inner, ct, AAD{})
				}
				check(t, err)
			}))
		}
		return least
	}
	var cfg Config
	telling(&cfg)
	if with, without := allocs(cfg), allocs(Config{}); with > without {
		t.Errorf("%v allocations for a message sealed and opened, %v without instruments", with, without)
	}
}

// Nothing that is exported holds a key, a plaintext, a context, or the name of a scope, whatever goes wrong.
func TestNothingSecretIsExported(t *testing.T) {
	const plaintext, aad, missing = "a plaintext that is nowhere else", "a context that is nowhere else", "scope-of-nobody"
	policies := map[Purpose]Policy{inner.Purpose: {RotateEvery: time.Hour, MaxMessages: 1000}}
	inTwoWith(t, Config{Policies: policies}, func(t *testing.T, w *two) {
		m, s := w.watched(t)
		ctx := t.Context()
		secrets := map[string][]byte{
			"plaintext": []byte(plaintext), "context": []byte(aad), "scope": []byte(inner.Scope), "missing scope": []byte(missing),
			"installation key": m.ring.keys[0].SlotPayload("kr_0", "x").Reveal()[33:],
		}
		fam, err := m.committed().key(ctx, inner)
		check(t, err)
		for _, k := range allKeys(&fam.Family) {
			opened, err := m.committed().unwrap(&fam.Family, k, &k.Versions[0])
			check(t, err)
			secrets[describe(k)] = bytes.Clone(opened.Bytes().Reveal())
			opened.Close()
		}
		var errs []error
		everything := func() {
			ct, err1 := m.Seal(ctx, inner, []byte(plaintext), Context(aad))
			_, err2 := m.Open(ctx, inner, ct, Context("elsewhere"))
			_, err3 := m.Seal(ctx, Ref{Scope: missing, Purpose: inner.Purpose}, []byte(plaintext), AAD{})
			_, err4 := m.Rotate(ctx, inner)
			_, err5 := m.Rotate(ctx, Ref{Scope: missing})
			_, err6 := m.Rewrap(ctx, missing)
			_, err7 := m.Sweep(ctx)
			_, err8 := m.Keys(ctx, inner.Scope)
			_, _, err9 := m.OpenAny(ctx, ct, AAD{})
			errs = append(errs, err1, err2, err3, err4, err5, err6, err7, err8, err9, m.RenameScope(ctx, missing, inner.Scope))
		}
		everything()
		pass(time.Hour)
		w.away(true)
		everything()
		w.away(false)
		pass(time.Hour)
		var mac []byte
		w.store.Edit(func(d *memstore.Data) { mac, d.Key(inner).MAC = d.Key(inner).MAC, make([]byte, 32) })
		m.cache.forget("", inner.Scope)
		everything()
		w.store.Edit(func(d *memstore.Data) { d.Key(inner).MAC = mac })

		if text := fmt.Sprint(errs); !strings.Contains(text, missing) || !strings.Contains(text, string(inner.Scope)) {
			t.Error("no error names a scope, so that nothing could be exported of it")
		}
		var exported bytes.Buffer
		check(t, json.NewEncoder(&exported).Encode(s.collect(t)))
		for _, span := range tracetest.SpanStubsFromReadOnlySpans(s.spans.Ended()) {
			check(t, json.NewEncoder(&exported).Encode(span))
			for _, kv := range span.Attributes {
				fmt.Fprintln(&exported, kv.Key, kv.Value.String())
			}
			fmt.Fprintln(&exported, span.Name, span.Status.Description, span.Events, span.Links)
		}
		for _, known := range []string{"keyhold.refusals", "keyhold.rotations", "keyhold.take", string(fam.Data[0].ID), "integrity", "unavailable"} {
			if !strings.Contains(exported.String(), known) {
				t.Errorf("%q is not among what was exported", known)
			}
		}
		for name, b := range secrets {
			for _, form := range []string{
				string(b), hex.EncodeToString(b), fmt.Sprintf("%X", b), fmt.Sprint(b), base64.StdEncoding.EncodeToString(b), key.Base32(b),
			} {
				if strings.Contains(exported.String(), form) {
					t.Errorf("what is exported has the %s", name)
				}
			}
		}
	})
}

// Whatever an error says, only a word for it is told.
func TestReasons(t *testing.T) {
	for err, want := range map[error]string{
		store.ErrUnavailable: "unavailable", store.ErrUnknownOutcome: "unavailable", store.ErrNotFound: "not_found",
		store.ErrConflict: "other", ErrTooLarge: "other",
		errors.Join(ErrUnavailable, ErrStale): "stale", errors.Join(ErrUnavailable, ErrUsedUp): "used_up",
		errors.Join(ErrUnavailable, context.DeadlineExceeded): "unavailable", context.DeadlineExceeded: "canceled",
		fmt.Errorf("slot: %w", ErrRoot): "root", error(&IntegrityError{}): "integrity",
	} {
		if got := reasonOf(err); got != want {
			t.Errorf("%v is %q, want %q", err, got, want)
		}
	}
}
