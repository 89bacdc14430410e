package mesh

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

const (
	istioNamespace = "istio-system"
	validator      = "istiod-default-validator"
)

// istiodImage binds istiod's ports to its pod's address.
func istiodImage(path string) Image {
	return Image{Path: path, Args: bound(map[string]string{
		"httpAddr": "8080", "grpcAddr": "15010", "secureGRPCAddr": "15012", "httpsAddr": "15017", "monitoringAddr": "15014",
	}, nil)}
}

// renderIstio turns our overlay into the objects that istioctl install would write.
func renderIstio(ctx context.Context, tools, overlay string) ([]*unstructured.Unstructured, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(tools, "istioctl"), "manifest", "generate", "-f", overlay)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, fmt.Errorf("rendering %s: %w", overlay, err)
	}
	objects, err := manifest.Decode(out)
	if err != nil {
		return nil, fmt.Errorf("reading what istioctl rendered: %w", err)
	}
	// Definitions first, as everything else may be of their kinds; namespaces' contents in the order given.
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { return rank(a) - rank(b) })
	return objects, nil
}

func rank(o *unstructured.Unstructured) int {
	switch o.GetKind() {
	case "CustomResourceDefinition", "Namespace":
		return 0
	case "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap":
		return 1
	default:
		return 2
	}
}

// awaitValidator waits until istiod checks every Istio object that is written, and a write without its check fails.
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
