package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

// Of what needs attention, so many things are listed; all are counted.
const statusListed = 100

// overdueAfter is how long a key may wait for somebody who rotates it before it is overdue. Run takes a minute or two,
// and tries what fails again within an hour.
const overdueAfter = time.Hour

// status is what the command prints, as --json shows it.
type status struct {
	Installation string         `json:"installation"`
	Pin          string         `json:"pin"`
	Created      *time.Time     `json:"created"`
	PinGiven     bool           `json:"pin_given"`
	Roots        []slotJSON     `json:"roots"`
	OldRoot      bool           `json:"old_root"` // whether --root is not the active one
	Rekeyed      bool           `json:"rekeyed"`  // whether the installation gets another installation key just now
	Stuck        bool           `json:"stuck"`    // and has done so for more than an hour
	Escrow       string         `json:"escrow"`   // none, written or verified
	Scopes       int            `json:"scopes"`
	DataKeys     int            `json:"data_keys"`
	Versions     map[string]int `json:"versions"`  // by state
	Due          int            `json:"due"`       // keys whose rotation is due
	Pending      int            `json:"pending"`   // keys whose rotation was begun and not ended
	Used         int            `json:"used"`      // keys whose head was given four fifths of its messages
	Overdue      int            `json:"overdue"`   // of all these, keys that have been so for more than an hour
	Behind       int            `json:"behind"`    // versions to rewrap
	Broken       int            `json:"broken"`    // scopes whose keys are not as keyhold stored them
	Instances    []listedJSON   `json:"instances"` // that registered, and did not go more than a day ago
	Attention    []attention    `json:"attention"` // the first 100

	now   time.Time            // by the database's clock
	used  map[key.ID]store.Due // by the key
	waits store.BucketSet      // of keys, and their root keys, with a version that is pending or disabled

	lastEscrow keyhold.EscrowInfo // that was written or tried of the installation key
}

type instanceJSON struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"` // its host, program and process id
	Since     time.Time `json:"since"`
	LastSign  time.Time `json:"last_sign"`
	LiveUntil time.Time `json:"live_until"` // unless it signs again; if it is gone, since when it is
	Gone      bool      `json:"gone"`       // so long without a sign that it cannot seal any more
}

func instanceToJSON(in *keyhold.InstanceInfo) instanceJSON {
	return instanceJSON{in.ID, instanceName(in), in.Since, in.Signed, in.Until, in.Gone}
}

// listedJSON is an instance in the list of all.
type listedJSON struct {
	instanceJSON

	Unseen bool `json:"unseen"` // whether it may not have seen the last change of a key that waits for that
}

type attention struct {
	Scope   key.Scope   `json:"scope,omitempty"`
	Kind    string      `json:"kind"` // root or data; scope if it is about all its keys, installation if about none
	Purpose key.Purpose `json:"purpose,omitempty"`
	What    string      `json:"what"`
}

func (at *attention) String() string {
	switch at.Kind {
	case kindScope:
		return at.What // it names the key, and that its scope
	case kindInstallation:
		return "installation: " + at.What
	}
	return key.Ref{Scope: at.Scope, Purpose: at.Purpose}.String() + ": " + at.What
}

const kindScope = "scope"

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what there is, what is due and what is in the way",
		Long: fmt.Sprintf(`Counts what there is and says what is to be done: keys whose rotation is due, or was begun and not ended (pending), or which
have been given four fifths of the messages that their version may seal; overdue are those of them that have been so for more
than an hour, so that nobody seems to run keyhold run, or it fails. Further, versions that a rewrap would bring under the newest
root key (behind), and keys that are not as keyhold stored them (broken). The first %d are listed. The exit code is 3 if anything
is overdue, behind or broken, if the root that is given is not the active one, and if a rekey that was begun more than an hour
ago is not over; a younger one is listed, and no reason for it.

It says which roots open the installation, whether a recovery file was written and tried, and whether no pin is given.

It also lists the instances: the processes that seal, or are in Manager.Run or keyhold run, as they registered themselves, by
host, program and process id. Each has its last sign, and until when it counts as live if it gives no other: others wait for it
until then. While a version is pending or disabled, an instance that may not have seen the last change of that key, or of its
root key, is marked: key destroy waits for it. One that is gone cannot seal any more; it is listed for a day.`, statusListed),
		Args: args(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error { return a.status(cmd.Context(), s) })
		},
	}
}

