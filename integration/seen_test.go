package integration

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
)

// seenWithin is the time limit for all reports that calls are not picked.
const seenWithin = 30 * time.Second

// denyYAML denies a waypoint of namespace seen access to the picker, whatever the controller admits.
const denyYAML = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-seen, namespace: inference-system}
spec:
  selector: {matchLabels: {app.kubernetes.io/name: inference-picker}}
  action: DENY
  rules:
  - from: [{source: {principals: ["*/ns/seen/sa/gpu"]}}]
    to: [{operation: {ports: ["9002"]}}]
`

// A pool counts as picked once the picks of its waypoint's calls have been seen. Where a policy keeps the waypoint from the
// picker, calls go on, or are refused, without a pick. Then status, doctor, an alert and an event say so within half a
// minute, and also when picks are back.
func TestPickingIsSeen(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	applyYAML(ctx, t, `{apiVersion: v1, kind: Namespace, metadata: {name: seen, labels: {istio.io/dataplane-mode: ambient, inference-waypoint.io/waypoint: gpu}}}`)
	for _, name := range []string{"open", "closed"} {
		serve(ctx, t, "seen", name, echoServer, 1)
	}
	must(t, the.Client.Patch(ctx, &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: "seen", Name: "closed"}}, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"inference-waypoint.io/failure-mode":"FailClose"}}}`))))
	for _, name := range []string{"open", "closed"} {
		wantCondition(ctx, t, "seen", name, "gpu", poolstatus.Picked, metav1.ConditionUnknown, "NotCalled")
	}
	eventually(ctx, t, "a waypoint that serves", func(ctx context.Context) error {
		if said := kubectl(ctx, t, "", "", "status", "-n", "seen"); !strings.Contains(said.out, "not called yet") {
			return errors.New(said.out)
		}
		return nil
	})

	startPrometheus(ctx, t)
	calls := callBoth(ctx)
	defer calls.stop()
	for _, name := range []string{"open", "closed"} {
		wantCondition(ctx, t, "seen", name, "gpu", poolstatus.Picked, metav1.ConditionTrue, "Picked")
	}

	must(t, the.ApplyYAML(ctx, denyYAML))
	closed := calls.await(ctx, t, "closed", http.StatusServiceUnavailable)
	wantUnpickedTold(ctx, t, closed.Add(seenWithin))
	if n := calls.lostBy("open"); n > 0 {
		t.Errorf("%d calls of a pool that fails open are lost", n)
	}

	withdraw(ctx, t, denyYAML)
	calls.await(ctx, t, "closed", http.StatusOK)
	for _, name := range []string{"open", "closed"} {
		wantCondition(ctx, t, "seen", name, "gpu", poolstatus.Picked, metav1.ConditionTrue, "Picked")
	}
	eventually(ctx, t, "an event that picking goes on", func(ctx context.Context) error { return wantEvent(ctx, "seen", "Picked", "picked again") })
}

// wantUnpickedTold waits until all reports name both pools.
func wantUnpickedTold(ctx context.Context, t *testing.T, until time.Time) {
	t.Helper()
	ctx, cancel := context.WithDeadlineCause(ctx, until, fmt.Errorf("not within %s of the first calls without a pick", seenWithin))
	defer cancel()
	const refused = "connections to the picker are refused"
	for _, name := range []string{"open", "closed"} {
		wantCondition(ctx, t, "seen", name, "gpu", poolstatus.Picked, metav1.ConditionFalse, "Unpicked")
		eventually(ctx, t, "an alert on pool "+name, func(ctx context.Context) error {
			return prometheus{}.has(ctx, fmt.Sprintf(`ALERTS{alertname="InferencePoolUnpicked",alertstate="firing",pool="seen/%s",waypoint="seen/gpu"}`, name))
		})
	}
	eventually(ctx, t, "an event", func(ctx context.Context) error { return wantEvent(ctx, "seen", "Unpicked", refused) })
	wantSaid(t, kubectl(ctx, t, "", "", "status", "-n", "seen"), 0, "serving blindly", "not serving", refused)
	got := kubectl(ctx, t, "", "", "doctor")
	for _, name := range []string{"open", "closed"} {
		if !strings.Contains(got.out, "failed   pool seen/"+name+":") || got.code != 1 {
			t.Errorf("doctor ends with %d and says nothing of pool %s:\n%s", got.code, name, got.out)
		}
	}
	if left := time.Until(until); left < 0 {
		t.Errorf("it took %s longer than %s", -left, seenWithin)
	}
}

// wantEvent fails unless the namespace has an event with this reason whose note contains text.
func wantEvent(ctx context.Context, namespace, reason, text string) error {
	var all eventsv1.EventList
	if err := the.Client.List(ctx, &all, client.InNamespace(namespace)); err != nil {
		return err
	}
	for _, e := range all.Items {
		if e.Reason == reason && strings.Contains(e.Note, text) {
			return nil
		}
	}
	return fmt.Errorf("none of the %d events of namespace %s is of the reason %s and says %q", len(all.Items), namespace, reason, text)
}

// bothCalled holds the outcome of steady calls to both pools of namespace seen.
type bothCalled struct {
	stop   func()
	mu     sync.Mutex
	status map[string]int // of the last call; 0 without an answer
	lost   map[string]int // calls not served, since the first that was served
}

// callBoth calls each pool ten times a second.
func callBoth(ctx context.Context) *bothCalled {
	ctx, cancel := context.WithCancel(ctx)
	out := &bothCalled{status: map[string]int{}, lost: map[string]int{}}
	var callers sync.WaitGroup
	for _, name := range []string{"open", "closed"} {
		callers.Go(func() {
			for ctx.Err() == nil {
				status := 0
				if h, err := send(ctx, http.MethodGet, "http://"+name+".seen.inference.internal/", ""); err == nil {
					status = h.Status
				}
				if ctx.Err() == nil {
					out.note(name, status)
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	out.stop = func() { cancel(); callers.Wait() }
	return out
}

func (b *bothCalled) note(name string, status int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, served := b.lost[name]; served && status != http.StatusOK {
		b.lost[name]++
	} else if status == http.StatusOK && !served {
		b.lost[name] = 0
	}
	b.status[name] = status
}

// await waits until a pool's calls have a status, and returns the time.
func (b *bothCalled) await(ctx context.Context, t *testing.T, name string, status int) time.Time {
	t.Helper()
	eventually(ctx, t, fmt.Sprintf("a call to pool %s that gets %d", name, status), func(context.Context) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		if got := b.status[name]; got != status {
			return fmt.Errorf("the last one got %d", got)
		}
		return nil
	})
	return time.Now()
}

func (b *bothCalled) lostBy(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lost[name]
}
