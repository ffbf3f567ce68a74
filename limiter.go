package keyhold

import (
	"context"
	"fmt"
	"sync"
	"time"

	"keyhold.example/keyhold/store"
)

// Anybody can ask for what is not there, with made-up ids of key versions. Each such question costs a token, of which
// there are unknownRate a second and unknownBurst at most; where there is none, questions about what is not kept wait,
// and are refused if unknownQueue of them do already. As it is known only from the answer what a question was about, at
// most unknownAtOnce are asked at a time, which is more than most pools have connections.
const (
	unknownRate   = 100
	unknownBurst  = 50
	unknownQueue  = 100
	unknownAtOnce = 64
)

// limiter holds back questions to the database that are likely to be in vain. It is safe for concurrent use.
type limiter struct {
	slots chan struct{}

	mu      sync.Mutex
	spent   float64 // tokens that are missing
	at      time.Time
	waiting int // for a slot or a token
}

func newLimiter() *limiter { return &limiter{slots: make(chan struct{}, unknownAtOnce)} }

// errTooMany is what those get who would have to wait for many others, of whom most ask in vain.
var errTooMany = fmt.Errorf("too many keys are asked for that are not there: %w", store.ErrUnavailable)

// begin returns when a question may be asked. After it, end is called.
func (l *limiter) begin(ctx context.Context) error {
	l.mu.Lock()
	if l.missing() > 0 && l.waiting >= unknownQueue {
		l.mu.Unlock()
		return errTooMany
	}
	l.waiting++
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.waiting--
		l.mu.Unlock()
	}()
	select {
	case l.slots <- struct{}{}:
	case <-ctx.Done():
		return store.ContextError(ctx)
	}
	for {
		l.mu.Lock()
		missing, waiting := l.missing(), l.waiting
		l.mu.Unlock()
		if missing <= 0 {
			return nil
		}
		if waiting > unknownQueue { // who came while nothing was missing yet
			<-l.slots
			return errTooMany
		}
		timer := time.NewTimer(time.Duration(missing / unknownRate * float64(time.Second)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			<-l.slots
			return store.ContextError(ctx)
		}
	}
}

// end says that a question was answered, and whether it was in vain.
func (l *limiter) end(inVain bool) {
	<-l.slots
	if inVain {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.missing()
		l.spent++
	}
}

// missing is how many tokens have to come before the next question may be asked. l.mu is held.
func (l *limiter) missing() float64 {
	now := time.Now()
	l.spent = max(0, l.spent-now.Sub(l.at).Seconds()*unknownRate)
	l.at = now
	return l.spent - (unknownBurst - 1)
}
