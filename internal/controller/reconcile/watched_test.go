package reconcile

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache/informertest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// The watch reads the waypoints that our EnvoyFilters target, and their running pods.
func TestWatched(t *testing.T) {
	foreign := somePool() // asks another's picker
	foreign.Name = "foreign"
	port := inferencev1.Port{Number: 9002}
	foreign.Spec.EndpointPickerRef = &inferencev1.EndpointPickerRef{Name: "epp", Port: &port}
	epp := pickerService()
	epp.Namespace, epp.Name = "models", "epp"
	pod := func(namespace, name, gateway, address string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: map[string]string{gatewayNameLabel: gateway}},
			Status:     corev1.PodStatus{Phase: phase, PodIP: address},
		}
	}
	leaving := pod("infra", "leaving", "shared", "10.0.0.9", corev1.PodRunning)
	leaving.Finalizers = []string{"a.b/c"}
	c, _ := newClient(t, somePool(), foreign, namespace(), waypoint(), pickerService(), epp, leaving,
		pod("infra", "b", "shared", "10.0.0.2", corev1.PodRunning),
		pod("infra", "a", "shared", "10.0.0.1", corev1.PodRunning),
		pod("infra", "pending", "shared", "", corev1.PodPending),
		pod("infra", "over", "shared", "10.0.0.3", corev1.PodSucceeded),
		pod("infra", "sly", "shared", "127.0.0.1", corev1.PodRunning),
		pod("infra", "other", "ingress", "10.0.0.4", corev1.PodRunning),
		pod("models", "namesake", "shared", "10.0.0.5", corev1.PodRunning), // who makes pods elsewhere is no waypoint's
	)
	if err := c.Delete(t.Context(), leaving); err != nil {
		t.Fatal(err)
	}
	r := newReconciler(c, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
	for _, name := range []string{poolName.Name, "foreign"} {
		if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "models", Name: name}}); err != nil {
			t.Fatal(err)
		}
	}
	pickers := newPickersReconciler(c, settings(), clock.RealClock{}) // its EnvoyFilter is no pool's
	if _, err := pickers.Reconcile(t.Context(), reconcile.Request{NamespacedName: waypointName}); err != nil {
		t.Fatal(err)
	}
	got, err := watched(t.Context(), c, settings())
	if err != nil {
		t.Fatal(err)
	}
	want := []waypointwatch.Waypoint{{
		Name: waypointName,
		Pools: []waypointwatch.Pool{
			{Name: types.NamespacedName{Namespace: "models", Name: "foreign"}, Duplex: true},
			{Name: poolName, ByDefault: true},
		},
		Pods: []waypointwatch.Pod{{UID: "a", Address: netip.MustParseAddr("10.0.0.1")}, {UID: "b", Address: netip.MustParseAddr("10.0.0.2")}},
	}}
	slices.SortFunc(got[0].Pools, func(a, b waypointwatch.Pool) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
		t.Errorf("watched (-want +got):\n%s", diff)
	}
}

