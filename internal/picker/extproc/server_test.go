package extproc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

const (
	none     = procmodev3.ProcessingMode_NONE
	streamed = procmodev3.ProcessingMode_STREAMED
	whole    = procmodev3.ProcessingMode_BUFFERED
	partial  = procmodev3.ProcessingMode_BUFFERED_PARTIAL
	full     = procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED
)

var fourEndpoints = []string{"10.244.0.1:8000", "10.244.0.2:8000", "10.244.0.3:8000", "10.244.0.4:8000"}

// ways are the ways in which proxies bring a request. Each sends the request as its proxy does and returns the pick.
var ways = map[string]func(x *exchange, body []byte) []string{
	"BUFFERED_PARTIAL": func(x *exchange, body []byte) []string {
		x.first = withModes(partial, none)
		x.send(requestHeaders(false))
		isContinue(x.t, x.recv(), "RequestHeaders")
		x.send(requestBody(body, true))
		return picked(x.t, x.recv())
	},
	"BUFFERED_PARTIAL, body cut": func(x *exchange, body []byte) []string {
		x.first = withModes(partial, none)
		x.send(requestHeaders(false))
		isContinue(x.t, x.recv(), "RequestHeaders")
		x.send(requestBody(body[:len(body)-2], false))
		return picked(x.t, x.recv())
	},
	"BUFFERED": func(x *exchange, body []byte) []string {
		x.first = withModes(whole, none)
		x.send(requestHeaders(false))
		isContinue(x.t, x.recv(), "RequestHeaders")
		x.send(requestBody(body, true))
		return picked(x.t, x.recv())
	},
	"BUFFERED, trailers": func(x *exchange, body []byte) []string {
		x.first = withModes(whole, none)
		x.send(requestHeaders(false))
		isContinue(x.t, x.recv(), "RequestHeaders")
		x.send(requestBody(body, false))
		got := picked(x.t, x.recv())
		x.send(requestTrailers())
		isContinue(x.t, x.recv(), "RequestTrailers")
		return got
	},
	"FULL_DUPLEX_STREAMED, one chunk": func(x *exchange, body []byte) []string {
		x.first = withModes(full, none)
		return fullDuplex(x, body, len(body), false)
	},
	"FULL_DUPLEX_STREAMED, small chunks": func(x *exchange, body []byte) []string {
		x.first = withModes(full, none)
		return fullDuplex(x, body, 100, false)
	},
	"FULL_DUPLEX_STREAMED, trailers": func(x *exchange, body []byte) []string {
		x.first = withModes(full, none)
		return fullDuplex(x, body, 1000, true)
	},
	"mode untold": func(x *exchange, body []byte) []string {
		return fullDuplex(x, body, 1000, false)
	},
}

// fullDuplex sends a body in chunks of a size and checks that it comes back unchanged.
func fullDuplex(x *exchange, body []byte, size int, trailers bool) []string {
	x.t.Helper()
	x.send(requestHeaders(false))
	for chunk := range slices.Chunk(body, size) {
		x.send(requestBody(chunk, false))
	}
	if trailers {
		x.send(requestTrailers())
	} else {
		x.send(requestBody(nil, true))
	}
	got := picked(x.t, x.recv())
	var back []byte
	for ended := false; !ended && (!trailers || len(back) != len(body)); {
		c := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
		if c == nil {
			x.t.Fatal("the reply gives no chunk back")
		}
		if len(c.GetBody()) > 64<<10 && size <= 64<<10 {
			x.t.Errorf("a chunk of %d bytes", len(c.GetBody()))
		}
		back, ended = append(back, c.GetBody()...), c.GetEndOfStream()
	}
	if !bytes.Equal(back, body) {
		x.t.Errorf("of %d bytes %d came back, or others", len(body), len(back))
	}
	if trailers {
		isContinue(x.t, x.recv(), "RequestTrailers")
	}
	return got
}

// A conversation's turns go to one endpoint, and another conversation's elsewhere, however the proxy sends them.
func TestConversationStaysInEveryMode(t *testing.T) {
	for name, bring := range ways {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			home := map[int]string{}
			for turn := 1; turn <= 3; turn++ {
				for conversation := range 6 {
					x := w.open(t, llama, nil)
					got := bring(x, completion(conversation, turn*2000))
					if len(got) != 3 {
						t.Fatalf("the pick is %v, want a list of three", got)
					}
					if turn == 1 {
						home[conversation] = got[0]
					}
					if got[0] != home[conversation] {
						t.Errorf("turn %d of conversation %d goes to %s, turn 1 went to %s", turn, conversation, got[0], home[conversation])
					}
					x.send(answerHeaders("200", true))
					isContinue(t, x.recv(), "ResponseHeaders")
					x.close()
				}
			}
			if got := w.metric(t, "picks_total", "outcome=prefix"); got != 12 {
				t.Errorf("%v picks by prefix, want the 12 later turns", got)
			}
			if got := w.metric(t, "responses_total", "class=2xx"); got != 18 {
				t.Errorf("%v answers counted, want 18", got)
			}
			w.quiet(t)
		})
	}
}

