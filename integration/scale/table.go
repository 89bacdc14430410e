package main

import (
	"fmt"
	"io"
	"time"
)

// table holds the measurements, with the goals.
type table struct{ rows []row }

type row struct{ what, figure, goal string }

// add adds a figure without a goal.
func (t *table) add(what, figure string) { t.rows = append(t.rows, row{what: what, figure: figure}) }

// goal adds a figure and whether it meets its goal.
func (t *table) goal(what, figure, want string, met bool) {
	verdict := "MISSED: want " + want
	if met {
		verdict = "met: " + want
	}
	t.rows = append(t.rows, row{what, figure, verdict})
}

func (t *table) print(out io.Writer) {
	_, _ = fmt.Fprintf(out, "\n%-58s %26s  %s\n", "Scale", "measured", "goal")
	for _, r := range t.rows {
		_, _ = fmt.Fprintf(out, "%-58s %26s  %s\n", r.what, r.figure, r.goal)
	}
}

// round rounds a duration to about three digits.
func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > 100*time.Millisecond:
		return d.Round(time.Millisecond)
	default:
		return d.Round(10 * time.Microsecond)
	}
}
