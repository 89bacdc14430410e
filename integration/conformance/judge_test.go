package conformance

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// controllerName is our controller's name in statuses.
const controllerName = "inference-waypoint.io/controller"

// testLimit bounds every test but the weighted one. The slowest of the others, which waits twice for 5 s, takes 12 s.
const testLimit = 90 * time.Second

// judge is the suite's client. Istio's controller writes into the same statuses. The judge removes these entries, so that a
// check that passes has read ours. It also ends a test at its limit, where the suite would wait five minutes for each
// condition that does not come.
type judge struct {
	client.Client

	mu    sync.Mutex
	test  *testing.T
	limit time.Duration
	until time.Time
}

// begin makes t the current test, with a limit.
func (j *judge) begin(t *testing.T, limit time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.test, j.limit, j.until = t, limit, time.Now().Add(limit)
}

// Get may end the test, as the test's own goroutine calls it.
func (j *judge) Get(ctx context.Context, key client.ObjectKey, object client.Object, options ...client.GetOption) error {
	j.mu.Lock()
	test, limit, until := j.test, j.limit, j.until
	j.mu.Unlock()
	if test != nil && time.Now().After(until) {
		test.Fatalf("not within %s; it last looked at %T %s", limit, object, key)
	}
	if err := j.Client.Get(ctx, key, object, options...); err != nil {
		return err
	}
	switch o := object.(type) {
	case *gatewayv1.HTTPRoute:
		o.Status.Parents = slices.DeleteFunc(o.Status.Parents, func(p gatewayv1.RouteParentStatus) bool { return p.ControllerName != controllerName })
	case *inferencev1.InferencePool:
		o.Status.Parents = slices.DeleteFunc(o.Status.Parents, func(p inferencev1.ParentStatus) bool { return p.ControllerName != controllerName })
	}
	return nil
}
