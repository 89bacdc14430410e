// Package kubelet runs a program for each pod as a node's kubelet runs containers: it gives the pod an address, starts and
// probes the program, restarts it when it ends, stops it within its grace period, and reports the pod's status. It does not
// decide which pods exist.
package kubelet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/ztunnel"
)

// Options configure a kubelet.
type Options struct {
	Cluster *cluster.Cluster
	Ztunnel *ztunnel.Ztunnel
	// Images maps names of container images to what the kubelet runs. Pods of other images are left alone.
	Images map[string]Image
	// Logs is the directory of the programs' logs. Dir is the directory in which each pod has its own.
	Logs, Dir string
	Log       *slog.Logger
}

// Kubelet runs pods.
type Kubelet struct {
	cluster   *cluster.Cluster
	ztunnel   *ztunnel.Ztunnel
	images    map[string]Image
	logs, dir string
	log       *slog.Logger

	wait sync.WaitGroup

	mu       sync.Mutex
	running  map[types.UID]*runningPod
	nextAddr netip.Addr
}

// New makes a kubelet that runs nothing yet.
func New(o Options) *Kubelet {
	return &Kubelet{
		cluster: o.Cluster, ztunnel: o.Ztunnel, images: o.Images, logs: o.Logs, dir: o.Dir, log: o.Log,
		running: map[types.UID]*runningPod{}, nextAddr: netip.MustParseAddr("10.244.0.1"),
	}
}

// Sync starts new pods, stops pods that are being deleted, and kills the programs of pods that no longer exist.
func (k *Kubelet) Sync(ctx context.Context, pods []corev1.Pod, namespaces map[string]*corev1.Namespace) error {
	var problems []error
	present := map[types.UID]bool{}
	for i := range pods {
		present[pods[i].UID] = true
		problems = append(problems, k.syncPod(ctx, &pods[i], namespaces))
	}
	k.stopMissing(present)
	return errors.Join(problems...)
}

// syncPod starts a new pod, and stops one that is being deleted.
func (k *Kubelet) syncPod(ctx context.Context, p *corev1.Pod, namespaces map[string]*corev1.Namespace) error {
	if !k.Runs(p.Spec) {
		return nil
	}
	if p.Spec.NodeName == "" {
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: cluster.NodeName(p)}}
		if err := k.cluster.Client.SubResource("binding").Create(ctx, p, binding); err != nil {
			return fmt.Errorf("placing pod %s: %w", p.Name, err)
		}
		return nil
	}
	k.mu.Lock()
	r := k.running[p.UID]
	k.mu.Unlock()
	if r != nil {
		r.seen.Store(cluster.IsReady(p))
	}
	switch {
	case p.DeletionTimestamp != nil && r == nil:
		return k.forget(ctx, p)
	case p.DeletionTimestamp != nil:
		k.end(r, p)
	case r == nil:
		return k.startPod(ctx, p, namespaces[p.Namespace])
	}
	return nil
}

// StopAll stops all pods at once and waits for their end. Sync must not be called afterwards.
func (k *Kubelet) StopAll() {
	k.mu.Lock()
	for _, r := range k.running {
		if r.cancel != nil {
			r.grace = min(r.grace, 2*time.Second)
			r.cancel()
		}
	}
	k.mu.Unlock()
	k.wait.Wait()
}

// programOf finds the running program of a pod.
func (k *Kubelet) programOf(uid types.UID) (*process.Process, error) {
	k.mu.Lock()
	r := k.running[uid]
	k.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("no pod of the uid %s runs here", uid)
	}
	select {
	case p := <-r.program:
		r.program <- p
		return p, nil
	default:
		return nil, fmt.Errorf("pod %s has no program that runs", r.pod.Name)
	}
}

// Kill ends a pod's program at once, as a crash would. The kubelet starts it again after a moment.
func (k *Kubelet) Kill(pod types.UID) error {
	p, err := k.programOf(pod)
	if err != nil {
		return err
	}
	return p.Kill()
}

// LoseNode has nobody probe or report a pod any more, as if its node had vanished, until found is called.
func (k *Kubelet) LoseNode(pod types.UID) (found func(), err error) {
	k.mu.Lock()
	r := k.running[pod]
	k.mu.Unlock()
	if r == nil {
		return nil, fmt.Errorf("no pod of the uid %s runs here", pod)
	}
	r.lost.Store(true)
	return func() { r.lost.Store(false) }, nil
}

// ProcessID returns the process ID of a pod's program. A restart changes it.
func (k *Kubelet) ProcessID(pod types.UID) (int, error) {
	p, err := k.programOf(pod)
	if err != nil {
		return 0, err
	}
	return p.ID(), nil
}
