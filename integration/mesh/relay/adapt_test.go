package relay

import (
	"log/slog"
	"testing"

	udpav1 "github.com/cncf/xds/go/udpa/type/v1"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
)

// The relay removes what a stock Envoy lacks and changes the tunnel listener's address. All else passes as istiod sent it.
func TestAdaptChangesOnlyWhatItMust(t *testing.T) {
	var (
		lacking = packed(t, &udpav1.TypedStruct{TypeUrl: "type.googleapis.com/io.istio.something"})
		known   = packed(t, &extprocv3.ExternalProcessor{StatPrefix: "kept"})
	)
	hcm := func(filters ...*hcmv3.HttpFilter) *listenerv3.Filter {
		return &listenerv3.Filter{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{
			TypedConfig: packed(t, &hcmv3.HttpConnectionManager{StatPrefix: "kept", HttpFilters: filters}),
		}}
	}
	http := func(name string, config *anypb.Any) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}}
	}
	network := func(name string, config *anypb.Any) *listenerv3.Filter {
		return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: config}}
	}
	listener := func(name, address string, chain, fallback []*listenerv3.Filter) *listenerv3.Listener {
		return &listenerv3.Listener{
			Name: name, StatPrefix: "kept",
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: 15008},
			}}},
			FilterChains:       []*listenerv3.FilterChain{{Name: "a", Filters: chain}},
			DefaultFilterChain: &listenerv3.FilterChain{Name: "b", Filters: fallback},
		}
	}
	tests := map[string]struct{ in, want proto.Message }{
		"HTTP filters, in every chain": {
			in:   listener("main_internal", "0.0.0.0", []*listenerv3.Filter{hcm(http("x", lacking), http("y", known))}, []*listenerv3.Filter{hcm(http("x", lacking))}),
			want: listener("main_internal", "0.0.0.0", []*listenerv3.Filter{hcm(http("y", known))}, []*listenerv3.Filter{hcm()}),
		},
		"network filters": {
			in:   listener("main_internal", "0.0.0.0", []*listenerv3.Filter{network("x", lacking), network("y", known)}, nil),
			want: listener("main_internal", "0.0.0.0", []*listenerv3.Filter{network("y", known)}, nil),
		},
		"the tunnel's address": {
			in:   listener(tunnelListener, "0.0.0.0", nil, nil),
			want: listener(tunnelListener, "10.244.0.6", nil, nil),
		},
		"a cluster's filters": {
			in:   &clusterv3.Cluster{Name: "c", AltStatName: "kept", Filters: []*clusterv3.Filter{{Name: "istio.metadata_exchange"}}},
			want: &clusterv3.Cluster{Name: "c", AltStatName: "kept"},
		},
		"nothing of another type": {in: known, want: known},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			r := &Relay{log: slog.New(slog.DiscardHandler), dropped: map[string]int{}}
			response := &discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{packed(t, test.in)}}
			if err := r.adapt(&corev3.Node{Id: "waypoint~10.244.0.6~pod.ns~ns.svc.cluster.local"}, response); err != nil {
				t.Fatal(err)
			}
			got, err := response.GetResources()[0].UnmarshalNew()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	out, err := anypb.New(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
