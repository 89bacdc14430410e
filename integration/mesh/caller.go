package mesh

import (
	"context"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/caller"
)

// Caller is a pod that makes calls.
type Caller = caller.Caller

// ClientImage is the image of a pod that runs no program; tests make calls from it.
const ClientImage = caller.Image

// NewCaller makes a pod without a program in an existing namespace. Its calls have the identity of its service account.
func (m *Mesh) NewCaller(ctx context.Context, namespace, name, account string) (*Caller, error) {
	return caller.New(ctx, m.cluster, namespace, name, account)
}
