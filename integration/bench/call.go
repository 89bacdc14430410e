package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/report"
	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

const (
	callNamespace = "calls"
	callSize      = 8 << 10
	callsAtOnce   = 4
	product       = "inference-system"
)

// callObjects are two pools over the same four model servers behind one waypoint. Our picker picks for the first. The
// second names the reference, a process of the bench behind a pod's address.
const callObjects = `
apiVersion: v1
kind: Namespace
metadata:
  name: calls
  labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint}
---
apiVersion: v1
kind: Namespace
metadata: {name: callers, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: calls, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: model, namespace: calls}
spec:
  replicas: 4
  selector: {matchLabels: {app: model}}
  template:
    metadata: {labels: {app: model}}
    spec: {containers: [{name: model, image: ` + mesh.ClientImage + `}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: reference, namespace: calls}
spec:
  selector: {matchLabels: {app: reference}}
  template:
    metadata: {labels: {app: reference}}
    spec: {containers: [{name: reference, image: ` + mesh.ClientImage + `}]}
---
apiVersion: v1
kind: Service
metadata: {name: reference, namespace: calls}
spec:
  selector: {app: reference}
  ports: [{name: grpc, port: 9002, targetPort: 19002, appProtocol: kubernetes.io/h2c}]
`

// wholeCalls compares what calls through the waypoint cost the pickers: ours gets the request and the answer's headers, the
// reference also every piece of the answer.
func (b *bench) wholeCalls(ctx context.Context) error {
	pickers, err := b.installCalls(ctx)
	if err != nil {
		b.mesh.ShowLogs(os.Stderr, 12)
		return fmt.Errorf("installing what calls need: %w", err)
	}
	caller, err := b.mesh.NewCaller(ctx, "callers", "caller", "caller")
	if err != nil {
		return err
	}
	defer caller.Close()
	costs := map[string][]float64{}
	for _, p := range pickers {
		if err := b.awaitServed(ctx, caller.HTTP, p.host); err != nil {
			b.mesh.ShowLogs(os.Stderr, 12)
			return err
		}
	}
	for range b.plan.rounds {
		for _, p := range pickers {
			cost, err := b.callsOf(ctx, caller.HTTP, p)
			if err != nil {
				return fmt.Errorf("calls that the %s picks for: %w", p.name, err)
			}
			costs[p.name] = append(costs[p.name], cost)
		}
	}
	ours, theirs := report.Median(costs["picker"]), report.Median(costs["reference"])
	b.report.Goal("CPU of the picker for a whole call, 8 KB and 1,000 pieces of answer", ours/theirs, 1./20)
	b.report.Table(fmt.Sprintf("Whole calls through the waypoint's Envoy: a prompt of %s, %d pieces of answer %s apart, %d calls at once",
		report.Kilobytes(callSize), answerPieces, piecePause, callsAtOnce),
		[]string{"picker", "CPU µs/call", "picker / reference"}, [][]string{
			{"reference", report.Micros(theirs), ""}, {"picker", report.Micros(ours), report.Ratio(ours / theirs)},
		})
	return b.removeCalls(ctx)
}

// calledPicker is a picker and the host of its pool.
type calledPicker struct {
	name, host string
	cpu        func() (time.Duration, error)
}

