package reconcile

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
)

func TestReconcileRoute(t *testing.T) {
	ctx := context.Background()
	elsewhere, theirNamespace := somePool(), namespace()
	elsewhere.Namespace, theirNamespace.Name = "other", "other"
	route := routeTo()
	istios := gatewayv1.RouteParentStatus{
		ParentRef: route.Spec.ParentRefs[0], ControllerName: "istio.io/gateway-controller",
		Conditions: []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted", LastTransitionTime: metav1.NewTime(time.Unix(0, 0))}},
	}
	route.Status.Parents = []gatewayv1.RouteParentStatus{istios}
	c, writes := newClient(t, somePool(), elsewhere, namespace(), theirNamespace, waypoint(), pickerService(), route)
	recorder := events.NewFakeRecorder(16)
	r := &routeReconciler{client: c, events: recorder, settings: settings(), now: time.Now, read: &dependents{}}
	once := func() {
		t.Helper()
		if _, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(route)}); err != nil {
			t.Fatal(err)
		}
	}

	once()
	const missing = "False RefNotPermitted: rule 1: no ReferenceGrant in namespace models lets HTTPRoutes of other refer to InferencePool models/llama"
	wantRoute(t, c, []string{
		"istio.io/gateway-controller Accepted=True Accepted: ",
		"inference-waypoint.io/controller Accepted=True Accepted: the waypoint serves the route",
		"inference-waypoint.io/controller ResolvedRefs=" + missing,
	})
	wantEvent(t, recorder, "RefNotPermitted")
	*writes = 0
	once()
	if *writes > 0 {
		t.Errorf("%d writes where nothing had changed", *writes)
	}
	wantEvent(t, recorder, "")

	if err := c.Create(ctx, grant("other")); err != nil {
		t.Fatal(err)
	}
	once()
	wantRoute(t, c, []string{
		"istio.io/gateway-controller Accepted=True Accepted: ",
		"inference-waypoint.io/controller Accepted=True Accepted: the waypoint serves the route",
		"inference-waypoint.io/controller ResolvedRefs=True ResolvedRefs: all references are resolved",
	})
	wantEvent(t, recorder, "")

	if err := c.Delete(ctx, elsewhere); err != nil {
		t.Fatal(err)
	}
	once()
	wantRoute(t, c, []string{"istio.io/gateway-controller Accepted=True Accepted: "})
}

func wantRoute(t *testing.T, c client.Client, want []string) {
	t.Helper()
	var route gatewayv1.HTTPRoute
	if err := c.Get(context.Background(), client.ObjectKeyFromObject(routeTo()), &route); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range route.Status.Parents {
		for _, condition := range p.Conditions {
			got = append(got, fmt.Sprintf("%s %s=%s %s: %s", p.ControllerName, condition.Type, condition.Status, condition.Reason, condition.Message))
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

// TestReconcileAcrossPools follows a route that leads to a pool of another namespace, from both ends.
func TestReconcileAcrossPools(t *testing.T) {
	ctx := context.Background()
	owner, theirNamespace := somePool(), namespace()
	owner.Namespace, theirNamespace.Name = "other", "other"
	unbound := namespace()
	unbound.Labels = nil
	c, _ := newClient(t, somePool(), owner, unbound, theirNamespace, waypoint(), pickerService(), routeTo(), grant("other"))
	r := newReconciler(c, events.NewFakeRecorder(16), settings(), handover.Times{}, clock.RealClock{})
	reconcileOnce(t, r, reconcile.Result{})
	wantObjects(t, c, nil, []string{"models"}) // its endpoints, for the waypoint that the route is at
	if got := accepted(t, c); got != "True Accepted: the waypoint serves the pool by HTTPRoute other/split" {
		t.Errorf("status %q", got)
	}
	if err := c.Delete(ctx, routeTo()); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, r, reconcile.Result{})
	wantObjects(t, c, nil, nil)
}
