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

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

// plugin shows what kubectl inference says of all this: who serves the pools, and where the next turn of conversation 1
// would go. One more turn comes before, since the caches have been emptied.
func (d *demo) plugin(ctx context.Context) error {
	if err := d.kubectl(ctx, nil, "status", "-A"); err != nil {
		return err
	}
	if _, err := d.held.Last.Ask(ctx, d.callers[conversations.Services[0]].HTTP, pickedHost, conversations.Model, conversations.NextTokens, conversations.AnswerTokens); err != nil {
		return fmt.Errorf("taking one more turn of conversation 1: %w", err)
	}
	next := append(slices.Clone(d.held.Last.Messages), traffic.Message{Role: "user", Content: "And then?"})
	return d.kubectl(ctx, bytes.NewReader(traffic.Body(conversations.Model, next, conversations.AnswerTokens)), "explain", "-f", "-", "llama", "-n", "models")
}

// kubectl runs the plugin, as it was built beside the demo, and shows the command and what it says.
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
