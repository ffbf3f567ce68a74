package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// policyJSON is a key's policy, as --json shows it.
type policyJSON struct {
	Scope       key.Scope   `json:"scope"`
	Kind        string      `json:"kind"`
	Purpose     key.Purpose `json:"purpose,omitempty"`
	RotateEvery int64       `json:"rotate_every_seconds"` // 0: never
	MaxMessages uint64      `json:"max_messages"`         // 0: no limit
	RotateAt    *time.Time  `json:"rotate_at"`
}

// policyFlags say which keys get which policy.
type policyFlags struct {
	all      bool
	purposes []string
	rootKey  bool
	every    string
	messages messageCount
}

// messageCount is a flag for how many messages one version of a key seals; 0 is no limit.
type messageCount uint64

var messageForm = regexp.MustCompile(`^[0-9]+$`)

// Set implements pflag's Value.
func (n *messageCount) Set(text string) error {
	if !messageForm.MatchString(text) {
		return errors.New("it has to be a whole number, such as 1000000, or 0 for no limit")
	}
	parsed, err := strconv.ParseUint(text, 10, 63) // a database has no larger ones
	if err != nil {
		return fmt.Errorf("it is too large: the most is %d, and 0 is no limit", int64(math.MaxInt64))
	}
	*n = messageCount(parsed)
	return nil
}

// Type implements pflag's Value; it is what help shows.
func (*messageCount) Type() string { return "number" }

func (n *messageCount) String() string { return strconv.FormatUint(uint64(*n), 10) }

// policyChange is what the flags say, checked.
type policyChange struct {
	all      bool
	purposes []key.Purpose // the empty one stands for root keys
	every    time.Duration // 0 leaves it as it is, negative is never
	messages *uint64       // nil leaves it as it is
	found    map[key.Purpose]bool
}

func (a *app) keyPolicyCommand() *cobra.Command {
	var flags policyFlags
	c := &cobra.Command{
		Use:   "policy SCOPE|--all --purpose P...|--root-key --rotate-every D|--max-messages N",
		Short: "Say when keys get their next version",
		Long: `Changes the policy of data keys by their purpose, or with --root-key of root keys, in one scope or with --all in every scope.
What is not given stays as it is. It is stored with the key and authenticated, and holds for all processes; keyhold run, or
Manager.Run in the application, makes the next version. It prints the keys whose policy it changed.

--rotate-every is how old the newest version may get, in whole seconds and at most 100y; a shorter one may make a key due at
once. --max-messages is how many messages one version seals at most, over all processes; the next version is made when four
fifths are given out, and when all are, sealing fails until there is one. What a version sealed before it had a limit does not
count, nor what other processes seal until they see the limit, within 7 s: rotate the key then if all has to count. With --all,
a scope whose keys are not as keyhold stored them is left out, and the exit code is 1.`,
		Args: args("[SCOPE]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			change, err := flags.change(cmd, args)
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), keyhold.Config{}, func(s *session) error { return a.policies(cmd.Context(), s, args, change) })
		},
	}
	c.Flags().BoolVar(&flags.all, "all", false, "every scope")
	c.Flags().StringArrayVar(&flags.purposes, "purpose", nil, "the data key with this purpose; can be repeated")
	c.Flags().BoolVar(&flags.rootKey, "root-key", false, "the root key")
	c.Flags().StringVar(&flags.every, "rotate-every", "", "a time such as 90d, 36h or 1y, of whole seconds, or never")
	c.Flags().Var(&flags.messages, "max-messages", "a whole number of messages, or 0 for no limit")
	return c
}

func (f *policyFlags) change(c *cobra.Command, args []string) (*policyChange, error) {
	change := &policyChange{all: f.all, purposes: as[key.Purpose](f.purposes), found: map[key.Purpose]bool{}}
	for _, p := range change.purposes {
		// An empty one would stand for root keys.
		if err := p.Validate(); err != nil {
			return nil, err
		}
	}
	if f.rootKey {
		change.purposes = append(change.purposes, "")
	}
	if c.Flags().Changed("max-messages") {
		n := uint64(f.messages)
		change.messages = &n
	}
	every := c.Flags().Changed("rotate-every")
	switch {
	case f.all == (len(args) == 1):
		return nil, usageError("either a scope or --all has to be given", "")
	case len(change.purposes) == 0:
		return nil, usageError("neither --purpose nor --root-key is given", "the one is for data keys, the other for root keys")
	case change.messages == nil && !every:
		return nil, usageError("neither --rotate-every nor --max-messages is given", "")
	case change.messages != nil && f.rootKey:
		return nil, usageError("root keys seal no messages", "leave out --max-messages or --root-key")
	case !every:
		return change, nil
	case f.every == "never":
		change.every = -1
		return change, nil
	}
	var err error
	change.every, err = parseRotateEvery(f.every)
	return change, err
}

