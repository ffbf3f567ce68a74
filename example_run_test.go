package keyhold_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold"
	"keyhold.example/keyhold/store/memstore"
)

// runServer is an application that answers requests until ctx ends, and then ends in order. It closes keys.
func runServer(ctx context.Context, listener net.Listener, mux *http.ServeMux, keys *keyhold.Manager) error {
	// operations.md: begin
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := keys.Health().Err(); err != nil {
			http.Error(w, "no keys", http.StatusServiceUnavailable) // err is for the log
		}
	})
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var run sync.WaitGroup
	run.Go(func() { _ = keys.Run(running) }) // goes on whatever fails; the events say what

	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done(): // of signal.NotifyContext, for instance: first the requests end, which need the keys
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		err = server.Shutdown(limited)
		cancel()
	}
	stop() // then Run, which needs them, too
	run.Wait()
	return errors.Join(err, keys.Close()) // which tells the other processes that this one seals no more
	// operations.md: end
}

// The example ends in order: a request under way still has its keys, and nothing is left of the process afterwards.
func TestAnApplicationEndsInOrder(t *testing.T) {
	s, root := memstore.New(), newRoot(t)
	watching := newManager(t, s, root)
	must(t, watching.CreateScope(t.Context(), tenant))
	keys, err := keyhold.New(t.Context(), s, config(root))
	must(t, err)
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	ctx, sigterm := context.WithCancel(t.Context())
	defer sigterm()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /seal", func(w http.ResponseWriter, r *http.Request) {
		sigterm()
		for { // until nobody gets in any more
			c, err := (&net.Dialer{}).DialContext(r.Context(), "tcp", listener.Addr().String())
			if err != nil {
				break
			}
			_ = c.Close()
		}
		if _, err := keys.Seal(r.Context(), ref, nil, keyhold.AAD{}); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	served := make(chan error, 1)
	go func() { served <- runServer(ctx, listener, mux, keys) }()
	for _, path := range []string{"/ready", "/seal"} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+path, nil)
		must(t, err)
		response, err := http.DefaultClient.Do(request)
		must(t, err)
		must(t, response.Body.Close())
		if response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	must(t, <-served)
	_, err = keys.Seal(t.Context(), ref, nil, keyhold.AAD{})
	fails(t, err, keyhold.ErrClosed)
	instances, err := watching.Instances(t.Context())
	if err != nil || len(instances) != 0 {
		t.Errorf("%d processes are said to seal, %v", len(instances), err)
	}
	response := httptest.NewRecorder()
	mux.ServeHTTP(response, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/ready", nil))
	if response.Code != http.StatusServiceUnavailable {
		t.Errorf("closed, it answers %d", response.Code)
	}
}
