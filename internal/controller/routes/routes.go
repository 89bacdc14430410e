// Package routes implements the Gateway API's rules for HTTPRoutes: which parents and backends a route names, what each
// rule does, and which of several routes applies to a call. It must know nothing of pools, waypoints or clusters. It is
// pure: it compiles a route into the routes of package envoypatch, and returns faults as problems for the route's status.
// The caller resolves backends.
package routes

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
)

// Object names an object that a route refers to.
type Object struct {
	Group, Kind string
	Name        types.NamespacedName
}

func (o Object) String() string { return o.Kind + " " + o.Name.String() }

// Port is a port of a parent. A route may attach to a single port.
type Port struct {
	Name   string
	Number int32
}

// ParentOf is the object that a parent reference of a route in a namespace names.
func ParentOf(namespace string, ref gatewayv1.ParentReference) Object {
	out := Object{Group: gatewayv1.GroupName, Kind: "Gateway", Name: types.NamespacedName{Namespace: namespace, Name: string(ref.Name)}}
	return out.as(ref.Group, ref.Kind, ref.Namespace)
}

// as replaces the object's default group, kind and namespace by those that a reference sets.
func (o Object) as(group *gatewayv1.Group, kind *gatewayv1.Kind, namespace *gatewayv1.Namespace) Object {
	if group != nil {
		o.Group = string(*group)
	}
	if kind != nil {
		o.Kind = string(*kind)
	}
	if namespace != nil {
		o.Name.Namespace = string(*namespace)
	}
	return o
}

