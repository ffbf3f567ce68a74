//go:build unix

package main

import (
	"bytes"
	"errors"
	"os/exec"
	"sync"
	"testing"
	"time"

	"keyhold.example/keyhold/keyholdtest"
)

// A server that is silent from the n-th question on, whichever that is, holds a command up for --timeout, the few
// seconds that a commit has besides, and those in which connections are closed.
func TestACommandEndsSoonWhereverTheDatabaseFallsSilent(t *testing.T) {
	t.Parallel()
	const timeout, most = 200 * time.Millisecond, 12 * time.Second
	dsn := keyholdtest.Postgres(t)
	_, address := newSilenced(t, dsn)
	command, _ := installed(t, address)
	var all sync.WaitGroup
	for args, questions := range map[string]int64{"key rotate s --purpose p": 16, "status": 14, "migrate up": 16} {
		for n := int64(1); n < questions; n += 3 {
			way, there := newSilenced(t, dsn)
			way.left.Store(n)
			c := command(args + " --timeout " + timeout.String())
			c.Env = append(c.Env, "KEYHOLD_DB="+there)
			all.Go(func() {
				began := time.Now()
				out, err := c.CombinedOutput()
				took := time.Since(began)
				exit, failed := errors.AsType[*exec.ExitError](err)
				switch {
				case took > most:
					t.Errorf("%s, silent after %d: it took %v: %v, %s", args, n, took, err, out)
				case err == nil: // it had no other question
				case !failed || exit.ExitCode() != 1 || !bytes.Contains(out, []byte("keyhold: error: no answer within 200ms")):
					t.Errorf("%s, silent after %d: %v, %s", args, n, err, out)
				}
			})
		}
	}
	all.Wait()
}
