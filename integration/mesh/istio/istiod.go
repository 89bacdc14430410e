// Package istio installs Istio's control plane: it renders the objects, runs istiod for its pod, and waits until istiod is
// ready. It does not run waypoints; package waypoint does.
package istio

import (
	"context"
	"errors"
	"fmt"
	"net"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/kubelet"
)

const (
	// Namespace is where istiod runs.
	Namespace = "istio-system"

	deployment = "istiod"
	validator  = "istiod-default-validator"
)

// Image runs istiod with its ports bound to its pod's address.
func Image(path string) kubelet.Image {
	return kubelet.Image{Path: path, Args: kubelet.BindPorts(map[string]string{
		"httpAddr": "8080", "grpcAddr": "15010", "secureGRPCAddr": "15012", "httpsAddr": "15017", "monitoringAddr": "15014",
	}, nil)}
}

// AwaitReady waits until istiod is ready and its webhook validates.
func AwaitReady(ctx context.Context, c *cluster.Cluster) error {
	if err := c.AwaitDeployment(ctx, Namespace, deployment); err != nil {
		return err
	}
	return awaitValidator(ctx, c)
}

// awaitValidator waits until istiod's webhook checks each write of an Istio object, so that unchecked writes fail.
func awaitValidator(ctx context.Context, c *cluster.Cluster) error {
	return c.Await(ctx, "istiod's webhook", func(ctx context.Context) error {
		var w admissionv1.ValidatingWebhookConfiguration
		if err := c.Client.Get(ctx, client.ObjectKey{Name: validator}, &w); err != nil {
			return err
		}
		for _, hook := range w.Webhooks {
			if len(hook.ClientConfig.CABundle) == 0 || hook.FailurePolicy == nil || *hook.FailurePolicy != admissionv1.Fail {
				return errors.New("istiod has not turned it on yet")
			}
		}
		return nil
	})
}

// Locate returns a function that waits for a ready istiod and returns the plain-text address of its xDS port.
func Locate(c *cluster.Cluster) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		istiod, err := c.ReadyPod(ctx, Namespace, map[string]string{"app": "istiod"})
		if err != nil {
			return "", err
		}
		return net.JoinHostPort(istiod.Status.PodIP, "15010"), nil
	}
}

// Restart replaces istiod by one with an environment variable set, and waits until the old pod is gone.
func Restart(ctx context.Context, c *cluster.Cluster, name, value string) error {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: deployment}}
	patch := fmt.Appendf(nil, `{"spec":{"template":{"spec":{"containers":[{"name":"discovery","env":[{"name":%q,"value":%q}]}]}}}}`, name, value)
	if err := c.Client.Patch(ctx, d, client.RawPatch(types.StrategicMergePatchType, patch)); err != nil {
		return fmt.Errorf("setting istiod's %s: %w", name, err)
	}
	if err := c.AwaitDeployment(ctx, Namespace, deployment); err != nil {
		return err
	}
	return c.Await(ctx, "the end of the old istiod", func(ctx context.Context) error {
		var pods corev1.PodList
		if err := c.Client.List(ctx, &pods, client.InNamespace(Namespace), client.MatchingLabels{"app": "istiod"}); err != nil {
			return err
		}
		if len(pods.Items) != 1 {
			return fmt.Errorf("%d pods of istiod", len(pods.Items))
		}
		return nil
	})
}
