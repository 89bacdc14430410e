package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
	"github.com/inference-waypoint/inference-waypoint/integration/traffic"
)

const (
	model       = "llama-3.1-8b"
	pickedHost  = "http://llama.models.inference.internal"
	rotatedHost = "http://llama-rotated.models.inference.internal"

	conversations = 28
	turns         = 7
	systemTokens  = 200  // shared by all conversations, as a product's system prompt is
	firstTokens   = 1000 // the document that a conversation is about
	nextTokens    = 130  // each question after it
	answerTokens  = 48

	// showLimit bounds all but the mesh's start. It takes half a minute; a machine under heavy load takes longer.
	showLimit = 10 * time.Minute

	// wantedGain is by how much picking must raise the share of prompt tokens that come from the cache.
	wantedGain = 2.0
)

// services are the callers: each has an identity of its own.
var services = []string{"checkout", "search", "support"}

// rotated is the same pods behind a ServiceEntry that nothing of ours touches: what Istio does by itself.
const rotated = `
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: llama-rotated, namespace: models}
spec:
  hosts: [llama-rotated.models.inference.internal]
  resolution: STATIC
  location: MESH_INTERNAL
  workloadSelector: {labels: {app: llama}}
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8000}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: llama-rotated, namespace: models}
spec:
  host: llama-rotated.models.inference.internal
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
	last    *traffic.Conversation // one that was held with picking
}

func (d *demo) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, showLimit, fmt.Errorf("the demo was not over within %s", showLimit))
	defer cancel()
	if err := d.install(ctx); err != nil {
		return err
	}
	picked, err := d.converse(ctx, "with picking", pickedHost)
	if err != nil {
		return err
	}
	if err := d.emptyCaches(ctx); err != nil {
		return err
	}
	roundRobin, err := d.converse(ctx, "with the waypoint's round robin", rotatedHost)
	if err != nil {
		return err
	}
	if err := summarise(d.out, picked, roundRobin); err != nil {
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

// install puts up the quickstart, the host that it is compared with, and the callers.
func (d *demo) install(ctx context.Context) error {
	if err := d.mesh.InstallQuickstart(ctx); err != nil {
		return err
	}
	if err := d.mesh.ApplyYAML(ctx, rotated); err != nil {
		return err
	}
	d.callers = map[string]*mesh.Caller{}
	for _, service := range services {
		caller, err := d.mesh.NewCaller(ctx, "shop", service, service)
		if err != nil {
			return err
		}
		d.callers[service] = caller
	}
	_, _ = fmt.Fprintln(d.out, "\nThe controller, the picker, a waypoint and 4 model servers are up.")
	for _, host := range []string{pickedHost, rotatedHost} {
		if err := d.awaitServed(ctx, host); err != nil {
			return err
		}
	}
	return d.emptyCaches(ctx)
}

// awaitServed waits until a call to a host is answered by a model.
func (d *demo) awaitServed(ctx context.Context, host string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("no call was served within a minute"))
	defer cancel()
	return d.mesh.Await(ctx, host, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := traffic.Chat(ctx, d.callers[services[0]].HTTP, host, model, []traffic.Message{{Role: "user", Content: "Are you there?"}}, 1)
		return err
	})
}

// emptyCaches makes every model server forget its prefixes, so that the second run starts as the first did.
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

// call is one line of the table.
type call struct {
	service            string
	conversation, turn int
	*traffic.Answer
	err error
}

// converse holds all conversations and shows each call as it ends. They go on side by side, as those of many users do:
// all take a turn, in an order of chance, before any takes its next. Every service has two calls in flight.
func (d *demo) converse(ctx context.Context, title, host string) ([]call, error) {
	system := traffic.Text(rand.New(rand.NewPCG(1, 1)), systemTokens)
	held := make([]*traffic.Conversation, conversations)
	for n := range held {
		held[n] = traffic.NewConversation(system, uint64(n))
	}
	table := newTable(d.out, title)
	order := rand.New(rand.NewPCG(2, 2))
	var calls []call
	for turn := range turns {
		for c := range d.takeTurns(ctx, host, turn, held, order.Perm(conversations)) {
			table.row(c)
			calls = append(calls, c)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	d.last = held[0]
	return calls, nil
}

// takeTurns lets every conversation take one turn, in the order given, and hands out the calls as they end.
func (d *demo) takeTurns(ctx context.Context, host string, turn int, held []*traffic.Conversation, order []int) <-chan call {
	waiting := map[string]chan int{}
	for _, service := range services {
		waiting[service] = make(chan int, len(order))
	}
	for _, n := range order {
		waiting[services[n%len(services)]] <- n
	}
	tokens := nextTokens
	if turn == 0 {
		tokens = firstTokens
	}
	results := make(chan call)
	var workers sync.WaitGroup
	for _, service := range services {
		close(waiting[service])
		for range 2 {
			workers.Go(func() {
				for n := range waiting[service] {
					answer, err := held[n].Ask(ctx, d.callers[service].HTTP, host, model, tokens, answerTokens)
					results <- call{service: service, conversation: n + 1, turn: turn + 1, Answer: answer, err: err}
				}
			})
		}
	}
	go func() {
		workers.Wait()
		close(results)
	}()
	return results
}

// keep says how to use the mesh and leaves it running until ctx ends.
func (d *demo) keep(ctx context.Context) error {
	return d.serveProxies(ctx)
}
