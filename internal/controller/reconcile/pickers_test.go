package reconcile

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// A waypoint has one EnvoyFilter for the pickers of all its pools, from the first pool there to the last.
func TestPickersOfWaypoint(t *testing.T) {
	second := somePool()
	second.Name = "second"
	c, writes := newClient(t, somePool(), second, namespace(), waypoint(), pickerService())
	pools := newReconciler(c, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
	pickers := newPickersReconciler(c, settings(), clock.RealClock{})
	both := []types.NamespacedName{poolName, {Namespace: "models", Name: "second"}}
	step := func() {
		t.Helper()
		for _, name := range both {
			if _, err := pools.Reconcile(t.Context(), reconcile.Request{NamespacedName: name}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := pickers.Reconcile(t.Context(), reconcile.Request{NamespacedName: waypointName}); err != nil {
			t.Fatal(err)
		}
	}

	step()
	filters := filtersOf(t, c, translate.WaypointOwner(waypointName))
	if len(filters) != 1 || len(filters[0].Spec.ConfigPatches) != 1 {
		t.Fatalf("the waypoint has %v, want one EnvoyFilter with one patch", filters)
	}
	*writes = 0
	step() // the pools' own reconciles leave it alone
	if *writes > 0 {
		t.Errorf("%d writes where nothing had changed", *writes)
	}

	// An event of any of the three is one of the waypoint, and that of its own EnvoyFilter is none of a pool's.
	want := []reconcile.Request{{NamespacedName: waypointName}}
	for _, f := range slices.Concat(filters, filtersOf(t, c, poolName)) {
		if diff := cmp.Diff(want, waypointsOf(t.Context(), f)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", f.Name, diff)
		}
	}
	if got := (watcher{pools.read, indexes(settings()), poolOf}).names(filters[0]); len(got) > 0 {
		t.Errorf("it matters to pools %v", got)
	}

	for _, name := range both {
		if err := c.Delete(t.Context(), &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}); err != nil {
			t.Fatal(err)
		}
	}
	step()
	wantObjects(t, c, nil, nil)
}

func filtersOf(t *testing.T, c client.Client, owner types.NamespacedName) []*networkingv1alpha3.EnvoyFilter {
	t.Helper()
	var out networkingv1alpha3.EnvoyFilterList
	if err := c.List(t.Context(), &out, client.MatchingFields{apply.OwnerIndex: owner.String()}); err != nil {
		t.Fatal(err)
	}
	return out.Items
}
