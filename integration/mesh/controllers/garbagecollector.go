package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ownerKinds are the kinds whose objects own others: a deleted owner's objects are deleted too.
var ownerKinds = []string{"Deployment", "Gateway"}

// CollectGarbage deletes objects whose owner is gone.
func (c *Controllers) CollectGarbage(ctx context.Context, s *State) error {
	var problems []error
	look := func(o client.Object) {
		orphan := slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool {
			return slices.Contains(ownerKinds, r.Kind) && !s.owners[r.UID]
		})
		if !orphan || o.GetDeletionTimestamp() != nil {
			return
		}
		if err := c.client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			problems = append(problems, fmt.Errorf("deleting %s, whose owner is gone: %w", o.GetName(), err))
		}
	}
	for i := range s.Deployments {
		look(&s.Deployments[i])
	}
	for i := range s.Services {
		look(&s.Services[i])
	}
	for i := range s.Pods {
		look(&s.Pods[i])
	}
	return errors.Join(problems...)
}
