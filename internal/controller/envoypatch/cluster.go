package envoypatch

import (
	"fmt"
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	leastrequestv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	overridehostv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/override_host/v3"
	internalupstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/internal_upstream/v3"
	rawbufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/raw_buffer/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	metadatav3 "github.com/envoyproxy/go-control-plane/envoy/type/metadata/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

// httpProtocolOptions is the key of a cluster's HTTP options.
const httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// upstreamIdleTimeout closes an idle connection before the model server does. vLLM and other servers on uvicorn close idle
// connections after 5 s. A call written at that moment is lost, and not safe to retry, as the server may have read it.
const upstreamIdleTimeout = 4 * time.Second

// connectTimeout bounds one attempt to connect, as Istio's own default does.
const connectTimeout = 10 * time.Second

// Cluster is the cluster of a pool's endpoints, which sends each call to the endpoints that the picker lists.
type Cluster struct {
	Name string
	// Endpoints is the front whose endpoints istiod sends, with the metadata that HBONE needs.
	Endpoints Front
	// H2C speaks cleartext HTTP/2 to the endpoints, else HTTP/1.1.
	H2C bool
	// ShownTo is the ext_proc service that gets a copy of the endpoints' answers. Only its Host, Port and Metadata count.
	// It is nil where no service gets copies.
	ShownTo *Picker
	// Service and Namespace name the pool in Istio's telemetry.
	Service, Namespace string
}

// ClusterPatch adds the cluster to a waypoint. istiod's own inbound cluster of a host cannot be patched, so our cluster is
// beside it, with the same endpoints.
func ClusterPatch(c Cluster) (*Patch, error) {
	built, err := c.build()
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	value, err := toStruct(built)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.Name, err)
	}
	return &Patch{
		ApplyTo: networkingv1alpha3.EnvoyFilter_CLUSTER,
		Match:   &networkingv1alpha3.EnvoyFilter_EnvoyConfigObjectMatch{Context: networkingv1alpha3.EnvoyFilter_SIDECAR_INBOUND},
		Patch:   &networkingv1alpha3.EnvoyFilter_Patch{Operation: networkingv1alpha3.EnvoyFilter_Patch_ADD, Value: value},
	}, nil
}

func (c Cluster) build() (*clusterv3.Cluster, error) {
	options, err := c.httpOptions()
	if err != nil {
		return nil, err
	}
	http, err := pack(options)
	if err != nil {
		return nil, err
	}
	transport, err := internalUpstream()
	if err != nil {
		return nil, err
	}
	policy, err := pickedOrLeastRequest()
	if err != nil {
		return nil, err
	}
	return &clusterv3.Cluster{
		Name:                 c.Name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{
			ServiceName: c.Endpoints.IstioName(),
			EdsConfig: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				InitialFetchTimeout:   durationpb.New(0), // wait for the endpoints, as Istio's clusters do
				ResourceApiVersion:    corev3.ApiVersion_V3,
			},
		},
		ConnectTimeout:                durationpb.New(connectTimeout),
		CircuitBreakers:               limits(),
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpProtocolOptions: http},
		TransportSocket:               transport,
		LoadBalancingPolicy:           policy,
		Metadata:                      c.telemetry(),
	}, nil
}

func (c Cluster) httpOptions() (*upstreamhttpv3.HttpProtocolOptions, error) {
	filters, err := c.filters()
	if err != nil {
		return nil, err
	}
	explicit := &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		},
	}
	if c.H2C {
		explicit.ProtocolConfig = &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		}
	}
	return &upstreamhttpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(upstreamIdleTimeout)},
		UpstreamProtocolOptions: &upstreamhttpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: explicit,
		},
		HttpFilters: filters,
	}, nil
}

// The bound of concurrent retries in a cluster: a share of its calls in flight, and at least the minimum.
const (
	retryBudget     = 50 // percent of the calls in flight
	leastConcurrent = 16 // retries
)

