package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"keyhold.example/keyhold"
)

// served serves the tenants, and returns the address and what is logged.
func served(t *testing.T, s *tenants) (address string, log *bytes.Buffer) {
	t.Helper()
	log = &bytes.Buffer{}
	server := httptest.NewServer(newHandler(s, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	t.Cleanup(server.Close)
	return server.URL, log
}

var keyID = regexp.MustCompile(`kdkv_[a-z0-9]+`)

// shortened numbers the ids of key versions in the order in which they are first seen.
func shortened(text string, seen map[string]string) string {
	return keyID.ReplaceAllStringFunc(text, func(id string) string {
		if seen[id] == "" {
			seen[id] = "kdkv_" + string(rune('1'+len(seen)))
		}
		return seen[id]
	})
}

// TestTheReadmesCommandsDoWhatItSays runs them with a shell, one after the other.
func TestTheReadmesCommandsDoWhatItSays(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("the README's commands need curl, which is not installed")
	}
	readme, err := os.ReadFile("README.md")
	must(t, err)
	steps := strings.Split(string(readme), "```sh\n")[1:]
	if len(steps) < 9 {
		t.Fatalf("the README has only %d commands", len(steps))
	}
	onBoth(t, func(t *testing.T, s *tenants) {
		address, _ := served(t, s)
		seen := map[string]string{}
		for _, step := range steps {
			commands, rest, _ := strings.Cut(step, "```\n")
			want, _, _ := strings.Cut(strings.TrimPrefix(rest, "```json\n"), "```")
			here := strings.ReplaceAll(commands, "http://localhost:8080", address)
			if here == commands {
				t.Fatalf("the README's service is not at localhost:8080 in %s", commands)
			}
			c := exec.CommandContext(t.Context(), "sh", "-ec", here)
			c.Stderr = t.Output()
			out, err := c.Output()
			must(t, err)
			if d := cmp.Diff(want, shortened(string(out), seen)); d != "" {
				t.Errorf("%s(-README +got):\n%s", commands, d)
			}
		}
	})
}

func request(t *testing.T, method, address, body string, headers ...string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(body))
	must(t, err)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	must(t, err)
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	must(t, err)
	return response.StatusCode, string(all)
}

func TestErrorsAreJSONWithTheStatusThatSaysWhoseTheyAre(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		address, _ := served(t, s)
		must(t, s.create(t.Context(), "acme", &credentials{"web", "s3cret"}))
		must(t, s.create(t.Context(), "broken", &credentials{"web", "s3cret"}))
		_, err := s.db.Exec("update oidc set client_secret = (select client_secret from oidc where scope_id = 'acme') where scope_id = 'broken'")
		must(t, err)
		for _, c := range []struct {
			method, path, body string
			want               int
		}{
			{"POST", "/tenants", `{"id": "acme"}`, http.StatusConflict},
			{"POST", "/tenants", `{"id": ""}`, http.StatusBadRequest},
			{"POST", "/tenants", `{"id": "a\u0000"}`, http.StatusBadRequest},
			{"POST", "/tenants", `{"id": "new", "oidc": {"client_secret": "x"}}`, http.StatusBadRequest},
			{"POST", "/tenants", `{"id": "new", "oidc": {"client_id": "web"}}`, http.StatusBadRequest},
			{"POST", "/tenants", `{"id": "new", "secret": "s3cret"}`, http.StatusBadRequest},
			{"POST", "/tenants", `s3cret`, http.StatusBadRequest},
			{"PUT", "/tenants/acme/oidc/big", `{"client_secret": "` + strings.Repeat("x", bodyLimit) + `"}`, http.StatusBadRequest},
			{"GET", "/tenants/nobody", "", http.StatusNotFound},
			{"GET", "/tenants/a%00", "", http.StatusBadRequest},
			{"GET", "/tenants/a%ff", "", http.StatusBadRequest},
			{"DELETE", "/tenants/nobody", "", http.StatusNotFound},
			{"DELETE", "/tenants/acme", "", http.StatusConflict},
			{"PATCH", "/tenants/acme", `{"id": "broken"}`, http.StatusConflict},
			{"PATCH", "/tenants/acme", `{"id": "a\u0000"}`, http.StatusBadRequest},
			{"PATCH", "/tenants/nobody", `{"id": "somebody"}`, http.StatusNotFound},
			{"PATCH", "/tenants/acme", `{"id": "acme"}`, http.StatusBadRequest},
			{"POST", "/tenants/nobody/rotate", "", http.StatusNotFound},
			{"PUT", "/tenants/nobody/oidc/web", `{"client_secret": "s3cret"}`, http.StatusNotFound},
			{"PUT", "/tenants/acme/oidc/web", `{"client_secret": ""}`, http.StatusBadRequest},
			{"PUT", "/tenants/acme/oidc/%00", `{"client_secret": "s3cret"}`, http.StatusBadRequest},
			{"GET", "/tenants/acme/oidc/nobody", "", http.StatusNotFound},
			{"GET", "/tenants/acme/oidc/%00", "", http.StatusBadRequest},
			{"DELETE", "/tenants/a%ff", "", http.StatusBadRequest},
			{"DELETE", "/tenants/acme/oidc/nobody", "", http.StatusNotFound},
			{"GET", "/tenants/broken/oidc/web", "", http.StatusInternalServerError},
			{"PUT", "/tenants", "", http.StatusNotFound},
			{"GET", "/", "", http.StatusNotFound},
		} {
			status, text := request(t, c.method, address+c.path, c.body)
			var body errorBody
			if err := json.Unmarshal([]byte(text), &body); err != nil || body.Error == "" || status != c.want {
				t.Errorf("%s %s %.60s: %d, %s; want %d with an error", c.method, c.path, c.body, status, text, c.want)
			}
			if strings.Contains(text, "s3cret") {
				t.Errorf("%s %s: the answer has the secret in it: %s", c.method, c.path, text)
			}
		}
		s.wantSecret(t, "acme", "web", "s3cret")
	})
}

