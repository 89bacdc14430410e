package reconcile

import (
	"cmp"
	"context"
	"slices"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// watcher finds what an event of any object matters to. It reads the cache; where that fails, it logs and finds less,
// and the next event, or the cache's own resync, finds the rest.
type watcher struct {
	client   client.Reader
	settings translate.Settings
}

// names is a set of pools or routes.
type names map[types.NamespacedName]bool

func (n names) requests() []reconcile.Request {
	var out []reconcile.Request
	for name := range n {
		out = append(out, reconcile.Request{NamespacedName: name})
	}
	slices.SortFunc(out, func(a, b reconcile.Request) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// toPools maps an event to the pools that it matters to: those that the object concerns, and those that routes or hosts
// tie to them.
func (w watcher) toPools() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return w.pools(ctx, o).requests()
	})
}

// toRoutes maps an event to the routes at or to the pools that it concerns.
func (w watcher) toRoutes() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
		return w.routes(ctx, o).requests()
	})
}

func (w watcher) pools(ctx context.Context, o client.Object) names {
	g := newGatherer(ctx, w.client, w.settings)
	out := names{}
	for name := range w.concerned(g, o) {
		out[name] = true
		for _, route := range append(g.attached(g.frontsOf(name)), g.leadingTo(poolObject(name))...) {
			w.tied(g, route, out)
		}
	}
	w.log(ctx, g.err)
	return out
}

func (w watcher) routes(ctx context.Context, o client.Object) names {
	g := newGatherer(ctx, w.client, w.settings)
	out := names{}
	add := func(list []*gatewayv1.HTTPRoute) {
		for _, route := range list {
			out[client.ObjectKeyFromObject(route)] = true
		}
	}
	switch o := o.(type) {
	case *gatewayv1.HTTPRoute: // those beside it, which it may come before
		add(g.attached(routes.Parents(o)))
	case *corev1.Service: // also one that no longer is a front, or is one of a pool that does not exist
		add(g.attached([]routes.Object{serviceObject(client.ObjectKeyFromObject(o))}))
		add(g.leadingTo(serviceObject(client.ObjectKeyFromObject(o))))
	case *gatewayv1beta1.ReferenceGrant:
		add(w.granted(g, o))
	}
	for name := range w.concerned(g, o) {
		add(g.attached(g.frontsOf(name)))
		add(g.leadingTo(poolObject(name)))
	}
	w.log(ctx, g.err)
	return out
}

func (w watcher) log(ctx context.Context, err error) {
	if err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "finding what an event matters to")
	}
}

// concerned are the pools that an object itself has to do with.
func (w watcher) concerned(g *gatherer, o client.Object) names {
	out := names{}
	if owner, ours := apply.Owner(o); ours {
		if _, gateway := o.(*gatewayv1.Gateway); !gateway {
			if isPool(owner) {
				out[owner] = true
			}
			return out
		}
	}
	name := client.ObjectKeyFromObject(o)
	switch o := o.(type) {
	case *inferencev1.InferencePool:
		out[name] = true
		w.claiming(g, hostsOf(o, w.settings), out)
	case *networkingv1.ServiceEntry:
		w.claiming(g, o.Spec.GetHosts(), out)
	case *networkingv1.VirtualService:
		w.calledAs(g, ineffective.VirtualServiceHosts(o, w.settings.ClusterDomain), out)
	case *networkingv1.DestinationRule:
		w.calledAs(g, ineffective.DestinationRuleHosts(o, w.settings.ClusterDomain), out)
	case *networkingv1alpha3.EnvoyFilter:
		w.targeted(g, o, out)
	case *corev1.Namespace:
		w.matching(g, o.Name, out, func(*inferencev1.InferencePool) bool { return true })
	case *gatewayv1.Gateway:
		w.at(g, name, out)
	case *corev1.Service:
		w.servedBy(g, o, out)
	case *gatewayv1.HTTPRoute:
		w.tied(g, o, out)
	case *gatewayv1beta1.ReferenceGrant:
		for _, route := range w.granted(g, o) {
			w.tied(g, route, out)
		}
	}
	return out
}

