package reconcile

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
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
	reads := r.read.begin(request.NamespacedName)
	g := newReader(ctx, r.client, r.settings, reads)
	route := get[gatewayv1.GRPCRoute](g, request.NamespacedName)
	switch {
	case g.err != nil:
		return reconcile.Result{}, g.err
	case route == nil || route.DeletionTimestamp != nil:
		reads.forget()
		return reconcile.Result{}, nil
	}
	var ours []routes.Verdict
	for _, ref := range route.Spec.ParentRefs {
		parent := routes.ParentOf(route.Namespace, ref)
		if owner, is := translate.PoolOf(parent, g); is && g.Pool(owner) != nil {
			ours = append(ours, routes.NotServed(ref))
		}
	}
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	reads.end()
	next, changed, err := withVerdicts(route, statusOfGRPCRoute, ours, r.now())
	if err != nil || !changed {
		return reconcile.Result{}, err
	}
	switch err := writeRouteStatus(ctx, r.client, "GRPCRoute", route, next); {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	case client.IgnoreNotFound(err) != nil: // the route may have been deleted meanwhile
		return reconcile.Result{}, err
	}
	return reconcile.Result{}, nil
}
