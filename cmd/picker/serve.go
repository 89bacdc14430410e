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

// Service names of health checks, by the Endpoint Picker Protocol; "" is gRPC's own name for the whole server.
const (
	livenessService  = "liveness"
	readinessService = "readiness"
)

// readyServices are the services that are healthy when the picker is ready for calls.
var readyServices = []string{"", readinessService, extproc.Service}

// probeBuffer is the buffer, in bytes, for a few of a probe's messages.
const probeBuffer = 32 << 10

// partTimeout is how long streams may take to end once the picker has ended them at a drain: proxies wait for a pick
// for 200 ms by default.
const partTimeout = time.Second

// servers are the program's servers, with open listeners.
type servers struct {
	options Options
	log     *slog.Logger

	picker       *extproc.Server
	broken       *brokenoff.Server
	certificates *certificates // nil without TLS

	extproc, probes                *grpc.Server
	others                         *others      // nil where there are no other pickers
	peers                          *grpc.Server // for the others
	probe                          *extproc.Probe
	fromProbe                      *bufconn.Listener // the ext_proc server's listener for the probe
	metrics, debug                 *http.Server
	health                         *health.Server
	onExtproc, onProbes, onMetrics net.Listener
	onDebug, onPeers               net.Listener

	mu       sync.Mutex
	draining bool // once true, the servers are never ready again
}

// listen makes the servers and opens their addresses. If one cannot be opened, it closes all.
func listen(o Options, picker *extproc.Server, broken *brokenoff.Server, others *others, metrics, debug http.Handler, log *slog.Logger) (*servers, error) {
	s := &servers{
		options: o,
		log:     log,
		picker:  picker,
		broken:  broken,
		probes:  grpc.NewServer(),
		others:  others,
		peers:   others.server(),
		// In memory, as a client over TLS may need a certificate that the picker itself does not have.
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

// makeExtproc makes the server that proxies call.
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

// probedHealth makes health checks that report ready only if the picker picks.
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
		{"peers", s.options.PeersAddress, &s.onPeers},
	} {
		if a.address == "" {
			continue
		}
		l, err := net.Listen("tcp", a.address)
		if err != nil {
			for _, l := range open {
				_ = l.Close() // the first error is the one to return
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

// synced makes the servers ready, unless they are draining already.
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

// serve runs the servers and the source until ctx ends or one of them fails, then drains. The source keeps the pools up
// to date until the last call has ended.
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
	if s.peers != nil {
		group.Go(func() error { return named("other pickers", s.peers.Serve(s.onPeers)) })
	}
	group.Go(func() error {
		<-ctx.Done()
		s.drain()
		stopSource()
		return nil
	})
	return group.Wait()
}

// drain first tells proxies that the picker is not ready and stops listening last, so that no call in between is
// refused. Calls that outlast the drain timeout go on without the picker. Only two kinds of streams are cut off: those
// whose proxy sends no request, and those through which a request's body streams without end.
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
		s.log.Warn("the drain timeout is over; calls in flight go on without the picker")
		s.picker.Part()
		if !within(ended, partTimeout) {
			s.log.Warn("cutting off streams whose request did not come to its end")
			s.extproc.Stop()
			<-ended
		}
	}
	s.probes.Stop()
	s.endPeers()
	_ = s.probe.Close()   // the process ends in any case
	_ = s.metrics.Close() // only the listeners are left to close
	_ = s.debug.Close()
	s.log.Info("stopped")
}

// endPeers ends the streams to other pickers when the last call's end was told.
func (s *servers) endPeers() {
	if s.others == nil {
		return
	}
	s.others.peers.Close()
	ended := make(chan struct{})
	go func() {
		s.peers.GracefulStop()
		close(ended)
	}()
	if !within(ended, partTimeout) {
		s.peers.Stop()
		<-ended
	}
}

// within waits for ended to be closed, for at most the given time, and reports whether it was.
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

// named adds the server's name to its error; a stopped server has none.
func named(server string, err error) error {
	if err == nil || errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return fmt.Errorf("serving %s: %w", server, err)
}
