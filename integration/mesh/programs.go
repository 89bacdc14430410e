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

// ours are the programs of this checkout, by the image that stands for them in manifests and samples. Their flags for
// addresses are given the pod's own in the place of all addresses. The controller is told that waypoints drain faster here
// than by default, and which hosts pools may claim.
var ours = map[string]struct {
	pkg   string
	ports map[string]string // flag → port
	flags []string
}{
	"inference-waypoint/controller":  {"./cmd/controller", map[string]string{"metrics-address": "9090", "health-address": "8081"}, []string{"--drain=3s", "--allow-host=models=chat.example", "--allow-host=models=talk.example"}},
	"inference-waypoint/picker":      {"./cmd/picker", map[string]string{"extproc-address": "9002", "health-address": "9003", "metrics-address": "9090", "debug-address": "9091"}, nil},
	"inference-waypoint/modelserver": {"./samples/modelserver", map[string]string{"address": "8000"}, nil},
	"inference-waypoint/echo":        {"./integration/echo", map[string]string{"address": "8000"}, nil},
	"test/hangingpicker":             {"./integration/hangingpicker", map[string]string{"extproc-address": "9002", "health-address": "9003"}, nil},
}

// build builds our programs, so that no test ever runs old ones.
func (m *Mesh) build(ctx context.Context) error {
	args := []string{"build", "-o", filepath.Join(m.Root, "bin") + string(filepath.Separator)}
	for _, program := range ours {
		args = append(args, program.pkg)
	}
	slices.Sort(args[3:])
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = m.Root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building our programs: %w: %s", err, out)
	}
	return nil
}

// allImages are what the mesh knows to run, and more, which wins.
func (m *Mesh) allImages(tools string, more map[string]Image) map[string]Image {
	images := map[string]Image{
		"registry.istio.io/testing/pilot":   istio.Image(filepath.Join(tools, "istiod")),
		"registry.istio.io/testing/proxyv2": waypoint.Image(filepath.Join(tools, "envoy")),
		ClientImage:                         {},
	}
	for image, program := range ours {
		images[image] = Image{Path: filepath.Join(m.Root, "bin", filepath.Base(program.pkg)), Args: kubelet.BindPorts(program.ports, program.flags)}
	}
	maps.Copy(images, more)
	return images
}
