package reconcile

import (
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
)

// apply writes a pool's objects, as far as calls in flight allow now, and returns when to continue.
func (r *Reconciler) apply(g *reader, name types.NamespacedName, out translate.Output) ([]apply.Change, time.Duration, error) {
	if out.Keep {
		return nil, 0, nil
	}
	live := list[networkingv1alpha3.EnvoyFilter](g, &networkingv1alpha3.EnvoyFilterList{}, apply.OwnerIndex, name.String())
	var wanted []handover.Wanted
	for _, f := range out.EnvoyFilters {
		wanted = append(wanted, handover.Wanted{Filter: f.EnvoyFilter, Called: f.Called})
	}
	stays, wait := r.holdMove(g, name, out)
	if g.err != nil {
		return nil, 0, g.err
	}
	for _, f := range live {
		if at, ok := waypointOf(f); ok && at == stays {
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
	var leaving apply.Leaving
	for _, f := range plan.Leaving {
		leaving.Last = append(leaving.Last, f)
	}
	changes, err := r.objects.Sync(g.ctx, name, objects, leaving)
	return changes, handover.Sooner(wait, plan.Again), err
}

// holdMove keeps a pool's host at its old waypoint until the new one can serve it, as callers follow the host at once. If
// the old waypoint is gone, the host moves at once.
func (r *Reconciler) holdMove(g *reader, name types.NamespacedName, out translate.Output) (stays types.NamespacedName, again time.Duration) {
	if len(out.ServiceEntries) == 0 {
		return stays, 0
	}
	live := get[networkingv1.ServiceEntry](g, name)
	if g.err != nil || live == nil {
		return stays, 0
	}
	entry := out.ServiceEntries[0]
	from, to := translate.BoundTo(live), translate.BoundTo(entry)
	if owner, ours := apply.Owner(live); !ours || owner != name || from == to || from.Name == "" || to.Name == "" {
		return stays, 0
	}
	wait, ready := r.serves(g, name, to, out)
	if leaves := get[gatewayv1.Gateway](g, from); g.err != nil || ready || leaves == nil || leaves.DeletionTimestamp != nil {
		return stays, 0
	}
	translate.Rebind(entry, from)
	return from, wait
}

// serves reports whether a waypoint is ready to serve a pool's host, or when to ask again.
func (r *Reconciler) serves(g *reader, pool, waypoint types.NamespacedName, out translate.Output) (wait time.Duration, ready bool) {
	gateway := get[gatewayv1.Gateway](g, waypoint)
	if gateway == nil || !meta.IsStatusConditionTrue(gateway.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed)) {
		return 0, false // the Gateway's next change is an event
	}
	for _, f := range out.EnvoyFilters {
		if f.Waypoint == waypoint {
			wait = r.handover.Settled(pool, client.ObjectKeyFromObject(f.EnvoyFilter))
			return wait, wait == 0
		}
	}
	return 0, false
}
