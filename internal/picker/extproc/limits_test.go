package extproc

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// brokenClock panics as often as set.
type brokenClock struct{ faults atomic.Int32 }

func (c *brokenClock) now() time.Duration {
	if c.faults.Add(-1) >= 0 {
		panic("the clock is broken")
	}
	return time.Second
}

// safeLog is a log that several goroutines write.
type safeLog struct {
	mu  sync.Mutex
	log strings.Builder
}

func (l *safeLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

func (l *safeLog) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.log.String(), text)
}

func TestFaults(t *testing.T) {
	faulty := func(t *testing.T) (*world, *brokenClock, *safeLog) {
		clock, log := &brokenClock{}, &safeLog{}
		w := newWorldWith(t, poolstate.Options{Seed: 1, Clock: clock.now}, Options{Log: slog.New(slog.NewTextHandler(log, nil))}, fourEndpoints...)
		return w, clock, log
	}
	check := func(t *testing.T, w *world, log *safeLog, want float64) {
		t.Helper()
		w.quiet(t)
		if got := w.metric(t, "panics_total"); got != want {
			t.Errorf("%v faults counted, want %v", got, want)
		}
		if !log.has("the clock is broken") || !log.has("session.go") {
			t.Errorf("the log does not tell what and where: %s", log.log.String())
		}
	}
	t.Run("one in the pick: picked all the same", func(t *testing.T) {
		for name, bring := range ways {
			t.Run(name, func(t *testing.T) {
				w, clock, log := faulty(t)
				clock.faults.Store(1)
				x := w.open(t, llama, nil)
				if got := bring(x, completion(1, 2000)); len(got) != 3 {
					t.Errorf("the pick is %v, want three endpoints", got)
				}
				x.close()
				check(t, w, log, 1)
			})
		}
	})
	t.Run("two in the pick: an error, and the pool's failure mode says the rest", func(t *testing.T) {
		w, clock, log := faulty(t)
		clock.faults.Store(2)
		x := w.open(t, llama, nil)
		x.send(requestHeaders(true))
		if _, err := x.stream.Recv(); status.Code(err) != codes.Internal || strings.Contains(err.Error(), "clock") {
			t.Fatalf("the stream ends with %v, want an internal error that tells nothing of the inside", err)
		}
		check(t, w, log, 2)
		// The next call is served.
		y := w.open(t, llama, nil)
		y.send(requestHeaders(true))
		picked(t, y.recv())
	})
	t.Run("two in the pick for a streamed body: the call is told why", func(t *testing.T) {
		for _, whole := range []bool{false, true} { // whether the body ends with the chunk that decides
			w, clock, log := faulty(t)
			clock.faults.Store(2)
			x := w.open(t, llama, withModes(full, none))
			x.send(requestHeaders(false))
			x.send(requestBody(completion(1, factsLimit), whole))
			reply := x.recv().GetImmediateResponse()
			if got := reply.GetStatus().GetCode(); got != typev3.StatusCode_InternalServerError || strings.Contains(string(reply.GetBody()), "clock") {
				t.Errorf("refused with %s: %s", got, reply.GetBody())
			}
			if _, err := x.stream.Recv(); status.Code(err) != codes.Internal {
				t.Errorf("the stream ends with %v", err)
			}
			check(t, w, log, 2)
		}
	})
	t.Run("in the bookkeeping of the answer: the answer goes on", func(t *testing.T) {
		w, clock, log := faulty(t)
		x := w.open(t, llama, withModes(partial, full))
		x.send(requestHeaders(true))
		second := picked(t, x.recv())[1]
		clock.faults.Store(1)
		x.send(withMetadata(answerHeaders("200", false), lbNamespace, servedKey, second))
		isContinue(t, x.recv(), "ResponseHeaders")
		x.send(answerBody([]byte("data"), true))
		if got := x.recv().GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody(); string(got) != "data" {
			t.Errorf("the answer's body came back as %q", got)
		}
		x.close()
		check(t, w, log, 1)
	})
	t.Run("at the end: the stream ends well", func(t *testing.T) {
		w, clock, _ := faulty(t)
		x := w.open(t, llama, nil)
		x.send(requestHeaders(true))
		picked(t, x.recv())
		clock.faults.Store(1)
		if err := x.stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := x.stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("the stream ends with %v", err)
		}
		if got := w.metric(t, "panics_total"); got != 1 {
			t.Errorf("%v faults counted, want 1", got)
		}
	})
}

