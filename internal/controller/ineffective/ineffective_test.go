package ineffective

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
)

// place is of pool models/llama, at waypoint infra/shared: its own host, one that it claims, and Service models/front.
func place() Place {
	name := func(name string) types.NamespacedName { return types.NamespacedName{Namespace: "models", Name: name} }
	return Place{
		Waypoint: types.NamespacedName{Namespace: "infra", Name: "shared"}, RootNamespace: "istio-system",
		Clusters: []string{"inference|models/llama"},
		Fronts: []Front{
			{
				Object: routes.Object{Group: "networking.istio.io", Kind: "ServiceEntry", Name: name("llama")},
				Hosts:  []string{"llama.models.inference.internal", "llama.example.com"}, Ports: []uint32{80},
			},
			{
				Object: routes.Object{Kind: "Service", Name: name("front")},
				Hosts:  []string{"front.models.svc.cluster.local"}, Ports: []uint32{8080},
			},
		},
	}
}

func TestFindVirtualServices(t *testing.T) {
	tests := map[string]struct {
		namespace, spec string
		want            bool
	}{
		"the pool's host":                      {"models", "{hosts: [llama.models.inference.internal], http: [{}]}", true},
		"beside another host":                  {"models", "{hosts: [other.example.com, llama.models.inference.internal], http: [{}]}", true},
		"a host that the pool claims":          {"models", "{hosts: [llama.example.com], http: [{}]}", true},
		"another host":                         {"models", "{hosts: [qwen.models.inference.internal], http: [{}]}", false},
		"a front by its short name":            {"models", "{hosts: [front], http: [{}]}", true},
		"a short name of another's namespace":  {"infra", "{hosts: [front], http: [{}]}", false},
		"a wildcard":                           {"models", `{hosts: ["*.models.inference.internal"], http: [{}]}`, true},
		"a wildcard of another domain":         {"models", `{hosts: ["*.other.inference.internal"], http: [{}]}`, false},
		"the wildcard of all":                  {"models", `{hosts: ["*"], http: [{}]}`, true},
		"in the waypoint's namespace":          {"infra", "{hosts: [llama.models.inference.internal], http: [{}]}", true},
		"in a namespace that Istio ignores":    {"shop", "{hosts: [llama.models.inference.internal], http: [{}]}", false},
		"for no HTTP":                          {"models", "{hosts: [llama.models.inference.internal], tcp: [{}]}", false},
		"for a Gateway":                        {"models", "{hosts: [llama.models.inference.internal], gateways: [edge], http: [{}]}", false},
		"for a Gateway and the mesh":           {"models", "{hosts: [llama.models.inference.internal], gateways: [edge, mesh], http: [{}]}", true},
		"exported to its own namespace":        {"models", `{hosts: [llama.models.inference.internal], exportTo: ["."], http: [{}]}`, false},
		"of the waypoint's, exported to it":    {"infra", `{hosts: [llama.models.inference.internal], exportTo: ["."], http: [{}]}`, true},
		"exported to the waypoint's namespace": {"models", `{hosts: [llama.models.inference.internal], exportTo: [shop, infra], http: [{}]}`, true},
		"exported to all":                      {"models", `{hosts: [llama.models.inference.internal], exportTo: ["*"], http: [{}]}`, true},
		"exported to nobody":                   {"infra", `{hosts: [llama.models.inference.internal], exportTo: ["~"], http: [{}]}`, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := NewObjects()
			v := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: tt.namespace, Name: "tested"}}
			decode(t, tt.spec, &v.Spec)
			in.VirtualServices[nameOf(v)] = v
			wantFound(t, in, "VirtualService", nameOf(v), tt.want)
		})
	}
}

