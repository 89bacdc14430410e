package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"

	"istio.io/api/label"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// counters are a waypoint's counters for a pool without calls, by Envoy's names in Prometheus's format.
var counters = []string{
	"streams_started", "streams_closed", "streams_failed", "message_timeouts", "failure_mode_allowed", "stream_msgs_sent", "stream_msgs_received",
}

// counted serves the counters of all waypoints' pods. One listener is enough, as all pods' addresses are local to this
// machine.
type counted struct {
	*world
	mu   sync.Mutex
	pods map[string]string // namespaces of waypoints' pods by address
}

// showCounters serves counters until ctx ends.
func (w *world) showCounters(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprint(":", waypointwatch.StatsPort))
	if err != nil {
		return fmt.Errorf("showing waypoints' counters: %w", err)
	}
	server := &http.Server{Handler: &counted{world: w}, ReadHeaderTimeout: setUpLimit}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }()
	return nil
}

// ServeHTTP answers as the pod at the called address.
func (c *counted) ServeHTTP(out http.ResponseWriter, request *http.Request) {
	address, _ := request.Context().Value(http.LocalAddrContextKey).(net.Addr)
	host, _, err := net.SplitHostPort(fmt.Sprint(address))
	var namespace string
	if err == nil {
		namespace, err = c.namespace(request.Context(), host)
	}
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	for i := range c.pools {
		name := pool.CounterName(types.NamespacedName{Namespace: namespace, Name: poolName(i)})
		for _, counter := range counters {
			_, _ = fmt.Fprintf(out, "envoy_http_ext_proc_%s_%s{} 0\n", name, counter)
		}
	}
}

// namespace returns the namespace of the pod with an address.
func (c *counted) namespace(ctx context.Context, address string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pods[address] == "" {
		var pods corev1.PodList
		if err := c.Client.List(ctx, &pods, client.HasLabels{label.IoK8sNetworkingGatewayGatewayName.Name}); err != nil {
			return "", fmt.Errorf("listing the pods of waypoints: %w", err)
		}
		c.pods = map[string]string{}
		for _, p := range pods.Items {
			c.pods[p.Status.PodIP] = p.Namespace
		}
	}
	if c.pods[address] == "" {
		return "", fmt.Errorf("no waypoint's pod has the address %s", address)
	}
	return c.pods[address], nil
}
