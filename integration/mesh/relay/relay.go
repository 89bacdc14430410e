// Package relay stands between istiod and a stock Envoy that runs as a waypoint. It removes the filters that only Istio's
// build of Envoy has, logs them, and changes no other filter. It also serves Envoy the certificates that Istio's agent
// would. It keeps the configuration that Envoy refuses, for tests to read.
package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/istiodclient"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
)

// Refusal is a configuration message that Envoy refused.
type Refusal struct {
	Node, TypeURL, Message string
}

func (r Refusal) Error() string {
	return fmt.Sprintf("%s refused %s: %s", r.Node, r.TypeURL, r.Message)
}

// Relay serves any number of waypoints.
type Relay struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	secretv3.UnimplementedSecretDiscoveryServiceServer

	authority *pki.Authority
	istiod    *grpc.ClientConn
	log       *slog.Logger

	mu       sync.Mutex
	refusals []Refusal
	dropped  map[string]int // number of removals of each filter; the first is logged
}

// New makes a relay that connects to istiod in plain text, but not yet. locate returns istiod's address; each new
// connection calls it again.
func New(locate func(context.Context) (string, error), authority *pki.Authority, log *slog.Logger) (*Relay, error) {
	conn, err := istiodclient.New(locate)
	if err != nil {
		return nil, err
	}
	return &Relay{authority: authority, istiod: conn, log: log, dropped: map[string]int{}}, nil
}

// Serve serves Envoys until ctx ends.
func (r *Relay) Serve(ctx context.Context, listener net.Listener) error {
	server := grpc.NewServer(grpc.MaxRecvMsgSize(istiodclient.MaxMessage), grpc.MaxSendMsgSize(istiodclient.MaxMessage))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, r)
	secretv3.RegisterSecretDiscoveryServiceServer(server, r)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	defer func() { _ = r.istiod.Close() }()
	if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving the relay: %w", err)
	}
	return nil
}

// Refusals lists what Envoys have refused so far.
func (r *Relay) Refusals() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Refusal(nil), r.refusals...)
}

// StreamAggregatedResources passes one Envoy's stream on to istiod, and removes what Envoy lacks from the responses.
func (r *Relay) StreamAggregatedResources(down discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	up, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.istiod).StreamAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("opening a stream to istiod: %w", err)
	}
	first, err := down.Recv()
	if err != nil {
		return err
	}
	go func() {
		defer cancel()
		for request := first; ; {
			r.note(first.GetNode().GetId(), request)
			if up.Send(request) != nil {
				return
			}
			var err error
			if request, err = down.Recv(); err != nil {
				return
			}
		}
	}()
	for {
		response, err := up.Recv()
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := r.adapt(first.GetNode(), response); err != nil {
			r.log.Error("adapting configuration", "node", first.GetNode().GetId(), "error", err)
			return status.Error(codes.Internal, err.Error())
		}
		if err := down.Send(response); err != nil {
			return err
		}
	}
}

func (r *Relay) note(node string, request *discoveryv3.DiscoveryRequest) {
	if request.GetErrorDetail() == nil {
		return
	}
	refusal := Refusal{Node: node, TypeURL: request.GetTypeUrl(), Message: request.GetErrorDetail().GetMessage()}
	r.log.Error("configuration refused", "node", node, "type", refusal.TypeURL, "message", refusal.Message)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusals = append(r.refusals, refusal)
}

func (r *Relay) drop(node, where, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	key := where + " " + what
	if r.dropped[key]++; r.dropped[key] == 1 {
		r.log.Info("taken out, as a stock Envoy lacks it", "node", node, "where", where, "what", what)
	}
}

// StreamSecrets gives Envoy its certificate and the mesh's root under the names that Istio's configuration uses.
func (r *Relay) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	var node *corev3.Node
	for {
		request, err := stream.Recv()
		if err != nil {
			return nil // Envoy closed the stream
		}
		if request.GetNode() != nil {
			node = request.GetNode()
		}
		if request.GetErrorDetail() != nil {
			r.note(node.GetId(), request)
			continue
		}
		if request.GetResponseNonce() != "" {
			continue // an acknowledgement
		}
		response, err := r.secrets(node, request)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

func (r *Relay) secrets(node *corev3.Node, request *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	response := &discoveryv3.DiscoveryResponse{TypeUrl: request.GetTypeUrl(), VersionInfo: "1", Nonce: "1"}
	for _, name := range request.GetResourceNames() {
		secret := &tlsv3.Secret{Name: name}
		switch name {
		case "default":
			fields := node.GetMetadata().GetFields()
			identity, err := r.authority.Workload(fields["NAMESPACE"].GetStringValue(), fields["SERVICE_ACCOUNT"].GetStringValue())
			if err != nil {
				return nil, err
			}
			secret.Type = &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
				CertificateChain: inline(identity.CertPEM), PrivateKey: inline(identity.KeyPEM),
			}}
		case "ROOTCA":
			secret.Type = &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
				TrustedCa: inline(r.authority.PEM),
			}}
		default:
			return nil, fmt.Errorf("no secret of the name %q in this mesh", name)
		}
		packed, err := anypb.New(secret)
		if err != nil {
			return nil, fmt.Errorf("packing secret %s: %w", name, err)
		}
		response.Resources = append(response.Resources, packed)
	}
	return response, nil
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}
