package reconcile

import (
	"context"
	"fmt"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// gatherer reads what a translation depends on, each object once. After an error it reads no more.
type gatherer struct {
	ctx      context.Context
	client   client.Reader
	settings translate.Settings
	in       translate.Inputs
	// whole are the pools that were read with all that they depend on; the others in in are there as rivals for a host.
	whole map[types.NamespacedName]bool
	err   error
}

func newGatherer(ctx context.Context, c client.Reader, settings translate.Settings) *gatherer {
	return &gatherer{ctx: ctx, client: c, settings: settings, in: translate.NewInputs(), whole: map[types.NamespacedName]bool{}}
}

// forPool reads what the translation of one pool depends on: the pool, the routes at its fronts with all their backends,
// and the routes that lead to it with the fronts that they are at.
func (g *gatherer) forPool(name types.NamespacedName) (translate.Inputs, error) {
	g.pool(name)
	if g.in.Pools[name] != nil {
		for _, route := range append(g.attached(g.frontsOf(name)), g.leadingTo(poolObject(name))...) {
			g.route(route)
		}
		g.others(name)
	}
	return g.in, g.err
}

// forRoute reads what the verdict on one route depends on: its parents and backends, and the other routes there.
func (g *gatherer) forRoute(route *gatewayv1.HTTPRoute) (translate.Inputs, error) {
	g.route(route)
	for _, other := range g.attached(routes.Parents(route)) {
		if name := client.ObjectKeyFromObject(other); g.in.Routes[name] == nil {
			g.in.Routes[name] = other
		}
	}
	return g.in, g.err
}

// pool reads a pool, the Services that are its fronts, the waypoints of both, its picker and who claims its hosts too.
func (g *gatherer) pool(name types.NamespacedName) {
	if g.whole[name] || !g.bare(name) {
		return
	}
	g.whole[name] = true
	api := g.in.Pools[name]
	if waypoint, bound := translate.WaypointOf(api, g.in.Namespaces[name.Namespace]); bound {
		read(g, waypoint, g.in.Gateways)
	}
	if picker, named := translate.PickerOf(api, g.settings); named {
		read(g, picker.Service, g.in.Services)
	}
	for _, s := range list[corev1.Service](g, &corev1.ServiceList{}, frontIndex, name.String()) {
		g.in.Services[client.ObjectKeyFromObject(s)] = s
		if waypoint, bound := translate.ServiceWaypoint(s, g.in.Namespaces[name.Namespace]); bound {
			read(g, waypoint, g.in.Gateways)
		}
	}
	for _, host := range hostsOf(api, g.settings) {
		for _, rival := range list[inferencev1.InferencePool](g, &inferencev1.InferencePoolList{}, hostIndex, host) {
			if rival := client.ObjectKeyFromObject(rival); g.in.Pools[rival] == nil {
				g.bare(rival)
			}
		}
		for _, e := range list[networkingv1.ServiceEntry](g, &networkingv1.ServiceEntryList{}, hostIndex, host) {
			g.in.Entries[client.ObjectKeyFromObject(e)] = e
		}
		for _, e := range list[networkingv1.ServiceEntry](g, &networkingv1.ServiceEntryList{}, heldIndex, host) {
			if owner, ours := apply.Owner(e); ours {
				g.in.Holders[host] = owner
			}
		}
	}
}

// bare reads a pool and its namespace alone. A pool that is on its way out is gone.
func (g *gatherer) bare(name types.NamespacedName) bool {
	read(g, name, g.in.Pools)
	p := g.in.Pools[name]
	if p == nil || p.DeletionTimestamp != nil {
		delete(g.in.Pools, name)
		return false
	}
	if g.in.Namespaces[name.Namespace] == nil {
		if ns := get[corev1.Namespace](g, types.NamespacedName{Name: name.Namespace}); ns != nil {
			g.in.Namespaces[name.Namespace] = ns
		}
	}
	return true
}

// route reads a route's parents and backends, and the grants that it may need.
func (g *gatherer) route(route *gatewayv1.HTTPRoute) {
	g.in.Routes[client.ObjectKeyFromObject(route)] = route
	for _, parent := range routes.Parents(route) {
		if translate.IsService(parent) {
			read(g, parent.Name, g.in.Services)
		}
		if owner, ours := translate.PoolOf(parent, g.in.Services); ours {
			g.pool(owner)
		}
	}
	for _, backend := range routes.Backends(route) {
		switch {
		case translate.IsPool(backend):
			g.pool(backend.Name)
		case translate.IsService(backend):
			read(g, backend.Name, g.in.Services)
		}
		if backend.Name.Namespace != route.Namespace {
			g.grants(backend.Name.Namespace)
		}
	}
}

func (g *gatherer) grants(namespace string) {
	var all gatewayv1beta1.ReferenceGrantList
	if g.err == nil {
		g.err = g.client.List(g.ctx, &all, client.InNamespace(namespace), client.UnsafeDisableDeepCopy)
	}
	for i := range all.Items {
		grant := (*gatewayv1.ReferenceGrant)(&all.Items[i])
		g.in.Grants[client.ObjectKeyFromObject(&all.Items[i])] = grant
	}
}

// frontsOf are the objects by which a pool can be called.
func (g *gatherer) frontsOf(name types.NamespacedName) []routes.Object {
	out := []routes.Object{entryObject(name)}
	for _, s := range list[corev1.Service](g, &corev1.ServiceList{}, frontIndex, name.String()) {
		out = append(out, serviceObject(client.ObjectKeyFromObject(s)))
	}
	return out
}

// attached are the routes that have any of the objects as a parent.
func (g *gatherer) attached(parents []routes.Object) []*gatewayv1.HTTPRoute {
	var out []*gatewayv1.HTTPRoute
	for _, p := range parents {
		out = append(out, list[gatewayv1.HTTPRoute](g, &gatewayv1.HTTPRouteList{}, parentIndex, keyOf(p))...)
	}
	return out
}

// leadingTo are the routes that have an object as a backend.
func (g *gatherer) leadingTo(backend routes.Object) []*gatewayv1.HTTPRoute {
	return list[gatewayv1.HTTPRoute](g, &gatewayv1.HTTPRouteList{}, backendIndex, keyOf(backend))
}

func poolObject(name types.NamespacedName) routes.Object {
	return routes.Object{Group: inferencev1.GroupName, Kind: "InferencePool", Name: name}
}

func serviceObject(name types.NamespacedName) routes.Object {
	return routes.Object{Kind: "Service", Name: name}
}

func entryObject(name types.NamespacedName) routes.Object {
	return routes.Object{Group: networkingv1.GroupName, Kind: "ServiceEntry", Name: name}
}

// The cache's indexes, beside that of our objects by their owners.
const (
	frontIndex   = "inference-waypoint.front"   // Services by the pool that they are a front of, and by their host
	hostIndex    = "inference-waypoint.host"    // pools and others' objects of Istio by the hosts that they claim or are for
	heldIndex    = "inference-waypoint.held"    // our ServiceEntries by their hosts
	targetIndex  = "inference-waypoint.target"  // others' EnvoyFilters by what they are attached to
	parentIndex  = "inference-waypoint.parent"  // HTTPRoutes by their parents
	backendIndex = "inference-waypoint.backend" // HTTPRoutes by their backends
)

// anyFront is a key of frontIndex that every front has.
const anyFront = "*"

// anyHost is the key of hostIndex that objects for wildcards have.
const anyHost = "*"

// index is one of the cache's indexes of one kind.
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
				return []string{p.String(), anyFront, translate.ServiceHost(client.ObjectKeyFromObject(o), settings)}
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

// hostsOf are the hosts that a pool has or would have.
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

// object is a pointer to an API type.
type object[T any] interface {
	*T
	client.Object
}

// get reads an object, nil where it does not exist.
func get[T any, O object[T]](g *gatherer, name types.NamespacedName) *T {
	if g.err != nil {
		return nil
	}
	out := O(new(T))
	switch err := g.client.Get(g.ctx, name, out); {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		g.err = fmt.Errorf("reading %T %s: %w", out, name, err)
		return nil
	}
	return (*T)(out)
}

// read reads an object into a map, where it exists and has not been read.
func read[T any, O object[T]](g *gatherer, name types.NamespacedName, into map[types.NamespacedName]*T) {
	if into[name] != nil {
		return
	}
	if o := get[T, O](g, name); o != nil {
		into[name] = o
	}
}

// list reads the objects that an index has under a key; none of a kind that the cluster lacks. They are the cache's own:
// nobody may change them.
func list[T any, O object[T]](g *gatherer, into client.ObjectList, index, key string) []*T {
	if g.err != nil {
		return nil
	}
	err := g.client.List(g.ctx, into, client.MatchingFields{index: key}, client.UnsafeDisableDeepCopy)
	if err != nil && !meta.IsNoMatchError(err) {
		g.err = fmt.Errorf("listing %T by %s %s: %w", into, index, key, err)
		return nil
	}
	var out []*T
	g.err = eachItem(into, func(o client.Object) { out = append(out, (*T)(o.(O))) })
	return out
}
