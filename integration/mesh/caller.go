package mesh

import (
	"context"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/caller"
)

// Caller is a pod that calls.
type Caller = caller.Caller

// ClientImage is the image of a pod that runs nothing and is only called from.
const ClientImage = caller.Image

// NewCaller makes a pod that runs nothing, in a namespace that exists, and calls as its service account.
func (m *Mesh) NewCaller(ctx context.Context, namespace, name, account string) (*Caller, error) {
	return caller.New(ctx, m.cluster, namespace, name, account)
}
