// Package brokenoff receives from waypoints, as entries of Envoy's access log service, which calls were broken off, and
// passes them to the calls' pools. It must not know what a pool does with such a call; no other package knows the
// access log service's messages.
package brokenoff

import (
	"log/slog"
	"runtime/debug"
	"time"

	logv3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/proxies"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const (
	// mostStreams is how many streams may be open at once. A namespace's waypoints may have four times as many as are
	// free. A waypoint opens one for each of its threads and each pool with a report.
	mostStreams = 1024

	// streamTime is how long a stream is open. The next entry opens a new one. An endless stream would keep a draining
	// picker from ending, and would take a place among mostStreams from other waypoints.
	streamTime = 5 * time.Second
)

// Options are what a Server is made of.
type Options struct {
	Metrics *telemetry.Metrics
	Log     *slog.Logger
	// Admits says whether a proxy that sends this token may report calls of the pool of this name; nil admits all.
	Admits proxies.Check
}

// Server receives the reports of waypoints.
type Server struct {
	accesslogv3.UnimplementedAccessLogServiceServer

	fleet   *poolstate.Fleet
	options Options
	streams *fairshare.Whole
}

// New makes a server that reports to the pools of the fleet.
func New(f *poolstate.Fleet, o Options) *Server {
	return &Server{fleet: f, options: o, streams: fairshare.New(mostStreams)}
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { accesslogv3.RegisterAccessLogServiceServer(r, s) }

// StreamAccessLogs receives a waypoint's reports of calls to one pool.
func (s *Server) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	name := proxies.Opened(stream.Context(), pool.NameHeader)
	if !s.options.Admits.Admits(stream.Context(), name) {
		return status.Error(codes.PermissionDenied, "the proxy did not send the pool's token")
	}
	parsed, ok := pool.ParseName(name)
	if !ok || s.fleet.Pool(parsed) == nil {
		return status.Error(codes.NotFound, "there is no such pool")
	}
	room := s.streams.Of(parsed.Namespace)
	may := room.Take(1)
	defer room.Give(1)
	if !may {
		return status.Error(codes.ResourceExhausted, "the limit of open streams is reached, or the share of the pool's namespace")
	}
	ended := make(chan struct{})
	go func() { // ends with the stream
		defer close(ended)
		for {
			message, err := stream.Recv()
			if err != nil {
				return
			}
			if p := s.fleet.Pool(parsed); p != nil {
				s.report(p, message.GetHttpLogs().GetLogEntry())
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(streamTime):
	}
	return nil
}

// report reports to a pool the calls that were broken off before the first byte of their answer's body. After the first
// byte, the prompt is prefilled: model servers send it when they have a token.
func (s *Server) report(p *poolstate.Pool, entries []*logv3.HTTPAccessLogEntry) {
	defer func() {
		if fault := recover(); fault != nil {
			s.options.Metrics.Panicked()
			s.options.Log.Error("the picker panicked", "panic", fault, "stack", string(debug.Stack()))
		}
	}()
	for _, e := range entries {
		named := e.GetCommonProperties().GetMetadata().GetFilterMetadata()[pool.PickNamespace].GetFields()[pool.CallKey]
		if id := uint64(named.GetNumberValue()); id > 0 && e.GetResponse().GetResponseBodyBytes() == 0 {
			p.BrokenOff(id)
		}
	}
}
