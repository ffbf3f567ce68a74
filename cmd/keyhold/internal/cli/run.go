package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// swept is what run --once did, as --json shows it.
type swept struct {
	Rotated   int `json:"rotated"`
	Pending   int `json:"pending"`
	Failed    int `json:"failed"`
	Rewrapped int `json:"rewrapped"`
	Disabled  int `json:"disabled"`
	Destroyed int `json:"destroyed"`

	OldRoot bool `json:"old_root"` // whether --root is not the active one, so that nothing was rotated
}

// cleanupFlags say which old versions are given up.
type cleanupFlags struct {
	after    period
	purposes []string
	rootKeys bool
}

func (f *cleanupFlags) add(c *cobra.Command) {
	c.Flags().Var(&f.after, "cleanup-after", "give up versions whose next one is that old, such as 180d (default never)")
	c.Flags().StringArrayVar(&f.purposes, "cleanup-purpose", nil,
		"give up versions of the data keys for this purpose; this promises that what they seal is in no other place than rows of "+
			"this database that have the version's id in a column that key references lists; can be repeated")
	c.Flags().BoolVar(&f.rootKeys, "cleanup-root-keys", false,
		"give up versions of root keys; this promises that the application wraps nothing with them itself")
}

func (f *cleanupFlags) cleanup(given func(flag string) bool) (keyhold.Cleanup, error) {
	c := keyhold.Cleanup{After: time.Duration(f.after), Purposes: as[keyhold.Purpose](f.purposes)}
	for _, p := range c.Purposes {
		// An empty one would stand for root keys.
		if err := p.Validate(); err != nil {
			return keyhold.Cleanup{}, err
		}
	}
	if f.rootKeys {
		c.Purposes = append(c.Purposes, "")
	}
	switch {
	case c.After == 0 && given("cleanup-after"):
		return keyhold.Cleanup{}, usageError("--cleanup-after 0 is not an age", "give one such as 180d, or leave it out to clean up nothing")
	case (c.After > 0) != (len(c.Purposes) > 0):
		return keyhold.Cleanup{}, usageError("nothing is cleaned up by halves",
			"give --cleanup-after together with --cleanup-purpose or --cleanup-root-keys")
	}
	return c, nil
}

func (a *app) runCommand() *cobra.Command {
	var once bool
	var clean cleanupFlags
	var removeRoots period
	c := &cobra.Command{
		Use:   "run [--once]",
		Short: "Rotate what is due, rewrap and clean up, until it is told to end",
		Long: `Does what keys need over time: it rotates those that are due by their policy, or whose version has sealed most of what it may,
wraps data keys anew when their root key was rotated, and removes what the tables need no more. It is what an application does
in each of its processes with Manager.Run; any number may run at once, of either kind, and share the work. It ends at SIGINT or
SIGTERM, with exit code 0; nothing is lost wherever it ends.

Each thing that happens is one line on standard error; with --json, one object with its time, its event, and what it is about.

With --once it does what there is to do now and prints how much that was: versions made the head (rotated), versions that other
processes have to see first, and keys that others are at (pending), keys at which something failed, versions rewrapped, and
versions that cleaning up disabled and destroyed. The exit code is 1 if anything failed, or is due and --root is not the active one.

With --cleanup-after, and --cleanup-purpose or --cleanup-root-keys, it also gives up old versions: it disables those that no row
has the id of, and destroys them when they have been disabled for 7d. Naming a purpose is a promise about the application, which
nobody else can make: whatever was sealed in other places does not open again. If no key for messages has a purpose that is
named, all the rest is done; that is said each time, and with --once the exit code is 2.

With --remove-roots-after, it also takes its slot from a root that has not been the active one for so long, as root remove does,
as soon as no live process depends on it; it looks every hour. With a root that is not the active one, it rotates nothing.`,
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cleanup, err := clean.cleanup(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("remove-roots-after") && time.Duration(removeRoots) < time.Minute {
				return usageError("--remove-roots-after is less than a minute", "give a time such as 30d, or leave it out to remove none")
			}
			var events sync.Mutex
			config := keyhold.Config{Cleanup: cleanup, RemoveRootsAfter: time.Duration(removeRoots), OnEvent: func(ctx context.Context, e keyhold.Event) {
				events.Lock()
				defer events.Unlock()
				if _, wrong := errors.AsType[*keyhold.InvalidError](e.Err); once && wrong && e.Kind == keyhold.SweepFailed {
					return // the command ends with it
				}
				a.tell(ctx, &e)
			}}
			if once {
				return a.with(cmd.Context(), config, func(s *session) error { return a.sweep(cmd.Context(), s) })
			}
			return a.run(cmd.Context(), config)
		},
	}
	c.Flags().BoolVar(&once, "once", false, "do once what there is to do, and end")
	c.Flags().Var(&removeRoots, "remove-roots-after", "take its slot from a root that has not been the active one for so long, such as 30d (default never)")
	clean.add(c)
	return c
}

