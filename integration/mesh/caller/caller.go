// Package caller is a client inside the mesh: a pod with an identity, whose connections come from its address and go by HBONE
// through the waypoint of their host, as ztunnel routes them. It knows nothing of the services that it calls.
package caller

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/hbone"
)

// Image is the image of a pod that runs no program; tests make calls from it.
const Image = "inference-waypoint/client"

// Caller is a pod that makes calls: its identity, and what ztunnel does for the pod's outbound connections.
type Caller struct {
	// HTTP calls hosts of the mesh by name, each connection through the host's waypoint.
	HTTP *http.Client

	cluster *cluster.Cluster
	config  *tls.Config
	address netip.Addr

	mu      sync.Mutex
	dialers map[netip.Addr]*hbone.Dialer
}

// New makes a pod without a program in an existing namespace. Its calls have the identity of its service account.
func New(ctx context.Context, k *cluster.Cluster, namespace, name, account string) (*Caller, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{ServiceAccountName: account, Containers: []corev1.Container{{Name: "client", Image: Image}}},
	}
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: account}}
	if err := k.Client.Create(ctx, sa); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("making service account %s: %w", account, err)
	}
	if err := k.Client.Create(ctx, pod); err != nil {
		return nil, fmt.Errorf("making pod %s: %w", name, err)
	}
	identity, err := k.CA.Workload(namespace, account)
	if err != nil {
		return nil, err
	}
	config, err := k.CA.MutualTLS(identity)
	if err != nil {
		return nil, err
	}
	c := &Caller{cluster: k, config: config, dialers: map[netip.Addr]*hbone.Dialer{}}
	c.HTTP = &http.Client{Transport: &http.Transport{DialContext: c.dial, MaxIdleConnsPerHost: 64}}
	ready, err := k.ReadyPod(ctx, namespace, pod.Labels)
	if err != nil {
		return nil, err
	}
	if c.address, err = netip.ParseAddr(ready.Status.PodIP); err != nil {
		return nil, fmt.Errorf("pod %s: %w", name, err)
	}
	return c, nil
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

// dial opens a connection to "host:port" as ztunnel would: through the host's waypoint, to the host's address.
func (c *Caller) dial(ctx context.Context, _, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", address, err)
	}
	target, err := lookUp(ctx, c.cluster.Client, host)
	if err != nil {
		return nil, err
	}
	waypoint, err := waypointAddress(ctx, c.cluster, target)
	if err != nil {
		return nil, fmt.Errorf("dialling %s: %w", host, err)
	}
	return c.dialer(waypoint).Dial(ctx, net.JoinHostPort(target.address, port))
}

// DialPod opens a connection to a port of a pod, without any waypoint.
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
		d = hbone.NewDialer(c.address, via, c.config)
		c.dialers[via] = d
	}
	return d
}
