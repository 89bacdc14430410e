package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/sandbox"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/ztunnel"
)

func (k *Kubelet) setReady(ctx context.Context, p *corev1.Pod, ready bool) {
	if err := k.reportPod(ctx, p, false, ready); err != nil && ctx.Err() == nil {
		k.log.Error("reporting a pod", "pod", p.Name, "error", err)
	}
}

// reportPod writes a pod's status. For a pod in the mesh it also writes the annotation that istiod reads.
func (k *Kubelet) reportPod(ctx context.Context, p *corev1.Pod, inMesh, ready bool) error {
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}}
	if inMesh {
		note := fmt.Sprintf(`{"metadata":{"uid":%q,"annotations":{%q:"enabled"}}}`, p.UID, ztunnel.Redirection)
		if err := k.cluster.Client.Patch(ctx, target, client.RawPatch(types.MergePatchType, []byte(note))); err != nil {
			return fmt.Errorf("annotating pod %s: %w", p.Name, err)
		}
	}
	condition := corev1.ConditionFalse
	if ready {
		condition = corev1.ConditionTrue
	}
	containers := slices.Clone(p.Status.ContainerStatuses)
	for i := range containers {
		containers[i].Ready = ready
	}
	now := metav1.Now()
	status, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status": corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: p.Status.PodIP, PodIPs: []corev1.PodIP{{IP: p.Status.PodIP}},
			HostIP: sandbox.NodeAddress, StartTime: &now, ContainerStatuses: containers,
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodInitialized, Status: corev1.ConditionTrue},
				{Type: corev1.ContainersReady, Status: condition, LastTransitionTime: now},
				{Type: corev1.PodReady, Status: condition, LastTransitionTime: now},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("encoding the status of pod %s: %w", p.Name, err)
	}
	if err := k.cluster.Client.Status().Patch(ctx, target, client.RawPatch(types.MergePatchType, status)); err != nil {
		return fmt.Errorf("reporting pod %s: %w", p.Name, err)
	}
	return nil
}
