package mesh

import (
	"context"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/istio"
)

// Kill ends a pod's program at once, as a crash would. It is started again after a moment.
func (m *Mesh) Kill(pod types.UID) error { return m.kubelet.Kill(pod) }

// ProcessID is the number of a pod's program, which a restart changes.
func (m *Mesh) ProcessID(pod types.UID) (int, error) { return m.kubelet.ProcessID(pod) }

// RestartIstiod replaces istiod by one with an environment variable set, and waits until the old one is gone.
func (m *Mesh) RestartIstiod(ctx context.Context, name, value string) error {
	return istio.Restart(ctx, m.cluster, name, value)
}
