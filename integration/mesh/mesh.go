// Package mesh runs a whole Istio ambient mesh on one machine, without containers: a real etcd, kube-apiserver and istiod,
// a real Envoy for each waypoint, and a process for each pod, all in one network namespace. The demo and the integration
// tests use it. Its subpackages are the parts, and it starts them in order. Small stand-ins are named after the original:
// controllers, kubelet, ztunnel, and relay for Istio's agent.
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

// startLimit bounds the start of a mesh, which takes some ten seconds, and longer on a machine under heavy load.
const startLimit = 3 * time.Minute

// Image is what the mesh runs for a container image.
type Image = kubelet.Image

// Options configure a mesh. The zero value works.
type Options struct {
	// Root is the checkout. Where it is empty, Start searches upwards from the working directory.
	Root string
	// Progress gets a line for each step.
	Progress io.Writer
	// Images are added to those that the mesh knows, and replace those of the same name.
	Images map[string]Image
}

// Mesh is a running mesh with Istio and nothing else installed.
type Mesh struct {
	// Client has all rights on the API server.
	Client client.WithWatch
	// Config is the configuration of a client with all rights on the API server.
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
// calls Enter before anything else. Enter needs root.
func Enter() { sandbox.Enter() }

// Start starts a mesh. The program must have called Enter before. On failure Start stops the parts that run, and the error
// holds the ends of the logs.
func Start(ctx context.Context, o Options) (*Mesh, error) {
	if !sandbox.Inside() {
		return nil, errors.New("a mesh starts inside its namespaces: call mesh.Enter first")
	}
	root := o.Root
	if root == "" {
		var err error
		if root, err = FindRoot(); err != nil {
			return nil, err
		}
	}
	ctrllog.SetLogger(logr.Discard()) // without a logger, the client's library warns with a stack
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

// Await polls check until it returns nil.
func (m *Mesh) Await(ctx context.Context, what string, check func(context.Context) error) error {
	return m.cluster.Await(ctx, what, check)
}
