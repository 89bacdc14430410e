// Package brokenoff takes from waypoints which calls were broken off before their end, as entries of Envoy's access log
// service, and tells the calls' pools. It is the only package that knows that service's messages; what is to be done about such a
// call is poolstate's.
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

	"github.com/inference-waypoint/inference-waypoint/internal/picker/admission"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const (
	// mostStreams is how many streams may be open at once, and a namespace's waypoints may have four times as many of them as
	// are free. A waypoint opens one for each of its threads and each pool of which it has something to say.
	mostStreams = 1024

	// streamTime is how long a stream is open. The next entry comes on a new one: a stream without an end would keep a picker
	// that drains from ending, and a place among mostStreams from other waypoints.
	streamTime = 5 * time.Second
)

// Options are what a Server is made of.
type Options struct {
	Metrics *telemetry.Metrics
	Log     *slog.Logger
	// Admits says whether a proxy that shows this token may speak of the pool of this name; nil admits all.
	Admits admission.Check
}

// Server is told by waypoints.
type Server struct {
	accesslogv3.UnimplementedAccessLogServiceServer

	fleet   *poolstate.Fleet
	options Options
	streams *fairshare.Whole
}

// New makes a server that tells the pools of the fleet.
func New(f *poolstate.Fleet, o Options) *Server {
	return &Server{fleet: f, options: o, streams: fairshare.New(mostStreams)}
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) { accesslogv3.RegisterAccessLogServiceServer(r, s) }

// StreamAccessLogs takes what a waypoint has to say of the calls to one pool.
func (s *Server) StreamAccessLogs(stream accesslogv3.AccessLogService_StreamAccessLogsServer) error {
	name := admission.Opened(stream.Context(), pool.NameHeader)
	if !s.options.Admits.Admits(stream.Context(), name) {
		return status.Error(codes.PermissionDenied, "the proxy has not shown the pool's token")
	}
	parsed, ok := pool.ParseName(name)
	if !ok || s.fleet.Pool(parsed) == nil {
		return status.Error(codes.NotFound, "there is no such pool")
	}
	room := s.streams.Of(parsed.Namespace)
	may := room.Take(1)
	defer room.Give(1)
	if !may {
		return status.Error(codes.ResourceExhausted, "there are as many streams as there may be, or as the pool's namespace may have")
	}
	ended := make(chan struct{})
	go func() { // which ends with the stream
		defer close(ended)
		for {
			message, err := stream.Recv()
			if err != nil {
				return
			}
			if p := s.fleet.Pool(parsed); p != nil {
				s.tell(p, message.GetHttpLogs().GetLogEntry())
			}
		}
	}()
	select {
	case <-ended:
	case <-time.After(streamTime):
	}
	return nil
}

// tell tells a pool of the calls that were broken off before the first byte of their answer's body. Where there was one, the
// prompt was prefilled: model servers write when they have a token.
func (s *Server) tell(p *poolstate.Pool, entries []*logv3.HTTPAccessLogEntry) {
	defer func() {
		if fault := recover(); fault != nil {
			s.options.Metrics.Panicked()
			s.options.Log.Error("a fault of the picker", "panic", fault, "stack", string(debug.Stack()))
		}
	}()
	for _, e := range entries {
		named := e.GetCommonProperties().GetMetadata().GetFilterMetadata()[pool.PickNamespace].GetFields()[pool.CallKey]
		if id := uint64(named.GetNumberValue()); id > 0 && e.GetResponse().GetResponseBodyBytes() == 0 {
			p.BrokenOff(id)
		}
	}
}
