package translate

import (
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
)

// Objects is a Cluster of objects in memory, for example from files. Its lists of users' EnvoyFilters, VirtualServices and
// DestinationRules have all objects, unfiltered.
type Objects struct {
	Pools           map[types.NamespacedName]*inferencev1.InferencePool
	Namespaces      map[string]*corev1.Namespace
	Gateways        map[types.NamespacedName]*gatewayv1.Gateway
	Services        map[types.NamespacedName]*corev1.Service
	HTTPRoutes      map[types.NamespacedName]*gatewayv1.HTTPRoute
	ReferenceGrants map[types.NamespacedName]*gatewayv1.ReferenceGrant
	// ServiceEntries are those that are not ours.
	ServiceEntries map[types.NamespacedName]*networkingv1.ServiceEntry
	// Holders are the pools whose hosts are served now, by host.
	Holders map[string]types.NamespacedName
	Others  ineffective.Objects
}

var _ Cluster = (*Objects)(nil)

// NewObjects makes Objects without any object.
func NewObjects() *Objects {
	return &Objects{
		Pools:           map[types.NamespacedName]*inferencev1.InferencePool{},
		Namespaces:      map[string]*corev1.Namespace{},
		Gateways:        map[types.NamespacedName]*gatewayv1.Gateway{},
		Services:        map[types.NamespacedName]*corev1.Service{},
		HTTPRoutes:      map[types.NamespacedName]*gatewayv1.HTTPRoute{},
		ReferenceGrants: map[types.NamespacedName]*gatewayv1.ReferenceGrant{},
		ServiceEntries:  map[types.NamespacedName]*networkingv1.ServiceEntry{},
		Holders:         map[string]types.NamespacedName{},
		Others:          ineffective.NewObjects(),
	}
}

// Pool is the pool of a name.
func (o *Objects) Pool(name types.NamespacedName) *inferencev1.InferencePool { return o.Pools[name] }

// Namespace is the namespace of a name.
func (o *Objects) Namespace(name string) *corev1.Namespace { return o.Namespaces[name] }

// Gateway is the Gateway of a name.
func (o *Objects) Gateway(name types.NamespacedName) *gatewayv1.Gateway { return o.Gateways[name] }

// Service is the Service of a name.
func (o *Objects) Service(name types.NamespacedName) *corev1.Service { return o.Services[name] }

// Holder is the pool that has a host now.
func (o *Objects) Holder(host string) types.NamespacedName { return o.Holders[host] }

// FrontServices are the Services whose calls a pool serves.
func (o *Objects) FrontServices(pool types.NamespacedName) []*corev1.Service {
	return filtered(o.Services, func(s *corev1.Service) bool { return FrontOf(s) == pool })
}

// RoutesAt are the routes that have an object as a parent.
func (o *Objects) RoutesAt(parent routes.Object) []*gatewayv1.HTTPRoute {
	return filtered(o.HTTPRoutes, func(r *gatewayv1.HTTPRoute) bool { return slices.Contains(routes.Parents(r), parent) })
}

// RoutesTo are the routes that have an object as a backend.
func (o *Objects) RoutesTo(backend routes.Object) []*gatewayv1.HTTPRoute {
	return filtered(o.HTTPRoutes, func(r *gatewayv1.HTTPRoute) bool { return slices.Contains(routes.Backends(r), backend) })
}

// Grants are the ReferenceGrants of a namespace.
func (o *Objects) Grants(namespace string) []*gatewayv1.ReferenceGrant {
	return filtered(o.ReferenceGrants, func(g *gatewayv1.ReferenceGrant) bool { return g.Namespace == namespace })
}

// Claimants are the pools that claim a host.
func (o *Objects) Claimants(host string) []*inferencev1.InferencePool {
	return filtered(o.Pools, func(p *inferencev1.InferencePool) bool { return slices.Contains(ClaimedHosts(p), host) })
}

// Entries are the ServiceEntries for a host that are not ours.
func (o *Objects) Entries(host string) []*networkingv1.ServiceEntry {
	return filtered(o.ServiceEntries, func(e *networkingv1.ServiceEntry) bool { return slices.Contains(e.Spec.GetHosts(), host) })
}

// VirtualServices are all VirtualServices, whatever their hosts.
func (o *Objects) VirtualServices(string) []*networkingv1.VirtualService {
	return filtered(o.Others.VirtualServices, all)
}

// DestinationRules are all DestinationRules, whatever their hosts.
func (o *Objects) DestinationRules(string) []*networkingv1.DestinationRule {
	return filtered(o.Others.DestinationRules, all)
}

// EnvoyFilters are all EnvoyFilters, whatever they are attached to.
func (o *Objects) EnvoyFilters(routes.Object) []*networkingv1alpha3.EnvoyFilter {
	return filtered(o.Others.EnvoyFilters, all)
}

func all[T metav1.Object](T) bool { return true }

// filtered are the objects for which keep is true, in the order of their names.
func filtered[T metav1.Object](from map[types.NamespacedName]T, keep func(T) bool) []T {
	var out []T
	for _, name := range sortedNames(from) {
		if keep(from[name]) {
			out = append(out, from[name])
		}
	}
	return out
}