// maxRotateEvery is the longest period that a key can have.
const maxRotateEvery = 100 * year

func parseRotateEvery(text string) (time.Duration, error) {
	d, err := parsePeriod(text)
	var why string
	switch {
	case errors.Is(err, errTooLong), d > maxRotateEvery:
		why = "it is too long: the most is " + periodText(maxRotateEvery)
	case err != nil:
		why = err.Error()
	case d == 0:
		why = "that would rotate all the time"
	case d%time.Second != 0:
		why = "it has to be whole seconds"
	default:
		return d, nil
	}
	return 0, usageError("--rotate-every "+quote(text)+": "+why, "never is for keys that are rotated by hand alone")
}

// of is the policy that a key gets.
func (c *policyChange) of(k *keyhold.KeyInfo) keyhold.Policy {
	p := policyOf(k)
	if c.every != 0 {
		p.RotateEvery = c.every
	}
	if c.messages != nil {
		p.MaxMessages = *c.messages
	}
	return p
}

// policies changes the policies of the keys of a scope, or of all if none is given.
func (a *app) policies(ctx context.Context, s *session, scopes []string, change *policyChange) error {
	list := a.newStream("SCOPE\tPURPOSE\tROTATE EVERY\tMAX MESSAGES\tROTATE AT")
	set := func(scope key.Scope) error { return a.setPolicies(ctx, s, scope, change, list) }
	var err error
	if !change.all {
		scope := key.Scope(scopes[0])
		err = unknown(ctx, s, key.Ref{Scope: scope}, set(scope))
	} else {
		err = eachScope(s.Scopes(ctx), set)
		for _, p := range change.purposes {
			if err == nil && !change.found[p] {
				err = failed("unknown_purpose", "no scope has a key for the purpose "+quote(string(p)), "keyhold key list shows what there is")
			}
		}
	}
	if err == nil && list.n == 0 {
		a.say("nothing was to be changed")
	}
	return list.end(err)
}

// setPolicies changes the policies of one scope's keys. It prints those that it certainly changed, also before an
// error.
func (a *app) setPolicies(ctx context.Context, s *session, scope key.Scope, change *policyChange, list *stream) error {
	keys, err := s.Keys(ctx, scope)
	if err != nil {
		return err
	}
	before := map[key.Ref]keyhold.Policy{}
	for i := range keys {
		before[keys[i].Ref] = policyOf(&keys[i])
	}
	for _, p := range change.purposes {
		ref := key.Ref{Scope: scope, Purpose: p}
		_, found := before[ref]
		change.found[p] = change.found[p] || found
		if !found && !change.all {
			return unknown(ctx, s, ref, keyhold.ErrNotFound)
		}
	}
	set := map[key.Ref]bool{}
	for i := range keys {
		k := &keys[i]
		if !slices.Contains(change.purposes, k.Ref.Purpose) {
			continue
		}
		if err = s.SetPolicy(ctx, k.Ref, change.of(k)); err != nil {
			err = a.unsure(ctx, err, fmt.Sprintf("the policy of the %v may be changed", k.Ref), look(scope))
			break
		}
		set[k.Ref] = true
	}
	// What the database shows is not certain where nobody knows what became of the commit.
	keys, readErr := s.Keys(ctx, scope)
	if err == nil {
		err = a.unsure(ctx, readErr, fmt.Sprintf("policies of scope %q are changed", string(scope)), look(scope))
	}
	for i := range keys {
		if k := &keys[i]; set[k.Ref] && policyOf(k) != before[k.Ref] {
			err = errors.Join(err, printPolicy(list, k))
		}
	}
	return err
}

// policyOf is the policy that a key has.
func policyOf(k *keyhold.KeyInfo) keyhold.Policy {
	p := keyhold.Policy{RotateEvery: k.RotateEvery, MaxMessages: k.MaxMessages}
	if p.RotateEvery == 0 {
		p.RotateEvery = -1 // 0 would be the default
	}
	return p
}

func printPolicy(list *stream, k *keyhold.KeyInfo) error {
	j := policyJSON{k.Ref.Scope, kindOf(k.Ref), k.Ref.Purpose, int64(k.RotateEvery / time.Second), k.MaxMessages, timeOrNil(k.RotateAt)}
	every, messages := "never", "no limit"
	if k.RotateEvery > 0 {
		every = periodText(k.RotateEvery)
	}
	if k.MaxMessages > 0 {
		messages = strconv.FormatUint(k.MaxMessages, 10)
	}
	return list.add(j, func(w io.Writer) { line(w, k.Ref.Scope, purposeText(k.Ref), every, messages, timeText(k.RotateAt)) })
}