// The list of waypoints is made again only after an event of an object that it depends on, and after a failure.
func TestWatchedAtRest(t *testing.T) {
	inner, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	reads, refused := 0, error(nil)
	c := interceptor.NewClient(inner.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			reads++
			if refused != nil {
				return refused
			}
			return c.List(ctx, list, opts...)
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			reads++
			return c.Get(ctx, key, o, opts...)
		},
	})
	reconcileOnce(t, newReconciler(inner, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{}), reconcile.Result{})
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	informers := &informertest.FakeInformers{Scheme: scheme}
	w := newWatchedWaypoints(c, informers, settings())
	look := func() (got []waypointwatch.Waypoint, read bool) {
		t.Helper()
		reads = 0
		got, err := w.get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return got, reads > 0
	}
	if got, read := look(); len(got) != 1 || len(got[0].Pools) != 1 || len(got[0].Pods) != 0 || !read {
		t.Fatalf("at first: %+v, read %t", got, read)
	}
	for range 3 {
		if got, read := look(); len(got) != 1 || read {
			t.Errorf("at rest: %+v, read %t", got, read)
		}
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "a", UID: "a", Labels: map[string]string{gatewayNameLabel: "shared"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	if err := inner.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	ours := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{
		Labels: map[string]string{pool.OwnedLabel: "true"}, Annotations: map[string]string{pool.OwnerAnnotation: "models/llama"},
	}}
	for _, event := range []struct {
		what   string
		object client.Object
		want   bool
	}{
		{"a pod", pod, true},
		{"an EnvoyFilter of ours", ours, true},
		{"an EnvoyFilter of another's", &networkingv1alpha3.EnvoyFilter{}, false},
		{"a Service", pickerService(), true},
	} {
		informer, err := informers.FakeInformerFor(t.Context(), event.object)
		if err != nil {
			t.Fatal(err)
		}
		for how, happens := range map[string]func(){
			"made":    func() { informer.Add(event.object) },
			"changed": func() { informer.Update(event.object, event.object) },
			"gone":    func() { informer.Delete(event.object) },
		} {
			happens()
			if got, read := look(); read != event.want || len(got[0].Pods) != 1 {
				t.Errorf("after %s is %s: %+v, read %t", event.what, how, got, read)
			}
			if _, again := look(); again {
				t.Errorf("after %s is %s: read twice", event.what, how)
			}
		}
	}
	informer, err := informers.FakeInformerFor(t.Context(), pod)
	if err != nil {
		t.Fatal(err)
	}
	informer.Update(pod, pod)
	refused = context.DeadlineExceeded
	if _, err := w.get(t.Context()); err == nil {
		t.Error("a list that cannot be had is no error")
	}
	refused = nil
	if _, read := look(); !read {
		t.Error("what could not be read is not read again")
	}
}

// The cache keeps only pods of Gateways and of the picker's namespace, and only the fields that the watches need.
func TestPodsInTheCache(t *testing.T) {
	whole := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u", Labels: map[string]string{gatewayNameLabel: "w", "a": "b"}, Annotations: map[string]string{"c": "d"}},
		Spec:       corev1.PodSpec{NodeName: "node", Containers: []corev1.Container{{Name: "n", Ports: []corev1.ContainerPort{{Name: "grpc", ContainerPort: 1}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", Message: "m",
			Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	ofWaypoint := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u", Labels: map[string]string{gatewayNameLabel: "w"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
	ofPicker := ofWaypoint.DeepCopy()
	ofPicker.Labels["a"] = "b"
	ofPicker.Spec.NodeName = "node"
	ofPicker.Spec.Containers = []corev1.Container{{Ports: whole.Spec.Containers[0].Ports}}
	ofPicker.Status.Conditions = whole.Status.Conditions[1:]
	for o, by := range CacheOptions(settings()).ByObject {
		if _, pods := o.(*corev1.Pod); !pods {
			continue
		}
		if len(by.Namespaces) != 2 {
			t.Errorf("pods are kept of %v", by.Namespaces)
		}
		for namespace, want := range map[string]struct {
			label string
			pod   *corev1.Pod
		}{cache.AllNamespaces: {gatewayNameLabel, ofWaypoint}, "inference-system": {"", ofPicker}} {
			config := by.Namespaces[namespace]
			if config.LabelSelector == nil || config.LabelSelector.String() != want.label {
				t.Errorf("pods of %q are selected by %v", namespace, config.LabelSelector)
			}
			kept, err := config.Transform(whole.DeepCopy())
			if diff := cmp.Diff(want.pod, kept); diff != "" || err != nil {
				t.Errorf("of %q: %v (-want +got):\n%s", namespace, err, diff)
			}
		}
		return
	}
	t.Error("the cache holds all pods of the cluster")
}

// The cache keeps no managedFields of other writers.
func TestManagedFieldsInTheCache(t *testing.T) {
	o := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "another"}}}}
	kept, err := CacheOptions(settings()).DefaultTransform(o)
	if err != nil || len(kept.(client.Object).GetManagedFields()) > 0 {
		t.Errorf("kept %+v, %v", kept, err)
	}
}
