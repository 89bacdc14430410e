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

// Ensure reads the key of a namespace, or creates one, and restarts the grace period in which pickers check no tokens.
// Several replicas may call it at once. The client must not read from a cache.
func Ensure(ctx context.Context, c client.Client, namespace string, now time.Time) (Key, error) {
	made := New()
	err := c.Create(ctx, made.secret(namespace, now))
	switch {
	case err == nil:
		return made, nil
	case !apierrors.IsAlreadyExists(err):
		return Key{}, fmt.Errorf("creating Secret %s/%s: %w", namespace, SecretName, err)
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
		return Key{}, fmt.Errorf("writing into Secret %s/%s the time from which pickers check tokens: %w", namespace, SecretName, err)
	}
	return key, nil
}

// keepInterval is how often a controller checks that the Secret still has the key of its tokens.
const keepInterval = 30 * time.Second

// Keep returns an error once the namespace's key is gone or differs from the given one. The program must then restart,
// as pickers refuse tokens of another key. It returns nil when ctx ends.
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
			continue // the next check asks again
		}
		if now, _, err := read(&s); err != nil || now != key {
			return fmt.Errorf("Secret %s/%s has changed since this program started: it exits, to start again with the new key", namespace, SecretName) //nolint:staticcheck // a kind of object begins with a capital
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
