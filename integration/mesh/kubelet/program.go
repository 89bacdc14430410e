package kubelet

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
)

func (k *Kubelet) startProgram(ctx context.Context, p *corev1.Pod, image Image) (*process.Process, error) {
	c := p.Spec.Containers[0]
	dir := filepath.Join(k.dir, p.Namespace+"-"+p.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a pod's directory: %w", err)
	}
	kubeconfig, err := k.cluster.KubeconfigOf(ctx, p.Namespace, cluster.AccountOf(p))
	if err != nil {
		return nil, err
	}
	environment := maps.Clone(image.Environment)
	if environment == nil {
		environment = map[string]string{}
	}
	for _, e := range c.Env {
		environment[e.Name] = valueOf(e, p)
	}
	environment["KUBECONFIG"] = kubeconfig // instead of the token and the address that a kubelet gives a pod
	args := make([]string, 0, len(c.Args))
	for _, a := range c.Args {
		args = append(args, expand(a, environment))
	}
	if image.Args != nil {
		if args, err = image.Args(p, dir, args); err != nil {
			return nil, err
		}
	}
	list := make([]string, 0, len(environment))
	for k, v := range environment {
		list = append(list, k+"="+v)
	}
	return process.Start(k.logs, process.Program{Name: p.Namespace + "." + p.Name, Path: image.Path, Args: args, Environment: list, Directory: dir})
}

// valueOf resolves an environment variable that refers to a field of the pod. References to resources are left empty.
func valueOf(e corev1.EnvVar, p *corev1.Pod) string {
	if e.ValueFrom == nil || e.ValueFrom.FieldRef == nil {
		return e.Value
	}
	switch path := e.ValueFrom.FieldRef.FieldPath; path {
	case "metadata.name":
		return p.Name
	case "metadata.namespace":
		return p.Namespace
	case "spec.serviceAccountName":
		return cluster.AccountOf(p)
	case "spec.nodeName":
		return p.Spec.NodeName
	case "status.podIP":
		return p.Status.PodIP
	default:
		return ""
	}
}

var reference = regexp.MustCompile(`\$\(([A-Za-z_][A-Za-z0-9_]*)\)`)

// expand fills $(NAME) in an argument, as a kubelet does.
func expand(arg string, environment map[string]string) string {
	return reference.ReplaceAllStringFunc(arg, func(s string) string {
		if v, ok := environment[s[2:len(s)-1]]; ok {
			return v
		}
		return s
	})
}
