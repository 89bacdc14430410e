// Package ztunnel stands for the node's ztunnel and istio-cni: it says which pods are in the ambient mesh, and accepts
// HBONE connections to them where the policies allow. It starts no pods, and opens no connections; package caller does.
package ztunnel

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/authorization"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/cluster"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/hbone"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
)

const (
	dataplaneMode = "istio.io/dataplane-mode" // label of a pod or a namespace: whether it is in the ambient mesh

	// Redirection is the annotation by which istio-cni marks a pod as in the mesh.
	Redirection = "ambient.istio.io/redirection"
)

// Ztunnel has the authority that signs its pods' identities, and the policies in force.
type Ztunnel struct {
	authority *pki.Authority
	policies  *authorization.Authorizer
}

// New makes the ztunnel of a node.
func New(authority *pki.Authority, policies *authorization.Authorizer) *Ztunnel {
	return &Ztunnel{authority: authority, policies: policies}
}

// Ambient reports whether istio-cni would take a pod into the mesh.
func Ambient(p *corev1.Pod, ns *corev1.Namespace) bool {
	if mode, ok := p.Labels[dataplaneMode]; ok {
		return mode == "ambient"
	}
	return ns != nil && ns.Labels[dataplaneMode] == "ambient"
}

// Inbound prepares HBONE for a pod, with the pod's identity. The function that it returns serves until ctx ends: from
// before the start of the pod's program until after its end.
func (z *Ztunnel) Inbound(p *corev1.Pod, addr netip.Addr) (serve func(ctx context.Context) error, err error) {
	identity, err := z.authority.Workload(p.Namespace, cluster.AccountOf(p))
	if err != nil {
		return nil, err
	}
	config, err := z.authority.MutualTLS(identity)
	if err != nil {
		return nil, err
	}
	allow := func(ctx context.Context, principal string, port uint16) (<-chan struct{}, error) {
		c := authorization.Connection{Principal: principal, Pod: addr, Namespace: p.Namespace, Port: port}
		if err := z.policies.Allow(ctx, c); err != nil {
			return nil, err
		}
		return z.policies.Revoked(ctx, c), nil
	}
	return func(ctx context.Context) error { return hbone.Serve(ctx, addr, config, allow) }, nil
}
