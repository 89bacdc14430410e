package controllers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
)

// EndpointSlices keeps the EndpointSlices of all Services.
func (c *Controllers) EndpointSlices(ctx context.Context, s *State) error {
	var problems []error
	for i := range s.Services {
		problems = append(problems, c.syncEndpoints(ctx, &s.Services[i], s.Pods))
	}
	return errors.Join(problems...)
}

// syncEndpoints keeps the single EndpointSlice of a Service that selects pods.
func (c *Controllers) syncEndpoints(ctx context.Context, s *corev1.Service, pods []corev1.Pod) error {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Namespace, Name: s.Name + "-machine",
			Labels: map[string]string{
				discoveryv1.LabelServiceName: s.Name,
				discoveryv1.LabelManagedBy:   "endpointslice-controller.k8s.io",
			},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(s, corev1.SchemeGroupVersion.WithKind("Service"))},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var sample *corev1.Pod
	for i := range pods {
		p := &pods[i]
		if p.Namespace != s.Namespace || p.Status.PodIP == "" || !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		sample = p
		ready, terminating := cluster.IsReady(p) && p.DeletionTimestamp == nil, p.DeletionTimestamp != nil
		node := p.Spec.NodeName
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{p.Status.PodIP},
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready, Terminating: &terminating},
			NodeName:   &node,
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		})
	}
	for _, port := range s.Spec.Ports {
		number := targetPort(port, sample)
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{
			Name: &port.Name, Port: &number, Protocol: &port.Protocol, AppProtocol: port.AppProtocol,
		})
	}
	slices.SortFunc(slice.Endpoints, func(a, b discoveryv1.Endpoint) int { return strings.Compare(a.Addresses[0], b.Addresses[0]) })
	return c.writeSlice(ctx, slice)
}

func (c *Controllers) writeSlice(ctx context.Context, want *discoveryv1.EndpointSlice) error {
	var have discoveryv1.EndpointSlice
	err := c.client.Get(ctx, client.ObjectKeyFromObject(want), &have)
	switch {
	case apierrors.IsNotFound(err):
		err = c.client.Create(ctx, want)
	case err == nil && !sameSlice(&have, want):
		have.Endpoints, have.Ports = want.Endpoints, want.Ports
		err = c.client.Update(ctx, &have)
	}
	if err != nil {
		return fmt.Errorf("writing endpoint slice %s: %w", want.Name, err)
	}
	return nil
}

func sameSlice(a, b *discoveryv1.EndpointSlice) bool {
	x := discoveryv1.EndpointSlice{Endpoints: a.Endpoints, Ports: a.Ports}
	y := discoveryv1.EndpointSlice{Endpoints: b.Endpoints, Ports: b.Ports}
	return x.String() == y.String()
}

func targetPort(p corev1.ServicePort, pod *corev1.Pod) int32 {
	switch {
	case p.TargetPort.Type == intstr.Int && p.TargetPort.IntVal != 0:
		return p.TargetPort.IntVal
	case p.TargetPort.Type == intstr.String && pod != nil:
		for _, c := range pod.Spec.Containers {
			for _, port := range c.Ports {
				if port.Name == p.TargetPort.StrVal {
					return port.ContainerPort
				}
			}
		}
	}
	return p.Port
}
