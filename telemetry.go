package keyhold

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// What is told of a Manager to OpenTelemetry; docs/operations.md (Watching) lists it for those who read it.
//
// Labels and attributes are words from here, ids, numbers, and the purposes of keys that are in the database, of which
// an application has a few. Scopes are nowhere, and neither is the text of an error, which may name one.
const (
	instrumentation = "keyhold.example/keyhold"

	attrPurpose   = attribute.Key("keyhold.purpose") // empty for a root key
	attrResult    = attribute.Key("keyhold.result")
	attrReason    = attribute.Key("keyhold.reason")
	attrOperation = attribute.Key("keyhold.operation")
	attrKind      = attribute.Key("keyhold.kind")
	attrKey       = attribute.Key("keyhold.key.id")
	attrVersion   = attribute.Key("keyhold.key.version")
	attrError     = attribute.Key("error.type")
)

// telemetry is what a Manager tells. Of what nobody asked for, the fields are nil, and telling it does nothing; of the
// zero value, all.
type telemetry struct {
	tracer trace.Tracer
	meter  metric.Meter

	hits, misses *counter

	questions, refusals, rotations, rewrapped, rootCalls, blocks metric.Int64Counter

	sweeps   metric.Float64Histogram
	observed metric.Registration
}

func newTelemetry(meters metric.MeterProvider, tracers trace.TracerProvider) (telemetry, error) {
	t := telemetry{}
	if tracers != nil {
		t.tracer = tracers.Tracer(instrumentation)
	}
	if meters == nil {
		return t, nil
	}
	t.meter = meters.Meter(instrumentation)
	t.hits, t.misses = &counter{}, &counter{}
	var errs []error
	counts := func(name, unit, description string) metric.Int64Counter {
		c, err := t.meter.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	t.questions = counts("keyhold.epochs.questions", "{question}", "Questions to the database whether any key has changed.")
	t.refusals = counts("keyhold.refusals", "{call}", "Calls that did not seal or open.")
	t.rotations = counts("keyhold.rotations", "{rotation}", "Versions that were made the head, and rotations that Run and Sweep could not do.")
	t.rewrapped = counts("keyhold.versions.rewrapped", "{version}", "Versions of data keys that were wrapped under a newer root key version.")
	t.rootCalls = counts("keyhold.root.calls", "{call}", "Calls of the external root.")
	t.blocks = counts("keyhold.budget.blocks", "{block}", "Blocks of messages that were taken from what versions may seal.")
	var err error
	t.sweeps, err = t.meter.Float64Histogram("keyhold.sweep.duration", metric.WithUnit("s"),
		metric.WithDescription("How long sweeps for due keys took."),
		metric.WithExplicitBucketBoundaries(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300))
	return t, errors.Join(append(errs, err)...)
}

// observe lets whoever measures look at m, without I/O and without waiting for calls, until unobserve.
func (t *telemetry) observe(m *Manager) error {
	if t.meter == nil {
		return nil
	}
	var errs []error
	seconds := func(name, description string) metric.Float64ObservableGauge {
		g, err := t.meter.Float64ObservableGauge(name, metric.WithUnit("s"), metric.WithDescription(description))
		errs = append(errs, err)
		return g
	}
	number := func(name, unit, description string) metric.Int64ObservableGauge {
		g, err := t.meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return g
	}
	total := func(name, unit, description string) metric.Int64ObservableCounter {
		c, err := t.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		return c
	}
	age := seconds("keyhold.database.age", "How long ago the question was asked that the database answered last.")
	next := seconds("keyhold.rotation.next", "How long until the next key is due, as the last sweep of Run saw it; below zero if there was none since.")
	oldest := seconds("keyhold.key.age", "How long ago the newest version was made, of the key in use for which that is longest.")
	found := number("keyhold.sweep.keys", "{key}", "Due keys that the last sweep found, by what became of them.")
	cached := number("keyhold.cache.entries", "{entry}", "What is kept: data keys as they were read, and their versions that were opened.")
	evicted := total("keyhold.cache.evictions", "{entry}", "What was dropped to make room.")
	lookups := total("keyhold.cache.lookups", "{lookup}", "Looks for a data key in the cache.")
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var err error
	t.observed, err = t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		if r := m.epochs.known.Load(); r != nil {
			o.ObserveFloat64(age, m.epochs.clock().since(r.asked).Seconds())
		}
		if in, ok := m.watch.next(m.epochs.clock()); ok {
			o.ObserveFloat64(next, in.Seconds())
		}
		for p, age := range m.cache.ages(m.epochs.clock()) {
			o.ObserveFloat64(oldest, age.Seconds(), metric.WithAttributes(attrPurpose.String(string(p))))
		}
		if s := m.watch.swept.Load(); s != nil {
			o.ObserveInt64(found, int64(s.done), metric.WithAttributes(attrResult.String("done")))
			o.ObserveInt64(found, int64(s.pending), metric.WithAttributes(attrResult.String("pending")))
			o.ObserveInt64(found, int64(s.failed), metric.WithAttributes(attrResult.String("failed")))
		}
		for kind, of := range m.cache.sizes() {
			o.ObserveInt64(cached, int64(of.kept), metric.WithAttributes(attrKind.String(kind)))
			o.ObserveInt64(evicted, int64(of.evicted), metric.WithAttributes(attrKind.String(kind)))
		}
		o.ObserveInt64(lookups, t.hits.sum(), metric.WithAttributes(attrResult.String("hit")))
		o.ObserveInt64(lookups, t.misses.sum(), metric.WithAttributes(attrResult.String("miss")))
		return nil
	}, age, next, oldest, found, cached, evicted, lookups)
	return err
}

