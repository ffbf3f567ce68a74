package dekmanager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

// DEKManager hands out the bytes of named keys. It is safe for concurrent use. What somebody does to the scope by
// keyhold itself may have each call with a name refused: [keyhold.ErrNotFound] where the scope was deleted, and, but by
// RotateDEK, [keyhold.ErrPurpose] for a key that is not a raw one.
type DEKManager struct {
	keys  *keyhold.Manager
	scope keyhold.Scope
	how   keyhold.RawKey // new keys are made
	old   atomic.Bool    // whether the MEK is not the current one, as far as is known

	store          closable
	schema, prefix string
	logger         MinimalLogger
	warned         atomic.Int64 // when a call was last told that the MEK is an old one, in Unix seconds

	cancel context.CancelFunc
	work   sync.WaitGroup
	end    sync.Once
}

// Manager is the keyhold manager that d works with, for what this package has no function for. It is closed by
// [DEKManager.Shutdown].
func (d *DEKManager) Manager() *keyhold.Manager { return d.keys }

// SchemaName is the schema in which the tables are; "main" for SQLite.
func (d *DEKManager) SchemaName() string { return d.schema }

// TablePrefix is what the names of the tables begin with, before an underscore.
func (d *DEKManager) TablePrefix() string { return d.prefix }

func (d *DEKManager) ref(keyName string) keyhold.Ref {
	return keyhold.Ref{Scope: d.scope, Purpose: keyhold.Purpose(keyName)}
}

// RegisterKey registers a name, whose key is to be made by the default function, and makes no key yet. Of a name that
// is registered so it changes nothing. It is [DEKManager.RegisterKeyWithFunction] otherwise, and always asks the
// database.
func (d *DEKManager) RegisterKey(ctx context.Context, keyName string, _ ...RegisterKeyOption) error {
	return d.RegisterKeyWithFunction(ctx, keyName, d.how.Generator)
}

// RegisterKeyWithFunction registers a name, whose key's versions are made by the function of the given name, and makes
// no key yet. Of a name that is registered so it changes nothing. A key that was removed may come into being again: its
// numbers go on. A process with an old MEK may register, too. A name is 1 to 255 bytes of UTF-8 without control
// characters, and without white space at its ends.
//
// It takes one round trip where the key is there, two where the name is registered, four otherwise. Errors: a
// [*keyhold.InvalidError] for a malformed name; "not registered" ([keyhold.ErrGenerator]) for an unknown function;
// "already registered with a different function" ([keyhold.ErrExists]); [*keyhold.IntegrityError];
// [keyhold.ErrUnavailable]; [keyhold.ErrClosed].
func (d *DEKManager) RegisterKeyWithFunction(ctx context.Context, keyName, genFuncName string) error {
	if genFuncName == "" {
		return fmt.Errorf("DEK generation function '' not registered: %w", keyhold.ErrGenerator)
	}
	err := d.keys.RegisterRaw(ctx, d.ref(keyName), genFuncName)
	switch {
	case errors.Is(err, keyhold.ErrGenerator):
		return fmt.Errorf("DEK generation function '%s' not registered: %w", genFuncName, err)
	case errors.Is(err, keyhold.ErrExists):
		return fmt.Errorf("key '%s' already registered with a different function: %w", keyName, err)
	}
	return inWords(err)
}

// GetDEK returns the bytes of a key's newest version, and its number, to be kept with what is encrypted. The bytes are
// a copy that is the caller's, who may clear it. A name that has no key gets one, by the function that it is registered
// with, or else by the default one; of any number of instances one makes it, and all return it.
//
// A key that this instance used before takes no round trip, and another one; where there is none, five if its name is
// registered, and six if not. A rotation by another instance is seen within 7 s. With an old MEK it warns, at most once
// a minute.
//
// Errors: [*keyhold.IntegrityError]; [keyhold.ErrRolledBack]; [keyhold.ErrUnavailable], with [keyhold.ErrStale] if the
// database has been away for 15 minutes; [keyhold.ErrClosed]. Of a key that is not there also: "not registered" for a
// name that was removed ([keyhold.ErrRemoved]), and for a function that this process does not have
// ([keyhold.ErrGenerator]); "cannot create new DEK with old MEK" ([keyhold.ErrOldRoot]); a [*keyhold.InvalidError] for
// a malformed name, and for one that has had 65,535 versions; those of the function; [keyhold.ErrUnknownOutcome], after
// which there is one key or none, and calling again is right.
func (d *DEKManager) GetDEK(ctx context.Context, keyName string) ([]byte, int, error) {
	dek, version, err := d.keys.RawOrMake(ctx, d.ref(keyName), d.how)
	if err != nil {
		return nil, 0, notMade(keyName, err)
	}
	if d.old.Load() {
		d.warnOld(keyName)
	}
	return dek, int(version), nil
}

