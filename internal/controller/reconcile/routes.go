package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/routes"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// routeReconciler writes our part of an HTTPRoute's status. The route itself takes effect in the objects of the pools at
// whose fronts it is.
type routeReconciler struct {
	client   client.Client
	events   events.EventRecorder
	settings translate.Settings
	now      func() time.Time
	read     *dependents
}

// Reconcile is called with a route's name whenever something that its status depends on may have changed.
func (r *routeReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	g := newReader(ctx, r.client, r.settings, r.read.begin(request.NamespacedName))
	judge := func(route *gatewayv1.HTTPRoute) []routes.Verdict {
		return translate.RouteVerdicts(route, g, r.settings)
	}
	return reconcileRoute(g, r.client, request.NamespacedName, r.now, statusOfHTTPRoute, judge, r.emitEvents)
}

// routeObject is a pointer to a type of routes.
type routeObject[T, R any] interface {
	object[T]
	DeepCopy() R
}

// reconcileRoute reads a route, judges it, and writes the verdicts into its status. It calls tell after a write that changed
// the status.
func reconcileRoute[T any, R routeObject[T, R]](g *reader, c client.Client, name types.NamespacedName, now func() time.Time, status func(R) *gatewayv1.RouteStatus, judge func(R) []routes.Verdict, tell func(R, []routes.Verdict)) (reconcile.Result, error) {
	route := R(get[T, R](g, name))
	switch {
	case g.err != nil:
		return reconcile.Result{}, g.err
	case route == nil || route.GetDeletionTimestamp() != nil:
		g.noted.forget()
		return reconcile.Result{}, nil
	}
	verdicts := judge(route)
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	g.noted.end()
	next, changed, err := withVerdicts(route, status, verdicts, now())
	if err != nil || !changed {
		return reconcile.Result{}, err
	}
	switch err := writeRouteStatus(g.ctx, c, route, next); {
	case apierrors.IsConflict(err):
		return reconcile.Result{RequeueAfter: conflictRetry}, nil
	case err != nil:
		return reconcile.Result{}, client.IgnoreNotFound(err) // the route may have been deleted meanwhile
	}
	tell(route, verdicts)
	return reconcile.Result{}, nil
}

func statusOfHTTPRoute(r *gatewayv1.HTTPRoute) *gatewayv1.RouteStatus { return &r.Status.RouteStatus }
func statusOfGRPCRoute(r *gatewayv1.GRPCRoute) *gatewayv1.RouteStatus { return &r.Status.RouteStatus }

// withVerdicts returns a copy of a route with these verdicts as our part of its status, and whether the copy differs.
func withVerdicts[R interface {
	client.Object
	DeepCopy() R
}](route R, status func(R) *gatewayv1.RouteStatus, ours []routes.Verdict, now time.Time) (next R, changed bool, err error) {
	const controller = gatewayv1.GatewayController(poolstatus.ControllerName)
	parents, changed, err := routes.MergeStatus(status(route).Parents, ours, controller, route.GetGeneration(), now)
	next = route.DeepCopy()
	status(next).Parents = parents
	return next, changed, err
}

// writeRouteStatus writes a route's status. The list of parents is replaced as a whole, so the write fails if another
// controller has written its entry since the route was read.
func writeRouteStatus(ctx context.Context, c client.Client, before, next client.Object) error {
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := c.Status().Patch(ctx, next, patch, apply.FieldOwner); err != nil {
		return fmt.Errorf("writing the status of %T %s: %w", before, client.ObjectKeyFromObject(before), err)
	}
	return nil
}

// emitEvents emits events about new faults of the route.
func (r *routeReconciler) emitEvents(route *gatewayv1.HTTPRoute, verdicts []routes.Verdict) {
	var said []metav1.Condition
	for _, p := range route.Status.Parents {
		if p.ControllerName == gatewayv1.GatewayController(poolstatus.ControllerName) {
			said = append(said, p.Conditions...)
		}
	}
	for _, v := range verdicts {
		for _, c := range v.Conditions() {
			wrong := (c.Status == metav1.ConditionTrue) == (c.Type == string(gatewayv1.RouteConditionPartiallyInvalid))
			known := slices.ContainsFunc(said, func(s metav1.Condition) bool { return s.Type == c.Type && s.Message == c.Message })
			if wrong && !known {
				r.events.Eventf(route, nil, corev1.EventTypeWarning, c.Reason, "Translate", "%s", note(c.Message))
			}
		}
	}
}
