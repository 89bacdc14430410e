package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh"
)

const (
	waypointName = "waypoint"
	// modelImage is an image unknown to the mesh: the mesh starts nothing for such a pod.
	modelImage = "example.com/model-server"
	// writers is the number of our concurrent writes. More do not make an API server on two cores faster.
	writers = 8
	// setUpLimit bounds each step.
	setUpLimit = 4 * time.Minute
)

// world is a mesh with many pools.
type world struct {
	*mesh.Mesh
	plan
	api   *apiServer
	table table
	out   io.Writer
}

func newWorld(ctx context.Context, p plan, out io.Writer) (*world, error) {
	m, err := mesh.Start(ctx, mesh.Options{Progress: out, Images: map[string]mesh.Image{
		// Waypoints and the picker exist only for the API server and istiod, and run nothing: see showCounters.
		"registry.istio.io/testing/proxyv2": {OwnTunnel: true},
		"inference-waypoint/picker":         {},
	}})
	if err != nil {
		return nil, err
	}
	w := &world{Mesh: m, plan: p, out: out}
	w.api, err = newAPIServer(m.Config)
	if err != nil {
		return w, err
	}
	if err := m.Apply(ctx, "manifests"); err != nil {
		return w, err
	}
	if err := w.showCounters(ctx); err != nil {
		return w, err
	}
	return w, m.AwaitDeployment(ctx, "inference-system", "inference-controller")
}

func (w *world) say(format string, args ...any) {
	_, _ = fmt.Fprintf(w.out, "scale: %s\n", fmt.Sprintf(format, args...))
}

// each runs work for every number below n, some at once.
func each(ctx context.Context, n int, work func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for i := range n {
		group.Go(func() error { return work(ctx, i) })
	}
	return group.Wait()
}

func limited(ctx context.Context, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, setUpLimit, fmt.Errorf("%s: not within %s", what, setUpLimit))
}

func namespaceOf(waypoint int) string { return fmt.Sprintf("team-%d", waypoint) }

// putUpWaypoints makes the namespaces and their waypoints and waits until istiod has programmed all.
func (w *world) putUpWaypoints(ctx context.Context) error {
	ctx, cancel := limited(ctx, "waypoints")
	defer cancel()
	began := time.Now()
	if err := each(ctx, w.waypoints, func(ctx context.Context, i int) error { return w.addWaypoint(ctx, namespaceOf(i)) }); err != nil {
		return err
	}
	if err := w.awaitWaypoints(ctx, w.waypoints); err != nil {
		return err
	}
	w.say("%d waypoints are programmed after %s", w.waypoints, round(time.Since(began)))
	return nil
}

