// Package translate translates InferencePools, and the HTTPRoutes that lead to them, into Istio objects that make waypoints
// serve them. It must not read or write a cluster, know Envoy's configuration (package envoypatch), or interpret HTTPRoutes
// (package routes). It is pure: it gets the objects that it needs from the interface Cluster, and returns faults as verdicts
// for the status of a pool or a route.
//
// It makes a pool's objects from the pool itself, the routes at the pool's hosts and the backends of these routes. The
// objects depend on no other pool's objects, so no pool's fault reaches another pool.
package translate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

// Settings are the controller's own, the same for all pools.
type Settings struct {
	// HostSuffix ends every pool's host: <pool>.<namespace>.<suffix>.
	HostSuffix string
	// RootNamespace is Istio's root namespace, whose configuration applies to the whole mesh.
	RootNamespace string
	// ClusterDomain ends the host of every Service: <service>.<namespace>.svc.<domain>.
	ClusterDomain string
	// DefaultPicker is our picker, which serves the pools that name no picker; nil if there is none.
	DefaultPicker *ServicePort
	// HostClaims are the hosts that pools may claim beside their own; without HostClaims they may claim none.
	HostClaims []HostClaim
	// Key makes the tokens by which waypoints prove to the default picker that they serve a pool; nil makes no tokens.
	Key *poolkey.Key
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Service types.NamespacedName
	Port    int32
}

func (s ServicePort) String() string { return fmt.Sprintf("%s:%d", s.Service, s.Port) }

// ParseServicePort reads namespace/service:port.
func ParseServicePort(s string) (ServicePort, error) {
	name, portText, ok1 := strings.Cut(s, ":")
	namespace, service, ok2 := strings.Cut(name, "/")
	port, err := strconv.ParseUint(portText, 10, 16)
	if !ok1 || !ok2 || err != nil || port == 0 ||
		len(validation.IsDNS1123Label(namespace)) > 0 || len(validation.IsDNS1035Label(service)) > 0 {
		return ServicePort{}, fmt.Errorf("%q is not namespace/service:port", s)
	}
	return ServicePort{
		Service: types.NamespacedName{Namespace: namespace, Name: service},
		Port:    int32(port),
	}, nil
}

// Cluster has the objects that a translation reads. A translation depends on exactly the objects that it asks for. An
// object that does not exist is nil, and so is a pool that is being deleted. Lists are in the order of names. Callers must
// not change the objects.
type Cluster interface {
	Pool(name types.NamespacedName) *inferencev1.InferencePool
	Namespace(name string) *corev1.Namespace
	Gateway(name types.NamespacedName) *gatewayv1.Gateway
	Service(name types.NamespacedName) *corev1.Service
	// FrontServices are the Services whose calls a pool serves.
	FrontServices(pool types.NamespacedName) []*corev1.Service
	// RoutesAt are the routes that have an object as a parent, RoutesTo those that have it as a backend.
	RoutesAt(parent routes.Object) []*gatewayv1.HTTPRoute
	RoutesTo(backend routes.Object) []*gatewayv1.HTTPRoute
	// Grants are the ReferenceGrants of a namespace.
	Grants(namespace string) []*gatewayv1.ReferenceGrant
	// Claimants are the pools that have a host or claim it. Holder is the pool that has the host now, if any.
	Claimants(host string) []*inferencev1.InferencePool
	Holder(host string) types.NamespacedName
	// Entries are the ServiceEntries for a host that are not ours.
	Entries(host string) []*networkingv1.ServiceEntry
	// VirtualServices and DestinationRules are objects that may apply to a host. EnvoyFilters are attached to an object.
	// None of them are ours.
	VirtualServices(host string) []*networkingv1.VirtualService
	DestinationRules(host string) []*networkingv1.DestinationRule
	EnvoyFilters(target routes.Object) []*networkingv1alpha3.EnvoyFilter
}

// Output has the desired objects and the status of one pool.
type Output struct {
	EnvoyFilters   []Filter
	ServiceEntries []*networkingv1.ServiceEntry
	// Parents are the entries for the pool's status, one for each waypoint that serves the pool or should.
	Parents []poolstatus.Parent
	// CalledBy are, by waypoint, the pools whose hosts lead to this pool: itself, and pools with routes to it.
	CalledBy map[types.NamespacedName][]types.NamespacedName
	// Keep says that the pool could not be translated. The objects of its last translation stay, so that a mistake in a
	// live pool does not remove its host.
	Keep bool
}

// Filter is the EnvoyFilter of a pool at one waypoint.
type Filter struct {
	*networkingv1alpha3.EnvoyFilter
	Waypoint types.NamespacedName
	// Called says that calls may reach one of its hosts even before the EnvoyFilter exists, as with a Service.
	Called bool
}

// Object is any of the objects that a translation makes.
type Object interface {
	metav1.Object
	runtime.Object
}

// Objects lists the output's objects in the order in which to apply them: EnvoyFilters first, so that a host is never
// served without its picker.
func (o Output) Objects() []Object {
	var out []Object
	for _, f := range o.EnvoyFilters {
		out = append(out, f.EnvoyFilter)
	}
	for _, s := range o.ServiceEntries {
		out = append(out, s)
	}
	return out
}