func TestADatabaseThatDoesNotAnswerInTimeIs503(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		must(t, s.create(t.Context(), "acme", nil))
		// Somebody else's transaction is in the way of a row.
		tx, err := s.db.Begin()
		must(t, err)
		defer func() { must(t, tx.Rollback()) }()
		_, err = tx.Exec("insert into scope (id) values ('umbrella')")
		must(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err = s.create(ctx, "umbrella", nil)
		if status, _ := explainError(err); status != http.StatusServiceUnavailable {
			t.Errorf("%d for %v; want %d", status, err, http.StatusServiceUnavailable)
		}
	})
}

func TestWhatIsWrongWithTheServerMayBeTriedAgain(t *testing.T) {
	nobody, err := sql.Open("pgx", "postgres://user@127.0.0.1:1/nobody")
	must(t, err)
	defer nobody.Close()
	for want, errs := range map[int][]error{
		http.StatusServiceUnavailable: {
			nobody.PingContext(t.Context()), keyhold.ErrUnavailable, io.ErrUnexpectedEOF, &pgconn.PgError{Code: "57P01"}, &pgconn.PgError{Code: "40P01"},
		},
		http.StatusInternalServerError: {&pgconn.PgError{Code: "23514"}, keyhold.ErrOpen, keyhold.ErrRoot},
	} {
		for _, err := range errs {
			if status, _ := explainError(explain(err, "create tenant %q", "acme")); status != want {
				t.Errorf("%d for %v; want %d", status, err, want)
			}
		}
	}
}

func TestNoSecretIsLogged(t *testing.T) {
	onBoth(t, func(t *testing.T, s *tenants) {
		address, log := served(t, s)
		const body = `{"client_secret": "s3cret"}`
		for _, r := range [][3]string{
			{"POST", "/tenants", `{"id": "acme", "oidc": {"client_id": "web", "client_secret": "s3cret"}}`},
			{"POST", "/tenants", `{"id": "acme", "oidc": {"client_id": "web", "client_secret": "s3cret"}}`},
			{"PUT", "/tenants/acme/oidc/app", body},
			{"PUT", "/tenants/nobody/oidc/app", body},
			{"GET", "/tenants/acme/oidc/web", ""},
			{"POST", "/tenants", `{"s3cret": 1}`},
		} {
			request(t, r[0], address+r[1], r[2])
		}
		// The database's own errors, too.
		_, err := s.db.Exec("drop table oidc")
		must(t, err)
		if status, text := request(t, "PUT", address+"/tenants/acme/oidc/web", body); status != http.StatusInternalServerError {
			t.Errorf("%d %s; want %d", status, text, http.StatusInternalServerError)
		}
		if n := strings.Count(log.String(), "request="); n != 7 {
			t.Errorf("%d requests are logged; want 7:\n%s", n, log)
		}
		if strings.Contains(log.String(), "s3cret") {
			t.Errorf("the log has the secret in it:\n%s", log)
		}
	})
}

func TestOtherSitesPagesAreRefused(t *testing.T) {
	s := open(t, "sqlite:"+t.TempDir()+"/tenants.db")
	address, log := served(t, s)
	status, text := request(t, "POST", address+"/tenants", `{"id": "acme"}`, "Origin", "https://elsewhere.example")
	if n := s.count(t, "scope"); status != http.StatusForbidden || n != 0 {
		t.Errorf("status %d, %d tenants; want %d and none", status, n, http.StatusForbidden)
	}
	if !strings.HasPrefix(text, `{"error":`) || !strings.Contains(log.String(), "status=403") {
		t.Errorf("%s; the log has %s", text, log)
	}
}
