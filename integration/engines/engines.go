// Package engines runs real inference engines as pods of a mesh, on the CPU: vLLM with a small model of random weights.
package engines

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

const (
	// Model is the name of the base model.
	Model = "tiny"
	// Servers is the number of pods that Install starts.
	Servers = 3
	// vllmImage is the image of vLLM's pods.
	vllmImage = "vllm/vllm-openai"
	// models is where containers have their models.
	models = "/models/"
)

// Adapters are the names of the LoRA adapters. A server has slots for two of them at once.
var Adapters = []string{"sql", "chat", "code"}

// Images are the images of the engines that `make engines` has installed in the checkout at root.
func Images(root string) (map[string]mesh.Image, error) {
	program := filepath.Join(root, ".tools", "vllm")
	made := filepath.Join(root, "bin", "engines") + "/"
	for _, path := range []string{program, filepath.Join(made, Model, "config.json")} {
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("a real engine is missing: run make engines: %w", err)
		}
	}
	return map[string]mesh.Image{vllmImage: {
		Path: program,
		// served_by.py is in the checkout, where Python leaves nothing.
		Environment: map[string]string{"PYTHONPATH": filepath.Join(root, "integration", "engines"), "PYTHONDONTWRITEBYTECODE": "1"},
		Args: func(p *corev1.Pod, _ string, args []string) ([]string, error) {
			out := []string{"serve"}
			for _, a := range args {
				out = append(out, strings.Replace(a, models, made, 1))
			}
			return append(out, "--host="+p.Status.PodIP), nil
		},
	}}, nil
}

// Install installs the product, vLLM's pods and a pool of them. An engine starts within a minute or two.
func Install(ctx context.Context, m *mesh.Mesh) error {
	return m.Install(ctx, "integration/engines/vllm")
}
