package extproc

import (
	"errors"
	"io"
	"runtime"
	"testing"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// A proxy may ask only about the pools whose tokens it has, also on streams that only show answers. A proxy that names
// the probe pool is refused like any other.
func TestAdmits(t *testing.T) {
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{
		Admits: func(pool, token string) bool { return token == "of "+pool },
	}, fourEndpoints...)
	tests := map[string]struct {
		opening []string
		want    codes.Code
		label   string // of the refusal that is counted; empty where none is
	}{
		"its own pool":         {[]string{pool.NameHeader, llama, pool.TokenHeader, "of " + llama}, codes.OK, ""},
		"another's":            {[]string{pool.NameHeader, llama, pool.TokenHeader, "of models/other"}, codes.PermissionDenied, "pool=" + llama},
		"no token":             {[]string{pool.NameHeader, llama}, codes.PermissionDenied, "pool=" + llama},
		"an unknown pool":      {[]string{pool.NameHeader, "models/none"}, codes.PermissionDenied, "pool="},
		"answers of another's": {[]string{pool.UsageHeader, llama}, codes.PermissionDenied, ""},
		"the pool of probes":   {[]string{pool.NameHeader, "/probe"}, codes.PermissionDenied, "pool="},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			before := w.metric(t, "refusals_total", "reason=not_admitted", tt.label)
			x := w.openWith(t, nil, tt.opening...)
			defer x.close()
			_ = x.stream.Send(requestHeaders(true)) // the stream may have ended already, which Recv tells
			reply, err := x.stream.Recv()
			if status.Code(err) != tt.want {
				t.Fatalf("the stream ends with %v, want %v", err, tt.want)
			}
			if tt.want == codes.OK {
				picked(t, reply)
			}
			want := 0.0
			if tt.label != "" {
				want = 1
			}
			if got := w.metric(t, "refusals_total", "reason=not_admitted", tt.label) - before; tt.label != "" && got != want {
				t.Errorf("%v refusals counted under %s, want %v", got, tt.label, want)
			}
		})
	}
}

// Where a namespace's long prompts take all turns at the processors, its own late calls are picked by load, and another
// namespace's call has the next turn.
func TestReadingTakesTurns(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	w.set("hostile/qwen", fourEndpoints...)
	for range runtime.GOMAXPROCS(0) { // they read for ever
		w.server.reading.Enter("hostile", 0)
	}
	call := func(name string) *exchange {
		x := w.open(t, name, withModes(partial, none))
		x.send(requestHeaders(false))
		isContinue(t, x.recv(), "RequestHeaders")
		x.send(requestBody(completion(1, 3*cheapBody), true))
		return x
	}
	late := call("hostile/qwen")
	defer late.close()
	picked(t, late.recv())
	if got := w.metric(t, "picks_unread_total", "pool=hostile/qwen"); got != 1 {
		t.Errorf("%v picks are counted as unread, want 1", got)
	}
	begin := time.Now()
	victim := call(llama)
	defer victim.close()
	w.server.reading.Leave()
	picked(t, victim.recv())
	if got := w.metric(t, "picks_unread_total", "pool="+llama); got != 0 {
		t.Errorf("the other namespace's prompt is not read, %v after it came", time.Since(begin))
	}
}

// Proxies that send long chunks and read no replies hold a bounded part of the memory; other namespaces have theirs.
func TestPiecesThatNobodyTakesBack(t *testing.T) {
	const most, piece, streams = 8 << 20, 1 << 20, 40
	w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxHeldBytes: most}, fourEndpoints...)
	w.set("hostile/qwen", fourEndpoints...)
	body := completion(1, piece-1000)
	for range streams {
		x := w.open(t, "hostile/qwen", withModes(full, none))
		x.send(requestHeaders(false))
		go func() { // it blocks, or fails with the stream
			for range 4 { // more than goes into the window of a stream that nobody reads
				_ = x.stream.Send(requestBody(body, false))
			}
		}()
	}
	refused := func() float64 { return w.metric(t, "refusals_total", "reason=overloaded", "pool=hostile/qwen") }
	for end := time.Now().Add(10 * time.Second); refused() < 20; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v of %d streams are ended", refused(), streams)
		}
	}
	if got := w.server.pieces.Taken(); got > most {
		t.Errorf("%d bytes wait for those who sent them, want %d at most", got, most)
	}
	x := w.open(t, llama, withModes(full, none))
	defer x.close()
	fullDuplex(x, completion(1, 200_000), 50_000, false)
}

// Where the room for chunks on their way back is used up, streams end at chunks that would be sent back, and only there: a
// body that comes whole, or is only shown, takes no such room.
func TestOnlyChunksThatAreSentBackTakeRoom(t *testing.T) {
	const most = leastPieces
	long := completion(1, 2*chunkLimit)
	observed := requestBody(long, false)
	observed.ObservabilityMode = true
	telling := requestBody(long, false)
	withModes(full, none)(telling)
	type messages []*extprocv3.ProcessingRequest
	tests := map[string]struct {
		request, answer procmodev3.ProcessingMode_BodySendMode
		messages        messages
		want            codes.Code
	}{
		"a request's chunk":                           {full, none, messages{requestHeaders(false), requestBody(long, false)}, codes.ResourceExhausted},
		"a request's chunk, first":                    {full, none, messages{requestBody(long, false)}, codes.ResourceExhausted},
		"a request's chunk that tells so":             {whole, none, messages{requestHeaders(false), telling}, codes.ResourceExhausted},
		"a whole request, first":                      {whole, none, messages{requestBody(long, true)}, codes.OK},
		"a shown request":                             {full, none, messages{observed}, codes.OK},
		"an answer's chunk":                           {full, full, messages{requestHeaders(true), answerBody(long, false)}, codes.ResourceExhausted},
		"an answer's chunk, where requests are whole": {whole, full, messages{requestHeaders(true), answerBody(long, false)}, codes.ResourceExhausted},
		"a whole answer, where requests are chunks":   {full, whole, messages{requestHeaders(true), answerBody(long, true)}, codes.OK},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxHeldBytes: most}, fourEndpoints...)
			w.server.pieces.Of(w.server.tenantOf(llama)).Take(most)
			x := w.open(t, llama, withModes(tt.request, tt.answer))
			for _, m := range tt.messages {
				x.send(m)
			}
			if err := x.stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			var err error
			for err == nil {
				_, err = x.stream.Recv()
			}
			if errors.Is(err, io.EOF) {
				err = nil
			}
			if got := status.Code(err); got != tt.want {
				t.Errorf("the stream ends with %v, want %v", err, tt.want)
			}
			w.quiet(t)
			if got := w.server.pieces.Taken(); got != most {
				t.Errorf("%d bytes are taken at the end, want %d", got, most)
			}
		})
	}
}
