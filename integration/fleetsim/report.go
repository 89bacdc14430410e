package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/chart"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// report holds all measurements and writes them.
type report struct {
	scale scale
	seed  uint64
	trace []workload.Call // empty if the file is missing
	w     io.Writer

	policies []policy.Policy
	onTrace  []traceStudy
	loads    []loadCurve
	// attending are the trace on servers with attention.
	attending []study
	others    []study
	harder    []study
	several   []severalStudy
	overload  []study
	results   results
}

// loadCurve is the TTFT p90 in seconds over calls a second, for each policy.
type loadCurve struct {
	name   string
	curves map[string][]chart.Point
}

// measure runs everything.
func (r *report) measure(policies []policy.Policy) error {
	r.policies = policies
	r.trace = r.trace[:min(len(r.trace), r.scale.calls)]
	r.others = otherStudies(r.scale, r.seed)
	r.harder = harderStudies(r.scale, r.seed)
	r.several = severalStudies(r.scale, r.seed, r.trace)
	r.overload = overloadStudies(r.scale, r.seed, r.trace)
	all := append(append(append([]study{}, r.others...), r.harder...), r.overload...)
	for _, s := range r.several {
		all = append(append(all, s.study), s.deaths...)
	}
	var recorded, spread []study
	if len(r.trace) > 0 {
		r.onTrace = traceStudies(r.scale, r.trace)
		for _, s := range r.onTrace {
			all = append(all, s.study)
		}
		r.attending = attentionStudies(r.scale, r.trace)
		all = append(all, r.attending...)
		recorded = loadStudies(r.scale, r.seed, r.trace, false)
		spread = loadStudies(r.scale, r.seed, r.trace, true)
		all = append(append(all, recorded...), spread...)
	}
	var err error
	if r.results, err = measure(all, policies, r.seed); err != nil {
		return err
	}
	if len(r.trace) > 0 {
		r.loads = []loadCurve{r.curve("as recorded", recorded), r.curve("spread", spread)}
	}
	return nil
}

func (r *report) curve(name string, studies []study) loadCurve {
	c := loadCurve{name: name, curves: map[string][]chart.Point{}}
	for _, p := range r.policies {
		for _, s := range studies {
			c.curves[p.Name] = append(c.curves[p.Name], chart.Point{
				X: workload.Rate(s.calls),
				Y: p90(r.results.of(s.name, p.Name).Summary),
			})
		}
	}
	return c
}

func (r *report) goals() []goal {
	var goals []goal
	all := append([]study{}, r.others...)
	for _, s := range r.onTrace {
		all = append(all, s.study)
	}
	if len(r.onTrace) > 0 {
		goals = traceGoals(r.onTrace, r.results)
		for _, l := range r.loads {
			goals = append(goals, loadGoals(l)...)
		}
	}
	goals = append(append(goals, patienceGoals(all, r.results)...), otherGoals(r.results)...)
	goals = append(append(goals, harderGoals(r.results)...), r.overloadGoals()...)
	return append(goals, severalGoals(r.several, r.results)...)
}

// print writes all tables.
func (r *report) print() {
	if len(r.onTrace) > 0 {
		r.heading("The real trace", fmt.Sprintf("%d calls, %.1f a second at its own speed. Caches are all servers' together, as a part of the working set of %.0f million tokens. With attention, %d tokens before a token take as long as the rest of its prefill; without, each token takes the same time.",
			len(r.trace), workload.Rate(r.trace), float64(workload.WorkingSet(r.trace))/1e6, attention))
		var studies []study
		for _, s := range r.onTrace {
			studies = append(studies, s.study)
		}
		studies = append(studies, r.attending...)
		r.usual(studies)
		r.figures("Refused calls", studies, func(x result) string { return fmt.Sprintf("%.3f", x.Refused) })
		r.heldTable()
	}
	r.heading("Other workloads", "On 8 servers with caches of 512,000 tokens. The last two count calls from 10 s after the slowing on.")
	r.usual(r.others)
	r.figures("Calls that find their adapter resident", []study{r.others[1], r.others[2]}, func(x result) string { return fmt.Sprintf("%.3f", x.Resident) })
	r.figures("Busiest server's calls / mean", r.others, func(x result) string { return fmt.Sprintf("%.2f", x.busiest) })
	r.heading("Servers and callers that misbehave", "Chats with streamed answers, on 8 servers with caches of 512,000 tokens; of 102,400 with the foreign client, 153,600 with two bytes a token, 307,200 with the same documents. A call whose caller left without a token counts with the time that it waited. Where speeds differ from the assumed one, the first minute does not count.")
	r.usual(r.harder)
	r.figures("Answers with an error, a call", r.harder, func(x result) string { return fmt.Sprintf("%.4f", x.Failed) })
	r.figures("Calls that end without a token", r.harder, func(x result) string { return fmt.Sprintf("%.4f", x.Lost) })
	r.overloadTable()
	r.severalTables()
	r.goalTable()
}

func (r *report) heading(title, text string) { fmt.Fprintf(r.w, "## %s\n\n%s\n\n", title, text) }

// usual writes the figures that all studies have.
func (r *report) usual(studies []study) {
	r.figures("TTFT p90 in seconds", studies, func(x result) string {
		if x.P90 == sim.Never {
			return "refused"
		}
		return fmt.Sprintf("%.2f", p90(x.Summary))
	})
	r.figures("TTFT mean in seconds", studies, func(x result) string { return fmt.Sprintf("%.2f", mean(x.Summary)) })
	r.figures("Cached share of prompt tokens", studies, func(x result) string { return fmt.Sprintf("%.3f", x.Cached) })
}

