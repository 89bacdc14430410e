package extproc

import (
	"bytes"
	"log/slog"
	"testing"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// replies is a sender that reads replies only at the end, as gRPC may write them later.
type replies struct {
	encoded []mem.BufferSlice
}

func (r *replies) SendMsg(m any) error {
	encoded, err := newCodec().Marshal(m)
	r.encoded = append(r.encoded, encoded)
	return err
}

// read returns all replies, and frees their bytes.
func (r *replies) read(t testing.TB) []*extprocv3.ProcessingResponse {
	t.Helper()
	var out []*extprocv3.ProcessingResponse
	for _, encoded := range r.encoded {
		m := &extprocv3.ProcessingResponse{}
		if err := proto.Unmarshal(encoded.Materialize(), m); err != nil {
			t.Fatalf("a reply is malformed: %v", err)
		}
		encoded.Free()
		out = append(out, m)
	}
	r.encoded = nil
	return out
}

// feed gives a session a message in two frames, and afterwards overwrites the buffer in which they were joined.
func feed(t testing.TB, x *session, m *extprocv3.ProcessingRequest) (over bool, err error) {
	t.Helper()
	encoded, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	half := len(encoded) / 2
	frames := mem.BufferSlice{mem.SliceBuffer(encoded[:half]), mem.SliceBuffer(encoded[half:])}
	if err := newCodec().Unmarshal(frames, &x.message); err != nil {
		t.Fatal(err)
	}
	over, err = x.step()
	x.message.free()
	room := joined.Get(len(encoded))
	for i := range *room {
		(*room)[i] = 0xDB
	}
	joined.Put(room)
	return over, err
}

// FuzzSession gives a session any messages in any order. Each byte of script is a message; text fills the messages. It
// checks that there is no panic, at most one claim at a time and none at the end, and that no byte of a streamed body
// is lost, added or changed.
func FuzzSession(f *testing.F) {
	f.Add(byte(procmodev3.ProcessingMode_BUFFERED_PARTIAL), []byte{0, 2, 6}, []byte(`{"prompt":"hello"}`), true)
	f.Add(byte(procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED), []byte{0, 3, 3, 2, 6, 8, 9}, []byte(`{"messages":[]}`), true)
	f.Add(byte(procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED), []byte{0, 3, 4, 6}, []byte("x"), false)
	f.Add(byte(procmodev3.ProcessingMode_STREAMED), []byte{0, 3, 3, 2, 7}, []byte("10.0.0.1:80,"), true)
	f.Add(byte(procmodev3.ProcessingMode_NONE), []byte{1, 5, 6, 10}, []byte(""), true)
	w := &world{registry: prometheus.NewRegistry()}
	metrics := telemetry.NewMetrics(w.registry)
	w.fleet = poolstate.New(poolstate.Options{Metrics: metrics})
	w.set(llama, "10.0.0.1:80", "10.0.0.2:80")
	w.countUsage(true)
	// The room for held bodies is small, so that it is used up at times.
	server := New(w.fleet, Options{Metrics: metrics, Log: slog.New(slog.DiscardHandler), MaxHeldBytes: 20_000})
	f.Fuzz(func(t *testing.T, mode byte, script, text []byte, known bool) {
		if len(script) > 64 || len(text) > 10_000 {
			return
		}
		proxy := &replies{}
		x := server.sessions.New().(*session)
		if x.send, x.pool = proxy, "models/none"; known {
			x.pool = llama
		}
		var sent []byte
		first := withModes(procmodev3.ProcessingMode_BodySendMode(mode%6), procmodev3.ProcessingMode_BodySendMode(mode/6%6))
		over := false
		for _, b := range script {
			m := message(b, bytes.Repeat(text, 1+int(b>>4)*10)) // rooms under 1 KiB are not used again
			if first != nil {
				first(m)
				first = nil
			}
			sent = append(sent, m.GetRequestBody().GetBody()...)
			done, err := feed(t, x, m)
			if err != nil {
				t.Fatalf("message %d: %v", b, err)
			}
			if over = done; over {
				break
			}
		}
		if !over && x.requestMode == duplex {
			if back := append(returned(proxy.read(t)), x.held.bytes()...); !bytes.Equal(back, sent) {
				t.Errorf("%d bytes of the body went in, %d came back or are held, or others", len(sent), len(back))
			}
		}
		if got := w.metric(t, "requests_in_flight"); got > 1 {
			t.Errorf("%v calls in flight of one stream", got)
		}
		x.end()
		for _, left := range []string{"requests_in_flight", "held_body_bytes"} {
			if got := w.metric(t, left); got != 0 {
				t.Errorf("%s is %v after the end", left, got)
			}
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

// returned joins the chunks of the request's body that were sent back.
func returned(got []*extprocv3.ProcessingResponse) []byte {
	var out []byte
	for _, r := range got {
		out = append(out, r.GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse().GetBody()...)
	}
	return out
}
