package envoypatch

import (
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	upstreamhttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	networkingv1alpha3 "istio.io/api/networking/v1alpha3"
)

var front = Front{Host: "llama.models.inference.internal", Port: 80}

func TestFilters(t *testing.T) {
	patches, err := Filters(front, Picker{Host: "picker.inference-system.svc.cluster.local", Port: 9002, FailOpen: true})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range patches {
		names = append(names, read(t, p, &hcmv3.HttpFilter{}).Name)
		if got := p.Match.GetListener().GetFilterChain().GetName(); got != "inbound-vip|80|http|"+front.Host {
			t.Errorf("the patch is for chain %q: without the front's own it reaches every host of the waypoint", got)
		}
		if p.Patch.Operation != networkingv1alpha3.EnvoyFilter_Patch_INSERT_BEFORE {
			t.Errorf("operation %s, want INSERT_BEFORE the router", p.Patch.Operation)
		}
	}
	// Filters run in the order of the patches. The client's header must go before the picker sets its own, and be read
	// after that.
	if diff := cmp.Diff([]string{guardFilter, pickerFilter, endpointsFilter}, names); diff != "" {
		t.Errorf("filters (-want +got):\n%s", diff)
	}
}

func TestExternalProcessor(t *testing.T) {
	const own = "picker.inference-system.svc.cluster.local"
	mode := func(body, response extprocv3.ProcessingMode_BodySendMode, trailers extprocv3.ProcessingMode_HeaderSendMode) *extprocv3.ProcessingMode {
		return &extprocv3.ProcessingMode{
			RequestHeaderMode: extprocv3.ProcessingMode_SEND, ResponseHeaderMode: extprocv3.ProcessingMode_SEND,
			RequestBodyMode: body, ResponseBodyMode: response,
			RequestTrailerMode: trailers, ResponseTrailerMode: trailers,
		}
	}
	duplex := extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED
	tests := map[string]struct {
		picker       Picker
		wantCluster  string
		wantMode     *extprocv3.ProcessingMode
		wantFailOpen bool
		wantMetadata []string
	}{
		"buffered": {
			picker: Picker{
				Host: own, Port: 9002, FailOpen: true,
				Metadata: map[string]string{"pool": "models/llama", "a-key": "first in order"},
			},
			wantCluster:  "outbound|9002||" + own,
			wantMode:     mode(extprocv3.ProcessingMode_BUFFERED_PARTIAL, extprocv3.ProcessingMode_NONE, extprocv3.ProcessingMode_SKIP),
			wantFailOpen: true,
			wantMetadata: []string{"a-key=first in order", "pool=models/llama"},
		},
		"duplex": {
			picker:      Picker{Host: own, Port: 9002, Protocol: Duplex},
			wantCluster: "outbound|9002||" + own,
			wantMode:    mode(duplex, duplex, extprocv3.ProcessingMode_SEND),
		},
		"nobody to ask": {
			picker:      Picker{Protocol: Duplex},
			wantCluster: noPicker,
			wantMode:    mode(duplex, duplex, extprocv3.ProcessingMode_SEND),
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			patches, err := Filters(front, tt.picker)
			if err != nil {
				t.Fatal(err)
			}
			got := &extprocv3.ExternalProcessor{}
			unpack(t, read(t, patches[1], &hcmv3.HttpFilter{}).GetTypedConfig(), got)
			if c := got.GetGrpcService().GetEnvoyGrpc().GetClusterName(); c != tt.wantCluster {
				t.Errorf("cluster %q, want %q", c, tt.wantCluster)
			}
			if got.FailureModeAllow != tt.wantFailOpen {
				t.Errorf("failure_mode_allow %t, want %t", got.FailureModeAllow, tt.wantFailOpen)
			}
			if diff := cmp.Diff(tt.wantMode, got.ProcessingMode, protocmp.Transform()); diff != "" {
				t.Errorf("processing mode (-want +got):\n%s", diff)
			}
			var metadata []string
			for _, m := range got.GetGrpcService().GetInitialMetadata() {
				metadata = append(metadata, m.Key+"="+m.Value)
			}
			if diff := cmp.Diff(tt.wantMetadata, metadata); diff != "" {
				t.Errorf("metadata (-want +got):\n%s", diff)
			}
			if slices.Contains(got.GetMetadataOptions().GetReceivingNamespaces().GetUntyped(), endpointsNamespace) {
				t.Error("a picker could write the endpoints past the filter that names them")
			}
		})
	}
}

