package extproc

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

var asBuffered = withModes(procmodev3.ProcessingMode_BUFFERED_PARTIAL, procmodev3.ProcessingMode_NONE)

// by makes the first message say who calls, as a waypoint does.
func by(identity string) func(*extprocv3.ProcessingRequest) {
	return func(m *extprocv3.ProcessingRequest) {
		asBuffered(m)
		m.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": {
			Fields: map[string]*structpb.Value{pool.CallerAttribute: structpb.NewStringValue(identity)},
		}}
	}
}

// call sends a call of so many bytes from a waypoint that holds calls, up to the message that decides, and returns its stream.
func (w *world) call(t testing.TB, identity string, bytes int) *exchange {
	t.Helper()
	x := w.openWith(t, by(identity), pool.NameHeader, llama, pool.HoldHeader, "10m0s")
	x.send(requestHeaders(false))
	x.recv()
	x.send(requestBody(completion(len(identity), bytes), true))
	return x
}

// held receives the reply that says how long the pick may take.
func (x *exchange) held() {
	x.t.Helper()
	r := x.recv()
	if r.GetOverrideMessageTimeout().AsDuration() != pool.MostHold || r.GetResponse() != nil {
		x.t.Fatalf("the reply is %v, want one that only sets the time for it", r)
	}
}

// busy is a world of one endpoint, which has work for a minute.
func busy(t testing.TB) *world {
	t.Helper()
	w := newWorld(t, "10.0.0.1:8000")
	x := w.call(t, "first", 1<<20)
	if picked(t, x.recv())[0] != "10.0.0.1:8000" {
		t.Fatal("the first call was not picked")
	}
	return w
}

func (w *world) waiting(t testing.TB, want float64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); w.metric(t, "requests_waiting") != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%v calls wait, want %v", w.metric(t, "requests_waiting"), want)
		}
	}
}

// A call that waits is answered twice: with the time that it may take, and with its pick.
func TestHeldCall(t *testing.T) {
	w := newWorld(t, "10.0.0.1:8000")
	first := w.call(t, "a", 1<<20)
	picked(t, first.recv())
	x := w.call(t, "b", 5000)
	x.held()
	w.waiting(t, 1)
	first.close()
	if got := picked(t, x.recv()); got[0] != "10.0.0.1:8000" {
		t.Errorf("picked %v", got)
	}
	w.waiting(t, 0)
	if n := w.metric(t, "wait_duration_seconds"); n != 1 {
		t.Errorf("%v calls have waited", n)
	}
	x.send(answerHeaders("200", false))
	x.recv()
	x.close()
	w.quiet(t)
}

// A request without a body has nothing to prefill, and does not wait.
func TestRequestsWithoutABodyGoAtOnce(t *testing.T) {
	w := busy(t)
	x := w.openWith(t, by("b"), pool.NameHeader, llama, pool.HoldHeader, "10m0s")
	x.send(requestHeaders(true))
	picked(t, x.recv())
}

// A proxy that does not say that it waits gets its pick at once.
func TestOtherProxiesAreNotHeldUp(t *testing.T) {
	w := busy(t)
	x := w.openWith(t, by("b"), pool.NameHeader, llama)
	x.send(requestHeaders(false))
	x.recv()
	x.send(requestBody(completion(9, 5000), true))
	picked(t, x.recv())
}

// A call whose body goes through the picker waits too: the reply to its headers does.
func TestHeldStreamedBody(t *testing.T) {
	w := newWorld(t, "10.0.0.1:8000")
	first := w.call(t, "a", 1<<20)
	picked(t, first.recv())
	duplex := withModes(procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED, procmodev3.ProcessingMode_NONE)
	x := w.openWith(t, duplex, pool.NameHeader, llama, pool.HoldHeader, "10m0s")
	x.send(requestHeaders(false))
	body := completion(9, 5000)
	x.send(requestBody(body, true))
	w.waiting(t, 1)
	first.close()
	if got := picked(t, x.recv()); got[0] != "10.0.0.1:8000" {
		t.Errorf("picked %v", got)
	}
	if got := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody(); len(got) != len(body) {
		t.Errorf("%d bytes of the body come back, want %d", len(got), len(body))
	}
}

