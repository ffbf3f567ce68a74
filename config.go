package keyhold

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	wrapping "github.com/hashicorp/go-kms-wrapping/v2"

	"keyhold.example/keyhold/key"
)

// Defaults of [Config], and the policy of new keys.
const (
	DefaultTimeout = 30 * time.Second

	dataKeyPeriod = 90 * 24 * time.Hour
	rootKeyPeriod = 365 * 24 * time.Hour
)

// Config is how a [Manager] works. [New] copies it and checks all of it; changing it afterwards changes nothing.
type Config struct {
	// Root is the external root: any go-kms-wrapping wrapper, configured and ready. Required. It is called by New
	// alone, once; and three times where it makes an installation.
	Root wrapping.Wrapper

	// Purposes, RawPurposes and IndexPurposes are the data keys that every scope gets when it is created: for
	// messages, for raw bytes that the application uses itself, for blind indexes. A purpose stands in one of them,
	// once. What a purpose's key is for is fixed when the key is made. None is needed to use keys that are there.
	Purposes      []key.Purpose
	RawPurposes   []key.Purpose
	IndexPurposes []key.Purpose

	// Initialize makes what is not there yet: the tables, the installation key, and its first slot. It never changes
	// an installation that is there. The default is to make nothing: an empty database is then [ErrNotInitialized].
	Initialize bool

	// Pins are the pins of which the installation must have one, as [Manager.Pin] and "keyhold init" print them: 64
	// hexadecimal digits. With a pin, whoever can write to the database cannot put an installation of their own in
	// its place; an empty database is then [ErrPin], also with Initialize. The default accepts any installation that
	// Root opens.
	Pins []string

	// Strict makes every call read its key anew, so that none works with what the database no longer holds. The
	// default asks every 5 s whether any key has changed, and uses what it has read until then: a change is noticed
	// by every other process 5 s later, and at once by the one that made it, unless that was inside the application's
	// transaction; a version that another one made a moment ago opens at once.
	Strict bool

	// Timeout limits each call, besides the context that is given to it; of Scopes and Rewrap, which may have much
	// to do, it limits each step, and of Check the opening of each scope's keys. Zero is [DefaultTimeout]; negative
	// is no limit.
	Timeout time.Duration
}

// settings is a Config that was checked.
type settings struct {
	root       wrapping.Wrapper
	purposes   []purposeOf
	initialize bool
	pins       [][32]byte
	strict     bool
	timeout    time.Duration
}

type purposeOf struct {
	purpose key.Purpose
	alg     key.Alg
}

func (c Config) check() (settings, error) {
	s := settings{root: c.Root, initialize: c.Initialize, strict: c.Strict, timeout: c.Timeout}
	if c.Root == nil {
		return settings{}, errors.New("Config.Root is required: an external root, such as localroot.Open(\"root.key\")")
	}
	if s.timeout == 0 {
		s.timeout = DefaultTimeout
	}
	seen := map[key.Purpose]bool{}
	for _, list := range []struct {
		alg      key.Alg
		purposes []key.Purpose
	}{{key.Message, c.Purposes}, {key.Raw, c.RawPurposes}, {key.BlindIndex, c.IndexPurposes}} {
		for _, p := range list.purposes {
			if err := p.Validate(); err != nil {
				return settings{}, err
			}
			if seen[p] {
				return settings{}, key.Invalid("purpose", string(p), "it is configured twice")
			}
			seen[p] = true
			s.purposes = append(s.purposes, purposeOf{p, list.alg})
		}
	}
	for _, text := range c.Pins {
		pin, err := hex.DecodeString(text)
		if err != nil || len(pin) != 32 {
			return settings{}, key.Invalid("pin", text, "it has to be 64 hexadecimal digits, as \"keyhold init\" prints them")
		}
		s.pins = append(s.pins, [32]byte(pin))
	}
	return s, nil
}

// bound puts the configured limit on ctx, so that no call of ours waits for ever.
func (s settings) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.timeout < 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.timeout,
		fmt.Errorf("no answer within %v (Config.Timeout): %w: %w", s.timeout, ErrUnavailable, context.DeadlineExceeded))
}
