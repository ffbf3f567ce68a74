package roots

import (
	"net/url"
	"slices"
	"strings"
)

// address is an address of a vendor's root, taken apart: SCHEME:PLACE?NAME=VALUE&....
type address struct {
	scheme, place string
	settings      map[string]string
}

// Printable says whether text is an address of which nothing is secret. Whatever is not may be a key or a token that
// somebody put into the wrong place, and is not to be repeated.
func Printable(text string) bool {
	scheme, rest, _ := strings.Cut(text, ":")
	switch scheme {
	case "file", "env":
		return rest != "" && !holdsSecret(text)
	case "raw":
		return rest != "" && !holdsSecret(text) && !isRawKey(rest)
	}
	_, _, err := parse(text)
	return err == nil
}

// HoldsLocalRoot says whether text holds the line of a local root itself.
func HoldsLocalRoot(text string) bool {
	_, rest, found := strings.Cut(text, "khr1_")
	return found && len(rest) >= 16
}

// holdsSecret says whether a text holds what only secrets begin with: a local root, a token of Vault or OpenBao, an
// access key of AWS or Alibaba Cloud, a private key.
func holdsSecret(text string) bool {
	if HoldsLocalRoot(text) {
		return true
	}
	for _, begin := range []string{":hvs.", ":hvb.", ":hvr.", "/hvs.", "/hvb.", "/hvr.", ":s.", "/s.", "AKIA", "ASIA", "LTAI", "PRIVATE KEY"} {
		if strings.Contains(text, begin) {
			return !strings.HasPrefix(text, "file:") && !strings.HasPrefix(text, "env:") && !strings.HasPrefix(text, "raw:")
		}
	}
	return false
}

const credentialInAddress = "an address of a root that holds a credential is not used: " +
	"give the credential as docs/roots.md says for that vendor, and take it for known to others"

// parse takes an address of a vendor's root apart. No error repeats any of it but the scheme, if there is such a
// scheme.
func parse(given string) (address, provider, error) {
	scheme, rest, _ := strings.Cut(given, ":")
	p, known := providers()[scheme]
	if HoldsLocalRoot(given) {
		return address{}, p, problem(ErrAddress, "a root itself is given where its address belongs")
	}
	if scheme == "raw" && isRawKey(rest) {
		return address{}, p, problem(ErrAddress, keyInAddress)
	}
	if !known {
		return address{}, p, problem(ErrAddress, "an address of a root is file:PATH, env:NAME, raw:PATH, or begins with "+
			"transit:, awskms:, gcpckms:, azurekeyvault:, ocikms:, alicloudkms: or pkcs11:")
	}
	place, query, asked := strings.Cut(rest, "?")
	wrong := problem(ErrAddress, "an address of this kind of root is "+p.form)
	if strings.Contains(place, "@") || holdsSecret(given) {
		return address{}, p, problem(ErrAddress, credentialInAddress)
	}
	a := address{scheme: scheme, place: place, settings: map[string]string{}}
	if asked {
		for part := range strings.SplitSeq(query, "&") {
			name, value, _ := strings.Cut(part, "=")
			if !slices.Contains(p.settings, name) {
				if namesCredential(name) {
					wrong = problem(ErrAddress, credentialInAddress)
				}
				return address{}, p, wrong
			}
			value, err := url.PathUnescape(value)
			if err != nil || value == "" || a.settings[name] != "" || !printable(value) {
				return address{}, p, wrong
			}
			a.settings[name] = value
		}
	}
	if !printable(place) || !p.check(a) {
		return address{}, p, wrong
	}
	return a, p, nil
}

func namesCredential(setting string) bool {
	setting = strings.ToLower(setting)
	for _, word := range []string{"token", "secret", "pass", "pin", "key", "cred", "user"} {
		if strings.Contains(setting, word) {
			return true
		}
	}
	return false
}

// printable says whether a text is one line of ASCII without spaces, which a terminal prints as it is.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// word says whether s is made of what vendors have in the names of keys and places, and of nothing that means something
// in a URL.
func word(s string) bool {
	const also = "-_."
	return s != "" && strings.Trim(s, ".") != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(also, r)
	})
}

// words says whether s is made of words with slashes between them.
func words(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !word(part) {
			return false
		}
	}
	return true
}

// httpURL is a URL of a service: with a host, and without what can hold a credential.
func httpURL(text string) (*url.URL, bool) {
	u, err := url.Parse(text)
	ok := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && u.User == nil &&
		u.RawQuery == "" && u.Fragment == ""
	return u, ok
}
