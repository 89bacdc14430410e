package reconcile

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// The status of a GRPCRoute says at a pool's front, and nowhere else, that the route has no effect.
func TestReconcileGRPCRoute(t *testing.T) {
	ctx := context.Background()
	front := routeTo().Spec.ParentRefs[0]
	route := &gatewayv1.GRPCRoute{
		ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "triton", Generation: 1},
		Spec:       gatewayv1.GRPCRouteSpec{CommonRouteSpec: gatewayv1.CommonRouteSpec{ParentRefs: []gatewayv1.ParentReference{front, {Name: "ingress"}}}},
	}
	route.Status.Parents = []gatewayv1.RouteParentStatus{{ParentRef: front, ControllerName: "istio.io/gateway-controller"}}
	c, writes := newClient(t, somePool(), namespace(), waypoint(), pickerService(), route)
	r := &grpcRouteReconciler{client: c, settings: settings(), now: time.Now, read: &dependents{}}
	request := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(route)}
	want := func(want ...string) {
		t.Helper()
		if _, err := r.Reconcile(ctx, request); err != nil {
			t.Fatal(err)
		}
		var now gatewayv1.GRPCRoute
		if err := c.Get(ctx, request.NamespacedName, &now); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range now.Status.Parents {
			got = append(got, fmt.Sprintf("%s at %s", p.ControllerName, p.ParentRef.Name))
			for _, condition := range p.Conditions {
				got = append(got, fmt.Sprintf("%s=%s %s", condition.Type, condition.Status, condition.Reason))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("status (-want +got):\n%s", diff)
		}
	}
	told := []string{"istio.io/gateway-controller at llama", "inference-waypoint.io/controller at llama", "Accepted=False UnsupportedValue"}
	want(told...)
	*writes = 0
	want(told...)
	if *writes > 0 {
		t.Errorf("%d writes where nothing had changed", *writes)
	}
	if got := queuedBy(somePool(), watcher{r.read, indexes(settings()), noOwner}); len(got) != 1 || got[0] != request {
		t.Errorf("an event of the pool concerns %v, want %v", got, request)
	}
	if err := Uninstall(ctx, c, "inference-system", 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx, somePool()); err != nil {
		t.Fatal(err)
	}
	want("istio.io/gateway-controller at llama")
}

// queuedBy are the GRPCRoutes that the creation of a pool matters to.
func queuedBy(p *inferencev1.InferencePool, w watcher) []reconcile.Request {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	defer queue.ShutDown()
	w.handler().Create(context.Background(), event.CreateEvent{Object: p}, queue)
	var out []reconcile.Request
	for queue.Len() > 0 {
		next, _ := queue.Get()
		out = append(out, next)
	}
	return out
}
