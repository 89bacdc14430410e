// Package controllers stands for kube-controller-manager: it keeps the pods of Deployments, the EndpointSlices of Services
// and the service accounts of namespaces, and deletes objects whose owner is gone. It runs no pod.
package controllers

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Controllers act on one State at a time.
type Controllers struct {
	client   client.Client
	runs     func(corev1.PodSpec) bool
	accounts map[string]bool // the namespaces that have a default service account
}

// New makes controllers. They leave alone Deployments whose pods do not satisfy runs.
func New(c client.Client, runs func(corev1.PodSpec) bool) *Controllers {
	return &Controllers{client: c, runs: runs, accounts: map[string]bool{}}
}

// State is one listing of the cluster's objects.
type State struct {
	Namespaces  map[string]*corev1.Namespace
	Deployments []appsv1.Deployment
	Pods        []corev1.Pod
	Services    []corev1.Service
	owners      map[types.UID]bool // the existing objects of ownerKinds
}

// Look lists the objects that the controllers and a kubelet act on.
func (c *Controllers) Look(ctx context.Context) (*State, error) {
	var (
		s           = State{Namespaces: map[string]*corev1.Namespace{}, owners: map[types.UID]bool{}}
		namespaces  corev1.NamespaceList
		deployments appsv1.DeploymentList
		pods        corev1.PodList
		services    corev1.ServiceList
		gateways    gatewayv1.GatewayList
	)
	for _, list := range []client.ObjectList{&namespaces, &deployments, &pods, &services, &gateways} {
		if err := c.client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("listing %T: %w", list, err)
		}
	}
	for i := range namespaces.Items {
		s.Namespaces[namespaces.Items[i].Name] = &namespaces.Items[i]
	}
	for i := range deployments.Items {
		s.owners[deployments.Items[i].UID] = true
	}
	for i := range gateways.Items {
		s.owners[gateways.Items[i].UID] = true
	}
	s.Deployments, s.Pods, s.Services = deployments.Items, pods.Items, services.Items
	return &s, nil
}
