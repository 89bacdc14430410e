package cluster

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ReadyPod waits for a ready pod with these labels.
func (c *Cluster) ReadyPod(ctx context.Context, namespace string, labels map[string]string) (*corev1.Pod, error) {
	var found *corev1.Pod
	err := c.Await(ctx, fmt.Sprintf("a ready pod of %v in %s", labels, namespace), func(ctx context.Context) error {
		var pods corev1.PodList
		if err := c.Client.List(ctx, &pods, client.InNamespace(namespace), client.MatchingLabels(labels)); err != nil {
			return err
		}
		for i := range pods.Items {
			if IsReady(&pods.Items[i]) && pods.Items[i].DeletionTimestamp == nil {
				found = &pods.Items[i]
				return nil
			}
		}
		return fmt.Errorf("none of %d is ready", len(pods.Items))
	})
	return found, err
}

// IsReady reports whether a pod's status says that it is ready.
func IsReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// AccountOf returns the name of a pod's service account.
func AccountOf(p *corev1.Pod) string {
	if p.Spec.ServiceAccountName == "" {
		return "default"
	}
	return p.Spec.ServiceAccountName
}
