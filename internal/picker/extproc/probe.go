package extproc

import (
	"context"
	"crypto/rand"
	"errors"
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

// probePatience is how long a probe waits for its pick. A kubelet waits for 1 s. It is longer than a waypoint waits,
// so who fails it twice in a row is of no use to any call.
const probePatience = 500 * time.Millisecond

// probePool is the pool that probes have picked from. No pool of a cluster is named so: its namespace is empty. A probe is
// never one too many, so proxies must not know the name: each process has its own.
var probePool = "/probe-" + rand.Text()

// newProbePool makes the pool of probes: one endpoint, which nobody reads or calls, and metrics that nobody sees.
func newProbePool() *poolstate.Pool {
	own := poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
	name := types.NamespacedName{Name: "probe"}
	own.SetPool(pool.Pool{Name: name}, []pool.Endpoint{{Address: netip.MustParseAddrPort("127.0.0.1:9")}})
	return own.Pool(name)
}

// Probe has picks made as a proxy does, by the same gRPC server and the same ways up to the pool, to see whether the
// picker still picks: a process that hangs may well answer pings and simple health checks.
type Probe struct {
	conn *grpc.ClientConn

	mu      sync.Mutex
	attempt *attempt // the one that is under way, if any
}

// attempt is a probe's pick. err is there once done is closed.
type attempt struct {
	done chan struct{}
	err  error
}

// NewProbe probes the server that connections are dialled to.
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

// Pick has a pick made and fails where none comes in time. A pick that hangs is waited for by all probes that follow, so
// that a picker that hangs for an hour has one call in its hands and not thousands.
func (p *Probe) Pick(ctx context.Context) error {
	late := time.NewTimer(probePatience)
	defer late.Stop()
	a := p.join()
	select {
	case <-a.done:
		return a.err
	case <-late.C:
		return errors.New("no pick in time")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// join finds the attempt that is under way, or begins one.
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

// probed is the request that is picked for: its headers alone are the whole of it.
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
		return fmt.Errorf("the reply is no pick: %v", reply)
	}
	return nil
}

// Health answers health checks as h does, but for some services it says SERVING only after a pick.
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
