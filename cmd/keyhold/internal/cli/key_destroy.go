package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// doomed is a version that would be destroyed, as --json shows it.
type doomed struct {
	stateJSON

	Created         *time.Time      `json:"created"`
	References      []referenceJSON `json:"references"`
	DisabledSince   *time.Time      `json:"disabled_since"`
	DestroyableFrom *time.Time      `json:"destroyable_from"` // as --grace says; null if it is not disabled
	Unseen          []instanceJSON  `json:"unseen"`           // processes that seal and may not have seen that it is disabled

	now time.Time // by the database's clock
}

func (a *app) keyDestroyCommand() *cobra.Command {
	var yes bool
	grace := period(keyhold.DefaultGrace)
	var wait waitFlags
	c := &cobra.Command{
		Use:   "destroy ID --yes [--grace D] [--wait]",
		Short: "Delete a disabled version for ever",
		Long: `Deletes a disabled version for ever, and with it all that it sealed. It refuses, and destroys nothing, as long as any row has
the version's id, in a column that key references lists; until it has been disabled for --grace; and as long as a process that
seals may not have seen that it is disabled, which --wait waits for. Repeating it is harmless. It prints the version with its
state.

Without --yes it destroys nothing: it prints what would be destroyed, what refers to it, from when on --grace allows it, and which
processes may not have seen that it is disabled, and the exit code is 2.

The database's log, its replicas and its backups may still have the version afterwards.`,
		Args: args("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := wait.check(cmd); err != nil {
				return err
			}
			if !yes {
				return a.showDoomed(cmd, key.ID(args[0]), time.Duration(grace))
			}
			config := keyhold.Config{Grace: time.Duration(grace)}
			if grace == 0 {
				config.Grace = -1 // 0 would be the default
			}
			return a.changeVersion(cmd.Context(), config, key.ID(args[0]), func(_ context.Context, s *session, v *version) error {
				if err := a.destroy(cmd, s, v, &wait); err != nil {
					return err
				}
				v.State = key.Destroyed
				a.say("version %d of the %v is destroyed; the database's log, its replicas and its backups may still have it", v.Number, v.Ref)
				return a.result(v.toJSON(), v.print)
			})
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "destroy it")
	c.Flags().Var(&grace, "grace", "how long it has to have been disabled")
	wait.add(c, "wait until every process that seals has seen that it is disabled")
	return c
}

// destroy destroys a version, and waits for those who may still use it, if that is wanted.
func (a *app) destroy(cmd *cobra.Command, s *session, v *version, wait *waitFlags) error {
	ctx := cmd.Context()
	for {
		err := s.Destroy(ctx, v.ID)
		switch unseen, early := errors.AsType[*keyhold.UnseenError](err); {
		case !early:
			return v.explain("destroy", a.unsure(ctx, err, v.may("destroyed"), look(v.Ref.Scope)))
		case !wait.wait:
			return failed("unseen", "nothing is destroyed: "+unseenText(unseen.Instances), a.waitHint(cmd, v))
		}
		// Other keys change meanwhile, and what was seen by then may not be enough.
		if err := a.await(ctx, s, wait, "nothing is destroyed"); err != nil {
			return err
		}
	}
}

