package extproc

import (
	"context"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const (
	serving    = healthv1.HealthCheckResponse_SERVING
	notServing = healthv1.HealthCheckResponse_NOT_SERVING
)

// probedServer serves a picker without pools and its probe; its streams wait while it hangs.
type probedServer struct {
	picker   *Server
	hangs    atomic.Bool
	wake     chan struct{}
	streams  atomic.Int64 // opened
	registry *prometheus.Registry
	probe    *Probe
	health   healthv1.HealthServer
	log      strings.Builder
}

func serveProbed(t *testing.T, maxStreams int) *probedServer {
	t.Helper()
	s := &probedServer{wake: make(chan struct{}), registry: prometheus.NewRegistry()}
	metrics := telemetry.NewMetrics(s.registry)
	log := slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.picker = New(poolstate.New(poolstate.Options{Metrics: metrics, Log: log}), Options{Metrics: metrics, Log: log, MaxStreams: maxStreams})
	address := serveOnly(t, s.picker.Register, append(ServerOptions(1<<20), grpc.StreamInterceptor(
		func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			s.streams.Add(1)
			if s.hangs.Load() {
				<-s.wake
			}
			return handler(srv, stream)
		}))...)
	var err error
	s.probe, err = NewProbe(func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", address) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.probe.Close() })
	h := health.NewServer()
	for _, service := range []string{"readiness", "liveness"} {
		h.SetServingStatus(service, serving)
	}
	s.health = Health(h, s.probe, "readiness")
	return s
}

func (s *probedServer) check(t *testing.T, service string, want healthv1.HealthCheckResponse_ServingStatus) {
	t.Helper()
	got, err := s.health.Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
	if err != nil || got.GetStatus() != want {
		t.Errorf("%s is %v, %v, want %s", service, got, err, want)
	}
}

// A picker without pools is ready, and a probe leaves no trace in logs or metrics.
func TestProbeLeavesNoTrace(t *testing.T) {
	s := serveProbed(t, 1)
	before := series(t, s.registry)
	for range 200 {
		s.check(t, "readiness", serving)
	}
	if after := series(t, s.registry); after != before {
		t.Errorf("the metrics were\n%s\nand are\n%s", before, after)
	}
	if s.log.Len() > 0 {
		t.Errorf("the log says %s", s.log.String())
	}
}

// series returns all metrics as text.
func series(t *testing.T, of prometheus.Gatherer) string {
	t.Helper()
	families, err := of.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, f := range families {
		out.WriteString(f.String() + "\n")
	}
	return out.String()
}

// A picker that has reached MaxStreams is busy, and still ready.
func TestProbeOfBusyPicker(t *testing.T) {
	s := serveProbed(t, 1)
	s.picker.streams.Of("models").Take(5)
	s.check(t, "readiness", serving)
	s.picker.streams.Of("models").Give(5)
}

// A picker that accepts streams and makes no pick is not ready. While it hangs, only one stream probes it. It is ready
// again as soon as it picks.
func TestProbeOfHungPicker(t *testing.T) {
	s := serveProbed(t, 0)
	s.check(t, "readiness", serving)
	s.hangs.Store(true)
	before := s.streams.Load()
	for range 2 {
		s.check(t, "readiness", notServing)
	}
	s.check(t, "liveness", serving)
	if n := s.streams.Load() - before; n != 1 {
		t.Errorf("%d streams were opened, want 1", n)
	}
	s.hangs.Store(false)
	close(s.wake)
	s.check(t, "readiness", serving)
}
