package ddl

import (
	"strings"
	"unicode/utf8"

	"keyhold.example/keyhold/migrate"
)

// Token is a word, a quoted text or a sign of SQL.
type Token struct {
	// Text is what tokens are compared by: words in lower case, names without quotes that they do not need, bodies of
	// functions without comments and white space.
	Text string

	source string
	spaced bool // something that is no token stands before it
}

// Tokens are a piece of SQL.
type Tokens []Token

// String is SQL again, without comments. Each token that stood by itself has a line of its own, as SQL puts two quoted
// texts together where a line ends between them.
func (t Tokens) String() string {
	var b strings.Builder
	for i, token := range t {
		if i > 0 && token.spaced {
			b.WriteByte('\n')
		}
		b.WriteString(token.source)
	}
	return b.String()
}

// Equal says whether the two are the same but for comments, white space, and upper and lower case.
func (t Tokens) Equal(other Tokens) bool { return len(t) == len(other) && t.StartWith(other) }

// StartWith says whether t begins with all that other has.
func (t Tokens) StartWith(other Tokens) bool {
	if len(other) > len(t) {
		return false
	}
	for i := range other {
		if t[i].Text != other[i].Text {
			return false
		}
	}
	return true
}

// StartWithWords says whether the first of t are these.
func (t Tokens) StartWithWords(words ...string) bool {
	if len(words) > len(t) {
		return false
	}
	for i, w := range words {
		if t[i].Text != w {
			return false
		}
	}
	return true
}

// Unqualified is t with the names that are said to be in namespace without it. The bodies of functions stay as they
// are.
func (t Tokens) Unqualified(namespace string) Tokens {
	if namespace == "" {
		return t
	}
	qualifier := Scan(migrate.Quote(namespace) + ".")
	out := make(Tokens, 0, len(t))
	for len(t) > 0 {
		spaced := t[0].spaced
		if len(t) > len(qualifier) && t.StartWith(qualifier) {
			t = t[len(qualifier):]
		}
		out, t = append(out, t[0]), t[1:]
		out[len(out)-1].spaced = spaced
	}
	return out
}

// Index is where the word first stands outside of parentheses, or -1.
func (t Tokens) Index(word string) int {
	depth := 0
	for i, token := range t {
		switch {
		case depth == 0 && token.Text == word:
			return i
		case token.Text == "(":
			depth++
		case token.Text == ")":
			depth--
		}
	}
	return -1
}

// Closing is where the parenthesis that t begins with is closed, or -1.
func (t Tokens) Closing() int {
	if !t.StartWithWords("(") {
		return -1
	}
	if i := t[1:].Index(")"); i >= 0 {
		return i + 1
	}
	return -1
}

// Scan takes SQL apart. What is no SQL gives tokens, too.
func Scan(text string) Tokens {
	var tokens Tokens
	spaced := false
	for text != "" {
		token, skipped := next(text)
		text = text[len(token):]
		if skipped {
			spaced = true
			continue
		}
		tokens = append(tokens, Token{normal(token), token, spaced})
		spaced = false
	}
	return tokens
}

// next is the token, white space or comment that text begins with.
func next(text string) (token string, skipped bool) {
	upTo := func(end string, from int) string {
		if i := strings.Index(text[from:], end); i >= 0 {
			return text[:from+i+len(end)]
		}
		return text
	}
	switch c := text[0]; {
	case strings.HasPrefix(text, "--"):
		return upTo("\n", 0), true
	case strings.HasPrefix(text, "/*"):
		return upTo("*/", 2), true
	case c == '\'' || c == '"':
		// One that is doubled is followed by the rest, as if that were quoted by itself.
		token = upTo(text[:1], 1)
		for len(token) < len(text) && text[len(token)] == c {
			token = upTo(text[:1], len(token)+1)
		}
		return token, false
	case c == '$':
		if tag := bodyTag(text); tag != "" {
			return upTo(tag, len(tag)), false
		}
	case isSpace(c):
		return text[:len(text)-len(strings.TrimLeftFunc(text, func(r rune) bool { return r < utf8.RuneSelf && isSpace(byte(r)) }))], true
	case isWord(c):
		n := 1
		for n < len(text) && (isWord(text[n]) || text[n] == '$') {
			n++
		}
		return text[:n], false
	}
	return text[:1], false
}

func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c >= utf8.RuneSelf
}

// bodyTag is what a function's body begins with, and ends with: two dollar signs, perhaps with a word between them.
func bodyTag(text string) string {
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '$':
			return text[:i+1]
		case !isWord(text[i]):
			return ""
		}
	}
	return ""
}

func normal(token string) string {
	switch c := token[0]; {
	case c == '$' && len(token) > 1:
		tag := bodyTag(token)
		var b strings.Builder
		for _, t := range Scan(strings.TrimSuffix(token[len(tag):], tag)) {
			b.WriteByte(' ')
			b.WriteString(t.Text)
		}
		return "$" + b.String()
	case c == '"':
		if name := strings.Trim(token, `"`); isPlain(name) {
			return name
		}
	case isWord(c):
		return lower(token)
	}
	return token
}

// lower leaves letters beyond ASCII as they are, as SQLite does.
func lower(word string) string {
	b := []byte(word)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// isPlain says whether a name needs no quotes.
func isPlain(name string) bool {
	for i := range len(name) {
		if !isWord(name[i]) || 'A' <= name[i] && name[i] <= 'Z' || name[i] >= utf8.RuneSelf {
			return false
		}
	}
	return name != "" && (name[0] < '0' || name[0] > '9')
}
