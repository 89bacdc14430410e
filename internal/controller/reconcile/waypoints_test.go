package reconcile

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

func TestNamespaceWaypoint(t *testing.T) {
	theirs := &gatewayv1.Gateway{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "theirs"}}
	const istios = "istio.io/use-waypoint"
	steps := []struct {
		name      string
		labels    map[string]string
		want      []string // Gateways of the namespace; ours with a star
		wantEvent string
	}{
		{"no label", nil, []string{"theirs"}, ""},
		{"labelled", map[string]string{pool.WaypointLabel: "made"}, []string{"*made", "theirs"}, "applied Gateway team/made"},
		{"another name", map[string]string{pool.WaypointLabel: "other"}, []string{"*other", "theirs"}, "applied Gateway team/other, deleted Gateway team/made"},
		{"somebody's", map[string]string{pool.WaypointLabel: "theirs"}, []string{"theirs"}, "deleted Gateway team/other"},
		{"labelled again", map[string]string{pool.WaypointLabel: "made"}, []string{"*made", "theirs"}, "applied Gateway team/made"},
		{"Istio's label too", map[string]string{pool.WaypointLabel: "made", istios: "theirs"}, []string{"theirs"}, "deleted Gateway team/made"},
		{"no name of a Gateway", map[string]string{pool.WaypointLabel: "A_b"}, []string{"theirs"}, "cannot be a waypoint's name"},
	}
	c, writes := newClient(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "team"}}, theirs)
	recorder := events.NewFakeRecorder(16)
	r := newWaypointReconciler(c, recorder, handover.Times{}, clock.RealClock{})
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			ctx := context.Background()
			var ns corev1.Namespace
			if err := c.Get(ctx, types.NamespacedName{Name: "team"}, &ns); err != nil {
				t.Fatal(err)
			}
			ns.Labels = step.labels
			if err := c.Update(ctx, &ns); err != nil {
				t.Fatal(err)
			}
			request := reconcile.Request{NamespacedName: types.NamespacedName{Name: "team"}}
			if _, err := r.Reconcile(ctx, request); err != nil {
				t.Fatal(err)
			}
			*writes = 0
			if _, err := r.Reconcile(ctx, request); err != nil {
				t.Fatal(err)
			}
			if *writes > 0 {
				t.Errorf("%d writes where nothing had changed", *writes)
			}
			if diff := cmp.Diff(step.want, gateways(t, c)); diff != "" {
				t.Errorf("Gateways (-want +got):\n%s", diff)
			}
			wantEvent(t, recorder, step.wantEvent)
		})
	}
}

func gateways(t *testing.T, c client.Client) []string {
	t.Helper()
	var list gatewayv1.GatewayList
	if err := c.List(context.Background(), &list); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, g := range list.Items {
		name := g.Name
		if _, ours := apply.Owner(&g); ours {
			name = "*" + name
		}
		out = append(out, name)
	}
	return out
}

// wantEvent reads all events and looks for a text; where it is empty there must be none.
func wantEvent(t *testing.T, recorder *events.FakeRecorder, want string) {
	t.Helper()
	var got []string
	for len(recorder.Events) > 0 {
		got = append(got, <-recorder.Events)
	}
	if all := strings.Join(got, "\n"); want == "" && all != "" || !strings.Contains(all, want) {
		t.Errorf("events %q, want %q", all, want)
	}
}
