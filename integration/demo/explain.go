package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// explain asks the picker where the next turn of conversation 1 would go, and why. Nothing is called.
func (d *demo) explain(ctx context.Context) error {
	next := append(slices.Clone(d.last.Messages), traffic.Message{Role: "user", Content: "And then?"})
	explanation, err := d.mesh.Explain(ctx, "models/llama", traffic.Body(model, next, answerTokens))
	if err != nil {
		return err
	}
	var pods corev1.PodList
	if err := d.mesh.Client.List(ctx, &pods, client.InNamespace("models")); err != nil {
		return fmt.Errorf("listing model servers: %w", err)
	}
	_, _ = fmt.Fprintf(d.out, "\nWhere the next turn of conversation 1 would go, of %d prompt tokens, and why (POST /debug/explain of the picker):\n%-9s %13s %13s %9s %21s\n",
		explanation.PromptTokens, "endpoint", "cached tokens", "to prefill", "in flight", "expected first token")
	for _, c := range explanation.Candidates {
		name := c.Endpoint
		for _, pod := range pods.Items {
			if strings.HasPrefix(c.Endpoint, pod.Status.PodIP+":") {
				name = pod.Name
			}
		}
		_, _ = fmt.Fprintf(d.out, "%-9s %13d %13d %9d %18.0f ms\n", name, c.CachedTokens, c.UncachedTokens, c.InFlight, 1000*c.FirstToken)
	}
	return nil
}
