package apply

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

var owner = types.NamespacedName{Namespace: "models", Name: "llama"}

func TestSync(t *testing.T) {
	tests := map[string]struct {
		// then is done to the cluster after a first sync of before.
		before      []client.Object
		then        func(t *testing.T, c client.Client)
		after       []client.Object
		wantChanges []Change
		wantLabels  map[string]string // of Service "a", beside ours
		wantPorts   []int32           // of Service "a"; nil: it does not exist
		wantTaken   bool
	}{
		"new": {
			after:       []client.Object{service("a", 80)},
			wantChanges: []Change{change("applied", "a")},
			wantPorts:   []int32{80},
		},
		"nothing to do": {
			before:    []client.Object{service("a", 80)},
			after:     []client.Object{service("a", 80)},
			wantPorts: []int32{80},
		},
		"changed": {
			before:      []client.Object{service("a", 80)},
			after:       []client.Object{service("a", 81)},
			wantChanges: []Change{change("applied", "a")},
			wantPorts:   []int32{81},
		},
		"no longer wanted": {
			before:      []client.Object{service("a", 80), service("b", 80)},
			after:       []client.Object{service("b", 80)},
			wantChanges: []Change{change("deleted", "a")},
		},
		"a label is no longer wanted, and another's stays": {
			before: []client.Object{labelled(service("a", 80), "ours", "x")},
			then: func(t *testing.T, c client.Client) {
				edit(t, c, func(s *corev1.Service) { s.Labels["theirs"] = "y" })
			},
			after:       []client.Object{service("a", 80)},
			wantChanges: []Change{change("applied", "a")},
			wantLabels:  map[string]string{"theirs": "y"},
			wantPorts:   []int32{80},
		},
		"another changed the spec": {
			before: []client.Object{service("a", 80)},
			then: func(t *testing.T, c client.Client) {
				edit(t, c, func(s *corev1.Service) { s.Spec.Ports[0].Port = 1 })
			},
			after:       []client.Object{service("a", 80)},
			wantChanges: []Change{change("applied", "a")},
			wantPorts:   []int32{80},
		},
		"another added to the spec": {
			before: []client.Object{service("a", 80)},
			then: func(t *testing.T, c client.Client) {
				edit(t, c, func(s *corev1.Service) {
					s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "more", Port: 90})
					s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
				})
			},
			after:       []client.Object{service("a", 80)},
			wantChanges: []Change{change("applied", "a")},
			wantPorts:   []int32{80},
		},
		"the name is taken": {
			then: func(t *testing.T, c client.Client) {
				if err := c.Create(context.Background(), service("a", 7)); err != nil {
					t.Fatal(err)
				}
			},
			after:       []client.Object{service("a", 80), service("b", 80)},
			wantChanges: []Change{change("applied", "b")},
			wantPorts:   []int32{7},
			wantTaken:   true,
		},
		"the name is another owner's": {
			then: func(t *testing.T, c client.Client) {
				other := types.NamespacedName{Namespace: "models", Name: "mistral"}
				if _, err := set(c).Sync(context.Background(), other, []client.Object{service("a", 7)}, Leaving{}); err != nil {
					t.Fatal(err)
				}
			},
			after:     []client.Object{service("a", 80)},
			wantPorts: []int32{7},
			wantTaken: true,
		},
		"another's object without our mark is not pruned": {
			before: []client.Object{service("a", 80)},
			then: func(t *testing.T, c client.Client) {
				edit(t, c, func(s *corev1.Service) { delete(s.Labels, pool.OwnedLabel) })
			},
			wantPorts: []int32{80},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			c := newClient(t)
			if _, err := set(c).Sync(ctx, owner, tt.before, Leaving{}); err != nil {
				t.Fatal(err)
			}
			if tt.then != nil {
				tt.then(t, c)
			}
			changes, err := set(c).Sync(ctx, owner, tt.after, Leaving{})
			var taken *NotOursError
			if got := errors.As(err, &taken); got != tt.wantTaken || err != nil && !got {
				t.Fatalf("error %v, want a taken name: %t", err, tt.wantTaken)
			}
			if diff := cmp.Diff(tt.wantChanges, changes); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if again, _ := set(c).Sync(ctx, owner, tt.after, Leaving{}); len(again) > 0 {
				t.Errorf("a second sync wrote again: %v", again)
			}
			check(t, c, tt.wantPorts, tt.wantLabels)
		})
	}
}

// TestSyncAfterFailure checks that, where an object could not be applied, the kinds after it are left alone and nothing
// is deleted.
func TestSyncAfterFailure(t *testing.T) {
	ctx := context.Background()
	c := newClient(t)
	if _, err := set(c).Sync(ctx, owner, []client.Object{service("a", 80)}, Leaving{}); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(ctx, service("taken", 7)); err != nil {
		t.Fatal(err)
	}
	later := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "later"}}
	changes, err := set(c).Sync(ctx, owner, []client.Object{service("taken", 80), service("b", 80), later}, Leaving{})
	var taken *NotOursError
	if !errors.As(err, &taken) {
		t.Fatalf("error %v, want a taken name", err)
	}
	if diff := cmp.Diff([]Change{change("applied", "b")}, changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	check(t, c, []int32{80}, nil) // "a", which "later" may need as it is
}

