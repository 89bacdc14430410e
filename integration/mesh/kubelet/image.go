package kubelet

import (
	"net"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Image is what a kubelet runs for a container image, whose tag is not looked at.
type Image struct {
	// Path is the program. Where it is empty the pod is an address and an identity to call from, and nothing runs.
	Path string
	// Args makes the program's arguments out of the container's own, chiefly to bind the pod's address and not all
	// addresses: all pods share one network namespace. Nil leaves them as they are.
	Args func(pod *corev1.Pod, dir string, args []string) ([]string, error)
	// Ready, where set, takes the place of the container's readiness probe.
	Ready *corev1.Probe
	// OwnTunnel says that the program takes HBONE itself, as a waypoint does.
	OwnTunnel bool
}

// BindPorts makes an Image's Args that bind a program to its pod's address alone: ports has the port for each flag that takes an
// address. The flags are given besides; those that the pod's container has itself win over them.
func BindPorts(ports map[string]string, flags []string) func(*corev1.Pod, string, []string) ([]string, error) {
	return func(p *corev1.Pod, _ string, args []string) ([]string, error) {
		args = slices.Concat(flags, args)
		for flag, port := range ports {
			args = append(args, "--"+flag+"="+net.JoinHostPort(p.Status.PodIP, port))
		}
		return args, nil
	}
}

// Runs reports whether there is an image for pods of this kind.
func (k *Kubelet) Runs(spec corev1.PodSpec) bool {
	_, known := k.imageOf(spec)
	return known
}

// imageOf finds what to run for a pod by its first container's image.
func (k *Kubelet) imageOf(spec corev1.PodSpec) (Image, bool) {
	name := spec.Containers[0].Image
	if i := strings.LastIndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		name = name[:i]
	}
	image, known := k.images[name]
	return image, known
}