func TestStreamsOverTheLimitAreEnded(t *testing.T) {
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxStreams: 2}, fourEndpoints...)
	var open []*exchange
	for range 2 {
		x := w.open(t, llama, nil)
		x.send(requestHeaders(true))
		picked(t, x.recv())
		open = append(open, x)
	}
	for name, tt := range map[string]struct{ pool, label string }{
		"a pool":       {llama, "pool=models/llama"},
		"no such pool": {"models/none", "pool="},
	} {
		t.Run(name, func(t *testing.T) {
			x := w.open(t, tt.pool, withModes(partial, none))
			x.send(requestHeaders(false))
			if _, err := x.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
				t.Errorf("the stream ends with %v, want that the failure mode decides", err)
			}
			if got := w.metric(t, "refusals_total", "reason=overloaded", tt.label); got != 1 {
				t.Errorf("%v refusals counted, want 1", got)
			}
		})
	}
	t.Run("a body that is streamed: Envoy does not fail open, so it is told why", func(t *testing.T) {
		x := w.open(t, llama, withModes(full, none))
		x.send(requestHeaders(false))
		if reply := x.recv().GetImmediateResponse(); reply.GetStatus().GetCode() != typev3.StatusCode_TooManyRequests || !strings.Contains(string(reply.GetBody()), "overloaded") {
			t.Errorf("the reply is %v, want 429", reply)
		}
		if _, err := x.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("the stream ends with %v", err)
		}
	})
	// One that ends makes room for the next.
	open[0].close()
	for end := time.Now().Add(10 * time.Second); w.metric(t, "streams_in_flight") > 1; {
		if time.Now().After(end) {
			t.Fatal("the stream does not end")
		}
	}
	x := w.open(t, llama, nil)
	x.send(requestHeaders(true))
	picked(t, x.recv())
}

// At the limit on held bytes, a call is picked on the part of its body that has come, and no byte is lost.
func TestHeldBytesAreBounded(t *testing.T) {
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxHeldBytes: 100_000}, fourEndpoints...)
	holding := w.open(t, llama, withModes(full, none))
	holding.send(requestHeaders(false))
	holding.send(requestBody(completion(1, 80_000), false))
	for w.metric(t, "held_body_bytes") < 80_000 {
		runtime.Gosched()
	}

	x := w.open(t, llama, withModes(full, none))
	body := completion(2, 90_000)
	x.send(requestHeaders(false))
	x.send(requestBody(body[:10_000], false))
	x.send(requestBody(body[10_000:40_000], false)) // now it is too much
	picked(t, x.recv())
	var back []byte
	for len(back) < 40_000 {
		back = append(back, x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()...)
	}
	x.send(requestBody(body[40_000:], true))
	last := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
	if back = append(back, last.GetBody()...); !bytes.Equal(back, body) || !last.GetEndOfStream() {
		t.Errorf("of %d bytes %d came back, or others; the end is %v", len(body), len(back), last.GetEndOfStream())
	}
	x.close()
	holding.cancel()
	w.quiet(t)
	if got := w.metric(t, "held_body_bytes"); got != 0 {
		t.Errorf("%v bytes held at the end", got)
	}
}

// A session whose call ends at the same time as the drain ends its stream is not used after its release. The race
// detector checks that.
func TestPartWhileCallsEnd(t *testing.T) {
	for range 5 {
		w := newWorld(t, fourEndpoints...)
		var open []*exchange
		for range 100 {
			x := w.open(t, llama, withModes(partial, none))
			x.send(requestHeaders(true))
			picked(t, x.recv())
			open = append(open, x)
		}
		var ending sync.WaitGroup
		ending.Go(func() {
			for _, x := range open {
				x.cancel()
			}
		})
		ending.Go(w.server.Part)
		ending.Wait()
		w.quiet(t)
	}
}

// Part ends streams with OK, which harms no call: an error would make the proxy of a FailClose pool cut the answer off.
func TestPart(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	waiting := w.open(t, llama, withModes(partial, none))
	waiting.send(requestHeaders(false))
	isContinue(t, waiting.recv(), "RequestHeaders")
	var inFlight []*exchange
	for range 10 {
		x := w.open(t, llama, withModes(partial, none))
		x.send(requestHeaders(true))
		picked(t, x.recv())
		inFlight = append(inFlight, x)
	}
	w.server.Part()
	w.server.Part()
	for _, x := range inFlight {
		if _, err := x.stream.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("a stream ends with %v, want OK", err)
		}
	}
	// A stream that waits for its pick still gets it, and ends then.
	waiting.send(requestBody(completion(1, 100), true))
	picked(t, waiting.recv())
	if _, err := waiting.stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the last stream ends with %v, want OK", err)
	}
	w.quiet(t)
}

