// Package ineffective finds the Istio objects of others that are meant for calls to a pool and have no effect on them. A
// pool's routes and the cluster of its endpoints stand in the place of those that istiod makes, so what istiod would put
// into its own is lost. The package is pure: it reads no cluster. It must name nothing that has an effect, such as a
// Telemetry, a WasmPlugin, an AuthorizationPolicy or an EnvoyFilter's HTTP filters: a test in the mesh holds each kind to
// what happens there.
package ineffective

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"istio.io/api/label"
	"istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
)

// Place is where a pool is called: at one waypoint, by its fronts there.
type Place struct {
	Waypoint types.NamespacedName
	// RootNamespace is the mesh's, where EnvoyFilters may be for all waypoints.
	RootNamespace string
	Fronts        []Front
	// Clusters are Envoy's names of the pool's endpoints, as the EnvoyFilter of the pool has them.
	Clusters []string
}

// Front is a ServiceEntry or a Service by which a pool is called.
type Front struct {
	Object routes.Object
	Hosts  []string
	Ports  []uint32
}

// Objects are those of others in a cluster.
type Objects struct {
	VirtualServices  map[types.NamespacedName]*networkingv1.VirtualService
	DestinationRules map[types.NamespacedName]*networkingv1.DestinationRule
	EnvoyFilters     map[types.NamespacedName]*networkingv1alpha3.EnvoyFilter
}

// NewObjects has none yet.
func NewObjects() Objects {
	return Objects{
		VirtualServices:  map[types.NamespacedName]*networkingv1.VirtualService{},
		DestinationRules: map[types.NamespacedName]*networkingv1.DestinationRule{},
		EnvoyFilters:     map[types.NamespacedName]*networkingv1alpha3.EnvoyFilter{},
	}
}

// Object is one that has no effect.
type Object struct {
	Kind string
	Name types.NamespacedName
}

// The kinds of an Object.
const (
	virtualService  = "VirtualService"
	destinationRule = "DestinationRule"
	envoyFilter     = "EnvoyFilter"
	harmfulFilter   = "harmful EnvoyFilter" // told of as an EnvoyFilter
)

// instead says of each kind what its writer can write.
var instead = []struct{ kind, text string }{
	{virtualService, "write an HTTPRoute whose parent is the host's object"},
	{destinationRule, "the pool's picker chooses endpoints and leaves out those that fail: see the annotations inference-waypoint.io/pick-*"},
	{envoyFilter, "its patches of routes and of the pool's clusters are lost: write an HTTPRoute, or patch HTTP filters"},
	{harmfulFilter, "leave filters alone whose names begin with " + envoypatch.FilterPrefix},
}

// Find lists the objects without effect at a place, and those that meddle with ours, by kind and name. It goes by the scope that Istio gives each kind: an
// object that Istio would not apply there if the place were no pool's is not listed.
func Find(at Place, in Objects, clusterDomain string) []Object {
	var out []Object
	for name, v := range in.VirtualServices {
		if at.called(v, VirtualServiceHosts(v, clusterDomain), v.Spec.GetExportTo()) {
			out = append(out, Object{virtualService, name})
		}
	}
	for name, d := range in.DestinationRules {
		if at.selects(d) && at.called(d, DestinationRuleHosts(d, clusterDomain), d.Spec.GetExportTo()) {
			out = append(out, Object{destinationRule, name})
		}
	}
	for name, f := range in.EnvoyFilters {
		if at.targeted(f) && slices.ContainsFunc(f.Spec.GetConfigPatches(), at.loses) {
			out = append(out, Object{envoyFilter, name})
		}
		if at.targeted(f) && slices.ContainsFunc(f.Spec.GetConfigPatches(), harms) {
			out = append(out, Object{harmfulFilter, name})
		}
	}
	slices.SortFunc(out, func(a, b Object) int {
		return cmp.Or(cmp.Compare(order(a.Kind), order(b.Kind)), cmp.Compare(a.Name.String(), b.Name.String()))
	})
	return out
}

func order(kind string) int {
	for i, k := range instead {
		if k.kind == kind {
			return i
		}
	}
	return len(instead)
}

// maxNamed bounds how many objects of a kind a message names.
const maxNamed = 5

