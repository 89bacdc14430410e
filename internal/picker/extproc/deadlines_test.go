package extproc

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

// Streams that stall before their pick are ended: without any message by an error, so that the pool's failure mode
// decides, and within a body by a refusal. They are counted and logged, and take nothing from other calls.
func TestStreamsThatStandStill(t *testing.T) {
	for name, tt := range map[string]struct {
		bring func(x *exchange)
		want  string
	}{
		"nothing comes": {func(*exchange) {}, "headers"},
		"no body after the headers": {func(x *exchange) {
			x.first = withModes(partial, none)
			x.send(requestHeaders(false))
			isContinue(x.t, x.recv(), "RequestHeaders")
		}, "body"},
		"half of a streamed body": {func(x *exchange) {
			x.first = withModes(full, none)
			x.send(requestHeaders(false))
			x.send(requestBody(completion(1, 10_000), false))
		}, "body"},
		"no body behind a message without a kind": {func(x *exchange) {
			x.first = withModes(partial, none)
			x.send(&extprocv3.ProcessingRequest{})
			x.send(requestHeaders(false))
			isContinue(x.t, x.recv(), "RequestHeaders")
		}, "body"},
	} {
		t.Run(name, func(t *testing.T) {
			log := &safeLog{}
			w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{Log: slog.New(slog.NewTextHandler(log, nil))}, fourEndpoints...)
			w.server.awaitHeaders.within, w.server.awaitBody.within = 50*time.Millisecond, 50*time.Millisecond
			x := w.open(t, llama, nil)
			tt.bring(x)
			if tt.want == "body" {
				reply := x.recv().GetImmediateResponse()
				if got := reply.GetStatus().GetCode(); got != typev3.StatusCode_RequestTimeout || !strings.Contains(string(reply.GetBody()), "stalled_body") {
					t.Errorf("refused with %s: %s", got, reply.GetBody())
				}
			}
			if _, err := x.stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
				t.Fatalf("the stream ends with %v, want DeadlineExceeded", err)
			}
			w.quiet(t)
			if got := w.metric(t, "stream_timeouts_total", "awaited="+tt.want); got != 1 {
				t.Errorf("%v streams counted that wait for the %s, want 1", got, tt.want)
			}
			if got := w.metric(t, "held_body_bytes"); got != 0 {
				t.Errorf("%v bytes held at the end", got)
			}
			if !log.has("awaited=" + tt.want) {
				t.Errorf("the log does not tell of it: %s", log.log.String())
			}
		})
	}
}

// A stream whose proxy does not read is given up in time, even while the picker waits to send the head of the body
// back.
func TestStreamsThatNobodyReadsAreGivenUp(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.server.awaitBody.within = 2 * time.Second // until the body is there for sure
	x := w.open(t, llama, withModes(full, none))
	x.send(requestHeaders(false))
	x.send(requestBody(completion(1, factsLimit), false)) // more than goes into the window of a stream that nobody reads
	begin := time.Now()
	w.quiet(t)
	if took := time.Since(begin); took > refusedWithin+5*time.Second {
		t.Errorf("it took %s", took)
	}
	if got := w.metric(t, "stream_timeouts_total", "awaited=body"); got != 1 {
		t.Errorf("%v streams counted that were given up, want 1", got)
	}
	if n := w.server.streams.Taken() + w.server.pieces.Taken() + w.server.held.Taken(); n != 0 {
		t.Errorf("%d are taken at the end", n)
	}
}

// No deadline covers the wait for an answer: model servers take their time.
func TestStreamsThatWaitForAnAnswerAreLeftAlone(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.server.awaitHeaders.within, w.server.awaitBody.within = 20*time.Millisecond, 20*time.Millisecond
	x := w.open(t, llama, withModes(full, none))
	x.send(requestHeaders(false))
	x.send(requestBody(completion(1, 1000), true))
	picked(t, x.recv())
	x.recv()
	answers := w.open(t, llama, withModes(none, none)) // of a proxy that shows requests to nobody
	answers.send(answerHeaders("200", false))
	isContinue(t, answers.recv(), "ResponseHeaders")
	silent := w.open(t, llama, nil)
	_, _ = silent.stream.Recv() // until a time is over that began after theirs
	time.Sleep(50 * time.Millisecond)
	for _, x := range []*exchange{x, answers} {
		x.send(answerTrailers())
		isContinue(t, x.recv(), "ResponseTrailers")
		x.close()
	}
	w.quiet(t)
}

