package load

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/nothing"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/prompt"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serveNothing starts the do-nothing server and returns its address.
func serveNothing(t *testing.T) string {
	t.Helper()
	streams, metrics := listen(t), listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- nothing.Serve(ctx, streams, metrics) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return streams.Addr().String()
}

func drive(t *testing.T, l Load) *Driver {
	t.Helper()
	d, err := New(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func TestClosed(t *testing.T) {
	address := serveNothing(t)
	for _, mode := range []Mode{Buffered, Duplex} {
		for _, size := range []int{1 << 10, 512 << 10} {
			d := drive(t, Load{Address: address, Mode: mode, Bodies: [][]byte{prompt.Chat(size)}, Streams: 4, AbandonEvery: 5})
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			err := d.Closed(ctx)
			cancel()
			if err != nil {
				t.Errorf("%s, %d bytes: %v", mode, size, err)
			}
			if d.Ended() == 0 {
				t.Errorf("%s, %d bytes: no call ended", mode, size)
			}
		}
	}
}

func TestAtRateMakesEveryCallThatIsDue(t *testing.T) {
	d := drive(t, Load{Address: serveNothing(t), Bodies: [][]byte{prompt.Chat(1 << 10)}, Streams: 8})
	took, err := d.AtRate(t.Context(), 200, 500*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if len(took) != 100 {
		t.Errorf("%d calls, want 100", len(took))
	}
}

// slow delays each stream.
type slow struct {
	extprocv3.UnimplementedExternalProcessorServer
	pause time.Duration
}

func (s slow) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	time.Sleep(s.pause)
	for {
		if _, err := stream.Recv(); err != nil {
			return nil
		}
		if err := stream.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{}}); err != nil {
			return err
		}
	}
}

func serve(t *testing.T, s extprocv3.ExternalProcessorServer) string {
	t.Helper()
	l, server := listen(t), grpc.NewServer()
	extprocv3.RegisterExternalProcessorServer(server, s)
	go func() { _ = server.Serve(l) }() // ends at Stop
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// The time of a call includes its wait for the calls before it.
func TestAtRateCountsTheWaitForASlowServer(t *testing.T) {
	d := drive(t, Load{Address: serve(t, slow{pause: 20 * time.Millisecond}), Bodies: [][]byte{prompt.Chat(1 << 10)}, Streams: 1})
	took, err := d.AtRate(t.Context(), 500, 40*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if last := took[len(took)-1]; len(took) != 20 || last < 300*time.Millisecond {
		t.Errorf("%d calls of 20 ms one after the other, due within 40 ms; the last took %s", len(took), last)
	}
}

// refusing refuses every call.
type refusing struct {
	extprocv3.UnimplementedExternalProcessorServer
}

func (refusing) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	return stream.Send(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_TooManyRequests}, Body: []byte("too much"),
		},
	}})
}

func TestFailures(t *testing.T) {
	tests := map[string]struct {
		load Load
		want string
	}{
		"nobody listens":         {Load{Address: "127.0.0.1:1"}, "refused"},
		"the server refuses":     {Load{Address: serve(t, refusing{})}, "too much"},
		"no endpoint is given":   {Load{Address: serveNothing(t), Picks: true}, "no endpoint"},
		"the server is no such":  {Load{Address: serve(t, extprocv3.UnimplementedExternalProcessorServer{})}, "Unimplemented"},
		"a body is not returned": {Load{Address: serve(t, slow{}), Mode: Duplex}, "DeadlineExceeded"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			tt.load.Bodies, tt.load.Streams = [][]byte{prompt.Chat(1 << 10)}, 1
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			s, err := drive(t, tt.load).newSender(0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = s.call(ctx); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestReadReplyFindsEndpointAndChunks(t *testing.T) {
	chunk := func(length int) *extprocv3.ProcessingResponse {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{
			Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
				StreamedResponse: &extprocv3.StreamedBodyResponse{Body: make([]byte, length), EndOfStream: true},
			}}},
		}}}
	}
	tests := map[string]struct {
		message *extprocv3.ProcessingResponse
		want    reply
	}{
		"small chunk": {chunk(10), reply{returned: 10, end: true}},
		"large chunk": {chunk(60000), reply{returned: 60000, end: true}},
		"pick": {&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{
			Response: &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{
				SetHeaders: setHeader(destinationKey, "10.0.0.1:8000,10.0.0.2:8000"),
			}},
		}}}, reply{endpoint: "10.0.0.1:8000"}},
	}
	for name, tt := range tests {
		message, err := proto.Marshal(tt.message)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := readReply(message); err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, tt.want)
		}
	}
}

func setHeader(key, value string) []*corev3.HeaderValueOption {
	return []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: key, RawValue: []byte(value)}}}
}
