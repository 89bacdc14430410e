package reconcile

import (
	"context"
	"testing"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
)

// Uninstall deletes the controller's objects and status entries. Objects and status entries of others stay.
func TestUninstall(t *testing.T) {
	ctx := context.Background()
	theirs := foreignEntry("elsewhere.example")
	p := somePool()
	p.Status.Parents = []inferencev1.ParentStatus{{
		ControllerName: "example.com/another",
		ParentRef:      inferencev1.ParentReference{Name: "theirs", Namespace: "models"},
	}}
	c, _ := newClient(t, p, namespace(), waypoint(), pickerService(), theirs)
	reconcileOnce(t, newReconciler(c, events.NewFakeRecorder(16), settings(), handover.Times{}, clock.RealClock{}), reconcile.Result{})
	wantObjects(t, c, []string{"infra"}, []string{"elsewhere", "models"})

	for range 2 { // the second time there is nothing left to do
		if err := Uninstall(ctx, c, "inference-system", 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Get(ctx, client.ObjectKeyFromObject(theirs), &networkingv1.ServiceEntry{}); err != nil {
		t.Errorf("another's ServiceEntry: %v", err)
	}
	if err := c.Delete(ctx, theirs); err != nil {
		t.Fatal(err)
	}
	wantObjects(t, c, nil, nil)
	var got inferencev1.InferencePool
	if err := c.Get(ctx, poolName, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Status.Parents) != 1 || got.Status.Parents[0].ControllerName != "example.com/another" {
		t.Errorf("the pool's status is %+v, want the other controller's entry alone", got.Status.Parents)
	}
}
