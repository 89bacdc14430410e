package mesh

import (
	"context"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/istio"
)

// Kill ends a pod's program at once, as a crash would. The kubelet starts it again after a moment.
func (m *Mesh) Kill(pod types.UID) error { return m.kubelet.Kill(pod) }

// LoseNode has nobody probe or report a pod any more, as if its node had vanished, until found is called. The pod can
// still be reached: that is for the caller to prevent.
func (m *Mesh) LoseNode(pod types.UID) (found func(), err error) { return m.kubelet.LoseNode(pod) }

// ProcessID returns the process ID of a pod's program. A restart changes it.
func (m *Mesh) ProcessID(pod types.UID) (int, error) { return m.kubelet.ProcessID(pod) }

// RestartIstiod replaces istiod by one with an environment variable set, and waits until the old pod is gone.
func (m *Mesh) RestartIstiod(ctx context.Context, name, value string) error {
	return istio.Restart(ctx, m.cluster, name, value)
}
