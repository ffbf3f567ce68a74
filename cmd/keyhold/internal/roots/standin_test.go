package roots

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// internet is where the vendors' libraries get when they go to their vendors: a proxy that ends every connection here,
// with certificates of an authority that this process trusts. So what is tested is what goes to the real places, by
// name.
type internet struct {
	mu    sync.Mutex
	hosts map[string]http.Handler
	seen  []*http.Request
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	conns chan net.Conn
}

var world = &internet{hosts: map[string]http.Handler{}, conns: make(chan net.Conn)}

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "roots")
	if err != nil {
		log.Fatal(err)
	}
	proxy, err := world.start(filepath.Join(dir, "ca.pem"))
	if err != nil {
		log.Fatal(err)
	}
	// Nothing that this machine has been told about any vendor may be in the tests.
	for _, setting := range os.Environ() {
		name, _, _ := strings.Cut(setting, "=")
		for _, begin := range []string{"AWS_", "AZURE_", "GOOGLE_", "VAULT_", "BAO_", "OCI_", "ALI", "TF_VAR", "IDENTITY_", "MSI_"} {
			if strings.HasPrefix(name, begin) {
				os.Unsetenv(name)
			}
		}
	}
	for name, value := range map[string]string{
		"SSL_CERT_FILE": filepath.Join(dir, "ca.pem"), "SSL_CERT_DIR": dir, "HTTPS_PROXY": proxy, "https_proxy": "", "HTTP_PROXY": proxy,
		"http_proxy": "", "NO_PROXY": "127.0.0.1", "no_proxy": "", "HOME": dir,
	} {
		os.Setenv(name, value)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func (w *internet) start(caFile string) (proxy string, err error) {
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &w.key.PublicKey, w.key)
	if err != nil {
		return "", err
	}
	if w.ca, err = x509.ParseCertificate(der); err != nil {
		return "", err
	}
	if err := os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	silent := log.New(io.Discard, "", 0)
	inside := &http.Server{Handler: w, ErrorLog: silent}
	go func() { log.Println(inside.Serve(w)) }()
	go func() { log.Println((&http.Server{Handler: http.HandlerFunc(w.connect), ErrorLog: silent}).Serve(l)) }()
	return "http://" + l.Addr().String(), nil
}

// connect takes over a connection to a vendor. There are none to others.
func (w *internet) connect(out http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.Host)
	w.mu.Lock()
	known := w.hosts[host] != nil
	w.mu.Unlock()
	if strings.HasPrefix(r.Host, "169.254.169.254") { // the metadata service of a machine that has no identity
		out.WriteHeader(http.StatusBadRequest)
		return
	}
	if r.Method != http.MethodConnect || !known {
		out.WriteHeader(http.StatusBadGateway)
		return
	}
	conn, rw, err := out.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	_, _ = rw.WriteString("HTTP/1.1 200 OK\r\n\r\n")
	_ = rw.Flush()
	w.conns <- tls.Server(&buffered{conn, rw.Reader}, &tls.Config{NextProtos: []string{"h2", "http/1.1"}, GetCertificate: w.certificate})
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func (w *internet) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: []string{hello.ServerName}, NotAfter: w.ca.NotAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, w.ca, &w.key.PublicKey, w.key)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: w.key}, err
}

func (w *internet) Accept() (net.Conn, error) { return <-w.conns, nil }
func (w *internet) Close() error              { return nil }
func (w *internet) Addr() net.Addr            { return &net.TCPAddr{} }

func (w *internet) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	host, _, _ := strings.Cut(r.Host, ":")
	w.mu.Lock()
	h := w.hosts[host]
	w.seen = append(w.seen, r)
	w.mu.Unlock()
	if h == nil {
		out.WriteHeader(http.StatusBadGateway)
		return
	}
	h.ServeHTTP(out, r)
}

// host has h answer for a host until the test ends.
func host(t *testing.T, name string, h http.Handler) {
	t.Helper()
	set := func(h http.Handler) {
		world.mu.Lock()
		defer world.mu.Unlock()
		world.hosts[name], world.seen = h, nil
	}
	set(h)
	t.Cleanup(func() { set(nil) })
}

// asked is every request that arrived at a host.
func asked(name string) (requests []*http.Request) {
	world.mu.Lock()
	defer world.mu.Unlock()
	for _, r := range world.seen {
		if strings.HasPrefix(r.Host, name) {
			requests = append(requests, r)
		}
	}
	return requests
}

// set changes the environment for a test.
func set(t *testing.T, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		t.Setenv(pairs[i], pairs[i+1])
	}
}
