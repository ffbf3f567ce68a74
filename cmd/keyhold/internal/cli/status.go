package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// Of what needs attention, so many things are listed; all are counted.
const statusListed = 100

// overdueAfter is how long a rotation may be due before it is overdue.
const overdueAfter = 24 * time.Hour

// status is what the command prints, as --json shows it.
type status struct {
	Installation string         `json:"installation"`
	Pin          string         `json:"pin"`
	Created      *time.Time     `json:"created"`
	Roots        []rootJSON     `json:"roots"`
	Scopes       int            `json:"scopes"`
	DataKeys     int            `json:"data_keys"`
	Versions     map[string]int `json:"versions"`  // by state
	Due          int            `json:"due"`       // keys whose rotation is due, with those that are overdue
	Overdue      int            `json:"overdue"`   // of them, for more than a day
	Behind       int            `json:"behind"`    // versions to rewrap
	Pending      int            `json:"pending"`   // keys whose rotation was begun and not ended
	Broken       int            `json:"broken"`    // scopes whose keys are not as keyhold stored them
	Attention    []attention    `json:"attention"` // the first 100
}

type rootJSON struct {
	ID      key.ID     `json:"id"`
	Type    string     `json:"type"`
	KeyID   string     `json:"key_id"`
	State   string     `json:"state"`
	Active  bool       `json:"active"`
	Created *time.Time `json:"created"`
}

type attention struct {
	Scope   key.Scope   `json:"scope"`
	Kind    string      `json:"kind"` // root or data; scope if it is about all its keys
	Purpose key.Purpose `json:"purpose,omitempty"`
	What    string      `json:"what"`
}

func (at *attention) String() string {
	if at.Kind == kindScope {
		return at.What // it names the key, and that its scope
	}
	return key.Ref{Scope: at.Scope, Purpose: at.Purpose}.String() + ": " + at.What
}

const kindScope = "scope"

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say what there is, what is due and what is in the way",
		Long: fmt.Sprintf(`Counts what there is and says what needs attention: keys whose rotation is due (overdue after a
day), or was begun and not ended (pending), versions that a rewrap would bring under the newest root key (behind), keys that
are not as keyhold stored them (broken). The first %d are listed. The exit code is 3 if there is any.`, statusListed),
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
		Installation: info.ID, Pin: info.Pin, Created: timeOrNil(info.Created), Versions: map[string]int{}, Attention: []attention{},
	}
	for _, r := range info.Roots {
		st.Roots = append(st.Roots, rootJSON{r.ID, r.Type, r.KeyID, r.State.String(), r.Active, timeOrNil(r.Created)})
	}
	err = eachScope(s.Scopes(ctx), func(scope keyhold.Scope) error {
		keys, err := s.Keys(ctx, scope)
		var broken *keyhold.IntegrityError
		switch {
		case errors.As(err, &broken):
			st.Scopes++
			st.Broken++
			st.add(attention{Scope: scope, Kind: kindScope, What: broken.Error()})
			return nil
		case err != nil:
			return err
		}
		st.Scopes++
		for i := range keys {
			st.count(&keys[i])
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := a.result(st, st.print); err != nil {
		return err
	}
	if st.Due+st.Behind+st.Pending+st.Broken > 0 {
		return errFound
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
	behind := 0
	for _, v := range k.Versions {
		st.Versions[v.State.String()]++
		if v.Behind {
			behind++
		}
		if v.State == key.Pending && v.Number > k.Head {
			st.Pending++
			add(fmt.Sprintf("the rotation to version %d was begun and not ended: rotate it again", v.Number))
		}
	}
	if behind > 0 {
		st.Behind += behind
		add(plural(behind, "version is", "versions are") + " behind: rewrap the scope")
	}
	if k.Due {
		st.Due++
		what := "due since "
		if time.Since(k.RotateAt) > overdueAfter {
			st.Overdue++
			what = "overdue since "
		}
		add(what + timeText(k.RotateAt) + ": rotate it")
	}
}

func (st *status) print(w io.Writer) {
	line(w, "installation", st.Installation)
	line(w, "pin", st.Pin)
	for _, r := range st.Roots {
		active := ""
		if r.Active {
			active = "  (in use)"
		}
		line(w, "root", r.Type+" "+r.KeyID+"  "+r.State+active)
	}
	line(w, "scopes", st.Scopes)
	line(w, "data keys", st.DataKeys)
	for _, state := range []key.State{key.Pending, key.Active, key.Retired, key.Disabled, key.Destroyed} {
		if n := st.Versions[state.String()]; n > 0 {
			line(w, "versions "+state.String(), n)
		}
	}
	line(w, "rotations due", st.Due)
	line(w, "rotations overdue", st.Overdue)
	line(w, "rotations not ended", st.Pending)
	line(w, "versions behind", st.Behind)
	line(w, "scopes broken", st.Broken)
	for _, at := range st.Attention {
		line(w, "attention", at.String())
	}
}
