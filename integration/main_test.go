// Package integration tests the product in the real mesh: calls of services through a real waypoint, with the controller,
// the picker and the model servers as processes. All tests share one mesh.
package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

const (
	model = "llama-3.1-8b"
	llama = "http://llama.models.inference.internal"
)

// the is shared by all tests: the mesh, and a service that makes calls.
var the struct {
	*mesh.Mesh
	caller *mesh.Caller
}

func TestMain(m *testing.M) {
	mesh.Enter()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx := context.Background()
	images := map[string]mesh.Image{twoPorts: {Path: "/bin/sh", Args: onTwoPorts}, supervised: {Path: "/bin/sh", Args: onSupervised}}
	maps.Copy(images, sampleImages)
	started, err := mesh.Start(ctx, mesh.Options{Progress: os.Stderr, Images: images})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer started.Close()
	the.Mesh = started
	if err := install(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		started.ShowLogs(os.Stderr, 30)
		return 1
	}
	code := m.Run()
	if code != 0 {
		dir := filepath.Join(started.Root, ".mesh", fmt.Sprintf("test-%d", time.Now().Unix()))
		fmt.Fprintln(os.Stderr, "the mesh's logs:", dir, started.KeepLogs(dir))
	}
	return code
}

// onTwoPorts is a script that runs two model servers for a pod.
func onTwoPorts(p *corev1.Pod, _ string, _ []string) ([]string, error) {
	program := filepath.Join(the.Root, "bin", "modelserver")
	one := func(port string) string {
		return fmt.Sprintf("%s --time-scale=20 --address=%s:%s --name=%s:%s &", program, p.Status.PodIP, port, p.Name, port)
	}
	return []string{"-c", "trap 'kill %1 %2' TERM; " + one("8000") + one("8001") + " wait; wait"}, nil
}

// install applies what a user would, and waits until a call is served.
func install(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not within two minutes"))
	defer cancel()
	if err := the.InstallQuickstart(ctx); err != nil {
		return err
	}
	if err := onePicker(ctx); err != nil {
		return err
	}
	if err := the.ApplyYAML(ctx, `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}`); err != nil {
		return err
	}
	var err error
	if the.caller, err = the.NewCaller(ctx, "shop", "checkout", "checkout"); err != nil {
		return err
	}
	return the.Await(ctx, "a served call", func(ctx context.Context) error { return ask(ctx, "Are you there?") })
}

// ask makes one short call to the pool.
func ask(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err := traffic.Chat(ctx, the.caller.HTTP, llama, model, []traffic.Message{{Role: "user", Content: text}}, 1)
	return err
}

// begin starts a test: its context ends after limit, and the test fails if a waypoint refuses configuration meanwhile.
func begin(t *testing.T, limit time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, fmt.Errorf("not within %s", limit))
	t.Cleanup(cancel)
	before := len(the.Refusals())
	t.Cleanup(func() {
		for _, refusal := range the.Refusals()[before:] {
			t.Error(refusal)
		}
	})
	return ctx
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// modelServers lists the pods of the quickstart's model servers.
func modelServers(ctx context.Context, t *testing.T) []corev1.Pod {
	t.Helper()
	return pods(ctx, t, "models", client.MatchingLabels{"app": "llama"})
}

// metricsOf returns the metrics page that a pod serves on a port.
func metricsOf(ctx context.Context, p *corev1.Pod, port string) (string, error) {
	page, err := process.Get(ctx, "http://"+net.JoinHostPort(p.Status.PodIP, port)+"/metrics")
	return string(page), err
}

func pods(ctx context.Context, t *testing.T, namespace string, labels client.MatchingLabels) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	must(t, the.Client.List(ctx, &list, client.InNamespace(namespace), labels))
	return list.Items
}
