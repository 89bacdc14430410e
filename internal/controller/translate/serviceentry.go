package translate

import (
	"fmt"
	"maps"

	"istio.io/api/label"
	"istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// The port at which a pool's host is called.
const (
	frontPort     = 80
	frontPortName = "http"
)

// semanticsLabel makes istiod put the endpoints of all ports of a host into each port's cluster. It is Istio's own, made
// for the Services that stand for InferencePools behind ingress Gateways, and no API: it is used only for pools of
// several target ports, and nowhere else in this project.
const (
	semanticsLabel = "internal.istio.io/service-semantics"
	semanticsPool  = "inferencepool"
)

// heldLabel is one that no pod has: a selector with it finds none.
const heldLabel = pool.Prefix + "held"

// serviceEntry makes a pool's hosts: their names, their addresses in the mesh and their endpoints. It is nil where
// nothing needs them.
//
// Without a waypoint, Istio brings a call straight to an endpoint. What a pool gets while its waypoint is missing or wrong:
//   - FailOpen: names, addresses and endpoints. Calls go to endpoints directly, as from a waypoint without a picker.
//   - FailClose: names and addresses, and no endpoints until the waypoint can serve the pool.
//   - FailClose, and another pool's host leads to it by a waypoint: names and endpoints, and no addresses.
func (t translator) serviceEntry(r readPool, fronts []front, places []place) *networkingv1.ServiceEntry {
	var own *front
	elsewhere := false
	for i, f := range fronts {
		if f.object.Kind == entryKind {
			own = &fronts[i]
		}
	}
	for _, p := range places {
		elsewhere = elsewhere || p.verdict.OK()
	}
	out := t.entry(r, own)
	switch {
	case own != nil && (own.verdict.OK() || r.FailureMode == pool.FailOpen):
		maps.Copy(out.Labels, useWaypoint(r.Name.Namespace, own.waypoint))
	case elsewhere:
		out.Labels[label.IoIstioUseWaypoint.Name] = noWaypoint
		out.Labels[label.NetworkingEnableAutoallocateIp.Name] = "false"
	case own != nil:
		maps.Copy(out.Labels, useWaypoint(r.Name.Namespace, own.waypoint))
		out.Spec.WorkloadSelector.Labels[heldLabel] = "true"
	default:
		return nil
	}
	return out
}

func (t translator) entry(r readPool, own *front) *networkingv1.ServiceEntry {
	hosts := []string{r.Host(t.settings.HostSuffix)}
	if own != nil {
		hosts = own.hosts
	}
	out := &networkingv1.ServiceEntry{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: entryKind},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: r.Name.Namespace,
			Name:      r.Name.Name,
			Labels:    map[string]string{},
		},
		Spec: v1alpha3.ServiceEntry{
			Hosts:            hosts,
			Location:         v1alpha3.ServiceEntry_MESH_INTERNAL,
			Resolution:       v1alpha3.ServiceEntry_STATIC,
			WorkloadSelector: &v1alpha3.WorkloadSelector{Labels: maps.Clone(r.Selector)},
			Ports:            ports(r.Pool),
		},
	}
	if len(r.TargetPorts) > 1 {
		out.Labels[semanticsLabel] = semanticsPool
	}
	return out
}

// ports are the host's: the one that is called, for the first target port, and after it one more for each further
// target port, whose endpoints istiod then sends too. Those are not to be called: see closed.
func ports(p pool.Pool) []*v1alpha3.ServicePort {
	// The protocol is what istiod speaks to the endpoints by itself; callers may use HTTP/1.1 or HTTP/2 with either.
	protocol := "HTTP"
	if p.H2C {
		protocol = "HTTP2"
	}
	var out []*v1alpha3.ServicePort
	for i, target := range p.TargetPorts {
		port := &v1alpha3.ServicePort{Number: frontPort, Name: frontPortName, Protocol: protocol, TargetPort: uint32(target)}
		if i > 0 {
			port.Number = frontPort + uint32(i)
			port.Name = fmt.Sprintf("%s-%d", frontPortName, i)
		}
		out = append(out, port)
	}
	return out
}
