package extproc

import (
	"fmt"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// pickOne makes a call, always with the same prompt, gets its pick, and ends it.
func pickOne(t *testing.T, w *world) (endpoints string) {
	t.Helper()
	x := w.open(t, llama, withModes(partial, none))
	x.send(requestHeaders(false))
	x.recv()
	x.send(requestBody(completion(1, 4000), true))
	endpoints = metadataPick(x.recv())
	x.send(answerHeaders("200", true))
	x.recv()
	x.close()
	w.quiet(t)
	return endpoints
}

// The span of a pick has all of the explanation of the best candidates, the picked ones first.
func TestSpansSayWhy(t *testing.T) {
	var endpoints []string
	for n := range 2 * tracedCandidates {
		endpoints = append(endpoints, fmt.Sprintf("10.244.0.%d:8000", n+1))
	}
	exporter := tracetest.NewInMemoryExporter()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)).Tracer("test")
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{Tracer: tracer}, endpoints...)
	pickOne(t, w)
	exporter.Reset()
	picked, _, _ := strings.Cut(pickOne(t, w), ",")

	spans := exporter.GetSpans()
	if len(spans) != 1 || len(spans[0].Events) != 1 || spans[0].Events[0].Name != whyEvent {
		t.Fatalf("the spans are %+v, want one with one event %q", spans, whyEvent)
	}
	got := map[string]attribute.Value{}
	for _, a := range spans[0].Events[0].Attributes {
		got[string(a.Key)] = a.Value
	}
	if n := got["inference_waypoint.candidates"].AsInt64(); n != int64(len(endpoints)) {
		t.Errorf("there were %d candidates, want %d", n, len(endpoints))
	}
	if all := got["inference_waypoint.candidate.endpoint"].AsStringSlice(); len(all) != tracedCandidates || all[0] != picked {
		t.Errorf("the best candidates are %v, want %d with the picked %s before others", all, tracedCandidates, picked)
	}
	// The call before cached the prompt at one endpoint.
	for i, n := range got["inference_waypoint.candidate.cached_tokens"].AsInt64Slice() {
		if (n > 0) != (i == 0) {
			t.Errorf("candidate %d has %d tokens cached", i, n)
		}
	}
	costs := got["inference_waypoint.candidate.cost_seconds"].AsFloat64Slice()
	if len(costs) != tracedCandidates || costs[0] >= costs[1] {
		t.Errorf("the costs are %v, want %d, the least first", costs, tracedCandidates)
	}
	for name, value := range got {
		if !strings.HasPrefix(name, columnName("")) {
			continue
		}
		if n := strings.Count(value.String(), ",") + 1; n != tracedCandidates {
			t.Errorf("%s has %d rows, want %d: %s", name, n, tracedCandidates, value.String())
		}
	}
}

// The reasons of a pick are not computed where no trace keeps them.
func TestPicksAreNotExplainedInVain(t *testing.T) {
	always := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.AlwaysSample())).Tracer("test")
	never := sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())).Tracer("test")
	tests := map[string]struct {
		options Options
		want    bool
	}{
		"no tracer":   {Options{}, false},
		"not sampled": {Options{Tracer: never}, false},
		"sampled":     {Options{Tracer: always}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := &session{server: newWorldWith(t, poolstate.Options{Seed: 1}, tt.options, fourEndpoints...).server}
			x.startSpan()
			defer x.end()
			if got := x.recording(); got != tt.want {
				t.Errorf("the reasons are asked for: %v, want %v", got, tt.want)
			}
		})
	}
}