func (a *app) run(ctx context.Context, config keyhold.Config) error {
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = a.with(ctx, config, func(s *session) error {
			a.say("keys in %s are rotated when they are due, until SIGINT or SIGTERM", a.where())
			return s.Run(ctx)
		})
	}()
	if ended(ctx, done) && ctx.Err() == nil {
		return err
	}
	return nil // it was told to end
}

func (a *app) sweep(ctx context.Context, s *session) error {
	a.warnOfRoot(s.Manager)
	a.warnOfPin(s.Manager)
	did, err := s.Sweep(ctx)
	printed := a.result(swept{
		did.Rotated, did.Pending, did.Failed, did.Rewrapped, did.Disabled, did.Destroyed, s.Health().Root != nil,
	}, func(w io.Writer) {
		line(w, "rotated", did.Rotated)
		line(w, "pending", did.Pending)
		line(w, "failed", did.Failed)
		line(w, "rewrapped", did.Rewrapped)
		line(w, "disabled", did.Disabled)
		line(w, "destroyed", did.Destroyed)
	})
	if did.Pending > 0 {
		a.say("%s: the other processes have to see the new version first, or one of them is at it; "+
			"the next keyhold run --once, 10 s later, makes it the head", plural(did.Pending, "key is pending", "keys are pending"))
	}
	switch {
	case err != nil:
		return err
	case printed != nil:
		return printed
	case did.Failed > 0:
		return failed("sweep", plural(did.Failed, "key failed", "keys failed"), "standard error says at what; it is tried again each time")
	}
	return a.leftDue(ctx, s)
}

// leftDue is an error if something is due and was left, as only a process with the active root rotates it.
func (a *app) leftDue(ctx context.Context, s *session) error {
	old := s.Health().Root
	if old == nil {
		return nil
	}
	limited, cancel := a.limited(ctx)
	defer cancel()
	due, err := s.store.Due(limited, store.AllBuckets, store.Due{}, 1)
	if err != nil || len(due) == 0 {
		return err
	}
	return failed("old_root", "keys are due, and were not rotated: "+oldRootText(old), "give the active root as --root")
}

// eventJSON is an event as --json shows it.
type eventJSON struct {
	Time      string      `json:"time"`
	Event     string      `json:"event"`
	Scope     key.Scope   `json:"scope,omitempty"`
	Kind      string      `json:"kind,omitempty"` // root or data; scope if it is about all its keys
	Purpose   key.Purpose `json:"purpose,omitempty"`
	Key       key.ID      `json:"key,omitempty"`
	Version   key.Version `json:"version,omitempty"`
	VersionID key.ID      `json:"version_id,omitempty"`
	Root      key.ID      `json:"root,omitempty"` // of a root's slot
	Count     int         `json:"count,omitempty"`
	Error     string      `json:"error,omitempty"`
}

// tell prints an event on standard error.
func (a *app) tell(ctx context.Context, e *keyhold.Event) {
	if e.Err != nil && ctx.Err() != nil {
		return // what was under way when it was told to end did not fail
	}
	j := eventJSON{
		Time: timeText(time.Now()), Event: strings.ReplaceAll(string(e.Kind), " ", "_"),
		Scope: e.Ref.Scope, Purpose: e.Ref.Purpose, Key: e.Key, Version: e.Version, VersionID: e.ID, Count: e.Count,
	}
	subject := ""
	switch {
	case e.Ref == (key.Ref{}):
		j.Root, j.VersionID = e.ID, ""
	case e.Kind == keyhold.Rewrapped, e.Kind == keyhold.RewrapFailed, e.Kind == keyhold.SweepFailed:
		j.Kind, subject = kindScope, fmt.Sprintf(": scope %q", string(e.Ref.Scope))
	default:
		j.Kind, subject = kindOf(e.Ref), ": "+e.Ref.String()
	}
	if e.Kind == keyhold.RootRemoved {
		subject = ": slot " + string(e.ID)
	}
	if e.Kind == keyhold.NoPin {
		subject = ": whoever can write to the database can put another installation in its place; keyhold status shows the pin"
	}
	if e.Version != 0 {
		subject += fmt.Sprintf(", version %d", e.Version)
	}
	if e.Count != 0 {
		subject += ", " + plural(e.Count, "version", "versions")
	}
	if e.Err != nil {
		j.Error = a.explain(ctx, e.Err).Message
		subject += ": " + j.Error
	}
	if a.json {
		a.printJSON(a.err, j)
		return
	}
	a.say("%s %s%s", j.Time, e.Kind, subject)
}
