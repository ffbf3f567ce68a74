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
)

const rootHint = "give --root file:PATH, --root env:NAME or that of a KMS, or set KEYHOLD_ROOT; keyhold root keygen FILE makes a root; " +
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
	if err != nil {
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

// opener is the old root that has opened the installation, nil if none had to.
func (s *rootSet) opener() *oldRoot {
	for _, old := range s.old {
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
	for _, old := range s.old {
		if _, failure := old.isOpen(); failure != nil {
			p, ok := errors.AsType[*problem](failure)
			if !ok {
				return failed("root", "the root "+s.own.given+" does not open this installation, and the old root "+old.given+" cannot be used: "+
					firstLine(failure), "")
			}
			return failed("root", "the root "+s.own.given+" does not open this installation, and of the old one: "+p.Message, p.Hint)
		}
	}
	if errors.Is(err, keyhold.ErrRootUnavailable) {
		_, why, _ := strings.Cut(firstLine(err), " failed: ")
		return failed("root", "the root "+s.own.given+" failed: "+why,
			"it may be the right one: try again; if it stays so, the installation's row for this root may be damaged")
	}
	return s.wrong(ctx, db)
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
	message := "the root " + name(s.own, s.own.given)
	if len(s.old) == 0 {
		message += " does not open this installation"
	} else {
		message = "neither " + message
		for _, old := range s.old {
			message += " nor the old root " + name(old, old.given)
		}
		message += " opens this installation"
	}
	in, err := db.Installation(ctx)
	if err != nil {
		return failed("root", message, "")
	}
	its, _ := s.own.KeyId(ctx)
	var active, removed string
	var others []string
	for _, slot := range in.Slots {
		switch text := strings.TrimSpace(slot.WrapperType + " " + slot.WrapperKeyID); {
		case slot.State == key.Destroyed && slot.WrapperKeyID == its && its != "":
			removed = ", as its slot " + string(slot.ID) + " was removed"
		case slot.ID == in.ActiveSlot:
			active = text
		case slot.State != key.Destroyed && !slices.Contains(others, text):
			others = append(others, text)
		}
	}
	message += removed + ": the active root is " + active
	hint := "give that one; root add, with it as --root, gives another root a slot; where --old-root is a root that opens it, " +
		"--root takes its place"
	if len(others) > 0 {
		hint += "; besides that, what opens it is " + strings.Join(others, " or ")
	}
	return failed("root", message, hint)
}
