package reconcile

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
)

// The policy admits only waypoints whose pools ask our picker, each by its own identity.
func TestAccessToPicker(t *testing.T) {
	foreign := somePool() // asks a picker of its own, at a waypoint of its own
	foreign.Name, foreign.Labels = "foreign", map[string]string{"istio.io/use-waypoint": "theirs"}
	port := inferencev1.Port{Number: 9002}
	foreign.Spec.EndpointPickerRef = &inferencev1.EndpointPickerRef{Name: "epp", Port: &port}
	epp := pickerService()
	epp.Namespace, epp.Name = "models", "epp"
	theirs, ours, picker := waypoint(), waypoint(), pickerService()
	theirs.Name = "theirs"
	picker.Spec.Selector = map[string]string{"app": "picker"}
	c, writes := newClient(t, somePool(), foreign, namespace(), ours, theirs, picker, epp)
	pools := newReconciler(c, events.NewFakeRecorder(64), settings(), handover.Times{}, clock.RealClock{})
	access := newAccessReconciler(c, settings(), clock.RealClock{})
	step := func() {
		t.Helper()
		for _, name := range []string{poolName.Name, "foreign"} {
			if _, err := pools.Reconcile(t.Context(), reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "models", Name: name}}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := access.Reconcile(t.Context(), reconcile.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	admitted := func() []string {
		t.Helper()
		var policy securityv1.AuthorizationPolicy
		err := c.Get(t.Context(), types.NamespacedName{Namespace: picker.Namespace, Name: "inference-waypoints"}, &policy)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := policy.Spec.GetSelector().GetMatchLabels()["app"]; got != "picker" {
			t.Errorf("the policy is for app=%q", got)
		}
		if got := policy.Spec.GetRules()[0].GetTo()[0].GetOperation().GetPorts(); !cmp.Equal(got, []string{"9002"}) {
			t.Errorf("the policy is for ports %v", got)
		}
		return policy.Spec.GetRules()[0].GetFrom()[0].GetSource().GetPrincipals()
	}
	want := func(principals ...string) {
		t.Helper()
		if diff := cmp.Diff(principals, admitted()); diff != "" {
			t.Errorf("admitted (-want +got):\n%s", diff)
		}
	}

	step()
	want("*/ns/infra/sa/shared")
	*writes = 0
	step()
	if *writes > 0 {
		t.Errorf("%d writes where nothing had changed", *writes)
	}
	ours.Annotations = map[string]string{"networking.istio.io/service-account": "own"}
	if err := c.Update(t.Context(), ours); err != nil {
		t.Fatal(err)
	}
	step()
	want("*/ns/infra/sa/own")
	for _, impossible := range []string{"*", "own/sa/other", strings.Repeat("a", 200<<10)} { // and so nobody is admitted
		ours.Annotations["networking.istio.io/service-account"] = impossible
		if err := c.Update(t.Context(), ours); err != nil {
			t.Fatal(err)
		}
		step()
		want()
	}
	if err := c.Delete(t.Context(), somePool(), client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	step()
	want()
}