// Parents are the objects that a route names as its parents, each once.
func Parents(route *gatewayv1.HTTPRoute) []Object {
	var out []Object
	for _, ref := range route.Spec.ParentRefs {
		if o := ParentOf(route.Namespace, ref); !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out
}

// Attaches reports whether a parent reference includes a port of the parent.
func Attaches(ref gatewayv1.ParentReference, port Port) bool {
	return (ref.Port == nil || *ref.Port == port.Number) && (ref.SectionName == nil || string(*ref.SectionName) == port.Name)
}

// AttachesTo reports whether a route attaches to a port of a parent.
func AttachesTo(route *gatewayv1.HTTPRoute, parent Object, port Port) bool {
	return slices.ContainsFunc(route.Spec.ParentRefs, func(ref gatewayv1.ParentReference) bool {
		return ParentOf(route.Namespace, ref) == parent && Attaches(ref, port)
	})
}

// BackendOf is the object that a backend reference of a route in a namespace names.
func BackendOf(namespace string, ref gatewayv1.BackendObjectReference) Object {
	out := Object{Kind: "Service", Name: types.NamespacedName{Namespace: namespace, Name: string(ref.Name)}}
	return out.as(ref.Group, ref.Kind, ref.Namespace)
}

// Backends are the objects to which a route's rules send calls or copies of calls, each once.
func Backends(route *gatewayv1.HTTPRoute) []Object {
	var out []Object
	add := func(ref gatewayv1.BackendObjectReference) {
		if o := BackendOf(route.Namespace, ref); !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	for _, rule := range route.Spec.Rules {
		for _, b := range rule.BackendRefs {
			add(b.BackendObjectReference)
		}
		for _, f := range rule.Filters {
			if f.RequestMirror != nil {
				add(f.RequestMirror.BackendRef)
			}
		}
	}
	return out
}

// Problem is a reference that cannot be resolved. Its share of the calls is answered with status 500.
type Problem struct {
	Reason  gatewayv1.RouteConditionReason
	Message string
}

// Resolve finds the destination of a backend reference of a route in a namespace. It does not set the weight and the
// header changes.
type Resolve func(namespace string, ref gatewayv1.BackendObjectReference) (envoypatch.Destination, *Problem)

// Compiled is a route compiled for the waypoint.
type Compiled struct {
	Route *gatewayv1.HTTPRoute
	// Unresolved are the references that could not be resolved.
	Unresolved []Problem
	// Dropped has the reason for each part of the route that is left out.
	Dropped []string

	pieces []piece
}

// piece is the compiled route of one match of one rule.
type piece struct {
	envoypatch.Route
	from        *gatewayv1.HTTPRoute
	rule, match int
}

// Usable reports whether any part of the route could be compiled. A route without such a part counts as missing.
func (c Compiled) Usable() bool { return len(c.pieces) > 0 }

// Merge makes one list of several routes for one front, in the Gateway API's order of precedence (HTTPRouteRule.matches).
// The API leaves the rank of regular expressions open. Here they come between exact paths and prefixes, as a prefix is
// often meant to match all other calls. Calls that no route matches are answered with 404. Merge leaves out a match that
// equals an earlier one, and reports it in shadowed, by the name of the match's route.
func Merge(compiled []Compiled) (list []envoypatch.Route, shadowed map[types.NamespacedName][]string) {
	var pieces []piece
	for _, c := range compiled {
		pieces = append(pieces, c.pieces...)
	}
	if len(pieces) == 0 {
		return nil, nil
	}
	slices.SortFunc(pieces, compare)
	shadowed = map[types.NamespacedName][]string{}
	first := map[string]piece{}
	for _, p := range pieces {
		key := identity(p.Match)
		if before, taken := first[key]; taken {
			name := nameOf(p.from)
			shadowed[name] = append(shadowed[name], fmt.Sprintf(
				"rule %d, match %d is also rule %d, match %d of HTTPRoute %s, which comes first", p.rule+1, p.match+1, before.rule+1, before.match+1, nameOf(before.from)))
			continue
		}
		first[key] = p
		list = append(list, p.Route)
	}
	return append(list, envoypatch.Route{Name: "no-route", Status: http.StatusNotFound}), shadowed
}

func nameOf(route *gatewayv1.HTTPRoute) types.NamespacedName {
	return types.NamespacedName{Namespace: route.Namespace, Name: route.Name}
}

// compare orders matches by precedence.
func compare(a, b piece) int {
	method := func(p piece) int { return min(len(p.Match.Method), 1) }
	return cmp.Or(
		cmp.Compare(rank(b.Match.Path.Kind), rank(a.Match.Path.Kind)),
		cmp.Compare(len(canonical(b.Match.Path)), len(canonical(a.Match.Path))),
		cmp.Compare(method(b), method(a)),
		cmp.Compare(len(b.Match.Headers), len(a.Match.Headers)),
		cmp.Compare(len(b.Match.Query), len(a.Match.Query)),
		a.from.CreationTimestamp.Compare(b.from.CreationTimestamp.Time),
		cmp.Compare(nameOf(a.from).String(), nameOf(b.from).String()),
		cmp.Compare(a.rule, b.rule),
		cmp.Compare(a.match, b.match),
	)
}

// canonical is a path without the final slash of a prefix, which makes no difference.
func canonical(p envoypatch.PathMatch) string {
	if p.Kind == envoypatch.PathPrefix {
		return strings.TrimRight(p.Value, "/")
	}
	return p.Value
}

func rank(k envoypatch.PathKind) int {
	switch k {
	case envoypatch.PathExact:
		return 2
	case envoypatch.PathRegex:
		return 1
	default:
		return 0
	}
}

// identity is equal for matches with equal parts in any order.
func identity(m envoypatch.Match) string {
	values := func(list []envoypatch.ValueMatch, lower bool) string {
		var out []string
		for _, v := range list {
			if lower {
				v.Name = strings.ToLower(v.Name)
			}
			out = append(out, fmt.Sprintf("%q", []any{v.Name, v.Value, fmt.Sprint(v.Regex)}))
		}
		slices.Sort(out)
		return strings.Join(out, ",")
	}
	return fmt.Sprintf("%d %q %s [%s] [%s]", m.Path.Kind, canonical(m.Path), m.Method, values(m.Headers, true), values(m.Query, false))
}

// Granted reports whether a grant lets HTTPRoutes of a namespace refer to an object of another namespace. Within one
// namespace no grant is needed. Grants must be in the namespace of the object.
func Granted(namespace string, to Object, grants func(namespace string) []*gatewayv1.ReferenceGrant) bool {
	if namespace == to.Name.Namespace {
		return true
	}
	return slices.ContainsFunc(grants(to.Name.Namespace), func(g *gatewayv1.ReferenceGrant) bool {
		return g.Namespace == to.Name.Namespace &&
			slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
				return f.Group == gatewayv1.GroupName && f.Kind == "HTTPRoute" && string(f.Namespace) == namespace
			}) &&
			slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
				return string(t.Group) == to.Group && string(t.Kind) == to.Kind && (t.Name == nil || string(*t.Name) == to.Name.Name)
			})
	})
}
