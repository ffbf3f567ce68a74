package cli

import (
	"context"
	"errors"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
)

// waitFlags say whether to wait until every live instance has seen a change, and for how long.
type waitFlags struct {
	wait  bool
	limit period
	until time.Time // when the time is over; zero before it began
}

// add gives c the flags; why says what --wait is good for.
func (f *waitFlags) add(c *cobra.Command, why string) {
	f.limit = period(time.Minute)
	c.Flags().BoolVar(&f.wait, "wait", false, why)
	c.Flags().Var(&f.limit, "wait-for", "how long --wait waits")
}

func (f *waitFlags) check(c *cobra.Command) error {
	switch given := c.Flags().Changed("wait-for"); {
	case given && !f.wait:
		return usageError("--wait-for without --wait", "--wait is what waits")
	case f.limit == 0:
		return usageError("--wait-for 0 leaves no time to wait", "leave it out for 1m, or leave out --wait")
	}
	return nil
}

// await returns when every live instance has seen all that was committed before. done says what is so by then,
// whatever becomes of the waiting.
func (a *app) await(ctx context.Context, s *session, f *waitFlags, done string) error {
	if f.until.IsZero() {
		f.until = time.Now().Add(time.Duration(f.limit))
		a.say("waiting until every process that seals has seen it, for %v at most", &f.limit)
	}
	limited, cancel := context.WithDeadline(ctx, f.until)
	defer cancel()
	err := s.AwaitInstances(limited)
	unseen, missing := errors.AsType[*keyhold.UnseenError](err)
	switch {
	case err == nil:
		a.say("every process that seals has seen it")
		return nil
	case ctx.Err() != nil:
		return failed("interrupted", "interrupted while waiting; "+done, "")
	case missing:
		return failed("unseen", done+"; but "+unseenText(unseen.Instances)+", within "+f.limit.String(), unseenHint)
	case limited.Err() != nil:
		return failed("timeout", done+"; but who has seen it is not known: no answer within "+f.limit.String(), "")
	}
	p := a.explain(ctx, err)
	return failed(p.Code, done+"; but who has seen it is not known: "+p.Message, p.Hint)
}

const unseenHint = "--wait-for allows more; one that is silent counts as live until then, and is not waited for afterwards; " +
	"keyhold status lists them"

// unseenText names the instances that have not seen the last change.
func unseenText(instances []keyhold.InstanceInfo) string {
	var names []string
	for i := range instances {
		names = append(names, signText(&instances[i]))
	}
	return "these processes have not seen the last change: " + strings.Join(names, ", ")
}

// signText is an instance with its last sign, and until when it counts as live without another.
func signText(in *keyhold.InstanceInfo) string {
	return instanceName(in) + " (last sign " + timeText(in.Signed) + ", live until " + timeText(in.Until) + ")"
}

// instanceName is what an instance calls itself, or its id. Anybody who can write to the table chooses it, so what a
// terminal might obey is quoted.
func instanceName(in *keyhold.InstanceInfo) string {
	switch {
	case in.Name == "":
		return in.ID
	case strings.ContainsFunc(in.Name, func(r rune) bool { return !unicode.IsPrint(r) }):
		return quote(in.Name)
	}
	return in.Name
}