// No goroutine uses a session after its release, however many streams end by themselves and by Part at once: the race
// detector and the session's mutex check that.
func TestPartWhileAnswersPass(t *testing.T) {
	const rounds, streams = 4, 500
	for range rounds {
		w := newWorld(t, fourEndpoints...)
		begin, pause := make(chan struct{}), make(chan struct{})
		var passing, done sync.WaitGroup
		for range streams {
			x := w.open(t, llama, withModes(full, full))
			x.send(requestHeaders(true))
			picked(t, x.recv())
			x.send(answerHeaders("200", false))
			isContinue(t, x.recv(), "ResponseHeaders")
			passing.Add(1)
			done.Go(func() {
				<-begin
				chunk := answerBody([]byte("data"), false)
				_ = x.stream.Send(chunk)
				passing.Done()
				for pausing := false; !pausing && x.stream.Send(chunk) == nil; {
					if _, err := x.stream.Recv(); err != nil {
						break
					}
					select {
					case <-pause:
						pausing = true
					default:
					}
				}
				for { // what was sent back before the end
					if _, err := x.stream.Recv(); err != nil {
						if !errors.Is(err, io.EOF) {
							t.Errorf("a stream ends with %v, want OK", err)
						}
						return
					}
				}
			})
		}
		close(begin)
		passing.Wait()
		w.server.Part()
		close(pause)
		done.Wait()
		w.quiet(t)
		for range streams { // whatever was given back serves the next calls
			x := w.open(t, llama, nil)
			x.send(requestHeaders(true))
			picked(t, x.recv())
			x.cancel()
		}
		w.quiet(t)
	}
}

func TestSpans(t *testing.T) {
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tests := map[string]struct {
		pool      string
		header    []string
		wantTrace string
		want      map[string]string
	}{
		"in the caller's trace": {llama, []string{"traceparent", parent}, "0af7651916cd43dd8448eb211c80319c", map[string]string{
			"inference_waypoint.pool": llama, "gen_ai.request.model": "llama", "inference_waypoint.prompt_tokens": "250", "inference_waypoint.cached_tokens": "0",
		}},
		"in a trace of its own": {llama, nil, "", map[string]string{"inference_waypoint.pool": llama}},
		"with a wrong header":   {llama, []string{"traceparent", "nonsense"}, "", map[string]string{"inference_waypoint.pool": llama}},
		"of a refusal": {"models/none", []string{"traceparent", parent}, "0af7651916cd43dd8448eb211c80319c", map[string]string{
			"inference_waypoint.pool": "models/none", "inference_waypoint.refusal": "unknown_pool",
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			spans := tracetest.NewSpanRecorder()
			tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
			w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{Tracer: tracer}, fourEndpoints...)
			x := w.open(t, tt.pool, withModes(partial, none))
			x.send(requestHeaders(false, tt.header...))
			x.recv()
			x.send(requestBody(completion(1, 1000), true))
			r := x.recv()
			ended := spans.Ended()
			if len(ended) != 1 {
				t.Fatalf("%d spans have ended with the pick, want 1", len(ended))
			}
			if got := ended[0].SpanContext().TraceID().String(); tt.wantTrace != "" && got != tt.wantTrace {
				t.Errorf("the trace is %s, want %s", got, tt.wantTrace)
			}
			got := map[string]string{}
			for _, a := range ended[0].Attributes() {
				got[string(a.Key)] = a.Value.String()
			}
			for k, v := range tt.want {
				if got[k] != v {
					t.Errorf("attribute %s is %q, want %q", k, got[k], v)
				}
			}
			if r.GetImmediateResponse() == nil {
				if want := metadataPick(r); got["inference_waypoint.endpoints"] != want {
					t.Errorf("the span tells of endpoints %q, the reply of %q", got["inference_waypoint.endpoints"], want)
				}
			}
		})
	}
}

// A client's text takes little room in a span and in the log, however long it is.
func TestLongTextsAreClipped(t *testing.T) {
	long := strings.Repeat("m", 1<<19)
	spans, log := tracetest.NewSpanRecorder(), &safeLog{}
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	w := newWorldWith(t, poolstate.Options{Seed: 1},
		Options{Tracer: tracer, Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, fourEndpoints...)
	x := w.open(t, llama, withModes(partial, none))
	x.send(requestHeaders(false))
	x.recv()
	x.send(requestBody([]byte(`{"model":"`+long+`","prompt":"x"}`), true))
	picked(t, x.recv())
	for _, a := range spans.Ended()[0].Attributes() {
		if got := len(a.Value.String()); got > textLimit {
			t.Errorf("attribute %s has %d bytes, want at most %d", a.Key, got, textLimit)
		}
	}
	if log.has(strings.Repeat("m", textLimit+1)) {
		t.Errorf("the log has more than %d bytes of the model's name", textLimit)
	}
}

// The span of a call that ends before its pick ends too.
func TestSpanOfACallThatVanishes(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	tracer := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)).Tracer("test")
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{Tracer: tracer}, fourEndpoints...)
	x := w.open(t, llama, withModes(partial, none))
	x.send(requestHeaders(false))
	x.recv()
	x.cancel()
	w.quiet(t)
	if got := len(spans.Ended()); got != 1 {
		t.Errorf("%d spans have ended, want 1", got)
	}
}

