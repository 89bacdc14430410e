package cluster

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	inferencefake "sigs.k8s.io/gateway-api-inference-extension/client-go/clientset/versioned/fake"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/sources/sourcestest"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

var silent = slog.New(slog.DiscardHandler)

var llama = types.NamespacedName{Namespace: "models", Name: "llama"}

func podOf(name, ip string, ready corev1.ConditionStatus, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name, Labels: map[string]string{"app": "llama"}},
		Spec:       corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "vllm", Image: "vllm"}}},
		Status: corev1.PodStatus{
			PodIP:      ip,
			Conditions: []corev1.PodCondition{{Type: corev1.ContainersReady, Status: ready}, {Type: corev1.PodReady, Status: ready}},
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func inferencePool(name string, selector map[string]string, ports ...int32) *inferencev1.InferencePool {
	p := &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name}}
	p.Spec.Selector.MatchLabels = map[inferencev1.LabelKey]inferencev1.LabelValue{}
	for k, v := range selector {
		p.Spec.Selector.MatchLabels[inferencev1.LabelKey(k)] = inferencev1.LabelValue(v)
	}
	for _, port := range ports {
		p.Spec.TargetPorts = append(p.Spec.TargetPorts, inferencev1.Port{Number: inferencev1.PortNumber(port)})
	}
	return p
}

// newInferenceClient has no field management: the generated one of the API's module lacks the schema for it.
func newInferenceClient(objects ...runtime.Object) *inferencefake.Clientset {
	return inferencefake.NewSimpleClientset(objects...)
}

// watched are the watches of the stand-ins' pods and pools.
func watched(core *fake.Clientset, inference *inferencefake.Clientset) (pods, pools cache.ListerWatcher) {
	pods = cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return core.CoreV1().Pods("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return core.CoreV1().Pods("").Watch(ctx, o)
		},
	}, core)
	pools = cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return inference.InferenceV1().InferencePools("").List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return inference.InferenceV1().InferencePools("").Watch(ctx, o)
		},
	}, inference)
	return pods, pools
}

// newCluster is a source of the stand-ins' pools.
func newCluster(t *testing.T, core *fake.Clientset, inference *inferencefake.Clientset, f *poolstate.Fleet, serves pool.Serves, log *slog.Logger) *Cluster {
	t.Helper()
	pods, pools := watched(core, inference)
	source, err := New(pods, pools, f, serves, log)
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// The whole life of pools and pods. The API server is client-go's stand-in here; the mesh's tests use the real one.
func TestClusterFollowsPoolsAndPods(t *testing.T) {
	core := fake.NewClientset(
		podOf("a", "10.244.0.1", corev1.ConditionTrue),
		podOf("b", "10.244.0.2", corev1.ConditionFalse),
		podOf("other", "10.244.0.9", corev1.ConditionTrue, func(p *corev1.Pod) { p.Labels["app"] = "other" }),
	)
	llamaPool := inferencePool("llama", map[string]string{"app": "llama"}, 8000, 8001)
	inference := newInferenceClient(llamaPool)
	f := sourcestest.NewFleet()
	source := newCluster(t, core, inference, f, pool.Serves{Unnamed: true}, silent)
	ctx, stop := context.WithCancel(t.Context())
	synced := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() { source.Run(ctx, func() { close(synced) }) })
	defer running.Wait()
	defer stop()
	select {
	case <-synced:
	case <-time.After(10 * time.Second):
		t.Fatal("not synced within 10 s")
	}

	// 1. At synced, all that there was is known: no later event is needed.
	if diff := cmp.Diff([]string{"10.244.0.1:8000", "10.244.0.1:8001"}, sourcestest.AddressesOf(f, "models/llama")); diff != "" {
		t.Fatalf("endpoints at the start (-want +got):\n%s", diff)
	}
	is := func(name string, want ...string) func() bool {
		return func() bool { return cmp.Equal(want, sourcestest.AddressesOf(f, name)) }
	}
	pods, pools := core.CoreV1().Pods("models"), inference.InferenceV1().InferencePools("models")
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// 2. A pod becomes ready.
	must(pods.Update(ctx, podOf("b", "10.244.0.2", corev1.ConditionTrue), metav1.UpdateOptions{}))
	sourcestest.Eventually(t, "the pod that is ready now", is("models/llama", "10.244.0.1:8000", "10.244.0.1:8001", "10.244.0.2:8000", "10.244.0.2:8001"))
	// 3. A pod begins to end.
	must(pods.Update(ctx, podOf("a", "10.244.0.1", corev1.ConditionTrue, func(p *corev1.Pod) {
		p.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	}), metav1.UpdateOptions{}))
	sourcestest.Eventually(t, "the end of the pod that is being deleted", is("models/llama", "10.244.0.2:8000", "10.244.0.2:8001"))
	// 4. A pool is changed and another made.
	must(pools.Update(ctx, inferencePool("llama", map[string]string{"app": "llama"}, 9000), metav1.UpdateOptions{}))
	must(pools.Create(ctx, inferencePool("other", map[string]string{"app": "other"}, 8000), metav1.CreateOptions{}))
	sourcestest.Eventually(t, "the pool's new port", is("models/llama", "10.244.0.2:9000"))
	sourcestest.Eventually(t, "the new pool", is("models/other", "10.244.0.9:8000"))
	// 5. A pod's labels move it from one pool to another.
	must(pods.Update(ctx, podOf("other", "10.244.0.9", corev1.ConditionTrue), metav1.UpdateOptions{}))
	sourcestest.Eventually(t, "the pod's move away", is("models/other", []string{}...))
	sourcestest.Eventually(t, "the pod's move", is("models/llama", "10.244.0.2:9000", "10.244.0.9:9000"))
	// 6. A pod is deleted, and a pool.
	must(nil, pods.Delete(ctx, "b", metav1.DeleteOptions{}))
	sourcestest.Eventually(t, "the deleted pod's end", is("models/llama", "10.244.0.9:9000"))
	must(nil, pools.Delete(ctx, "llama", metav1.DeleteOptions{}))
	sourcestest.Eventually(t, "the deleted pool's end", func() bool { return sourcestest.AddressesOf(f, "models/llama") == nil })
}

