package mesh

import (
	"context"
	"path/filepath"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/manifest"
)

// Apply writes the objects of YAML files, or of kustomizations where a path is a directory.
func (m *Mesh) Apply(ctx context.Context, paths ...string) error {
	for _, path := range paths {
		objects, err := m.Read(path)
		if err != nil {
			return err
		}
		if err := m.cluster.Apply(ctx, objects); err != nil {
			return err
		}
	}
	return nil
}

// ApplyYAML writes the objects of a YAML stream.
func (m *Mesh) ApplyYAML(ctx context.Context, stream string) error {
	objects, err := manifest.Decode([]byte(stream))
	if err != nil {
		return err
	}
	return m.cluster.Apply(ctx, objects)
}

// Read returns the objects of a YAML file, or of the kustomization where the path is a directory.
func (m *Mesh) Read(path string) ([]*unstructured.Unstructured, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(m.Root, path)
	}
	return manifest.Read(path)
}

// InstallQuickstart applies the product and samples/quickstart, as Install does.
func (m *Mesh) InstallQuickstart(ctx context.Context) error {
	return m.Install(ctx, "samples/quickstart")
}

// Install applies the product, and a kustomization like samples/quickstart: a namespace "models" with a waypoint, model servers
// and a pool "llama" of them. It waits until their pods are ready.
func (m *Mesh) Install(ctx context.Context, quickstart string) error {
	if err := m.Apply(ctx, "manifests", quickstart); err != nil {
		return err
	}
	for _, name := range [][2]string{
		{"inference-system", "inference-controller"}, {"inference-system", "inference-picker"}, {"models", "waypoint"}, {"models", "llama"},
	} {
		if err := m.AwaitDeployment(ctx, name[0], name[1]); err != nil {
			return err
		}
	}
	return nil
}