func TestHeldCallerGoes(t *testing.T) {
	w := busy(t)
	x := w.call(t, "b", 5000)
	x.held()
	w.waiting(t, 1)
	x.cancel()
	w.waiting(t, 0)
	w.inFlight(t, 1)
	if n := w.metric(t, "refusals_total"); n != 0 {
		t.Errorf("%v refusals are counted", n)
	}
}

// At the end of a drain, held calls are picked.
func TestHeldCallsAtADrain(t *testing.T) {
	w := busy(t)
	var all []*exchange
	for range 10 {
		x := w.call(t, "b", 5000)
		x.held()
		all = append(all, x)
	}
	w.server.Part()
	for _, x := range all {
		picked(t, x.recv())
	}
}

func (w *world) configure(change func(*picksettings.Settings)) {
	settings := picksettings.Defaults()
	change(&settings)
	w.fleet.Configure(types.NamespacedName{Namespace: "models", Name: "llama"}, settings)
}

// A refused call gets 429 with the time after which to try again, in the form that clients of the OpenAI API read.
func TestRefusedForOthers(t *testing.T) {
	w := busy(t)
	w.configure(func(s *picksettings.Settings) { s.Callers = "batch/* priority=-1; shop/* waiting=1" })
	shop, batch := "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/batch/sa/nightly"
	w.call(t, shop, 5000).held()
	for identity, reason := range map[string]string{shop: "line_full", batch: "shed"} {
		r := w.call(t, identity, 5000).recv().GetImmediateResponse()
		headers := map[string]string{}
		for _, h := range r.GetHeaders().GetSetHeaders() {
			headers[h.GetHeader().GetKey()] = string(h.GetHeader().GetRawValue())
		}
		after, err := strconv.Atoi(headers["retry-after"])
		if r.GetStatus().GetCode() != typev3.StatusCode_TooManyRequests || err != nil || after < 1 || after > 60 || headers["content-type"] != "application/json" {
			t.Errorf("%s gets %v", identity, r)
		}
		var body struct {
			Error struct{ Type, Code, Message string }
		}
		if err := json.Unmarshal(r.GetBody(), &body); err != nil || body.Error.Code != reason || body.Error.Type != "rate_limit_error" || !strings.Contains(body.Error.Message, "models/llama") {
			t.Errorf("%s gets %s: %v", identity, r.GetBody(), err)
		}
		if n := w.metric(t, "refusals_total", "reason="+reason); n != 1 {
			t.Errorf("%v refusals as %s are counted", n, reason)
		}
	}
}

// Times in which callers want their answers, in the words of those who send them.
func TestWithin(t *testing.T) {
	for name, tt := range map[string]struct {
		headers []string
		want    time.Duration
	}{
		"none":              {},
		"the reference's":   {headers: []string{"x-slo-ttft-ms", "1500"}, want: 1500 * time.Millisecond},
		"an SDK's":          {headers: []string{"x-stainless-read-timeout", "600.0"}, want: 10 * time.Minute},
		"the shortest":      {headers: []string{"x-stainless-timeout", "600", "x-slo-ttft-ms", "300", "x-envoy-upstream-rq-timeout-ms", "15000"}, want: 300 * time.Millisecond},
		"what is no time":   {headers: []string{"x-slo-ttft-ms", "soon", "x-stainless-timeout", "-1", "x-stainless-read-timeout", "NaN"}},
		"what is no number": {headers: []string{"x-slo-ttft-ms", "1e300", "x-stainless-timeout", "NOT_GIVEN"}},
		"an empty one":      {headers: []string{"x-slo-ttft-ms", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			encoded, err := proto.Marshal(requestHeaders(true, tt.headers...))
			if err != nil {
				t.Fatal(err)
			}
			var r received
			if err := r.decode(encoded); err != nil || r.within != tt.want {
				t.Errorf("got %s, %v, want %s", r.within, err, tt.want)
			}
		})
	}
}

func TestHoldsFor(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": 0, "10m0s": pool.MostHold, "7s": 7 * time.Second, "900h": pool.MostHold, "-1s": 0, "soon": 0, "7": 0,
	} {
		if got := holdsFor(value); got != want {
			t.Errorf("%q lets a call wait %s, want %s", value, got, want)
		}
	}
}
