package reconcile

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// grpcRouteReconciler writes into the status of a GRPCRoute at a pool's front that the route has no effect there. The
// controller does nothing else with GRPCRoutes.
type grpcRouteReconciler struct {
	client   client.Client
	settings translate.Settings
	now      func() time.Time
	read     *dependents
}

// addGRPCRoutes adds the controller of GRPCRoutes if the cluster has that kind.
func addGRPCRoutes(m manager.Manager, settings translate.Settings) error {
	if !installed(m.GetRESTMapper(), m.GetScheme(), &gatewayv1.GRPCRoute{}) {
		m.GetLogger().Info("the cluster has no kind GRPCRoute, so the controller writes no status of GRPCRoutes")
		return nil
	}
	w := watcher{&dependents{}, indexes(settings), noOwner}
	return ctrl.NewControllerManagedBy(m).
		Named(name+"-grpcroutes").
		For(&gatewayv1.GRPCRoute{}).
		Watches(&inferencev1.InferencePool{}, w.handler()).
		Watches(&corev1.Service{}, w.handler()).
		WithOptions(fairOptions(1)).
		Complete(&grpcRouteReconciler{client: m.GetClient(), settings: settings, now: time.Now, read: w.dependents})
}

// Reconcile is called with a route's name whenever the route or a front that may be its parent has changed.
func (r *grpcRouteReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	g := newReader(ctx, r.client, r.settings, r.read.begin(request.NamespacedName))
	judge := func(route *gatewayv1.GRPCRoute) (ours []routes.Verdict) {
		for _, ref := range route.Spec.ParentRefs {
			parent := routes.ParentOf(route.Namespace, ref)
			if owner, is := translate.PoolOf(parent, g); is && g.Pool(owner) != nil {
				ours = append(ours, routes.NotServed(ref))
			}
		}
		return ours
	}
	return reconcileRoute(g, r.client, request.NamespacedName, r.now, statusOfGRPCRoute, judge, func(*gatewayv1.GRPCRoute, []routes.Verdict) {})
}
