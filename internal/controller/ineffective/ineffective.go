// Package ineffective finds users' Istio objects that are meant for calls to a pool and have no effect on them. It is pure
// and must read no cluster. Our routes and cluster of a pool replace those that istiod makes, so objects that change
// istiod's routes and cluster have no effect. The package must not name an object that has an effect, such as a Telemetry,
// a WasmPlugin, an AuthorizationPolicy or an EnvoyFilter's HTTP filters. A test in the mesh checks each kind.
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

// Place is a waypoint at which a pool is called, with the pool's fronts there.
type Place struct {
	Waypoint types.NamespacedName
	// RootNamespace is Istio's root namespace, whose EnvoyFilters may apply to all waypoints.
	RootNamespace string
	Fronts        []Front
	// Clusters are the names of the pool's clusters in its EnvoyFilter.
	Clusters []string
}

// Front is a ServiceEntry or a Service by which a pool is called.
type Front struct {
	Object routes.Object
	Hosts  []string
	Ports  []uint32
}

// Objects are the users' Istio objects to check.
type Objects struct {
	VirtualServices  map[types.NamespacedName]*networkingv1.VirtualService
	DestinationRules map[types.NamespacedName]*networkingv1.DestinationRule
	EnvoyFilters     map[types.NamespacedName]*networkingv1alpha3.EnvoyFilter
}

// NewObjects makes Objects without any object.
func NewObjects() Objects {
	return Objects{
		VirtualServices:  map[types.NamespacedName]*networkingv1.VirtualService{},
		DestinationRules: map[types.NamespacedName]*networkingv1.DestinationRule{},
		EnvoyFilters:     map[types.NamespacedName]*networkingv1alpha3.EnvoyFilter{},
	}
}

// Object is an object without effect, or one that changes our filters.
type Object struct {
	Kind string
	Name types.NamespacedName
}

// The kinds of an Object.
const (
	virtualService  = "VirtualService"
	destinationRule = "DestinationRule"
	envoyFilter     = "EnvoyFilter"
	harmfulFilter   = "harmful EnvoyFilter" // shown as an EnvoyFilter in messages
)

// alternatives says for each kind what users can write instead.
var alternatives = []struct{ kind, text string }{
	{virtualService, "write an HTTPRoute whose parent is the host's object"},
	{destinationRule, "the pool's picker picks endpoints and avoids failing ones: see the annotations inference-waypoint.io/pick-*"},
	{envoyFilter, "its patches of routes and of the pool's clusters have no effect: write an HTTPRoute, or patch HTTP filters"},
	{harmfulFilter, "do not change filters whose names begin with " + envoypatch.FilterPrefix},
}

// Find lists, by kind and name, the objects without effect at a place, and the EnvoyFilters that change our filters.
// It lists only objects that Istio would apply to ordinary hosts there, by the scope that Istio gives each kind.
func Find(at Place, in Objects, clusterDomain string) []Object {
	var out []Object
	for name, v := range in.VirtualServices {
		if at.applies(v, VirtualServiceHosts(v, clusterDomain), v.Spec.GetExportTo()) {
			out = append(out, Object{virtualService, name})
		}
	}
	for name, d := range in.DestinationRules {
		if at.selects(d) && at.applies(d, DestinationRuleHosts(d, clusterDomain), d.Spec.GetExportTo()) {
			out = append(out, Object{destinationRule, name})
		}
	}
	for name, f := range in.EnvoyFilters {
		if at.targeted(f) && slices.ContainsFunc(f.Spec.GetConfigPatches(), at.ignores) {
			out = append(out, Object{envoyFilter, name})
		}
		if at.targeted(f) && slices.ContainsFunc(f.Spec.GetConfigPatches(), changesOurFilters) {
			out = append(out, Object{harmfulFilter, name})
		}
	}
	slices.SortFunc(out, func(a, b Object) int {
		return cmp.Or(cmp.Compare(order(a.Kind), order(b.Kind)), cmp.Compare(a.Name.String(), b.Name.String()))
	})
	return out
}

func order(kind string) int {
	for i, k := range alternatives {
		if k.kind == kind {
			return i
		}
	}
	return len(alternatives)
}

// maxNamed bounds how many objects of a kind a message names.
const maxNamed = 5

// Message names the objects and what to write instead. It is empty if there are none.
func Message(all []Object) string {
	var parts []string
	for _, k := range alternatives {
		prefix, kind := "", k.kind
		switch {
		case k.kind == harmfulFilter:
			prefix, kind = "changes the filters that ask the picker: ", envoyFilter
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

// VirtualServiceHosts are the hosts, which may be wildcards, whose HTTP calls in the mesh a VirtualService changes. A
// VirtualService for Gateways only has none.
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

// DestinationRuleHosts is the host of a DestinationRule, which may be a wildcard. It is empty if all its settings have an
// effect: istiod applies locality settings to a pool's endpoints too.
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

// qualified is the full name of a host: Istio takes a host without a dot for a Service of the namespace.
func qualified(host, namespace, clusterDomain string) string {
	if host == "*" || strings.Contains(host, ".") {
		return host
	}
	return host + "." + namespace + ".svc." + clusterDomain
}

// Matches reports whether a pattern, which is a host or a wildcard, matches a host.
func Matches(pattern, host string) bool {
	if suffix, wildcard := strings.CutPrefix(pattern, "*"); wildcard {
		return strings.HasSuffix(host, suffix)
	}
	return pattern == host
}

// applies reports whether Istio would apply an object with these host patterns to any of the fronts. At a waypoint Istio
// applies objects of the waypoint's namespace and of the host's. Objects of the root namespace do not count: they are
// defaults for the whole mesh, and not meant for a pool.
func (p Place) applies(o metav1.Object, patterns, exportTo []string) bool {
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

// selects reports whether a DestinationRule applies to the waypoint. A workload selector selects proxies of the rule's own
// namespace. Of a waypoint's labels only the one with its name is known here.
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
