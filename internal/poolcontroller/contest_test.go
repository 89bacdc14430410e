package poolcontroller

import (
	"context"
	"testing"
	"time"

	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
)

// TestContestedStatus removes our entry whenever it is there, as istiod does, and counts how often it is written.
func TestContestedStatus(t *testing.T) {
	ctx := context.Background()
	c, writes := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	recorder := events.NewFakeRecorder(16)
	r := newReconciler(c, recorder, settings())
	start := time.Unix(1000, 0)
	now := start
	r.now = func() time.Time { return now }
	written := 0
	for elapsed := time.Duration(0); elapsed < time.Hour; {
		*writes = 0
		result, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: poolName})
		if err != nil {
			t.Fatal(err)
		}
		written += *writes
		undo(t, c)
		elapsed += max(result.RequeueAfter, time.Millisecond)
		now = start.Add(elapsed)
	}
	// Two objects and a status, one more at once, then after 1, 2, 4 … 512 and each further 600 s.
	if written < 10 || written > 20 {
		t.Errorf("%d writes in an hour", written)
	}
	wantEvent(t, recorder, "StatusContested")

	// What is new is said at once.
	edit(t, c, func(p *inferencev1.InferencePool) { p.Generation++ })
	if _, err := r.Reconcile(ctx, reconcile.Request{NamespacedName: poolName}); err != nil {
		t.Fatal(err)
	}
	if got := accepted(t, c); got != "True Accepted: the waypoint serves the pool as llama.models.inference.internal" {
		t.Errorf("status %q", got)
	}
}