// inWords calls a name what it is here: the scope's and the tables' word for it is purpose.
func inWords(err error) error {
	if invalid, ok := errors.AsType[*keyhold.InvalidError](err); ok && invalid.What == "purpose" {
		return &keyhold.InvalidError{What: "key name", Value: invalid.Value, Reason: invalid.Reason}
	}
	return err
}

// worded is an error in the words of who has names and MEKs, and neither scopes nor roots.
type worded struct {
	text string
	err  error // which it is
}

func (e *worded) Error() string { return e.text }
func (e *worded) Unwrap() error { return e.err }

func oldMEK(what, keyName string, err error) error {
	const where = "the database is under a newer MEK; start this program with that one"
	return &worded{fmt.Sprintf("%s: key '%s': %s", what, keyName, where), err}
}

func notMade(keyName string, err error) error {
	switch {
	case errors.Is(err, keyhold.ErrRemoved):
		return &worded{fmt.Sprintf("key '%s' not registered: it was removed; register it again", keyName), err}
	case errors.Is(err, keyhold.ErrOldRoot):
		return oldMEK("cannot create new DEK with old MEK", keyName, err)
	case errors.Is(err, keyhold.ErrGenerator):
		return noFunction(keyName, err)
	}
	return inWords(err)
}

func noFunction(keyName string, err error) error {
	return fmt.Errorf("DEK generation function of key '%s' not registered in this process, see WithFunction: %w",
		keyName, err)
}

// GetDEKByVersion returns the bytes of one version of a key, also an old one: for what was encrypted with it. They are
// a copy that is the caller's. A version that was used before takes no round trip. Errors: "DEK not found"
// ([keyhold.ErrNotFound], or [keyhold.ErrDisabled] for a version that there was once) if there is no such key or
// version; a [*keyhold.InvalidError] for a malformed name; [*keyhold.IntegrityError]; [keyhold.ErrUnavailable], with
// [keyhold.ErrStale] if the database has been away for a day; [keyhold.ErrClosed].
func (d *DEKManager) GetDEKByVersion(ctx context.Context, keyName string, version int) ([]byte, error) {
	if uint(version-1) >= key.MaxVersion { // 0 and negative ones are large, too
		malformed := inWords(keyhold.Purpose(keyName).Validate())
		return nil, cmp.Or(malformed, notFound(keyName, version, keyhold.ErrNotFound))
	}
	dek, err := d.keys.RawVersion(ctx, d.ref(keyName), keyhold.Version(version))
	if err != nil {
		return nil, notFound(keyName, version, err)
	}
	return dek, nil
}

func notFound(keyName string, version int, err error) error {
	if errors.Is(err, keyhold.ErrNotFound) || errors.Is(err, keyhold.ErrDisabled) {
		return fmt.Errorf("DEK not found for key '%s' and version %d: %w", keyName, version, err)
	}
	return inWords(err)
}

// RotateDEK adds a version to a key, by the function that it is registered with, which is the newest from now on. Each
// call adds one, however many instances do so at once; a name that has no key gets version 1. Older versions stay.
//
// It takes four round trips where nobody interferes, and for version 1 five if the name is not registered. After an
// error the version may be there. Errors: "cannot rotate DEK with an old version of MEK" ([keyhold.ErrOldRoot]); the
// others are those of [DEKManager.GetDEK] of a key that is not there, but for ErrStale.
func (d *DEKManager) RotateDEK(ctx context.Context, keyName string) error {
	ref := d.ref(keyName)
	if ref.IsRoot() { // which is the scope's own key, and none of those that have names
		return inWords(ref.Purpose.Validate())
	}
	var err error
	for range 3 {
		if _, err = d.keys.Rotate(ctx, ref); !errors.Is(err, keyhold.ErrNotFound) {
			break
		}
		made, madeErr := d.keys.MakeRaw(ctx, ref, d.how)
		if err = madeErr; made || err != nil {
			break
		}
		err = fmt.Errorf("rotate %v: it is made and removed all the time: %w", ref, keyhold.ErrNotFound)
	}
	switch {
	case errors.Is(err, keyhold.ErrOldRoot):
		return oldMEK("cannot rotate DEK with an old version of MEK", keyName, err)
	case errors.Is(err, keyhold.ErrRemoved), errors.Is(err, keyhold.ErrGenerator):
		return notMade(keyName, err)
	}
	return inWords(err)
}

