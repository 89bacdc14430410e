// Package mesh runs a whole Istio ambient mesh on one machine, without containers: a real etcd, kube-apiserver and
// istiod, a real Envoy for each waypoint, and a process for each pod, all in one network namespace. The demo and the
// integration tests stand on it. The packages below it are the parts, and it starts them in order. Those that are not the real
// thing are small and named after it: controllers, kubelet, ztunnel, and relay for Istio's agent.
package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/kubelet"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/relay"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
)

// startLimit bounds the start of a mesh. It takes some ten seconds; a machine under heavy load takes longer.
const startLimit = 3 * time.Minute

// Image is what the mesh runs for a container image.
type Image = kubelet.Image

// Options say how to start a mesh. The zero value is a good one.
type Options struct {
	// Root is the checkout; where empty it is looked for upwards from the working directory.
	Root string
	// Progress takes a line for each step.
	Progress io.Writer
	// Images are what the machine runs for container images besides those that it knows, or in their place.
	Images map[string]Image
}

// Mesh is a running mesh with Istio installed and nothing else.
type Mesh struct {
	// Client has all rights on the API server.
	Client client.WithWatch
	// Config is how to reach the API server with all rights.
	Config *rest.Config
	// Root is the checkout.
	Root string

	cluster *cluster.Cluster
	kubelet *kubelet.Kubelet
	relay   *relay.Relay
	logs    string
	cancel  context.CancelFunc
	wait    sync.WaitGroup

	progress io.Writer
	began    time.Time
	closed   sync.Once

	reader struct {
		sync.Mutex
		token string
	}
}

// Enter runs the rest of the program in network, process and mount namespaces of its own, where a mesh can start. A program
// calls it before anything else. It needs root.
func Enter() { sandbox.Enter() }

// Start starts a mesh. The program must have called Enter before. Where it fails, what had started is stopped again
// and the error holds the ends of the logs.
func Start(ctx context.Context, o Options) (*Mesh, error) {
	if !sandbox.Inside() {
		return nil, errors.New("a mesh starts inside its namespaces: call mesh.Enter first")
	}
	root := o.Root
	if root == "" {
		var err error
		if root, err = findRoot(); err != nil {
			return nil, err
		}
	}
	ctrllog.SetLogger(logr.Discard()) // the client's library warns, with a stack, where it has none
	m := &Mesh{Root: root, logs: filepath.Join(sandbox.WorkDir, "logs"), progress: o.Progress, began: time.Now()}
	if m.progress == nil {
		m.progress = io.Discard
	}
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, errors.New("the mesh did not start in time"))
	defer cancel()
	if err := m.start(ctx, o.Images); err != nil {
		var logs strings.Builder
		m.ShowLogs(&logs, 15)
		m.Close()
		return nil, fmt.Errorf("starting the mesh: %w\n%s", err, logs.String())
	}
	return m, nil
}

func (m *Mesh) say(format string, args ...any) {
	_, _ = fmt.Fprintf(m.progress, "mesh: %5.1f s  %s\n", time.Since(m.began).Seconds(), fmt.Sprintf(format, args...))
}

// Close stops everything in order: pods, waypoints and istiod, then the API server, then etcd.
func (m *Mesh) Close() {
	m.closed.Do(func() {
		if m.cancel != nil {
			m.cancel()
		}
		m.wait.Wait()
		if m.cluster != nil {
			m.cluster.Stop()
		}
	})
}

// Kubeconfig is the path of a kubeconfig with all rights, valid inside the mesh's namespaces.
func (m *Mesh) Kubeconfig() string { return m.cluster.Kubeconfig() }

// AwaitDeployment waits until all pods of a Deployment are ready.
func (m *Mesh) AwaitDeployment(ctx context.Context, namespace, name string) error {
	return m.cluster.AwaitDeployment(ctx, namespace, name)
}

// Await looks at a condition until it holds, which it says by returning nil.
func (m *Mesh) Await(ctx context.Context, what string, check func(context.Context) error) error {
	return m.cluster.Await(ctx, what, check)
}
