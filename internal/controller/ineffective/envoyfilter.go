package ineffective

import (
	"fmt"
	"slices"

	"istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
)

// Class is the GatewayClass of waypoints. Istio attaches an EnvoyFilter of the root namespace that targets this class to
// all waypoints.
func Class(rootNamespace string) routes.Object {
	return routes.Object{
		Group: "gateway.networking.k8s.io", Kind: "GatewayClass", Name: types.NamespacedName{Namespace: rootNamespace, Name: "istio-waypoint"},
	}
}

// Targets are the objects in an EnvoyFilter's targetRefs; a GatewayClass gets the EnvoyFilter's namespace. Istio has no
// other way to attach an EnvoyFilter to a waypoint.
func Targets(f *networkingv1alpha3.EnvoyFilter) []routes.Object {
	var out []routes.Object
	for _, t := range f.Spec.GetTargetRefs() {
		group := t.GetGroup()
		if group == "core" {
			group = ""
		}
		out = append(out, routes.Object{
			Group: group, Kind: t.GetKind(), Name: types.NamespacedName{Namespace: f.Namespace, Name: t.GetName()},
		})
	}
	return out
}

// Targets are the objects by which an EnvoyFilter applies to a place. With any of them it applies to the whole waypoint.
func (p Place) Targets() []routes.Object {
	out := []routes.Object{{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: p.Waypoint}, Class(p.RootNamespace)}
	for _, f := range p.Fronts {
		out = append(out, f.Object)
	}
	return out
}

func (p Place) targeted(f *networkingv1alpha3.EnvoyFilter) bool {
	return slices.ContainsFunc(Targets(f), func(o routes.Object) bool { return slices.Contains(p.Targets(), o) })
}

// ignores reports whether a patch has no effect at the place. Patches of the listener, its chains and filters have one.
func (p Place) ignores(patch *v1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	match := patch.GetMatch()
	switch patch.GetApplyTo() {
	case v1alpha3.EnvoyFilter_ROUTE_CONFIGURATION, v1alpha3.EnvoyFilter_VIRTUAL_HOST, v1alpha3.EnvoyFilter_HTTP_ROUTE:
		inbound := match.GetContext() == v1alpha3.EnvoyFilter_ANY || match.GetContext() == v1alpha3.EnvoyFilter_SIDECAR_INBOUND
		return inbound && !reachesFetched(patch) && p.anyPort(func(at envoypatch.Front) bool { return routed(match.GetRouteConfiguration(), at) })
	case v1alpha3.EnvoyFilter_CLUSTER:
		if patch.GetPatch().GetOperation() == v1alpha3.EnvoyFilter_Patch_ADD {
			return false
		}
		cluster := match.GetCluster()
		return slices.Contains(p.Clusters, cluster.GetName()) || p.anyPort(func(at envoypatch.Front) bool {
			return cluster.GetName() == at.IstioName() || cluster.GetService() == at.Host
		})
	default:
		return false
	}
}

// changesOurFilters reports whether a patch changes the filters that ask the picker.
func changesOurFilters(patch *v1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	changed := patch.GetMatch().GetListener().GetFilterChain().GetFilter().GetSubFilter().GetName()
	switch patch.GetPatch().GetOperation() {
	case v1alpha3.EnvoyFilter_Patch_REMOVE, v1alpha3.EnvoyFilter_Patch_REPLACE, v1alpha3.EnvoyFilter_Patch_MERGE:
		return patch.GetApplyTo() == v1alpha3.EnvoyFilter_HTTP_FILTER && envoypatch.OwnFilter(changed)
	default:
		return false
	}
}

// reachesFetched reports whether a patch of routes also applies to the routes that a pool's chain fetches. istiod treats
// these as outbound, and merges such patches and adds virtual hosts after it has patched its own virtual hosts.
func reachesFetched(patch *v1alpha3.EnvoyFilter_EnvoyConfigObjectPatch) bool {
	match, adds := patch.GetMatch(), patch.GetPatch().GetOperation() == v1alpha3.EnvoyFilter_Patch_ADD
	whole := patch.GetApplyTo() == v1alpha3.EnvoyFilter_ROUTE_CONFIGURATION || patch.GetApplyTo() == v1alpha3.EnvoyFilter_VIRTUAL_HOST && adds
	return whole && match.GetContext() == v1alpha3.EnvoyFilter_ANY &&
		match.GetRouteConfiguration().GetName() == "" && match.GetRouteConfiguration().GetPortNumber() == 0
}

// routed reports whether a patch is for the routes that istiod makes for a front.
func routed(match *v1alpha3.EnvoyFilter_RouteConfigurationMatch, at envoypatch.Front) bool {
	oneOf := func(value string, known string) bool { return value == "" || value == known }
	return oneOf(match.GetName(), at.IstioName()) &&
		(match.GetPortNumber() == 0 || match.GetPortNumber() == at.Port) &&
		oneOf(match.GetVhost().GetName(), fmt.Sprintf("inbound|http|%d", at.Port)) &&
		oneOf(match.GetVhost().GetDomainName(), "*")
}

// anyPort reports whether a condition holds for any port of any host of the fronts.
func (p Place) anyPort(holds func(envoypatch.Front) bool) bool {
	for _, f := range p.Fronts {
		for _, host := range f.Hosts {
			for _, port := range f.Ports {
				if holds(envoypatch.Front{Host: host, Port: port}) {
					return true
				}
			}
		}
	}
	return false
}
