package pgstore

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"keyhold.example/keyhold/internal/pgserver"
	"keyhold.example/keyhold/store"
	"keyhold.example/keyhold/store/storetest"
)

// authority is a certificate authority.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority of a test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return &authority{cert, key}
}

// file is where the authority's certificate is, as sslrootcert wants it.
func (a *authority) file(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "ca.crt")
	must(t, os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600))
	return name
}

// server makes the files of a server with the given address.
func (a *authority) server(t *testing.T, address net.IP) map[string][]byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{address}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return map[string][]byte{
		"server.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		"server.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
	}
}

// startServer starts a server of the test's own, which listens on 127.0.0.1, and lets the user app in with a
// password.
func startServer(t *testing.T, o pgserver.Options) (admin string, app func(password, query string) (dsn string)) {
	t.Helper()
	b, err := pgserver.Find(t.Context())
	must(t, err)
	o.TCP = true
	s, err := pgserver.Start(t.Context(), b, o)
	must(t, err)
	t.Cleanup(func() { must(t, s.Stop()) })
	admin = s.DSN("postgres")
	execAs(t, admin, "create role app login superuser password 'the-first-password'")
	return admin, func(password, query string) string {
		u := url.URL{Scheme: "postgres", User: url.UserPassword("app", password), Host: s.Addr(), Path: "/postgres", RawQuery: query}
		return u.String()
	}
}

// verify-full lets in the server that the authority vouches for under this address, and no other.
func TestTLS(t *testing.T) {
	t.Parallel()
	ours, other := newAuthority(t), newAuthority(t)
	hba := []string{"local all postgres trust", "hostssl all app 127.0.0.1/32 scram-sha-256"}
	on := map[string]string{"ssl": "on"}
	_, dsn := startServer(t, pgserver.Options{Settings: on, HBA: hba, Files: ours.server(t, net.IPv4(127, 0, 0, 1))})
	_, elsewhere := startServer(t, pgserver.Options{Settings: on, HBA: hba, Files: ours.server(t, net.IPv4(192, 0, 2, 1))})

	full := func(a *authority) string {
		return url.Values{"sslmode": {"verify-full"}, "sslrootcert": {a.file(t)}}.Encode()
	}
	s := byOpen(t, Config{}, dsn("the-first-password", full(ours)))
	var version string
	must(t, s.Pool().QueryRow(t.Context(), "select version from pg_stat_ssl where pid = pg_backend_pid() and ssl").Scan(&version))
	if !strings.HasPrefix(version, "TLSv1.") {
		t.Errorf("the connection has %q", version)
	}
	for name, bad := range map[string]string{
		"a certificate by another authority": dsn("the-first-password", full(other)),
		"a certificate for another address":  elsewhere("the-first-password", full(ours)),
		"no encryption":                      dsn("the-first-password", "sslmode=disable"),
		"a wrong password":                   dsn("not-the-password", full(ours)),
	} {
		s, err := Open(t.Context(), bad)
		if err == nil {
			must(t, s.Close())
		}
		if !errors.Is(err, store.ErrUnavailable) || strings.Contains(fmt.Sprint(err), "not-the-password") {
			t.Errorf("%s: %v, want ErrUnavailable", name, err)
		}
		_, refused := errors.AsType[*tls.CertificateVerificationError](err)
		if refused != strings.HasPrefix(name, "a certificate") {
			t.Errorf("%s: %v: that the certificate is refused is %v", name, err, refused)
		}
	}
}

// The password changes while a store is in use: a hook of the pool's gives the new one to the connections that come
// after.
func TestPasswordThatChanges(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	admin, dsn := startServer(t, pgserver.Options{HBA: []string{"local all postgres trust", "host all app 127.0.0.1/32 scram-sha-256"}})
	var password atomic.Value
	password.Store("the-first-password")
	config, err := pgxpool.ParseConfig(dsn("none", "sslmode=disable"))
	must(t, err)
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		c.Password = password.Load().(string)
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	must(t, err)
	t.Cleanup(pool.Close)
	s, err := New(pool)
	must(t, err)
	must(t, s.Migrate(ctx))
	installation := storetest.NewMaker(1).Installation()
	must(t, s.Initialize(ctx, installation))

	execAs(t, admin, "alter role app password 'the-second-password'")
	execAs(t, admin, "select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'app'")
	if _, err = s.Installation(ctx); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("with the old password: %v, want ErrUnavailable", err)
	}
	password.Store("the-second-password")
	got, err := s.Installation(ctx)
	if err != nil || !bytes.Equal(got.Inst, installation.Inst) {
		t.Errorf("with the new password: %v", err)
	}
}
