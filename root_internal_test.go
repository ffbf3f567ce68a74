package keyhold

import (
	"context"
	"errors"
	"testing"
	"time"
)

// Whatever the root itself says of a call that was ended, the error says what ended it, and what the root said.
func TestWhyARootDidNotAnswer(t *testing.T) {
	const limit = "no answer by the end of Config.Timeout (1ns)"
	m := &Manager{settings: settings{timeout: 1}}
	timedOut, cancel := m.bound(t.Context())
	defer cancel()
	<-timedOut.Done()
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	its := errors.New("POST: request canceled")
	for _, c := range []struct {
		ctx  context.Context
		why  error
		want string
	}{
		{timedOut, nil, limit + ": context deadline exceeded"},
		{timedOut, context.DeadlineExceeded, limit + ": context deadline exceeded"},
		{timedOut, its, limit + ": context deadline exceeded: POST: request canceled"},
		{late, nil, "no answer: context deadline exceeded"},
		{late, its, "no answer: context deadline exceeded: POST: request canceled"},
	} {
		err := m.noAnswer(c.ctx, c.why)
		if err.Error() != c.want {
			t.Errorf("%q, want %q", err, c.want)
		}
		wants(t, err, context.DeadlineExceeded)
		if c.why != nil {
			wants(t, err, c.why)
		}
		if errors.Is(err, ErrUnavailable) {
			t.Errorf("%v says that the database is away", err)
		}
	}
}