func (w *world) addWaypoint(ctx context.Context, namespace string) error {
	return w.ApplyYAML(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Namespace
metadata:
  name: %[1]s
  labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: %[2]s}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: %[2]s
  namespace: %[1]s
  labels: {istio.io/waypoint-for: service}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
`, namespace, waypointName))
}

func (w *world) awaitWaypoints(ctx context.Context, n int) error {
	return w.Await(ctx, "waypoints", func(ctx context.Context) error {
		var list gatewayv1.GatewayList
		if err := w.Client.List(ctx, &list); err != nil {
			return err
		}
		programmed := 0
		for _, g := range list.Items {
			if meta.IsStatusConditionTrue(g.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed)) {
				programmed++
			}
		}
		if programmed < n {
			return later(ctx, fmt.Errorf("%d of %d are programmed", programmed, n))
		}
		return nil
	})
}

// later waits before a costly condition is checked again.
func later(ctx context.Context, err error) error {
	select {
	case <-ctx.Done():
	case <-time.After(250 * time.Millisecond):
	}
	return err
}

// putUpPods makes the pods, ready as a kubelet would report them.
func (w *world) putUpPods(ctx context.Context) error {
	ctx, cancel := limited(ctx, "pods")
	defer cancel()
	began := time.Now()
	n := w.waypoints * w.pools * w.pods
	err := each(ctx, n, func(ctx context.Context, i int) error {
		pool := i / w.pods
		return w.addPod(ctx, namespaceOf(pool/w.pools), poolName(pool%w.pools), i)
	})
	if err != nil {
		return err
	}
	took := time.Since(began)
	w.say("%d pods are ready after %s", n, round(took))
	return nil
}

func poolName(n int) string { return fmt.Sprintf("pool-%d", n) }

func (w *world) addPod(ctx context.Context, namespace, app string, n int) error {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: fmt.Sprintf("%s-%d", app, n),
			Labels:      map[string]string{"app": app},
			Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"},
		},
		Spec: corev1.PodSpec{NodeName: "machine", Containers: []corev1.Container{{Name: "model", Image: modelImage}}},
	}
	if err := w.Client.Create(ctx, pod); err != nil {
		return fmt.Errorf("making a pod: %w", err)
	}
	// These addresses are above those that the mesh gives.
	ip := fmt.Sprintf("10.244.%d.%d", 100+n/250, 1+n%250)
	status, err := json.Marshal(map[string]any{"status": corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}})
	if err != nil {
		return fmt.Errorf("encoding a pod's status: %w", err)
	}
	if err := w.Client.Status().Patch(ctx, pod, client.RawPatch(types.MergePatchType, status)); err != nil {
		return fmt.Errorf("reporting a pod: %w", err)
	}
	return nil
}

// putUpPools makes the pools, waits until the controller has configured all of them, and counts its writes.
func (w *world) putUpPools(ctx context.Context) error {
	ctx, cancel := limited(ctx, "pools")
	defer cancel()
	if _, err := w.settle(ctx); err != nil {
		return err
	}
	before, err := w.api.writes(ctx)
	if err != nil {
		return err
	}
	pids, err := w.controllers(ctx)
	if err != nil {
		return err
	}
	cpuBefore, err := cpuOf(pids)
	if err != nil {
		return err
	}
	n := w.waypoints * w.pools
	began := time.Now()
	if err := each(ctx, n, func(ctx context.Context, i int) error {
		return w.addPool(ctx, namespaceOf(i/w.pools), poolName(i%w.pools), poolName(i%w.pools))
	}); err != nil {
		return err
	}
	created := time.Since(began)
	if err := w.awaitPools(ctx, n); err != nil {
		return err
	}
	took := time.Since(began)
	w.say("%d pools are in force after %s, of which it took %s to create them", n, round(took), round(created))
	after, err := w.settleFor(ctx, seen)
	if err != nil {
		return err
	}
	cpuAfter, err := cpuOf(pids)
	if err != nil {
		return err
	}
	w.table.add("all pools in force, from the first one's creation", fmt.Sprintf("%.1f s (%.0f pools/s)", took.Seconds(), float64(n)/took.Seconds()))
	made := after.since(before)
	w.say("written meanwhile: %s", made)
	// A waypoint's first pool adds two objects: the EnvoyFilter about pickers, and the waypoint's access to the picker.
	w.table.goal("objects' writes per pool", per(made.objects(), n), "at most 2, and 2 for each waypoint", made.objects() <= 2*n+2*w.waypoints)
	w.table.goal("status writes per pool", per(made.status(), n), "at most 1", made.status() <= n)
	w.table.add("events per pool", per(made.events(), n))
	w.table.add("the controller's CPU per pool", round((cpuAfter-cpuBefore)/time.Duration(n)).String())
	return nil
}

func per(count, pools int) string { return fmt.Sprintf("%.2f", float64(count)/float64(pools)) }

func (w *world) addPool(ctx context.Context, namespace, name, app string) error {
	pool := &inferencev1.InferencePool{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: inferencev1.InferencePoolSpec{
			Selector:    inferencev1.LabelSelector{MatchLabels: map[inferencev1.LabelKey]inferencev1.LabelValue{"app": inferencev1.LabelValue(app)}},
			TargetPorts: []inferencev1.Port{{Number: 8000}},
		},
	}
	if err := w.Client.Create(ctx, pool); err != nil {
		return fmt.Errorf("making a pool: %w", err)
	}
	return nil
}

// awaitPools waits until so many pools are accepted and have an EnvoyFilter.
func (w *world) awaitPools(ctx context.Context, n int) error {
	return w.Await(ctx, "pools", func(ctx context.Context) error {
		var pools inferencev1.InferencePoolList
		if err := w.Client.List(ctx, &pools); err != nil {
			return err
		}
		accepted := 0
		for _, p := range pools.Items {
			if len(p.Status.Parents) == 1 && meta.IsStatusConditionTrue(p.Status.Parents[0].Conditions, string(inferencev1.InferencePoolConditionAccepted)) {
				accepted++
			}
		}
		if accepted < n {
			return later(ctx, fmt.Errorf("%d of %d are accepted", accepted, n))
		}
		// The metadata is enough to count, and a filter is large.
		filters := &metav1.PartialObjectMetadataList{}
		filters.SetGroupVersionKind(networkingv1alpha3.SchemeGroupVersion.WithKind("EnvoyFilterList"))
		if err := w.Client.List(ctx, filters); err != nil {
			return err
		}
		if len(filters.Items) < n {
			return later(ctx, fmt.Errorf("%d of %d have an EnvoyFilter", len(filters.Items), n))
		}
		return nil
	})
}

// seen is longer than the time after which the controller reports that it cannot read a waypoint's counters.
const seen = 40 * time.Second

// settle waits until nobody has written anything for three seconds, and returns the counts at that time.
func (w *world) settle(ctx context.Context) (writes, error) { return w.settleFor(ctx, 3*time.Second) }

func (w *world) settleFor(ctx context.Context, quiet time.Duration) (writes, error) {
	last, err := w.api.writes(ctx)
	if err != nil {
		return nil, err
	}
	for since := time.Now(); time.Since(since) < quiet; {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for rest: %w", context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
		now, err := w.api.writes(ctx)
		if err != nil {
			return nil, err
		}
		if now.since(last).total() > 0 {
			last, since = now, time.Now()
		}
	}
	return last, nil
}

// controllers returns the process IDs of the controller's replicas.
func (w *world) controllers(ctx context.Context) ([]int, error) {
	var d appsv1.Deployment
	if err := w.Client.Get(ctx, client.ObjectKey{Namespace: "inference-system", Name: "inference-controller"}, &d); err != nil {
		return nil, fmt.Errorf("reading the controller's Deployment: %w", err)
	}
	var pods corev1.PodList
	if err := w.Client.List(ctx, &pods, client.InNamespace(d.Namespace), client.MatchingLabels(d.Spec.Selector.MatchLabels)); err != nil {
		return nil, fmt.Errorf("listing the controller's pods: %w", err)
	}
	var out []int
	for _, p := range pods.Items {
		pid, err := w.ProcessID(p.UID)
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	if len(out) == 0 {
		return nil, errors.New("no controller runs")
	}
	return out, nil
}
