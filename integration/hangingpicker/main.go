// Command hangingpicker is the picker with a switch: from SIGUSR1 until SIGUSR2 it accepts calls, answers pings and picks
// nothing, like a picker in a deadlock. The integration tests run it instead of the picker. It handles pings by gRPC's
// defaults, as most pickers do.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	clustersource "github.com/inference-waypoint/inference-waypoint/internal/picker/sources/cluster"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hangingpicker:", err)
		os.Exit(1)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	flags := pflag.NewFlagSet("hangingpicker", pflag.ExitOnError)
	address := flags.String("extproc-address", ":9002", "serve ext_proc here")
	healthAddress := flags.String("health-address", ":9003", "serve health checks here")
	metricsAddress := flags.String("metrics-address", ":9090", "serve metrics here")
	service := flags.String("service", "inference-system/inference-picker", "serve the pools that name this Service")
	unnamed := flags.Bool("unnamed-pools", true, "serve the pools that name none")
	flags.ParseErrorsAllowlist.UnknownFlags = true // flags of the picker
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	metrics := telemetry.NewMetrics(registry)
	pools := poolstate.New(poolstate.Options{Metrics: metrics})
	from, err := cluster(pools, *service, *unnamed)
	if err != nil {
		return err
	}
	picker := extproc.New(pools, extproc.Options{Metrics: metrics, Log: slog.Default()})
	server := grpc.NewServer(append(extproc.ServerOptions(16<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{}), grpc.StreamInterceptor(hang(ctx)))...)
	picker.Register(server)
	listener, err := net.Listen("tcp", *address)
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(listener) }() // until the program ends
	probe, err := extproc.NewProbe(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
	})
	if err != nil {
		return err
	}
	states, probes := health.NewServer(), grpc.NewServer()
	states.SetServingStatus("readiness", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(probes, extproc.Health(states, probe, "readiness"))
	onHealth, err := net.Listen("tcp", *healthAddress)
	if err != nil {
		return err
	}
	go func() { _ = probes.Serve(onHealth) }() // until the program ends
	onMetrics, err := net.Listen("tcp", *metricsAddress)
	if err != nil {
		return err
	}
	go func() { //nolint:gosec // a test's server needs no time limits
		_ = http.Serve(onMetrics, promhttp.HandlerFor(registry, promhttp.HandlerOpts{})) // until the program ends
	}()
	from.Run(ctx, func() { states.SetServingStatus("readiness", healthv1.HealthCheckResponse_SERVING) })
	return nil
}

// hang holds streams that begin after SIGUSR1 until SIGUSR2, or until their callers leave.
func hang(ctx context.Context) grpc.StreamServerInterceptor {
	var wake atomic.Pointer[chan struct{}] // nil while it picks
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case s := <-signals:
				if before := wake.Swap(nil); before != nil {
					close(*before)
				}
				if s == syscall.SIGUSR1 {
					next := make(chan struct{})
					wake.Store(&next)
				}
			}
		}
	}()
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if stuck := wake.Load(); stuck != nil {
			select {
			case <-*stuck:
			case <-stream.Context().Done():
				return stream.Context().Err()
			}
		}
		return handler(srv, stream)
	}
}

func cluster(pools *poolstate.Fleet, service string, unnamed bool) (*clustersource.Cluster, error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	pods, inferencePools, err := clustersource.Watches(config)
	if err != nil {
		return nil, err
	}
	namespace, name, _ := strings.Cut(service, "/")
	serves := pool.Serves{Services: []types.NamespacedName{{Namespace: namespace, Name: name}}, Unnamed: unnamed}
	return clustersource.New(pods, inferencePools, pools, serves, slog.Default())
}
