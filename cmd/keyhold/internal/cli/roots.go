package cli

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/cmd/keyhold/internal/roots"
	"keyhold.example/keyhold/key"
	"keyhold.example/keyhold/store"
)

const rootHint = "give --root file:PATH, --root env:NAME, --root raw:PATH or that of a KMS, or set KEYHOLD_ROOT; keyhold root keygen FILE makes a root; " +
	"docs/roots.md has the others"

// root is an open external root.
type root struct {
	wrapping.Wrapper

	given string // its address, which is not secret
	close func(context.Context) error
}

// openRoot opens the external root that the command is to work with.
func (a *app) openRoot(ctx context.Context) (*root, error) {
	given := setting(a.root, "KEYHOLD_ROOT")
	if given == "" {
		return nil, usageError("no external root is given", rootHint)
	}
	return a.openRootAt(ctx, given)
}

// openRootAt opens the external root at an address.
func (a *app) openRootAt(ctx context.Context, given string) (*root, error) {
	limited, cancel := a.limited(ctx)
	defer cancel()
	opened, err := roots.Open(limited, given)
	switch {
	case err != nil && errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && roots.Printable(given):
		return nil, failed("timeout", "cannot use the root "+given+": "+a.noAnswer(), "--timeout allows more")
	case err != nil:
		return nil, unopened(given, err)
	}
	return &root{opened, given, opened.Close}, nil
}

// unopened says why a root could not be opened. What is no address is not repeated.
func unopened(given string, err error) error {
	text := firstLine(err)
	switch local := strings.HasPrefix(given, "file:") || strings.HasPrefix(given, "env:"); {
	case errors.Is(err, roots.ErrAddress):
		return usageError(text, rootHint)
	case !roots.Printable(given):
		return failed("root", "the root cannot be opened", rootHint)
	case local:
		return explainRoot(given, err)
	}
	return failed("root", "cannot use the root "+given+": "+strings.TrimPrefix(text, "open root "+given+": "), "")
}

// checkRootAddress refuses what is no address of a root, before anything is opened.
func checkRootAddress(ctx context.Context, given string) error {
	if roots.Printable(given) {
		return nil
	}
	_, err := roots.Open(ctx, given) // which makes no call for what is no address
	if err == nil {
		return usageError("an --old-root is no address of a root", rootHint)
	}
	return unopened(given, err)
}

// givenOldRoots is the addresses of the roots that the command's own takes the place of.
func (a *app) givenOldRoots(ctx context.Context) ([]string, error) {
	given := a.oldRoots
	if len(given) == 0 {
		given = strings.Fields(os.Getenv("KEYHOLD_OLD_ROOT"))
	}
	for _, address := range given {
		if err := checkRootAddress(ctx, address); err != nil {
			return nil, err
		}
	}
	return given, nil
}

// oldRoot is a root that is opened when it is first called: an installation that has been moved to another does
// without it, and it may be gone by then.
type oldRoot struct {
	given string
	at    func(ctx context.Context, given string) (*root, error)

	mu     sync.Mutex
	is     *root
	failed error // why it could not be opened
	opens  bool  // whether it has opened something
}

func (r *oldRoot) open(ctx context.Context) (*root, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.is == nil && r.failed == nil {
		r.is, r.failed = r.at(ctx, r.given)
	}
	return r.is, r.failed
}

// Type is the opened root's.
func (r *oldRoot) Type(ctx context.Context) (wrapping.WrapperType, error) {
	is, err := r.open(ctx)
	if err != nil {
		return "", err
	}
	return is.Type(ctx)
}

// KeyId is the opened root's.
//
//nolint:revive // the interface has this name
func (r *oldRoot) KeyId(ctx context.Context) (string, error) {
	is, err := r.open(ctx)
	if err != nil {
		return "", err
	}
	return is.KeyId(ctx)
}