// Message tells of the objects and of what to write instead. It is empty where there are none.
func Message(all []Object) string {
	var parts []string
	for _, k := range instead {
		prefix, kind := "", k.kind
		switch {
		case k.kind == harmfulFilter:
			prefix, kind = "changes what asks the picker: ", envoyFilter
		case len(parts) == 0:
			prefix = "without effect on calls to the pool: "
		}
		var names []string
		for _, o := range all {
			if o.Kind == k.kind {
				names = append(names, o.Name.String())
			}
		}
		if len(names) == 0 {
			continue
		}
		if more := len(names) - maxNamed; more > 0 {
			names = append(names[:maxNamed], fmt.Sprintf("%d more", more))
		}
		parts = append(parts, fmt.Sprintf("%s%s %s (%s)", prefix, kind, strings.Join(names, ", "), k.text))
	}
	return strings.Join(parts, "; ")
}

// VirtualServiceHosts are the hosts, wildcards among them, whose HTTP calls in the mesh a VirtualService is for. One for
// Gateways alone has none.
func VirtualServiceHosts(v *networkingv1.VirtualService, clusterDomain string) []string {
	gateways := v.Spec.GetGateways()
	if len(v.Spec.GetHttp()) == 0 || len(gateways) > 0 && !slices.Contains(gateways, "mesh") {
		return nil
	}
	var out []string
	for _, h := range v.Spec.GetHosts() {
		out = append(out, qualified(h, v.Namespace, clusterDomain))
	}
	return out
}

// DestinationRuleHosts is the host of a DestinationRule, which may be a wildcard. There is none where it says nothing that
// is lost: istiod orders a pool's endpoints by locality too.
func DestinationRuleHosts(d *networkingv1.DestinationRule, clusterDomain string) []string {
	policy := d.Spec.GetTrafficPolicy()
	locality := &v1alpha3.TrafficPolicy{LoadBalancer: &v1alpha3.LoadBalancerSettings{
		LocalityLbSetting: policy.GetLoadBalancer().GetLocalityLbSetting(),
	}}
	if len(d.Spec.GetSubsets()) == 0 && (policy == nil || proto.Equal(policy, locality)) {
		return nil
	}
	return []string{qualified(d.Spec.GetHost(), d.Namespace, clusterDomain)}
}

// qualified is a host as Istio reads it: one without a dot is a Service's of the namespace.
func qualified(host, namespace, clusterDomain string) string {
	if host == "*" || strings.Contains(host, ".") {
		return host
	}
	return host + "." + namespace + ".svc." + clusterDomain
}

// Matches reports whether a pattern, a host or a wildcard, is for a host.
func Matches(pattern, host string) bool {
	if suffix, wildcard := strings.CutPrefix(pattern, "*"); wildcard {
		return strings.HasSuffix(host, suffix)
	}
	return pattern == host
}

// called reports whether Istio would apply to any of the fronts an object that is for hosts. For a waypoint Istio takes
// those of its own namespace and of the host's. Those of Istio's root namespace are defaults for all the mesh, and nobody
// means a pool by them.
func (p Place) called(o metav1.Object, patterns, exportTo []string) bool {
	if !visible(o.GetNamespace(), exportTo, p.Waypoint.Namespace) {
		return false
	}
	return slices.ContainsFunc(p.Fronts, func(f Front) bool {
		near := o.GetNamespace() == p.Waypoint.Namespace || o.GetNamespace() == f.Object.Name.Namespace
		return near && slices.ContainsFunc(patterns, func(pattern string) bool {
			return slices.ContainsFunc(f.Hosts, func(h string) bool { return Matches(pattern, h) })
		})
	})
}

// visible reports whether an object of a namespace is exported to another one.
func visible(from string, exportTo []string, to string) bool {
	return len(exportTo) == 0 || slices.Contains(exportTo, "*") || slices.Contains(exportTo, to) ||
		from == to && slices.Contains(exportTo, ".")
}

// selects reports whether a DestinationRule is for the waypoint. One with a workload selector is for proxies of its own
// namespace; of a waypoint's labels only that with its name is known.
func (p Place) selects(d *networkingv1.DestinationRule) bool {
	if d.Spec.GetWorkloadSelector() == nil {
		return true
	}
	for key, value := range d.Spec.GetWorkloadSelector().GetMatchLabels() {
		if key != label.IoK8sNetworkingGatewayGatewayName.Name || value != p.Waypoint.Name {
			return false
		}
	}
	return d.Namespace == p.Waypoint.Namespace
}
