package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/api/meta"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
)

// plugin shows the output of kubectl inference: who serves the pools, and where the next turn of conversation 1 would go.
// Before that it makes one turn, as the caches have been emptied.
func (d *demo) plugin(ctx context.Context) error {
	if err := d.mesh.Await(ctx, "a controller that has seen that calls are picked", d.picked); err != nil {
		return err
	}
	if err := d.kubectl(ctx, nil, "status", "-A"); err != nil {
		return err
	}
	if _, err := d.held.Last.Ask(ctx, d.callers[conversations.Services[0]].HTTP, pickedHost, d.held.Models[conversations.Services[0]], conversations.NextTokens, conversations.AnswerTokens); err != nil {
		return fmt.Errorf("taking one more turn of conversation 1: %w", err)
	}
	next := append(slices.Clone(d.held.Last.Messages), traffic.Message{Role: "user", Content: "And then?"})
	return d.kubectl(ctx, bytes.NewReader(traffic.Body(d.held.Models[conversations.Services[0]], next, conversations.AnswerTokens)), "explain", "-f", "-", "llama", "-n", "models")
}

// picked fails until each pool's status says that its calls are picked. The controller reads waypoints every five seconds.
func (d *demo) picked(ctx context.Context) error {
	var pools inferencev1.InferencePoolList
	if err := d.mesh.Client.List(ctx, &pools); err != nil {
		return err
	}
	for _, p := range pools.Items {
		if !slices.ContainsFunc(p.Status.Parents, func(parent inferencev1.ParentStatus) bool {
			return meta.IsStatusConditionTrue(parent.Conditions, poolstatus.Picked)
		}) {
			return fmt.Errorf("pool %s/%s: %v", p.Namespace, p.Name, p.Status.Parents)
		}
	}
	return nil
}

// kubectl runs the plugin, built beside the demo, and shows the command and its output.
func (d *demo) kubectl(ctx context.Context, stdin io.Reader, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(d.mesh.Root, "bin", "kubectl-inference"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+d.mesh.Kubeconfig())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, d.out, d.out
	line := "\n$ kubectl inference"
	for _, arg := range args {
		line += " " + arg
	}
	_, _ = fmt.Fprintln(d.out, line)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("running kubectl inference %s: %w", args[0], err)
	}
	return nil
}