// Where headers cannot wait for a body, their reply is a pick by load.
func TestPickOnHeaders(t *testing.T) {
	tests := map[string]struct {
		modes func(*extprocv3.ProcessingRequest)
		end   bool
	}{
		"GET, BUFFERED_PARTIAL":     {withModes(partial, none), true},
		"GET, FULL_DUPLEX_STREAMED": {withModes(full, full), true},
		"GET, mode untold":          {nil, true},
		"POST, NONE":                {withModes(none, none), false},
		"POST, STREAMED":            {withModes(streamed, none), false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			used := map[string]int{}
			for range 4 { // none ends, so each goes to another endpoint
				x := w.open(t, llama, tt.modes)
				x.send(requestHeaders(tt.end))
				used[picked(t, x.recv())[0]]++
				if !tt.end {
					x.send(requestBody([]byte("x"), true))
					isContinue(t, x.recv(), "RequestBody")
				}
			}
			if len(used) != 4 {
				t.Errorf("4 calls went to %v, want one to each endpoint", used)
			}
		})
	}
}

// The pick does not wait for a body that cannot carry a prompt, as it may never end. Where such a body passes through
// the picker, it passes at once.
func TestBodyWithoutPromptIsNotAwaited(t *testing.T) {
	tests := map[string]struct {
		modes   func(*extprocv3.ProcessingRequest)
		headers *extprocv3.ProcessingRequest
	}{
		"gRPC, FULL_DUPLEX_STREAMED":      {withModes(full, full), requestHeaders(false, "content-type", "application/grpc")},
		"gRPC, mode untold":               {nil, requestHeaders(false, "content-type", "application/grpc")},
		"WebSocket, FULL_DUPLEX_STREAMED": {withModes(full, full), headersOf("GET", "upgrade", "websocket")},
		"bytes, BUFFERED_PARTIAL":         {withModes(partial, none), requestHeaders(false, "content-type", "application/octet-stream")},
		"WebSocket, BUFFERED":             {withModes(whole, none), headersOf("GET", "upgrade", "websocket")},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			x := w.open(t, llama, tt.modes)
			x.send(tt.headers)
			picked(t, x.recv())
			for _, piece := range []string{"one", "two"} {
				x.send(requestBody([]byte(piece), false))
				reply := x.recv()
				if tt.modes == nil || strings.HasSuffix(name, "FULL_DUPLEX_STREAMED") {
					if got := reply.GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse(); string(got.GetBody()) != piece || got.GetEndOfStream() {
						t.Errorf("%q came back as %v", piece, reply)
					}
				} else {
					isContinue(t, reply, "RequestBody")
				}
			}
			x.send(answerHeaders("200", false))
			isContinue(t, x.recv(), "ResponseHeaders")
			if got := w.metric(t, "picks_total", "outcome=load"); got != 1 {
				t.Errorf("%v picks by load, want 1", got)
			}
			x.close()
			w.quiet(t)
		})
	}
}

// A drain waits for the body of a call that was picked on its headers, as for any body through the picker.
func TestDrainWaitsForBodyPickedByHeaders(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(full, none))
	x.send(requestHeaders(false, "content-type", "application/grpc"))
	picked(t, x.recv())
	w.server.Part()
	x.send(requestBody([]byte("the only piece"), true))
	if got := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse(); string(got.GetBody()) != "the only piece" {
		t.Errorf("the body came back as %v", got)
	}
}

// Calls of one session stay together, by the pool's session header alone.
func TestSessionHeader(t *testing.T) {
	tests := map[string]struct {
		header   string
		wantUsed int
	}{
		"the pool's": {"x-conversation", 1},
		"another":    {"x-session", 4},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, fourEndpoints...)
			settings := picksettings.Defaults()
			settings.SessionHeader = "x-conversation"
			w.fleet.Configure(types.NamespacedName{Namespace: "models", Name: "llama"}, settings)
			used := map[string]int{}
			for conversation := range 4 { // none ends, so without a session each goes to another endpoint
				x := w.open(t, llama, withModes(partial, none))
				x.send(requestHeaders(false, tt.header, "7"))
				isContinue(t, x.recv(), "RequestHeaders")
				x.send(requestBody(completion(conversation, 500), true))
				used[picked(t, x.recv())[0]]++
			}
			if len(used) != tt.wantUsed {
				t.Errorf("4 calls went to %v, want %d endpoints", used, tt.wantUsed)
			}
		})
	}
}

