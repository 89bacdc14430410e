// Package waypoint runs a stock Envoy for each waypoint's pod, and reads its admin interface. It does not serve Envoy's
// configuration; package relay does.
package waypoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/kubelet"
)

// Image runs a stock Envoy for a pod of istiod's Deployment of a waypoint.
func Image(path string) kubelet.Image {
	return kubelet.Image{
		Path:      path,
		OwnTunnel: true,
		Ready:     &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ready", Port: intstr.FromInt32(adminPort)}}},
		Args: func(p *corev1.Pod, dir string, _ []string) ([]string, error) {
			file := filepath.Join(dir, "bootstrap.yaml")
			content, err := yaml.Marshal(bootstrap(p))
			if err != nil {
				return nil, fmt.Errorf("encoding Envoy's bootstrap: %w", err)
			}
			if err := os.WriteFile(file, content, 0o644); err != nil {
				return nil, fmt.Errorf("writing Envoy's bootstrap: %w", err)
			}
			drain, err := drainTime(p)
			if err != nil {
				return nil, err
			}
			return []string{
				"--config-path", file, "--disable-hot-restart", "--concurrency", "2", "--log-level", "warning",
				"--drain-time-s", strconv.Itoa(int(drain.Seconds())),
			}, nil
		},
	}
}

// proxyConfig is Istio's annotation for proxy settings of a pod. A Gateway passes it on to its waypoint's pods by
// spec.infrastructure.annotations.
const proxyConfig = "proxy.istio.io/config"

// drainTime is the drainDuration in a pod's proxyConfig: how long a waypoint keeps the connections of a replaced listener
// or filter chain. Istio's default is 45 s. Here the default is 1 s, to shorten the tests.
func drainTime(p *corev1.Pod) (time.Duration, error) {
	var settings struct {
		DrainDuration string `json:"drainDuration"`
	}
	if err := yaml.Unmarshal([]byte(p.Annotations[proxyConfig]), &settings); err != nil {
		return 0, fmt.Errorf("reading the annotation %s of pod %s: %w", proxyConfig, p.Name, err)
	}
	if settings.DrainDuration == "" {
		return time.Second, nil
	}
	drain, err := time.ParseDuration(settings.DrainDuration)
	if err != nil {
		return 0, fmt.Errorf("reading the annotation %s of pod %s: %w", proxyConfig, p.Name, err)
	}
	return drain, nil
}