func TestClusterSpeaksItsProtocol(t *testing.T) {
	for name, h2c := range map[string]bool{"HTTP/1.1": false, "h2c": true} {
		t.Run(name, func(t *testing.T) {
			patch, err := ClusterPatch(Cluster{Name: "c", Endpoints: front, H2C: h2c})
			if err != nil {
				t.Fatal(err)
			}
			cluster := read(t, patch, &clusterv3.Cluster{})
			if got := cluster.GetEdsClusterConfig().GetServiceName(); got != "inbound-vip|80|http|"+front.Host {
				t.Errorf("endpoints of %q, want those that istiod sends for the front", got)
			}
			options := &upstreamhttpv3.HttpProtocolOptions{}
			unpack(t, cluster.TypedExtensionProtocolOptions[httpProtocolOptions], options)
			if got := options.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil; got != h2c {
				t.Errorf("HTTP/2 %t, want %t", got, h2c)
			}
		})
	}
}

func TestInvalid(t *testing.T) {
	tests := map[string]func() error{
		"cluster without a name":      func() error { _, err := ClusterPatch(Cluster{Endpoints: front}); return err },
		"virtual host without a name": func() error { _, err := VirtualHostPatch(front, VirtualHost{Cluster: "c"}); return err },
		"route to no cluster":         func() error { _, err := VirtualHostPatch(front, VirtualHost{Name: "v"}); return err },
		"line break in metadata": func() error {
			_, err := Filters(front, Picker{Host: "h", Port: 1, Metadata: map[string]string{"key": "a\nb"}})
			return err
		},
	}
	for name, build := range tests {
		t.Run(name, func(t *testing.T) {
			if err := build(); err == nil || !strings.Contains(err.Error(), "validating") && !strings.Contains(err.Error(), "invalid") {
				t.Errorf("got error %v, want Envoy's own validation's", err)
			}
		})
	}
}

// TestVirtualHostWins matches authorities as Envoy does: an exact domain first, then the longest wildcard, then "*".
func TestVirtualHostWins(t *testing.T) {
	patch, err := VirtualHostPatch(front, VirtualHost{Name: "pool", Cluster: "c"})
	if err != nil {
		t.Fatal(err)
	}
	manager := &hcmv3.HttpConnectionManager{}
	unpack(t, read(t, patch, &listenerv3.Filter{}).GetTypedConfig(), manager)
	hosts := append(manager.GetRouteConfig().GetVirtualHosts(), &routev3.VirtualHost{Name: "istiod", Domains: []string{"*"}})
	for _, authority := range []string{
		front.Host, front.Host + ":80", strings.ToUpper(front.Host), front.Host + ".", "llama", "llama.models",
		"240.240.0.7", "240.240.0.7:80", "[2001:db8::1]", "[2001:db8::1]:80", "anything-else.example.com", "under_score_",
	} {
		if got := match(hosts, authority); got != "pool" {
			t.Errorf("%s goes to the virtual host of %s", authority, got)
		}
	}
	seen := map[string]bool{}
	for _, h := range hosts {
		for _, d := range h.Domains {
			if seen[d] {
				t.Errorf("domain %s is there twice, which Envoy refuses", d)
			}
			seen[d] = true
		}
	}
}

func match(hosts []*routev3.VirtualHost, authority string) string {
	authority = strings.ToLower(authority)
	best, length := "", -1
	for _, h := range hosts {
		for _, d := range h.Domains {
			suffix, wildcard := strings.CutPrefix(d, "*")
			switch {
			case d == authority:
				return h.Name
			case wildcard && len(authority) > len(suffix) && strings.HasSuffix(authority, suffix) && len(suffix) > length:
				best, length = h.Name, len(suffix)
			}
		}
	}
	return best
}

// read parses a patch's value strictly, as Envoy would take it.
func read[M proto.Message](t *testing.T, p *Patch, into M) M {
	t.Helper()
	raw, err := protojson.Marshal(p.Patch.Value)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(raw, into); err != nil {
		t.Fatal(err)
	}
	return into
}

func unpack(t *testing.T, packed *anypb.Any, into proto.Message) {
	t.Helper()
	if err := packed.UnmarshalTo(into); err != nil {
		t.Fatal(err)
	}
}
