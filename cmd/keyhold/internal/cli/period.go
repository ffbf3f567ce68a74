package cli

import (
	"errors"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// The units of a period that [time.ParseDuration] does not have. A year is as long as the library's.
const (
	day  = 24 * time.Hour
	year = 365 * day
)

// period is a flag for a time that may be long, such as 90d. It is not negative.
type period time.Duration

var (
	errPeriod   = errors.New("it has to be a number and a unit, such as 90d, 36h or 1y")
	errNegative = errors.New("it is negative")
	errTooLong  = errors.New("it is too long: the most is " + strconv.Itoa(int(math.MaxInt64/year)) + "y")
)

// Set implements pflag's Value.
func (p *period) Set(text string) error {
	d, err := parsePeriod(text)
	*p = period(d)
	return err
}

// Type implements pflag's Value; it is what help shows.
func (*period) Type() string { return "duration" }

func (p *period) String() string { return periodText(time.Duration(*p)) }

// limit is a flag for a time within which something has to be done. Any negative one is no limit.
type limit time.Duration

// Set implements pflag's Value.
func (l *limit) Set(text string) error {
	positive, negative := strings.CutPrefix(text, "-")
	d, err := parsePeriod(positive)
	if negative {
		d = -d
	}
	*l = limit(d)
	return err
}

// Type implements pflag's Value; it is what help shows.
func (*limit) Type() string { return "duration" }

func (l *limit) String() string { return periodText(time.Duration(*l)) }

// periodForm is a period with its sign, whether or not it can be counted in nanoseconds: of days or years a whole
// number, otherwise what [time.ParseDuration] reads.
var periodForm = regexp.MustCompile(`^(-?)(?:0|([0-9]+)([dy])|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)$`)

func parsePeriod(text string) (time.Duration, error) {
	m := periodForm.FindStringSubmatch(text)
	switch {
	case m == nil:
		return 0, errPeriod
	case m[1] != "":
		return 0, errNegative
	case m[3] == "":
		d, err := time.ParseDuration(text)
		if err != nil {
			return 0, errTooLong
		}
		return d, nil
	}
	unit := day
	if m[3] == "y" {
		unit = year
	}
	n, err := strconv.ParseUint(m[2], 10, 64)
	if err != nil || n > uint64(math.MaxInt64/unit) {
		return 0, errTooLong
	}
	return time.Duration(n) * unit, nil
}

// periodText is a period as the flag takes it.
func periodText(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d%year == 0:
		return strconv.Itoa(int(d/year)) + "y"
	case d%day == 0:
		return strconv.Itoa(int(d/day)) + "d"
	}
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
