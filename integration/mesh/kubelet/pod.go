package kubelet

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/process"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/ztunnel"
)

const (
	restartDelay = 500 * time.Millisecond // before the restart of a program that ended by itself
	defaultGrace = corev1.DefaultTerminationGracePeriodSeconds * time.Second
	// syncPeriod is how long a status that somebody else wrote stays: a kubelet compares every 10 s, and its own word wins.
	syncPeriod = 10 * time.Second
)

// runningPod is a pod that the kubelet has started.
type runningPod struct {
	pod    *corev1.Pod // as it was at its start; the status holds the address and, for live alone, the number of restarts
	cancel context.CancelFunc
	done   chan struct{} // closed when its program has ended and is not restarted

	grace   time.Duration         // the program's grace period; 0 kills it
	program chan *process.Process // holds the running program

	lost atomic.Bool // the pod's node has vanished: nobody probes or reports the pod
	seen atomic.Bool // the API server last had the pod as ready
}

// startPod gives the pod an address and starts its program in the background.
func (k *Kubelet) startPod(ctx context.Context, p *corev1.Pod, ns *corev1.Namespace) error {
	p = p.DeepCopy()
	image, _ := k.imageOf(p.Spec)
	k.mu.Lock()
	k.nextAddr = k.nextAddr.Next()
	addr := k.nextAddr
	k.mu.Unlock()
	p.Status.PodIP = addr.String()
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: p.Spec.Containers[0].Name, Image: p.Spec.Containers[0].Image}}

	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &runningPod{pod: p, cancel: cancel, done: make(chan struct{}), grace: graceOf(p), program: make(chan *process.Process, 1)}
	inMesh := !image.OwnTunnel && ztunnel.Ambient(p, ns)
	if inMesh {
		serve, err := k.ztunnel.Inbound(p, addr)
		if err != nil {
			cancel()
			return err
		}
		k.wait.Go(func() {
			if err := serve(life); err != nil {
				k.log.Error("a pod's tunnel", "pod", p.Name, "error", err)
			}
		})
	}
	k.mu.Lock()
	k.running[p.UID] = r
	k.mu.Unlock()
	if err := k.reportPod(ctx, p, inMesh, false); err != nil {
		k.log.Error("reporting a pod", "pod", p.Name, "error", err)
	}
	k.wait.Go(func() {
		defer close(r.done)
		k.live(life, r, image)
	})
	return nil
}

func graceOf(p *corev1.Pod) time.Duration {
	if s := p.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return defaultGrace
}

// live runs the pod's program until ctx ends, and restarts it whenever it ends by itself.
func (k *Kubelet) live(ctx context.Context, r *runningPod, image Image) {
	if image.Path == "" {
		k.setReady(ctx, r.pod, true)
		<-ctx.Done()
		return
	}
	for ctx.Err() == nil {
		p, err := k.startProgram(ctx, r.pod, image)
		if err != nil {
			k.log.Error("starting a pod", "pod", r.pod.Name, "error", err)
		} else {
			r.program <- p
			k.watchProgram(ctx, r, p, probeOf(r.pod, image))
			<-r.program
		}
		select {
		case <-ctx.Done():
		case <-time.After(restartDelay):
		}
		r.pod.Status.ContainerStatuses[0].RestartCount++
	}
}

// watchProgram probes a program until it ends or must end.
func (k *Kubelet) watchProgram(ctx context.Context, r *runningPod, p *process.Process, probe func(context.Context) error) {
	ready, failures, most := false, 0, failuresToDown
	var contested time.Time // since when the API server has had another status; 0 while it has this one
	if own := r.pod.Spec.Containers[0].ReadinessProbe; own != nil && own.FailureThreshold > 0 {
		most = int(own.FailureThreshold)
	}
	for pause := probeWhileDown; ; {
		select {
		case <-ctx.Done():
			p.Stop(r.grace)
			return
		case <-p.Done():
			k.log.Warn("a pod's program ended by itself", "pod", r.pod.Name, "error", p.Err())
			k.setReady(ctx, r.pod, false)
			return
		case <-time.After(pause):
		}
		if r.lost.Load() {
			continue
		}
		switch {
		case r.seen.Load() == ready:
			contested = time.Time{}
		case contested.IsZero():
			contested = time.Now()
		case time.Since(contested) > syncPeriod:
			contested = time.Time{}
			k.setReady(ctx, r.pod, ready)
		}
		err := probe(ctx)
		switch {
		case r.lost.Load():
		case err == nil && !ready:
			ready, failures, pause = true, 0, probeWhileUp
			k.setReady(ctx, r.pod, true)
		case err == nil:
			failures = 0
		case ready:
			if failures++; failures == most {
				ready, pause = false, probeWhileDown
				k.setReady(ctx, r.pod, false)
			}
		}
	}
}

// end stops a pod that is being deleted. Once the program has ended it removes the pod from the API server.
func (k *Kubelet) end(r *runningPod, p *corev1.Pod) {
	select {
	case <-r.done:
		return
	default:
	}
	if s := p.DeletionGracePeriodSeconds; s != nil {
		r.grace = time.Duration(*s) * time.Second
	}
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	k.wait.Go(func() {
		<-r.done
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		k.mu.Lock()
		delete(k.running, p.UID)
		k.mu.Unlock()
		if err := k.forget(ctx, p); err != nil {
			k.log.Error("forgetting a pod", "pod", p.Name, "error", err)
		}
	})
}

func (k *Kubelet) forget(ctx context.Context, p *corev1.Pod) error {
	err := k.cluster.Client.Delete(ctx, p, client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("forgetting pod %s: %w", p.Name, err)
	}
	return nil
}

// stopMissing kills the programs of pods that the API server no longer has, as these were deleted without grace.
func (k *Kubelet) stopMissing(present map[types.UID]bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for uid, r := range k.running {
		if !present[uid] && r.cancel != nil {
			r.grace = 0
			r.cancel()
			delete(k.running, uid)
		}
	}
}
