package extproc

import (
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/explain"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

const (
	// whyEvent is the name of the event that a pick's span has of its reasons.
	whyEvent = "endpoints ranked"
	// tracedCandidates bounds how many candidates it has: those that could have been picked for a slightly other
	// state, and not the hundreds that could not.
	tracedCandidates = 8
)

// recording says whether the pick's span is one that is kept, so that its reasons are worth the finding.
func (x *session) recording() bool { return x.span != nil && x.span.IsRecording() }

// traceWhy puts the reasons of a pick into its span, as one event. Its attributes are the columns of a table whose rows
// are the candidates, best first, and its time is that of the pick.
func (x *session) traceWhy(why *poolstate.Decision) {
	if why == nil || !x.recording() {
		return
	}
	all := explain.Decision(why).Candidates
	best := all[:min(len(all), tracedCandidates)]
	x.span.AddEvent(whyEvent, trace.WithAttributes(
		attribute.Int("inference_waypoint.candidates", len(all)),
		attribute.Int("inference_waypoint.prompt_blocks", why.PromptBlocks),
		texts("endpoint", best, func(c *livestate.Candidate) string { return c.Endpoint }),
		texts("class", best, func(c *livestate.Candidate) string { return c.Class }),
		texts("adapter", best, func(c *livestate.Candidate) string { return c.AdapterState }),
		counts("cached_tokens", best, func(c *livestate.Candidate) int { return c.CachedTokens }),
		counts("in_flight", best, func(c *livestate.Candidate) int { return c.InFlight }),
		numbers("queue_tokens", best, func(c *livestate.Candidate) float64 { return c.QueueTokens }),
		numbers("reading_age_seconds", best, readingAge),
		numbers("expected_first_token_seconds", best, func(c *livestate.Candidate) float64 { return c.FirstToken }),
		numbers("cost_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Total }),
		numbers("cost_wait_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Wait }),
		numbers("cost_prefill_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Prefill }),
		numbers("cost_others_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Others }),
		numbers("cost_batch_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Batch }),
		numbers("cost_memory_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Memory }),
		numbers("cost_adapter_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Adapter }),
		numbers("cost_session_seconds", best, func(c *livestate.Candidate) float64 { return c.Cost.Session }),
	))
}

// readingAge is -1 where there is no reading: infinity has no place in the JSON that traces are shown in.
func readingAge(c *livestate.Candidate) float64 {
	if c.ReadingAge == nil {
		return -1
	}
	return *c.ReadingAge
}

func texts(name string, of []livestate.Candidate, get func(*livestate.Candidate) string) attribute.KeyValue {
	return attribute.StringSlice(columnName(name), column(of, get))
}

func counts(name string, of []livestate.Candidate, get func(*livestate.Candidate) int) attribute.KeyValue {
	return attribute.IntSlice(columnName(name), column(of, get))
}

func numbers(name string, of []livestate.Candidate, get func(*livestate.Candidate) float64) attribute.KeyValue {
	return attribute.Float64Slice(columnName(name), column(of, get))
}

func columnName(name string) string { return "inference_waypoint.candidate." + name }

func column[T any](of []livestate.Candidate, get func(*livestate.Candidate) T) []T {
	out := make([]T, len(of))
	for i := range of {
		out[i] = get(&of[i])
	}
	return out
}
