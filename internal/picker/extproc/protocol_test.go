package extproc

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// call sends a request as a proxy does, in the way that is tested; it returns the reply that decides.
type call struct {
	name string
	send func(x *exchange) *extprocv3.ProcessingResponse
}

// calls sends one request in each way that proxies have, with a change to its headers message.
func calls(change func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest) []call {
	body := completion(1, 3000)
	return []call{
		{"without a body", func(x *exchange) *extprocv3.ProcessingResponse {
			x.send(change(requestHeaders(true)))
			return x.recv()
		}},
		{"with a body that the proxy buffers", func(x *exchange) *extprocv3.ProcessingResponse {
			x.first = withModes(partial, none)
			x.send(change(requestHeaders(false)))
			if r := x.recv(); r.GetImmediateResponse() != nil {
				return r // the earlier the better
			}
			x.send(requestBody(body, true))
			return x.recv()
		}},
		{"with a body that the proxy streams", func(x *exchange) *extprocv3.ProcessingResponse {
			x.first = withModes(full, full)
			x.send(change(requestHeaders(false)))
			_ = x.stream.Send(requestBody(body[:1000], false)) // if the call is not refused already
			_ = x.stream.Send(requestBody(body[1000:], true))
			return x.recv()
		}},
		{"with a body that the proxy keeps", func(x *exchange) *extprocv3.ProcessingResponse {
			x.first = withModes(none, none)
			x.send(change(requestHeaders(false)))
			return x.recv()
		}},
	}
}

func asIs(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest { return m }

func subsetOf(endpoints ...any) func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest {
	return func(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest {
		return withMetadata(m, "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", endpoints)
	}
}

// TestProtocol has one test for each thing that the Endpoint Picker Protocol 1.0.0 says an endpoint picker MUST do. The
// tests of cmd/picker cover health checks. Names of headers and keys are written out here, as in the protocol.
func TestProtocol(t *testing.T) {
	tests := []struct {
		must   string
		change func(*extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest
		ready  []string
		check  func(t *testing.T, r *extprocv3.ProcessingResponse)
	}{
		{
			must:   "with a subset, only select from its list",
			change: subsetOf("10.244.0.4:8000", "10.244.0.2:8000", "10.9.9.9:8000"),
			ready:  fourEndpoints,
			check: func(t *testing.T, r *extprocv3.ProcessingResponse) {
				got := picked(t, r)
				slices.Sort(got)
				if want := []string{"10.244.0.2:8000", "10.244.0.4:8000"}; !slices.Equal(got, want) {
					t.Errorf("picked %v, want %v", got, want)
				}
			},
		},
		{
			must:   "with a subset of which none is eligible, return 503 as ImmediateResponse",
			change: subsetOf("10.9.9.9:8000", "10.244.0.1:1"),
			ready:  fourEndpoints,
			check:  func(t *testing.T, r *extprocv3.ProcessingResponse) { isRefused(t, r, "not_in_subset") },
		},
		{
			must:   "with an empty subset, return 503 as ImmediateResponse",
			change: subsetOf(),
			ready:  fourEndpoints,
			check:  func(t *testing.T, r *extprocv3.ProcessingResponse) { isRefused(t, r, "not_in_subset") },
		},
		{
			must:   "without a subset, select from the pool's set",
			change: asIs,
			ready:  fourEndpoints[:2],
			check: func(t *testing.T, r *extprocv3.ProcessingResponse) {
				for _, e := range picked(t, r) {
					if !slices.Contains(fourEndpoints[:2], e) {
						t.Errorf("picked %s, which the pool does not have", e)
					}
				}
			},
		},
		{
			must:   "communicate one or more endpoints, by the header and by dynamic metadata in envoy.lb under the same key",
			change: asIs,
			ready:  fourEndpoints,
			check: func(t *testing.T, r *extprocv3.ProcessingResponse) {
				header := picked(t, r) // which knows the header's name
				metadata := r.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"]
				if got := metadata.GetStringValue(); got == "" || got != strings.Join(header, ",") {
					t.Errorf("the metadata say %q, the header %v", got, header)
				}
				if len(r.GetDynamicMetadata().GetFields()) != 1 {
					t.Errorf("the metadata say more than the pick: %v", r.GetDynamicMetadata())
				}
			},
		},
		{
			must:   "give at least one endpoint as ip:port, several separated by commas",
			change: asIs,
			ready:  []string{"10.244.0.1:8000", "[fd00::1]:8000"},
			check: func(t *testing.T, r *extprocv3.ProcessingResponse) {
				for text := range strings.SplitSeq(metadataPick(r), ",") {
					if _, err := netip.ParseAddrPort(text); err != nil {
						t.Errorf("%q is no ip:port", text)
					}
				}
			},
		},
		{
			must: "not set two different values in header and metadata",
			change: func(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingRequest { // whatever the client sends
				headers := m.GetRequestHeaders().GetHeaders()
				headers.Headers = append(headers.Headers, headerMap("x-gateway-destination-endpoint", "10.9.9.9:1").GetHeaders()...)
				return m
			},
			ready: fourEndpoints,
			check: func(t *testing.T, r *extprocv3.ProcessingResponse) {
				if got := picked(t, r); strings.Join(got, ",") != metadataPick(r) || slices.Contains(got, "10.9.9.9:1") {
					t.Errorf("the header says %v, the metadata %q", got, metadataPick(r))
				}
			},
		},
		{
			must:   "with no ready endpoint, return 503 as ImmediateResponse",
			change: asIs,
			check:  func(t *testing.T, r *extprocv3.ProcessingResponse) { isRefused(t, r, "no_endpoints") },
		},
	}
	for _, tt := range tests {
		for _, c := range calls(tt.change) {
			t.Run(tt.must+"; "+c.name, func(t *testing.T) {
				w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{}, tt.ready...)
				tt.check(t, c.send(w.open(t, llama, nil)))
			})
		}
	}
}

// The picker MUST implement the external processing service, and MUST support streaming of requests and answers: each
// chunk of an answer passes before the next one comes.
func TestProtocolStreamsBothWays(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(full, full))
	fullDuplex(x, completion(1, 5000), 500, false)
	x.send(answerHeaders("200", false))
	isContinue(t, x.recv(), "ResponseHeaders")
	for token := range 20 {
		want := fmt.Sprintf("data: token %d\n\n", token)
		x.send(answerBody([]byte(want), false))
		got := x.recv().GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse()
		if string(got.GetBody()) != want || got.GetEndOfStream() {
			t.Fatalf("token %d came back as %v", token, got)
		}
	}
	x.send(answerBody(nil, true))
	if !x.recv().GetResponseBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetEndOfStream() {
		t.Error("the end did not come back")
	}
	x.close()
}

// The metadata carry, beside the pick, the call's id: a unique number that a float64 holds exactly.
func TestCallsAreNamed(t *testing.T) {
	w := newWorld(t, fourEndpoints...)
	seen := map[float64]string{}
	for range 3 {
		for _, c := range calls(asIs) {
			x := w.open(t, llama, nil)
			r := c.send(x)
			x.cancel()
			name := r.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()[pool.CallKey].GetNumberValue()
			if name != math.Trunc(name) || name < 1 || name+1 >= 1<<53 {
				t.Errorf("a call %s is named %v", c.name, name)
			}
			if before, ok := seen[name]; ok {
				t.Errorf("a call %s is named %v, as one %s", c.name, name, before)
			}
			seen[name] = c.name
		}
	}
}