// limits removes Envoy's default limits of 1,024 parallel requests and 3 retries for a cluster, as the picker judges how
// many calls a pool can take. Retries stay bounded: a prompt that crashes one server would crash the next, and a fault that
// hits most calls would triple the load. The budget of half of the calls covers the loss of one endpoint of three. In pools
// of two endpoints, and in small pools, the minimum applies. A retry counts until its answer begins.
func limits() *clusterv3.CircuitBreakers {
	unlimited := wrapperspb.UInt32(math.MaxUint32)
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections:     unlimited,
		MaxPendingRequests: unlimited,
		MaxRequests:        unlimited,
		RetryBudget: &clusterv3.CircuitBreakers_Thresholds_RetryBudget{
			BudgetPercent:       &typev3.Percent{Value: retryBudget},
			MinRetryConcurrency: wrapperspb.UInt32(leastConcurrent),
		},
	}}}
}

// internalUpstream connects to endpoints through the waypoint's internal listener, which reads the HBONE tunnel's target
// from the host's metadata. An endpoint outside the mesh has no such metadata, and Envoy connects to it directly.
func internalUpstream() (*corev3.TransportSocket, error) {
	raw, err := pack(&rawbufferv3.RawBuffer{})
	if err != nil {
		return nil, err
	}
	config, err := pack(&internalupstreamv3.InternalUpstreamTransport{
		PassthroughMetadata: []*internalupstreamv3.InternalUpstreamTransport_MetadataValueSource{
			hostMetadata("envoy.filters.listener.original_dst"),
			hostMetadata("istio"), // telemetry of the tunnel
		},
		TransportSocket: &corev3.TransportSocket{
			Name:       "envoy.transport_sockets.raw_buffer",
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: raw},
		},
	})
	if err != nil {
		return nil, err
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.internal_upstream",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: config},
	}, nil
}

func hostMetadata(namespace string) *internalupstreamv3.InternalUpstreamTransport_MetadataValueSource {
	return &internalupstreamv3.InternalUpstreamTransport_MetadataValueSource{
		Kind: &metadatav3.MetadataKind{Kind: &metadatav3.MetadataKind_Host_{Host: &metadatav3.MetadataKind_Host{}}},
		Name: namespace,
	}
}

// pickedOrLeastRequest sends a call to the picker's endpoints in their order, the next one at each retry, and records the
// endpoint that served. It skips addresses that are not endpoints. Without a list it takes the less busy of two endpoints.
// In a simulated fleet under a real hour of model traffic, that gave a time to first token of 8.3 s (p90); a choice that
// ignores load gave 13.1 s.
func pickedOrLeastRequest() (*clusterv3.LoadBalancingPolicy, error) {
	leastRequest, err := pack(&leastrequestv3.LeastRequest{})
	if err != nil {
		return nil, err
	}
	override, err := pack(&overridehostv3.OverrideHost{
		OverrideHostSources: []*overridehostv3.OverrideHost_OverrideHostSource{{
			Metadata: metadataKey(endpointsNamespace, endpointsKey),
		}},
		SelectedHostKey: metadataKey(pickNamespace, servedKey),
		FallbackPolicy:  loadBalancing("envoy.load_balancing_policies.least_request", leastRequest),
	})
	if err != nil {
		return nil, err
	}
	return loadBalancing("envoy.load_balancing_policies.override_host", override), nil
}

func loadBalancing(name string, config *anypb.Any) *clusterv3.LoadBalancingPolicy {
	return &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{{
		TypedExtensionConfig: &corev3.TypedExtensionConfig{Name: name, TypedConfig: config},
	}}}
}

func metadataKey(namespace, key string) *metadatav3.MetadataKey {
	return &metadatav3.MetadataKey{
		Key: namespace,
		Path: []*metadatav3.MetadataKey_PathSegment{{
			Segment: &metadatav3.MetadataKey_PathSegment_Key{Key: key},
		}},
	}
}

// telemetry is the metadata from which Istio's metrics read a call's destination service.
func (c Cluster) telemetry() *corev3.Metadata {
	service := structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
		"host":      structpb.NewStringValue(c.Endpoints.Host),
		"name":      structpb.NewStringValue(c.Service),
		"namespace": structpb.NewStringValue(c.Namespace),
	}})
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		"istio": {Fields: map[string]*structpb.Value{
			"services": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{service}}),
		}},
	}}
}
