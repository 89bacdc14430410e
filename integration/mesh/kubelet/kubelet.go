// Package kubelet runs a program for each pod of the cluster as a node's kubelet runs containers: it gives the pod an address,
// starts its program, probes it, starts it again when it ends, ends it with its grace, and reports its status. Which pods there
// are to be it does not decide.
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

// Options are what a kubelet works with.
type Options struct {
	Cluster *cluster.Cluster
	Ztunnel *ztunnel.Ztunnel
	// Images are what it runs, by the names of container images. Pods of other images are left alone.
	Images map[string]Image
	// Logs is the directory of the programs' logs. Dir is the one in which each pod has a directory of its own.
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

// Sync starts pods that are new, ends those that are to be deleted, and kills what runs for pods that are not there.
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

// syncPod starts a pod that is new, and ends one that is to be deleted.
func (k *Kubelet) syncPod(ctx context.Context, p *corev1.Pod, namespaces map[string]*corev1.Namespace) error {
	if !k.Runs(p.Spec) {
		return nil
	}
	if p.Spec.NodeName == "" {
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}, Target: corev1.ObjectReference{Kind: "Node", Name: cluster.NodeName}}
		if err := k.cluster.Client.SubResource("binding").Create(ctx, p, binding); err != nil {
			return fmt.Errorf("placing pod %s: %w", p.Name, err)
		}
		return nil
	}
	k.mu.Lock()
	r := k.running[p.UID]
	k.mu.Unlock()
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

// StopAll ends all pods together and waits for their end. Nothing may be synced any more.
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

// programOf finds what runs for a pod now.
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

// Kill ends a pod's program at once, as a crash would. It is started again after a moment.
func (k *Kubelet) Kill(pod types.UID) error {
	p, err := k.programOf(pod)
	if err != nil {
		return err
	}
	return p.Kill()
}

// ProcessID is the number of a pod's program, which a restart changes.
func (k *Kubelet) ProcessID(pod types.UID) (int, error) {
	p, err := k.programOf(pod)
	if err != nil {
		return 0, err
	}
	return p.ID(), nil
}
