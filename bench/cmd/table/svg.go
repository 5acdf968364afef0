package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

const (
	chartWidth = 860
	labelWidth = 170
	valueWidth = 150
	lineHeight = 20
	groupGap   = 34
	longest    = 6 // bars end at so many times the reference, with a mark; the number says the rest
)

// chart draws one block of bars for each group, each on its own scale. It brings its background with it, so that it can be
// read whatever page it stands on.
func chart(r *results, by measure) string {
	var bars strings.Builder
	y := 54
	for _, g := range known(r) {
		rows := r.group(g.name)
		if len(rows) == 0 || g.name == "Layers" {
			continue
		}
		y = block(&bars, g, rows, r.find(g.name, g.reference), by, y)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="t d">`+"\n", chartWidth, y, chartWidth, y)
	b.WriteString(`<title id="t">What a call costs</title>` + "\n")
	fmt.Fprintf(&b, `<desc id="d">%s of each library, by group; shorter is better. The same numbers are in results.md.</desc>`+"\n", escape(by.String()))
	b.WriteString(style)
	fmt.Fprintf(&b, `<rect class="page" width="%d" height="%d" rx="8"/>`+"\n", chartWidth, y)
	fmt.Fprintf(&b, `<text class="head" x="20" y="32">What a call costs: %s, shorter is better (%s, %s, %d CPUs)</text>`+"\n",
		escape(by.String()), r.Date.Format("2006-01-02"), escape(r.Go), r.CPUs)
	b.WriteString(bars.String())
	b.WriteString("</svg>\n")
	return b.String()
}

const style = `<style>
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.head { font-size: 15px; font-weight: 600 }
.group { font-size: 13px; font-weight: 600 }
.name { text-anchor: end }
.page { fill: #ffffff }
.peer { fill: #afb8c1 }
.ours { fill: #0969da }
.cut { stroke: #ffffff; stroke-width: 3 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.page { fill: #0d1117 }
.peer { fill: #57606a }
.ours { fill: #2f81f7 }
.cut { stroke: #0d1117 }
}
</style>
`

func block(b *strings.Builder, g group, rows []*row, reference *row, by measure, y int) int {
	y += 18
	fmt.Fprintf(b, `<text class="group" x="20" y="%d">%s</text>`+"\n", y, escape(g.title))
	y += 8
	scale := scaleOf(rows, reference, by)
	for _, w := range rows {
		width, cut := barOf(w.by(by), scale)
		class := "peer"
		if strings.Contains(w.Library, "ours") {
			class = "ours"
		}
		fmt.Fprintf(b, `<text class="name" x="%d" y="%d">%s</text>`, labelWidth, y+14, escape(w.Library))
		fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d" rx="2"/>`, class, labelWidth+10, y+3, width, lineHeight-6)
		end := float64(labelWidth+10) + width
		if cut {
			fmt.Fprintf(b, `<path class="cut" d="M%.1f %d l6 %d"/>`, end-24, y+lineHeight-2, -(lineHeight - 3))
		}
		fmt.Fprintf(b, `<text x="%.1f" y="%d">%s ns · %s allocs</text>`+"\n", end+8, y+14, digits(w.by(by)), digits(w.Allocs))
		y += lineHeight
	}
	return y + groupGap - lineHeight
}

// scaleOf is what the longest bar stands for.
func scaleOf(rows []*row, reference *row, by measure) float64 {
	most := 0.0
	for _, w := range rows {
		most = max(most, w.by(by))
	}
	if reference != nil && reference.by(by) > 0 {
		most = min(most, longest*reference.by(by))
	}
	return most
}

func barOf(value, scale float64) (width float64, cut bool) {
	room := float64(chartWidth - labelWidth - valueWidth - 20)
	switch {
	case scale <= 0 || value <= 0:
		return 1, false
	case value > scale:
		return room, true
	}
	return max(1, room*value/scale), false
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder takes everything
	return b.String()
}