func TestListHasAsManyAsThereAre(t *testing.T) {
	for n, want := range []int{1: 1, 2: 2, 3: 3, 4: 3} {
		if n == 0 {
			continue
		}
		w := newWorld(t, fourEndpoints[:n]...)
		x := w.open(t, llama, withModes(partial, none))
		x.send(requestHeaders(true))
		got := picked(t, x.recv())
		slices.Sort(got)
		if got = slices.Compact(got); len(got) != want {
			t.Errorf("of %d endpoints the pick names %v, want %d", n, got, want)
		}
	}
}

func TestBigBodyIsDecidedOnItsHead(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	body := completion(1, 3<<20)
	x := w.open(t, llama, withModes(full, none))
	x.send(requestHeaders(false))
	sent := 0
	for ; sent < factsLimit; sent += 256 << 10 {
		x.send(requestBody(body[sent:sent+256<<10], false))
	}
	// 1. The pick comes with a third of the body, and what was held comes back in pieces.
	first := picked(t, x.recv())[0]
	var back []byte
	for len(back) < sent {
		chunk := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
		if len(chunk.GetBody()) > 64<<10 {
			t.Fatalf("a piece of %d bytes", len(chunk.GetBody()))
		}
		back = append(back, chunk.GetBody()...)
	}
	// 2. Each later chunk comes back at once.
	for rest := range slices.Chunk(body[sent:], 512<<10) {
		sent += len(rest)
		x.send(requestBody(rest, sent == len(body)))
		chunk := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
		if chunk.GetEndOfStream() != (sent == len(body)) {
			t.Fatalf("after %d of %d bytes the end is %v", sent, len(body), chunk.GetEndOfStream())
		}
		back = append(back, chunk.GetBody()...)
	}
	if !bytes.Equal(back, body) {
		t.Error("the body came back changed")
	}
	// 3. The head is remembered, whichever way it came.
	y := w.open(t, llama, withModes(partial, none))
	y.send(requestHeaders(false))
	y.recv()
	y.send(requestBody(body[:1<<20], false))
	if got := picked(t, y.recv())[0]; got != first {
		t.Errorf("the same head goes to %s, first it went to %s", got, first)
	}
}

func TestAnswerBodies(t *testing.T) {
	t.Run("FULL_DUPLEX_STREAMED: given back chunk by chunk", func(t *testing.T) {
		w := newWorld(t, fourEndpoints...)
		x := w.open(t, llama, withModes(full, full))
		x.send(requestHeaders(true))
		picked(t, x.recv())
		x.send(answerHeaders("200", false))
		isContinue(t, x.recv(), "ResponseHeaders")
		for i := range 5 {
			want := fmt.Appendf(nil, "data: %d\n\n", i)
			x.send(answerBody(want, i == 4))
			got := x.recv().GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse()
			if !bytes.Equal(got.GetBody(), want) || got.GetEndOfStream() != (i == 4) {
				t.Fatalf("chunk %d came back as %q, end %v", i, got.GetBody(), got.GetEndOfStream())
			}
		}
		x.close()
	})
	t.Run("FULL_DUPLEX_STREAMED, trailers", func(t *testing.T) {
		w := newWorld(t, fourEndpoints...)
		x := w.open(t, llama, withModes(full, full))
		x.send(requestHeaders(true))
		picked(t, x.recv())
		x.send(answerTrailers())
		isContinue(t, x.recv(), "ResponseTrailers")
	})
	t.Run("BUFFERED: left alone", func(t *testing.T) {
		w := newWorld(t, fourEndpoints...)
		x := w.open(t, llama, withModes(partial, whole))
		x.send(requestHeaders(true))
		picked(t, x.recv())
		x.send(answerBody([]byte("{}"), true))
		r := x.recv()
		isContinue(t, r, "ResponseBody")
		if r.GetResponseBody().GetResponse().GetBodyMutation() != nil {
			t.Errorf("the answer's body is changed: %v", r)
		}
	})
}

func TestBodiesThatAreNotUnderstoodArePicked(t *testing.T) {
	bodies := map[string][]byte{
		"empty":         nil,
		"not JSON":      []byte("\x00\xff{{{"),
		"another JSON":  []byte(`[1,2,3]`),
		"invalid UTF-8": []byte(`{"prompt":"` + "\xff\xfe" + `"}`),
		"deep":          []byte(strings.Repeat(`{"messages":[`, 5000)),
	}
	for name, body := range bodies {
		for _, path := range []string{"/v1/chat/completions", "/anything?else=1", ""} {
			t.Run(name+path, func(t *testing.T) {
				w := newWorld(t, fourEndpoints...)
				x := w.open(t, llama, withModes(partial, none))
				m := requestHeaders(false)
				m.GetRequestHeaders().Headers = headerMap(":path", path)
				x.send(m)
				isContinue(t, x.recv(), "RequestHeaders")
				x.send(requestBody(body, true))
				if got := picked(t, x.recv()); len(got) != 3 {
					t.Errorf("the pick is %v, want three endpoints", got)
				}
			})
		}
	}
}

