package extproc

import (
	"context"
	"fmt"
	"testing"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/tap"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// BenchmarkStream is a stream of a waypoint over the loopback, client included: headers, body and the answer's headers, each with its
// reply. Server "nothing" replies without reading the messages: the difference is the picker's cost.
func BenchmarkStream(b *testing.B) {
	servers := map[string]func(b *testing.B) *world{
		"picker":  func(b *testing.B) *world { return newWorld(b, fourEndpoints...) },
		"nothing": func(b *testing.B) *world { return &world{client: serve(b, registerNothing, ordinaryOptions()...)} },
	}
	for _, size := range []int{1 << 10, 8 << 10, 64 << 10, 512 << 10} {
		for _, name := range []string{"picker", "nothing"} {
			b.Run(fmt.Sprintf("body=%dKiB/%s", size>>10, name), func(b *testing.B) {
				w := servers[name](b)
				body := completion(1, size)
				b.ReportAllocs()
				for b.Loop() {
					x := w.openWith(b, by("spiffe://cluster.local/ns/shop/sa/checkout"), pool.NameHeader, llama, pool.HoldHeader, "10m0s")
					x.send(requestHeaders(false))
					x.recv()
					x.send(requestBody(body, true))
					x.recv()
					x.send(answerHeaders("200", false))
					x.recv()
					x.close()
					x.cancel()
				}
			})
		}
	}
}

// nothing is an ext_proc server of generated code that only replies CONTINUE.
type nothing struct {
	extprocv3.UnimplementedExternalProcessorServer
}

func registerNothing(r grpc.ServiceRegistrar) {
	extprocv3.RegisterExternalProcessorServer(r, nothing{})
}

// ordinaryOptions are ServerOptions without the picker's codec.
func ordinaryOptions() []grpc.ServerOption { return ServerOptions(16 << 20)[1:] }

var (
	continueHeaders = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}
	continueBody    = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}
	continueAnswer  = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}
)

func (nothing) Process(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return ended(err)
		}
		reply := continueHeaders
		switch m.GetRequest().(type) {
		case *extprocv3.ProcessingRequest_RequestBody:
			reply = continueBody
		case *extprocv3.ProcessingRequest_ResponseHeaders:
			reply = continueAnswer
		}
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

// BenchmarkPatience measures the deadlines of each stream: two waits, and a context that can be cancelled.
func BenchmarkPatience(b *testing.B) {
	w := newWorld(b, fourEndpoints...)
	stream := &tap.Info{FullMethodName: extprocv3.ExternalProcessor_Process_FullMethodName}
	x := &session{server: w.server}
	b.ReportAllocs()
	for b.Loop() {
		parent, cancel := context.WithCancel(b.Context())
		ctx, _ := makeTerminable(parent, stream)
		x.stream = terminableOf(ctx)
		for _, p := range []*waitlist{&w.server.awaitHeaders, &w.server.awaitBody} {
			p.begin(x)
			p.end(x)
		}
		cancel()
	}
}