// showDoomed prints what would be destroyed and what refers to it. It ends in an error that says that nothing was.
func (a *app) showDoomed(cmd *cobra.Command, id key.ID, grace time.Duration) error {
	ctx := cmd.Context()
	return a.with(ctx, keyhold.Config{}, func(s *session) error {
		v, err := a.findVersion(ctx, s, id)
		if err != nil {
			return err
		}
		refs, err := s.References(ctx, id)
		if err != nil {
			return err
		}
		d := doomed{
			stateJSON: v.toJSON(), Created: timeOrNil(v.Created), References: referencesToJSON(refs),
			Unseen: []instanceJSON{}, now: time.Unix(v.family.Now, 0),
		}
		var unseen []keyhold.InstanceInfo
		if since := v.Disabled; !since.IsZero() {
			d.DisabledSince, d.DestroyableFrom = &since, new(since.Add(grace))
			buckets := bucketOf(v.family.Root.ID)
			for i := range v.family.Data {
				buckets |= bucketOf(v.family.Data[i].ID)
			}
			if unseen, err = a.unseen(ctx, s, buckets); err != nil {
				return err
			}
			for i := range unseen {
				d.Unseen = append(d.Unseen, instanceToJSON(&unseen[i]))
			}
		}
		err = a.result(d, func(w io.Writer) {
			line(w, "key version", v.ID)
			line(w, "is", fmt.Sprintf("version %d of the %v", v.Number, v.Ref))
			line(w, "state", v.State)
			line(w, "created", timeText(v.Created))
			if d.DisabledSince != nil {
				line(w, "disabled since", timeText(*d.DisabledSince))
				line(w, "destroyable from", timeText(*d.DestroyableFrom)+" (--grace "+periodText(grace)+")")
			}
			for i := range unseen {
				line(w, "may not have seen it", signText(&unseen[i]))
			}
			if len(refs) == 0 {
				line(w, "referred to by", "no column that keyhold knows of")
			}
			for _, r := range d.References {
				line(w, "referred to by", fmt.Sprintf("%s.%s, %s, %s", r.tableText(), nameText(r.Column), r.how(), plural(int(r.Rows), "row", "rows")))
			}
		})
		if err != nil {
			return err
		}
		return usageError("nothing is destroyed without --yes", a.beforeDestroying(cmd, &v, refs, &d))
	})
}

func bucketOf(id key.ID) store.BucketSet { return 1 << store.Bucket(id) }

// unseen is the live processes that may not have seen the last change of a key in one of the buckets. Destroy refuses
// for those of a version's key and its root key.
func (a *app) unseen(ctx context.Context, s *session, buckets store.BucketSet) ([]keyhold.InstanceInfo, error) {
	ctx, cancel := a.limited(ctx)
	defer cancel()
	roll, err := s.store.Roll(ctx)
	if err != nil {
		return nil, err
	}
	var unseen []keyhold.InstanceInfo
	for i := range roll.Instances {
		in := &roll.Instances[i]
		behind := false
		for b, epoch := range roll.Epochs {
			behind = behind || buckets.Has(b) && in.Seen[b] != epoch
		}
		if behind && !in.Gone(roll.Now) {
			unseen = append(unseen, keyhold.InstanceInfo{
				ID: string(in.ID), Name: in.Name, Since: time.Unix(in.Since, 0).UTC(),
				Signed: time.Unix(in.Signed, 0).UTC(), Until: time.Unix(in.Signed+in.Life, 0).UTC(),
			})
		}
	}
	return unseen, nil
}

// waitHint is the command as it was given, with what it takes to wait for the processes that may still use v.
func (a *app) waitHint(cmd *cobra.Command, v *version) string {
	words := []string{cmd.CommandPath(), "--yes", "--wait"}
	for _, name := range []string{"wait-for", "grace", "timeout"} {
		if f := cmd.Flags().Lookup(name); f.Changed {
			words = append(words, "--"+name, f.Value.String())
		}
	}
	for _, pin := range a.pins {
		words = append(words, "--pin", shellQuote(pin))
	}
	if a.json {
		words = append(words, "--json")
	}
	return strings.Join(append(words, argument(string(v.ID)), "waits for them"), " ")
}

// beforeDestroying says what has to be done before a version can be destroyed, or what destroying it means.
func (a *app) beforeDestroying(cmd *cobra.Command, v *version, refs []keyhold.Reference, d *doomed) string {
	inUse := slices.ContainsFunc(refs, func(r keyhold.Reference) bool { return r.Rows > 0 })
	switch {
	case v.State == key.Destroyed:
		return "it is destroyed already"
	case inUse && (v.State == key.Disabled || v.State == key.Retired && v.Ref.IsRoot()): // that cannot even be disabled
		return v.inUseHint(refs)
	case v.State != key.Disabled:
		return v.stateHint("destroy")
	case d.DestroyableFrom != nil && d.now.Before(*d.DestroyableFrom):
		return "with --yes it is refused until " + timeText(*d.DestroyableFrom) + ": " + graceHint
	case len(d.Unseen) > 0:
		return "with --yes alone it is refused, as processes may still use it: " + a.waitHint(cmd, v)
	}
	if v.Ref.IsRoot() {
		return "it wraps no data key any more; with --yes it is gone for ever, and so is all that the application itself wrapped with it"
	}
	return "with --yes it is gone for ever, and so is all that it sealed"
}
