package pgstore

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Open connects to a database with the defaults; see [Config.Open].
func Open(ctx context.Context, dsn string) (*Store, error) { return Config{}.Open(ctx, dsn) }

// Open connects to a database. dsn is a URL or keywords and values, as pgx and libpq read them, with pgx's pool_
// settings; what it does not say comes from the PG* variables, the service file and the password file. The error
// wraps store.ErrUnavailable if the server cannot be reached or does not let the user in. No error names the
// password.
//
// Where nothing says what sslmode is to be and the server is on another machine, it is require, not prefer: nobody
// on the way can make the connection a plain one. (prefer in a service file counts as saying nothing.) That still
// lets in any certificate; verify-full does not.
//
// Of several servers it connects to the first that takes writes, unless target_session_attrs says otherwise: keys are
// read from the primary.
//
// Statements use the extended protocol without prepared ones (pgx's exec mode), so that any pgbouncer in transaction
// mode passes them on, unless dsn has another default_query_exec_mode.
func (c Config) Open(ctx context.Context, dsn string) (*Store, error) {
	config, err := parseDSN(dsn)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s, err := c.New(pool)
	if err == nil {
		s.owned = true
		err = s.tables.explain(ctx, "open database", s.read(ctx, statement{text: "select 1"}))
	}
	if err != nil {
		pool.Close()
		return nil, err
	}
	return s, nil
}

func parseDSN(dsn string) (*pgxpool.Config, error) {
	config, err := parsePool(dsn)
	if err != nil {
		return nil, err
	}
	if !saysSSLMode(dsn) && isPreferred(config) {
		if config, err = parsePool(requireTLS(dsn)); err != nil {
			return nil, err
		}
	}
	if !modeForm.MatchString(dsn) {
		config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	}
	// Of several servers the one that takes writes, unless something else is said.
	if c := config.ConnConfig; len(c.Fallbacks) > 0 && !saysTarget(dsn) && hasOtherHost(c) {
		c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	return config, nil
}

var (
	sslModeForm = regexp.MustCompile(`(?i)(^|[\s?&])sslmode\s*=`)
	targetForm  = regexp.MustCompile(`(?i)(^|[\s?&])target_session_attrs\s*=`)
	modeForm    = regexp.MustCompile(`(^|[\s?&])default_query_exec_mode\s*=`)
)

func isURL(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// errDSN stands for what the parser says of a URL that is none, in which it may quote the password.
var errDSN = errors.New("the address is not a well-formed URL; a password in one has to be percent-encoded")

// parsePool does not name the DSN in its errors: what is wrong with it may well be in the password.
func parsePool(dsn string) (*pgxpool.Config, error) {
	if isURL(dsn) {
		authority, _, _ := strings.Cut(strings.SplitN(dsn, "://", 2)[1], "/")
		authority, _, _ = strings.Cut(authority, "?")
		// With a second "@", a part of the password would be taken for the host, and asked for in the DNS.
		if _, err := url.Parse(dsn); err != nil || strings.Count(authority, "@") > 1 {
			return nil, errDSN
		}
	}
	config, err := pgxpool.ParseConfig(dsn)
	if err == nil {
		return config, nil
	}
	var reason interface{ Unwrap() error }
	if errors.As(err, &reason) && reason.Unwrap() != nil {
		return nil, fmt.Errorf("the address cannot be used: %w", reason.Unwrap())
	}
	return nil, errors.New("the address is neither a URL nor keywords and values that PostgreSQL's clients know")
}

func saysTarget(dsn string) bool {
	return os.Getenv("PGTARGETSESSIONATTRS") != "" || targetForm.MatchString(dsn)
}

func saysSSLMode(dsn string) bool {
	return os.Getenv("PGSSLMODE") != "" || sslModeForm.MatchString(dsn)
}

// isPreferred says whether sslmode is prefer for a server on another machine: first with TLS, then without.
func isPreferred(config *pgxpool.Config) bool {
	last := &pgconn.FallbackConfig{Host: config.ConnConfig.Host, Port: config.ConnConfig.Port, TLSConfig: config.ConnConfig.TLSConfig}
	for _, next := range config.ConnConfig.Fallbacks {
		if !isLocal(next.Host) && next.TLSConfig == nil && last.TLSConfig != nil && last.Host == next.Host && last.Port == next.Port {
			return true
		}
		last = next
	}
	return false
}

func hasOtherHost(c *pgx.ConnConfig) bool {
	return slices.ContainsFunc(c.Fallbacks, func(f *pgconn.FallbackConfig) bool { return f.Host != c.Host || f.Port != c.Port })
}

func isLocal(host string) bool {
	if strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") || strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.IsLoopback()
}

func requireTLS(dsn string) string {
	switch {
	case !isURL(dsn):
		return dsn + " sslmode=require"
	case strings.Contains(dsn, "?"):
		return dsn + "&sslmode=require"
	}
	return dsn + "?sslmode=require"
}
