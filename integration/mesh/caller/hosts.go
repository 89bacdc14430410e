package caller

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/waypoint"
)

const (
	useWaypoint          = "istio.io/use-waypoint"
	useWaypointNamespace = "istio.io/use-waypoint-namespace"
)

// ErrNoSuchHost says that the mesh knows no host of this name.
var ErrNoSuchHost = errors.New("no such host in the mesh")

// meshHost is what the mesh knows of a host.
type meshHost struct {
	address   string            // its virtual address
	namespace string            // of the object that defines the host
	labels    map[string]string // of the same object
}

// lookUp finds a host among ServiceEntries and Services.
func lookUp(ctx context.Context, c client.Client, host string) (*meshHost, error) {
	var entries networkingv1.ServiceEntryList
	if err := c.List(ctx, &entries); err != nil {
		return nil, fmt.Errorf("listing service entries: %w", err)
	}
	for _, e := range entries.Items {
		for _, h := range e.Spec.Hosts {
			if h != host {
				continue
			}
			for _, a := range e.Status.GetAddresses() {
				if a.GetHost() == host && !strings.Contains(a.GetValue(), ":") {
					return &meshHost{address: a.GetValue(), namespace: e.Namespace, labels: e.Labels}, nil
				}
			}
		}
	}
	name, rest, _ := strings.Cut(host, ".")
	namespace := strings.TrimSuffix(strings.TrimSuffix(rest, ".cluster.local"), ".svc")
	if namespace == "" || strings.Contains(namespace, ".") {
		return nil, fmt.Errorf("%w: %s", ErrNoSuchHost, host)
	}
	var service corev1.Service
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &service); err != nil {
		return nil, fmt.Errorf("%w: %s (%w)", ErrNoSuchHost, host, err)
	}
	return &meshHost{address: service.Spec.ClusterIP, namespace: namespace, labels: service.Labels}, nil
}

// waypointAddress finds a ready pod of a host's waypoint.
func waypointAddress(ctx context.Context, c *cluster.Cluster, h *meshHost) (netip.Addr, error) {
	name, namespace := h.labels[useWaypoint], h.labels[useWaypointNamespace]
	if name == "" {
		var ns corev1.Namespace
		if err := c.Client.Get(ctx, client.ObjectKey{Name: h.namespace}, &ns); err != nil {
			return netip.Addr{}, fmt.Errorf("reading namespace %s: %w", h.namespace, err)
		}
		name, namespace = ns.Labels[useWaypoint], ns.Labels[useWaypointNamespace]
	}
	if name == "" || name == "none" {
		return netip.Addr{}, errors.New("it is bound to no waypoint")
	}
	if namespace == "" {
		namespace = h.namespace
	}
	pod, err := waypoint.ReadyPod(ctx, c, namespace, name)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(pod.Status.PodIP)
}