// tied adds the pools at whose fronts a route is and those that it leads to.
func (w watcher) tied(g *gatherer, route *gatewayv1.HTTPRoute, out names) {
	for _, parent := range routes.Parents(route) {
		if translate.IsService(parent) {
			read(g, parent.Name, g.in.Services)
		}
		if owner, ours := translate.PoolOf(parent, g.in.Services); ours {
			out[owner] = true
		}
	}
	for _, backend := range routes.Backends(route) {
		if translate.IsPool(backend) {
			out[backend.Name] = true
		}
	}
}

// claiming adds the pools that claim any of the hosts.
func (w watcher) claiming(g *gatherer, hosts []string, out names) {
	for _, host := range hosts {
		for _, p := range list[inferencev1.InferencePool](g, &inferencev1.InferencePoolList{}, hostIndex, host) {
			out[client.ObjectKeyFromObject(p)] = true
		}
	}
}

// at adds the pools that are bound to a Gateway, or have a front that is.
func (w watcher) at(g *gatherer, gateway types.NamespacedName, out names) {
	w.matching(g, "", out, func(p *inferencev1.InferencePool) bool {
		waypoint, bound := translate.WaypointOf(p, w.namespace(g, p.Namespace))
		return bound && waypoint == gateway
	})
	for _, s := range list[corev1.Service](g, &corev1.ServiceList{}, frontIndex, anyFront) {
		if waypoint, bound := translate.ServiceWaypoint(s, w.namespace(g, s.Namespace)); bound && waypoint == gateway {
			out[translate.FrontOf(s)] = true
		}
	}
}

func (w watcher) namespace(g *gatherer, name string) *corev1.Namespace {
	if _, read := g.in.Namespaces[name]; !read {
		g.in.Namespaces[name] = get[corev1.Namespace](g, types.NamespacedName{Name: name})
	}
	return g.in.Namespaces[name]
}

// servedBy adds the pool that a Service is a front of, the pools whose picker it is, and those at whose fronts routes
// lead to it.
func (w watcher) servedBy(g *gatherer, s *corev1.Service, out names) {
	name, namespace := client.ObjectKeyFromObject(s), s.Namespace
	if front := translate.FrontOf(s); front.Name != "" {
		out[front] = true
	}
	if w.settings.DefaultPicker != nil && w.settings.DefaultPicker.Service == name {
		namespace = "" // pools anywhere
	}
	w.matching(g, namespace, out, func(p *inferencev1.InferencePool) bool {
		picker, named := translate.PickerOf(p, w.settings)
		return named && picker.Service == name
	})
	for _, route := range g.leadingTo(serviceObject(name)) {
		w.tied(g, route, out)
	}
}

// matching adds the pools of a namespace, or of all, that a condition holds for.
func (w watcher) matching(g *gatherer, namespace string, out names, keep func(*inferencev1.InferencePool) bool) {
	if g.err != nil {
		return
	}
	var all inferencev1.InferencePoolList
	if g.err = g.client.List(g.ctx, &all, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); g.err != nil {
		return
	}
	for i := range all.Items {
		if keep(&all.Items[i]) {
			out[client.ObjectKeyFromObject(&all.Items[i])] = true
		}
	}
}

// granted are the routes of other namespaces that lead into a grant's.
func (w watcher) granted(g *gatherer, grant *gatewayv1beta1.ReferenceGrant) []*gatewayv1.HTTPRoute {
	var out []*gatewayv1.HTTPRoute
	for _, from := range grant.Spec.From {
		var all gatewayv1.HTTPRouteList
		if g.err == nil {
			g.err = g.client.List(g.ctx, &all, client.InNamespace(string(from.Namespace)), client.UnsafeDisableDeepCopy)
		}
		for i := range all.Items {
			if slices.ContainsFunc(routes.Backends(&all.Items[i]), func(o routes.Object) bool { return o.Name.Namespace == grant.Namespace }) {
				out = append(out, &all.Items[i])
			}
		}
	}
	return out
}