func TestPicksAndRefusalsAreLogged(t *testing.T) {
	for level, want := range map[slog.Level]bool{slog.LevelDebug: true, slog.LevelInfo: false} {
		log := &safeLog{}
		w := newWorldWith(t, poolstate.Options{Seed: 1},
			Options{Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: level}))}, fourEndpoints[:1]...)
		x := w.open(t, llama, nil)
		x.send(requestHeaders(true))
		picked(t, x.recv())
		y := w.open(t, "models/none", nil)
		y.send(requestHeaders(true))
		y.recv()
		if got := log.has("endpoints=10.244.0.1:8000"); got != want {
			t.Errorf("at level %s the pick is told: %v, want %v", level, got, want)
		}
		if !log.has("reason=unknown_pool") {
			t.Errorf("at level %s the refusal is not told", level)
		}
	}
}

func TestPoolDeletedDuringRequest(t *testing.T) {
	name := types.NamespacedName{Namespace: "models", Name: "llama"}
	for mode, bring := range ways {
		t.Run("after the pick, "+mode, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			x := w.open(t, llama, nil)
			bring(x, completion(1, 2000))
			w.fleet.RemovePool(name)
			x.send(withMetadata(answerHeaders("200", true), lbNamespace, servedKey, "10.244.0.9:8000"))
			isContinue(t, x.recv(), "ResponseHeaders")
			x.close()
			w.quiet(t)
		})
	}
	t.Run("before the pick", func(t *testing.T) {
		w := newWorld(t, fourEndpoints...)
		x := w.open(t, llama, withModes(partial, none))
		x.send(requestHeaders(false))
		isContinue(t, x.recv(), "RequestHeaders")
		w.fleet.RemovePool(name)
		x.send(requestBody(completion(1, 1000), true))
		isRefused(t, x.recv(), "unknown_pool")
		w.quiet(t)
	})
}

// heap returns the bytes in use after a collection, stacks included.
func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// A body of 100 MB passes in chunks, of which no more than the head is held.
func TestHugeBody(t *testing.T) {
	const size, chunk = 100 << 20, 64 << 10
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(full, none))
	piece := bytes.Repeat([]byte("x"), chunk)
	before := heap()
	sent := make(chan error, 1)
	go func() {
		err := x.stream.Send(requestHeaders(false))
		for n := 0; n < size && err == nil; n += chunk {
			err = x.stream.Send(requestBody(piece, n+chunk >= size))
		}
		sent <- err
	}()
	back, most := 0, 0
	for back < size {
		c := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
		back += len(c.GetBody())
		if back%(10<<20) == 0 {
			most = max(most, heap()-before)
		}
		if c.GetEndOfStream() != (back == size) {
			t.Fatalf("after %d bytes the end is %v", back, c.GetEndOfStream())
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if most > 40<<20 { // the windows of both sides included
		t.Errorf("a body of 100 MiB takes %d MiB of memory", most>>20)
	}
	x.close()
	w.quiet(t)
}

// The longest message that a proxy sends by default is accepted; a message that would only fill the memory is not.
func TestLargestMessage(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	for length, taken := range map[int]bool{2 << 20: true, 16<<20 - 1: false} {
		x := w.open(t, llama, withModes(partial, none))
		x.send(requestHeaders(false))
		isContinue(t, x.recv(), "RequestHeaders")
		_ = x.stream.Send(requestBody(bytes.Repeat([]byte(" "), length), false)) // the server ends the stream before it is through
		if _, err := x.stream.Recv(); (err == nil) != taken || !taken && status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%d bytes: %v, want taken %v", length, err, taken)
		}
		x.close()
	}
}

// A message with a body of 100 MB is refused with a clear error, and the connection goes on.
func TestHugeMessage(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(whole, none))
	x.send(requestHeaders(false))
	isContinue(t, x.recv(), "RequestHeaders")
	_ = x.stream.Send(requestBody(make([]byte, 100<<20), true)) // the server ends the stream before it is through
	if _, err := x.stream.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "larger than max") {
		t.Errorf("the stream ends with %v, want a word on the size", err)
	}
	w.quiet(t)
	y := w.open(t, llama, nil)
	y.send(requestHeaders(true))
	picked(t, y.recv())
}

