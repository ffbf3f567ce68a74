package cli

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// address is where a database is.
type address struct {
	path  string // of the SQLite file; empty for PostgreSQL
	dsn   string // for PostgreSQL, as the user gave it
	shown string // what messages and results show: no password, nor anything else that could be one
	whole bool   // shown is all of it
}

// isPostgres says of which kind the database is.
func (d *address) isPostgres() bool { return d.path == "" }

var keywordForm = regexp.MustCompile(`^\s*[A-Za-z_]+\s*=`)

// parseAddress reads what --db or KEYHOLD_DB says. What is wrong with an address may be in a password, so no error
// repeats any of it.
func parseAddress(given string) (address, error) {
	scheme, rest, _ := strings.Cut(given, ":")
	var shown string
	var ok bool
	switch {
	case given == "":
		return address{}, usageError("no database is given", dbHint)
	case scheme == "sqlite" && rest != "":
		return address{path: rest, shown: given, whole: true}, nil
	case (scheme == "postgres" || scheme == "postgresql") && strings.HasPrefix(rest, "//"):
		if shown, ok = showURL(given); !ok {
			return address{}, usageError("the database's address is not a well-formed URL",
				"what is no letter or digit in a password has to be percent-encoded; PGPASSWORD and the password file take it as it is")
		}
	case keywordForm.MatchString(given):
		if shown, ok = showKeywords(given); !ok {
			return address{}, usageError("the database's address is not well-formed keywords and values",
				"a value with spaces stands in single quotes")
		}
	default:
		return address{}, usageError("the database's address is not of the form sqlite:PATH, postgres://... or keyword=value ...", dbHint)
	}
	return address{dsn: given, shown: shown, whole: shown == given}, nil
}

// shownKeywords are the settings of an address that may be shown. All others may be secret, or be part of a password
// that was not quoted.
var shownKeywords = []string{
	"host", "hostaddr", "port", "dbname", "database", "user", "service", "servicefile", "passfile", "search_path",
	"sslmode", "sslrootcert", "sslcert", "sslkey", "target_session_attrs", "connect_timeout", "application_name",
	"default_query_exec_mode", "pool_max_conns", "pool_min_conns",
}

// showURL returns a URL as it may be shown. It is not ok if it is none, or if a part of a password may stand where
// something else belongs: a "/", "?" or "#" that is not encoded ends what comes before the host.
func showURL(given string) (shown string, ok bool) {
	u, err := url.Parse(given)
	if err != nil || strings.Contains(given, "#") {
		return "", false
	}
	scheme, rest, _ := strings.Cut(given, "://")
	rest, query, _ := strings.Cut(rest, "?")
	if authority, _, _ := strings.Cut(rest, "/"); strings.Count(authority, "@") > 1 {
		return "", false
	}
	if _, path, _ := strings.Cut(rest, "/"); strings.Contains(path, "@") {
		return "", false
	}
	shown = scheme + "://"
	if i := strings.LastIndex(rest, "@"); i >= 0 {
		if name := u.User.Username(); name != "" {
			shown += url.User(name).String() + "@"
		}
		rest = rest[i+1:]
	}
	shown += rest
	var kept []string
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil || strings.Contains(name, "@") || strings.Contains(value, "@") && name != "user" && name != "host" && name != "password" {
			return "", false
		}
		if slices.Contains(shownKeywords, name) {
			kept = append(kept, pair)
		}
	}
	if len(kept) > 0 {
		shown += "?" + strings.Join(kept, "&")
	}
	return shown, true
}

const (
	white    = `[ \t\n\r\v\f]`
	quoted   = `'(?:[^'\\]|\\.)*'`
	unquoted = `(?:[^' \t\n\r\v\f\\]|\\.)(?:[^ \t\n\r\v\f\\]|\\.)*`
)

// settingForm is one keyword and its value.
var settingForm = regexp.MustCompile(`(?s)^` + white + `*([A-Za-z_.]+)` + white + `*=` + white + `*(` + quoted + `|` + unquoted + `)(?:` + white + `+|$)`)

// showKeywords returns keywords and values as they may be shown. It is not ok if they are none.
func showKeywords(given string) (shown string, ok bool) {
	var kept []string
	for rest := given; rest != ""; {
		m := settingForm.FindStringSubmatch(rest)
		if m == nil {
			return "", false
		}
		if slices.Contains(shownKeywords, m[1]) {
			kept = append(kept, m[1]+"="+m[2])
		}
		rest = rest[len(m[0]):]
	}
	return strings.Join(kept, " "), true
}
