package extproc

import (
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/explain"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

const (
	// whyEvent is the name of the span event that holds a pick's reasons.
	whyEvent = "endpoints ranked"
	// tracedCandidates bounds the candidates in the event: the best ones, which a slightly different state could have
	// picked, and not hundreds that it could not.
	tracedCandidates = 8
)

// recording says whether the pick's span is kept, so that the reasons are worth computing.
func (x *session) recording() bool { return x.span != nil && x.span.IsRecording() }

// traceWhy adds the reasons of a pick to its span, as one event. The event's attributes are the columns of a table
// whose rows are the candidates, best first.
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

// readingAge returns -1 where there is no reading: JSON, in which traces are shown, has no infinity.
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