func TestFindDestinationRules(t *testing.T) {
	const locality = "{loadBalancer: {localityLbSetting: {enabled: true}}}"
	tests := map[string]struct {
		namespace, spec string
		want            bool
	}{
		"the pool's host":                {"models", "{host: llama.models.inference.internal, trafficPolicy: {outlierDetection: {}}}", true},
		"subsets":                        {"models", "{host: llama.models.inference.internal, subsets: [{name: a}]}", true},
		"nothing but the host":           {"models", "{host: llama.models.inference.internal}", false},
		"locality, which holds":          {"models", "{host: llama.models.inference.internal, trafficPolicy: " + locality + "}", false},
		"locality and more":              {"models", "{host: llama.models.inference.internal, trafficPolicy: {outlierDetection: {}, loadBalancer: {localityLbSetting: {}}}}", true},
		"a front by its short name":      {"models", "{host: front, trafficPolicy: {tls: {}}}", true},
		"a wildcard":                     {"infra", `{host: "*.inference.internal", trafficPolicy: {tls: {}}}`, true},
		"another host":                   {"models", "{host: qwen.models.inference.internal, trafficPolicy: {tls: {}}}", false},
		"a default for all the mesh":     {"istio-system", `{host: "*", trafficPolicy: {tls: {}}}`, false},
		"exported to nobody near":        {"models", `{host: llama.models.inference.internal, exportTo: ["."], trafficPolicy: {tls: {}}}`, false},
		"for other workloads":            {"infra", "{host: llama.models.inference.internal, workloadSelector: {matchLabels: {app: shop}}, trafficPolicy: {tls: {}}}", false},
		"for the waypoint by its name":   {"infra", "{host: llama.models.inference.internal, workloadSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: shared}}, trafficPolicy: {tls: {}}}", true},
		"for another's, of that name":    {"models", "{host: llama.models.inference.internal, workloadSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: shared}}, trafficPolicy: {tls: {}}}", false},
		"for the waypoint of other name": {"infra", "{host: llama.models.inference.internal, workloadSelector: {matchLabels: {gateway.networking.k8s.io/gateway-name: other}}, trafficPolicy: {tls: {}}}", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := NewObjects()
			d := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: tt.namespace, Name: "tested"}}
			decode(t, tt.spec, &d.Spec)
			in.DestinationRules[nameOf(d)] = d
			wantFound(t, in, "DestinationRule", nameOf(d), tt.want)
		})
	}
}

func TestFindEnvoyFilters(t *testing.T) {
	const (
		gateway = "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: shared}]"
		inbound = "match: {context: SIDECAR_INBOUND"
		merge   = "patch: {operation: MERGE}"
		class   = "targetRefs: [{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}]"
	)
	tests := map[string]struct {
		namespace, targets, patch string
		want                      bool
	}{
		"all routes":                      {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + "}, " + merge + "}", true},
		"all routes, of any context":      {"infra", gateway, "{applyTo: HTTP_ROUTE, " + merge + "}", true},
		"virtual hosts":                   {"infra", gateway, "{applyTo: VIRTUAL_HOST, " + inbound + "}, " + merge + "}", true},
		"route configurations":            {"infra", gateway, "{applyTo: ROUTE_CONFIGURATION, " + inbound + "}, " + merge + "}", true},
		"all route configurations":        {"infra", gateway, "{applyTo: ROUTE_CONFIGURATION, " + merge + "}", false},
		"a virtual host of all routes":    {"infra", gateway, "{applyTo: VIRTUAL_HOST, patch: {operation: ADD}}", false},
		"all virtual hosts":               {"infra", gateway, "{applyTo: VIRTUAL_HOST, " + merge + "}", true},
		"route configurations of a port":  {"infra", gateway, "{applyTo: ROUTE_CONFIGURATION, match: {routeConfiguration: {portNumber: 80}}, " + merge + "}", true},
		"routes that waypoints call by":   {"infra", gateway, "{applyTo: HTTP_ROUTE, match: {context: SIDECAR_OUTBOUND}, " + merge + "}", false},
		"the host's routes":               {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + `, routeConfiguration: {name: "inbound-vip|80|http|llama.models.inference.internal"}}, ` + merge + "}", true},
		"another host's routes":           {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + `, routeConfiguration: {name: "inbound-vip|80|http|qwen.models.inference.internal"}}, ` + merge + "}", false},
		"routes of a front's port":        {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + ", routeConfiguration: {portNumber: 8080}}, " + merge + "}", true},
		"routes of another port":          {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + ", routeConfiguration: {portNumber: 9090}}, " + merge + "}", false},
		"routes of istiod's virtual host": {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + `, routeConfiguration: {vhost: {name: "inbound|http|80", route: {action: ANY}}}}, ` + merge + "}", true},
		"of a virtual host that is none":  {"infra", gateway, "{applyTo: HTTP_ROUTE, " + inbound + ", routeConfiguration: {vhost: {name: mine}}}, " + merge + "}", false},
		"istiod's cluster":                {"infra", gateway, "{applyTo: CLUSTER, " + inbound + `, cluster: {name: "inbound-vip|80|http|llama.models.inference.internal"}}, ` + merge + "}", true},
		"the pool's cluster":              {"infra", gateway, "{applyTo: CLUSTER, match: {cluster: {name: inference|models/llama}}, " + merge + "}", true},
		"clusters of the host":            {"infra", gateway, "{applyTo: CLUSTER, match: {cluster: {service: llama.example.com}}, patch: {operation: REMOVE}}", true},
		"all clusters":                    {"infra", gateway, "{applyTo: CLUSTER, " + merge + "}", false},
		"another cluster":                 {"infra", gateway, "{applyTo: CLUSTER, match: {cluster: {service: qwen.models.inference.internal}}, " + merge + "}", false},
		"a cluster of its own":            {"infra", gateway, "{applyTo: CLUSTER, match: {cluster: {name: inference|models/llama}}, patch: {operation: ADD}}", false},
		"HTTP filters, which hold":        {"infra", gateway, "{applyTo: HTTP_FILTER, " + inbound + "}, " + merge + "}", false},
		"network filters, which hold":     {"infra", gateway, "{applyTo: NETWORK_FILTER, " + inbound + "}, " + merge + "}", false},
		"by the pool's host":              {"models", "targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: llama}]", "{applyTo: HTTP_ROUTE}", true},
		"by a front":                      {"models", `targetRefs: [{group: "", kind: Service, name: front}]`, "{applyTo: HTTP_ROUTE}", true},
		"by a front, in words":            {"models", "targetRefs: [{group: core, kind: Service, name: front}]", "{applyTo: HTTP_ROUTE}", true},
		"by a Service of that name":       {"shop", `targetRefs: [{group: "", kind: Service, name: front}]`, "{applyTo: HTTP_ROUTE}", false},
		"of another waypoint":             {"infra", "targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: other}]", "{applyTo: HTTP_ROUTE}", false},
		"of another namespace's waypoint": {"models", gateway, "{applyTo: HTTP_ROUTE}", false},
		"of all waypoints":                {"istio-system", class, "{applyTo: HTTP_ROUTE}", true},
		"of all waypoints, by a tenant":   {"infra", class, "{applyTo: HTTP_ROUTE}", false},
		"for workloads":                   {"infra", "workloadSelector: {labels: {app: shop}}", "{applyTo: HTTP_ROUTE}", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := NewObjects()
			f := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Namespace: tt.namespace, Name: "tested"}}
			decode(t, "{"+tt.targets+", configPatches: [{applyTo: LISTENER}, "+tt.patch+"]}", &f.Spec)
			in.EnvoyFilters[nameOf(f)] = f
			wantFound(t, in, "EnvoyFilter", nameOf(f), tt.want)
		})
	}
}

