package main

import (
	"fmt"
	"strconv"
	"strings"
)

// The drawing has three panels above each other: what became of the requests, how many letters waited, and the circuit.
const (
	width  = 960
	left   = 90 // room for the labels of the axes
	right  = 20
	bars   = 60 // top of the panels, and their heights
	barsH  = 160
	queue  = 270
	queueH = 90
	band   = 410
	bandH  = 26
	height = 500
)

// style works on a dark and on a light page.
const style = `
  text { font: 12px system-ui, sans-serif; fill: #333 }
  .title { font-size: 16px; font-weight: 600 }
  .right { text-anchor: end } .middle { text-anchor: middle }
  .down { fill: #000; opacity: .06 } .axis { stroke: #999 }
  .ok { fill: #2e9e5b } .served { fill: #e0a100 } .parked { fill: #3b7dd8 } .refused { fill: #d64545 }
  .letters { fill: #3b7dd8; opacity: .7 }
  .closed { fill: #2e9e5b } .open { fill: #d64545 } .half-open { fill: #e0a100 }
  @media (prefers-color-scheme: dark) { text { fill: #ddd } .down { fill: #fff; opacity: .1 } .axis { stroke: #777 } }
`

// canvas collects the elements of an SVG document. All text in it is ours: there is nothing to escape.
type canvas struct{ strings.Builder }

func (c *canvas) addf(format string, args ...any) {
	_, _ = fmt.Fprintf(c, format+"\n", args...) // a Builder never fails
}

func (c *canvas) box(class string, x, y, w, h float64, title string) {
	c.addf(`<rect class="%s" x="%.1f" y="%.1f" width="%.1f" height="%.1f"><title>%s</title></rect>`, class, x, y, w, h, title)
}

func (c *canvas) text(class string, x, y float64, text string) {
	c.addf(`<text class="%s" x="%.1f" y="%.1f">%s</text>`, class, x, y, text)
}

// draw makes the SVG document.
func (tl *timeline) draw() string {
	c := &canvas{}
	c.addf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="Timeline of an outage">`, width, height)
	c.addf("<style>%s</style>", style)
	c.text("title", left, 24, "An outage of an hour, as the callers see it")
	c.box("down", tl.x(outageFrom), bars, tl.x(outageUntil)-tl.x(outageFrom), band+bandH-bars, "Retell cannot be reached")
	c.text("middle", (tl.x(outageFrom)+tl.x(outageUntil))/2, bars-8, "Retell cannot be reached")
	tl.drawRequests(c)
	tl.drawLetters(c)
	tl.drawCircuit(c)
	tl.drawMinutes(c)
	tl.drawLegend(c)
	c.addf("</svg>")
	return c.String()
}

// x is where a minute begins.
func (tl *timeline) x(n float64) float64 {
	return left + n*float64(width-left-right)/float64(len(tl.minutes))
}

func (tl *timeline) drawRequests(c *canvas) {
	const each = agentReads + callReads + phoneCalls
	c.text("right", left-8, bars+10, strconv.Itoa(each))
	c.text("right", left-8, bars+barsH/2, "requests")
	c.text("right", left-8, bars+barsH, "0")
	for n, m := range tl.minutes {
		y := float64(bars + barsH)
		for _, part := range []struct {
			class string
			n     int
		}{{"ok", m.ok}, {"served", m.served}, {"parked", m.parked}, {"refused", m.refused}} {
			if part.n == 0 {
				continue
			}
			h := float64(part.n) * barsH / each
			y -= h
			x := tl.x(float64(n))
			c.box(part.class, x+.5, y, tl.x(float64(n+1))-x-1, h, fmt.Sprintf("minute %d: %d %s", n, part.n, part.class))
		}
	}
	c.axis(bars + barsH)
}

func (tl *timeline) drawLetters(c *canvas) {
	most := max(1, tl.total().letters)
	c.text("right", left-8, queue+10, strconv.Itoa(most))
	c.text("right", left-8, queue+queueH/2, "letters")
	c.text("right", left-8, queue+queueH/2+14, "waiting")
	c.text("right", left-8, queue+queueH, "0")
	points := make([]string, 0, len(tl.minutes)+2)
	points = append(points, fmt.Sprintf("%.1f,%d", tl.x(0), queue+queueH))
	for n, m := range tl.minutes {
		points = append(points, fmt.Sprintf("%.1f,%.1f", tl.x(float64(n+1)), float64(queue+queueH)-float64(m.letters)*queueH/float64(most)))
	}
	points = append(points, fmt.Sprintf("%.1f,%d", tl.x(float64(len(tl.minutes))), queue+queueH))
	c.addf(`<polygon class="letters" points="%s"/>`, strings.Join(points, " "))
	c.axis(queue + queueH)
}

// drawCircuit draws a state from its change to the next one. A trial is short: it is made wide enough to be seen.
func (tl *timeline) drawCircuit(c *canvas) {
	c.text("right", left-8, band+bandH/2+4, "circuit")
	tl.mu.Lock()
	defer tl.mu.Unlock()
	end := float64(len(tl.minutes))
	changes := append([]change{{0, "closed"}}, tl.circuit...)
	for i, now := range changes {
		until := end
		if i+1 < len(changes) {
			until = min(changes[i+1].at, end)
		}
		if now.to != "half-open" {
			c.box(now.to, tl.x(now.at), band, max(0, tl.x(until)-tl.x(now.at)), bandH, "circuit "+now.to)
		}
	}
	for _, trial := range tl.circuit {
		if trial.to == "half-open" {
			c.box("half-open", tl.x(trial.at)-1, band, 2, bandH, "circuit half-open: a trial")
		}
	}
}

func (tl *timeline) drawMinutes(c *canvas) {
	for n := 0; n <= len(tl.minutes); n += 10 {
		c.text("middle", tl.x(float64(n)), band+bandH+18, strconv.Itoa(n))
	}
	c.text("right", left-8, band+bandH+18, "minute")
}

func (tl *timeline) drawLegend(c *canvas) {
	x := float64(left)
	for _, entry := range []struct{ class, text string }{
		{"ok", "answered by Retell"}, {"served", "from the cache"}, {"parked", "parked as a letter"}, {"refused", "failed"},
		{"open", "circuit open"}, {"half-open", "a trial"}, {"closed", "circuit closed"},
	} {
		c.box(entry.class, x, height-26, 12, 12, entry.text)
		c.text("", x+18, height-16, entry.text)
		x += 48 + 6.2*float64(len(entry.text))
	}
}

func (c *canvas) axis(y int) {
	c.addf(`<line class="axis" x1="%d" x2="%d" y1="%d" y2="%d"/>`, left, width-right, y, y)
}
