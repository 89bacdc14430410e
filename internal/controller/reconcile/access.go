package reconcile

import (
	"context"

	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// accessReconciler keeps the AuthorizationPolicy that admits waypoints to our picker. It derives the waypoints from the
// EnvoyFilters of pools: a waypoint is admitted before its routes ask the picker, and as long as calls may use them.
type accessReconciler struct {
	client   client.Client
	objects  apply.Set
	settings translate.Settings
}

// Reconcile is called whenever a waypoint, an EnvoyFilter of ours or the picker's Service may have changed.
func (r *accessReconciler) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	picker := *r.settings.DefaultPicker
	g := newReader(ctx, r.client, r.settings, nil)
	service := get[corev1.Service](g, picker.Service)
	waypoints := map[types.NamespacedName]*gatewayv1.Gateway{}
	var all networkingv1alpha3.EnvoyFilterList
	if g.err == nil {
		g.err = r.client.List(ctx, &all, client.HasLabels{pool.OwnedLabel}, client.UnsafeDisableDeepCopy)
	}
	for _, f := range all.Items {
		waypoint, ok := waypointOf(f)
		if _, ours := apply.Owner(f); ok && ours && translate.Asks(f.Annotations, picker) {
			waypoints[waypoint] = get[gatewayv1.Gateway](g, waypoint)
		}
	}
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	var desired []client.Object
	if policy := translate.PickerAccess(picker, service, waypoints); policy != nil {
		desired = append(desired, policy)
	}
	return syncOwned(ctx, r.objects, translate.PickerOwner(picker), desired)
}

func newAccessReconciler(c client.Client, settings translate.Settings, ticks clock.Clock) *accessReconciler {
	return &accessReconciler{c, setOf(c, ticks, &securityv1.AuthorizationPolicyList{}), settings}
}

func addAccess(m manager.Manager, settings translate.Settings) error {
	one := func(when func(client.Object) bool) handler.EventHandler {
		return handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			if !when(o) {
				return nil
			}
			return []reconcile.Request{{NamespacedName: settings.DefaultPicker.Service}}
		})
	}
	ours := func(o client.Object) bool { _, is := apply.Owner(o); return is }
	whatever := func(client.Object) bool { return true }
	itself := func(o client.Object) bool { return client.ObjectKeyFromObject(o) == settings.DefaultPicker.Service }
	return ctrl.NewControllerManagedBy(m).
		Named(name+"-access").
		Watches(envoyFilterKind, one(ours), builder.WithPredicates(asksOtherwise())).
		Watches(&securityv1.AuthorizationPolicy{}, one(ours)).
		Watches(&gatewayv1.Gateway{}, one(whatever)).
		Watches(&corev1.Service{}, one(itself)).
		WithOptions(fairOptions(1)).
		Complete(newAccessReconciler(m.GetClient(), settings, clock.RealClock{}))
}