func TestSubset(t *testing.T) {
	list := func(texts ...string) any {
		var out []any
		for _, s := range texts {
			out = append(out, s)
		}
		return out
	}
	tests := map[string]struct {
		hint any
		want []string // nil: refused
	}{
		"list":             {list("10.244.0.3:8000", "10.244.0.2:8000"), []string{"10.244.0.2:8000", "10.244.0.3:8000"}},
		"string":           {"10.244.0.3:8000, 10.244.0.2:8000", []string{"10.244.0.2:8000", "10.244.0.3:8000"}},
		"string of one":    {"10.244.0.4:8000", []string{"10.244.0.4:8000"}},
		"IPv6 in a list":   {list("[fd00::1]:8000"), []string{"[fd00::1]:8000"}},
		"IPv6 in a string": {"[fd00::1]:8000,10.244.0.1:8000", []string{"10.244.0.1:8000", "[fd00::1]:8000"}},
		"empty list":       {list(), nil},
		"empty string":     {"", nil},
		"none eligible":    {list("10.244.0.9:8000", "10.244.0.1:9999"), nil},
		"nonsense":         {list("model-server", "7"), nil},
		"a number":         {7.0, nil},
	}
	messages := map[string]func(x *exchange, hint any) *extprocv3.ProcessingResponse{
		"headers only": func(x *exchange, hint any) *extprocv3.ProcessingResponse {
			x.send(withMetadata(requestHeaders(true), subsetNamespace, subsetKey, hint))
			return x.recv()
		},
		"with the headers of a body": func(x *exchange, hint any) *extprocv3.ProcessingResponse {
			x.send(withMetadata(requestHeaders(false), subsetNamespace, subsetKey, hint))
			x.recv()
			x.send(requestBody(completion(1, 2000), true))
			return x.recv()
		},
		"with the body": func(x *exchange, hint any) *extprocv3.ProcessingResponse {
			x.send(requestHeaders(false))
			x.recv()
			x.send(withMetadata(requestBody(completion(1, 2000), true), subsetNamespace, subsetKey, hint))
			return x.recv()
		},
	}
	for name, tt := range tests {
		for way, bring := range messages {
			t.Run(name+" "+way, func(t *testing.T) {
				w := newWorld(t, append([]string{"[fd00::1]:8000"}, fourEndpoints...)...)
				r := bring(w.open(t, llama, withModes(partial, none)), tt.hint)
				if tt.want == nil {
					isRefused(t, r, "not_in_subset")
					return
				}
				got := picked(t, r)
				slices.Sort(got)
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("endpoints (-want +got):\n%s", diff)
				}
			})
		}
	}
}

func isRefused(t *testing.T, r *extprocv3.ProcessingResponse, wantCode string) {
	t.Helper()
	i := r.GetImmediateResponse()
	if i == nil {
		t.Fatalf("the reply is %v, want a refusal", r)
	}
	if got := i.GetStatus().GetCode(); got != 503 {
		t.Errorf("status %d, want 503", got)
	}
	var body struct {
		Error struct{ Message, Type, Code string }
	}
	if err := json.Unmarshal(i.GetBody(), &body); err != nil {
		t.Fatalf("the body %q is no JSON: %v", i.GetBody(), err)
	}
	if body.Error.Code != wantCode || body.Error.Message == "" || body.Error.Type == "" {
		t.Errorf("the error is %+v, want code %s, a message and a type", body.Error, wantCode)
	}
	set := i.GetHeaders().GetSetHeaders()
	if len(set) != 1 || set[0].GetHeader().GetKey() != "content-type" || string(set[0].GetHeader().GetRawValue()) != "application/json" {
		t.Errorf("headers are %v, want a content type of JSON", set)
	}
}

