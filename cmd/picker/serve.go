package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/test/bufconn"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/brokenoff"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
)

// Names under which health is asked, by the Endpoint Picker Protocol; "" is gRPC's own name for the whole server.
const (
	livenessService  = "liveness"
	readinessService = "readiness"
)

// readyServices are those whose health is whether calls may come.
var readyServices = []string{"", readinessService, extproc.Service}

// probeBuffer is room for a few of a probe's messages.
const probeBuffer = 32 << 10

// partTimeout is what is left for streams to end once the calls have been parted from: proxies wait for a pick for
// 200 ms by default.
const partTimeout = time.Second

// servers are the servers of the program, on listeners that are open.
type servers struct {
	options Options
	log     *slog.Logger

	picker       *extproc.Server
	broken       *brokenoff.Server
	certificates *certificates // nil without TLS

	extproc, probes                *grpc.Server
	probe                          *extproc.Probe
	fromProbe                      *bufconn.Listener // the ext_proc server's own, on which the probe calls it
	metrics, debug                 *http.Server
	health                         *health.Server
	onExtproc, onProbes, onMetrics net.Listener
	onDebug                        net.Listener

	mu       sync.Mutex
	draining bool // never ready again
}

// listen makes the servers and opens their addresses; where one cannot be opened, all are closed again.
func listen(o Options, picker *extproc.Server, broken *brokenoff.Server, metrics, debug http.Handler, log *slog.Logger) (*servers, error) {
	s := &servers{
		options: o,
		log:     log,
		picker:  picker,
		broken:  broken,
		probes:  grpc.NewServer(),
		// In memory, as who calls the picker over TLS may need a certificate that the picker itself has not.
		fromProbe: bufconn.Listen(probeBuffer),
		metrics:   &http.Server{Handler: metrics, ReadHeaderTimeout: 10 * time.Second},
		debug:     &http.Server{Handler: debug, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second},
		health:    health.NewServer(),
	}
	var err error
	s.probe, err = extproc.NewProbe(s.fromProbe.DialContext)
	if err != nil {
		return nil, err
	}
	if err := s.makeExtproc(); err != nil {
		return nil, err
	}
	healthv1.RegisterHealthServer(s.probes, s.probedHealth())
	s.health.SetServingStatus(livenessService, healthv1.HealthCheckResponse_SERVING)
	s.setReady(healthv1.HealthCheckResponse_NOT_SERVING)
	return s, s.open()
}

// makeExtproc makes the server that proxies speak to.
func (s *servers) makeExtproc() error {
	options := extproc.ServerOptions(s.options.MaxMessageBytes)
	if s.options.TLSCertFile != "" {
		c, err := openCertificates(s.options, s.log)
		if err != nil {
			return err
		}
		s.certificates, options = c, append(options, grpc.Creds(c.credentials()))
	}
	s.extproc = grpc.NewServer(options...)
	s.picker.Register(s.extproc)
	s.broken.Register(s.extproc)
	reflection.Register(s.extproc)
	healthv1.RegisterHealthServer(s.extproc, s.probedHealth())
	return nil
}

// probedHealth says that the picker is ready only where it picks.
func (s *servers) probedHealth() healthv1.HealthServer {
	return extproc.Health(s.health, s.probe, readyServices...)
}

// open opens the addresses.
func (s *servers) open() error {
	var open []net.Listener
	for _, a := range []struct {
		name, address string
		listener      *net.Listener
	}{
		{"extproc", s.options.ExtprocAddress, &s.onExtproc},
		{"health", s.options.HealthAddress, &s.onProbes},
		{"metrics", s.options.MetricsAddress, &s.onMetrics},
		{"debug", s.options.DebugAddress, &s.onDebug},
	} {
		l, err := net.Listen("tcp", a.address)
		if err != nil {
			for _, l := range open {
				_ = l.Close() // the first error is the one to tell
			}
			return fmt.Errorf("listening for %s: %w", a.name, err)
		}
		open = append(open, l)
		*a.listener = l
		s.log.Info("listening", "for", a.name, "address", l.Addr().String())
	}
	return nil
}

func (s *servers) setReady(status healthv1.HealthCheckResponse_ServingStatus) {
	for _, name := range readyServices {
		s.health.SetServingStatus(name, status)
	}
}

// synced makes the servers ready, unless they are ending already.
func (s *servers) synced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.draining {
		return
	}
	s.setReady(healthv1.HealthCheckResponse_SERVING)
	s.log.Info("ready")
}

func (s *servers) unready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	s.setReady(healthv1.HealthCheckResponse_NOT_SERVING)
}

// serve runs the servers and the source until ctx ends or one of them fails, then drains: the source goes on telling
// of endpoints until the last call has ended.
func (s *servers) serve(ctx context.Context, from source) error {
	sourceContext, stopSource := context.WithCancel(context.WithoutCancel(ctx))
	defer stopSource()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		from.Run(sourceContext, s.synced)
		return nil
	})
	if s.certificates != nil {
		group.Go(func() error {
			s.certificates.run(sourceContext, fileInterval)
			return nil
		})
	}
	group.Go(func() error { return named("ext_proc", s.extproc.Serve(s.onExtproc)) })
	group.Go(func() error { return named("ext_proc to the probe", s.extproc.Serve(s.fromProbe)) })
	group.Go(func() error { return named("health", s.probes.Serve(s.onProbes)) })
	group.Go(func() error { return named("metrics", s.metrics.Serve(s.onMetrics)) })
	group.Go(func() error { return named("debug", s.debug.Serve(s.onDebug)) })
	group.Go(func() error {
		<-ctx.Done()
		s.drain()
		stopSource()
		return nil
	})
	return group.Wait()
}

// drain tells proxies first and ends last, so that between the two no call meets a closed door. Calls that outlast the
// drain timeout go on without the picker; only streams that cannot be parted from are cut off: those whose proxy does not
// even bring a request, or streams one through us that does not end.
func (s *servers) drain() {
	s.log.Info("draining")
	s.unready()
	time.Sleep(s.options.DrainDelay)
	ended := make(chan struct{})
	go func() {
		s.extproc.GracefulStop()
		close(ended)
	}()
	if !within(ended, s.options.DrainTimeout) {
		s.log.Warn("parting from calls in flight at the end of the drain timeout")
		s.picker.Part()
		if !within(ended, partTimeout) {
			s.log.Warn("streams without a whole request are cut off")
			s.extproc.Stop()
			<-ended
		}
	}
	s.probes.Stop()
	_ = s.probe.Close()   // the picker ends in any case
	_ = s.metrics.Close() // the listeners are all that is left to close
	_ = s.debug.Close()
	s.log.Info("stopped")
}

// within waits for an end, for at most so long, and says whether it came.
func within(ended <-chan struct{}, long time.Duration) bool {
	late := time.NewTimer(long)
	defer late.Stop()
	select {
	case <-ended:
		return true
	case <-late.C:
		return false
	}
}

// named says which server failed; one that was stopped did not.
func named(server string, err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serving %s: %w", server, err)
}
