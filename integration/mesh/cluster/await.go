package cluster

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
)

// Await polls check until it returns nil. It fails early where the API server has ended.
func (c *Cluster) Await(ctx context.Context, what string, check func(context.Context) error) error {
	return process.Await(ctx, what, check, c.apiServer)
}

// AwaitDeployment waits until all pods of a Deployment's newest template are ready.
func (c *Cluster) AwaitDeployment(ctx context.Context, namespace, name string) error {
	return c.Await(ctx, "deployment "+namespace+"/"+name, func(ctx context.Context) error {
		var d appsv1.Deployment
		if err := c.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &d); err != nil {
			return err
		}
		want := int32(1)
		if d.Spec.Replicas != nil {
			want = *d.Spec.Replicas
		}
		if d.Status.ObservedGeneration != d.Generation || d.Status.ReadyReplicas != want || d.Status.Replicas != want {
			return fmt.Errorf("%d of %d pods ready", d.Status.ReadyReplicas, want)
		}
		return nil
	})
}