// figures writes one figure for each study and policy.
func (r *report) figures(title string, studies []study, cell func(result) string) {
	rows := [][]string{append([]string{title}, r.names()...)}
	for _, s := range studies {
		row := []string{s.name}
		for _, p := range r.policies {
			row = append(row, cell(r.results.of(s.name, p.Name)))
		}
		rows = append(rows, row)
	}
	writeTable(r.w, rows)
}

func (r *report) names() []string {
	var names []string
	for _, p := range r.policies {
		names = append(names, p.Name)
	}
	return names
}

func (r *report) heldTable() {
	r.heading("Load", "Calls a second that 16 servers of 24,000 prompt tokens a second hold with a TTFT p90 of 2 s; 0: not even the lowest load. The trace has times rounded to 3 s, so that up to 28 calls arrive at once; spread, each comes at a random moment of its 3 s.")
	rows := [][]string{append([]string{"Calls/s held"}, r.names()...)}
	for _, l := range r.loads {
		row := []string{l.name}
		for _, p := range r.policies {
			row = append(row, fmt.Sprintf("%.1f", held(l.curves[p.Name])))
		}
		rows = append(rows, row)
	}
	writeTable(r.w, rows)
}

func (r *report) severalTables() {
	r.heading("Several pickers", fmt.Sprintf("The waypoint's picker, with replicas that hear from each other within %d ms what they decide. Pinned, which is the default, one of them picks for all calls; split, each picks for a part of the conversations, hears from the others within %d ms, and leaves to them servers that are theirs; shared, one is drawn for each call, and none has servers of its own. A replica cannot have heard of calls that come to others at the same time or so little before, and may send its own to the same server. After a failover the second picks for calls that the first picked for until then: the calls after %d such moments in runs of their own, next to the same calls under one picker that goes on.",
		policy.HeardWithin.Milliseconds(), policy.HeardSoon(shards).Milliseconds(), r.scale.deaths))
	for _, s := range r.several {
		writeTable(r.w, s.table(r.results))
	}
}

func (r *report) goalTable() {
	r.heading("Goals", "Of several fleets the worst counts. On the trace, those at 1× and 2×.")
	rows := [][]string{{"Goal", "Wanted", "Got", "", "Where", "The oracle there", "What holds it back"}}
	for _, g := range r.goals() {
		oracle := ""
		if g.where != "" {
			oracle = fmt.Sprintf("%.2f", g.oracle)
		}
		rows = append(rows, []string{g.name, g.limit(), fmt.Sprintf("%.2f", g.got), g.verdict(), g.where, oracle, g.hindrance()})
	}
	writeTable(r.w, rows)
}

// writeTable writes a Markdown table that is also readable as text.
func writeTable(w io.Writer, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(w, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		fmt.Fprintln(w, "|")
		if n > 0 {
			continue
		}
		for _, width := range widths {
			fmt.Fprintf(w, "|%s", strings.Repeat("-", width+2))
		}
		fmt.Fprintln(w, "|")
	}
	fmt.Fprintln(w)
}

// save writes the tables and the charts into a directory.
func (r *report) save(dir string) error {
	charts := r.charts()
	if err := writeCharts(dir, charts); err != nil {
		return err
	}
	var text bytes.Buffer
	text.WriteString("# How well the picker chooses\n\nWritten by `make quality`; what is simulated says [integration/fleetsim](../../integration/fleetsim/README.md).\n\n")
	for _, name := range chartOrder {
		if c := charts[name]; c != nil {
			fmt.Fprintf(&text, "![%s](%s)\n\n", c.Title, name)
		}
	}
	r.w = &text
	r.print()
	if err := os.WriteFile(filepath.Join(dir, "README.md"), text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the tables: %w", err)
	}
	return nil
}

const (
	loadChart   = "ttft-load.svg"
	spreadChart = "ttft-load-spread.svg"
	cachedChart = "cached-share.svg"
)

var chartOrder = []string{loadChart, spreadChart, cachedChart}

func (r *report) charts() map[string]*chart.Chart {
	out := map[string]*chart.Chart{}
	if len(r.onTrace) == 0 {
		return out
	}
	for i, name := range []string{loadChart, spreadChart} {
		c := &chart.Chart{
			Title: "Time to first token against load: the real trace " + r.loads[i].name + ", 16 servers",
			X:     "calls a second", Y: "TTFT p90, seconds",
			LogY: true, MaxY: 20, Mark: heldAt, MarkName: "2 s",
		}
		for _, p := range r.policies {
			c.Lines = append(c.Lines, chart.Line{Name: p.Name, Points: r.loads[i].curves[p.Name]})
		}
		out[name] = c
	}
	shown := r.onTrace[0]
	for _, s := range r.onTrace {
		if s.speed == 1 && s.fleet.Server.Blocks > shown.fleet.Server.Blocks {
			shown = s // the largest caches, where most can be found
		}
	}
	c := &chart.Chart{
		Title: "Cached share of prompt tokens: the real trace " + shown.name,
		X:     "minutes", Y: "share of the prompt tokens that arrived in 3 minutes",
	}
	for _, p := range r.policies {
		c.Lines = append(c.Lines, chart.Line{Name: p.Name, Points: r.results.of(shown.name, p.Name).share})
	}
	out[cachedChart] = c
	return out
}
