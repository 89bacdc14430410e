// Command epp is the endpoint picker of the conformance tests: the one in their manifests' image (lwepp), from its own
// packages, with two faults corrected (bodies.go). The image's program listens on all addresses of the machine. The mesh's
// pods share one network namespace, so this program listens only on its pod's address.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/log/zap"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/gateway-api-inference-extension/pkg/common"
	"sigs.k8s.io/gateway-api-inference-extension/pkg/lwepp/datastore"
	"sigs.k8s.io/gateway-api-inference-extension/pkg/lwepp/handlers"
	"sigs.k8s.io/gateway-api-inference-extension/pkg/lwepp/server"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "epp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	options := server.NewOptions()
	flags := pflag.NewFlagSet("epp", pflag.ContinueOnError)
	options.AddFlags(flags)
	address := flags.String("address", "", "the pod's `IP`")
	_ = flags.String("zap-encoder", "json", "the `format` of logs, which is always JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctrl.SetLogger(zap.New(zap.UseDevMode(false)))
	store := datastore.NewDatastore(ctx)
	manager, err := newManager(options, store)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return manager.Start(ctx) })
	group.Go(func() error { return serveHealth(ctx, *address, options.GRPCHealthPort, store) })
	group.Go(func() error { return servePicker(ctx, *address, options, store) })
	return group.Wait()
}

// newManager keeps the store up to date with the pool and its pods.
func newManager(options *server.Options, store datastore.Datastore) (ctrl.Manager, error) {
	config, err := ctrl.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the API server: %w", err)
	}
	name := common.GKNN{
		NamespacedName: types.NamespacedName{Namespace: options.PoolNamespace, Name: options.PoolName},
		GroupKind:      schema.GroupKind{Group: options.PoolGroup, Kind: "InferencePool"},
	}
	manager, err := server.NewDefaultManager(server.NewControllerConfig(true), name, config, metricsserver.Options{BindAddress: "0"})
	if err != nil {
		return nil, fmt.Errorf("building the manager: %w", err)
	}
	runner := &server.ExtProcServerRunner{GKNN: name, Datastore: store}
	if err := runner.SetupWithManager(manager); err != nil {
		return nil, fmt.Errorf("setting up the controllers: %w", err)
	}
	return manager, nil
}

// servePicker serves waypoints by TLS, with a self-signed certificate, unless told not to use TLS.
func servePicker(ctx context.Context, address string, options *server.Options, store datastore.Datastore) error {
	var security []grpc.ServerOption
	if options.SecureServing {
		certificate, err := selfSigned()
		if err != nil {
			return err
		}
		security = append(security, grpc.Creds(credentials.NewServerTLSFromCert(&certificate)))
	}
	s := grpc.NewServer(security...)
	extprocv3.RegisterExternalProcessorServer(s, echoingBodies{handlers.NewStreamingServer(store)})
	return serve(ctx, s, address, options.GRPCPort)
}

// poolPoll is how often serveHealth checks whether the pool is known.
const poolPoll = 50 * time.Millisecond

// serveHealth answers probes: the picker is ready once it knows its pool.
func serveHealth(ctx context.Context, address string, port int, store datastore.Datastore) error {
	const service = "inference-extension"
	probes := health.NewServer()
	probes.SetServingStatus(service, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	go func() {
		for !store.PoolHasSynced() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(poolPoll):
			}
		}
		probes.SetServingStatus(service, grpc_health_v1.HealthCheckResponse_SERVING)
	}()
	s := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(s, probes)
	return serve(ctx, s, address, port)
}

func serve(ctx context.Context, s *grpc.Server, address string, port int) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(address, fmt.Sprint(port)))
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(listener); !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
