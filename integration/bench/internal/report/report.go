// Package report prints figures in tables that a stranger can read, and compares them with goals.
package report

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Median is the middle value, or the mean of the two middle ones; NaN without values.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Percentile is the smallest duration that the given share of durations does not exceed; 0 without durations.
func Percentile(of []time.Duration, share float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[max(0, int(math.Ceil(share*float64(len(sorted))))-1)]
}

// Goal is a ratio that must not exceed a limit.
type Goal struct {
	Name  string
	Ratio float64
	Limit float64
}

// Met reports whether the goal is met. An unknown ratio meets none.
func (g Goal) Met() bool { return g.Ratio <= g.Limit }

func (g Goal) verdict() string {
	if g.Met() {
		return "met"
	}
	return "MISSED"
}

// Report writes tables and collects goals.
type Report struct {
	out   io.Writer
	goals []Goal
}

// New makes a report that is written to out as it grows.
func New(out io.Writer) *Report { return &Report{out: out} }

// Say writes a paragraph.
func (r *Report) Say(format string, args ...any) { _, _ = fmt.Fprintf(r.out, format+"\n", args...) }

// Table writes a title, a head and rows in columns, all but the first aligned to the right.
func (r *Report) Table(title string, head []string, rows [][]string) {
	_, _ = fmt.Fprintf(r.out, "\n%s\n", title)
	w := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', tabwriter.AlignRight)
	width := len(head[0])
	for _, row := range rows {
		width = max(width, len([]rune(row[0])))
	}
	for _, row := range append([][]string{head}, rows...) {
		// The writer has one alignment for all columns, so the first column is padded by hand.
		first := row[0] + strings.Repeat(" ", width-len([]rune(row[0])))
		_, _ = fmt.Fprintf(w, "  %s\t%s\t\n", first, strings.Join(row[1:], "\t"))
	}
	_ = w.Flush()
}

// Goal notes a goal.
func (r *Report) Goal(format string, ratio, limit float64, args ...any) {
	r.goals = append(r.goals, Goal{Name: fmt.Sprintf(format, args...), Ratio: ratio, Limit: limit})
}

// Summary writes all goals and whether they are met, and returns the number of missed ones.
func (r *Report) Summary() (missed int) {
	rows := make([][]string, 0, len(r.goals))
	for _, g := range r.goals {
		rows = append(rows, []string{g.Name, Ratio(g.Ratio), "≤ " + Ratio(g.Limit), g.verdict()})
		if !g.Met() {
			missed++
		}
	}
	r.Table("Goals", []string{"goal", "ratio", "limit", ""}, rows)
	r.Say("\n%d of %d goals are met.", len(r.goals)-missed, len(r.goals))
	return missed
}

// Ratio formats a ratio with as many decimals as it needs.
func Ratio(x float64) string {
	switch {
	case math.IsNaN(x):
		return "–"
	case x < 0.1:
		return fmt.Sprintf("%.3f", x)
	default:
		return fmt.Sprintf("%.2f", x)
	}
}

// Micros formats seconds as microseconds.
func Micros(seconds float64) string {
	switch us := seconds * 1e6; {
	case math.IsNaN(us):
		return "–"
	case us < 100:
		return fmt.Sprintf("%.1f", us)
	default:
		return fmt.Sprintf("%.0f", us)
	}
}

// Number formats a number without decimals, or a dash if it is unknown.
func Number(x float64) string {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return "–"
	}
	return fmt.Sprintf("%.0f", x)
}

// Megabytes formats bytes as MB.
func Megabytes(bytes float64) string { return fmt.Sprintf("%.0f MB", bytes/1e6) }

// Kilobytes formats a prompt's size.
func Kilobytes(bytes int) string { return fmt.Sprintf("%d KB", bytes>>10) }
