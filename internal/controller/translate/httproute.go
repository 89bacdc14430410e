package translate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
)

const poolKind = "InferencePool"

// PoolOf is the pool of which an object is a front, if it is one. A ServiceEntry of ours has its pool's name.
func PoolOf(o routes.Object, in interface {
	Service(name types.NamespacedName) *corev1.Service
}) (types.NamespacedName, bool) {
	switch {
	case o.Group == entryGroup && o.Kind == entryKind:
		return o.Name, true
	case IsService(o):
		if s := in.Service(o.Name); s != nil {
			p := FrontOf(s)
			return p, p.Name != ""
		}
	}
	return types.NamespacedName{}, false
}

// IsPool reports whether an object that a route refers to is an InferencePool.
func IsPool(o routes.Object) bool { return o.Group == inferencev1.GroupName && o.Kind == poolKind }

// IsService reports whether an object that a route refers to is a Service.
func IsService(o routes.Object) bool { return o.Group == "" && o.Kind == serviceKind }

// backend is the resolved backend reference of a route.
type backend struct {
	envoypatch.Destination
	pool    *readPool
	service types.NamespacedName
}

// backend resolves a reference of a route in a namespace, at a front of the owner.
func (t translator) backend(owner types.NamespacedName, namespace string, ref gatewayv1.BackendObjectReference) (backend, *routes.Problem) {
	o := routes.BackendOf(namespace, ref)
	switch {
	case !IsPool(o) && !IsService(o):
		return backend{}, &routes.Problem{Reason: gatewayv1.RouteReasonInvalidKind, Message: fmt.Sprintf("%s is of a kind that calls cannot be sent to", o)}
	case !t.granted(namespace, o):
		return backend{}, &routes.Problem{
			Reason:  gatewayv1.RouteReasonRefNotPermitted,
			Message: fmt.Sprintf("no ReferenceGrant in namespace %s lets HTTPRoutes of %s refer to %s", o.Name.Namespace, namespace, o),
		}
	case IsPool(o):
		return t.poolBackend(owner, o)
	default:
		return t.serviceBackend(o, ref.Port)
	}
}

func notFound(format string, args ...any) *routes.Problem {
	return &routes.Problem{Reason: gatewayv1.RouteReasonBackendNotFound, Message: fmt.Sprintf(format, args...)}
}

func (t translator) poolBackend(owner types.NamespacedName, o routes.Object) (backend, *routes.Problem) {
	if t.Pool(o.Name) == nil {
		return backend{}, notFound("%s does not exist", o)
	}
	r := t.read(o.Name)
	if r.problem != nil {
		return backend{}, notFound("%s cannot be served: %s", o, r.problem.Message)
	}
	settings := t.pickerSettings(r)
	return backend{Destination: envoypatch.Destination{Cluster: clusterName(owner, o.Name), Picker: &settings}, pool: &r}, nil
}

func (t translator) serviceBackend(o routes.Object, port *gatewayv1.PortNumber) (backend, *routes.Problem) {
	if port == nil {
		return backend{}, notFound("the reference to %s names no port", o)
	}
	if problem := servicePortProblem(t.Service(o.Name), ServicePort{o.Name, *port}); problem != "" {
		return backend{}, notFound("%s", problem)
	}
	cluster := fmt.Sprintf("outbound|%d||%s", *port, t.serviceHost(o.Name))
	return backend{Destination: envoypatch.Destination{Cluster: cluster}, service: o.Name}, nil
}

// attached compiles the routes that apply to a port of a front.
func (t translator) attached(f front, port routes.Port, resolve routes.Resolve) []routes.Compiled {
	var out []routes.Compiled
	for _, route := range t.RoutesAt(f.object) {
		if route.Namespace == f.object.Name.Namespace && routes.AttachesTo(route, f.object, port) {
			out = append(out, routes.Compile(route, resolve))
		}
	}
	return out
}

// resolver resolves the references of routes at a front of a pool, for their status.
func (t translator) resolver(owner types.NamespacedName) routes.Resolve {
	return func(namespace string, ref gatewayv1.BackendObjectReference) (envoypatch.Destination, *routes.Problem) {
		to, problem := t.backend(owner, namespace, ref)
		return to.Destination, problem
	}
}

