package translate

import (
	"fmt"
	"maps"
	"strings"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

const (
	waypointClass = "istio-waypoint"
	noWaypoint    = "none" // the value of Istio's label istio.io/use-waypoint for no waypoint

	// A waypoint's kinds of traffic, by Istio's label istio.io/waypoint-for.
	trafficService = "service"
	trafficAll     = "all"

	hboneProtocol = gatewayv1.ProtocolType("HBONE")
	hbonePort     = gatewayv1.PortNumber(15008)
)

// WaypointOf names the waypoint that a pool is bound to: by Istio's labels on the pool, else by Istio's labels on its
// namespace, else by pool.WaypointLabel on its namespace. It is false if the pool is bound to none.
func WaypointOf(p *inferencev1.InferencePool, ns *corev1.Namespace) (types.NamespacedName, bool) {
	if waypoint, said := istioBinding(p.Namespace, p, ns); said {
		return waypoint, waypoint.Name != ""
	}
	if ns == nil || ns.Labels[pool.WaypointLabel] == "" {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: p.Namespace, Name: ns.Labels[pool.WaypointLabel]}, true
}

// ServiceWaypoint names the waypoint that a Service is bound to by Istio's labels, on itself or on its namespace. It is
// false where the Service is bound to none.
func ServiceWaypoint(s *corev1.Service, ns *corev1.Namespace) (types.NamespacedName, bool) {
	waypoint, _ := istioBinding(s.Namespace, s, ns)
	return waypoint, waypoint.Name != ""
}

// istioBinding is the waypoint that Istio's labels set for an object, if any. Its name is empty if they forbid a waypoint.
func istioBinding(namespace string, o metav1.Object, ns *corev1.Namespace) (_ types.NamespacedName, said bool) {
	bound := o.GetLabels()
	if bound[label.IoIstioUseWaypoint.Name] == "" && ns != nil {
		bound = ns.Labels
	}
	switch name := bound[label.IoIstioUseWaypoint.Name]; name {
	case "":
		return types.NamespacedName{}, false
	case noWaypoint:
		return types.NamespacedName{}, true
	default:
		if other := bound[label.IoIstioUseWaypointNamespace.Name]; other != "" {
			namespace = other
		}
		return types.NamespacedName{Namespace: namespace, Name: name}, true
	}
}

// BoundTo is the waypoint that one of our objects is bound to; its name is empty if the object is bound to none.
func BoundTo(o metav1.Object) types.NamespacedName {
	waypoint, _ := istioBinding(o.GetNamespace(), o, nil)
	return waypoint
}

// Rebind binds an object of ours to another waypoint.
func Rebind(o metav1.Object, waypoint types.NamespacedName) {
	labels := maps.Clone(o.GetLabels())
	delete(labels, label.IoIstioUseWaypointNamespace.Name)
	maps.Copy(labels, useWaypoint(o.GetNamespace(), waypoint))
	o.SetLabels(labels)
}

// useWaypoint is the inverse of WaypointOf: the labels that bind an object in a namespace to a waypoint.
func useWaypoint(namespace string, waypoint types.NamespacedName) map[string]string {
	out := map[string]string{label.IoIstioUseWaypoint.Name: waypoint.Name}
	if waypoint.Namespace != namespace {
		out[label.IoIstioUseWaypointNamespace.Name] = waypoint.Namespace
	}
	return out
}

// NamespaceWaypoint is the Gateway that a Namespace asks for by pool.WaypointLabel; nil if it asks for none, or if Istio's own
// label on the namespace already sets or forbids a waypoint. It fails if the label's value cannot be a waypoint's name, as
// istiod makes a Service of that name.
func NamespaceWaypoint(ns *corev1.Namespace) (*gatewayv1.Gateway, error) {
	name := ns.Labels[pool.WaypointLabel]
	if name == "" || ns.Labels[label.IoIstioUseWaypoint.Name] != "" {
		return nil, nil
	}
	if problems := validation.IsDNS1035Label(name); len(problems) > 0 {
		return nil, fmt.Errorf("label %s: %q cannot be a waypoint's name: %s", pool.WaypointLabel, name, strings.Join(problems, "; "))
	}
	// The object has all of the API server's defaults, as package apply compares it with the live object.
	same := gatewayv1.NamespacesFromSame
	return &gatewayv1.Gateway{
		TypeMeta: metav1.TypeMeta{APIVersion: gatewayv1.GroupVersion.String(), Kind: "Gateway"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: ns.Name,
			Name:      name,
			Labels:    map[string]string{label.IoIstioWaypointFor.Name: trafficService},
		},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: waypointClass,
			Listeners: []gatewayv1.Listener{{
				Name:          "mesh",
				Port:          hbonePort,
				Protocol:      hboneProtocol,
				AllowedRoutes: &gatewayv1.AllowedRoutes{Namespaces: &gatewayv1.RouteNamespaces{From: &same}},
			}},
		},
	}, nil
}

// acceptedBy says whether a Gateway is a waypoint that can serve the pools and Services of a namespace.
func (t translator) acceptedBy(waypoint types.NamespacedName, namespace string) poolstatus.Verdict {
	gateway := t.Gateway(waypoint)
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
	if !admits(gateway, namespace, t.Namespace(namespace)) {
		return notSupported("waypoint %s takes nothing from namespace %s: see allowedRoutes of its %s listener",
			waypoint, namespace, hboneProtocol)
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
