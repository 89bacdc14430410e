package brokenoff

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	logv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

var llama, qwen = types.NamespacedName{Namespace: "models", Name: "llama"}, types.NamespacedName{Namespace: "hostile", Name: "qwen"}

type world struct {
	now      time.Duration
	registry *prometheus.Registry
	fleet    *poolstate.Fleet
	server   *Server
	client   accesslogv3.AccessLogServiceClient
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{registry: prometheus.NewRegistry()}
	metrics := telemetry.NewMetrics(w.registry)
	w.fleet = poolstate.New(poolstate.Options{Metrics: metrics, Seed: 1, Clock: func() time.Duration { return w.now }})
	for _, name := range []types.NamespacedName{llama, qwen} {
		w.fleet.SetPool(pool.Pool{Name: name}, []pool.Endpoint{{Address: netip.MustParseAddrPort("10.0.0.1:8000")}})
	}
	w.server = New(w.fleet, Options{Metrics: metrics, Log: slog.New(slog.DiscardHandler), Admits: func(pool, token string) bool { return token == "of "+pool }})
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	w.server.Register(server)
	go func() { _ = server.Serve(listener) }() // until Stop
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:picker", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	w.client = accesslogv3.NewAccessLogServiceClient(conn)
	return w
}

// endEarly makes a call that ends before its prompt can be prefilled, and returns its id.
func (w *world) endEarly(t *testing.T, name types.NamespacedName) uint64 {
	t.Helper()
	facts := &request.Facts{Blocks: make([]uint64, 100), PromptBytes: 100 * request.BlockBytes}
	for i := range facts.Blocks {
		facts.Blocks[i] = uint64(i + 1)
	}
	var r poolstate.Reservation
	if _, err := w.fleet.Pool(name).Pick(&poolstate.Call{Facts: facts}, &r); err != nil {
		t.Fatal(err)
	}
	id := r.ID()
	r.Responded(poolstate.Ended)
	w.now += 200 * time.Millisecond
	r.Release(poolstate.Ended)
	return id
}

// brokenOff returns how many calls of a pool are counted as broken off.
func (w *world) brokenOff(t *testing.T, name types.NamespacedName) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.Metric {
			if f.GetName() == "inference_waypoint_broken_off_total" && m.Label[0].GetValue() == name.String() {
				return m.Counter.GetValue()
			}
		}
	}
	return 0
}

func opening(ctx context.Context, name types.NamespacedName, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, pool.NameHeader, name.String(), pool.TokenHeader, token)
}

func entry(id uint64, bodyBytes uint64) *accesslogv3.StreamAccessLogsMessage {
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*logv3.HTTPAccessLogEntry{
			{}, // a call that was never picked
			{
				CommonProperties: &logv3.AccessLogCommon{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
					"envoy.lb": {Fields: map[string]*structpb.Value{pool.CallKey: structpb.NewNumberValue(float64(id))}},
				}}},
				Response: &logv3.HTTPResponseProperties{ResponseBodyBytes: bodyBytes},
			},
		}},
	}}
}

// A waypoint reports calls of the pools whose tokens it has. Only calls without a byte of their answer's body count.
func TestBrokenOff(t *testing.T) {
	tests := map[string]struct {
		of, token string
		call      types.NamespacedName
		bodyBytes uint64
		want      float64
		wantCode  codes.Code
	}{
		"its own pool's":              {of: "models/llama", token: "of models/llama", call: llama, want: 1},
		"of which an answer had come": {of: "models/llama", token: "of models/llama", call: llama, bodyBytes: 1},
		"another pool's":              {of: "hostile/qwen", token: "of hostile/qwen", call: llama},
		"with another's token":        {of: "models/llama", token: "of hostile/qwen", call: llama, wantCode: codes.PermissionDenied},
		"with no token":               {of: "models/llama", call: llama, wantCode: codes.PermissionDenied},
		"of no pool":                  {of: "models/none", token: "of models/none", call: llama, wantCode: codes.NotFound},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			id := w.endEarly(t, tt.call)
			parsed, _ := pool.ParseName(tt.of)
			stream, err := w.client.StreamAccessLogs(opening(t.Context(), parsed, tt.token))
			if err != nil {
				t.Fatal(err)
			}
			_ = stream.Send(entry(id, tt.bodyBytes)) // the stream may have ended already, which the reply tells
			if _, err := stream.CloseAndRecv(); tt.wantCode != codes.OK && status.Code(err) != tt.wantCode {
				t.Errorf("the stream ends with %v, want %v", err, tt.wantCode)
			}
			if got := w.brokenOff(t, llama); got != tt.want {
				t.Errorf("%v calls are broken off, want %v", got, tt.want)
			}
			if got := w.brokenOff(t, qwen); got != 0 {
				t.Errorf("%v calls of the other pool are broken off", got)
			}
		})
	}
}

// An endless stream is ended, one namespace's streams leave room for others', and all room is given back.
func TestStreamsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range mostStreams {
			if _, err := w.client.StreamAccessLogs(opening(ctx, qwen, "of hostile/qwen")); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		if full := w.server.streams.Taken(); full >= mostStreams {
			t.Errorf("a namespace has %d streams of %d", full, mostStreams)
		}
		id := w.endEarly(t, llama)
		stream, err := w.client.StreamAccessLogs(opening(ctx, llama, "of models/llama"))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(entry(id, 0)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.brokenOff(t, llama); got != 1 {
			t.Errorf("%v calls of the other namespace are broken off, want 1", got)
		}
		time.Sleep(streamTime + time.Second)
		synctest.Wait()
		if got := w.server.streams.Taken(); got != 0 {
			t.Errorf("%d streams are open after their time", got)
		}
		cancel()
		synctest.Wait()
	})
}
