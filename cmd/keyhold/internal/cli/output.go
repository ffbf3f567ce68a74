package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"
)

// say prints words for people on standard error; with --json there are none.
func (a *app) say(format string, args ...any) {
	if !a.json {
		// If standard error cannot be written to, there is nowhere to say so.
		_, _ = fmt.Fprintf(a.err, "keyhold: %s\n", withoutSecrets(a.pasted(fmt.Sprintf(format, args...))))
	}
}

// write puts data on standard output.
func (a *app) write(data []byte) error {
	_, err := a.out.Write(data)
	return writeError(err)
}

func writeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EPIPE):
		return failed("output", "cannot write the result: whoever read it has gone", "")
	case errors.Is(err, syscall.ENOSPC):
		return failed("output", "cannot write the result: no space is left", "what was written of it is to be thrown away")
	}
	return failed("output", "cannot write the result: "+pathReason(err), "what was written of it is to be thrown away")
}

// printJSON prints v as one line of JSON.
func (a *app) printJSON(w io.Writer, v any) {
	_ = encode(w, v)
}

func encode(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// result prints v as JSON, or what text makes of it as a table.
func (a *app) result(v any, text func(w io.Writer)) error {
	if a.json {
		return writeError(encode(a.out, v))
	}
	return a.table(text)
}

// table prints rows whose cells are separated by tabs.
func (a *app) table(rows func(w io.Writer)) error {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	rows(w)
	return writeError(w.Flush())
}

// stream prints any number of things without keeping them: an array in JSON, or a table in parts, of which each
// has its columns aligned.
type stream struct {
	a      *app
	tabs   *tabwriter.Writer
	header string
	n      int
	err    error
}

// streamPart is how many things have their columns aligned together.
const streamPart = 200

// newStream begins a list; header is its first line as text, with tabs, or empty.
func (a *app) newStream(header string) *stream {
	return &stream{a: a, tabs: tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0), header: header}
}

// add prints one thing, as JSON or as text.
func (s *stream) add(v any, text func(w io.Writer)) error {
	if s.err != nil {
		return s.err
	}
	s.n++
	if s.a.json {
		sep := ",\n"
		if s.n == 1 {
			sep = "[\n"
		}
		b, err := json.Marshal(v)
		if err == nil {
			_, err = s.a.out.Write(append([]byte(sep), b...))
		}
		s.err = writeError(err)
		return s.err
	}
	if s.n == 1 && s.header != "" {
		_, _ = fmt.Fprintln(s.tabs, s.header) // an error shows when it is flushed
	}
	text(s.tabs)
	if s.n%streamPart == 0 {
		s.err = writeError(s.tabs.Flush())
	}
	return s.err
}

// end completes the list: after an error of whoever makes it, which it returns, what is there so far. Without that a
// list of nothing is an empty one.
func (s *stream) end(err error) error {
	switch {
	case s.err != nil:
	case !s.a.json:
		s.err = writeError(s.tabs.Flush())
	case s.n > 0:
		s.err = s.a.write([]byte("\n]\n"))
	case err == nil:
		s.err = s.a.write([]byte("[]\n"))
	}
	if s.err != nil {
		return s.err
	}
	return err
}

// line prints the cells of one row.
func line(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			_, _ = io.WriteString(w, "\t")
		}
		_, _ = io.WriteString(w, visible(fmt.Sprint(c)))
	}
	_, _ = io.WriteString(w, "\n")
}

// visible is a text with those characters escaped that would change how a terminal shows what is around them, such as
// U+202E, which turns its order.
func visible(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.In(r, unicode.Bidi_Control, unicode.Cc, unicode.Zl, unicode.Zp) {
			_, _ = fmt.Fprintf(&b, "\\u%04x", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// timeOrNil is a time as JSON has it: RFC 3339, or null.
func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// timeText is a time as a table has it.
func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

// plural is a number with its noun.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
