package reconcile

import (
	"context"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
)

// fakePicking has verdicts by pool.
type fakePicking map[types.NamespacedName]observed

func (f fakePicking) Verdict(at waypointwatch.Place) (waypointwatch.Verdict, waypointwatch.Counts) {
	if at.Waypoint != waypointName {
		return waypointwatch.Verdict{}, waypointwatch.Counts{}
	}
	return f[at.Pool].Verdict, f[at.Pool].Counts
}

// pickedOf is the condition Picked of a pool, as "status reason: message".
func pickedOf(t *testing.T, c client.Client, name types.NamespacedName) string {
	t.Helper()
	var p inferencev1.InferencePool
	if err := c.Get(t.Context(), name, &p); err != nil {
		t.Fatal(err)
	}
	for _, parent := range p.Status.Parents {
		if found := meta.FindStatusCondition(parent.Conditions, poolstatus.Picked); found != nil {
			return string(found.Status) + " " + found.Reason + ": " + found.Message
		}
	}
	return ""
}

// TestPickedCondition goes through what a waypoint may count, one after the other, for one pool.
func TestPickedCondition(t *testing.T) {
	calls := fakePicking{}
	c, writes := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	recorder := events.NewFakeRecorder(64)
	r := newReconciler(c, recorder, settings(), handover.Times{}, clock.RealClock{})
	reconcileOnce(t, r, reconcile.Result{})
	if got := pickedOf(t, c, poolName); got != "" {
		t.Errorf("where nobody watches, the status says %q", got)
	}
	r.picking = calls
	refused := waypointwatch.Verdict{State: waypointwatch.Unpicked, Cause: waypointwatch.Refused}
	for _, step := range []struct {
		seen  observed
		mode  string
		want  string
		event string // one that is told; all others must not be
	}{
		{want: ""},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.NotCalled}}, want: "Unknown NotCalled: no call has come"},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Picked}}, want: "True Picked: calls are picked"},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Idle}}, want: "True Idle: calls were picked, the last one more than 10 minutes ago"},
		{seen: observed{refused, waypointwatch.Counts{Asked: 7, Unpicked: 5}}, want: "False Unpicked: a tenth of the calls or more are spread over the endpoints without a pick: the waypoint's connections",
			event: "Warning Unpicked waypoint infra/shared: 5 of 7 calls of the last 30 s without a pick"},
		{seen: observed{refused, waypointwatch.Counts{Asked: 70, Unpicked: 70}}, want: "False Unpicked: "},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Unpicked, Cause: waypointwatch.TooSlow}}, want: "False Unpicked: a tenth of the calls or more are spread over the endpoints without a pick: the picker does not answer in time"},
		{seen: observed{Verdict: refused}, mode: "FailClose", want: "False Unpicked: a tenth of the calls or more are refused: "},
		// A restarted controller knows no calls yet, so the condition stays.
		{want: "False Unpicked: a tenth"},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Before}}, want: "False Unpicked: a tenth"},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Picked}}, want: "True Picked: ", event: "Normal Picked waypoint infra/shared: calls are picked again"},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Unread, Cause: waypointwatch.NotCounted}}, want: "Unknown CountersUnread: whether calls are picked is not known: the waypoint counts no picks"},
		{seen: observed{Verdict: waypointwatch.Verdict{State: waypointwatch.Before}}, want: "True Idle: no call has come since"},
	} {
		for len(recorder.Events) > 0 {
			<-recorder.Events
		}
		calls[poolName] = step.seen
		edit(t, c, func(p *inferencev1.InferencePool) {
			p.Annotations = map[string]string{"inference-waypoint.io/failure-mode": step.mode}
		})
		reconcileOnce(t, r, reconcile.Result{})
		if got := pickedOf(t, c, poolName); !strings.HasPrefix(got, step.want) || (step.want == "") != (got == "") {
			t.Errorf("the status says %q, want %q", got, step.want)
		}
		if got := accepted(t, c); !strings.HasPrefix(got, "True Accepted") {
			t.Errorf("whether calls are picked has a part in %q", got)
		}
		told := ""
		for len(recorder.Events) > 0 {
			if e := <-recorder.Events; !strings.HasPrefix(e, "Normal Synced") {
				told += e
			}
		}
		if !strings.HasPrefix(told, step.event) || (step.event == "") != (told == "") {
			t.Errorf("told %q, want %q", told, step.event)
		}
		*writes = 0
		reconcileOnce(t, r, reconcile.Result{})
		if *writes > 0 {
			t.Errorf("%d writes where nothing had changed", *writes)
		}
	}
}

