package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// A chart is bars in panels, one below the other, each with a scale of its own.
type chart struct {
	title  string
	panels []panel
}

type panel struct {
	title string
	bars  []bar
}

type bar struct {
	label string
	value float64
	text  string // the value as it is printed
	ours  bool   // stands out
}

// Sizes in pixels, as a browser shows the chart where there is room enough. The text is 12 px high.
const (
	width  = 760
	left   = 200 // where the bars begin
	longer = 420 // the longest bar
	line   = 20  // from one bar to the next
	gap    = 14  // between panels
)

// The colours are for a light page, and for a dark one where the reader asks for it. Text keeps a contrast of 4.5 to
// both.
const style = `<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.head { font-weight: 600 }
.ours { fill: #0969da }
.other { fill: #8c959f }
.axis { stroke: #8c959f }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.ours { fill: #58a6ff }
.other { fill: #6e7681 }
.axis { stroke: #6e7681 }
}
</style>
`

// svg draws c; without bars it is empty.
func (c chart) svg() string {
	var s strings.Builder
	y := 24
	for _, p := range c.panels {
		if len(p.bars) == 0 {
			continue
		}
		y += gap + line
		fmt.Fprintf(&s, `<text class="head" x="8" y="%d">%s</text>`+"\n", y, escape(p.title))
		longest := 0.0
		for _, b := range p.bars {
			longest = max(longest, b.value)
		}
		top := y + 6
		for _, b := range p.bars {
			y += line
			class := "other"
			if b.ours {
				class = "ours"
			}
			long := 0.0
			if longest > 0 {
				long = longer * b.value / longest
			}
			fmt.Fprintf(&s, `<text x="%d" y="%d" text-anchor="end">%s</text>`, left-8, y, escape(b.label))
			fmt.Fprintf(&s, `<rect class="%s" x="%d" y="%d" width="%.1f" height="14" rx="2"/>`, class, left, y-11, long)
			fmt.Fprintf(&s, `<text x="%.1f" y="%d">%s</text>`+"\n", left+long+8, y, escape(b.text))
		}
		fmt.Fprintf(&s, `<path class="axis" d="M%d %dV%d"/>`+"\n", left, top, y+6)
	}
	if s.Len() == 0 {
		return ""
	}
	title := escape(c.title)
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n",
		width, y+line, title) + style +
		fmt.Sprintf(`<text class="title" x="8" y="22">%s</text>`+"\n", title) + s.String() + "</svg>\n"
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}

// systemsChart compares the systems in one operation, on one core.
func systemsChart(r *results, op string) chart {
	c := chart{title: op + ": time of one call, on one core"}
	for _, size := range sizes {
		p := panel{title: bytes(float64(size))}
		for _, system := range order {
			name := fmt.Sprintf("%s/size=%d/system=%s", op, size, system)
			if v, ok := r.center(here, name, "ns/op", 1); ok {
				p.bars = append(p.bars, bar{labels[system], v, nanoseconds(v), strings.HasPrefix(system, "keyhold")})
			}
		}
		c.panels = append(c.panels, p)
	}
	return c
}

// flatChart shows what hardly grows with the number of keys.
func flatChart(r *results) chart {
	c := chart{title: "With few keys and with many"}
	for _, p := range []struct {
		title, name, unit string
		keys              []int
		printed           func(float64) string
	}{
		{"finding the key that was used before", "HotLookup/keys=%d/same", "ns/op", []int{10, 100_000}, nanoseconds},
		{"a sweep that finds nothing, PostgreSQL", "Sweep/postgres/keys=%d/due=0", "ns/op", []int{1000, 1_000_000}, nanoseconds},
		{"rotating one of 1 000 due keys, PostgreSQL", "Sweep/postgres/keys=%d/due=1000", "us/key", []int{1000, 1_000_000}, microseconds},
		{"a sweep that finds nothing, SQLite", "Sweep/sqlite/keys=%d/due=0", "ns/op", []int{1000, 1_000_000}, nanoseconds},
		{"rotating one of 1 000 due keys, SQLite", "Sweep/sqlite/keys=%d/due=1000", "us/key", []int{1000, 1_000_000}, microseconds},
	} {
		next := panel{title: p.title}
		for _, n := range p.keys {
			if v, ok := r.center(".", fmt.Sprintf(p.name, n), p.unit, 0); ok {
				next.bars = append(next.bars, bar{"with " + digits(float64(n)) + " keys", v, p.printed(v), true})
			}
		}
		c.panels = append(c.panels, next)
	}
	return c
}
