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

// semanticsLabel makes istiod put the endpoints of all ports of a host into each port's cluster. It is Istio's internal
// label for the Services of InferencePools behind ingress Gateways, and not an API. So we set it only on pools with several
// target ports.
const (
	semanticsLabel = "internal.istio.io/service-semantics"
	semanticsPool  = "inferencepool"
)

// serviceEntry makes the ServiceEntry of a pool's hosts: their names, addresses in the mesh and endpoints. It is nil if
// nothing needs it.
//
// Without a waypoint, Istio sends a call directly to an endpoint. While a pool's waypoint is missing or wrong, the pool has:
//   - FailOpen: names, addresses and endpoints. Calls go to endpoints directly, as from a waypoint without a picker.
//   - FailClose: names and addresses, and no endpoints until the waypoint can serve the pool.
//   - FailClose, and a route of another pool's host leads to it at a waypoint: names and endpoints, and no addresses.
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
		out.Spec.WorkloadSelector.Labels[pool.NoPodLabel] = "true"
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

// ports are the host's ports: the port for calls, with the first target port, and an extra port for each further target
// port, so that istiod sends its endpoints too. Calls to extra ports are refused: see closeExtraPorts.
func ports(p pool.Pool) []*v1alpha3.ServicePort {
	// The protocol applies to the connections to endpoints; callers may use HTTP/1.1 or HTTP/2 with either.
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
