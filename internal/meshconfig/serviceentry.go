package meshconfig

import (
	"fmt"
	"strings"

	"istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// frontPort is the port at which a pool's host is called.
const frontPort = 80

// semanticsLabel makes istiod put the endpoints of all ports of a host into each port's cluster. It is Istio's own, made
// for the Services that stand for InferencePools behind ingress Gateways, and no API: it is used only for pools of
// several target ports, and nowhere else in this project.
const (
	semanticsLabel = "internal.istio.io/service-semantics"
	semanticsPool  = "inferencepool"
)

// serviceEntry makes a pool's host: its name, its address in the mesh and its endpoints.
func serviceEntry(p pool.Pool, waypoint types.NamespacedName, settings Settings) *networkingv1.ServiceEntry {
	out := &networkingv1.ServiceEntry{
		TypeMeta: metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: "ServiceEntry"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Name.Namespace,
			Name:      p.Name.Name,
			Labels:    useWaypoint(p.Name.Namespace, waypoint),
		},
		Spec: v1alpha3.ServiceEntry{
			Hosts:            []string{p.Host(settings.HostSuffix)},
			Location:         v1alpha3.ServiceEntry_MESH_INTERNAL,
			Resolution:       v1alpha3.ServiceEntry_STATIC,
			WorkloadSelector: &v1alpha3.WorkloadSelector{Labels: p.Selector},
			Ports:            ports(p),
		},
	}
	if len(p.TargetPorts) > 1 {
		out.Labels[semanticsLabel] = semanticsPool
	}
	return out
}

// ports are the host's: the one that is called, for the first target port, and after it one more for each further
// target port, whose endpoints istiod then sends too.
func ports(p pool.Pool) []*v1alpha3.ServicePort {
	// The protocol is what istiod speaks to the endpoints by itself; callers may use HTTP/1.1 or HTTP/2 with either.
	protocol := "HTTP"
	if p.H2C {
		protocol = "HTTP2"
	}
	var out []*v1alpha3.ServicePort
	for i, target := range p.TargetPorts {
		port := &v1alpha3.ServicePort{Number: frontPort, Name: "http", Protocol: protocol, TargetPort: uint32(target)}
		if i > 0 {
			port.Number = frontPort + uint32(i)
			port.Name = fmt.Sprintf("http-%d", i)
		}
		out = append(out, port)
	}
	return out
}

// checkHost reports why a host cannot be a name in DNS. The name of an InferencePool may be longer than a label of a
// host may be.
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
