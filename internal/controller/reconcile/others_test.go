package reconcile

import (
	"context"
	"strings"
	"testing"

	networkingapi "istio.io/api/networking/v1alpha3"
	typeapi "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
)

// othersRules is a VirtualService of namespace models for a host.
func othersRules(host string) *networkingv1.VirtualService {
	v := &networkingv1.VirtualService{ObjectMeta: metav1.ObjectMeta{Namespace: "models", Name: "rules"}}
	v.Spec.Hosts, v.Spec.Http = []string{host}, []*networkingapi.HTTPRoute{{Name: "faulty"}, {}}
	return v
}

// othersFilter is an EnvoyFilter that changes the routes of what it is attached to.
func othersFilter(namespace, group, kind, name string) *networkingv1alpha3.EnvoyFilter {
	f := &networkingv1alpha3.EnvoyFilter{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "theirs"}}
	f.Spec.TargetRefs = []*typeapi.PolicyTargetReference{{Group: group, Kind: kind, Name: name}}
	f.Spec.ConfigPatches = []*networkingapi.EnvoyFilter_EnvoyConfigObjectPatch{{ApplyTo: networkingapi.EnvoyFilter_HTTP_ROUTE}}
	return f
}

// The pool's status names objects without effect while they exist, and one event reports them. The pool stays accepted.
func TestReconcileTellsIneffectiveConfig(t *testing.T) {
	ctx := context.Background()
	rule := &networkingv1.DestinationRule{ObjectMeta: metav1.ObjectMeta{Namespace: "infra", Name: "rule"}}
	rule.Spec.Host, rule.Spec.TrafficPolicy = "*.inference.internal", &networkingapi.TrafficPolicy{Tls: &networkingapi.ClientTLSSettings{}}
	tests := map[string]struct {
		object client.Object
		want   string
	}{
		"VirtualService":            {othersRules("llama.models.inference.internal"), "VirtualService models/rules"},
		"VirtualService of a front": {othersRules("front"), "VirtualService models/rules"},
		"DestinationRule":           {rule, "DestinationRule infra/rule"},
		"EnvoyFilter":               {othersFilter("infra", "gateway.networking.k8s.io", "Gateway", "shared"), "EnvoyFilter infra/theirs"},
		"EnvoyFilter of a front":    {othersFilter("models", "", "Service", "front"), "EnvoyFilter models/theirs"},
		"EnvoyFilter of the class":  {othersFilter("istio-system", "gateway.networking.k8s.io", "GatewayClass", "istio-waypoint"), "EnvoyFilter istio-system/theirs"},
		"EnvoyFilter of the host":   {othersFilter("models", "networking.istio.io", "ServiceEntry", "llama"), "EnvoyFilter models/theirs"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			front := frontService("llama")
			front.Spec.Ports = pickerService().Spec.Ports
			c, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService(), front)
			recorder := events.NewFakeRecorder(16)
			r := newReconciler(c, recorder, settings(), handover.Times{}, clock.RealClock{})
			reconcileOnce(t, r, reconcile.Result{})
			if got := ineffectiveOf(t, c); got != "" {
				t.Errorf("told of nothing: %q", got)
			}
			if err := c.Create(ctx, tt.object); err != nil {
				t.Fatal(err)
			}
			warnings(recorder)
			for range 2 {
				reconcileOnce(t, r, reconcile.Result{})
			}
			if got := ineffectiveOf(t, c); !strings.Contains(got, tt.want+" (") {
				t.Errorf("the status tells %q, want %q", got, tt.want)
			}
			if got := accepted(t, c); !strings.HasPrefix(got, "True Accepted: ") {
				t.Errorf("status %q, want that the pool is served", got)
			}
			if got := warnings(recorder); len(got) != 1 || !strings.Contains(got[0], "IneffectiveConfig waypoint infra/shared: ") || !strings.Contains(got[0], tt.want) {
				t.Errorf("warnings %q, want one of %q", got, tt.want)
			}
			if err := c.Delete(ctx, tt.object); err != nil {
				t.Fatal(err)
			}
			reconcileOnce(t, r, reconcile.Result{})
			if got := ineffectiveOf(t, c); got != "" {
				t.Errorf("the status still tells %q", got)
			}
			if got := warnings(recorder); len(got) > 0 {
				t.Errorf("warnings %q of what is gone", got)
			}
		})
	}
}

// ineffectiveOf is the message of the condition at the pool's only parent; empty without the condition.
func ineffectiveOf(t *testing.T, c client.Client) string {
	t.Helper()
	var p inferencev1.InferencePool
	if err := c.Get(context.Background(), poolName, &p); err != nil {
		t.Fatal(err)
	}
	if condition := meta.FindStatusCondition(p.Status.Parents[0].Conditions, poolstatus.IneffectiveConfig); condition != nil {
		return condition.Message
	}
	return ""
}

// warnings are the recorder's so far.
func warnings(recorder *events.FakeRecorder) []string {
	var out []string
	for len(recorder.Events) > 0 {
		if event := <-recorder.Events; strings.HasPrefix(event, "Warning ") {
			out = append(out, event)
		}
	}
	return out
}

// A pool is served in a cluster without VirtualServices and DestinationRules.
func TestReconcileWithoutOthersKinds(t *testing.T) {
	c, _ := newClient(t, somePool(), namespace(), waypoint(), pickerService())
	lacking := interceptor.NewClient(c.(client.WithWatch), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			switch list.(type) {
			case *networkingv1.VirtualServiceList, *networkingv1.DestinationRuleList:
				return &meta.NoKindMatchError{}
			}
			return c.List(ctx, list, opts...)
		},
	})
	reconcileOnce(t, newReconciler(lacking, events.NewFakeRecorder(16), settings(), handover.Times{}, clock.RealClock{}), reconcile.Result{})
	if got := accepted(t, c); !strings.HasPrefix(got, "True Accepted: ") {
		t.Errorf("status %q", got)
	}
}

func TestInstalled(t *testing.T) {
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(networkingv1.SchemeGroupVersion.WithKind("VirtualService"), meta.RESTScopeNamespace)
	if !installed(mapper, scheme, &networkingv1.VirtualService{}) {
		t.Error("a kind that the API server has is not installed")
	}
	if installed(mapper, scheme, &networkingv1.DestinationRule{}) {
		t.Error("a kind that the API server lacks is installed")
	}
}

// Fields that the cache drops change no finding.
func TestStrip(t *testing.T) {
	rules := othersRules("llama.models.inference.internal")
	rules.Annotations = map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "long"}
	rules.ManagedFields = []metav1.ManagedFieldsEntry{{}}
	rule := &networkingv1.DestinationRule{}
	rule.Spec.Host, rule.Spec.Subsets = "a.b", []*networkingapi.Subset{{Name: "one"}, {Name: "two"}}
	for _, o := range []client.Object{rules, rule} {
		if _, err := strip(o); err != nil {
			t.Fatal(err)
		}
	}
	if len(rules.Annotations) > 0 || len(rules.ManagedFields) > 0 || len(rules.Spec.Http) != 1 || rules.Spec.Http[0].Name != "" || len(rule.Spec.Subsets) != 1 {
		t.Errorf("kept more than is looked at: %v %v", rules, rule)
	}
	if len(ineffective.VirtualServiceHosts(rules, "cluster.local")) != 1 || len(ineffective.DestinationRuleHosts(rule, "cluster.local")) != 1 {
		t.Error("dropped what is looked at")
	}
}