// ListKeys lists the names that are registered or have a key, in order. It reads them in pages of 1000; one that is
// registered or removed meanwhile may be among them or not. The names were not checked against the keys' MACs. Errors:
// [keyhold.ErrUnavailable]; [keyhold.ErrClosed].
func (d *DEKManager) ListKeys(ctx context.Context) ([]string, error) {
	var names []string
	for info, err := range d.keys.RawKeys(ctx, d.scope) {
		if err != nil {
			return nil, fmt.Errorf("list keys: %w", err)
		}
		names = append(names, string(info.Name))
	}
	return names, nil
}

// GetKeyInfo returns the name of the function that makes a key's versions, and the number of its newest version, 0 if
// the name is registered and has no key yet. It takes at most two round trips. Errors: "not found"
// ([keyhold.ErrNotFound]) for a name that is not registered; a [*keyhold.InvalidError] for a malformed name;
// [*keyhold.IntegrityError]; [keyhold.ErrUnavailable]; [keyhold.ErrClosed].
func (d *DEKManager) GetKeyInfo(
	ctx context.Context, keyName string,
) (genFuncName string, latestVersion int, err error) {
	info, err := d.keys.RawInfo(ctx, d.ref(keyName))
	if errors.Is(err, keyhold.ErrNotFound) {
		return "", 0, fmt.Errorf("key '%s' not found: %w", keyName, err)
	}
	return info.Generator, int(info.Version), inWords(err)
}

// RemoveKey deletes a key with all its versions, for ever, or takes back that its name was registered. What was
// encrypted with it is lost, but for copies that callers keep; other instances may hand out the key for 7 s more. The
// name, and the number of its last version, stay on record: nobody gets a key of that name until it is registered
// again, and then its versions count on.
//
// It takes up to six round trips. Errors: "not found" ([keyhold.ErrNotFound], with [keyhold.ErrRemoved] if it was
// removed before); an [*store.InUseError] if a row of the application's has the id of a version; [keyhold.ErrOldRoot]
// with an old MEK; a [*keyhold.InvalidError] for a malformed name; [*keyhold.IntegrityError]; [keyhold.ErrRolledBack];
// [keyhold.ErrUnavailable]; [keyhold.ErrUnknownOutcome]; [keyhold.ErrClosed].
func (d *DEKManager) RemoveKey(ctx context.Context, keyName string) error {
	err := d.keys.RemoveRaw(ctx, d.ref(keyName))
	switch {
	case errors.Is(err, keyhold.ErrRemoved):
		return &worded{fmt.Sprintf("key '%s' not found: it was removed before", keyName), err}
	case errors.Is(err, keyhold.ErrNotFound):
		return &worded{fmt.Sprintf("key '%s' not found", keyName), err}
	case errors.Is(err, keyhold.ErrOldRoot):
		return oldMEK("cannot remove DEK with an old version of MEK", keyName, err)
	}
	return inWords(err)
}

// Shutdown ends what [NewDEKManager] started, waits until that and the calls under way are done, and clears the keys.
// What is done when it begins ends at its next step; nothing is lost. Calls that begin afterwards return
// [keyhold.ErrClosed]. The database stays open. It may be called again, and by several goroutines: each waits.
func (d *DEKManager) Shutdown() {
	d.end.Do(func() {
		d.cancel()
		d.work.Wait()
		if err := errors.Join(d.keys.Close(), d.store.Close()); err != nil {
			d.logger.Warn("DEK manager is shut down, and others do not know", "error", err)
		}
	})
}

// warnAgain is how often, at most, calls are told that the MEK is an old one.
const warnAgain = time.Minute

// warnOld says, now and then, that the MEK is an old one, unless it is not any more.
func (d *DEKManager) warnOld(keyName string) {
	now, last := time.Now().Unix(), d.warned.Load()
	if now-last < int64(warnAgain/time.Second) || !d.warned.CompareAndSwap(last, now) {
		return
	}
	if d.keys.Health().Root == nil {
		d.old.Store(false)
		return
	}
	d.logger.Warn("A DEK was read by an old MEK. Start this program with the newer one.", "key_name", keyName)
}
