package controllers

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ServiceAccounts makes the default service account of each namespace.
func (c *Controllers) ServiceAccounts(ctx context.Context, s *State) error {
	for name := range s.Namespaces {
		if c.accounts[name] {
			continue
		}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "default"}}
		if err := c.client.Create(ctx, account); err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("making the default service account of %s: %w", name, err)
		}
		c.accounts[name] = true
	}
	return nil
}
