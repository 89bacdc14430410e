package waypoint

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
)

const gatewayName = "gateway.networking.k8s.io/gateway-name" // istiod's label on a waypoint's pods

// ReadyPod waits for a ready pod of a waypoint.
func ReadyPod(ctx context.Context, c *cluster.Cluster, namespace, waypoint string) (*corev1.Pod, error) {
	return c.ReadyPod(ctx, namespace, map[string]string{gatewayName: waypoint})
}

// Stats returns the counters and gauges of a waypoint's Envoy, by name.
func Stats(ctx context.Context, c *cluster.Cluster, namespace, waypoint string) (map[string]int, error) {
	page, err := askAdmin(ctx, c, namespace, waypoint, "/stats")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for lines := bufio.NewScanner(bytes.NewReader(page)); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ": ")
		if n, err := strconv.Atoi(value); err == nil { // histograms and texts are left out
			out[name] = n
		}
	}
	return out, nil
}

// Config returns the resources of a kind that a waypoint's Envoy has. kind is a field of a config_dump, such as
// dynamic_listeners or dynamic_route_configs; empty means all kinds. A name that is not empty is a regular expression for
// the resources' names.
func Config(ctx context.Context, c *cluster.Cluster, namespace, waypoint, kind, name string) ([]json.RawMessage, error) {
	query := url.Values{}
	if kind != "" {
		query.Set("resource", kind)
	}
	if name != "" {
		query.Set("name_regex", name)
	}
	page, err := askAdmin(ctx, c, namespace, waypoint, "/config_dump?"+query.Encode())
	if err != nil {
		return nil, err
	}
	var dump struct{ Configs []json.RawMessage }
	if err := json.Unmarshal(page, &dump); err != nil {
		return nil, fmt.Errorf("reading the configuration of waypoint %s/%s: %w", namespace, waypoint, err)
	}
	return dump.Configs, nil
}

// askAdmin reads a page of Envoy's admin interface.
func askAdmin(ctx context.Context, c *cluster.Cluster, namespace, waypoint, path string) ([]byte, error) {
	pod, err := ReadyPod(ctx, c, namespace, waypoint)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(adminPort))+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking waypoint %s/%s: %w", namespace, waypoint, err)
	}
	page, err := process.Ask(request)
	if err != nil {
		return nil, fmt.Errorf("asking waypoint %s/%s for %s: %w", namespace, waypoint, path, err)
	}
	return page, nil
}
