package keyhold

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"keyhold.example/keyhold/internal/rotor"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Cleanup says which old versions [Manager.Run] gives up. The zero value is none.
type Cleanup struct {
	// After is how old the next version has to be. Zero is never.
	After time.Duration

	// Purposes are those whose ciphertext is nowhere but in this database, in columns that [Manager.References] finds:
	// nobody can see that but who writes the application. The empty purpose stands for root keys, if nothing was
	// wrapped with their [Manager.Wrapper]. Purposes of keys that are not for messages are refused: no column has the
	// ids of their versions. One that no key has, or that somebody else made for something else, is reported as an
	// error of each cleanup.
	Purposes []Purpose
}

func (c Cleanup) check(purposes []purposeOf) error {
	switch {
	case c.After < 0:
		return key.Invalid("age for cleanup", c.After.String(), "it is negative; zero is never")
	case c.After > 0 && len(c.Purposes) == 0:
		return key.Invalid("age for cleanup", c.After.String(), "no purpose is named whose old versions may go")
	case c.After == 0 && len(c.Purposes) > 0:
		return key.Invalid("purpose for cleanup", string(c.Purposes[0]), "it is not said how old its versions have to be")
	}
	for _, p := range c.Purposes {
		if p == "" { // root keys
			continue
		}
		if err := p.Validate(); err != nil {
			return fmt.Errorf("cleanup: %w", err)
		}
	}
	for _, p := range purposes {
		if p.alg != key.Message && slices.Contains(c.Purposes, p.purpose) {
			return key.Invalid("purpose for cleanup", string(p.purpose), "its keys are not for messages: no column has the ids of their versions")
		}
	}
	return nil
}

// cleanup disables, of the purposes that were named, versions that are old and have no rows, and destroys those that it
// or somebody else disabled a grace period ago. What has rows, or is not yet seen by all, is kept, and said.
func (s *sweep) cleanup(ctx context.Context, held *rotor.Held) error {
	if s.m.cleanup.After == 0 {
		return nil
	}
	scopes, broken, found := 0, false, map[Purpose]bool{}
	for scope, err := range s.m.Scopes(ctx) {
		if err != nil {
			return err
		}
		scopes++
		if err := held.Prolong(ctx); err != nil {
			return err
		}
		err := s.cleanScope(ctx, scope, held, found)
		if errors.Is(err, ErrOldRoot) { // those with the active root do it
			return nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			if ctx.Err() != nil || errors.Is(err, rotor.ErrLost) {
				return err
			}
			broken = true
			s.swept.Failed++
			s.m.tell(ctx, Event{Kind: SweepFailed, Ref: Ref{Scope: scope}, Err: err})
		}
	}
	for _, p := range s.m.cleanup.Purposes {
		if !found[p] && scopes > 0 && !broken {
			return key.Invalid("purpose for cleanup", string(p), "no key for messages has it")
		}
	}
	return nil
}

func (s *sweep) cleanScope(ctx context.Context, scope key.Scope, held *rotor.Held, found map[Purpose]bool) error {
	var fam family
	err := s.m.step(ctx, func(ctx context.Context) (err error) {
		fam, err = s.m.committed().scope(ctx, scope)
		return err
	})
	if err == nil {
		err = s.m.committed().mayRotate(ctx, &fam)
	}
	if err != nil {
		return err
	}
	// Data keys first: a root key's version goes when it wraps nothing any more.
	for _, k := range slices.Backward(allKeys(&fam.Family)) {
		head, _ := headOf(k)
		if !slices.Contains(s.m.cleanup.Purposes, k.Purpose) || head.Alg == key.Raw || head.Alg == key.BlindIndex {
			continue
		}
		found[k.Purpose] = true
		for i := range k.Versions {
			if i+1 < len(k.Versions) && fam.Now-k.Versions[i+1].Created >= int64(s.m.cleanup.After/time.Second) {
				if err := held.Prolong(ctx); err != nil { // counting rows may take long
					return err
				}
				s.cleanVersion(ctx, Ref{Scope: scope, Purpose: k.Purpose}, k, &k.Versions[i], held.Lease())
			}
		}
	}
	return nil
}

func (s *sweep) cleanVersion(ctx context.Context, ref Ref, k *store.Key, v *store.Version, under *store.Lease) {
	read := func() reader { return reader{m: s.m, q: s.m.store, under: under} }
	e := Event{Ref: ref, Key: k.ID, Version: v.Number, ID: v.ID}
	var err error
	var count *int
	switch v.State {
	case key.Retired:
		e.Kind, count = Disabled, &s.swept.Disabled
		if err = s.unused(ctx, v.ID); err == nil {
			err = s.m.changeVersion(ctx, read, v.ID, "disable", disable)
		}
	case key.Disabled:
		e.Kind, count = Destroyed, &s.swept.Destroyed
		if err = s.m.changeVersion(ctx, read, v.ID, "destroy", destroy); errors.Is(err, ErrState) {
			return // its grace is not over
		}
	case key.Pending, key.Active, key.Destroyed:
		return
	}
	switch {
	case errors.Is(err, store.ErrConflict):
		return // somebody else was first, or has the lease by now
	case err == nil:
		*count++
	default:
		e.Kind, e.Err = Kept, fmt.Errorf("clean up: %w", err)
	}
	s.m.tell(ctx, e)
}

// unused is an [*InUseError] if a row has the id.
func (s *sweep) unused(ctx context.Context, id key.ID) error {
	all, err := s.m.References(ctx, id)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(ref Reference) bool { return ref.Rows == 0 })
	if len(all) == 0 {
		return nil
	}
	return &InUseError{ID: id, References: all}
}
