package roots

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// The kinds of what can be wrong with an external root.
var (
	// ErrAddress says that a text is no address of a root. Who wrote it can write it right; no call was made.
	ErrAddress = errors.New("not an address of a root")
	// ErrUnsupported says that this program, or the mode in which it runs, cannot use such a root.
	ErrUnsupported = errors.New("root is not supported here")
	// ErrCredentials says that there are no credentials, or that the vendor does not know or accept them any more.
	ErrCredentials = errors.New("no valid credentials for the root")
	// ErrUnreachable says that there was no answer, or none that says anything about the key; it may come later.
	ErrUnreachable = errors.New("root is unreachable")
	// ErrRefused says that the credentials are right, and may not do this with the key.
	ErrRefused = errors.New("root refused the call")
	// ErrNoKey says that there is no such key.
	ErrNoKey = errors.New("root's key does not exist")
	// ErrDisabled says that the key is there and is not to be used: it is disabled, or will be deleted.
	ErrDisabled = errors.New("root's key is disabled")
	// ErrThrottled says that the vendor was asked too often.
	ErrThrottled = errors.New("root was asked too often")
	// ErrNotItsKey says that a blob was sealed by another key, or was changed.
	ErrNotItsKey = errors.New("root did not seal this")
)

// problemError is a sentence of a kind. It keeps nothing of the error that a vendor's library returned: those have
// several lines, and some hold signed requests, tokens among them.
type problemError struct {
	text string
	kind []error
}

func (e *problemError) Error() string   { return e.text }
func (e *problemError) Unwrap() []error { return e.kind }

func problem(kind error, text string) error { return &problemError{text, []error{kind}} }

// verdict is what a vendor said, in this package's words.
type verdict struct {
	kind error
	code string // the vendor's own word, for who looks it up; may be empty
}

// wording has a vendor's name and what it takes, for the sentences about it.
type wording struct {
	vendor string // "AWS KMS"
	at     string // what was asked, where the root's address does not say it; may be empty
	login  string // how somebody gives it credentials
	rights map[string]string
}

// sentence says what is wrong and what to do.
func (w wording) sentence(operation string, v verdict) error {
	code := ""
	if v.code != "" {
		code = " (" + v.code + ")"
	}
	switch is := func(kind error) bool { return errors.Is(v.kind, kind) }; {
	case is(ErrCredentials):
		return problem(v.kind, w.vendor+" was given no valid credentials"+code+": "+w.login)
	case is(ErrRefused):
		return problem(v.kind, w.vendor+" refused to "+operation+code+": the credentials need "+w.rights[operation])
	case is(ErrNoKey):
		return problem(v.kind, w.vendor+" has no such key"+code+": check the address")
	case is(ErrDisabled):
		return problem(v.kind, w.vendor+" refused to "+operation+code+": the key is disabled or will be deleted, enable it there")
	case is(ErrThrottled):
		return problem(v.kind, w.vendor+" was asked too often"+code+": try again in a while")
	case is(ErrNotItsKey):
		return problem(v.kind, w.vendor+" does not open this with the key"+code+": another key sealed it, or it was changed")
	}
	return problem(ErrUnreachable, w.vendor+" did not "+operation+code+": try again")
}

// unreachable is what keeps a program from reaching a vendor, if that is what err says; otherwise nil.
func (w wording) unreachable(err error) error {
	reason, ok := networkReason(err)
	if !ok {
		return nil
	}
	return problem(ErrUnreachable, w.vendor+w.at+" cannot be reached: "+reason)
}

// networkReason says why no answer came, in the system's words, without the URL that was asked: some vendors have
// signatures and tokens in it.
func networkReason(err error) (string, bool) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		return "no address is known for " + dns.Name, true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "its certificate is not trusted here", true
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok && !errors.Is(err, os.ErrNotExist) {
		return errno.Error(), true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return firstLine(op.Err.Error()), true
	}
	if netErr, ok := errors.AsType[net.Error](err); ok && netErr.Timeout() {
		return "it did not answer in time", true
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return "the connection was broken", true
	}
	return "", false
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// contains says whether text has one of the parts, in upper or lower case.
func contains(text string, parts ...string) bool {
	text = strings.ToLower(text)
	for _, part := range parts {
		if strings.Contains(text, strings.ToLower(part)) {
			return true
		}
	}
	return false
}