// SetConfig is an error, as a root is complete when it is opened.
func (r *oldRoot) SetConfig(context.Context, ...wrapping.Option) (*wrapping.WrapperConfig, error) {
	return nil, errors.New("configure an old root: it takes no configuration")
}

// Encrypt is the opened root's.
func (r *oldRoot) Encrypt(ctx context.Context, plaintext []byte, opt ...wrapping.Option) (*wrapping.BlobInfo, error) {
	is, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	return is.Encrypt(ctx, plaintext, opt...)
}

// Decrypt is the opened root's.
func (r *oldRoot) Decrypt(ctx context.Context, blob *wrapping.BlobInfo, opt ...wrapping.Option) ([]byte, error) {
	is, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	plaintext, err := is.Decrypt(ctx, blob, opt...)
	if err == nil {
		r.mu.Lock()
		r.opens = true
		r.mu.Unlock()
	}
	return plaintext, err
}

// isOpen is the opened root, if it was opened, or why it could not be.
func (r *oldRoot) isOpen() (*root, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.is, r.failed
}

// hasOpened says whether it has opened something.
func (r *oldRoot) hasOpened() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opens
}

// rootSet is the external roots that a command works with.
type rootSet struct {
	own *root
	old []*oldRoot
}

func (a *app) openRoots(ctx context.Context) (*rootSet, error) {
	given, err := a.givenOldRoots(ctx)
	if err != nil {
		return nil, err
	}
	own, err := a.openRoot(ctx)
	if err != nil {
		return nil, err
	}
	set := &rootSet{own: own}
	for _, address := range given {
		set.old = append(set.old, &oldRoot{given: address, at: a.openRootAt})
	}
	return set, nil
}

// configure puts the roots into config.
func (s *rootSet) configure(config *keyhold.Config) {
	config.Root, config.OldRoots = s.own, nil
	for _, old := range s.old {
		config.OldRoots = append(config.OldRoots, old)
	}
}

// end closes the roots, or leaves that to the end of the program.
func (s *rootSet) end(ctx context.Context) {
	all := []*root{s.own}
	for _, old := range s.old {
		if is, _ := old.isOpen(); is != nil {
			all = append(all, is)
		}
	}
	closeRoots(ctx, all...)
}

func closeRoots(ctx context.Context, all ...*root) {
	_ = closeSoon(func() error {
		for _, r := range all {
			_ = r.close(ctx) // nothing depends on it any more
		}
		return nil
	})
}

// opener is the last of the old roots that have opened the installation, nil if none had to. Those before it are not
// the active one.
func (s *rootSet) opener() *oldRoot {
	for _, old := range slices.Backward(s.old) {
		if old.hasOpened() {
			return old
		}
	}
	return nil
}

// explain says which roots do not open the installation in db, and what does. Ids are not secret. Any error that is
// not about roots is returned as it is.
func (s *rootSet) explain(ctx context.Context, db database, err error) error {
	if err == nil || !errors.Is(err, keyhold.ErrRoot) {
		return err
	}
	own, ofOld, _ := strings.Cut(firstLine(err), "; and of an old root: ")
	if _, why, found := strings.Cut(own, " failed: "); found && errors.Is(err, keyhold.ErrRootUnavailable) {
		return failed("root", "the root "+s.own.given+" failed: "+why,
			"it may be the right one: try again; if it stays so, the installation's row for this root may be damaged")
	}
	for _, old := range s.old {
		if _, failure := old.isOpen(); failure != nil {
			p, ok := errors.AsType[*problem](failure)
			if !ok {
				return failed("root", "the root "+s.own.given+" does not open this installation, and the old root "+old.given+" cannot be used: "+
					firstLine(failure), "")
			}
			return failed("root", "the root "+s.own.given+" does not open this installation, and of the old one: "+p.Message,
				strings.TrimPrefix(p.Hint, makesRoot))
		}
	}
	if _, why, found := strings.Cut(ofOld, " failed: "); found && errors.Is(err, keyhold.ErrRootUnavailable) {
		return failed("root", "the root "+s.own.given+" does not open this installation, and an old root failed: "+why, "try again")
	}
	if errors.Is(err, keyhold.ErrOldRoot) {
		return s.over(ctx, db)
	}
	return s.wrong(ctx, db)
}

