package extproc

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/answer"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// countUsage sets whether a pool counts usage.
func (w *world) countUsage(counts bool) {
	settings := picksettings.Defaults()
	settings.Usage = counts
	w.fleet.Configure(types.NamespacedName{Namespace: "models", Name: "llama"}, settings)
}

// show opens a stream that only shows the answer to a call to a pool.
func (w *world) show(t testing.TB, name string) *exchange {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), pool.UsageHeader, name), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := w.client.Process(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &exchange{t: t, stream: stream, cancel: cancel}
}

func shown(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest {
	m.ObservabilityMode = true
	return m
}

// over waits for the end of a stream that only shows an answer, and checks that it got no reply.
func (x *exchange) over() {
	x.t.Helper()
	if r, err := x.stream.Recv(); !errors.Is(err, io.EOF) {
		x.t.Fatalf("the stream brings %v, %v, want its end with OK", r, err)
	}
}

// counted waits until so many answers were read, and returns their usage.
func (w *world) counted(t testing.TB, answers float64) (tokens answer.Usage, missing float64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); w.metric(t, "usage_answers_total") != answers; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v answers counted, want %v", w.metric(t, "usage_answers_total"), answers)
		}
	}
	of := func(kind string) int { return int(w.metric(t, "usage_tokens_total", "pool="+llama, "kind="+kind)) }
	return answer.Usage{Prompt: of("prompt"), Cached: of("cached"), Completion: of("completion")}, w.metric(t, "usage_answers_total", "usage=missing")
}

const (
	plainAnswer = `{"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":10}}}`
	event       = "data: {\"choices\":[{\"delta\":{\"content\":\"word\"}}]}\n\n"
)

// An answer is counted when it ends, in whichever way, and then its stream is ended.
func TestShownAnswerIsCounted(t *testing.T) {
	half := len(plainAnswer) / 2
	tests := map[string]struct {
		messages []*extprocv3.ProcessingRequest
		wantOver bool // we end the stream
	}{
		"whole":         {[]*extprocv3.ProcessingRequest{answerBody([]byte(plainAnswer), true)}, true},
		"pieces":        {[]*extprocv3.ProcessingRequest{answerBody([]byte(plainAnswer[:half]), false), answerBody([]byte(plainAnswer[half:]), false), answerBody(nil, true)}, true},
		"trailers":      {[]*extprocv3.ProcessingRequest{answerHeaders("200", false), answerBody([]byte(plainAnswer), false), answerTrailers()}, true},
		"end is untold": {[]*extprocv3.ProcessingRequest{answerBody([]byte(plainAnswer), false)}, false},
		"after a request": {[]*extprocv3.ProcessingRequest{
			requestHeaders(false), requestBody([]byte(`{"usage":{"prompt_tokens":7}}`), true), requestTrailers(), {}, answerBody([]byte(plainAnswer), true),
		}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			w.countUsage(true)
			x := w.show(t, llama)
			for _, m := range tt.messages {
				x.send(shown(m))
			}
			if !tt.wantOver {
				x.close()
			} else {
				x.over()
			}
			if got, missing := w.counted(t, 1); got != (answer.Usage{Prompt: 20, Cached: 10, Completion: 5}) || missing != 0 {
				t.Errorf("counted is %+v, and %v without", got, missing)
			}
			if got := w.metric(t, "picks_total") + w.metric(t, "responses_total"); got != 0 {
				t.Errorf("the stream was taken for %v calls", got)
			}
		})
	}
}

// A stream that shows an answer without a body is ended at the headers, and no answer is counted.
func TestShownAnswerWithoutBody(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.countUsage(true)
	x := w.show(t, llama)
	x.send(shown(answerHeaders("204", true)))
	x.over()
	if got, missing := w.counted(t, 0); got != (answer.Usage{}) || missing != 0 {
		t.Errorf("counted is %+v, and %v without", got, missing)
	}
}

// An answer without a usage is no error: it is counted as missing, and nothing is logged.
func TestShownAnswerWithoutUsage(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.countUsage(true)
	x := w.show(t, llama)
	x.send(shown(answerBody([]byte(strings.Repeat(event, 10_000)+"data: [DONE]\n\n"), true)))
	x.over()
	if got, missing := w.counted(t, 1); got != (answer.Usage{}) || missing != 1 {
		t.Errorf("counted is %+v, and %v without", got, missing)
	}
	w.show(t, llama).close() // an answer that never came is none
	w.counted(t, 1)
}

