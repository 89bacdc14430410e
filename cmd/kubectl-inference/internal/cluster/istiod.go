package cluster

import (
	"context"
	"fmt"
	"net/http"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

const (
	istiodMetrics = 15014
	// rejects is istiod's counter, by type, of configuration that proxies of all kinds refused since istiod started.
	rejects = "pilot_total_xds_rejects"
)

// Rejects sums istiod's counters of configuration that proxies refused, over all pods of istiod. It needs the right to get
// pods/proxy.
func (c *Cluster) Rejects(ctx context.Context, istiod *appsv1.Deployment) (int, error) {
	pods := list[corev1.Pod](ctx, c, "pods", &corev1.PodList{}, istiod.Namespace, client.MatchingLabels{"app": "istiod"})
	if pods.Problem != nil {
		return 0, pods.Problem
	}
	sum := 0
	for _, pod := range pods.Items {
		if !pool.Serving(pod) {
			continue
		}
		n, err := c.rejects(ctx, pod)
		if err != nil {
			return 0, fmt.Errorf("reading the metrics of istiod's pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		sum += n
	}
	return sum, nil
}

func (c *Cluster) rejects(ctx context.Context, pod *corev1.Pod) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.proxied(pod, istiodMetrics).JoinPath("metrics").String(), nil)
	if err != nil {
		return 0, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, rootOf(err)
	}
	defer func() { _ = response.Body.Close() }()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden:
		return 0, &Problem{NotPermitted, "not permitted to reach it through the API server (pods/proxy)"}
	default:
		return 0, fmt.Errorf("the API server answers %s", response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return 0, fmt.Errorf("its metrics are not as expected: %w", err)
	}
	sum := 0.0
	for _, m := range families[rejects].GetMetric() {
		sum += m.GetCounter().GetValue() + m.GetUntyped().GetValue()
	}
	return int(sum), nil
}
