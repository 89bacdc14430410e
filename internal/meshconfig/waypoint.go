package meshconfig

import (
	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/poolstatus"
)

const (
	waypointClass = "istio-waypoint"
	noWaypoint    = "none" // the value by which Istio's label says that there is to be no waypoint

	// A waypoint's kinds of traffic, by Istio's label istio.io/waypoint-for.
	trafficService = "service"
	trafficAll     = "all"

	hboneProtocol gatewayv1.ProtocolType = "HBONE"
)

// WaypointOf names the waypoint that a pool is bound to, by Istio's own labels: those on the pool, else those on its
// namespace. It is false where the pool is bound to none.
func WaypointOf(p *inferencev1.InferencePool, ns *corev1.Namespace) (types.NamespacedName, bool) {
	if p == nil {
		return types.NamespacedName{}, false
	}
	bound := p.Labels
	if bound[label.IoIstioUseWaypoint.Name] == "" && ns != nil {
		bound = ns.Labels
	}
	name := bound[label.IoIstioUseWaypoint.Name]
	if name == "" || name == noWaypoint {
		return types.NamespacedName{}, false
	}
	namespace := p.Namespace
	if other := bound[label.IoIstioUseWaypointNamespace.Name]; other != "" {
		namespace = other
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, true
}

// useWaypoint is WaypointOf's inverse: the labels that bind an object in a namespace to a waypoint.
func useWaypoint(namespace string, waypoint types.NamespacedName) map[string]string {
	out := map[string]string{label.IoIstioUseWaypoint.Name: waypoint.Name}
	if waypoint.Namespace != namespace {
		out[label.IoIstioUseWaypointNamespace.Name] = waypoint.Namespace
	}
	return out
}

// acceptedBy says whether the Gateway that a pool is bound to is a waypoint that can serve it.
func acceptedBy(in Inputs, waypoint types.NamespacedName) poolstatus.Verdict {
	gateway := in.Gateways[waypoint]
	if gateway == nil {
		return notSupported("Gateway %s does not exist", waypoint)
	}
	if class := string(gateway.Spec.GatewayClassName); class != waypointClass {
		return notSupported("Gateway %s is of class %s: a waypoint's is %s", waypoint, class, waypointClass)
	}
	if traffic := gateway.Labels[label.IoIstioWaypointFor.Name]; traffic != "" && traffic != trafficService && traffic != trafficAll {
		return notSupported("waypoint %s is for traffic %q by its label %s: a pool's host needs %q or %q",
			waypoint, traffic, label.IoIstioWaypointFor.Name, trafficService, trafficAll)
	}
	if !admits(gateway, in.Pool.Namespace, in.Namespace) {
		return notSupported("waypoint %s takes nothing from namespace %s: see allowedRoutes of its %s listener",
			waypoint, in.Pool.Namespace, hboneProtocol)
	}
	return poolstatus.Accepted()
}

// admits reports whether the waypoint's HBONE listener lets a namespace be bound to it.
func admits(gateway *gatewayv1.Gateway, namespace string, object *corev1.Namespace) bool {
	from, selector := gatewayv1.NamespacesFromSame, (*metav1.LabelSelector)(nil)
	for _, l := range gateway.Spec.Listeners {
		if l.Protocol == hboneProtocol && l.AllowedRoutes != nil && l.AllowedRoutes.Namespaces != nil {
			if l.AllowedRoutes.Namespaces.From != nil {
				from = *l.AllowedRoutes.Namespaces.From
			}
			selector = l.AllowedRoutes.Namespaces.Selector
			break
		}
	}
	switch from {
	case gatewayv1.NamespacesFromAll:
		return true
	case gatewayv1.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		return err == nil && object != nil && s.Matches(labels.Set(object.Labels))
	default:
		return gateway.Namespace == namespace
	}
}