func (a *app) status(ctx context.Context, s *session) error {
	info, err := s.Installation(ctx)
	if err != nil {
		return err
	}
	st := status{
		Installation: info.ID, Pin: info.Pin, Created: timeOrNil(info.Created), Versions: map[string]int{},
		Instances: []listedJSON{}, Attention: []attention{},
	}
	if err := a.lookAround(ctx, s, &st); err != nil {
		return err
	}
	if err := a.lookAtRoots(ctx, s, &info, &st); err != nil {
		return err
	}
	err = eachScope(s.Scopes(ctx), func(scope keyhold.Scope) error {
		keys, err := s.Keys(ctx, scope)
		var broken *keyhold.IntegrityError
		switch {
		case errors.As(err, &broken):
			st.Scopes++
			st.Broken++
			st.add(attention{Scope: scope, Kind: kindScope, What: brokenText(broken.Error())})
			return nil
		case err != nil:
			return err
		}
		st.Scopes++
		for i := range keys {
			st.count(&keys[i])
			if waits(&keys[i]) {
				st.waits |= bucketOf(keys[0].ID) | bucketOf(keys[i].ID)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.lookForUnseen(ctx, s, &st); err != nil {
		return err
	}
	if err := a.result(st, st.print); err != nil {
		return err
	}
	a.sayRoots(s.Manager, st.Escrow)
	if st.Overdue > 0 {
		a.say("what is overdue is done by keyhold run, or by Manager.Run in the application: does it run, and what does it say?")
	}
	if st.Overdue+st.Behind+st.Broken > 0 || st.OldRoot || st.Stuck {
		return errFound
	}
	return nil
}

// lookAround reads what waits for somebody who rotates it, and the time.
func (a *app) lookAround(ctx context.Context, s *session, st *status) error {
	limited, cancel := a.limited(ctx)
	defer cancel()
	now, _, err := s.store.Upcoming(limited)
	st.now, st.used = time.Unix(now, 0), map[key.ID]store.Due{}
	const page = 1000
	for after, more := (store.Due{}), true; more && err == nil; {
		limited, cancel := a.limited(ctx)
		var list []store.Due
		list, err = s.store.Due(limited, store.AllBuckets, after, page)
		cancel()
		for _, d := range list {
			if d.Why == store.Used {
				st.used[d.KeyID] = d
			}
			after = d
		}
		more = len(list) == page
	}
	return err
}

// waits says whether the key has a version that other instances have to see in its state before it gets the next one.
func waits(k *keyhold.KeyInfo) bool {
	return slices.ContainsFunc(k.Versions, func(v keyhold.VersionInfo) bool {
		return v.State == key.Disabled || v.State == key.Pending && v.Number > k.Head
	})
}

// lookForUnseen lists the instances, and marks those that st.waits is about. It comes after the keys were read, so that
// what they show is among the changes to see.
func (a *app) lookForUnseen(ctx context.Context, s *session, st *status) error {
	instances, err := s.Instances(ctx)
	if err != nil {
		return err
	}
	unseen, err := a.unseen(ctx, s, st.waits)
	if err != nil {
		return err
	}
	for i := range instances {
		is := func(in keyhold.InstanceInfo) bool { return in.ID == instances[i].ID }
		st.Instances = append(st.Instances, listedJSON{instanceToJSON(&instances[i]), slices.ContainsFunc(unseen, is)})
	}
	return nil
}

func (st *status) add(at attention) {
	if len(st.Attention) < statusListed {
		st.Attention = append(st.Attention, at)
	}
}

func (st *status) count(k *keyhold.KeyInfo) {
	if !k.Ref.IsRoot() {
		st.DataKeys++
	}
	add := func(what string) { st.add(attention{k.Ref.Scope, kindOf(k.Ref), k.Ref.Purpose, what}) }
	overdue := false
	waits := func(n *int, since time.Time, format string, args ...any) {
		*n++
		if st.now.Sub(since) > overdueAfter {
			overdue = true
			format = "overdue: " + format
		}
		add(fmt.Sprintf(format, args...) + " since " + timeText(since))
	}
	behind := 0
	for _, v := range k.Versions {
		st.Versions[v.State.String()]++
		if v.Behind {
			behind++
		}
		if v.State == key.Pending && v.Number > k.Head {
			waits(&st.Pending, v.Created, "version %d is pending", v.Number)
		}
	}
	if behind > 0 {
		st.Behind += behind
		add(plural(behind, "version is", "versions are") + " behind: rewrap the scope")
	}
	if k.Due {
		waits(&st.Due, k.RotateAt, "due")
	}
	if d, used := st.used[k.ID]; used && d.Head == k.Head {
		waits(&st.Used, time.Unix(d.At, 0), "four fifths of the messages of version %d are given out", k.Head)
	}
	if overdue {
		st.Overdue++
	}
}

func (st *status) print(w io.Writer) {
	line(w, "installation", st.Installation)
	line(w, "pin", st.Pin)
	st.printRoots(w)
	line(w, "scopes", st.Scopes)
	line(w, "data keys", st.DataKeys)
	for _, state := range []key.State{key.Pending, key.Active, key.Retired, key.Disabled, key.Destroyed} {
		if n := st.Versions[state.String()]; n > 0 {
			line(w, "versions "+state.String(), n)
		}
	}
	line(w, "rotations due", st.Due)
	line(w, "rotations not ended", st.Pending)
	line(w, "keys nearly used up", st.Used)
	line(w, "rotations overdue", st.Overdue)
	line(w, "versions behind", st.Behind)
	line(w, "scopes broken", st.Broken)
	if len(st.Instances) > 0 {
		line(w, "instances", fmt.Sprintf("%d: host, program and process id of each", len(st.Instances)))
	}
	for _, in := range st.Instances {
		live := "live until "
		if in.Gone {
			live = "gone since "
		}
		seen := ""
		if in.Unseen {
			seen = "  may not have seen the last changes"
		}
		line(w, "instance", in.Name+"  last sign "+timeText(in.LastSign)+"  "+live+timeText(in.LiveUntil)+seen)
	}
	for _, at := range st.Attention {
		line(w, "attention", at.String())
	}
}
