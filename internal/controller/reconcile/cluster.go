package reconcile

import (
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// A reader implements the Cluster that a translation reads.
var _ translate.Cluster = (*reader)(nil)

// Pool is the pool of a name; nil if it is being deleted.
func (r *reader) Pool(name types.NamespacedName) *inferencev1.InferencePool {
	if p := get[inferencev1.InferencePool](r, name); p != nil && p.DeletionTimestamp == nil {
		return p
	}
	return nil
}

// Namespace is the namespace of a name.
func (r *reader) Namespace(name string) *corev1.Namespace {
	return get[corev1.Namespace](r, types.NamespacedName{Name: name})
}

// Gateway is the Gateway of a name.
func (r *reader) Gateway(name types.NamespacedName) *gatewayv1.Gateway {
	return get[gatewayv1.Gateway](r, name)
}

// Service is the Service of a name.
func (r *reader) Service(name types.NamespacedName) *corev1.Service {
	return get[corev1.Service](r, name)
}

// FrontServices are the Services whose calls a pool serves.
func (r *reader) FrontServices(pool types.NamespacedName) []*corev1.Service {
	return list[corev1.Service](r, &corev1.ServiceList{}, frontIndex, pool.String())
}

// RoutesAt are the routes that have an object as a parent.
func (r *reader) RoutesAt(parent routes.Object) []*gatewayv1.HTTPRoute {
	return list[gatewayv1.HTTPRoute](r, &gatewayv1.HTTPRouteList{}, parentIndex, keyOf(parent))
}

// RoutesTo are the routes that have an object as a backend.
func (r *reader) RoutesTo(backend routes.Object) []*gatewayv1.HTTPRoute {
	return list[gatewayv1.HTTPRoute](r, &gatewayv1.HTTPRouteList{}, backendIndex, keyOf(backend))
}

// Grants are the ReferenceGrants of a namespace.
func (r *reader) Grants(namespace string) []*gatewayv1.ReferenceGrant {
	var out []*gatewayv1.ReferenceGrant
	for _, g := range list[gatewayv1beta1.ReferenceGrant](r, &gatewayv1beta1.ReferenceGrantList{}, byNamespace, namespace) {
		out = append(out, (*gatewayv1.ReferenceGrant)(g))
	}
	return out
}

// Claimants are the pools that have a host or claim it.
func (r *reader) Claimants(host string) []*inferencev1.InferencePool {
	all := list[inferencev1.InferencePool](r, &inferencev1.InferencePoolList{}, hostIndex, host)
	return slices.DeleteFunc(slices.Clone(all), func(p *inferencev1.InferencePool) bool { return p.DeletionTimestamp != nil })
}

// Holder is the pool that has a host now.
func (r *reader) Holder(host string) (holder types.NamespacedName) {
	for _, e := range list[networkingv1.ServiceEntry](r, &networkingv1.ServiceEntryList{}, heldIndex, host) {
		if owner, ours := apply.Owner(e); ours {
			holder = owner
		}
	}
	return holder
}

// Entries are the ServiceEntries for a host that are not ours.
func (r *reader) Entries(host string) []*networkingv1.ServiceEntry {
	return list[networkingv1.ServiceEntry](r, &networkingv1.ServiceEntryList{}, hostIndex, host)
}

// VirtualServices are the VirtualServices for a host or for a wildcard that matches it.
func (r *reader) VirtualServices(host string) []*networkingv1.VirtualService {
	return listForHost[networkingv1.VirtualService](r, &networkingv1.VirtualServiceList{}, host)
}

// DestinationRules are the DestinationRules for a host or for a wildcard that matches it.
func (r *reader) DestinationRules(host string) []*networkingv1.DestinationRule {
	return listForHost[networkingv1.DestinationRule](r, &networkingv1.DestinationRuleList{}, host)
}

// EnvoyFilters are the EnvoyFilters attached to an object that are not ours.
func (r *reader) EnvoyFilters(target routes.Object) []*networkingv1alpha3.EnvoyFilter {
	return list[networkingv1alpha3.EnvoyFilter](r, &networkingv1alpha3.EnvoyFilterList{}, targetIndex, keyOf(target))
}

// listForHost reads the objects that hostIndex has for a host and for the wildcards that match it, each into a copy of the
// empty list.
func listForHost[T any, O object[T]](r *reader, empty client.ObjectList, host string) []*T {
	var out []*T
	for _, pattern := range patternsOf(host) {
		out = append(out, list[T, O](r, empty.DeepCopyObject().(client.ObjectList), hostIndex, pattern)...)
	}
	return out
}

// patternsOf are the keys of hostIndex for a host: the host itself and the wildcards that match it.
func patternsOf(host string) []string {
	out := []string{host, anyHost}
	for at := range host {
		if host[at] == '.' {
			out = append(out, "*"+host[at:])
		}
	}
	return out
}

// hostKeys are the keys of hostIndex for an object with these hosts and wildcards.
func hostKeys(hosts []string) []string {
	var out []string
	for _, host := range hosts {
		if strings.HasPrefix(host, "*") && !strings.HasPrefix(host, "*.") {
			host = anyHost // Istio allows wildcards such as *ple.com, which have no key of their own
		}
		out = append(out, host)
	}
	return out
}
