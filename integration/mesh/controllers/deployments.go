package controllers

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
)

// templateHash labels a pod with the template that it was made from, as the label of the same name does in Kubernetes.
const templateHash = "pod-template-hash"

// Deployments makes and removes the pods of all Deployments, and reports how many are ready.
func (c *Controllers) Deployments(ctx context.Context, s *State) error {
	var problems []error
	for i := range s.Deployments {
		problems = append(problems, c.syncDeployment(ctx, &s.Deployments[i], s.Pods))
	}
	return errors.Join(problems...)
}

// syncDeployment makes and removes pods until the newest template has its replicas. Pods of an older template stay until
// all new ones are ready, as with a Deployment's default strategy up to three pods.
func (c *Controllers) syncDeployment(ctx context.Context, d *appsv1.Deployment, pods []corev1.Pod) error {
	if !c.runs(d.Spec.Template.Spec) {
		return nil
	}
	hash := hashOf(&d.Spec.Template)
	var current, old []*corev1.Pod
	ready := int32(0)
	for i := range pods {
		p := &pods[i]
		if !metav1.IsControlledBy(p, d) || p.DeletionTimestamp != nil {
			continue
		}
		if p.Labels[templateHash] != hash {
			old = append(old, p)
			continue
		}
		current = append(current, p)
		if cluster.IsReady(p) {
			ready++
		}
	}
	want := 1
	if d.Spec.Replicas != nil {
		want = int(*d.Spec.Replicas)
	}
	slices.SortFunc(current, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := want; i < len(current); i++ {
		if err := c.client.Delete(ctx, current[i]); err != nil {
			return fmt.Errorf("deleting pod %s: %w", current[i].Name, err)
		}
	}
	if len(current) < want {
		if err := c.client.Create(ctx, podOf(d, hash, freeName(d.Name, pods))); err != nil {
			return fmt.Errorf("creating a pod of %s: %w", d.Name, err)
		}
		return nil // the new pod's event triggers the next sync, in which its name is taken
	}
	for _, p := range old {
		if int(ready) < want {
			break
		}
		if err := c.client.Delete(ctx, p); err != nil {
			return fmt.Errorf("deleting pod %s of an old template: %w", p.Name, err)
		}
	}
	return c.reportDeployment(ctx, d, int32(len(current)), ready)
}

// freeName numbers a Deployment's pods from 0. A number is used again only when its pod is gone.
func freeName(deployment string, pods []corev1.Pod) string {
	for n := 0; ; n++ {
		name := fmt.Sprintf("%s-%d", deployment, n)
		if !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return p.Name == name }) {
			return name
		}
	}
}

func podOf(d *appsv1.Deployment, hash, name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: *d.Spec.Template.ObjectMeta.DeepCopy(), Spec: *d.Spec.Template.Spec.DeepCopy()}
	p.Namespace, p.Name = d.Namespace, name
	p.Labels = maps.Clone(p.Labels)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[templateHash] = hash
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))}
	return p
}

func hashOf(template *corev1.PodTemplateSpec) string {
	h := fnv.New32a()
	text, _ := template.Marshal() // a value of an API type that was just read always encodes
	_, _ = h.Write(text)
	return fmt.Sprintf("%08x", h.Sum32())
}

func (c *Controllers) reportDeployment(ctx context.Context, d *appsv1.Deployment, pods, ready int32) error {
	available := metav1.ConditionFalse
	if d.Spec.Replicas == nil && ready > 0 || d.Spec.Replicas != nil && ready >= *d.Spec.Replicas {
		available = metav1.ConditionTrue
	}
	status := appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation, Replicas: pods, UpdatedReplicas: pods, ReadyReplicas: ready, AvailableReplicas: ready,
		Conditions: []appsv1.DeploymentCondition{{
			Type: appsv1.DeploymentAvailable, Status: corev1.ConditionStatus(available), Reason: "Counted",
		}},
	}
	old := d.Status.DeepCopy()
	for i := range old.Conditions {
		old.Conditions[i].LastTransitionTime, old.Conditions[i].LastUpdateTime = metav1.Time{}, metav1.Time{}
	}
	if old.String() == status.String() {
		return nil
	}
	d.Status = status
	if err := c.client.Status().Update(ctx, d); err != nil {
		return fmt.Errorf("reporting deployment %s: %w", d.Name, err)
	}
	return nil
}
