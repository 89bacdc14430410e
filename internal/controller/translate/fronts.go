package translate

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// The kinds of a front's object.
const (
	entryGroup  = "networking.istio.io"
	entryKind   = "ServiceEntry"
	serviceKind = "Service"
)

// front is an object by which a pool is called: the pool's ServiceEntry, or a Service with pool.PoolAnnotation.
type front struct {
	// object is the ServiceEntry or Service, to which routes attach.
	object   routes.Object
	hosts    []string
	ports    []routes.Port
	waypoint types.NamespacedName
	// verdict says whether the waypoint can serve it.
	verdict poolstatus.Verdict
}

// fronts are the fronts of a pool, its own ServiceEntry first. Notes name the hosts and Services that cannot be fronts.
func (t translator) fronts(name types.NamespacedName) (out []front, notes []string) {
	api := t.Pool(name)
	if waypoint, bound := WaypointOf(api, t.Namespace(name.Namespace)); bound {
		f := front{
			object:   routes.Object{Group: entryGroup, Kind: entryKind, Name: name},
			ports:    []routes.Port{{Name: frontPortName, Number: frontPort}},
			waypoint: waypoint,
			verdict:  t.acceptedBy(waypoint, name.Namespace),
		}
		f.hosts, notes = t.hosts(api)
		out = append(out, f)
	}
	for _, s := range t.FrontServices(name) {
		f, problem := t.serviceFront(s)
		if problem != "" {
			notes = append(notes, fmt.Sprintf("not by Service %s: %s", nameOf(s), problem))
			continue
		}
		out = append(out, f)
	}
	return out, notes
}

// FrontOf is the pool that serves the calls to a Service; its name is empty if there is none.
func FrontOf(s *corev1.Service) types.NamespacedName {
	if s.Annotations[pool.PoolAnnotation] == "" {
		return types.NamespacedName{}
	}
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Annotations[pool.PoolAnnotation]}
}

func (t translator) serviceFront(s *corev1.Service) (_ front, problem string) {
	name := nameOf(s)
	waypoint, bound := ServiceWaypoint(s, t.Namespace(s.Namespace))
	switch {
	case !bound:
		return front{}, "it is bound to no waypoint"
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		return front{}, "it is of type ExternalName"
	case s.Spec.ClusterIP == corev1.ClusterIPNone:
		return front{}, "it is headless, so no call to it goes through a waypoint"
	}
	out := front{
		object:   routes.Object{Kind: serviceKind, Name: name},
		hosts:    []string{t.serviceHost(name)},
		waypoint: waypoint,
		verdict:  t.acceptedBy(waypoint, s.Namespace),
	}
	for _, p := range s.Spec.Ports {
		if speaksHTTP(p) {
			out.ports = append(out.ports, routes.Port{Name: p.Name, Number: p.Port})
		}
	}
	if len(out.ports) == 0 {
		return front{}, "none of its ports is for HTTP"
	}
	return out, ""
}

func (t translator) serviceHost(name types.NamespacedName) string {
	return ServiceHost(name, t.settings)
}

// ServiceHost is a Service's host.
func ServiceHost(name types.NamespacedName, settings Settings) string {
	return fmt.Sprintf("%s.%s.svc.%s", name.Name, name.Namespace, settings.ClusterDomain)
}

// notHTTP are the protocols other than HTTP that Istio recognises by a Service port's appProtocol, or else by the prefix
// of the port's name. For other ports Istio detects the protocol from the first bytes of a connection.
var notHTTP = []string{"tcp", "udp", "https", "tls", "mongo", "redis", "mysql", "kubernetes.io/wss"}

func speaksHTTP(p corev1.ServicePort) bool {
	if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
		return false
	}
	protocol := p.Name
	if p.AppProtocol != nil {
		protocol = *p.AppProtocol
	}
	protocol, _, _ = strings.Cut(strings.ToLower(protocol), "-")
	return !slices.Contains(notHTTP, protocol)
}

func nameOf(o metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func older(a, b metav1.Object) bool {
	x, y := a.GetCreationTimestamp(), b.GetCreationTimestamp()
	if !x.Equal(&y) {
		return x.Before(&y)
	}
	return a.GetNamespace()+"/"+a.GetName() < b.GetNamespace()+"/"+b.GetName()
}

// checkHost reports why a host cannot be a name in DNS.
func checkHost(host string) error {
	if problems := validation.IsDNS1123Subdomain(host); len(problems) > 0 {
		return fmt.Errorf("host %q cannot be a DNS name: %s", host, strings.Join(problems, "; "))
	}
	for part := range strings.SplitSeq(host, ".") {
		if problems := validation.IsDNS1123Label(part); len(problems) > 0 {
			return fmt.Errorf("host %q cannot be a DNS name: its part %q: %s", host, part, strings.Join(problems, "; "))
		}
	}
	return nil
}

// served are the waypoints that can serve any of the fronts.
func served(fronts []front) []types.NamespacedName {
	out := map[types.NamespacedName]bool{}
	for _, f := range fronts {
		if f.verdict.OK() {
			out[f.waypoint] = true
		}
	}
	return sortedNames(out)
}

// placeOf is a pool's place at a waypoint, with the fronts that the waypoint can serve.
func (t translator) placeOf(name, waypoint types.NamespacedName, fronts []front) ineffective.Place {
	out := ineffective.Place{Waypoint: waypoint, RootNamespace: t.settings.RootNamespace, Clusters: []string{clusterName(name, name)}}
	for _, f := range fronts {
		if !f.verdict.OK() {
			continue
		}
		at := ineffective.Front{Object: f.object, Hosts: f.hosts}
		for _, p := range f.ports {
			at.Ports = append(at.Ports, uint32(p.Number))
		}
		out.Fronts = append(out.Fronts, at)
	}
	return out
}

// others are the users' Istio objects that may be meant for calls to a place.
func (t translator) others(at ineffective.Place) ineffective.Objects {
	out := ineffective.NewObjects()
	targets := []routes.Object{ineffective.Class(at.RootNamespace), {Group: gatewayv1.GroupName, Kind: "Gateway", Name: at.Waypoint}}
	for _, f := range at.Fronts {
		targets = append(targets, f.Object)
		for _, host := range f.Hosts {
			for _, v := range t.VirtualServices(host) {
				out.VirtualServices[nameOf(v)] = v
			}
			for _, d := range t.DestinationRules(host) {
				out.DestinationRules[nameOf(d)] = d
			}
		}
	}
	for _, target := range targets {
		for _, f := range t.EnvoyFilters(target) {
			out.EnvoyFilters[nameOf(f)] = f
		}
	}
	return out
}

func atWaypoint(fronts []front, waypoint types.NamespacedName) []front {
	return slices.DeleteFunc(slices.Clone(fronts), func(f front) bool { return f.waypoint != waypoint })
}