// unobserve returns when nobody looks any more. As it may wait for who looks, and for what else that looks at, the
// caller holds no lock.
func (t *telemetry) unobserve() error {
	if t.observed == nil {
		return nil
	}
	return t.observed.Unregister()
}

func (*telemetry) count(ctx context.Context, c metric.Int64Counter, n int, attrs ...attribute.KeyValue) {
	if c != nil {
		c.Add(ctx, int64(n), metric.WithAttributes(attrs...))
	}
}

// refused counts a call that did not seal or open. The purpose is a label only where the error says that there is such
// a key: what a caller makes up is none. It is left out where it is not known, though the error says so.
func (t *telemetry) refused(ctx context.Context, operation string, p key.Purpose, err error) {
	if t.meter == nil {
		return
	}
	reason := reasonOf(err)
	attrs := []attribute.KeyValue{attrOperation.String(operation), attrReason.String(reason)}
	switch reason {
	case "used_up", "rolled_back", "disabled", "open":
		if p != "" {
			attrs = append(attrs, attrPurpose.String(string(p)))
		}
	}
	t.count(ctx, t.refusals, 1, attrs...)
}

// asked counts a question for the epochs.
func (t *telemetry) asked(ctx context.Context, err error) {
	result := "answered"
	if err != nil {
		result = reasonOf(err)
	}
	t.count(ctx, t.questions, 1, attrResult.String(result))
}

// rotated counts a version that became the head, or could not.
func (t *telemetry) rotated(ctx context.Context, p key.Purpose, err error) {
	t.count(ctx, t.rotations, 1, resultOf(err), attrPurpose.String(string(p)))
}

// swept measures a sweep.
func (t *telemetry) swept(ctx context.Context, took time.Duration, err error) {
	if t.sweeps != nil {
		t.sweeps.Record(ctx, took.Seconds(), metric.WithAttributes(resultOf(err)))
	}
}

// rootCalled counts a call of the external root.
func (t *telemetry) rootCalled(ctx context.Context, operation string, err error) {
	t.count(ctx, t.rootCalls, 1, attrOperation.String(operation), resultOf(err))
}

func resultOf(err error) attribute.KeyValue {
	if err != nil {
		return attrResult.String("failed")
	}
	return attrResult.String("done")
}

// reasonOf is a word for an error, as its text may name a scope.
func reasonOf(err error) string {
	if _, ok := errors.AsType[*IntegrityError](err); ok {
		return "integrity"
	}
	for _, known := range []struct {
		err  error
		word string
	}{
		// What comes with ErrUnavailable, before that.
		{ErrStale, "stale"},
		{ErrUsedUp, "used_up"},
		{ErrRoot, "root"},
		{ErrRolledBack, "rolled_back"},
		{ErrDisabled, "disabled"},
		{ErrOpen, "open"},
		{ErrNotFound, "not_found"},
		{ErrClosed, "closed"},
		{ErrUnavailable, "unavailable"},
		{ErrUnknownOutcome, "unavailable"},
		{context.DeadlineExceeded, "canceled"},
		{context.Canceled, "canceled"},
	} {
		if errors.Is(err, known.err) {
			return known.word
		}
	}
	return "other"
}

// span is what took a round trip, for whoever traces; without one it does nothing.
type span struct{ span trace.Span }

func (t *telemetry) span(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, span) {
	if t.tracer == nil {
		return ctx, span{}
	}
	ctx, s := t.tracer.Start(ctx, name, trace.WithAttributes(attrs...)) //nolint:spancheck // the caller ends it
	return ctx, span{s}                                                 //nolint:spancheck // the caller ends it
}

// within is ctx with the span around what follows.
func (*telemetry) within(ctx context.Context, s span) context.Context {
	if s.span == nil {
		return ctx
	}
	return trace.ContextWithSpan(ctx, s.span)
}

// key says which key it was about, of a version of which it was.
func (s span) key(k *store.Key, v key.Version) {
	if s.span != nil {
		s.span.SetAttributes(attrPurpose.String(string(k.Purpose)), attrKey.String(string(k.ID)), attrVersion.Int64(int64(v)))
	}
}

// family says which key was read.
func (s span) family(fam *family, err error) {
	switch {
	case s.span == nil || err != nil:
	case len(fam.Data) == 1:
		s.key(&fam.Data[0], fam.Data[0].Head)
	default:
		s.key(&fam.Root, fam.Root.Head)
	}
}

// end says what became of it. That there is no such key is an answer, and no error.
func (s span) end(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		reason := reasonOf(err)
		s.span.SetAttributes(attrError.String(reason))
		if reason != "not_found" {
			s.span.SetStatus(codes.Error, reason)
		}
	}
	s.span.End()
}

// counter is counted by all cores at once: two seldom write to one cache line. A nil counter counts nothing.
type counter [budgetShards]struct {
	n atomic.Int64
	_ [120]byte // two cache lines, as they are read in pairs
}

func (c *counter) add() {
	if c != nil {
		c[anyShard()].n.Add(1)
	}
}

func (c *counter) sum() (n int64) {
	for i := range c {
		n += c[i].n.Load()
	}
	return n
}