// Where a pool does not count usage, or the limit is reached, an answer is not read, and its stream is ended at once.
func TestNothingIsShownUnasked(t *testing.T) {
	w := newWorldWith(t, poolstate.Options{}, Options{MaxStreams: 1}, fourEndpoints...)
	for _, name := range []string{llama, "models/unknown", "no name"} {
		x := w.show(t, name)
		x.over()
	}
	w.countUsage(true)
	first := w.show(t, llama)
	first.send(shown(answerBody([]byte(plainAnswer[:10]), false)))
	for end := time.Now().Add(10 * time.Second); w.server.shown.Taken() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the first answer is not looked at")
		}
	}
	w.show(t, llama).over() // one more than may be
	call := w.open(t, llama, nil)
	call.send(requestHeaders(true))
	picked(t, call.recv()) // what is shown takes no call's room
	call.close()
	first.send(shown(answerBody([]byte(plainAnswer[10:]), true)))
	first.over()
	w.counted(t, 1)
}

// A drain ends the streams that only show answers. The answers go on.
func TestPartEndsWhatIsShown(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.countUsage(true)
	x := w.show(t, llama)
	x.send(shown(answerBody([]byte(plainAnswer), false)))
	for end := time.Now().Add(10 * time.Second); w.server.shown.Taken() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the answer is not looked at")
		}
	}
	w.server.Part()
	x.over()
}

// Where a proxy sends answers through the picker, they come back unchanged, and are counted if the pool counts usage.
func TestAnswerThroughUsIsCounted(t *testing.T) {
	for name, counts := range map[string]bool{"asked for": true, "not asked for": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			w.countUsage(counts)
			x := w.open(t, llama, withModes(full, full))
			x.send(requestHeaders(true))
			picked(t, x.recv())
			x.send(answerHeaders("200", false))
			isContinue(t, x.recv(), "ResponseHeaders")
			var back strings.Builder
			pieces := []string{strings.Repeat(event, 1000), "data: " + plainAnswer + "\n\n", "data: [DONE]\n\n"}
			for n, piece := range pieces {
				x.send(answerBody([]byte(piece), n == len(pieces)-1))
				back.Write(x.recv().GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody())
			}
			if back.String() != strings.Join(pieces, "") {
				t.Error("the answer came back as another")
			}
			x.close()
			want, answers := answer.Usage{}, 0.0
			if counts {
				want, answers = answer.Usage{Prompt: 20, Cached: 10, Completion: 5}, 1
			}
			w.quiet(t)
			if got, _ := w.counted(t, answers); got != want {
				t.Errorf("counted is %+v, want %+v", got, want)
			}
		})
	}
}

// A stream counts under its pool as soon as it is open; streams that name no existing pool count under none.
func TestStreamsArePools(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	for _, name := range []string{llama, llama, "", "models/unknown", "models/unknown/more"} {
		w.open(t, name, nil)
	}
	for _, tt := range []struct {
		pool string
		want float64
	}{{llama, 2}, {"", 3}} {
		for end := time.Now().Add(10 * time.Second); w.metric(t, "streams_in_flight", "pool="+tt.pool) != tt.want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%v streams of pool %q, want %v", w.metric(t, "streams_in_flight", "pool="+tt.pool), tt.pool, tt.want)
			}
		}
	}
	if got := w.metric(t, "streams_in_flight"); got != 5 {
		t.Errorf("%v streams in all, want 5: a client's name has made a series", got)
	}
}

// A panic while reading an answer ends that stream, and nothing else.
func TestFaultInLooking(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.countUsage(true)
	w.server.tails.New = func() any { return nil }
	x := w.show(t, llama)
	if _, err := x.stream.Recv(); status.Code(err).String() != "OK" && !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v, want OK", err)
	}
	if got := w.metric(t, "panics_total"); got != 1 {
		t.Errorf("%v faults counted, want 1", got)
	}
}

// BenchmarkShownAnswer compares a streamed answer of 1,000 chunks that is only shown with one that passes through the
// picker by full duplex, where every chunk gets a reply. The client is included.
func BenchmarkShownAnswer(b *testing.B) {
	const pieces = 1000
	w := newWorld(b, fourEndpoints...)
	w.countUsage(true)
	b.Run("shown", func(b *testing.B) {
		for b.Loop() {
			x := w.show(b, llama)
			for n := range pieces {
				x.send(shown(answerBody([]byte(event), n == pieces-1)))
			}
			x.over()
			x.cancel()
		}
	})
	b.Run("through us", func(b *testing.B) {
		for b.Loop() {
			x := w.open(b, llama, withModes(none, full))
			x.send(requestHeaders(false))
			x.recv()
			x.send(answerHeaders("200", false))
			x.recv()
			for n := range pieces {
				x.send(answerBody([]byte(event), n == pieces-1))
				x.recv()
			}
			x.close()
			x.cancel()
		}
	})
}
