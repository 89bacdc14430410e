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

// controllerName is ours in statuses.
const controllerName = "inference-waypoint.io/controller"

// testLimit bounds a test, but for the weighted one. Of the others the slowest, which waits twice for 5 s, takes 12 s.
const testLimit = 90 * time.Second

// judge is the client by which the suite looks at the cluster. Istio's controller writes into the same statuses: its
// words are taken out, so that a check that passes has read ours. And where the suite would wait for five minutes for
// each condition that does not come, the test ends at its limit.
type judge struct {
	client.Client

	mu    sync.Mutex
	test  *testing.T
	limit time.Duration
	until time.Time
}

// begin makes t the test that is bounded from now on.
func (j *judge) begin(t *testing.T, limit time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.test, j.limit, j.until = t, limit, time.Now().Add(limit)
}

// Get is called by the test itself, so it may end it.
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
