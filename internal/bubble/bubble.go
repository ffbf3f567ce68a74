// Package bubble runs tests that choose what time it is.
package bubble

import (
	"crypto/fips140"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
)

// Test runs f in a bubble of testing/synctest. Where only approved algorithms are allowed, random bytes come from a
// fixed seed for so long: the approved generator gathers its entropy from the jitter of a clock, which stands still in
// a bubble. The test and those above it must not be parallel.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if fips140.Enabled() {
		cryptotest.SetGlobalRandom(t, 1)
	}
	synctest.Test(t, f)
}
