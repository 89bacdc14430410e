package mesh

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/hbone"
)

const (
	useWaypoint          = "istio.io/use-waypoint"
	useWaypointNamespace = "istio.io/use-waypoint-namespace"
	gatewayName          = "gateway.networking.k8s.io/gateway-name" // istiod's label on a waypoint's pods
)

// ErrNoSuchHost says that the mesh knows no host of this name.
var ErrNoSuchHost = errors.New("no such host in the mesh")

// Caller is a pod that calls: its identity, and what ztunnel does for the connections that leave it.
type Caller struct {
	// HTTP calls hosts of the mesh by their names, each connection through the host's waypoint.
	HTTP *http.Client

	mesh   *Mesh
	config *tls.Config

	mu      sync.Mutex
	dialers map[netip.Addr]*hbone.Dialer
}

// NewCaller makes a pod that runs nothing, in a namespace that exists, and calls as its service account.
func (m *Mesh) NewCaller(ctx context.Context, namespace, name, account string) (*Caller, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{Name: "client", Image: ClientImage}}},
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := m.Client.Create(ctx, sa); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("making service account %s: %w", account, err)
	}
	if err := m.Client.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("making pod %s: %w", name, err)
	}
	identity, err := m.cluster.CA.Workload(namespace, account)
	if err != nil {
		return nil, err
	}
	config, err := m.cluster.CA.MutualTLS(identity)
	if err != nil {
		return nil, err
	}
	c := &Caller{mesh: m, config: config, dialers: map[netip.Addr]*hbone.Dialer{}}
	c.HTTP = &http.Client{Transport: &http.Transport{DialContext: c.dial, MaxIdleConnsPerHost: 64}}
	_, err = m.cluster.ReadyPod(ctx, namespace, pod.Labels)
	return c, err
}

// Close ends the caller's idle connections.
func (c *Caller) Close() {
	c.HTTP.CloseIdleConnections()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.dialers {
		d.Close()
	}
}

// dial opens a connection to "host:port" as ztunnel would: by the host's waypoint, to the host's address.
func (c *Caller) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", address, err)
	}
	target, err := c.mesh.lookUp(ctx, host)
	if err != nil {
		return nil, err
	}
	waypoint, err := c.mesh.waypointAddress(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", host, err)
	}
	return c.dialer(waypoint).Dial(ctx, net.JoinHostPort(target.address, port))
}

// DialPod opens a connection to a port of a pod, past every waypoint.
func (c *Caller) DialPod(ctx context.Context, pod *corev1.Pod, port int) (net.Conn, error) {
	address, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil {
		return nil, fmt.Errorf("dialling pod %s: %w", pod.Name, err)
	}
	return c.dialer(address).Dial(ctx, net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port)))
}

func (c *Caller) dialer(via netip.Addr) *hbone.Dialer {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.dialers[via]
	if !ok {
		d = hbone.NewDialer(via, c.config)
		c.dialers[via] = d
	}
	return d
}

// meshHost is what the mesh knows of a host.
type meshHost struct {
	address   string            // its virtual address
	namespace string            // where the object lives that defines it
	labels    map[string]string // that object's
}

// lookUp finds a host among ServiceEntries and Services.
func (m *Mesh) lookUp(ctx context.Context, host string) (*meshHost, error) {
	var entries networkingv1.ServiceEntryList
	if err := m.Client.List(ctx, &entries); err != nil {
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
	if err := m.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &service); err != nil {
		return nil, fmt.Errorf("%w: %s (%w)", ErrNoSuchHost, host, err)
	}
	return &meshHost{address: service.Spec.ClusterIP, namespace: namespace, labels: service.Labels}, nil
}

// waypointAddress finds a ready pod of the waypoint that a host is bound to.
func (m *Mesh) waypointAddress(ctx context.Context, h *meshHost) (netip.Addr, error) {
	name, namespace := h.labels[useWaypoint], h.labels[useWaypointNamespace]
	if name == "" {
		var ns corev1.Namespace
		if err := m.Client.Get(ctx, client.ObjectKey{Name: h.namespace}, &ns); err != nil {
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
	pod, err := m.cluster.ReadyPod(ctx, namespace, map[string]string{gatewayName: name})
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(pod.Status.PodIP)
}