// referrals are the waypoints that serve a pool because routes of other pools' fronts have the pool as a backend.
func (t translator) referrals(name types.NamespacedName) []place {
	var out []place
	to := routes.Object{Group: inferencev1.GroupName, Kind: poolKind, Name: name}
	for _, route := range t.RoutesTo(to) {
		if !t.granted(route.Namespace, to) {
			continue
		}
		for _, parent := range routes.Parents(route) {
			f, owner, refused := t.frontFor(route, parent)
			if f == nil || owner == name {
				continue
			}
			p := place{waypoint: f.waypoint, verdict: f.verdict, owner: owner}
			switch {
			case !p.verdict.OK():
			case refused == nil:
				p.verdict.Message += " by HTTPRoute " + nameOf(route).String()
			default:
				p.verdict = poolstatus.Verdict{
					Reason:  inferencev1.InferencePoolReasonHTTPRouteNotAccepted,
					Message: fmt.Sprintf("HTTPRoute %s is not accepted: %s", nameOf(route), refused.Message),
				}
			}
			out = append(out, p)
		}
	}
	return out
}

func (t translator) granted(namespace string, to routes.Object) bool {
	return routes.Granted(namespace, to, t.Grants)
}

// frontFor finds the front that a route's parent is, and why the route has no effect there, if so. The front is nil if the
// parent is not a front, or is not served at all.
func (t translator) frontFor(route *gatewayv1.HTTPRoute, parent routes.Object) (_ *front, owner types.NamespacedName, refused *routes.Problem) {
	owner, ours := PoolOf(parent, t)
	if !ours || t.Pool(owner) == nil {
		return nil, owner, nil
	}
	fronts, notes := t.fronts(owner)
	i := slices.IndexFunc(fronts, func(f front) bool { return f.object == parent })
	if i < 0 {
		message := fmt.Sprintf("InferencePool %s is not served by %s", owner, parent)
		return nil, owner, noParent(strings.Join(append([]string{message}, notes...), "; "))
	}
	f := &fronts[i]
	switch r := t.read(owner); {
	case r.problem != nil:
		return f, owner, noParent(r.problem.Message)
	case !f.verdict.OK():
		return f, owner, noParent(f.verdict.Message)
	case route.Namespace != parent.Name.Namespace:
		return f, owner, &routes.Problem{
			Reason:  gatewayv1.RouteReasonUnsupportedValue,
			Message: fmt.Sprintf("a route of namespace %s cannot have %s as its parent: routes for callers of one namespace alone are not supported", route.Namespace, parent),
		}
	}
	c := routes.Compile(route, t.resolver(owner))
	if !c.Usable() {
		return f, owner, &routes.Problem{Reason: gatewayv1.RouteReasonUnsupportedValue, Message: strings.Join(c.Dropped, "; ")}
	}
	return f, owner, nil
}

func noParent(message string) *routes.Problem {
	return &routes.Problem{Reason: gatewayv1.RouteReasonNoMatchingParent, Message: message}
}

// RouteVerdicts makes the verdicts on a route at each of its parents that is a pool's front.
func RouteVerdicts(route *gatewayv1.HTTPRoute, in Cluster, settings Settings) []routes.Verdict {
	t := translator{in, settings}
	var out []routes.Verdict
	for _, ref := range route.Spec.ParentRefs {
		parent := routes.ParentOf(route.Namespace, ref)
		owner, ours := PoolOf(parent, t)
		if !ours || t.Pool(owner) == nil {
			continue
		}
		out = append(out, t.verdict(route, ref, parent))
	}
	return out
}

func (t translator) verdict(route *gatewayv1.HTTPRoute, ref gatewayv1.ParentReference, parent routes.Object) routes.Verdict {
	f, owner, refused := t.frontFor(route, parent)
	c := routes.Compile(route, t.resolver(owner))
	out := routes.Verdict{Parent: ref, Unresolved: c.Unresolved, Dropped: c.Dropped}
	if refused != nil {
		out.Refused = *refused
		return out
	}
	i := slices.IndexFunc(f.ports, func(p routes.Port) bool { return routes.Attaches(ref, p) })
	if i < 0 {
		out.Refused = *noParent(fmt.Sprintf("%s has no such port for HTTP", parent))
		return out
	}
	_, shadowed := routes.Merge(t.attached(*f, f.ports[i], t.resolver(owner)))
	out.Notes = shadowed[types.NamespacedName{Namespace: route.Namespace, Name: route.Name}]
	return out
}
