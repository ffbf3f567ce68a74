package keyhold

import (
	"context"
	"errors"
	"fmt"

	"keyhold.example/keyhold/envelope"
	"keyhold.example/keyhold/internal/seal"
	"keyhold.example/keyhold/internal/secret"
	"keyhold.example/keyhold/key"
)

// Generator makes the bytes of one version of a raw key, 1 to 1024 of them, at random. What it returns is taken over
// and cleared. It is called outside of any transaction of keyhold's own, possibly by several goroutines, and its result
// may be dropped, when another process was first. A panic of it is an error.
type Generator func(ctx context.Context) ([]byte, error)

// DefaultGenerator is the name of the generator of raw keys for which no other was named: 32 random bytes. There are
// also "aes192-random" and "aes128-random", of 24 and 16.
const DefaultGenerator = "aes256-random"

const maxGenerator = 255 // bytes of its name

// builtIn is how many random bytes the generators make that every process has.
var builtIn = map[string]int{DefaultGenerator: 32, "aes192-random": 24, "aes128-random": 16}

// storedGenerator is a generator's name as the tables have it: empty for the default one.
func storedGenerator(name string) string {
	if name == DefaultGenerator {
		return ""
	}
	return name
}

// shownGenerator is the name of a generator of which the tables have the given one.
func shownGenerator(stored string) string {
	if stored == "" {
		return DefaultGenerator
	}
	return stored
}

func checkGenerator(name string) error {
	switch {
	case len(name) > maxGenerator:
		return key.Invalid("generator", name[:16]+"...", fmt.Sprintf("it has more than %d bytes", maxGenerator))
	case name != "" && key.Purpose(name).Validate() != nil:
		return key.Invalid("generator", name, "a generator's name is of the form of a purpose: without control characters, or spaces at its ends")
	}
	return nil
}

func (c Config) checkGenerators() error {
	for name, g := range c.Generators {
		if err := checkGenerator(name); err != nil {
			return err
		}
		_, taken := builtIn[name]
		switch {
		case name == "" || g == nil:
			return key.Invalid("generator", name, "it has no name, or is nil")
		case taken:
			return key.Invalid("generator", name, "every process has one of this name, and other processes would go on using that: name yours otherwise")
		}
	}
	return nil
}

// hasGenerator is nil if this process can make versions by the generator of the given name, as stored or as shown.
func (m *Manager) hasGenerator(name string) error {
	name = shownGenerator(name)
	if _, ok := m.generators[name]; ok {
		return nil
	}
	if _, ok := builtIn[name]; ok {
		return nil
	}
	return fmt.Errorf("%w: %q", ErrGenerator, name)
}

// generate makes a version of a raw key.
func (m *Manager) generate(ctx context.Context, id seal.Identity, generator string) (*seal.Key, error) {
	if err := m.hasGenerator(generator); err != nil {
		return nil, err
	}
	name := shownGenerator(generator)
	if n, ok := builtIn[name]; ok {
		material := seal.Random(n)
		defer material.Clear()
		return seal.FromBytes(id, material)
	}
	made, err := called(ctx, m.generators[name])
	material := secret.New(made)
	defer material.Clear()
	if err == nil && (len(made) == 0 || len(made) > envelope.MaxRawKey) {
		err = key.Invalid("key", fmt.Sprintf("of %d bytes", len(made)), fmt.Sprintf("it has to have 1 to %d", envelope.MaxRawKey))
	}
	if err != nil {
		return nil, fmt.Errorf("generator %q: %w", name, err)
	}
	return seal.FromBytes(id, material)
}

func called(ctx context.Context, do Generator) (made []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("it panicked")
		}
	}()
	return do(ctx)
}
