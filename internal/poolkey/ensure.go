package poolkey

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Ensure reads the key of a namespace, or makes one where there is none. Several may do so at once. The client reads from
// no cache.
func Ensure(ctx context.Context, c client.Client, namespace string, now time.Time) (Key, error) {
	made := New()
	err := c.Create(ctx, made.secret(namespace, now))
	switch {
	case err == nil:
		return made, nil
	case !apierrors.IsAlreadyExists(err):
		return Key{}, fmt.Errorf("making Secret %s/%s: %w", namespace, SecretName, err)
	}
	var s corev1.Secret
	if err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: SecretName}, &s); err != nil {
		return Key{}, fmt.Errorf("reading Secret %s/%s: %w", namespace, SecretName, err)
	}
	key, _, err := read(&s)
	return key, err
}

// Delete deletes a namespace's key, if there is one.
func Delete(ctx context.Context, c client.Client, namespace string) error {
	s := Key{}.secret(namespace, time.Time{})
	if err := c.Delete(ctx, s); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting Secret %s/%s: %w", namespace, SecretName, err)
	}
	return nil
}
