package keyhold

import (
	"context"
	"log/slog"

	"keyhold.example/keyhold/key"
)

// EventKind says what an [Event] is about.
type EventKind string

// What Run and Sweep tell.
const (
	Rotated        EventKind = "rotated"         // Version is the head now
	Rewrapped      EventKind = "rewrapped"       // Count versions of the scope's data keys
	Disabled       EventKind = "disabled"        // Version, as Config.Cleanup says; Manager.Enable takes that back
	Destroyed      EventKind = "destroyed"       // Version, which was disabled for Config.Grace; nothing takes that back
	Kept           EventKind = "kept"            // Version would have been disabled or destroyed, but for Err
	RotationFailed EventKind = "rotation failed" // it will be tried again later
	RewrapFailed   EventKind = "rewrap failed"
	SweepFailed    EventKind = "sweep failed" // the database was away, for instance
	Recovered      EventKind = "recovered"    // a version that the database had lost was written back from the cache
	RolledBack     EventKind = "rolled back"  // the key is older in the database than it was
	RootRemoved    EventKind = "root removed" // the slot with the ID, as Config.RemoveRootsAfter says
)

// What New logs, and Run tells when it begins; OldRoot also when it becomes so.
const (
	OldRoot EventKind = "old root" // the process's root is not the active one: Err says which is; ID is its slot
	NoPin   EventKind = "no pin"   // Config.Pins is empty, so that whoever can write to the database may put another installation in its place
)

// Event is something that happened to a key without anybody's asking for it. It holds nothing secret; scopes' names are
// the application's own.
type Event struct {
	Kind    EventKind
	Ref     Ref         // with an empty purpose for a root key; empty if it is about no key
	Key     key.ID      // of the key, if it is known
	Version key.Version // 0 if it is about no version
	ID      key.ID      // of the version, or of a root's slot
	Count   int
	Err     error
}

// LogValue is the event as a group of attributes, for [log/slog].
func (e Event) LogValue() slog.Value {
	var attrs []slog.Attr
	if e.Ref != (Ref{}) {
		attrs = append(attrs, slog.String("scope", string(e.Ref.Scope)), slog.String("purpose", string(e.Ref.Purpose)))
	}
	if e.Key != "" {
		attrs = append(attrs, slog.String("key", string(e.Key)))
	}
	if e.Version != 0 {
		attrs = append(attrs, slog.Uint64("version", uint64(e.Version)), slog.String("version_id", string(e.ID)))
	}
	if e.Count != 0 {
		attrs = append(attrs, slog.Int("count", e.Count))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	return slog.GroupValue(attrs...)
}

// tell logs an event, and gives it to the application.
func (m *Manager) tell(ctx context.Context, e Event) {
	m.log(ctx, e)
	m.hand(ctx, e)
}

func (m *Manager) log(ctx context.Context, e Event) {
	if m.logger != nil {
		level := slog.LevelInfo
		if e.Err != nil || e.Kind == NoPin {
			level = slog.LevelWarn
		}
		m.logger.LogAttrs(ctx, level, "keyhold: "+string(e.Kind), e.LogValue().Group()...)
	}
}

func (m *Manager) hand(ctx context.Context, e Event) {
	if m.onEvent != nil {
		m.onEvent(ctx, e)
	}
}