func (b *bench) installCalls(ctx context.Context) ([]calledPicker, error) {
	if err := b.defineReferenceKinds(ctx); err != nil {
		return nil, err
	}
	if err := b.mesh.Apply(ctx, "manifests"); err != nil {
		return nil, err
	}
	pools := poolObject(callNamespace, "ours", "model", "") +
		poolObject(callNamespace, "theirs", "model", "{name: reference, port: {number: 9002}}")
	if err := b.mesh.ApplyYAML(ctx, callObjects+pools); err != nil {
		return nil, err
	}
	for _, d := range [][2]string{
		{product, "inference-controller"}, {product, "inference-picker"}, {callNamespace, "waypoint"}, {callNamespace, "model"}, {callNamespace, "reference"},
	} {
		if err := b.mesh.AwaitDeployment(ctx, d[0], d[1]); err != nil {
			return nil, err
		}
	}
	var err error
	if b.reference, err = b.startReferenceFor(ctx, types.NamespacedName{Namespace: callNamespace, Name: "theirs"}); err != nil {
		return nil, err
	}
	if err := b.awaitReference(ctx, b.reference, 4); err != nil {
		return nil, err
	}
	ours, err := b.pickerProcesses(ctx)
	if err != nil {
		return nil, err
	}
	host := func(pool string) string { return "http://" + pool + "." + callNamespace + ".inference.internal" }
	return []calledPicker{
		{"picker", host("ours"), func() (time.Duration, error) { return cpuOf(ours) }},
		{"reference", host("theirs"), b.reference.CPU},
	}, nil
}

// pickerProcesses returns the process IDs of the mesh's own pickers: the one that picks, and those that follow it.
func (b *bench) pickerProcesses(ctx context.Context) ([]int, error) {
	var pods corev1.PodList
	if err := b.mesh.Client.List(ctx, &pods, client.InNamespace(product), client.MatchingLabels{"app.kubernetes.io/name": "inference-picker"}); err != nil {
		return nil, fmt.Errorf("listing pickers: %w", err)
	}
	var out []int
	for _, p := range pods.Items {
		id, err := b.mesh.ProcessID(p.UID)
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, nil
}

// cpuOf is the processor time that processes have taken together.
func cpuOf(processes []int) (sum time.Duration, err error) {
	for _, id := range processes {
		took, err := server.CPU(id)
		if err != nil {
			return 0, err
		}
		sum += took
	}
	return sum, nil
}

func (b *bench) awaitServed(ctx context.Context, caller *http.Client, host string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not within a minute"))
	defer cancel()
	return b.mesh.Await(ctx, host, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		return callOnce(ctx, caller, host, b.bodies[callSize])
	})
}

// callsOf makes a round of calls and returns the picker's processor time for each call, in seconds. That includes the
// picker's other work, such as reading metrics: a call costs so little that the difference would be noise.
func (b *bench) callsOf(ctx context.Context, caller *http.Client, p calledPicker) (float64, error) {
	total, err := used(p, func() error {
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(callsAtOnce)
		for range b.plan.calls {
			group.Go(func() error { return callOnce(ctx, caller, p.host, b.bodies[callSize]) })
		}
		return group.Wait()
	})
	if err != nil {
		return 0, err
	}
	return total / float64(b.plan.calls), nil
}

// used returns the processor time, in seconds, that a picker uses during work.
func used(p calledPicker, work func() error) (float64, error) {
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := work(); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return (after - before).Seconds(), err
}

// callOnce makes one call and reads the whole answer.
func callOnce(ctx context.Context, caller *http.Client, host string, body []byte) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, host+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := caller.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("reading an answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", response.Status, answer)
	}
	if n := countPieces(answer); n != answerPieces {
		return fmt.Errorf("an answer of %d pieces, want %d", n, answerPieces)
	}
	return nil
}

// removeCalls deletes the objects of this measurement, which would only use the machine from here on.
func (b *bench) removeCalls(ctx context.Context) error {
	b.reference.Stop()
	b.reference = nil
	for _, d := range [][2]string{
		{product, "inference-controller"}, {product, "inference-picker"}, {callNamespace, "waypoint"}, {callNamespace, "model"}, {callNamespace, "reference"},
	} {
		deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: d[0], Name: d[1]}}
		if err := b.mesh.Client.Delete(ctx, deployment); err != nil {
			return fmt.Errorf("removing %s: %w", d[1], err)
		}
		pods := &corev1.Pod{}
		if err := b.mesh.Client.DeleteAllOf(ctx, pods, client.InNamespace(d[0]), client.GracePeriodSeconds(1)); err != nil {
			return fmt.Errorf("removing the pods of %s: %w", d[0], err)
		}
	}
	return nil
}
