package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/conversations"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

const (
	pickedHost   = "http://llama.models.inference.internal"
	unpickedHost = "http://llama-unpicked.models.example"
)

// unpicked is a ServiceEntry over the same pods without anything of ours: it shows what Istio does by itself. %s is a
// load balancer's name.
const unpicked = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: llama-unpicked, namespace: models}
spec:
  hosts: [llama-unpicked.models.example]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: llama}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: llama-unpicked, namespace: models}
spec:
  host: llama-unpicked.models.example
  trafficPolicy: {loadBalancer: {simple: %s}}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
`

type demo struct {
	mesh    *mesh.Mesh
	out     io.Writer
	served  *served
	callers map[string]*mesh.Caller
	held    *conversations.Run
}

func (d *demo) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, d.served.limit, fmt.Errorf("the demo was not over within %s", d.served.limit))
	defer cancel()
	if err := d.install(ctx); err != nil {
		return err
	}
	for _, c := range d.served.comparisons {
		if err := d.compare(ctx, c); err != nil {
			return err
		}
	}
	if d.served.split {
		if err := d.split(ctx); err != nil {
			return err
		}
	}
	for _, refusal := range d.mesh.Refusals() {
		return refusal
	}
	return d.plugin(ctx)
}

// compare holds the same conversations with picking and without.
func (d *demo) compare(ctx context.Context, c comparison) error {
	d.held.Models = c.models
	if err := d.emptyCaches(ctx); err != nil {
		return err
	}
	picked, err := d.held.Hold(ctx, "with picking"+c.suffix, pickedHost)
	if err != nil {
		return err
	}
	if err := d.emptyCaches(ctx); err != nil {
		return err
	}
	balancer := strings.ToLower(strings.ReplaceAll(d.served.balancer, "_", " "))
	others, err := d.held.Hold(ctx, "with the waypoint's "+balancer+c.suffix, unpickedHost)
	if err != nil {
		return err
	}
	return conversations.Compare(d.out, picked, balancer, others, c.goal)
}

// install applies what serves the model, the host that it is compared with, and the callers.
func (d *demo) install(ctx context.Context) error {
	if err := d.served.install(ctx, d.mesh); err != nil {
		return err
	}
	if err := d.mesh.ApplyYAML(ctx, fmt.Sprintf(unpicked, d.served.balancer)); err != nil {
		return err
	}
	d.callers = map[string]*mesh.Caller{}
	d.held = &conversations.Run{Out: d.out, Callers: map[string]*http.Client{}, Models: d.served.comparisons[0].models}
	for _, service := range conversations.Services {
		caller, err := d.mesh.NewCaller(ctx, "shop", service, service)
		if err != nil {
			return err
		}
		d.callers[service] = caller
		d.held.Callers[service] = caller.HTTP
	}
	_, _ = fmt.Fprintf(d.out, "\nThe controller, the picker, a waypoint and %s are up.\n", d.served.what)
	for _, host := range []string{pickedHost, unpickedHost} {
		if err := d.awaitServed(ctx, host); err != nil {
			return err
		}
	}
	return nil
}

// awaitServed waits until a model server answers a call to a host.
func (d *demo) awaitServed(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no call was served within a minute"))
	defer cancel()
	return d.mesh.Await(ctx, host, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		service := conversations.Services[0]
		_, err := traffic.Chat(ctx, d.callers[service].HTTP, host, d.held.Models[service], []traffic.Message{{Role: "user", Content: "Are you there?"}}, 1)
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