// over says that an old root opens the installation in db, and is not the active one.
func (s *rootSet) over(ctx context.Context, db database) error {
	message := "the root " + s.own.given + " does not open this installation"
	if old := s.opener(); old != nil {
		message += ", and the old root " + old.given + ", which does, is not the active one"
	}
	in, err := db.Installation(ctx)
	if i := slices.IndexFunc(in.Slots, func(s store.Slot) bool { return s.ID == in.ActiveSlot }); err == nil && i >= 0 {
		active := &in.Slots[i]
		message += ": that is " + strings.TrimSpace(active.WrapperType+" "+active.WrapperKeyID) + ", slot " + string(active.ID)
	}
	return failed("old_root", message, "this may be a deployment that is over; if it is not, give the active root as --old-root, or use root add "+
		"with it as --root; where the active root is lost, keyhold root recover makes "+s.own.given+" the active one")
}

// ofOther is an error about another root than these, at the given address.
func (s *rootSet) ofOther(given string, err error) error {
	if !errors.Is(err, keyhold.ErrRoot) {
		return err
	}
	text := firstLine(err)
	if _, why, found := strings.Cut(text, " failed: "); found {
		return failed("root", "the root "+given+" failed: "+why, "it has to be one that may both encrypt and decrypt")
	}
	return failed("root", "the root "+given+" is of no use: "+strings.TrimPrefix(text, "add a root: "), "")
}

// wrong says which roots were given and which is the active one.
func (s *rootSet) wrong(ctx context.Context, db database) error {
	name := func(w wrapping.Wrapper, given string) string {
		if id, err := w.KeyId(ctx); err == nil && id != "" {
			return given + " (" + id + ")"
		}
		return given
	}
	its, _ := s.own.KeyId(ctx)
	kind, _ := s.own.Type(ctx)
	own := strings.TrimSpace(string(kind) + " " + its)
	in, inErr := db.Installation(ctx)
	var active string
	var removed key.ID
	var others []string
	for _, slot := range in.Slots {
		switch text := strings.TrimSpace(slot.WrapperType + " " + slot.WrapperKeyID); {
		case slot.State == key.Destroyed && its != "" && text == own:
			removed = slot.ID
		case slot.ID == in.ActiveSlot:
			active = text
		case slot.State != key.Destroyed && !slices.Contains(others, text):
			others = append(others, text)
		}
	}
	message := "the root " + name(s.own, s.own.given)
	switch {
	case len(s.old) == 0 || removed != "": // then no old root is asked
		message += " does not open this installation"
	default:
		message = "neither " + message
		for _, old := range s.old {
			message += " nor the old root " + name(old, old.given)
		}
		message += " opens this installation"
	}
	if inErr != nil {
		return failed("root", message, "")
	}
	const lost = "; where every root that has a slot is lost, keyhold root recover makes a new one the active root, from a recovery file"
	hint := "give that one; root add, with it as --root, gives another root a slot; where --old-root is the active root, --root takes its place"
	switch {
	case its != "" && active == own:
		return failed("root", message+": the active root has the same name, "+active+", and is another key, or its slot was changed",
			"look whether it is the same place, and whether the key was made anew there"+lost)
	case removed != "":
		message += ", as its slot " + string(removed) + " was removed"
		hint = "give that one; root add, with it as --root, gives this one another slot, and no --old-root does"
	}
	if len(others) > 0 {
		hint += "; besides that, what opens it is " + strings.Join(others, " or ")
	}
	return failed("root", message+": the active root is "+active, hint+lost)
}
