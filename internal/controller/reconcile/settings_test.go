package reconcile

import (
	"context"
	"strings"
	"testing"

	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
)

// One event reports wrong picker settings whenever they change, and the pool is served all the same.
func TestReconcileTellsWrongSettings(t *testing.T) {
	c, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	recorder := events.NewFakeRecorder(16)
	r := newReconciler(c, recorder, settings(), handover.Times{}, clock.RealClock{})
	steps := []struct {
		name        string
		annotations map[string]string // without the prefix; nil deletes the pool and makes it again
		want        []string          // in the one event; none where there is to be no event
	}{
		{"right ones", map[string]string{"spread": "3", "session-header": "x-session"}, nil},
		{"two wrong ones", map[string]string{"spread": "much", "sesion-header": "x"}, []string{
			"Warning InvalidPickerSettings", "the defaults apply", `inference-waypoint.io/pick-spread is "much"`, "pick-sesion-header",
		}},
		{"the same, looked at again", map[string]string{"spread": "much", "sesion-header": "x"}, nil},
		{"one set right", map[string]string{"spread": "much"}, []string{`pick-spread is "much"`}},
		{"all set right", map[string]string{"spread": "3"}, nil},
		{"wrong again", map[string]string{"spread": "much"}, []string{`pick-spread is "much"`}},
		{"of a pool that is made anew", nil, []string{`pick-spread is "much"`}},
		{"so wrong that an event does not take it", map[string]string{strings.Repeat("x", 2000): ""}, []string{"..."}},
	}
	for _, step := range steps {
		if step.annotations == nil {
			var p inferencev1.InferencePool
			if err := c.Get(context.Background(), poolName, &p); err != nil {
				t.Fatal(err)
			}
			if err := c.Delete(context.Background(), &p); err != nil {
				t.Fatal(err)
			}
			reconcileOnce(t, r, reconcile.Result{})
			again := somePool()
			again.Annotations = p.Annotations
			if err := c.Create(context.Background(), again); err != nil {
				t.Fatal(err)
			}
		} else {
			edit(t, c, func(p *inferencev1.InferencePool) {
				p.Annotations = map[string]string{}
				for name, value := range step.annotations {
					p.Annotations["inference-waypoint.io/pick-"+name] = value
				}
			})
		}
		reconcileOnce(t, r, reconcile.Result{})
		wantSettingsEvent(t, step.name, recorder, step.want)
		if got := accepted(t, c); !strings.HasPrefix(got, "True Accepted: ") {
			t.Errorf("%s: status %q, want that the pool is served", step.name, got)
		}
	}
}

// wantSettingsEvent reads all events so far and checks the one of them about settings, if there is to be one.
func wantSettingsEvent(t *testing.T, step string, recorder *events.FakeRecorder, want []string) {
	t.Helper()
	var got []string
	for len(recorder.Events) > 0 {
		if event := <-recorder.Events; strings.Contains(event, invalidSettings) {
			got = append(got, event)
		}
	}
	if (want == nil) != (len(got) == 0) || len(got) > 1 {
		t.Fatalf("%s: events about settings are %q, want %q in one", step, got, want)
	}
	for _, text := range want {
		if !strings.Contains(got[0], text) || len(got[0]) > maxNote+100 {
			t.Errorf("%s: the event does not tell of %q: %s", step, text, got[0])
		}
	}
}
