package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

const (
	pickedHost  = "http://llama.models.inference.internal"
	rotatedHost = "http://llama-rotated.models.example"

	// showLimit bounds the demo without the mesh's start. It takes half a minute, and longer on a machine under heavy load.
	showLimit = 10 * time.Minute
)

// rotated is a ServiceEntry over the same pods without anything of ours: it shows what Istio does by itself.
const rotated = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: llama-rotated, namespace: models}
spec:
  hosts: [llama-rotated.models.example]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: llama}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: llama-rotated, namespace: models}
spec:
  host: llama-rotated.models.example
  trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
`

type demo struct {
	mesh    *mesh.Mesh
	out     io.Writer
	callers map[string]*mesh.Caller
	held    *conversations.Run
}

func (d *demo) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, showLimit, fmt.Errorf("the demo was not over within %s", showLimit))
	defer cancel()
	if err := d.install(ctx); err != nil {
		return err
	}
	picked, err := d.held.Hold(ctx, "with picking", pickedHost)
	if err != nil {
		return err
	}
	if err := d.emptyCaches(ctx); err != nil {
		return err
	}
	roundRobin, err := d.held.Hold(ctx, "with the waypoint's round robin", rotatedHost)
	if err != nil {
		return err
	}
	if err := conversations.Compare(d.out, picked, roundRobin); err != nil {
		return err
	}
	if err := d.split(ctx); err != nil {
		return err
	}
	for _, refusal := range d.mesh.Refusals() {
		return refusal
	}
	return d.plugin(ctx)
}

// install applies the quickstart, the host that it is compared with, and the callers.
func (d *demo) install(ctx context.Context) error {
	if err := d.mesh.InstallQuickstart(ctx); err != nil {
		return err
	}
	if err := d.mesh.ApplyYAML(ctx, rotated); err != nil {
		return err
	}
	d.callers = map[string]*mesh.Caller{}
	d.held = &conversations.Run{Out: d.out, Callers: map[string]*http.Client{}}
	for _, service := range conversations.Services {
		caller, err := d.mesh.NewCaller(ctx, "shop", service, service)
		if err != nil {
			return err
		}
		d.callers[service] = caller
		d.held.Callers[service] = caller.HTTP
	}
	_, _ = fmt.Fprintln(d.out, "\nThe controller, the picker, a waypoint and 4 model servers are up.")
	for _, host := range []string{pickedHost, rotatedHost} {
		if err := d.awaitServed(ctx, host); err != nil {
			return err
		}
	}
	return d.emptyCaches(ctx)
}

// awaitServed waits until a model server answers a call to a host.
func (d *demo) awaitServed(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no call was served within a minute"))
	defer cancel()
	return d.mesh.Await(ctx, host, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := traffic.Chat(ctx, d.callers[conversations.Services[0]].HTTP, host, conversations.Model, []traffic.Message{{Role: "user", Content: "Are you there?"}}, 1)
		return err
	})
}

// emptyCaches makes every model server forget its prefixes, so that both runs start alike.
func (d *demo) emptyCaches(ctx context.Context) error {
	var pods corev1.PodList
	if err := d.mesh.Client.List(ctx, &pods, client.InNamespace("models"), client.MatchingLabels{"app": "llama"}); err != nil {
		return fmt.Errorf("listing model servers: %w", err)
	}
	for _, pod := range pods.Items {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+pod.Status.PodIP+":8000/reset_prefix_cache", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return fmt.Errorf("emptying the cache of %s: %w", pod.Name, err)
		}
		_ = response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("emptying the cache of %s: %s", pod.Name, response.Status)
		}
	}
	return nil
}

// keep prints how to use the mesh and leaves it running until ctx ends.
func (d *demo) keep(ctx context.Context) error {
	return d.serveProxies(ctx)
}