// Translate makes the desired objects and the status of a pool. A pool that no waypoint serves gets no objects.
func Translate(name types.NamespacedName, in Cluster, settings Settings) Output {
	if in.Pool(name) == nil {
		return Output{}
	}
	t := translator{in, settings}
	read := t.read(name)
	fronts, notes := t.fronts(name)
	places := append(placesOf(name, fronts), t.referrals(name)...)
	if read.problem != nil {
		return Output{Parents: parents(places, read.problem, read.resolved, notes), Keep: read.unreadable}
	}
	var out Output
	for _, waypoint := range served(fronts) {
		here := atWaypoint(fronts, waypoint)
		filter, err := t.envoyFilter(read, waypoint, here)
		if err != nil {
			problem := notSupported("%v", err)
			return Output{Parents: parents(places, &problem, read.resolved, notes), Keep: true}
		}
		called := slices.ContainsFunc(here, func(f front) bool { return f.object.Kind == serviceKind })
		out.EnvoyFilters = append(out.EnvoyFilters, Filter{filter, waypoint, called})
	}
	if entry := t.serviceEntry(read, fronts, places); entry != nil {
		out.ServiceEntries = append(out.ServiceEntries, entry)
	}
	out.Parents = parents(places, nil, read.resolved, notes)
	out.CalledBy = calledBy(places)
	for i, parent := range out.Parents {
		at := t.placeOf(name, parent.Gateway, atWaypoint(fronts, parent.Gateway))
		out.Parents[i].Ineffective = ineffective.Message(ineffective.Find(at, t.others(at), settings.ClusterDomain))
	}
	return out
}

type translator struct {
	Cluster
	settings Settings
}

// readPool is a pool with its picker, or with the problem that keeps it from being served.
type readPool struct {
	pool.Pool
	picker   picker
	resolved poolstatus.Verdict
	// problem is why no waypoint can serve the pool.
	problem *poolstatus.Verdict
	// unreadable says that the pool's own fields are wrong.
	unreadable bool
}

func (t translator) read(name types.NamespacedName) readPool {
	p, err := pool.FromAPI(t.Pool(name))
	if err == nil {
		err = checkHost(p.Host(t.settings.HostSuffix))
	}
	out := readPool{Pool: p, resolved: poolstatus.ResolvedRefs("none")}
	chosen, resolved := t.resolvePicker(p)
	if chosen != nil {
		out.picker, out.resolved = *chosen, resolved
	}
	var problem poolstatus.Verdict
	switch {
	case err != nil:
		problem, out.unreadable = notSupported("%v", err), true
	case chosen == nil:
		problem = poolstatus.Verdict{
			Reason:  inferencev1.InferencePoolReasonEndpointPickerRefMissing,
			Message: "the pool names no endpoint picker, and the controller has no default one",
		}
	default:
		if rival := t.rival(p, p.Host(t.settings.HostSuffix)); rival != "" {
			problem = notSupported("host %s is taken: %s", p.Host(t.settings.HostSuffix), rival)
			break
		}
		return out
	}
	out.problem = &problem
	return out
}

// place is a waypoint that serves a pool, or should.
type place struct {
	waypoint types.NamespacedName
	verdict  poolstatus.Verdict
	// owner is the pool to whose hosts the calls are addressed.
	owner types.NamespacedName
	// hosts are the pool's own hosts there; empty if only routes of other pools lead to it.
	hosts []string
}

func placesOf(name types.NamespacedName, fronts []front) []place {
	var out []place
	for _, f := range fronts {
		out = append(out, place{f.waypoint, f.verdict, name, f.hosts})
	}
	return out
}

// calledBy are the owners of the places that serve the pool, each once, by waypoint.
func calledBy(places []place) map[types.NamespacedName][]types.NamespacedName {
	out := map[types.NamespacedName][]types.NamespacedName{}
	for _, p := range places {
		if p.verdict.OK() && !slices.Contains(out[p.waypoint], p.owner) {
			out[p.waypoint] = append(out[p.waypoint], p.owner)
		}
	}
	return out
}

// parents makes one parent for each waypoint of the places. The pool is accepted at a waypoint if any place there is. The
// notes name the hosts and Services that are not served.
func parents(places []place, problem *poolstatus.Verdict, resolved poolstatus.Verdict, notes []string) []poolstatus.Parent {
	byWaypoint := map[types.NamespacedName]poolstatus.Parent{}
	hosts := map[types.NamespacedName][]string{}
	for _, p := range places {
		if p.verdict.OK() {
			hosts[p.waypoint] = append(hosts[p.waypoint], p.hosts...)
		}
		if before, ok := byWaypoint[p.waypoint]; !ok || !before.Accepted.OK() {
			byWaypoint[p.waypoint] = poolstatus.Parent{Gateway: p.waypoint, Accepted: p.verdict, ResolvedRefs: resolved}
		}
	}
	var out []poolstatus.Parent
	for waypoint, parent := range byWaypoint {
		switch {
		case problem != nil:
			parent.Accepted = *problem
		case parent.Accepted.OK() && len(hosts[waypoint]) > 0:
			parent.Accepted.Message += " as " + strings.Join(hosts[waypoint], ", ")
		}
		parent.Refused = strings.Join(notes, "; ")
		out = append(out, parent)
	}
	slices.SortFunc(out, func(a, b poolstatus.Parent) int { return cmp.Compare(a.Gateway.String(), b.Gateway.String()) })
	return out
}

func notSupported(format string, args ...any) poolstatus.Verdict {
	return poolstatus.Verdict{
		Reason:  inferencev1.InferencePoolReasonNotSupportedByParent,
		Message: fmt.Sprintf(format, args...),
	}
}

// sortedNames are a map's keys in the order of namespace and name.
func sortedNames[T any](m map[types.NamespacedName]T) []types.NamespacedName {
	var out []types.NamespacedName
	for name := range m {
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b types.NamespacedName) int { return cmp.Compare(a.String(), b.String()) })
	return out
}
