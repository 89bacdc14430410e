package extproc

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// probePatience is how long a probe waits for its pick. It is longer than a waypoint waits, so a picker that fails two
// probes in a row is of no use to any call. A kubelet waits for 1 s.
const probePatience = 500 * time.Millisecond

// probePool is the pool of the probe's picks. No pool of a cluster has its name, as the namespace is empty. A probe is
// not bound by MaxStreams, so proxies must not know the name: each process makes its own.
var probePool = "/probe-" + rand.Text()

// newProbePool makes the pool of probes: one endpoint, never scraped nor called, and metrics that nothing exports.
func newProbePool() *poolstate.Pool {
	own := poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
	name := types.NamespacedName{Name: "probe"}
	own.SetPool(pool.Pool{Name: name}, []pool.Endpoint{{Address: netip.MustParseAddrPort("127.0.0.1:9")}})
	return own.Pool(name)
}

// Probe makes picks as a proxy does, through the same gRPC server, to see whether the picker still picks: a process
// that hangs may well answer pings and simple health checks.
type Probe struct {
	conn *grpc.ClientConn

	mu      sync.Mutex
	attempt *attempt // the attempt under way, if any
}

// attempt is a probe's pick. err is valid once done is closed.
type attempt struct {
	done chan struct{}
	err  error
}

// NewProbe makes a probe of the server to which dial connects.
func NewProbe(dial func(context.Context) (net.Conn, error)) (*Probe, error) {
	conn, err := grpc.NewClient("passthrough:///picker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("making the probe's connection: %w", err)
	}
	return &Probe{conn: conn}, nil
}

// Close ends the probe's connection.
func (p *Probe) Close() error { return p.conn.Close() }

// Pick makes a pick, and fails if it does not come in time. All later probes join a pick that hangs, so a picker that
// hangs for an hour has one such call and not thousands.
func (p *Probe) Pick(ctx context.Context) error {
	late := time.NewTimer(probePatience)
	defer late.Stop()
	a := p.join()
	select {
	case <-a.done:
		return a.err
	case <-late.C:
		return fmt.Errorf("the picker did not pick within %s", probePatience)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// join returns the attempt under way, or begins one.
func (p *Probe) join() *attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attempt == nil {
		a := &attempt{done: make(chan struct{})}
		p.attempt = a
		go func() {
			a.err = p.pick(context.Background())
			p.mu.Lock()
			p.attempt = nil
			p.mu.Unlock()
			close(a.done)
		}()
	}
	return p.attempt
}

// probed is the request of a probe: headers without a body.
var probed = &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
	RequestHeaders: &extprocv3.HttpHeaders{EndOfStream: true, Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: ":method", RawValue: []byte("GET")}, {Key: ":path", RawValue: []byte("/")},
	}}},
}}

func (p *Probe) pick(ctx context.Context) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, pool.NameHeader, probePool))
	defer cancel()
	stream, err := extprocv3.NewExternalProcessorClient(p.conn).Process(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(probed); err != nil {
		return err
	}
	reply, err := stream.Recv()
	if err != nil {
		return err
	}
	if reply.GetRequestHeaders() == nil {
		return fmt.Errorf("the picker's reply to the probe holds no pick: %v", reply)
	}
	return nil
}

// Health answers health checks as h does, but for the given services it says SERVING only after a pick.
func Health(h *health.Server, p *Probe, services ...string) healthv1.HealthServer {
	return &probedHealth{h, p, services}
}

type probedHealth struct {
	*health.Server
	probe    *Probe
	services []string
}

func (h *probedHealth) Check(ctx context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	known, err := h.Server.Check(ctx, r)
	if err != nil || known.GetStatus() != healthv1.HealthCheckResponse_SERVING || !slices.Contains(h.services, r.GetService()) {
		return known, err
	}
	if h.probe.Pick(ctx) != nil {
		return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_NOT_SERVING}, nil
	}
	return known, nil
}
