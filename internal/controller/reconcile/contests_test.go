package reconcile

import (
	"context"
	"strings"
	"testing"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
)

// TestContestedStatus removes our entry whenever it is there, as istiod does, and counts how often it is written.
func TestContestedStatus(t *testing.T) {
	c, writes := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	recorder := events.NewFakeRecorder(16)
	ticks := clocktesting.NewFakeClock(time.Unix(1000, 0))
	r := newReconciler(c, recorder, settings(), handover.Times{}, ticks)
	// Two objects and a status, one more at once, then after 1, 2, 4 … 512 and each further 600 s.
	if written := contend(t, r, ticks, writes, func() { undo(t, c) }); written < 10 || written > 20 {
		t.Errorf("%d writes in an hour", written)
	}
	wantEvent(t, recorder, "StatusContested")

	// New content is written at once.
	edit(t, c, func(p *inferencev1.InferencePool) { p.Generation++ })
	reconcileOnce(t, r, reconcile.Result{})
	if got := accepted(t, c); got != "True Accepted: the waypoint serves the pool as llama.models.inference.internal" {
		t.Errorf("status %q", got)
	}
}

// TestContestedObject changes the host's ServiceEntry whenever it is as we want it, as a second writer would.
func TestContestedObject(t *testing.T) {
	ctx := context.Background()
	c, writes := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	recorder := events.NewFakeRecorder(64)
	ticks := clocktesting.NewFakeClock(time.Unix(1000, 0))
	r := newReconciler(c, recorder, settings(), handover.Times{}, ticks)
	spoil := func() {
		var e networkingv1.ServiceEntry
		if err := c.Get(ctx, poolName, &e); err != nil {
			t.Fatal(err)
		}
		e.Spec.ExportTo = []string{"."}
		if err := c.Update(ctx, &e); err != nil {
			t.Fatal(err)
		}
	}
	// Two objects and a status; then the entry at once, after 1, 2, 4 … 512 and each further 600 s, in two writes each,
	// and the status's report of it.
	if written := contend(t, r, ticks, writes, spoil); written < 20 || written > 100 {
		t.Errorf("%d writes in an hour", written)
	}
	if got := accepted(t, c); !strings.HasPrefix(got, "False ConfigurationNotWritten: ") || !strings.Contains(got, "another writer changes ServiceEntry models/llama again and again") {
		t.Errorf("status %q", got)
	}
	// A new desired object is written at once.
	edit(t, c, func(p *inferencev1.InferencePool) { p.Spec.TargetPorts[0].Number = 8001 })
	reconcileOnce(t, r, reconcile.Result{})
}

// contend reconciles for an hour, at once after each own write and else after RequeueAfter. Another writer undoes each
// write. It counts the writes.
func contend(t *testing.T, r *Reconciler, ticks *clocktesting.FakeClock, writes *int, undo func()) int {
	t.Helper()
	*writes = 0
	for end := ticks.Now().Add(time.Hour); ticks.Now().Before(end); {
		result, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: poolName})
		if err != nil {
			t.Fatal(err)
		}
		before := *writes
		undo()
		*writes = before
		ticks.Step(max(result.RequeueAfter, time.Millisecond))
	}
	return *writes
}
