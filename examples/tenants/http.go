package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/key"
)

const (
	requestTime = 10 * time.Second // that one request may take
	bodyLimit   = 64 << 10         // bytes
)

// errBody says nothing of what is wrong with a body: there may be a secret in it.
var errBody = errors.New("the body has to be JSON of at most 64 KiB with the fields that the README names")

// endpoint answers one request: with a status and what goes into the body, nothing if that is nil, or with an error.
// tenant is the one in the path.
type endpoint func(r *http.Request, tenant keyhold.Scope) (status int, body any, err error)

// What the service sends.
type (
	tenantBody struct {
		ID       keyhold.Scope `json:"id"`
		Versions []versionBody `json:"versions,omitempty"`
	}
	versionBody struct {
		Number keyhold.Version `json:"number"`
		KeyID  key.ID          `json:"key_id"`
		State  string          `json:"state"`
	}
	clientBody struct {
		ClientID     string `json:"client_id"`
		ClientSecret string `json:"client_secret,omitempty"`
		KeyID        key.ID `json:"key_id"`
	}
	errorBody struct {
		Error string `json:"error"`
	}
)

// newHandler serves the tenants to whoever can connect: users and their rights are another matter than keys.
func newHandler(t *tenants, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	for pattern, e := range map[string]endpoint{
		"POST /tenants":                          t.postTenant,
		"GET /tenants/{tenant}":                  t.getTenant,
		"PATCH /tenants/{tenant}":                t.patchTenant,
		"DELETE /tenants/{tenant}":               t.deleteTenant,
		"POST /tenants/{tenant}/rotate":          t.postRotate,
		"PUT /tenants/{tenant}/oidc/{client}":    t.putClient,
		"GET /tenants/{tenant}/oidc/{client}":    t.getClient,
		"DELETE /tenants/{tenant}/oidc/{client}": t.deleteClient,
		"/": func(*http.Request, keyhold.Scope) (int, any, error) {
			return http.StatusNotFound, errorBody{"there is no such path, or it does not know this method"}, nil
		},
	} {
		mux.Handle(pattern, answer(pattern, e, log))
	}
	// Listening on this machine alone keeps others out, but not the web pages that its users visit.
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(answer("from another site", func(*http.Request, keyhold.Scope) (int, any, error) {
		return http.StatusForbidden, errorBody{"requests from other sites' pages are refused"}, nil
	}, log))
	return protection.Handler(mux)
}

// answer runs an endpoint and writes what it returns. It logs the pattern and not the path, and no bodies.
func answer(pattern string, e endpoint, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), requestTime)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
		status, body, err := 0, any(nil), checkPath(r)
		if err == nil {
			status, body, err = e(r, keyhold.Scope(r.PathValue("tenant")))
		}
		attrs := []slog.Attr{slog.String("request", pattern)}
		if err != nil {
			status, body = explainError(err)
			attrs = append(attrs, slog.Any("error", err))
		}
		level := slog.LevelInfo
		if status >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		w.Header().Set("Cache-Control", "no-store")
		if body != nil {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(status)
		if body != nil {
			_ = json.NewEncoder(w).Encode(body) // there is nobody to tell if the client is gone
		}
		attrs = append(attrs, slog.Int("status", status), slog.Duration("took", time.Since(begin)))
		log.LogAttrs(ctx, level, "answered", attrs...)
	})
}

// explainError is what the client is told. What it cannot do anything about is in the log alone.
func explainError(err error) (status int, body any) {
	_, invalid := errors.AsType[*keyhold.InvalidError](err)
	switch {
	case invalid, errors.Is(err, errBody), errors.Is(err, keyhold.ErrTooLarge):
		return http.StatusBadRequest, errorBody{err.Error()}
	case errors.Is(err, keyhold.ErrNotFound):
		return http.StatusNotFound, errorBody{"there is no such tenant, or it has no such client"}
	case errors.Is(err, errExists), errors.Is(err, errInUse):
		return http.StatusConflict, errorBody{err.Error()}
	case away(err):
		return http.StatusServiceUnavailable, errorBody{"the database does not answer: try again"}
	}
	return http.StatusInternalServerError, errorBody{"something is wrong here: the log says what"}
}

func readBody(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return errBody
	}
	return nil
}

// checkPath keeps names that nothing can have from the database.
func checkPath(r *http.Request) error {
	if tenant := keyhold.Scope(r.PathValue("tenant")); tenant != "" {
		if err := tenant.Validate(); err != nil {
			return err
		}
	}
	if id := r.PathValue("client"); id != "" {
		return checkClient(id)
	}
	return nil
}

func (t *tenants) postTenant(r *http.Request, _ keyhold.Scope) (int, any, error) {
	var body struct {
		ID   keyhold.Scope `json:"id"`
		OIDC *credentials  `json:"oidc"`
	}
	if err := readBody(r, &body); err != nil {
		return 0, nil, err
	}
	return http.StatusCreated, tenantBody{ID: body.ID}, t.create(r.Context(), body.ID, body.OIDC)
}

func (t *tenants) getTenant(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	versions, err := t.versions(r.Context(), tenant)
	body := tenantBody{ID: tenant}
	for _, v := range versions {
		body.Versions = append(body.Versions, versionBody{v.Number, v.ID, v.State.String()})
	}
	return http.StatusOK, body, err
}

func (t *tenants) patchTenant(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	var body struct {
		ID keyhold.Scope `json:"id"`
	}
	if err := readBody(r, &body); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, tenantBody{ID: body.ID}, t.rename(r.Context(), tenant, body.ID)
}

func (t *tenants) deleteTenant(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	return http.StatusNoContent, nil, t.remove(r.Context(), tenant)
}

func (t *tenants) postRotate(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	if _, err := t.rotate(r.Context(), tenant); err != nil {
		return 0, nil, err
	}
	return t.getTenant(r, tenant)
}

func (t *tenants) putClient(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	var body struct {
		ClientSecret string `json:"client_secret"`
	}
	if err := readBody(r, &body); err != nil {
		return 0, nil, err
	}
	c := credentials{r.PathValue("client"), body.ClientSecret}
	keyID, err := t.put(r.Context(), tenant, c)
	return http.StatusOK, clientBody{ClientID: c.ClientID, KeyID: keyID}, err
}

// getClient shows the secret, to show that it opens. A service has no need to: it signs in with it.
func (t *tenants) getClient(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	c, keyID, err := t.client(r.Context(), tenant, r.PathValue("client"))
	return http.StatusOK, clientBody{c.ClientID, c.ClientSecret, keyID}, err
}

func (t *tenants) deleteClient(r *http.Request, tenant keyhold.Scope) (int, any, error) {
	return http.StatusNoContent, nil, t.removeClient(r.Context(), tenant, r.PathValue("client"))
}
