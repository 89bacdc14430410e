package reconcile

import (
	"context"
	"slices"
	"sync"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// waypointReconciler creates and deletes the waypoints that Namespaces ask for by WaypointLabel.
type waypointReconciler struct {
	client  client.Client
	objects apply.Set
	events  events.EventRecorder
	times   handover.Times
	clock   clock.PassiveClock

	mu           sync.Mutex
	unboundSince map[types.NamespacedName]time.Time // since when nothing is bound to an unwanted waypoint
}

// namespaceOwner is the owner of a namespace's waypoint.
func namespaceOwner(namespace string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: "waypoint"}
}

// Reconcile is called with a namespace's name whenever the namespace, or a Gateway there, may have changed.
func (r *waypointReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	g := newReader(ctx, r.client, translate.Settings{}, nil)
	ns := get[corev1.Namespace](g, request.NamespacedName)
	if g.err != nil || ns == nil || ns.DeletionTimestamp != nil {
		return reconcile.Result{}, g.err // Kubernetes deletes its Gateways with it
	}
	want, problem := translate.NamespaceWaypoint(ns)
	var desired []client.Object
	if want != nil && !r.madeByOthers(g, client.ObjectKeyFromObject(want)) {
		desired = append(desired, want)
	}
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	stay, again := r.stay(g, ns.Name, want)
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	changes, err := r.objects.Sync(ctx, namespaceOwner(ns.Name), desired, apply.Leaving{Stay: stay})
	if len(changes) > 0 {
		r.events.Eventf(ns, nil, corev1.EventTypeNormal, "Synced", "Sync", "%s", note(describe(changes)))
	}
	if problem != nil {
		r.events.Eventf(ns, nil, corev1.EventTypeWarning, "InvalidWaypoint", "Translate", "%s", note(problem.Error()))
	}
	return requeue(err, reconcile.Result{RequeueAfter: again}, nil)
}

// stay are the unwanted waypoints that must not be deleted yet: they stay until nothing is bound to them, and then for the
// drain time.
func (r *waypointReconciler) stay(g *reader, namespace string, want *gatewayv1.Gateway) (names map[types.NamespacedName]bool, again time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock.Now()
	names = map[types.NamespacedName]bool{}
	for _, w := range list[gatewayv1.Gateway](g, &gatewayv1.GatewayList{}, apply.OwnerIndex, namespaceOwner(namespace).String()) {
		name := client.ObjectKeyFromObject(w)
		if want != nil && name == client.ObjectKeyFromObject(want) {
			delete(r.unboundSince, name)
			continue
		}
		rest := r.times.Settle // while a host is bound, check again after this time
		if r.bound(g, name) {
			delete(r.unboundSince, name)
		} else {
			if r.unboundSince[name].IsZero() {
				r.unboundSince[name] = now
			}
			rest = r.times.Drain - now.Sub(r.unboundSince[name])
		}
		if rest <= 0 {
			delete(r.unboundSince, name)
			continue
		}
		names[name] = true
		again = handover.Sooner(again, rest)
	}
	return names, again
}

// bound reports whether a pool's host is bound to a waypoint of its namespace.
func (r *waypointReconciler) bound(g *reader, waypoint types.NamespacedName) bool {
	var entries networkingv1.ServiceEntryList
	if g.err == nil {
		g.err = r.client.List(g.ctx, &entries, client.InNamespace(waypoint.Namespace), client.HasLabels{pool.OwnedLabel})
	}
	return slices.ContainsFunc(entries.Items, func(e *networkingv1.ServiceEntry) bool { return translate.BoundTo(e) == waypoint })
}

// madeByOthers reports whether somebody else made the Gateway. It is then used as it is.
func (r *waypointReconciler) madeByOthers(g *reader, name types.NamespacedName) bool {
	live := get[gatewayv1.Gateway](g, name)
	if live == nil {
		return false
	}
	owner, ours := apply.Owner(live)
	return !ours || owner != namespaceOwner(name.Namespace)
}

// namespacesOf is the namespace of a Gateway.
func namespacesOf(_ context.Context, o client.Object) []reconcile.Request {
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: o.GetNamespace()}}}
}
