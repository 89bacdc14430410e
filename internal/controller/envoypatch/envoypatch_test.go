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

func TestChain(t *testing.T) {
	patches, err := ChainPatches(front, "pool", "counted", nil)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range patches {
		if p.ApplyTo != networkingv1alpha3.EnvoyFilter_HTTP_FILTER {
			continue
		}
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

func TestAsk(t *testing.T) {
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
			wantMode:     mode(extprocv3.ProcessingMode_BUFFERED, extprocv3.ProcessingMode_NONE, extprocv3.ProcessingMode_SKIP),
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
			host, err := VirtualHost{Name: "pool", Picker: tt.picker}.build(front)
			if err != nil {
				t.Fatal(err)
			}
			override := &extprocv3.ExtProcPerRoute{}
			unpack(t, host.TypedPerFilterConfig[pickerFilter], override)
			got := override.GetOverrides()
			if c := got.GetGrpcService().GetEnvoyGrpc().GetClusterName(); c != tt.wantCluster {
				t.Errorf("cluster %q, want %q", c, tt.wantCluster)
			}
			if got.GetFailureModeAllow().GetValue() != tt.wantFailOpen {
				t.Errorf("failure_mode_allow %v, want %t", got.FailureModeAllow, tt.wantFailOpen)
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
		})
	}
}

// The chain's own ext_proc filter asks no picker and refuses the call. It lets no picker write the metadata that
// endpointsToMetadata writes.
func TestAskNobody(t *testing.T) {
	got := extProcFilter("counted")
	if c := got.GetGrpcService().GetEnvoyGrpc().GetClusterName(); c != noPicker {
		t.Errorf("cluster %q, want one that nobody makes", c)
	}
	if got.StatPrefix != "counted" {
		t.Errorf("what becomes of calls is counted under %q", got.StatPrefix)
	}
	if got.FailureModeAllow {
		t.Error("a call that no route says anything of goes on unpicked")
	}
	if slices.Contains(got.GetMetadataOptions().GetReceivingNamespaces().GetUntyped(), endpointsNamespace) {
		t.Error("a picker could write the endpoints past the filter that names them")
	}
}

// Answers are copied to the picker only if the pool asks for that. No part of a call waits for, or depends on, the copy.
func TestAnswersAreShown(t *testing.T) {
	picker := &Picker{Host: "picker.inference-system.svc.cluster.local", Port: 9002, Metadata: map[string]string{"pool": "models/llama"}}
	for name, to := range map[string]*Picker{"to nobody": nil, "to a picker": picker} {
		t.Run(name, func(t *testing.T) {
			patch, err := ClusterPatch(Cluster{Name: "c", Endpoints: front, ShownTo: to})
			if err != nil {
				t.Fatal(err)
			}
			options := &upstreamhttpv3.HttpProtocolOptions{}
			unpack(t, read(t, patch, &clusterv3.Cluster{}).TypedExtensionProtocolOptions[httpProtocolOptions], options)
			var names []string
			for _, f := range options.HttpFilters {
				names = append(names, f.Name)
			}
			if to == nil {
				if len(names) != 0 {
					t.Errorf("filters %v, want none", names)
				}
				return
			}
			if diff := cmp.Diff([]string{shownFilter, "envoy.filters.http.upstream_codec"}, names); diff != "" {
				t.Fatalf("filters (-want +got):\n%s", diff)
			}
			got := &extprocv3.ExternalProcessor{}
			unpack(t, options.HttpFilters[0].GetTypedConfig(), got)
			if !got.ObservabilityMode || !got.FailureModeAllow {
				t.Error("the answer waits for the picker, or ends with it")
			}
			want := &extprocv3.ProcessingMode{
				RequestHeaderMode: extprocv3.ProcessingMode_SKIP, ResponseHeaderMode: extprocv3.ProcessingMode_SEND,
				RequestBodyMode: extprocv3.ProcessingMode_NONE, ResponseBodyMode: extprocv3.ProcessingMode_STREAMED,
				RequestTrailerMode: extprocv3.ProcessingMode_SKIP, ResponseTrailerMode: extprocv3.ProcessingMode_SEND,
			}
			if diff := cmp.Diff(want, got.ProcessingMode, protocmp.Transform()); diff != "" {
				t.Errorf("processing mode (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(picker.service(), got.GrpcService, protocmp.Transform()); diff != "" {
				t.Errorf("service (-want +got):\n%s", diff)
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
		"virtual host without a name": func() error { _, err := VirtualHostPatch(front, VirtualHost{}); return err },
		"route of a malformed prefix": func() error { return Route{Match: Match{Path: PathMatch{Value: "/a?b"}}, Status: 404}.Check() },
		"line break in metadata": func() error {
			_, err := VirtualHostPatch(front, VirtualHost{Name: "pool", Picker: Picker{Host: "h", Port: 1, Metadata: map[string]string{"key": "a\nb"}}})
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

// TestFetchedRoutesReplace merges the patch as istiod does, one message into the other, and finds that nothing of
// istiod's routes is left and that the routes fetched are those that the virtual host is put into.
func TestFetchedRoutesReplace(t *testing.T) {
	patch, err := FetchedRoutesPatch(front, "pool")
	if err != nil {
		t.Fatal(err)
	}
	if patch.Patch.Operation != networkingv1alpha3.EnvoyFilter_Patch_MERGE {
		t.Errorf("operation %s, want MERGE", patch.Patch.Operation)
	}
	manager := &hcmv3.HttpConnectionManager{
		StatPrefix: "kept",
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name:         "istiod's",
			VirtualHosts: []*routev3.VirtualHost{{Name: "istiod's", Domains: []string{"*"}}},
		}},
	}
	next := &hcmv3.HttpConnectionManager{}
	unpack(t, read(t, patch, &listenerv3.Filter{}).GetTypedConfig(), next)
	proto.Merge(manager, next)
	if manager.GetRouteConfig() != nil || manager.StatPrefix != "kept" {
		t.Errorf("the manager is %v, want istiod's without its routes", manager)
	}
	if timeout := manager.GetRds().GetConfigSource().GetInitialFetchTimeout(); timeout == nil || timeout.AsDuration() != 0 {
		t.Error("a chain whose routes are late goes into use without them")
	}
	host, err := VirtualHostPatch(front, VirtualHost{Name: "pool", Routes: []Route{{To: []Destination{{Cluster: "c", Weight: 1}}}}})
	if err != nil {
		t.Fatal(err)
	}
	name := manager.GetRds().GetRouteConfigName()
	if got := host.GetMatch().GetRouteConfiguration().GetName(); got != name {
		t.Errorf("the virtual host is for routes %q, and the chain fetches %q", got, name)
	}
	// istiod patches routes of names that end in a port, after the first colon.
	if _, port, _ := strings.Cut(name, ":"); port != "99999" {
		t.Errorf("routes of the name %s would not be patched, or have a Service's hosts", name)
	}
	if diff := cmp.Diff([]string{"*"}, read(t, host, &routev3.VirtualHost{}).Domains); diff != "" {
		t.Errorf("domains (-want +got):\n%s", diff)
	}
}

// No part of a chain has anything that users edit.
func TestChainHoldsNoSettings(t *testing.T) {
	patches, err := ChainPatches(front, "pool", "counted", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range patches {
		if raw := protojson.Format(p.Patch.Value); strings.Contains(raw, "outbound|") || strings.Contains(raw, "routes") {
			t.Errorf("a change of a picker or a route would replace the chain: %s", raw)
		}
	}
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
