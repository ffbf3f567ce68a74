package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/keyholdtest"
)

// listening finds in the log where the service listens, and that it has rotated a key.
type listening struct {
	slog.Handler

	address chan string
	rotated chan struct{}
}

func (l listening) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "keyhold: rotated" {
		l.rotated <- struct{}{}
	}
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "address" {
			l.address <- a.Value.String()
		}
		return true
	})
	return nil
}

// started runs the service until stop, which returns what run returned.
func started(t *testing.T, db, root string) (address string, stop func() error) {
	t.Helper()
	address, _, stop = startedWithLog(t, db, root)
	return address, stop
}

func startedWithLog(t *testing.T, db, root string) (address string, rotated <-chan struct{}, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log := listening{slog.NewTextHandler(t.Output(), nil), make(chan string, 1), make(chan struct{}, 100)}
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, "127.0.0.1:0", db, root, slog.New(log)) }()
	select {
	case a := <-log.address:
		return "http://" + a, log.rotated, func() error { cancel(); return <-ended }
	case err := <-ended:
		cancel()
		return "", nil, func() error { return err }
	}
}

// databases make an empty database each, and return its address.
var databases = map[string]func(*testing.T) string{
	"sqlite":   func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "tenants.db") },
	"postgres": func(t *testing.T) string { return keyholdtest.Postgres(t) },
}

func TestTheServiceIsStartedAgainWithWhatItHad(t *testing.T) {
	for name, db := range databases {
		t.Run(name, func(t *testing.T) {
			db, root := db(t), filepath.Join(t.TempDir(), "root.key")
			address, stop := started(t, db, root)
			status, text := request(t, "POST", address+"/tenants", `{"id": "acme", "oidc": {"client_id": "web", "client_secret": "s3cret"}}`)
			if status != http.StatusCreated {
				t.Fatalf("%d %s", status, text)
			}
			must(t, stop())
			address, stop = started(t, db, root)
			if _, text := request(t, "GET", address+"/tenants/acme/oidc/web", ""); !strings.Contains(text, "s3cret") {
				t.Errorf("after another start: %s", text)
			}
			must(t, stop())
			// A root that is lost is not replaced by one that opens nothing.
			elsewhere := filepath.Join(t.TempDir(), "root.key")
			_, stop = started(t, db, elsewhere)
			if err := stop(); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("without the root: %v; want %v", err, fs.ErrNotExist)
			}
			_, stop = started(t, "sqlite:"+filepath.Join(t.TempDir(), "other.db"), elsewhere)
			must(t, stop())
			_, stop = started(t, db, elsewhere)
			if err := stop(); !errors.Is(err, keyhold.ErrRoot) {
				t.Errorf("with another root: %v; want %v", err, keyhold.ErrRoot)
			}
		})
	}
}

func TestAKeyThatIsDueIsRotatedByTheService(t *testing.T) {
	for name, db := range databases {
		t.Run(name, func(t *testing.T) {
			db, root := db(t), filepath.Join(t.TempDir(), "root.key")
			address, stop := started(t, db, root)
			status, text := request(t, "POST", address+"/tenants", `{"id": "acme", "oidc": {"client_id": "web", "client_secret": "s3cret"}}`)
			if status != http.StatusCreated {
				t.Fatalf("%d %s", status, text)
			}
			must(t, stop())
			d, err := openDatabase(t.Context(), db)
			must(t, err)
			_, err = d.Exec("update kms_data_key set rotate_at = 1000")
			must(t, err)
			must(t, d.close())
			address, rotated, stop := startedWithLog(t, db, root)
			select {
			case <-rotated:
			case <-time.After(time.Minute):
				t.Error("it is not rotated within a minute")
			}
			if _, text := request(t, "GET", address+"/tenants/acme", ""); !strings.Contains(text, `"number":2`) || strings.Contains(text, `"number":3`) {
				t.Errorf("it does not have two versions: %s", text)
			}
			if _, text := request(t, "GET", address+"/tenants/acme/oidc/web", ""); !strings.Contains(text, "s3cret") {
				t.Errorf("afterwards: %s", text)
			}
			must(t, stop())
		})
	}
}

func TestRequestsUnderWayAreAnsweredBeforeTheEnd(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	begun := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		cancel()
		// Once nobody gets in any more, the server is shutting down.
		for {
			c, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				break
			}
			c.Close()
		}
		if r.Context().Err() == nil {
			_, _ = io.WriteString(w, "answered")
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener, handler, slog.New(slog.DiscardHandler)) }()
	if _, text := request(t, "GET", "http://"+listener.Addr().String(), ""); text != "answered" {
		t.Errorf("the answer is %q", text)
	}
	<-begun
	must(t, <-ended)
}

func TestAnAddressThatIsNoneIsRefusedWithoutItsPassword(t *testing.T) {
	for _, address := range []string{"", "sqlite:", "mysql://u:s3cret@h/d", "postgres://u:s3%zzcret@h/d", "host=h password=s3cret"} {
		db, err := openDatabase(t.Context(), address)
		if err == nil {
			must(t, db.close())
			t.Errorf("%q is opened", address)
		} else if strings.Contains(err.Error(), "cret") {
			t.Errorf("the error has the password in it: %v", err)
		}
	}
}