// Streams without a message take no room from calls. Above MaxStreams of them the oldest is ended.
func TestSilentStreamsKeepNobodyOut(t *testing.T) {
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxStreams: 2}, fourEndpoints...)
	var silent []*exchange
	for n := range 3 {
		silent = append(silent, w.open(t, llama, nil))
		for end := time.Now().Add(10 * time.Second); w.metric(t, "streams_in_flight") < float64(min(n+1, 2)); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the stream does not come")
			}
		}
	}
	if _, err := silent[0].stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("the oldest silent stream ends with %v", err)
	}
	x := w.open(t, llama, nil)
	x.send(requestHeaders(true))
	picked(t, x.recv())
	last := silent[2] // one of them may still become a call
	last.send(requestHeaders(true))
	picked(t, last.recv())
	over := w.open(t, llama, nil)
	over.send(requestHeaders(true))
	if _, err := over.stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the stream that is one too many ends with %v", err)
	}
}

// Whenever the caller goes away, the call leaves nothing behind, and all room serves other calls.
func TestCallersThatVanish(t *testing.T) {
	const rounds = 3
	steps := []struct {
		phase string
		do    func(x *exchange)
	}{
		{"before a message", func(*exchange) {}},
		{"after the headers", func(x *exchange) { x.send(requestHeaders(false)) }},
		{"with half of the body", func(x *exchange) { x.send(requestBody(completion(1, 10_000)[:5000], false)) }},
		{"after the pick", func(x *exchange) {
			x.send(requestBody(completion(1, 10_000)[5000:], true))
			picked(x.t, x.recv())
			x.recv()
		}},
		{"after an answer's headers without a status", func(x *exchange) {
			x.send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
				ResponseHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{}},
			}})
			isContinue(x.t, x.recv(), "ResponseHeaders")
		}},
		{"with half of the answer", func(x *exchange) {
			x.send(answerBody([]byte("half"), false))
			x.recv()
		}},
		{"after the answer", func(x *exchange) {
			x.send(answerBody([]byte("half"), true))
			x.recv()
		}},
	}
	for last, step := range steps {
		t.Run(step.phase, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxStreams: rounds}, fourEndpoints...)
			for range rounds {
				x := w.open(t, llama, withModes(full, full))
				for _, step := range steps[:last+1] {
					step.do(x)
				}
				x.cancel()
			}
			for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // it may be over before the server has seen it
				x := w.open(t, llama, nil)
				_ = x.stream.Send(requestHeaders(true)) // one that is turned away may be over by now
				if reply, err := x.stream.Recv(); err == nil && reply.GetImmediateResponse() == nil {
					x.close()
					break
				}
				if time.Now().After(end) {
					t.Fatal("there is no room for another call")
				}
			}
			w.quiet(t)
			if got := w.metric(t, "held_body_bytes"); got != 0 {
				t.Errorf("%v bytes held at the end", got)
			}
			if silent, bodiless := w.server.awaitHeaders.count(), w.server.awaitBody.count(); silent+bodiless != 0 {
				t.Errorf("%d and %d streams are waited for", silent, bodiless)
			}
			if got := w.metric(t, "panics_total"); got != 0 {
				t.Errorf("%v faults", got)
			}
		})
	}
}

// The calls of a proxy whose node died end within seconds.
func TestDeadProxiesLeaveNoCalls(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 seconds")
	}
	t.Parallel()
	w := newWorld(t, fourEndpoints...)
	mute := &muteConn{mute: make(chan struct{})}
	w.client = dial(t, serveOnly(t, w.server.Register, ServerOptions(16<<20)...),
		grpc.WithContextDialer(func(_ context.Context, address string) (_ net.Conn, err error) {
			mute.Conn, err = net.Dial("tcp", address)
			return mute, err
		}))
	x := w.open(t, llama, withModes(partial, none))
	x.send(requestHeaders(true))
	picked(t, x.recv())
	close(mute.mute)
	for end := time.Now().Add(time.Minute); w.metric(t, "requests_in_flight") > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the call is in flight a minute after its proxy died")
		}
	}
}

// muteConn is a connection that is open and carries nothing any more.
type muteConn struct {
	net.Conn
	mute chan struct{}
}

func (c *muteConn) Write(b []byte) (int, error) {
	select {
	case <-c.mute:
		return len(b), nil
	default:
		return c.Conn.Write(b)
	}
}

// count returns how many sessions wait.
func (p *waitlist) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}
