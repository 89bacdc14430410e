// Package top formats the endpoints of a pool as its picker sees them now. It must not ask a picker: package command does
// that, again and again.
package top

import (
	"fmt"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// Report is a picker's state of a pool at one time.
type Report struct {
	livestate.State
	// Picker is the replica that answered.
	Picker string `json:"picker"`
}

// maxAdapters bounds how many adapters a row names, except in wide output.
const maxAdapters = 3

// Text has a row for each endpoint, and a row with the sums of all known values. Wide adds addresses, all adapters, and
// the picker's estimates and state of each endpoint.
func (r Report) Text(wide bool) string {
	var out strings.Builder
	for i, p := range r.Pools {
		if i > 0 {
			out.WriteString("\n")
		}
		fmt.Fprintf(&out, "%s at %s, by %s\n%s\n%s\n%s", p.Name, r.Time.UTC().Format(time.TimeOnly), r.Picker, r.pickers(p), line(p), table(p, wide))
	}
	return out.String()
}

// line says what waits at the picker, and whose calls do.
func line(p livestate.Pool) string {
	if p.Line.Calls == 0 {
		return ""
	}
	said := []string{p.Line.String()}
	if p.Needed != nil {
		said[0] += fmt.Sprintf(" The pool's calls need %.1f servers.", *p.Needed)
	}
	for _, w := range p.Line.Waiting() {
		said = append(said, "  "+w)
	}
	return strings.Join(said, "\n") + "\n"
}

// pickers says which pickers pick for a pool, and how far the one that answered knows what others decide.
func (r Report) pickers(p livestate.Pool) string {
	said := []string{p.Picking()}
	for _, o := range r.Others {
		said = append(said, o.String())
	}
	return strings.Join(said, " ")
}

func table(p livestate.Pool, wide bool) string {
	head := []string{"ENDPOINT", "RUNNING", "WAITING", "KV USE", "RESERVED", "TOKENS", "CACHED", "FIRST TOKEN", "ADAPTERS"}
	if wide {
		head = append(head, "ADDRESS", "EXPECTED", "OBSERVED/EXPECTED", "PREFILL/S", "TOLD TOKENS", "READ AGO", "STATE")
	}
	rows := [][]string{head}
	for _, e := range p.Endpoints {
		rows = append(rows, row(e, wide))
	}
	return output.Columns(append(rows, total(p)))
}

func row(e livestate.Endpoint, wide bool) []string {
	running, waiting, use, ago, adapters := "-", "-", "-", "never", "-"
	if r := e.Reading; r != nil {
		running, waiting, use, ago = fmt.Sprint(r.Running), fmt.Sprint(r.Waiting), percent(&r.KVUse), span(&r.Age)
		adapters = adaptersOf(r.Adapters, wide)
	}
	out := []string{
		name(e), running, waiting, use, fmt.Sprint(e.ReservedRequests), fmt.Sprintf("%.0f", e.ReservedTokens),
		percent(e.CachedShare), span(e.ObservedFirstToken), adapters,
	}
	if wide {
		out = append(out, e.Address, span(&e.FirstToken), output.Times(e.ObservedToExpected), fmt.Sprintf("%.0f", e.PrefillRate), told(e.ToldTokens), ago, state(e))
	}
	return out
}

func name(e livestate.Endpoint) string {
	if e.Name == "" {
		return e.Address
	}
	return e.Name
}

func total(p livestate.Pool) []string {
	var running, waiting, reserved int
	var tokens float64
	for _, e := range p.Endpoints {
		if e.Reading != nil {
			running += e.Reading.Running
			waiting += e.Reading.Waiting
		}
		reserved += e.ReservedRequests
		tokens += e.ReservedTokens
	}
	return []string{fmt.Sprintf("all %d", len(p.Endpoints)), fmt.Sprint(running), fmt.Sprint(waiting), "", fmt.Sprint(reserved), fmt.Sprintf("%.0f", tokens)}
}

func adaptersOf(a *livestate.Adapters, all bool) string {
	switch {
	case a == nil || len(a.Known) == 0:
		return "-"
	case all || len(a.Known) <= maxAdapters:
		return strings.Join(a.Known, ",")
	default:
		return fmt.Sprintf("%s +%d", strings.Join(a.Known[:maxAdapters], ","), len(a.Known)-maxAdapters)
	}
}

func state(e livestate.Endpoint) string {
	switch {
	case !e.Ready:
		return "leaving"
	case e.Health.AvoidedFor > 0:
		return fmt.Sprintf("avoided for %s (%d failures)", span(&e.Health.AvoidedFor), e.Health.Failures)
	default:
		return "ready"
	}
}

func told(tokens *int) string {
	if tokens == nil {
		return "-"
	}
	return fmt.Sprint(*tokens)
}

func percent(share *float64) string {
	if share == nil {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100**share)
}

func span(seconds *float64) string {
	if seconds == nil {
		return "-"
	}
	return time.Duration(*seconds * float64(time.Second)).Round(time.Millisecond).String()
}
