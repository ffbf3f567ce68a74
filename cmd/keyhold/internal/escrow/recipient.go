package escrow

import (
	"bytes"
	"fmt"
	"strings"

	"filippo.io/age"

	"keyhold.example/keyhold/internal/seal"
)

// custodian is who can open one file or one share: the holder of any one of the identities that belong to these.
type custodian struct {
	recipients []age.Recipient
	names      []string // the recipients as text, in the one form that age prints
	hybrid     bool     // whether they resist quantum computers
}

// custodians parses recipients, one custodian each: an age recipient, or "@" and the name of a file with one a line.
func custodians(args []string) ([]custodian, error) {
	if len(args) == 0 {
		return nil, fmt.Errorf("%w: there are none, name at least one age recipient", ErrRecipients)
	}
	seen := make(map[string]bool)
	var all []custodian
	var count int
	for _, arg := range args {
		c, err := parseCustodian(strings.TrimSpace(arg))
		if err != nil {
			return nil, err
		}
		for _, name := range c.names {
			if seen[name] {
				return nil, fmt.Errorf("%w: %s is named twice", ErrRecipients, short(name))
			}
			seen[name] = true
		}
		if count += len(c.names); count > seal.MaxShares {
			return nil, fmt.Errorf("%w: there are more than %d", ErrRecipients, seal.MaxShares)
		}
		all = append(all, c)
	}
	return all, nil
}

func parseCustodian(arg string) (custodian, error) {
	path, isFile := strings.CutPrefix(arg, "@")
	if !isFile {
		var c custodian
		return c, c.add(arg)
	}
	text, err := readFile(path)
	if err != nil {
		return custodian{}, fmt.Errorf("read recipients: %w", err)
	}
	var c custodian
	number := 0
	for line := range bytes.Lines(text) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if err := c.add(string(line)); err != nil {
			return custodian{}, fmt.Errorf("%s, line %d: %w", path, number, err)
		}
	}
	if len(c.recipients) == 0 {
		return custodian{}, fmt.Errorf("%w: %s names none", ErrRecipients, path)
	}
	return c, nil
}

// add parses a recipient. What it cannot parse it does not repeat: it may be an identity.
func (c *custodian) add(text string) error {
	var r interface {
		age.Recipient
		fmt.Stringer
	}
	var err error
	hybrid := strings.HasPrefix(text, "age1pq1")
	switch {
	case strings.HasPrefix(strings.ToUpper(text), "AGE-SECRET-KEY-"):
		return fmt.Errorf("%w: one is an identity, which is secret: make another with age-keygen, as this one may have "+
			"been seen, and name the recipient that belongs to it", ErrRecipients)
	case strings.HasPrefix(text, "ssh-"):
		return fmt.Errorf("%w: one is an SSH key: make an identity for this purpose alone with age-keygen", ErrRecipients)
	case hybrid:
		r, err = age.ParseHybridRecipient(text)
	case strings.HasPrefix(text, "age1"):
		r, err = age.ParseX25519Recipient(text)
	default:
		return fmt.Errorf("%w: one begins with neither age1 nor age1pq1", ErrRecipients)
	}
	if err != nil {
		return fmt.Errorf("%w: %s is mistyped or cut off, or needs a plugin", ErrRecipients, short(text))
	}
	if len(c.recipients) > 0 && c.hybrid != hybrid {
		return mixed()
	}
	c.recipients, c.names, c.hybrid = append(c.recipients, r), append(c.names, r.String()), hybrid
	return nil
}

func mixed() error {
	return fmt.Errorf("%w: some resist quantum computers (age1pq1) and some do not, and a file for both would not: "+
		"use one kind", ErrRecipients)
}

// short is enough of a recipient to find it by. A hybrid one has about two thousand characters.
func short(recipient string) string {
	const enough = 20
	if len(recipient) <= enough {
		return recipient
	}
	return recipient[:enough] + "..."
}

// together is all custodians as one, as who can open a file that is not split.
func together(all []custodian) (custodian, error) {
	one := custodian{hybrid: all[0].hybrid}
	for _, c := range all {
		if c.hybrid != one.hybrid {
			return custodian{}, mixed()
		}
		one.recipients = append(one.recipients, c.recipients...)
	}
	return one, nil
}
