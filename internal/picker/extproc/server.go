// Package extproc serves Envoy's external processing protocol: it reads a stream's messages, has an endpoint picked,
// and is the only place where replies are built. It must not know how an endpoint is chosen or what a body means.
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

	"github.com/inference-waypoint/inference-waypoint/internal/picker/answer"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairqueue"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/proxies"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Service is this service's name in health checks.
const Service = "envoy.service.ext_proc.v3.ExternalProcessor"

// Options configure a Server.
type Options struct {
	Metrics *telemetry.Metrics
	Log     *slog.Logger
	// Tracer makes a span for each pick; nil makes none.
	Tracer trace.Tracer
	// MaxStreams is how many streams may be open at once, each of which is a call in flight. The pools of a namespace may
	// have four times as many as are free. A stream above the limit ends as overloaded, so that the pool's failure mode
	// decides. As many further streams may show answers; answers above that are not read. As many further streams may be open
	// without a message; above that the oldest of them is ended. 0 sets no limit.
	MaxStreams int
	// MaxHeldBytes bounds the bytes of bodies, of all calls together, that are held before the pick. The pools of a
	// namespace may hold four times as much as is free. Above the limit a call is picked on the part of its body that has
	// come. An encoded body takes request.DecodingBytes while it is decoded, and is not read above the limit. As many bytes
	// may be on their way back to proxies; streams above that are ended. 0 sets no limit.
	MaxHeldBytes int
	// Admits says whether a proxy that sends this token may ask about the pool of this name; nil admits all.
	Admits proxies.Check
	// BodyWithin is how long a call may take from its headers to the part of its body that decides the pick, at most 1
	// MiB. 0 stands for five minutes, after which Envoy ends an idle stream by default.
	BodyWithin time.Duration
}

// Server answers the streams of proxies.
type Server struct {
	extprocv3.UnimplementedExternalProcessorServer

	fleet        *poolstate.Fleet
	probes       *poolstate.Pool // the pool of Probe's picks
	options      Options
	sessions     sync.Pool
	tails        sync.Pool
	streams      *fairshare.Whole // calls: streams on which a message came
	awaitHeaders waitlist         // streams without a message
	awaitBody    waitlist         // calls that await the part of their body that decides
	shown        *fairshare.Whole // streams on which a proxy only shows an answer
	held         *fairshare.Whole // bytes of bodies that are held before the pick
	reading      *fairqueue.Queue // turns to read a prompt, one for each processor
	pieces       *fairshare.Whole // bytes of body chunks that are not sent back yet

	parting sync.Once
	parted  chan struct{} // closed by Part
}

// New makes a server that picks from the fleet.
func New(f *poolstate.Fleet, o Options) *Server {
	s := &Server{
		fleet:        f,
		probes:       newProbePool(),
		reading:      fairqueue.New(runtime.GOMAXPROCS(0)),
		options:      o,
		streams:      fairshare.New(int64(o.MaxStreams)),
		shown:        fairshare.New(int64(o.MaxStreams)),
		held:         fairshare.New(int64(o.MaxHeldBytes)),
		pieces:       fairshare.New(piecesOf(o.MaxHeldBytes)),
		awaitHeaders: waitlist{awaited: "headers", within: headersWithin, most: o.MaxStreams},
		awaitBody:    waitlist{awaited: "body", within: cmp.Or(o.BodyWithin, bodyWithin), refuses: true},
		parted:       make(chan struct{}),
	}
	s.sessions.New = func() any { return &session{server: s} }
	s.tails.New = func() any { return new(answer.Tail) }
	return s
}

// tenantOf returns the tenant of a pool, which is its namespace: many pools give a namespace no larger share. All names
// without a pool are one tenant.
func (s *Server) tenantOf(name string) string {
	if s.find(name) == nil {
		return ""
	}
	namespace, _, _ := strings.Cut(name, "/")
	return namespace
}

// Register adds the service to a gRPC server, which must be made with ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) { extprocv3.RegisterExternalProcessorServer(r, s) }

// LargestMessage is the length, in bytes, of the longest message that a proxy sends with Envoy's own limits: the 1 MiB
// that it buffers, one more read, and the headers. gRPC assembles a message before its pool is known, so it counts in
// no tenant's share, and each stream may have one.
const LargestMessage = 3 << 20

// ServerOptions are the gRPC settings that this service needs: its own codec, and limits for many short streams on few
// connections, with requests of up to maxMessage bytes and replies of some hundred bytes.
func ServerOptions(maxMessage int) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InTapHandle(makeTerminable),
		// A proxy whose node died closes no connection, and TCP notices after hours. Until then its calls would count as
		// load. These pings are the only check for calls that are over and still counted. A call is a stream, and Envoy
		// resets the stream when it drops the call, for whatever reason. The reset can only be lost with the connection,
		// which the pings watch. The Envoy thread that answers the pings owns the call. A call that a server ended and whose
		// caller does not read is still a call; readings keep it out of the queue. Connections are not ended by age: a proxy
		// would open a second one, and streams last for minutes.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		// A waypoint sends a ping with a call that comes after 5 ms without a reply, and no second one before the ping's
		// own reply. By default gRPC takes the third ping without another message in between for an attack, and closes the
		// connection with all of its calls.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Millisecond, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(maxMessage),
		// These windows take a body of Envoy's default 1 MiB without waiting. Fixed windows also save the pings that would
		// otherwise measure the bandwidth.
		grpc.StaticStreamWindowSize(1 << 20),
		grpc.StaticConnWindowSize(16 << 20),
	}
}

// leastPieces is the least limit on body chunks on their way back, whatever MaxHeldBytes is: the chunks of a few calls.
const leastPieces = 8 << 20

// piecesOf returns the limit on body chunks on their way back, for a limit on held bodies.
func piecesOf(held int) int64 {
	if held == 0 {
		return 0
	}
	return max(int64(held), leastPieces)
}

// Part ends all streams whose pick is made, at the end of a drain. It ends them with OK, upon which the proxy goes on
// without the picker, so their calls are unharmed. Calls that are held are picked now. A stream that waits for its pick goes on until the pick is made. A
// stream through which a request's body passes goes on until the body's end: at OK before that, Envoy 1.40 drops the
// chunks that are on their way, and the model server gets a body with a hole. Answers pass OK unharmed.
func (s *Server) Part() {
	s.parting.Do(func() {
		s.fleet.LetGo()
		close(s.parted)
	})
}

// admits says whether the proxy may ask about the pool that it names. The picker's own probe always may.
func (s *Server) admits(stream context.Context, name string) bool {
	return name == probePool || s.options.Admits.Admits(stream, name)
}

// find returns the pool of a name, or nil.
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

// countRefusal counts a refused call under its pool if that exists, so names that clients make up create no series.
func (s *Server) countRefusal(name string, reason refusal.Reason) {
	if p := s.find(name); p != nil {
		p.Metrics().Refused(string(reason))
		return
	}
	s.options.Metrics.RefusedWithoutPool(string(reason))
}

// ended returns nil for the errors with which a proxy normally ends a stream.
func ended(err error) error {
	if errors.Is(err, io.EOF) || status.Code(err) == codes.Canceled {
		return nil
	}
	return err
}
