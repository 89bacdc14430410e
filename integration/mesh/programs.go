package mesh

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/istio"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/kubelet"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/waypoint"
)

// ours maps the images in manifests and samples to the programs of this checkout. Each address flag gets the pod's own
// address instead of all addresses. The controller's flags say that waypoints drain faster here than by default, and which
// hosts pools may claim.
var ours = map[string]struct {
	module, pkg string            // the folder of the program's module in the checkout, and the package's in the module
	ports       map[string]string // flag → port
	flags       []string
}{
	"inference-waypoint/controller":  {".", "./cmd/controller", map[string]string{"metrics-address": "9090", "health-address": "8081"}, []string{"--drain=3s", "--allow-host=models=chat.example", "--allow-host=models=talk.example"}},
	"inference-waypoint/picker":      {".", "./cmd/picker", map[string]string{"extproc-address": "9002", "health-address": "9003", "metrics-address": "9090", "debug-address": "9091", "peers-address": "9004"}, nil},
	"inference-waypoint/modelserver": {"samples/modelserver", ".", map[string]string{"address": "8000"}, nil},
	"inference-waypoint/echo":        {"integration", "./echo", map[string]string{"address": "8000"}, nil},
	"test/hangingpicker":             {"integration", "./hangingpicker", map[string]string{"extproc-address": "9002", "health-address": "9003", "metrics-address": "9090"}, nil},
}

// build builds our programs, so that no test runs old ones. Each is built in its own module, whose go.mod sets the versions
// of its dependencies.
func (m *Mesh) build(ctx context.Context) error {
	packages := map[string][]string{}
	for _, program := range ours {
		packages[program.module] = append(packages[program.module], program.pkg)
	}
	for _, module := range slices.Sorted(maps.Keys(packages)) {
		args := []string{"build", "-o", filepath.Join(m.Root, "bin") + string(filepath.Separator)}
		cmd := exec.CommandContext(ctx, "go", append(args, packages[module]...)...)
		cmd.Dir = filepath.Join(m.Root, module)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building our programs of the module in %s: %w: %s", cmd.Dir, err, out)
		}
	}
	return nil
}

// allImages returns the images that the mesh knows and those in more, which win.
func (m *Mesh) allImages(tools string, more map[string]Image) map[string]Image {
	images := map[string]Image{
		"registry.istio.io/testing/pilot":   istio.Image(filepath.Join(tools, "istiod")),
		"registry.istio.io/testing/proxyv2": waypoint.Image(filepath.Join(tools, "envoy")),
		ClientImage:                         {},
	}
	for image, program := range ours {
		images[image] = Image{Path: filepath.Join(m.Root, "bin", filepath.Base(filepath.Join(program.module, program.pkg))), Args: kubelet.BindPorts(program.ports, program.flags)}
	}
	maps.Copy(images, more)
	return images
}
