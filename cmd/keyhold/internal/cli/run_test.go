package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"testing"
	"time"

	"keyhold.example/keyhold"
)

func TestEachEventIsOneLine(t *testing.T) {
	data := keyhold.Ref{Scope: "a b", Purpose: "p"}
	root := keyhold.Ref{Scope: "a b"}
	wrong := fmt.Errorf("clean up: %w", &keyhold.InvalidError{What: "purpose for cleanup", Value: "x", Reason: "no key has it"})
	away := fmt.Errorf("list due keys: %w: the server is gone (code 7)\nand more", keyhold.ErrUnavailable)
	for _, test := range []struct {
		event keyhold.Event
		words string
		json  string
	}{
		{
			keyhold.Event{Kind: keyhold.Rotated, Ref: data, Key: "kdk_1", Version: 7, ID: "kdkv_7"},
			`rotated: key "p" of scope "a b", version 7`,
			`"event":"rotated","scope":"a b","kind":"data","purpose":"p","key":"kdk_1","version":7,"version_id":"kdkv_7"`,
		},
		{
			keyhold.Event{Kind: keyhold.RotationFailed, Ref: root, Key: "krk_1", Err: errors.New("it is\nbroken")},
			`rotation failed: root key of scope "a b": it is`,
			`"event":"rotation_failed","scope":"a b","kind":"root","key":"krk_1","error":"it is"`,
		},
		{
			keyhold.Event{Kind: keyhold.Rewrapped, Ref: root, Count: 1},
			`rewrapped: scope "a b", 1 version`,
			`"event":"rewrapped","scope":"a b","kind":"scope","count":1`,
		},
		{
			keyhold.Event{Kind: keyhold.SweepFailed, Err: away},
			`sweep failed: cannot use the database: the server is gone`,
			`"event":"sweep_failed","error":"cannot use the database: the server is gone"`,
		},
		{
			keyhold.Event{Kind: keyhold.SweepFailed, Err: wrong},
			`sweep failed: invalid purpose for cleanup "x": no key has it`,
			`"event":"sweep_failed","error":"invalid purpose for cleanup \"x\": no key has it"`,
		},
		{
			keyhold.Event{Kind: keyhold.Kept, Ref: root, Version: 1, ID: "krkv_1", Err: &keyhold.InUseError{ID: "krkv_1"}},
			`kept: root key of scope "a b", version 1: key version krkv_1 is in use: rows that have its id: `,
			`"event":"kept","scope":"a b","kind":"root","version":1,"version_id":"krkv_1","error":"key version krkv_1 is in use: rows that have its id: "`,
		},
		{
			keyhold.Event{Kind: keyhold.RootRemoved, ID: "kr_1"},
			`root removed: slot kr_1`,
			`"event":"root_removed","root":"kr_1"`,
		},
		{
			keyhold.Event{Kind: keyhold.Kept, ID: "kr_1", Err: &keyhold.InUseRootError{
				Slot: "kr_1", Instances: []keyhold.InstanceInfo{{ID: "ki_1", Self: true}},
			}},
			`kept: root slot kr_1 is not removed: these processes have opened the installation by it: this command itself`,
			`"event":"kept","root":"kr_1","error":"root slot kr_1 is not removed: these processes have opened the installation by it: this command itself"`,
		},
		{
			keyhold.Event{Kind: keyhold.OldRoot, ID: "kr_1", Err: fmt.Errorf("%w: it is A, and the active one is B: configure that", keyhold.ErrOldRoot)},
			`old root: the external root of this process is not the active one: it is A, and the active one is B`,
			`"event":"old_root","root":"kr_1","error":"the external root of this process is not the active one: it is A, and the active one is B"`,
		},
		{
			keyhold.Event{Kind: keyhold.NoPin},
			`no pin: whoever can write to the database can put another installation in its place; keyhold status shows the pin`,
			`"event":"no_pin"`,
		},
	} {
		t.Setenv("KEYHOLD_DB", "")
		var words, objects bytes.Buffer
		a := &app{err: &words}
		a.tell(t.Context(), &test.event)
		a = &app{err: &objects, json: true}
		a.tell(t.Context(), &test.event)
		const when = `2\d\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ`
		if !regexp.MustCompile("^keyhold: " + when + " " + regexp.QuoteMeta(test.words) + "\n$").MatchString(words.String()) {
			t.Errorf("%q, want %q", &words, test.words)
		}
		if !regexp.MustCompile(`^\{"time":"` + when + `",` + regexp.QuoteMeta(test.json) + "}\n$").MatchString(objects.String()) {
			t.Errorf("%q, want %q", &objects, test.json)
		}
	}
}

func TestWhatASignalCutsShortIsNotToldAsAFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var said bytes.Buffer
	a := &app{err: &said}
	a.tell(ctx, &keyhold.Event{Kind: keyhold.SweepFailed, Err: context.Canceled})
	if said.Len() > 0 {
		t.Errorf("%q", &said)
	}
	a.tell(ctx, &keyhold.Event{Kind: keyhold.Rotated, Version: 2})
	if said.Len() == 0 {
		t.Error("what was done by then is not told")
	}
}

func TestAPeriodIsReadAsItIsPrinted(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "90d": 90 * day, "1y": year, "100y": 100 * year, "36h": 36 * time.Hour, "1h30m": 90 * time.Minute,
		"1m": time.Minute, "1m30s": 90 * time.Second, "10m": 10 * time.Minute, "1.5s": 1500 * time.Millisecond, "36h0.5s": 36*time.Hour + 500*time.Millisecond,
	} {
		got, err := parsePeriod(text)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		again, err := parsePeriod(periodText(want))
		if err != nil || again != want {
			t.Errorf("%s is printed as %s", text, periodText(want))
		}
	}
	for d, want := range map[time.Duration]string{
		0: "0", 730 * day: "2y", 400 * day: "400d", 36 * time.Hour: "36h", time.Minute: "1m", 90 * time.Minute: "1h30m", 10 * time.Second: "10s",
		time.Hour + time.Second: "1h0m1s",
	} {
		if got := periodText(d); got != want {
			t.Errorf("%v is printed as %s, not %s", d, got, want)
		}
	}
	for _, text := range []string{
		"", "d", "y", "90", "+1d", "+1h", "1.5d", "1d12h", "1 d", "never", "1w", "-", "--1d", "-90", "h", "1h-1m", ".s", "1e6s",
	} {
		if got, err := parsePeriod(text); !errors.Is(err, errPeriod) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1d", "-1h", "-99999999999999999999y", "-0"} {
		if got, err := parsePeriod(text); !errors.Is(err, errNegative) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"106752d", "293y", "99999999999999999999d", "999999999h", "99999999999999999999s"} {
		if got, err := parsePeriod(text); !errors.Is(err, errTooLong) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestALimitThatIsNegativeIsNone(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"30s": 30 * time.Second, "2d": 2 * day, "1y": year, "-1s": -time.Second, "-1y": -year, "0": 0,
	} {
		var l limit
		if err := l.Set(text); err != nil || time.Duration(l) != want || l.String() != text {
			t.Errorf("%s: %v, %v", text, l, err)
		}
	}
	for text, want := range map[string]error{"": errPeriod, "-": errPeriod, "--1s": errNegative, "soon": errPeriod, "-999999y": errTooLong} {
		var l limit
		if err := l.Set(text); !errors.Is(err, want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
