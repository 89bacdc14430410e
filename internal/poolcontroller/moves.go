package poolcontroller

import (
	"context"
	"fmt"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/meshconfig"
	"github.com/inference-waypoint/inference-waypoint/internal/ownedobjects"
)

// apply brings a pool's objects to what they should be, as far as calls in flight allow it now, and says when to go on.
func (r *Reconciler) apply(ctx context.Context, name types.NamespacedName, out meshconfig.Output) ([]ownedobjects.Change, time.Duration, error) {
	if out.Keep {
		return nil, 0, nil
	}
	live, err := r.liveFilters(ctx, name)
	if err != nil {
		return nil, 0, err
	}
	var wanted []handover.Wanted
	for _, f := range out.EnvoyFilters {
		wanted = append(wanted, handover.Wanted{Filter: f.EnvoyFilter, Called: f.Called})
	}
	stays, wait, err := r.holdMove(ctx, name, out)
	if err != nil {
		return nil, 0, err
	}
	for _, f := range live {
		if stays != (types.NamespacedName{}) && waypointOf(f) == stays {
			wanted = append(wanted, handover.Wanted{Filter: f, Called: true})
		}
	}
	plan := r.handover.Plan(name, wanted, live)
	var objects []client.Object
	for _, f := range plan.Now {
		objects = append(objects, f)
	}
	for _, e := range out.ServiceEntries {
		objects = append(objects, e)
	}
	var leaving ownedobjects.Leaving
	for _, f := range plan.Leaving {
		leaving.Last = append(leaving.Last, f)
	}
	changes, err := r.objects.Sync(ctx, name, objects, leaving)
	return changes, soonest(wait, plan.Again), err
}

func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

func (r *Reconciler) liveFilters(ctx context.Context, owner types.NamespacedName) ([]*networkingv1alpha3.EnvoyFilter, error) {
	var list networkingv1alpha3.EnvoyFilterList
	if err := r.client.List(ctx, &list, client.MatchingFields{ownedobjects.OwnerIndex: owner.String()}); err != nil {
		return nil, fmt.Errorf("listing the EnvoyFilters of pool %s: %w", owner, err)
	}
	return list.Items, nil
}

// waypointOf is the waypoint that an EnvoyFilter of ours is for.
func waypointOf(f *networkingv1alpha3.EnvoyFilter) types.NamespacedName {
	out := types.NamespacedName{Namespace: f.Namespace}
	for _, t := range f.Spec.GetTargetRefs() {
		out.Name = t.GetName()
	}
	return out
}

// holdMove keeps a pool's host at the waypoint that it is to leave, until the one that it goes to can serve it: callers
// follow the host at once. A host goes at once where the waypoint that it is to leave is gone.
func (r *Reconciler) holdMove(ctx context.Context, name types.NamespacedName, out meshconfig.Output) (stays types.NamespacedName, again time.Duration, err error) {
	if len(out.ServiceEntries) == 0 {
		return stays, 0, nil
	}
	g := newGatherer(ctx, r.client, r.settings)
	live := get[networkingv1.ServiceEntry](g, name)
	if g.err != nil || live == nil {
		return stays, 0, g.err
	}
	entry := out.ServiceEntries[0]
	from, to := meshconfig.BoundTo(live), meshconfig.BoundTo(entry)
	if owner, ours := ownedobjects.Owner(live); !ours || owner != name || from == to || from.Name == "" || to.Name == "" {
		return stays, 0, nil
	}
	wait, ready := r.serves(g, name, to, out)
	if leaves := get[gatewayv1.Gateway](g, from); g.err != nil || ready || leaves == nil || leaves.DeletionTimestamp != nil {
		return stays, 0, g.err
	}
	meshconfig.Rebind(entry, from)
	return from, wait, nil
}

// serves reports whether a waypoint can take a pool's host over, or when to ask again.
func (r *Reconciler) serves(g *gatherer, pool, waypoint types.NamespacedName, out meshconfig.Output) (wait time.Duration, ready bool) {
	gateway := get[gatewayv1.Gateway](g, waypoint)
	if gateway == nil || !meta.IsStatusConditionTrue(gateway.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed)) {
		return 0, false // it is an event when that changes
	}
	for _, f := range out.EnvoyFilters {
		if f.Waypoint == waypoint {
			wait = r.handover.Settled(pool, client.ObjectKeyFromObject(f.EnvoyFilter))
			return wait, wait == 0
		}
	}
	return 0, false
}