func TestRefusals(t *testing.T) {
	tests := map[string]struct {
		pool       string
		wantCode   string
		wantLabels []string
	}{
		"no pool named":     {"", "unknown_pool", []string{"pool=", "reason=unknown_pool"}},
		"unknown pool":      {"models/none", "unknown_pool", []string{"pool=", "reason=unknown_pool"}},
		"not a pool's name": {"llama", "unknown_pool", []string{"pool=", "reason=unknown_pool"}},
		"no endpoints":      {"models/empty", "no_endpoints", []string{"pool=models/empty", "reason=no_endpoints"}},
	}
	for name, tt := range tests {
		for way := range map[string]bool{"headers": true, "body": true, "streamed": true} {
			t.Run(name+" on "+way, func(t *testing.T) {
				w := newWorld(t, fourEndpoints...)
				w.set("models/empty")
				mode := map[string]procmodev3.ProcessingMode_BodySendMode{"headers": none, "body": partial, "streamed": full}[way]
				x := w.open(t, tt.pool, withModes(mode, none))
				x.send(requestHeaders(way == "headers"))
				if way == "body" {
					isContinue(t, x.recv(), "RequestHeaders")
				}
				if way != "headers" {
					x.send(requestBody(completion(1, 1000), true))
				}
				isRefused(t, x.recv(), tt.wantCode)
				if r, err := x.stream.Recv(); err == nil {
					t.Errorf("after the refusal came %v", r)
				}
				if got := w.metric(t, "refusals_total", tt.wantLabels...); got != 1 {
					t.Errorf("%v refusals counted under %v, want 1", got, tt.wantLabels)
				}
				w.quiet(t)
			})
		}
	}
}

// The pool is looked up at the pick: a pool that is deleted during the request, or loses its last endpoint, refuses the
// call.
func TestPoolChangesDuringRequest(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(partial, none))
	x.send(requestHeaders(false))
	isContinue(t, x.recv(), "RequestHeaders")
	w.set(llama)
	x.send(requestBody(completion(1, 1000), true))
	isRefused(t, x.recv(), "no_endpoints")
}

func TestServedEndpointTakesTheReservation(t *testing.T) {
	attributes := func(m *extprocv3.ProcessingRequest, key, value string) *extprocv3.ProcessingRequest {
		m.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": {
			Fields: map[string]*structpb.Value{key: structpb.NewStringValue(value)},
		}}
		return m
	}
	tests := map[string]struct {
		tell      func(m *extprocv3.ProcessingRequest, other string) *extprocv3.ProcessingRequest
		wantMoved bool
	}{
		"plain metadata": {func(m *extprocv3.ProcessingRequest, other string) *extprocv3.ProcessingRequest {
			return withMetadata(m, lbNamespace, servedKey, other)
		}, true},
		"internal address in metadata": {func(m *extprocv3.ProcessingRequest, other string) *extprocv3.ProcessingRequest {
			return withMetadata(m, lbNamespace, servedKey, "envoy://connect_originate/"+other)
		}, true},
		"attribute of our key": {func(m *extprocv3.ProcessingRequest, other string) *extprocv3.ProcessingRequest {
			return attributes(m, servedKey, "envoy://connect_originate/"+other)
		}, true},
		"attribute of the proxy's": {func(m *extprocv3.ProcessingRequest, other string) *extprocv3.ProcessingRequest {
			return attributes(m, "upstream.address", other)
		}, true},
		"nothing": {func(m *extprocv3.ProcessingRequest, _ string) *extprocv3.ProcessingRequest { return m }, false},
		"nonsense": {func(m *extprocv3.ProcessingRequest, _ string) *extprocv3.ProcessingRequest {
			return withMetadata(m, lbNamespace, servedKey, "nowhere")
		}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			const third = "10.244.0.3:8000"
			var now atomic.Int64
			w := newWorldWith(t, poolstate.Options{Seed: 1, Clock: func() time.Duration { return time.Duration(now.Load()) }}, Options{}, fourEndpoints[:3]...)
			now.Store(int64(time.Minute)) // the proxy knows them by now
			call := func(body []byte, allowed ...any) (*exchange, []string) {
				x := w.open(t, llama, withModes(partial, none))
				x.send(withMetadata(requestHeaders(false), subsetNamespace, subsetKey, allowed))
				isContinue(t, x.recv(), "RequestHeaders")
				x.send(requestBody(body, true))
				return x, picked(t, x.recv())
			}
			call(nil, third)
			x, choice := call(completion(1, 100_000), fourEndpoints[0], fourEndpoints[1])
			other := choice[1]
			x.send(tt.tell(answerHeaders("200", false), other))
			isContinue(t, x.recv(), "ResponseHeaders")

			// The big call weighs on the other endpoint if it was moved there, and then more than a small one does.
			want := other
			if tt.wantMoved {
				want = third
			}
			if _, got := call(nil, other, third); got[0] != want {
				t.Errorf("the next call goes to %s, want %s", got[0], want)
			}
			moved := 0.0
			if tt.wantMoved {
				moved = 1
			}
			if got := w.metric(t, "served_elsewhere_total"); got != moved {
				t.Errorf("%v calls counted as served elsewhere, want %v", got, moved)
			}
		})
	}
}