// A fault of a pool that does not concern the picker is logged, and the pool serves.
func TestClusterServesPoolsThatAreNotInOrder(t *testing.T) {
	p := inferencePool("llama", map[string]string{"app": "llama"}, 8000)
	p.Annotations = map[string]string{
		"inference-waypoint.io/failure-mode": "sometimes", "inference-waypoint.io/pick-spread": "much",
		"inference-waypoint.io/pick-session-header": "X-Chat",
	}
	registry := prometheus.NewRegistry()
	f := poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(registry)})
	var log sourcestest.Buffer
	source := newCluster(t, fake.NewClientset(podOf("a", "10.244.0.1", corev1.ConditionTrue)), newInferenceClient(p), f, pool.Serves{Unnamed: true}, slog.New(slog.NewTextHandler(&log, nil)))
	ctx, stop := context.WithCancel(t.Context())
	source.Run(ctx, stop) // ends as soon as it is synced
	if diff := cmp.Diff([]string{"10.244.0.1:8000"}, sourcestest.AddressesOf(f, "models/llama")); diff != "" {
		t.Errorf("endpoints (-want +got):\n%s", diff)
	}
	for _, want := range []string{"sometimes", "pick-spread"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not tell of %s: %s", want, log.String())
		}
	}
	if got := f.Pool(llama).SessionHeader(); got != "x-chat" {
		t.Errorf("the session header is %q, want x-chat: what is wrong beside it must not matter", got)
	}
	// Only invalid settings are counted.
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := map[string]float64{}
	for _, family := range families {
		if family.GetName() == "inference_waypoint_pool_settings_invalid" {
			for _, m := range family.GetMetric() {
				counted[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
	}
	if diff := cmp.Diff(map[string]float64{"models/llama": 1}, counted); diff != "" {
		t.Errorf("wrong settings by pool (-want +got):\n%s", diff)
	}
	// The fault is logged once, and not with each event of a pod.
	before := log.String()
	source.sync(llama)
	if log.String() != before {
		t.Errorf("the same faults are told again: %s", strings.TrimPrefix(log.String(), before))
	}
}

// A pool is served only by the picker that it names: another picker's pool has no state, no series and no scrapes. A
// change of the pool's reference adds the pool and removes it.
func TestClusterServesItsOwnPools(t *testing.T) {
	const own, unnamed, foreign, elsewhere = "own", "unnamed", "foreign", "not-a-service"
	refs := map[string]*inferencev1.EndpointPickerRef{
		own:       {Name: "picker", Port: &inferencev1.Port{Number: 9002}},
		unnamed:   nil,
		foreign:   {Name: "llama-epp", Port: &inferencev1.Port{Number: 9002}},
		elsewhere: {Kind: "Picker", Name: "picker"},
	}
	for name, tt := range map[string]struct {
		serves pool.Serves
		want   []string
	}{
		"the default picker":           {pool.Serves{Services: []types.NamespacedName{{Namespace: "models", Name: "picker"}}, Unnamed: true}, []string{own, unnamed}},
		"a picker that pools name":     {pool.Serves{Services: []types.NamespacedName{{Namespace: "models", Name: "picker"}}}, []string{own}},
		"of one name elsewhere":        {pool.Serves{Services: []types.NamespacedName{{Namespace: "inference-system", Name: "picker"}}, Unnamed: true}, []string{unnamed}},
		"several Services of a picker": {pool.Serves{Services: []types.NamespacedName{{Namespace: "models", Name: "llama-epp"}, {Namespace: "models", Name: "picker"}}}, []string{foreign, own}},
	} {
		t.Run(name, func(t *testing.T) {
			var pools []runtime.Object
			for pool, ref := range refs {
				p := inferencePool(pool, map[string]string{"app": pool}, 8000)
				p.Spec.EndpointPickerRef = ref
				pools = append(pools, p)
			}
			registry := prometheus.NewRegistry()
			f := poolstate.New(poolstate.Options{Metrics: telemetry.NewMetrics(registry)})
			source := newCluster(t, fake.NewClientset(), newInferenceClient(pools...), f, tt.serves, silent)
			ctx, stop := context.WithCancel(t.Context())
			source.Run(ctx, stop) // ends as soon as it is synced
			if diff := cmp.Diff(tt.want, namesOf(f)); diff != "" {
				t.Errorf("pools (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, poolsWithSeries(t, registry)); diff != "" {
				t.Errorf("pools with series (-want +got):\n%s", diff)
			}
		})
	}
}

// A pool that goes over to another picker is served until the waypoints have heard of it.
func TestClusterFollowsAPoolsPicker(t *testing.T) {
	p := inferencePool("llama", map[string]string{"app": "llama"}, 8000)
	inference := newInferenceClient(p)
	f := sourcestest.NewFleet()
	source := newCluster(t, fake.NewClientset(podOf("a", "10.244.0.1", corev1.ConditionTrue)), inference, f, pool.Serves{Unnamed: true}, silent)
	source.linger = 200 * time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { source.Run(ctx, func() {}) })
	defer running.Wait()
	defer stop()
	sourcestest.Eventually(t, "the pool", func() bool { return f.Pool(llama) != nil })
	for _, change := range []struct {
		to    *inferencev1.EndpointPickerRef
		known bool
	}{{&inferencev1.EndpointPickerRef{Name: "llama-epp", Port: &inferencev1.Port{Number: 9002}}, false}, {nil, true}} {
		next := p.DeepCopy()
		next.Spec.EndpointPickerRef = change.to
		changed := time.Now()
		if _, err := inference.InferenceV1().InferencePools("models").Update(ctx, next, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		for time.Since(changed) < source.linger/2 {
			if f.Pool(llama) == nil && !change.known {
				t.Fatal("the pool is not served while waypoints may still ask for it")
			}
			time.Sleep(5 * time.Millisecond)
		}
		sourcestest.Eventually(t, "the change of the pool's picker", func() bool { return (f.Pool(llama) != nil) == change.known })
	}
}

func namesOf(f *poolstate.Fleet) []string {
	var out []string
	for _, name := range f.Names() {
		out = append(out, name.Name)
	}
	slices.Sort(out)
	return out
}

// poolsWithSeries returns the names of all pools that have a series.
func poolsWithSeries(t *testing.T, registry *prometheus.Registry) []string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, label := range m.GetLabel() {
				if label.GetName() == "pool" && label.GetValue() != "" {
					out = append(out, strings.TrimPrefix(label.GetValue(), "models/"))
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func TestStripKeepsWhatMakesEndpoints(t *testing.T) {
	deleted := &metav1.Time{Time: time.Unix(1, 0)}
	full := podOf("a", "10.244.0.1", corev1.ConditionTrue, func(p *corev1.Pod) {
		p.UID, p.ResourceVersion, p.DeletionTimestamp = "uid", "7", deleted
		p.Annotations = map[string]string{"long": strings.Repeat("x", 1000)}
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "vllm", RestartCount: 2, Image: "vllm"}}
		p.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubelet"}}
	})
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "models", Name: "a", UID: "uid", ResourceVersion: "7", DeletionTimestamp: deleted,
			Labels: map[string]string{"app": "llama"},
		},
		Status: corev1.PodStatus{
			PodIP:             "10.244.0.1",
			Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
			ContainerStatuses: []corev1.ContainerStatus{{RestartCount: 2}},
		},
	}
	got, err := strip(full)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stripped pod (-want +got):\n%s", diff)
	}
	tombstone := cache.DeletedFinalStateUnknown{Key: "models/a", Obj: full}
	if got, err := strip(tombstone); err != nil || got != any(tombstone) {
		t.Errorf("what is no pod came back as %v, %v", got, err)
	}
	if pod, ok := last[*corev1.Pod](tombstone); !ok || pod != full {
		t.Error("the last state of a pod whose deletion was missed is not found")
	}
}