// An EnvoyFilter that removes or changes the filters that ask the picker is reported too.
func TestFindHarmfulEnvoyFilters(t *testing.T) {
	tests := map[string]struct {
		filter, operation string
		want              bool
	}{
		"removed":         {"inference-waypoint.picker", "REMOVE", true},
		"merged into":     {"inference-waypoint.guard", "MERGE", true},
		"replaced":        {"inference-waypoint.endpoints", "REPLACE", true},
		"another's":       {"envoy.filters.http.router", "REMOVE", false},
		"put before ours": {"inference-waypoint.picker", "INSERT_BEFORE", false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in := NewObjects()
			f := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "tested"}}
			decode(t, "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: shared}], configPatches: [{applyTo: HTTP_FILTER, "+
				"match: {listener: {filterChain: {filter: {subFilter: {name: "+tt.filter+"}}}}}, patch: {operation: "+tt.operation+"}}]}", &f.Spec)
			in.EnvoyFilters[nameOf(f)] = f
			wantFound(t, in, harmfulFilter, nameOf(f), tt.want)
		})
	}
}

func TestMessage(t *testing.T) {
	if got := Message(nil); got != "" {
		t.Errorf("of nothing: %q", got)
	}
	in := NewObjects()
	for _, name := range []string{"f", "b", "a", "e", "c", "g", "d"} {
		v := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name}}
		decode(t, "{hosts: [llama.example.com], http: [{}]}", &v.Spec)
		in.VirtualServices[nameOf(v)] = v
	}
	d := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "a"}}
	decode(t, "{host: llama.example.com, trafficPolicy: {tls: {}}}", &d.Spec)
	in.DestinationRules[nameOf(d)] = d
	got := Message(Find(place(), in, "cluster.local"))
	for _, want := range []string{
		"VirtualService models/a, models/b, models/c, models/d, models/e, 2 more (write an HTTPRoute",
		"; DestinationRule infra/a (",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("it does not say %q: %s", want, got)
		}
	}
	if strings.Contains(got, "EnvoyFilter") {
		t.Errorf("it names a kind of which there is nothing: %s", got)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func wantFound(t *testing.T, in Objects, kind string, name types.NamespacedName, found bool) {
	t.Helper()
	var want []Object
	if found {
		want = []Object{{kind, name}}
	}
	if diff := cmp.Diff(want, Find(place(), in, "cluster.local")); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
}