// The client goes away at each point of the exchange, and its call leaves nothing behind.
func TestClientVanishes(t *testing.T) {
	all := []*extprocv3.ProcessingRequest{
		requestHeaders(false), requestBody(completion(1, 1000), false), requestTrailers(),
		answerHeaders("200", false), answerBody([]byte("x"), true), answerTrailers(),
	}
	for _, mode := range []procmodev3.ProcessingMode_BodySendMode{none, streamed, whole, partial, full} {
		for n := range len(all) + 1 {
			t.Run(fmt.Sprintf("%s after %d", mode, n), func(t *testing.T) {
				w := newWorld(t, fourEndpoints...)
				x := w.open(t, llama, withModes(mode, mode))
				for _, m := range all[:n] {
					x.send(m)
				}
				if n > 3 { // let it get as far
					x.recv()
				}
				x.cancel()
				w.quiet(t)
			})
		}
	}
}

// Messages in any order, each kind up to twice: every stream ends well and leaves nothing behind.
func TestMessagesOutOfOrder(t *testing.T) {
	kinds := []func() *extprocv3.ProcessingRequest{
		func() *extprocv3.ProcessingRequest { return requestHeaders(false) },
		func() *extprocv3.ProcessingRequest { return requestHeaders(true) },
		func() *extprocv3.ProcessingRequest { return requestBody(completion(1, 600), true) },
		requestTrailers,
		func() *extprocv3.ProcessingRequest { return answerHeaders("nonsense", false) },
		func() *extprocv3.ProcessingRequest { return answerBody(nil, true) },
		answerTrailers,
		func() *extprocv3.ProcessingRequest { return &extprocv3.ProcessingRequest{} },
	}
	w := newWorld(t, fourEndpoints...)
	for _, mode := range []procmodev3.ProcessingMode_BodySendMode{none, partial, full} {
		for order := range len(kinds) * len(kinds) * len(kinds) {
			x := w.open(t, llama, withModes(mode, mode))
			for o, left := order, 3; left > 0; o, left = o/len(kinds), left-1 {
				x.send(kinds[o%len(kinds)]())
			}
			if err := x.stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			for {
				_, err := x.stream.Recv()
				if status.Code(err) == codes.OK && err == nil {
					continue
				}
				if got := status.Code(err); err.Error() != "EOF" {
					t.Fatalf("order %o in mode %s ends with %v: %v", order, mode, got, err)
				}
				break
			}
			x.cancel()
		}
	}
	w.quiet(t)
}

// A body without headers before it still gets a pick.
func TestBodyWithoutHeaders(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(partial, none))
	x.send(requestBody(completion(1, 600), true))
	picked(t, x.recv())
}

// Such a body is not held where it comes in chunks: there is no reply to headers that could carry its pick.
func TestPieceWithoutHeaders(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(full, none))
	for _, piece := range []string{`{"prompt":`, `"Hello"}`} {
		x.send(requestBody([]byte(piece), piece[0] != '{'))
		if got := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse(); string(got.GetBody()) != piece || got.GetEndOfStream() != (piece[0] != '{') {
			t.Errorf("given back is %v, want %q", got, piece)
		}
	}
}

// The reply to trailers of a request without a body carries the pick in metadata, where it can.
func TestTrailersWithoutBody(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(whole, none))
	x.send(requestHeaders(false))
	isContinue(t, x.recv(), "RequestHeaders")
	x.send(requestTrailers())
	if got := metadataPick(x.recv()); strings.Count(got, ",") != 2 {
		t.Errorf("the metadata say %q, want three endpoints", got)
	}
}

func TestObservabilityModeGetsNoReply(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(partial, none))
	m := requestHeaders(true)
	m.ObservabilityMode = true
	x.send(m)
	x.close()
	if got := w.metric(t, "picks_total"); got != 0 {
		t.Errorf("%v picks for a proxy that only shows what it does", got)
	}
}

