package protocol

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
)

// sheddingPickers are our pickers, each with another reason to end the streams of calls.
var sheddingPickers = map[string]extproc.Options{
	"strange": {Admits: func(string, string) bool { return false }},
	"full":    {MaxStreams: 1},          // a stream of the test takes all room
	"crowded": {MaxHeldBytes: 8 << 20},  // a body of the test takes all room
	"faulty":  {Tracer: faultyTracer{}}, // the pick fails, and so does the pick by load
}

// faultyTracer's spans panic when a pick is recorded.
type faultyTracer struct{ noop.Tracer }

func (faultyTracer) Start(ctx context.Context, _ string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	return ctx, faultySpan{}
}

type faultySpan struct{ noop.Span }

func (faultySpan) IsRecording() bool                   { return true }
func (faultySpan) SetAttributes(...attribute.KeyValue) { panic("a fault of the test's") }
func (faultySpan) End(...trace.SpanEndOption)          {}

// hog opens a call at a picker of ours, sends the messages and reads nothing.
func hog(t *testing.T, picker string, messages ...*extprocv3.ProcessingRequest) {
	t.Helper()
	conn, err := grpc.NewClient(the.own[picker].address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "inference-waypoint-pool", poolName("general")))
	t.Cleanup(func() {
		cancel()
		_ = conn.Close()
	})
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
	must(t, err)
	for _, m := range messages {
		must(t, stream.Send(m))
	}
	time.Sleep(200 * time.Millisecond) // until they have arrived: nothing reports it
}

func hogHeaders() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{
		Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":method", RawValue: []byte("POST")}, {Key: ":path", RawValue: []byte(completionsPath)}, {Key: "content-type", RawValue: []byte("application/json")},
		}},
	}}}
}

func hogBody(length int) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: make([]byte, length)}}}
}

// A call whose picker gives up its streamed body is served once and whole, or refused: no model server gets a body with a
// hole or with its head twice. Envoy fails open until it has sent the first piece to the picker. So the end of a FailOpen
// call depends on what comes first, unless the picker refuses the call.
func TestShedBodies(t *testing.T) {
	const anyReason = "" // Envoy's own refusal, which has no reason
	reasons := map[string]struct {
		status int
		reason string
	}{
		"strange": {http.StatusServiceUnavailable, anyReason},
		"full":    {http.StatusTooManyRequests, "overloaded"},
		"crowded": {http.StatusTooManyRequests, "overloaded"},
		"faulty":  {http.StatusInternalServerError, "internal"},
	}
	body := append(prompt("shed", 1<<20), bytes.Repeat([]byte(" "), 1<<20)...)
	sum := sha256.Sum256(body)
	whole := hex.EncodeToString(sum[:])
	hog(t, "full", hogHeaders())
	for _, length := range []int{5 << 19, 5 << 19, 2 << 20} { // 7 MiB
		hog(t, "crowded", hogHeaders(), hogBody(length))
	}
	for picker, want := range reasons {
		for _, mode := range []string{"open", "closed"} {
			t.Run(picker+" "+mode, func(t *testing.T) {
				for range 20 {
					var arrived atomic.Int64
					serve := script(t, func(w http.ResponseWriter, r *http.Request) {
						hash := sha256.New()
						n, err := io.Copy(hash, r.Body)
						if err != nil {
							return // the call was cancelled, and the model server knows it
						}
						if arrived.Add(1) > 1 || hex.EncodeToString(hash.Sum(nil)) != whole {
							t.Errorf("%d bytes arrived as a whole body, of %d", n, len(body))
						}
						_, _ = io.WriteString(w, "{}")
					})
					a := call(t, "waypoint "+picker+" "+mode, struct{ io.Reader }{bytes.NewReader(body)}, header("Content-Type", "application/json"), serve)
					switch {
					case picker == "strange" && mode == "open" && a.status == http.StatusOK && arrived.Load() == 1:
					case a.status != want.status || !strings.Contains(string(a.body), want.reason) || arrived.Load() != 0:
						t.Errorf("the answer is %d %s, and %d bodies arrived; want %d %s", a.status, a.body, arrived.Load(), want.status, want.reason)
					}
				}
			})
		}
	}
}
