package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// labels are what the tables and plots call the systems that are compared, in their order.
var (
	labels = map[string]string{
		"gcm":             "GCM, same AAD",
		"gcm-less":        "GCM, bare",
		"gcm-append":      "GCM, same AAD, into a buffer",
		"gcm-less-append": "GCM, bare, into a buffer",
		"keyhold":         "keyhold",
		"keyhold-append":  "keyhold, into a buffer",
		"tink":            "Tink",
		"kms-aead":        "go-kms-wrapping aead",
		"xchacha":         "XChaCha20-Poly1305",
	}
	order = []string{"gcm-less-append", "gcm-append", "keyhold-append", "gcm", "keyhold", "gcm-less", "tink", "kms-aead", "xchacha"}
)

// digits prints v with three significant digits, and thousands set off.
func digits(v float64) string {
	if v == 0 {
		return "0"
	}
	places := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	if places > 0 {
		s := strconv.FormatFloat(v, 'f', places, 64)
		return strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

func times(v float64) string { return strconv.FormatFloat(v, 'f', 2, 64) }

func count(v float64) string { return digits(v) }

func percent(v float64) string { return digits(100*v) + " %" }

func perSecond(v float64) string { return digits(v) + " a second" }

func bytes(v float64) string {
	switch {
	case v >= 1<<20:
		return digits(v/(1<<20)) + " MiB"
	case v >= 1<<10:
		return digits(v/(1<<10)) + " KiB"
	}
	return digits(v) + " B"
}

// nanoseconds prints so many of them in the unit that reads best.
func nanoseconds(v float64) string {
	switch {
	case v >= 1e9:
		return digits(v/1e9) + " s"
	case v >= 1e6:
		return digits(v/1e6) + " ms"
	case v >= 1e4:
		return digits(v/1e3) + " µs"
	}
	return digits(v) + " ns"
}

func microseconds(v float64) string { return nanoseconds(1e3 * v) }

// inUnit prints a metric of a benchmark as its unit asks for.
func inUnit(v float64, unit string) string {
	switch {
	case unit == "ns/op":
		return nanoseconds(v)
	case unit == "B/op":
		return bytes(v)
	case strings.HasPrefix(unit, "ns/"):
		return nanoseconds(v) + unit[2:]
	}
	return fmt.Sprintf("%s %s", digits(v), unit)
}