// The status of a new pool is written once, and not again when its counters are read and show no call. For a pool that was
// served before the watch began, nothing is known until its counters are read.
func TestPickedOfANewPool(t *testing.T) {
	calls := fakePicking{}
	c, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	statuses := 0
	counted := interceptor.NewClient(c.(client.WithWatch), interceptor.Funcs{
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			statuses++
			return c.SubResource(sub).Patch(ctx, o, p, opts...)
		},
	})
	r := newReconciler(counted, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
	r.picking = calls
	for _, state := range []waypointwatch.State{waypointwatch.None, waypointwatch.None, waypointwatch.NotCalled} {
		calls[poolName] = observed{Verdict: waypointwatch.Verdict{State: state}}
		reconcileOnce(t, r, reconcile.Result{})
		if got := pickedOf(t, c, poolName); !strings.HasPrefix(got, "Unknown NotCalled: ") || !strings.HasPrefix(accepted(t, c), "True Accepted") {
			t.Errorf("the status says %q", got)
		}
	}
	if statuses != 1 {
		t.Errorf("%d writes of the status, want 1", statuses)
	}
}

// A pool that the waypoint does not serve has no calls to tell of.
func TestPickedOfAPoolThatIsNotServed(t *testing.T) {
	c, _ := newClient(t, somePool(), namespace(), pickerService())
	r := newReconciler(c, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
	r.picking = fakePicking{poolName: {Verdict: waypointwatch.Verdict{State: waypointwatch.Picked}}}
	reconcileOnce(t, r, reconcile.Result{})
	if got := pickedOf(t, c, poolName); got != "" {
		t.Errorf("the status says %q", got)
	}
}

// A route splits the calls to a pool's host: those that go to another pool are counted with the first.
func TestPickedByTheHostsOfOthers(t *testing.T) {
	canaryName := types.NamespacedName{Namespace: "models", Name: "canary"}
	state := func(s waypointwatch.State) observed { return observed{Verdict: waypointwatch.Verdict{State: s}} }
	for name, tt := range map[string]struct {
		own, front observed
		ownPicker  bool // the canary has a picker of its own
		want       string
	}{
		"not called itself":                    {own: state(waypointwatch.NotCalled), front: state(waypointwatch.Picked), want: "True Picked"},
		"called itself":                        {own: state(waypointwatch.Unpicked), front: state(waypointwatch.Picked), want: "False Unpicked"},
		"picked itself":                        {own: state(waypointwatch.Picked), front: state(waypointwatch.Unpicked), want: "True Picked"},
		"not picked by one picker":             {own: state(waypointwatch.NotCalled), front: state(waypointwatch.Unpicked), want: "False Unpicked"},
		"it may be the other's that fail":      {own: state(waypointwatch.NotCalled), front: state(waypointwatch.Unpicked), ownPicker: true, want: "Unknown NotCalled"},
		"picked by whomever":                   {own: state(waypointwatch.NotCalled), front: state(waypointwatch.Picked), ownPicker: true, want: "True Picked"},
		"its own calls are some time ago":      {own: state(waypointwatch.Idle), front: state(waypointwatch.NotCalled), want: "True Idle"},
		"its own counters are not there (yet)": {own: state(waypointwatch.None), front: state(waypointwatch.Picked), want: "True Picked"},
	} {
		t.Run(name, func(t *testing.T) {
			canary, port := somePool(), inferencev1.Port{Number: 9002}
			canary.Name = canaryName.Name
			epp := pickerService()
			epp.Namespace, epp.Name = "models", "epp"
			if tt.ownPicker {
				canary.Spec.EndpointPickerRef = &inferencev1.EndpointPickerRef{Name: "epp", Port: &port}
			}
			route := routeTo()
			route.Namespace = "models"
			route.Spec.Rules[0].BackendRefs[0].Name = "canary"
			c, _ := newClient(t, somePool(), canary, namespace(), waypoint(), pickerService(), epp, route)
			r := newReconciler(c, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
			r.picking = fakePicking{poolName: tt.front, canaryName: tt.own}
			if _, err := r.Reconcile(t.Context(), reconcile.Request{NamespacedName: canaryName}); err != nil {
				t.Fatal(err)
			}
			if got := pickedOf(t, c, canaryName); !strings.HasPrefix(got, tt.want+":") {
				t.Errorf("the status says %q, want %q", got, tt.want)
			}
		})
	}
}

// Every cause of a verdict has a text.
func TestCausesHaveWords(t *testing.T) {
	for cause := waypointwatch.TooSlow; cause <= waypointwatch.NotConfigured; cause++ {
		if causes[cause] == "" {
			t.Errorf("cause %d has none", cause)
		}
	}
}