// 10,000 calls wait for their answers; their memory includes the client's side.
func TestIdleStreamsTakeLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const streams = 10_000
	w := newWorld(t, fourEndpoints...)
	warm := w.open(t, llama, nil)
	warm.send(requestHeaders(true))
	warm.recv()
	before, routines := heap(), runtime.NumGoroutine()
	var open []*exchange
	for range streams {
		x := w.open(t, llama, withModes(partial, none))
		x.send(requestHeaders(false))
		isContinue(t, x.recv(), "RequestHeaders")
		x.send(requestBody(completion(1, 4096), true))
		picked(t, x.recv())
		open = append(open, x)
	}
	each := (heap() - before) / streams
	t.Logf("an idle stream takes %d bytes and %.1f goroutines, client included", each, float64(runtime.NumGoroutine()-routines)/streams)
	if each > 80<<10 {
		t.Errorf("an idle stream takes %d bytes, want at most 80 KiB", each)
	}
	for _, x := range append(open, warm) {
		x.cancel()
	}
	w.quiet(t)
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > routines; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d goroutines are left, %d there were before", runtime.NumGoroutine(), routines)
		}
	}
}

// One namespace's calls, whatever pools they name, leave room for another's.
func TestTenantLeavesRoom(t *testing.T) {
	for hostile, label := range map[string]string{"hostile/qwen": "pool=hostile/qwen", "models/none": "pool="} {
		t.Run(hostile, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxStreams: 50}, fourEndpoints...)
			w.set("hostile/qwen", fourEndpoints...)
			for range 60 {
				x := w.open(t, hostile, withModes(full, none))
				defer x.cancel()
				x.send(requestHeaders(false)) // and no body
			}
			for end := time.Now().Add(10 * time.Second); w.metric(t, "refusals_total", "reason=overloaded", label) != 20; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("not 20 of 60 calls are refused where one may have 40 of 50")
				}
			}
			for range 5 {
				x := w.open(t, llama, nil)
				defer x.close()
				x.send(requestHeaders(true))
				picked(t, x.recv())
			}
		})
	}
}

// As many calls with a stalled body as one namespace may have take nothing from another namespace: all its calls are
// picked on their bodies.
func TestStalledBodiesLeaveOthersAlone(t *testing.T) {
	for name, mode := range map[string]procmodev3.ProcessingMode_BodySendMode{"streamed": full, "buffered": partial} {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxStreams: 500, MaxHeldBytes: 1 << 20}, fourEndpoints...)
			w.set("hostile/qwen", fourEndpoints...)
			for range 450 { // of which it may have 400
				x := w.open(t, "hostile/qwen", withModes(mode, none))
				x.send(requestHeaders(false))
				if mode == full { // a proxy that buffers does not show what it has
					x.send(requestBody([]byte("{"), false))
				}
			}
			for end := time.Now().Add(10 * time.Second); w.metric(t, "refusals_total", "reason=overloaded") != 50; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("not 50 of 450 calls are refused where one may have 400 of 500")
				}
			}
			home := map[int]string{}
			for n := range 200 {
				x := w.open(t, llama, withModes(mode, none))
				conversation := n % 10
				x.send(requestHeaders(false))
				if mode == partial {
					isContinue(t, x.recv(), "RequestHeaders")
				}
				x.send(requestBody(completion(conversation, 10_000), true))
				got := picked(t, x.recv())[0]
				if mode == full {
					x.recv() // the body
				}
				x.answer("200", true)
				x.close()
				if before := home[conversation]; before != "" && got != before {
					t.Errorf("a call of conversation %d goes to %s, the one before went to %s", conversation, got, before)
				}
				home[conversation] = got
			}
			if got := w.metric(t, "stream_timeouts_total"); got != 0 {
				t.Errorf("%v streams were given up", got)
			}
		})
	}
}

// A proxy cannot pass its calls for probes to avoid the limits: each process names its probe pool anew.
func TestProbeCannotBeForged(t *testing.T) {
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{Log: slog.New(slog.DiscardHandler), MaxStreams: 1}, fourEndpoints...)
	x := w.open(t, llama, nil)
	x.send(requestHeaders(true))
	picked(t, x.recv())
	for _, name := range []string{"/probe", "/probe-", "/"} {
		forged := w.open(t, name, nil)
		forged.send(requestHeaders(true))
		if _, err := forged.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("pool %s: got %v, want that there is no room", name, err)
		}
	}
}