// outcomes are the ways in which a call can end at once, as the proxy shows them, and whether they show that the prompt
// was prefilled.
var outcomes = map[string]struct {
	end       func(x *exchange)
	prefilled bool
}{
	"200, and its end is in sight":           {func(x *exchange) { x.answer("200", true) }, true},
	"200, JSON":                              {func(x *exchange) { x.answer("200", false, "content-type", "application/json") }, true},
	"200, a stream to its end":               {func(x *exchange) { x.answer("200", false); x.answerEnd() }, true},
	"200, a stream to its trailers":          {func(x *exchange) { x.answer("200", false); x.send(answerTrailers()); x.recv() }, true},
	"200, a stream of which no more is seen": {func(x *exchange) { x.answer("200", false, "content-type", "text/event-stream") }, false},
	"the caller left before":                 {func(*exchange) {}, false},
	"400":                                    {func(x *exchange) { x.answer("400", true) }, false},
	"404":                                    {func(x *exchange) { x.answer("404", false, "content-type", "application/json") }, false},
	"413":                                    {func(x *exchange) { x.answer("413", true) }, false},
	"429":                                    {func(x *exchange) { x.answer("429", true) }, false},
	"500":                                    {func(x *exchange) { x.answer("500", true) }, false},
	"503":                                    {func(x *exchange) { x.answer("503", true) }, false},
	"302":                                    {func(x *exchange) { x.answer("302", true) }, false},
	"101":                                    {func(x *exchange) { x.answer("101", false) }, false},
	"gRPC, 0, and its end is in sight":       {func(x *exchange) { x.answerGRPC("0") }, true},
	"gRPC, a stream to its trailers": {func(x *exchange) {
		x.answer("200", false, "content-type", "application/grpc")
		x.trailers("grpc-status", "0")
	}, true},
	"gRPC, a stream that fails": {func(x *exchange) {
		x.answer("200", false, "content-type", "application/grpc+proto")
		x.trailers("grpc-status", "14")
	}, false},
	"gRPC, a stream of which no more is seen": {func(x *exchange) { x.answer("200", false, "content-type", "application/grpc") }, false},
	"gRPC, 3":                    {func(x *exchange) { x.answerGRPC("3") }, false},
	"gRPC, 8":                    {func(x *exchange) { x.answerGRPC("8") }, false},
	"gRPC, 14":                   {func(x *exchange) { x.answerGRPC("14") }, false},
	"gRPC, an end and no status": {func(x *exchange) { x.answer("200", true, "content-type", "application/grpc") }, false},
}

// answer sends the answer's headers from the picked endpoint, and takes the reply.
func (x *exchange) answer(status string, end bool, more ...string) {
	x.t.Helper()
	m := answerHeaders(status, end)
	headers := m.GetResponseHeaders().GetHeaders()
	headers.Headers = append(headers.Headers, headerMap(more...).GetHeaders()...)
	x.send(withMetadata(m, lbNamespace, servedKey, x.only))
	isContinue(x.t, x.recv(), "ResponseHeaders")
}

// answerGRPC sends the headers of a gRPC answer that ends with them, and takes the reply.
func (x *exchange) answerGRPC(status string) {
	x.t.Helper()
	x.answer("200", true, "content-type", "application/grpc", "grpc-status", status)
}

// trailers sends the answer's trailers, and takes the reply.
func (x *exchange) trailers(pairs ...string) {
	x.t.Helper()
	m := answerTrailers()
	m.GetResponseTrailers().Trailers = headerMap(pairs...)
	x.send(m)
	isContinue(x.t, x.recv(), "ResponseTrailers")
}

// answerByProxy sends the headers of an answer that the proxy made itself, and takes the reply.
func (x *exchange) answerByProxy(status string) {
	x.t.Helper()
	x.send(answerHeaders(status, true))
	isContinue(x.t, x.recv(), "ResponseHeaders")
}

// answerEnd sends the end of the answer's body.
func (x *exchange) answerEnd() {
	x.t.Helper()
	x.send(answerBody(nil, true))
	isContinue(x.t, x.recv(), "ResponseBody")
}

// callTo makes a call that only one endpoint may serve, up to its pick.
func (w *world) callTo(t *testing.T, endpoint string, body []byte) *exchange {
	t.Helper()
	x := w.open(t, llama, withModes(partial, none))
	x.only = endpoint
	x.send(withMetadata(requestHeaders(false), subsetNamespace, subsetKey, endpoint))
	isContinue(t, x.recv(), "RequestHeaders")
	x.send(requestBody(body, true))
	picked(t, x.recv())
	return x
}

// A good answer shows that the server has prefilled all calls before its own; no other answer does.
func TestAnswerEmptiesTheQueue(t *testing.T) {
	const busy, other = "10.244.0.1:8000", "10.244.0.2:8000"
	for name, tt := range outcomes {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1, Clock: func() time.Duration { return time.Minute }}, Options{}, busy, other)
			w.callTo(t, busy, completion(1, 1<<20)) // half a minute of prefilling
			behind := w.callTo(t, busy, completion(2, 100))
			for range 3 { // small calls, which weigh more than one big call that is prefilled
				w.callTo(t, other, nil)
			}
			tt.end(behind)
			behind.close()
			w.inFlight(t, 4)

			want := other
			if tt.prefilled {
				want = busy
			}
			x := w.open(t, llama, withModes(partial, none))
			x.send(requestHeaders(true))
			if got := picked(t, x.recv())[0]; got != want {
				t.Errorf("the next call goes to %s, want %s", got, want)
			}
		})
	}
}

