// Package extproc speaks Envoy's external processing protocol with a proxy: it takes a stream's messages, has an
// endpoint picked, and is the only place where replies are built. How an endpoint is chosen and what a body says may
// not enter.
//
// The contract with the proxy is the Endpoint Picker Protocol 1.0.0 of the Gateway API Inference Extension.
package extproc

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/admission"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/answer"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairqueue"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Service is the name under which health checks ask for this service.
const Service = "envoy.service.ext_proc.v3.ExternalProcessor"

// Options are what a Server is made of.
type Options struct {
	Metrics *telemetry.Metrics
	Log     *slog.Logger
	// Tracer makes a span of each pick; nil makes none.
	Tracer trace.Tracer
	// MaxStreams is how many streams, which are calls in flight, may be open at once, and a namespace's pools may have four
	// times as many of them as are free; what is above is ended as overloaded, so that the pool's failure mode decides.
	// As many again may show answers; those above are not looked at. As many again may be open without a message; above
	// that the oldest of them is ended. 0 sets no limit.
	MaxStreams int
	// MaxHeldBytes bounds what is held, of all calls together, of bodies that proxies stream to us before the pick, and a
	// namespace's pools may hold four times as much of it as is free. Where it is used up, calls are picked on the part of
	// the body that is there. As many may be on their way back to proxies; streams above that are ended. 0 sets no limit.
	MaxHeldBytes int
	// Admits says whether a proxy that shows this token may ask about the pool of this name; nil admits all.
	Admits admission.Check
	// BodyWithin is how long a call may take from its headers to what decides it, which is at most 1 MiB of its body. 0 is
	// the time after which proxies give up a call that stands still: five minutes.
	BodyWithin time.Duration
}

// Server answers the streams of proxies.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer

	fleet    *poolstate.Fleet
	probes   *poolstate.Pool // what a Probe has picked from
	options  Options
	sessions sync.Pool
	tails    sync.Pool
	streams  *fairshare.Whole // calls: streams on which a message came
	silent   patience         // with streams without a message
	bodiless patience         // with calls that are not decided on yet
	shown    *fairshare.Whole // streams that only show an answer
	held     *fairshare.Whole // bytes of bodies before the pick
	reading  *fairqueue.Queue // turns at the processors, for prompts
	pieces   *fairshare.Whole // bytes of pieces of bodies that are not given back yet

	parting sync.Once
	parted  chan struct{} // closed by Part
}

// New makes a server that picks from the fleet.
func New(f *poolstate.Fleet, o Options) *Server {
	s := &Server{
		fleet:    f,
		probes:   newProbePool(),
		reading:  fairqueue.New(runtime.GOMAXPROCS(0)),
		options:  o,
		streams:  fairshare.New(int64(o.MaxStreams)),
		shown:    fairshare.New(int64(o.MaxStreams)),
		held:     fairshare.New(int64(o.MaxHeldBytes)),
		pieces:   fairshare.New(piecesOf(o.MaxHeldBytes)),
		silent:   patience{awaited: "headers", within: headersWithin, most: o.MaxStreams},
		bodiless: patience{awaited: "body", within: cmp.Or(o.BodyWithin, bodyWithin), refuses: true},
		parted:   make(chan struct{}),
	}
	s.sessions.New = func() any { return &session{server: s} }
	s.tails.New = func() any { return new(answer.Tail) }
	return s
}

// tenantOf is the tenant of a pool's name, which is the namespace: one that makes many pools has no more for it. Names
// that no pool has are one tenant together.
func (s *Server) tenantOf(name string) string {
	if s.find(name) == nil {
		return ""
	}
	namespace, _, _ := strings.Cut(name, "/")
	return namespace
}

// Register adds the service to a gRPC server, which must be made with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) { extprocv3.RegisterExternalProcessorServer(r, s) }

// LargestMessage is the length of the longest message, in bytes, of a proxy with Envoy's own limits: the 1 MiB that it
// buffers, a read of as much on top of that, and the headers. gRPC gathers a message before we see whose it is, so it is in
// nobody's share, and each stream may have one.
const LargestMessage = 3 << 20

// ServerOptions are the settings of gRPC that this service needs: its own way of reading and writing its messages; and
// those that fit it: many short streams on few connections, messages of up to maxMessage bytes one way and of some
// hundred bytes the other.
func ServerOptions(maxMessage int) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InTapHandle(makeTerminable),
		// A proxy whose machine died says no goodbye, and TCP waits for hours. Its calls would count as load until then.
		// Nothing else has to look for calls that are over and still counted: a call is a stream, Envoy resets a call's
		// stream when it drops the call, whatever the reason, and what can lose the reset is the connection, which these
		// pings watch. The thread of Envoy that answers them is the one that owns the call. A call that a server ended and
		// whose caller does not read is still a call; readings keep it out of the queue.
		// Connections are not ended by age: a proxy opens a second one for that, and streams live on for minutes.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// A waypoint sends a ping with a call that comes after a silence. By default gRPC takes the third one that no reply
		// of ours came before for an attack, and closes the connection with all of its calls.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 50 * time.Millisecond, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(maxMessage),
		// A body of Envoy's default 1 MiB comes without waiting for a window; fixed windows also save the pings
		// that would otherwise measure the bandwidth.
		grpc.StaticStreamWindowSize(1 << 20),
		grpc.StaticConnWindowSize(16 << 20),
	}
}

// leastPieces is the room for pieces of bodies on their way back, however little may be held: those of a few calls.
const leastPieces = 8 << 20

// piecesOf is the room for pieces on their way back beside so much for held bodies.
func piecesOf(held int) int64 {
	if held == 0 {
		return 0
	}
	return max(int64(held), leastPieces)
}

// Part ends all streams whose pick is made, in the way that leaves their calls unharmed: with OK, which tells the
// proxy to go on without the picker. It is for the end of a drain. Streams that wait for their pick go on until then, and
// those through which a request's body passes until its end: at OK in the middle of that, Envoy 1.40 goes on without the
// pieces that are on their way, and the model server gets a body with a hole. Answers come through OK whole.
func (s *Server) Part() { s.parting.Do(func() { close(s.parted) }) }

// admits says whether the proxy may ask about the pool that it names. A probe comes from ourselves.
func (s *Server) admits(stream context.Context, name string) bool {
	return name == probePool || s.options.Admits.Admits(stream, name)
}

// find is the pool of a name, or nil.
func (s *Server) find(name string) *poolstate.Pool {
	if name == probePool {
		return s.probes
	}
	parsed, ok := pool.ParseName(name)
	if !ok {
		return nil
	}
	return s.fleet.Pool(parsed)
}

// countRefusal counts a refused call under its pool if there is one of that name, so that what clients send makes no
// series.
func (s *Server) countRefusal(name string, reason refusal.Reason) {
	if p := s.find(name); p != nil {
		p.Metrics().Refused(string(reason))
		return
	}
	s.options.Metrics.RefusedWithoutPool(string(reason))
}

// ended makes of a stream's end, as the proxy brings it about, no error.
func ended(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}
