package extproc

import (
	"bytes"
	"log/slog"
	"net/netip"
	"testing"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/fleet"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// replies is a proxy's end that keeps what it was sent.
type replies struct {
	got []*extprocv3.ProcessingResponse
}

func (r *replies) Send(m *extprocv3.ProcessingResponse) error {
	r.got = append(r.got, proto.Clone(m).(*extprocv3.ProcessingResponse))
	return nil
}

// FuzzSession drives the state machine with any messages in any order. Each byte of script is a message; the rest of
// what messages carry is text. Held to: no panic, at most one pick's worth of claims and none left at the end, and of
// a streamed body no byte lost, added or changed.
func FuzzSession(f *testing.F) {
	f.Add(byte(procmodev3.ProcessingMode_BUFFERED_PARTIAL), []byte{0, 2, 6}, []byte(`{"prompt":"hello"}`), true)
	f.Add(byte(procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED), []byte{0, 3, 3, 2, 6, 8, 9}, []byte(`{"messages":[]}`), true)
	f.Add(byte(procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED), []byte{0, 3, 4, 6}, []byte("x"), false)
	f.Add(byte(procmodev3.ProcessingMode_STREAMED), []byte{0, 3, 3, 2, 7}, []byte("10.0.0.1:80,"), true)
	f.Add(byte(procmodev3.ProcessingMode_NONE), []byte{1, 5, 6, 10}, []byte(""), true)
	f.Fuzz(func(t *testing.T, mode byte, script, text []byte, known bool) {
		if len(script) > 64 {
			return
		}
		registry := prometheus.NewRegistry()
		metrics := telemetry.NewMetrics(registry)
		pools := fleet.New(fleet.Options{Metrics: metrics})
		if known {
			pools.SetPool(pool.Pool{Name: types.NamespacedName{Namespace: "models", Name: "llama"}},
				[]pool.Endpoint{{Address: netip.MustParseAddrPort("10.0.0.1:80")}, {Address: netip.MustParseAddrPort("10.0.0.2:80")}})
		}
		proxy := &replies{}
		x := New(pools, metrics, slog.New(slog.DiscardHandler)).sessions.New().(*session)
		x.send, x.pool = proxy, llama
		var sent []byte
		first := withModes(procmodev3.ProcessingMode_BodySendMode(mode%6), procmodev3.ProcessingMode_BodySendMode(mode/6%6))
		over := false
		for _, b := range script {
			m := message(b, text)
			if first != nil {
				first(m)
				first = nil
			}
			sent = append(sent, m.GetRequestBody().GetBody()...)
			done, err := x.step(m)
			if err != nil {
				t.Fatalf("message %d: %v", b, err)
			}
			if over = done; over {
				break
			}
		}
		if !over && x.requestMode == duplex {
			if back := append(returned(proxy.got), x.held...); !bytes.Equal(back, sent) {
				t.Errorf("%d bytes of the body went in, %d came back or are held, or others", len(sent), len(back))
			}
		}
		w := &world{registry: registry}
		if got := w.metric(t, "requests_in_flight"); got > 1 {
			t.Errorf("%v calls in flight of one stream", got)
		}
		x.end()
		if got := w.metric(t, "requests_in_flight"); got != 0 {
			t.Errorf("%v calls in flight after the end", got)
		}
	})
}

// message makes one of the messages that a proxy can send.
func message(kind byte, text []byte) *extprocv3.ProcessingRequest {
	switch kind % 11 {
	case 0:
		return requestHeaders(false, ":path", string(text))
	case 1:
		return requestHeaders(true)
	case 2:
		return requestBody(text, true)
	case 3:
		return requestBody(text, false)
	case 4:
		return requestTrailers()
	case 5:
		return withMetadata(requestBody(nil, false), subsetNamespace, subsetKey, "10.0.0.2:80")
	case 6:
		return withMetadata(answerHeaders("200", false), lbNamespace, servedKey, "10.0.0.2:80")
	case 7:
		return answerHeaders("503", true)
	case 8:
		return answerBody(text, false)
	case 9:
		return answerTrailers()
	default:
		return &extprocv3.ProcessingRequest{}
	}
}

// returned joins the chunks of the request's body that were given back.
func returned(got []*extprocv3.ProcessingResponse) []byte {
	var out []byte
	for _, r := range got {
		out = append(out, r.GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()...)
	}
	return out
}
