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

// Ensure reads the key of a namespace, or makes one where there is none, and has pickers wait for its tokens from now on.
// Several may do so at once. The client reads from no cache.
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
	if err != nil {
		return Key{}, err
	}
	before := s.DeepCopy()
	s.Data[enforcedData] = key.secret(namespace, now).Data[enforcedData]
	if err := c.Patch(ctx, &s, client.MergeFrom(before)); err != nil {
		return Key{}, fmt.Errorf("saying in Secret %s/%s from when on its tokens are asked for: %w", namespace, SecretName, err)
	}
	return key, nil
}

// keepInterval is how often a controller looks whether the key is still the one that it makes tokens of.
const keepInterval = 30 * time.Second

// Keep returns with an error once the key of a namespace is another than the one that was ensured, or is gone: tokens of
// two keys are worth nothing, so the program is to begin anew. It returns without one when ctx ends.
func Keep(ctx context.Context, c client.Client, namespace string, key Key) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(keepInterval):
		}
		var s corev1.Secret
		err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: SecretName}, &s)
		if err != nil && !apierrors.IsNotFound(err) {
			continue // what cannot be asked now is asked again
		}
		if now, _, err := read(&s); err != nil || now != key {
			return fmt.Errorf("Secret %s/%s is not the one that this program began with, which ends so that it begins with the new one", namespace, SecretName) //nolint:staticcheck // a kind of object begins with a capital
		}
	}
}

// Delete deletes a namespace's key, if there is one.
func Delete(ctx context.Context, c client.Client, namespace string) error {
	s := Key{}.secret(namespace, time.Time{})
	if err := c.Delete(ctx, s); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("deleting Secret %s/%s: %w", namespace, SecretName, err)
	}
	return nil
}
