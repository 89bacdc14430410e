package istio

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
	"github.com/inference-waypoint/inference-waypoint/internal/modules"
)

// definitions maps modules to the folders and files in them with the CustomResourceDefinitions of APIs that Istio needs and
// does not bring.
var definitions = map[string]string{
	"sigs.k8s.io/gateway-api":                     "config/crd/standard/gateway.networking.k8s.io_*s.yaml",
	"sigs.k8s.io/gateway-api-inference-extension": "config/crd/bases/*.yaml",
}

// Render returns the objects that istioctl install would write for our overlay in the checkout root, and the
// CustomResourceDefinitions that they need, definitions first.
func Render(ctx context.Context, root, tools string) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for module, pattern := range definitions {
		dir, err := modules.Dir(ctx, root, module)
		if err != nil {
			return nil, err
		}
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return nil, fmt.Errorf("looking for definitions in module %s: %w", module, err)
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("module %s holds no definitions at %s", module, pattern)
		}
		for _, file := range files {
			objects, err := manifest.Read(file)
			if err != nil {
				return nil, err
			}
			out = append(out, objects...)
		}
	}
	istio, err := renderOverlay(ctx, tools, filepath.Join(root, "manifests", "istio", "overlay.yaml"))
	return append(out, istio...), err
}

// renderOverlay returns the objects that istioctl install would write for our overlay.
func renderOverlay(ctx context.Context, tools, overlay string) ([]*unstructured.Unstructured, error) {
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
	// Definitions come first, as all other objects may be of their kinds. Other objects keep their order.
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