// TestExclusive creates an object that another writer created since the cache was read.
func TestExclusive(t *testing.T) {
	ctx := context.Background()
	stale := interceptor.Funcs{Get: func(_ context.Context, _ client.WithWatch, key client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
		return apierrors.NewNotFound(corev1.Resource("services"), key.Name)
	}}
	for name, exclusive := range map[string]bool{"exclusive": true, "shared": false} {
		t.Run(name, func(t *testing.T) {
			c := newClient(t)
			if err := c.Create(ctx, service("a", 80)); err != nil {
				t.Fatal(err)
			}
			s := set(interceptor.NewClient(c.(client.WithWatch), stale))
			s.Exclusive = exclusive
			_, err := s.Sync(ctx, owner, []client.Object{service("a", 80)}, Leaving{})
			if got := apierrors.IsAlreadyExists(err); got != exclusive {
				t.Errorf("error %v, want that the object exists: %t", err, exclusive)
			}
		})
	}
}

func check(t *testing.T, c client.Client, wantPorts []int32, wantLabels map[string]string) {
	t.Helper()
	var got corev1.Service
	err := c.Get(context.Background(), types.NamespacedName{Namespace: "models", Name: "a"}, &got)
	if apierrors.IsNotFound(err) && wantPorts == nil {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	var ports []int32
	for _, p := range got.Spec.Ports {
		ports = append(ports, p.Port)
	}
	if diff := cmp.Diff(wantPorts, ports); diff != "" {
		t.Errorf("ports (-want +got):\n%s", diff)
	}
	if got.Spec.SessionAffinity != "" {
		t.Errorf("the spec keeps another's field: session affinity %s", got.Spec.SessionAffinity)
	}
	delete(got.Labels, pool.OwnedLabel)
	if len(got.Labels) == 0 {
		got.Labels = nil
	}
	if diff := cmp.Diff(wantLabels, got.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
}

func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithReturnManagedFields().
		WithIndex(&corev1.Service{}, OwnerIndex, OwnerKeys).Build()
}

func set(c client.Client) Set {
	return Set{Client: c, Kinds: []client.ObjectList{&corev1.ServiceList{}}}
}

func service(name string, port int32) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: name},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: port, Protocol: corev1.ProtocolTCP}}},
	}
}

func labelled(s *corev1.Service, key, value string) *corev1.Service {
	s.Labels = map[string]string{key: value}
	return s
}

func change(verb, name string) Change {
	return Change{Verb: verb, Kind: "Service", Name: types.NamespacedName{Namespace: "models", Name: name}}
}

// edit changes Service "a" as another would.
func edit(t *testing.T, c client.Client, change func(*corev1.Service)) {
	t.Helper()
	var s corev1.Service
	if err := c.Get(context.Background(), types.NamespacedName{Namespace: "models", Name: "a"}, &s); err != nil {
		t.Fatal(err)
	}
	change(&s)
	if err := c.Update(context.Background(), &s, client.FieldOwner("another")); err != nil {
		t.Fatal(err)
	}
}

// TestStrip checks that a cache keeps only the part of managedFields that shows which labels are ours and no longer wanted.
func TestStrip(t *testing.T) {
	whole := labelled(service("a", 80), "ours", "x")
	whole.Annotations = map[string]string{"note": "y"}
	fields := metav1.NewFieldsV1
	const ofSpec = `"f:spec":{"f:ports":{"k:{\"port\":80}":{".":{},"f:port":{}}}}`
	whole.ManagedFields = []metav1.ManagedFieldsEntry{
		{Manager: string(FieldOwner), Operation: metav1.ManagedFieldsOperationApply, APIVersion: "v1", FieldsType: "FieldsV1",
			FieldsV1: fields(`{"f:metadata":{"f:annotations":{"f:note":{}},"f:labels":{"f:ours":{}}},` + ofSpec + `}`)},
		{Manager: string(FieldOwner), Operation: metav1.ManagedFieldsOperationUpdate, FieldsV1: fields(`{` + ofSpec + `}`)},
		{Manager: "another", Operation: metav1.ManagedFieldsOperationApply, FieldsV1: fields(`{"f:metadata":{"f:labels":{"f:theirs":{}}}}`)},
	}
	want := whole.DeepCopy()
	want.ManagedFields = want.ManagedFields[:1]
	want.ManagedFields[0].FieldsV1 = fields(`{"f:metadata":{"f:annotations":{"f:note":{}},"f:labels":{"f:ours":{}}}}`)
	for range 2 { // what is stripped already may come once more
		got, err := Strip(whole)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v (-want +got):\n%s", err, diff)
		}
	}
	for part, key := range map[string]string{"labels": "ours", "annotations": "note"} {
		if got := ownedKeys(whole, part); !slices.Equal(got, []string{key}) {
			t.Errorf("of its %s %v are ours, want %s", part, got, key)
		}
	}
	gone := cache.DeletedFinalStateUnknown{Key: "a/b"}
	if got, err := Strip(gone); got != gone || err != nil {
		t.Errorf("of what is no object there is left %v, %v", got, err)
	}
}
