// Package chart draws line charts as SVG, which looks the same in every browser and in a repository's web page. It does not
// know what the numbers and names mean.
package chart

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// Chart is a set of lines over common axes.
type Chart struct {
	Title, X, Y string
	// LogY draws the vertical axis in powers of ten. It leaves out values that are not positive.
	LogY bool
	// MaxY is the end of the vertical axis; 0 fits the axis to the lines.
	MaxY float64
	// Mark draws a named horizontal line at this level; 0 draws none.
	Mark     float64
	MarkName string
	Lines    []Line
}

// Line is one line of a chart.
type Line struct {
	Name   string
	Points []Point
}

// Point is one point of a line.
type Point struct{ X, Y float64 }

// Sizes in pixels. The legend is in the right margin.
const (
	width, height            = 860, 440
	left, right, top, bottom = 70, 170, 46, 52
)

// colours are distinguishable with colour vision deficiencies (Okabe and Ito's palette), and dashes in print.
var (
	colours = []string{"#999999", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#000000", "#cc79a7", "#0072b2"}
	dashes  = []string{"2 3", "6 3", "9 3 2 3", "", "", "4 4", "1 2", "8 2"}
)

// SVG returns the chart as a document.
func (c *Chart) SVG() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n",
		width, height, width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	label(&b, left, 24, "start", 15, c.Title)
	x, y := c.axes()
	c.grid(&b, x, y)
	for i, l := range c.Lines {
		c.line(&b, x, y, l, i)
		legend(&b, l.Name, i)
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// axis maps values to pixels.
type axis struct {
	low, high  float64
	from, to   float64 // pixels
	logarithms bool
}

func (a axis) at(v float64) float64 {
	low, high := a.low, a.high
	if a.logarithms {
		low, high, v = math.Log10(low), math.Log10(high), math.Log10(v)
	}
	return a.from + (v-low)/(high-low)*(a.to-a.from)
}

func (c *Chart) axes() (x, y axis) {
	x = axis{low: math.Inf(1), high: math.Inf(-1), from: left, to: width - right}
	y = axis{low: math.Inf(1), high: math.Inf(-1), from: height - bottom, to: top, logarithms: c.LogY}
	for _, l := range c.Lines {
		for _, p := range l.Points {
			if !c.drawable(p) {
				continue
			}
			x.low, x.high = min(x.low, p.X), max(x.high, p.X)
			y.low, y.high = min(y.low, p.Y), max(y.high, p.Y)
		}
	}
	if !c.LogY {
		y.low = min(0, y.low)
	}
	if c.MaxY > 0 {
		y.high = c.MaxY
	}
	return x.widened(), y.widened()
}

// widened gives an axis some length, also if all values are equal or there is none.
func (a axis) widened() axis {
	if math.IsInf(a.low, 0) {
		a.low, a.high = 1, 10
	}
	if a.logarithms {
		a.low = math.Pow(10, math.Floor(math.Log10(a.low)))
	}
	if a.high <= a.low {
		a.high = a.low + 1
	}
	return a
}

func (c *Chart) drawable(p Point) bool {
	return !math.IsNaN(p.X) && !math.IsNaN(p.Y) && !math.IsInf(p.X, 0) && !math.IsInf(p.Y, 0) && (!c.LogY || p.Y > 0)
}

// ticks returns round values on an axis: 1, 2 and 5 times powers of ten.
func (a axis) ticks() []float64 {
	var out []float64
	if a.logarithms {
		for p := a.low; p <= a.high*1.0001; p *= 10 {
			for _, m := range []float64{1, 2, 5} {
				if p*m <= a.high*1.0001 {
					out = append(out, p*m)
				}
			}
		}
		return out
	}
	step := math.Pow(10, math.Floor(math.Log10((a.high-a.low)/4)))
	for _, m := range []float64{5, 2} {
		if (a.high-a.low)/(step*m) >= 4 {
			step *= m
			break
		}
	}
	for k := math.Ceil(a.low / step); k*step <= a.high*1.0001; k++ {
		out = append(out, k*step)
	}
	return out
}

func (c *Chart) grid(b *strings.Builder, x, y axis) {
	for _, v := range y.ticks() {
		rule(b, left, y.at(v), width-right, y.at(v), "#e0e0e0", "")
		label(b, left-8, y.at(v)+4, "end", 12, number(v))
	}
	for _, v := range x.ticks() {
		rule(b, x.at(v), height-bottom, x.at(v), height-bottom+5, "#404040", "")
		label(b, x.at(v), height-bottom+19, "middle", 12, number(v))
	}
	rule(b, left, height-bottom, width-right, height-bottom, "#404040", "")
	rule(b, left, top, left, height-bottom, "#404040", "")
	label(b, (left+width-right)/2, height-12, "middle", 12, c.X)
	fmt.Fprintf(b, `<text transform="translate(18 %d) rotate(-90)" text-anchor="middle">%s</text>`+"\n",
		(top+height-bottom)/2, html.EscapeString(c.Y))
	if c.Mark > y.low && c.Mark < y.high {
		rule(b, left, y.at(c.Mark), width-right, y.at(c.Mark), "#404040", "3 3")
		label(b, left+6, y.at(c.Mark)-5, "start", 12, c.MarkName)
	}
}

// line draws the points within the chart. The first point above its top is drawn at the top, to show a steep line.
func (c *Chart) line(b *strings.Builder, x, y axis, l Line, i int) {
	var points []string
	for k, p := range l.Points {
		if !c.drawable(p) {
			continue
		}
		if p.Y > y.high {
			if k > 0 && c.drawable(l.Points[k-1]) && l.Points[k-1].Y <= y.high {
				from := l.Points[k-1]
				part := (y.to - y.at(from.Y)) / (y.at(p.Y) - y.at(from.Y))
				points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(from.X)+part*(x.at(p.X)-x.at(from.X)), y.to))
			}
			break
		}
		points = append(points, fmt.Sprintf("%.1f,%.1f", x.at(p.X), y.at(p.Y)))
	}
	fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="2.2"%s points="%s"/>`+"\n",
		colours[i%len(colours)], dashed(dashes[i%len(dashes)]), strings.Join(points, " "))
}

func legend(b *strings.Builder, name string, i int) {
	at := float64(top + 14 + 22*i)
	fmt.Fprintf(b, `<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="%s" stroke-width="2.2"%s/>`+"\n",
		width-right+14, at-4, width-right+44, at-4, colours[i%len(colours)], dashed(dashes[i%len(dashes)]))
	label(b, width-right+52, at, "start", 12, name)
}

func rule(b *strings.Builder, x1, y1, x2, y2 float64, colour, dash string) {
	fmt.Fprintf(b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"%s/>`+"\n", x1, y1, x2, y2, colour, dashed(dash))
}

func label(b *strings.Builder, x, y float64, anchor string, size int, text string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d">%s</text>`+"\n", x, y, anchor, size, html.EscapeString(text))
}

func dashed(pattern string) string {
	if pattern == "" {
		return ""
	}
	return ` stroke-dasharray="` + pattern + `"`
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }
