package poolcontroller

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/meshconfig"
	"github.com/inference-waypoint/inference-waypoint/internal/ownedobjects"
)

// waypointReconciler keeps the waypoints that Namespaces ask for by their label.
type waypointReconciler struct {
	client  client.Client
	objects ownedobjects.Set
	events  events.EventRecorder
}

// namespaceOwner is the owner of a namespace's waypoint.
func namespaceOwner(namespace string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: "waypoint"}
}

// Reconcile is called with a namespace's name whenever it, or a Gateway there, may have changed.
func (r *waypointReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	g := newGatherer(ctx, r.client, meshconfig.Settings{})
	ns := get[corev1.Namespace](g, request.NamespacedName)
	if g.err != nil || ns == nil || ns.DeletionTimestamp != nil {
		return reconcile.Result{}, g.err // its Gateways go with it
	}
	want, problem := meshconfig.NamespaceWaypoint(ns)
	var desired []client.Object
	if want != nil && !r.others(g, client.ObjectKeyFromObject(want)) {
		desired = append(desired, want)
	}
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	changes, err := r.objects.Sync(ctx, namespaceOwner(ns.Name), desired)
	if len(changes) > 0 {
		r.events.Eventf(ns, nil, corev1.EventTypeNormal, "Synced", "Sync", "%s", note(describe(changes)))
	}
	if problem != nil {
		r.events.Eventf(ns, nil, corev1.EventTypeWarning, "InvalidWaypoint", "Translate", "%s", note(problem.Error()))
	}
	return reconcile.Result{}, err
}

// others reports whether somebody else made the Gateway: it is then used as it is.
func (r *waypointReconciler) others(g *gatherer, name types.NamespacedName) bool {
	live := get[gatewayv1.Gateway](g, name)
	if live == nil {
		return false
	}
	owner, ours := ownedobjects.Owner(live)
	return !ours || owner != namespaceOwner(name.Namespace)
}

// namespacesOf are the namespaces that a Gateway matters to.
func namespacesOf(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.GetNamespace()}}}
}
