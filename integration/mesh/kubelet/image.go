package kubelet

import (
	"net"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Image is what a kubelet runs for a container image. Tags are ignored.
type Image struct {
	// Path is the program. Where it is empty, the pod runs nothing and only has an address and an identity.
	Path string
	// Args turns the container's arguments into the program's. Mostly it binds the pod's address instead of all addresses, as
	// all pods share one network namespace. Nil keeps the arguments.
	Args func(pod *corev1.Pod, dir string, args []string) ([]string, error)
	// Environment is added to the container's environment.
	Environment map[string]string
	// Ready, where set, replaces the container's readiness probe.
	Ready *corev1.Probe
	// OwnTunnel says that the program accepts HBONE itself, as a waypoint does.
	OwnTunnel bool
}

// BindPorts makes an Image's Args that bind a program to its pod's address: ports maps each flag that takes an address to
// the port. It also adds flags; the container's own flags win over them.
func BindPorts(ports map[string]string, flags []string) func(*corev1.Pod, string, []string) ([]string, error) {
	return func(p *corev1.Pod, _ string, args []string) ([]string, error) {
		args = slices.Concat(flags, args)
		for flag, port := range ports {
			args = append(args, "--"+flag+"="+net.JoinHostPort(p.Status.PodIP, port))
		}
		return args, nil
	}
}

// Runs reports whether the kubelet has an image for a pod.
func (k *Kubelet) Runs(spec corev1.PodSpec) bool {
	_, known := k.imageOf(spec)
	return known
}

// imageOf finds the Image for a pod by its first container's image.
func (k *Kubelet) imageOf(spec corev1.PodSpec) (Image, bool) {
	name := spec.Containers[0].Image
	if i := strings.LastIndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		name = name[:i]
	}
	image, known := k.images[name]
	return image, known
}
