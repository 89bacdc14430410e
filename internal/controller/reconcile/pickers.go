package reconcile

import (
	"context"
	"errors"
	"slices"
	"strings"

	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/ineffective"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// pickersReconciler keeps one EnvoyFilter for each waypoint, which configures the pickers that the waypoint asks. It reads
// the pickers from the EnvoyFilters of pools, and not from pools, as these EnvoyFilters decide which pickers are asked.
type pickersReconciler struct {
	client   client.Client
	objects  apply.Set
	settings translate.Settings
}

// Reconcile is called with a waypoint's name whenever an EnvoyFilter of ours there may have changed.
func (r *pickersReconciler) Reconcile(ctx context.Context, request reconcile.Request) (reconcile.Result, error) {
	g := newReader(ctx, r.client, r.settings, nil)
	pools := list[networkingv1alpha3.EnvoyFilter](g, &networkingv1alpha3.EnvoyFilterList{}, poolFilterIndex, request.String())
	if g.err != nil {
		return reconcile.Result{}, g.err
	}
	filter, err := translate.PickersFilter(request.NamespacedName, pools, g.isOwn, r.settings)
	if err := errors.Join(err, g.err); err != nil {
		return reconcile.Result{}, err
	}
	var desired []client.Object
	if filter != nil {
		desired = append(desired, filter)
	}
	return syncOwned(ctx, r.objects, translate.WaypointOwner(request.NamespacedName), desired)
}

// syncOwned syncs the objects of an owner without a status. It logs names that are taken.
func syncOwned(ctx context.Context, objects apply.Set, owner types.NamespacedName, desired []client.Object) (reconcile.Result, error) {
	_, err := objects.Sync(ctx, owner, desired, apply.Leaving{})
	if transient(err) {
		return reconcile.Result{}, err
	}
	if taken(err) {
		ctrl.LoggerFrom(ctx).Error(err, "writing the objects of "+owner.String())
	}
	return requeue(err, reconcile.Result{}, nil)
}

// setOf makes a Set for one kind, which slows down where another writer undoes its writes.
func setOf(c client.Client, ticks clock.Clock, kind client.ObjectList) apply.Set {
	return apply.Set{Client: c, Kinds: []client.ObjectList{kind}, Contests: apply.NewContests(ticks)}
}

// taken reports whether an error has a NotOursError. Such an error leads to a retry that the queue does not log.
func taken(err error) bool {
	var notOurs *apply.NotOursError
	return errors.As(err, &notOurs)
}

// poolFilterIndex is the cache's index of our EnvoyFilters for pools, by waypoint.
const poolFilterIndex = "inference-waypoint.pool-filter"

func poolFilterKeys(o client.Object) []string {
	waypoint, ok := waypointOf(o)
	if owner, ours := apply.Owner(o); !ok || !ours || !isPool(owner) {
		return nil
	}
	return []string{waypoint.String()}
}

// isPool reports whether the owner of an object of ours is a pool, and not a waypoint or a picker.
func isPool(owner types.NamespacedName) bool { return !strings.Contains(owner.Name, "/") }

// waypointOf is the Gateway that an EnvoyFilter is attached to.
func waypointOf(o client.Object) (types.NamespacedName, bool) {
	f, ok := o.(*networkingv1alpha3.EnvoyFilter)
	if !ok {
		return types.NamespacedName{}, false
	}
	for _, target := range ineffective.Targets(f) {
		if target == gatewayObject(target.Name) {
			return target.Name, true
		}
	}
	return types.NamespacedName{}, false
}

// waypointsOf are the waypoints that one of our EnvoyFilters concerns: its target, and its owner if that is a waypoint, as
// somebody may have changed the target.
func waypointsOf(_ context.Context, o client.Object) []reconcile.Request {
	owner, ours := apply.Owner(o)
	if !ours {
		return nil
	}
	found := names{}
	if waypoint, ok := waypointOf(o); ok {
		found[waypoint] = true
	}
	if waypoint, ok := translate.OwningWaypoint(owner); ok {
		found[waypoint] = true
	}
	return found.requests()
}

func newPickersReconciler(c client.Client, settings translate.Settings, ticks clock.Clock) *pickersReconciler {
	return &pickersReconciler{c, setOf(c, ticks, &networkingv1alpha3.EnvoyFilterList{}), settings}
}

func addPickers(m manager.Manager, settings translate.Settings) error {
	return ctrl.NewControllerManagedBy(m).
		Named(name+"-pickers").
		Watches(envoyFilterKind, handler.EnqueueRequestsFromMapFunc(waypointsOf), builder.WithPredicates(asksOtherwise())).
		WithOptions(fairOptions(1)).
		Complete(newPickersReconciler(m.GetClient(), settings, clock.RealClock{}))
}

// pickerAnnotations say which pickers an EnvoyFilter of a pool asks, and whether the pool's picker is ours.
var pickerAnnotations = []string{pool.AskedPickersAnnotation, pool.AskedForPeopleAnnotation}

// asksOtherwise passes events of EnvoyFilters that may change which pickers a waypoint asks. Most changes do not.
func asksOtherwise() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, _ := waypointOf(e.ObjectOld)
		after, _ := waypointOf(e.ObjectNew)
		owner, ours := apply.Owner(e.ObjectNew)
		_, wereOurs := apply.Owner(e.ObjectOld)
		return !ours || !wereOurs || !isPool(owner) || before != after ||
			slices.ContainsFunc(pickerAnnotations, func(name string) bool {
				return e.ObjectOld.GetAnnotations()[name] != e.ObjectNew.GetAnnotations()[name]
			})
	}}
}
