package mesh

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/authorization"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/istio"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/kubelet"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/machine"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/relay"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/waypoint"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/ztunnel"
)

// start starts each part of the mesh as soon as the parts that it needs are ready.
func (m *Mesh) start(ctx context.Context, images map[string]Image) error {
	tools, err := m.toolsDir()
	if err != nil {
		return err
	}
	for _, dir := range []string{m.logs, filepath.Join(sandbox.WorkDir, "cluster"), filepath.Join(sandbox.WorkDir, "pods")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("making the mesh's directories: %w", err)
		}
	}
	authority, err := pki.New()
	if err != nil {
		return err
	}
	// Rendering and building need no cluster, and the cluster needs neither. So all three run at once.
	rendered := async(func() ([]*unstructured.Unstructured, error) { return istio.Render(ctx, m.Root, tools) })
	built := async(func() (struct{}, error) { return struct{}{}, m.build(ctx) })
	m.cluster, err = cluster.Start(ctx, tools, filepath.Join(sandbox.WorkDir, "cluster"), m.logs, authority)
	if err != nil {
		return err
	}
	m.Client, m.Config = m.cluster.Client, m.cluster.Config
	m.say("etcd and kube-apiserver answer")

	objects, err := rendered()
	if err != nil {
		return err
	}
	if err := m.createNamespace(ctx, istio.Namespace); err != nil {
		return err
	}
	if err := m.cluster.Apply(ctx, objects); err != nil {
		return err
	}
	m.say("the overlay's %d objects and definitions are applied", len(objects))
	if _, err := built(); err != nil {
		return err
	}
	if err := m.startMachine(m.allImages(tools, images)); err != nil {
		return err
	}
	if err := istio.AwaitReady(ctx, m.cluster); err != nil {
		return err
	}
	if err := m.startRelay(ctx, authority); err != nil {
		return err
	}
	m.say("istiod is ready and validates")
	return nil
}

// async starts work and returns a function that waits for its result.
func async[T any](work func() (T, error)) func() (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := work()
		done <- result{v, err}
	}()
	return func() (T, error) {
		r := <-done
		return r.value, r.err
	}
}

// FindRoot looks for the checkout upwards from the working directory.
func FindRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the checkout: %w", err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "integration", "tools")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("finding the checkout: no directory above this one holds integration/tools")
}

func (m *Mesh) toolsDir() (string, error) {
	dir := filepath.Join(m.Root, ".tools")
	for _, tool := range []string{"etcd", "kube-apiserver", "istiod", "istioctl", "envoy"} {
		if _, err := os.Stat(filepath.Join(dir, tool)); err != nil {
			return "", fmt.Errorf("the tool %s is missing: run make tools", tool)
		}
	}
	return dir, nil
}

func (m *Mesh) createNamespace(ctx context.Context, name string) error {
	err := m.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if err != nil {
		return fmt.Errorf("making namespace %s: %w", name, err)
	}
	return nil
}

func (m *Mesh) startMachine(images map[string]Image) error {
	log, err := m.logger("machine")
	if err != nil {
		return err
	}
	policies, err := authorization.New(istio.Locate(m.cluster), log)
	if err != nil {
		return err
	}
	m.kubelet = kubelet.New(kubelet.Options{
		Cluster: m.cluster, Ztunnel: ztunnel.New(m.cluster.CA, policies), Images: images,
		Logs: m.logs, Dir: filepath.Join(sandbox.WorkDir, "pods"), Log: log,
	})
	looking := machine.New(m.Client, m.kubelet, log)
	ctx, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.wait.Go(func() { policies.Run(ctx) })
	m.wait.Go(func() {
		if err := looking.Run(ctx); err != nil {
			log.Error("the machine stopped", "error", err)
		}
	})
	return nil
}

func (m *Mesh) startRelay(ctx context.Context, authority *pki.Authority) error {
	log, err := m.logger("relay")
	if err != nil {
		return err
	}
	m.relay, err = relay.New(istio.Locate(m.cluster), authority, log)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", waypoint.RelayAddress)
	if err != nil {
		return fmt.Errorf("listening for waypoints: %w", err)
	}
	life, cancel := context.WithCancel(context.Background())
	before := m.cancel
	m.cancel = func() { before(); cancel() }
	m.wait.Go(func() {
		if err := m.relay.Serve(life, listener); err != nil {
			log.Error("the relay stopped", "error", err)
		}
	})
	return nil
}