// Only a prefilled call leaves its prompt in the endpoint's cache.
func TestAnswerLeavesThePrompt(t *testing.T) {
	const endpoint = "10.244.0.1:8000"
	for name, tt := range outcomes {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1, Clock: func() time.Duration { return time.Minute }}, Options{}, endpoint)
			x := w.callTo(t, endpoint, completion(1, 10_000))
			tt.end(x)
			x.close()
			w.quiet(t)

			var facts request.Facts
			facts.Read(request.Head{Path: "/v1/completions"}, completion(1, 10_000))
			why, err := w.fleet.Pool(types.NamespacedName{Namespace: "models", Name: "llama"}).Rank(&poolstate.Call{Facts: &facts})
			if err != nil {
				t.Fatal(err)
			}
			if got := why.Ranking[0].CachedTokens > 1000; got != tt.prefilled {
				t.Errorf("%d tokens are taken to be cached, want any: %v", why.Ranking[0].CachedTokens, tt.prefilled)
			}
		})
	}
}

// An answer's headers decide whether its endpoint is avoided: one that fails or sheds is, one that refuses a call is
// not. A good beginning ends the avoidance. Answers that the proxy makes itself blame no endpoint.
func TestAnswerTellsOfHealth(t *testing.T) {
	const first, other = "10.244.0.1:8000", "10.244.0.2:8000"
	tests := map[string]struct {
		do          func(w *world)
		wantAvoided bool
	}{
		"500": {func(w *world) { w.callTo(t, first, nil).answer("500", true) }, true},
		"429": {func(w *world) { w.callTo(t, first, nil).answer("429", true) }, true},
		"503": {func(w *world) { w.callTo(t, first, nil).answer("503", true) }, true},
		"400": {func(w *world) { w.callTo(t, first, nil).answer("400", true) }, false},
		"500, then 404": {func(w *world) {
			w.callTo(t, first, nil).answer("500", true)
			w.callTo(t, first, nil).answer("404", true)
		}, true},
		"500, then 200": {func(w *world) {
			w.callTo(t, first, nil).answer("500", true)
			w.callTo(t, first, nil).answer("200", false)
		}, false},
		"429, then 200": {func(w *world) {
			w.callTo(t, first, nil).answer("429", true)
			w.callTo(t, first, nil).answer("200", false)
		}, false},
		"500, then 101": {func(w *world) {
			w.callTo(t, first, nil).answer("500", true)
			w.callTo(t, first, nil).answer("101", false)
		}, false},
		"gRPC, 2":  {func(w *world) { w.callTo(t, first, nil).answerGRPC("2") }, true},
		"gRPC, 3":  {func(w *world) { w.callTo(t, first, nil).answerGRPC("3") }, false},
		"gRPC, 4":  {func(w *world) { w.callTo(t, first, nil).answerGRPC("4") }, true},
		"gRPC, 8":  {func(w *world) { w.callTo(t, first, nil).answerGRPC("8") }, true},
		"gRPC, 13": {func(w *world) { w.callTo(t, first, nil).answerGRPC("13") }, true},
		"gRPC, 14": {func(w *world) { w.callTo(t, first, nil).answerGRPC("14") }, true},
		"gRPC, 500, then 14": {func(w *world) {
			w.callTo(t, first, nil).answer("500", true)
			w.callTo(t, first, nil).answerGRPC("14")
		}, true},
		"gRPC, 14, then 0": {func(w *world) {
			w.callTo(t, first, nil).answerGRPC("14")
			w.callTo(t, first, nil).answerGRPC("0")
		}, false},
		"gRPC, 14, then a stream": {func(w *world) {
			w.callTo(t, first, nil).answerGRPC("14")
			w.callTo(t, first, nil).answer("200", false, "content-type", "application/grpc")
		}, false},
		"gRPC, 14 of the proxy": {func(w *world) {
			x := w.callTo(t, first, nil)
			m := answerHeaders("200", true)
			m.GetResponseHeaders().Headers.Headers = append(m.GetResponseHeaders().Headers.Headers,
				headerMap("content-type", "application/grpc", "grpc-status", "14").GetHeaders()...)
			x.send(m)
			isContinue(t, x.recv(), "ResponseHeaders")
		}, false},
		"500 of the proxy":  {func(w *world) { w.callTo(t, first, nil).answerByProxy("500") }, false},
		"429 of the proxy":  {func(w *world) { w.callTo(t, first, nil).answerByProxy("429") }, false},
		"503, by the proxy": {func(w *world) { w.callTo(t, first, nil).answerByProxy("503") }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, poolstate.Options{Seed: 1, Clock: func() time.Duration { return time.Minute }}, Options{}, first, other)
			tt.do(w)
			for range 3 { // more to do than the first one has
				w.callTo(t, other, completion(3, 10_000))
			}
			x := w.open(t, llama, withModes(partial, none))
			x.send(requestHeaders(true))
			want := first
			if tt.wantAvoided {
				want = other
			}
			if got := picked(t, x.recv())[0]; got != want {
				t.Errorf("the next call goes to %s, want %s", got, want)
			}
		})
	}
}
