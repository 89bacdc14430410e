// Package extproc speaks Envoy's external processing protocol with a proxy: it takes a stream's messages, has an
// endpoint picked, and is the only place where replies are built. How an endpoint is chosen and what a body says may
// not enter.
//
// The contract with the proxy is the Endpoint Picker Protocol 1.0.0 of the Gateway API Inference Extension.
package extproc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/fleet"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Service is the name under which health checks ask for this service.
const Service = "envoy.service.ext_proc.v3.ExternalProcessor"

// Server answers the streams of proxies.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer

	fleet    *fleet.Fleet
	metrics  *telemetry.Metrics
	log      *slog.Logger
	sessions sync.Pool
}

// New makes a server that picks from the fleet.
func New(f *fleet.Fleet, metrics *telemetry.Metrics, log *slog.Logger) *Server {
	s := &Server{fleet: f, metrics: metrics, log: log}
	s.sessions.New = func() any {
		return &session{server: s, pick: newPickReply(), chunk: newChunkReply()}
	}
	return s
}

// Register adds the service to a gRPC server, which should be made with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) { extprocv3.RegisterExternalProcessorServer(r, s) }

// ServerOptions are the settings of gRPC that fit this service: many short streams on few connections, messages of up
// to maxMessage bytes one way and of some hundred bytes the other.
func ServerOptions(maxMessage int) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.SharedWriteBuffer(true),
		// A body of Envoy's default 1 MiB comes without waiting for a window; fixed windows also save the pings
		// that would otherwise measure the bandwidth.
		grpc.StaticStreamWindowSize(1 << 20),
		grpc.StaticConnWindowSize(16 << 20),
	}
}

// Process serves one stream, which is one HTTP call, until the proxy ends it: with the call, by the protocol.
func (s *Server) Process(stream extprocv3.ExternalProcessor_ProcessServer) (err error) {
	s.metrics.StreamOpened()
	defer s.metrics.StreamClosed()
	x := s.sessions.Get().(*session)
	defer func() {
		if fault := recover(); fault != nil {
			// The session may be in any state and is left to the collector; only the claim is given back.
			x.reservation.Release(fleet.Abandoned)
			s.metrics.Panicked()
			s.log.Error("a stream failed by a fault of the picker", "pool", x.pool, "panic", fault, "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "the endpoint picker failed")
			return
		}
		x.end()
		s.sessions.Put(x)
	}()
	x.send, x.pool = stream, poolHeader(stream.Context())
	return x.run(stream)
}

// run takes messages until the exchange is over.
func (x *session) run(stream extprocv3.ExternalProcessor_ProcessServer) error {
	for {
		if err := stream.RecvMsg(&x.message); err != nil {
			return ended(err)
		}
		done, err := x.step(&x.message)
		// A stream lives as long as its call, a body's bytes only until the pick.
		x.message.Reset()
		if done || err != nil {
			return ended(err)
		}
	}
}

// ended makes of a stream's end, as the proxy brings it about, no error.
func ended(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}

// logPick tells of one pick, at the debug level only: there are thousands a second.
func (s *Server) logPick(x *session) {
	if !s.log.Enabled(context.Background(), slog.LevelDebug) {
		return
	}
	s.log.Debug("picked", "pool", x.pool, "path", x.path, "model", x.facts.Model, "endpoints", string(x.endpoints),
		"promptTokens", x.reservation.PromptTokens, "cachedTokens", x.reservation.CachedTokens)
}
