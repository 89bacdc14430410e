package reconcile

import (
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// The cache's indexes, beside the index of our objects by owner.
const (
	frontIndex   = "inference-waypoint.front"   // Services by the pool that serves their calls
	hostIndex    = "inference-waypoint.host"    // pools, and Istio objects that are not ours, by their hosts
	heldIndex    = "inference-waypoint.held"    // our ServiceEntries by their hosts
	targetIndex  = "inference-waypoint.target"  // EnvoyFilters that are not ours by the objects in their targetRefs
	parentIndex  = "inference-waypoint.parent"  // HTTPRoutes by their parents
	backendIndex = "inference-waypoint.backend" // HTTPRoutes by their backends
)

// anyHost is the key of hostIndex for an object that may match any host.
const anyHost = "*"

// index is a cache index of one kind.
type index struct {
	kind client.Object
	name string
	keys client.IndexerFunc
}

func indexes(settings translate.Settings) []index {
	out := othersIndexes(settings)
	if settings.DefaultPicker != nil {
		out = append(out, index{&securityv1.AuthorizationPolicy{}, apply.OwnerIndex, apply.OwnerKeys})
	}
	return append(out, []index{
		{&networkingv1.ServiceEntry{}, apply.OwnerIndex, apply.OwnerKeys},
		{envoyFilterKind, apply.OwnerIndex, apply.OwnerKeys},
		{envoyFilterKind, poolFilterIndex, poolFilterKeys},
		{&gatewayv1.Gateway{}, apply.OwnerIndex, apply.OwnerKeys},
		{&corev1.Service{}, frontIndex, func(o client.Object) []string {
			if p := translate.FrontOf(o.(*corev1.Service)); p.Name != "" {
				return []string{p.String()}
			}
			return nil
		}},
		{&inferencev1.InferencePool{}, hostIndex, func(o client.Object) []string {
			return hostsOf(o.(*inferencev1.InferencePool), settings)
		}},
		{&networkingv1.ServiceEntry{}, hostIndex, func(o client.Object) []string {
			if _, ours := apply.Owner(o); ours {
				return nil
			}
			return o.(*networkingv1.ServiceEntry).Spec.GetHosts()
		}},
		{&networkingv1.ServiceEntry{}, heldIndex, func(o client.Object) []string {
			if _, ours := apply.Owner(o); !ours {
				return nil
			}
			return o.(*networkingv1.ServiceEntry).Spec.GetHosts()
		}},
		{&gatewayv1.HTTPRoute{}, parentIndex, func(o client.Object) []string {
			return keysOf(routes.Parents(o.(*gatewayv1.HTTPRoute)))
		}},
		{&gatewayv1.HTTPRoute{}, backendIndex, func(o client.Object) []string {
			return keysOf(routes.Backends(o.(*gatewayv1.HTTPRoute)))
		}},
	}...)
}

// hostsOf are the hosts of a pool: the claimed ones, allowed or not, and its own.
func hostsOf(p *inferencev1.InferencePool, settings translate.Settings) []string {
	own := pool.Pool{Name: client.ObjectKeyFromObject(p)}.Host(settings.HostSuffix)
	return append(translate.ClaimedHosts(p), own)
}

func keyOf(o routes.Object) string { return o.Group + "/" + o.Kind + "/" + o.Name.String() }

func keysOf(objects []routes.Object) []string {
	var out []string
	for _, o := range objects {
		out = append(out, keyOf(o))
	}
	return out
}
