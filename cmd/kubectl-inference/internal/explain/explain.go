// Package explain formats a picker's explanation of where it would send a request. It must not rank endpoints itself.
package explain

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/output"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// Report is a picker's explanation.
type Report struct {
	livestate.Explanation
	// Names are the names of pods, where known, by endpoint (ip:port).
	Names map[string]string `json:"pods,omitempty"`
	// Picker is the replica that answered. Each replica knows only the calls to its own pools.
	Picker string `json:"picker"`
}

// Text names the endpoint that would get the request, and has a row for each endpoint, the best first. Wide adds all terms
// of the costs.
func (r Report) Text(wide bool) string {
	if len(r.Candidates) == 0 {
		return fmt.Sprintf("Pool %s has no endpoint that the request could go to.\n", r.Pool)
	}
	best := r.Candidates[0]
	var out strings.Builder
	fmt.Fprintf(&out, "The request would go to %s: %s.\n", r.name(best.Endpoint), because(best, r.PromptTokens))
	if r.Wait > 0 {
		fmt.Fprintf(&out, "It would wait at the picker first, for about %s: no server would begin with it soon.\n", span(r.Wait))
	}
	model := ""
	if r.Model != "" {
		model = " for model " + r.Model
	}
	fmt.Fprintf(&out, "It has about %d prompt tokens%s. Asked: %s.\n\n", r.PromptTokens, model, r.Picker)
	head := []string{"ENDPOINT", "CACHED", "TO PREFILL", "AHEAD", "IN FLIGHT", "FIRST TOKEN", "COST", "BEHIND THE BEST BY"}
	if wide {
		head = append(head, "ADDRESS", "WAIT", "PREFILL", "OTHERS", "BATCH", "PICKERS", "MEMORY", "ADAPTER", "SESSION", "READING'S AGE", "OBSERVED/EXPECTED")
	}
	rows := [][]string{head}
	for i, c := range r.Candidates {
		row := []string{
			r.name(c.Endpoint), fmt.Sprint(c.CachedTokens), fmt.Sprint(c.UncachedTokens), fmt.Sprintf("%.0f", c.QueueTokens),
			fmt.Sprint(c.InFlight), span(c.FirstToken), span(c.Cost.Total), output.OrDash(behind(best, c, i == 0)),
		}
		if wide {
			row = append(row, c.Endpoint, span(c.Cost.Wait), span(c.Cost.Prefill), span(c.Cost.Others), span(c.Cost.Batch),
				span(c.Cost.Pickers), span(c.Cost.Memory), adapter(c), span(c.Cost.Session), age(c.ReadingAge), output.Times(c.ObservedToExpected))
		}
		rows = append(rows, row)
	}
	out.WriteString(output.Columns(rows))
	return out.String()
}

func (r Report) name(endpoint string) string {
	if name := r.Names[endpoint]; name != "" {
		return name
	}
	return endpoint
}

func because(best livestate.Candidate, prompt int) string {
	said := fmt.Sprintf("it holds %d of the prompt's %d tokens", best.CachedTokens, prompt)
	switch {
	case best.CachedTokens == 0:
		said = "it has the least load, and nothing of the prompt cached"
	case best.CachedTokens >= prompt:
		said = "it holds the whole prompt"
	}
	said += ", and the first token is expected in " + span(best.FirstToken)
	if best.ObservedToExpected != nil {
		said += fmt.Sprintf(" (recent first tokens there took %s times as long as expected)", output.Times(best.ObservedToExpected))
	}
	return said
}

// behind names the bound that ranks a candidate lower, or else the term with the greatest extra cost over the best.
func behind(best, c livestate.Candidate, isBest bool) string {
	if c.Class != "" {
		return c.Class
	}
	if isBest {
		return ""
	}
	terms := []struct {
		name  string
		extra float64
	}{
		{"tokens ahead in the queue", c.Cost.Wait - best.Cost.Wait},
		{"tokens to prefill", c.Cost.Prefill - best.Cost.Prefill},
		{"calls that would wait for it", c.Cost.Others - best.Cost.Others},
		{"calls in the batch", c.Cost.Batch - best.Cost.Batch},
		{"what other pickers may send there", c.Cost.Pickers - best.Cost.Pickers},
		{"the room in its KV cache", c.Cost.Memory - best.Cost.Memory},
		{"an adapter to load", c.Cost.Adapter - best.Cost.Adapter},
		{"the session, which is elsewhere", c.Cost.Session - best.Cost.Session},
	}
	most := terms[0]
	for _, t := range terms[1:] {
		if t.extra > most.extra {
			most = t
		}
	}
	if most.extra <= 0 {
		return "nothing to speak of"
	}
	return fmt.Sprintf("%s (+%s)", most.name, span(most.extra))
}

func adapter(c livestate.Candidate) string {
	if c.AdapterState == "" {
		return "-"
	}
	return fmt.Sprintf("%s (%s)", c.AdapterState, span(c.Cost.Adapter))
}

func age(seconds *float64) string {
	if seconds == nil {
		return "none"
	}
	return span(*seconds)
}

// span formats a time, given in seconds: in milliseconds below 1 s, else in hundredths of a second.
func span(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch abs := math.Abs(seconds); {
	case abs < 0.0005:
		return "0ms"
	case abs < 1:
		return d.Round(time.Millisecond).String()
	default:
		return d.Round(10 * time.Millisecond).String()
	}
}
