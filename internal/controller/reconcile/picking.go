package reconcile

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// picking has verdicts on whether calls to pools are picked at waypoints.
type picking interface {
	Verdict(at waypointwatch.Place) (waypointwatch.Verdict, waypointwatch.Counts)
}

// observed is the verdict on the calls to a pool at a waypoint, with their counts.
type observed struct {
	waypointwatch.Verdict
	waypointwatch.Counts
}

// observedAt is the verdict on the calls to a pool at a waypoint, over all hosts. Waypoints count a call for the pool whose host
// it names, even if a route sends the call to another pool. Calls to the pool's own hosts decide. If there are none, the
// pool counts as picked if the calls at another pool's host are. If those are unpicked, the pool counts as unpicked only if
// both pools ask the same picker, as the failing calls may be those of the other pool.
func (r *Reconciler) observedAt(name, waypoint types.NamespacedName, calledBy []types.NamespacedName, in translate.Cluster) observed {
	of := func(pool types.NamespacedName) observed {
		verdict, counts := r.picking.Verdict(waypointwatch.Place{Pool: pool, Waypoint: waypoint})
		return observed{verdict, counts}
	}
	best := of(name)
	if best.State == waypointwatch.Picked || best.State == waypointwatch.Unpicked {
		return best
	}
	picker, _ := translate.PickerOf(in.Pool(name), r.settings)
	for _, owner := range calledBy {
		other := of(owner)
		if owner == name || in.Pool(owner) == nil {
			continue
		}
		asks, _ := translate.PickerOf(in.Pool(owner), r.settings)
		if other.State > best.State && (other.State != waypointwatch.Unpicked || asks == picker) {
			best = other
		}
	}
	return best
}

// judgePicking sets the condition Picked of each parent that serves the pool.
func (r *Reconciler) judgePicking(name types.NamespacedName, out *translate.Output, in translate.Cluster) map[types.NamespacedName]observed {
	if r.picking == nil || in.Pool(name) == nil {
		return nil
	}
	p, _ := pool.FromAPI(in.Pool(name)) // the translation reports errors
	all := map[types.NamespacedName]observed{}
	for i := range out.Parents {
		parent := &out.Parents[i]
		if !parent.Accepted.OK() {
			continue
		}
		all[parent.Gateway] = r.observedAt(name, parent.Gateway, out.CalledBy[parent.Gateway], in)
		verdict := all[parent.Gateway].Verdict
		if verdict.State == waypointwatch.None && !parent.Known(in.Pool(name).Status.Parents) {
			verdict.State = waypointwatch.NotCalled // the waypoint has just begun to serve the pool. Its counters will say the same, without a second write
		}
		parent.Picking = pickedCondition(verdict, p.FailureMode)
	}
	return all
}

// pickedCondition makes the condition Picked of a verdict. It has no numbers, so that the status does not change at each reading.
func pickedCondition(v waypointwatch.Verdict, mode pool.FailureMode) poolstatus.Picking {
	say := func(reason inferencev1.InferencePoolReason, format string, args ...any) poolstatus.Picking {
		return poolstatus.Picking{Verdict: poolstatus.Verdict{Reason: reason, Message: fmt.Sprintf(format, args...)}}
	}
	switch v.State {
	case waypointwatch.Picked:
		return say(poolstatus.ReasonPicked, "calls are picked")
	case waypointwatch.Idle:
		return say(poolstatus.ReasonIdle, "calls were picked, the last one more than 10 minutes ago")
	case waypointwatch.Before:
		out := say(poolstatus.ReasonIdle, "no call has come since the controller began to watch; calls came before")
		out.Keep = true
		return out
	case waypointwatch.NotCalled:
		return say(poolstatus.ReasonNotCalled, "no call has come by the waypoint yet")
	case waypointwatch.Unpicked:
		become := "are spread over the endpoints without a pick"
		if mode == pool.FailClose {
			become = "are refused"
		}
		return say(poolstatus.ReasonUnpicked, "a tenth of the calls or more %s: %s", become, causes[v.Cause])
	case waypointwatch.Unread:
		return say(poolstatus.ReasonCountersUnread, "whether calls are picked is not known: %s", causes[v.Cause])
	default:
		return poolstatus.Picking{Keep: true}
	}
}

// causes are the causes' texts in a status, each with where to look.
var causes = map[waypointwatch.Cause]string{
	waypointwatch.TooSlow: "the picker does not answer in time",
	waypointwatch.Refused: "the waypoint's connections to the picker are refused or break; look at AuthorizationPolicies and NetworkPolicies at the picker, " +
		"and at its pods",
	waypointwatch.Turned:     "the picker refuses some calls or breaks their streams",
	waypointwatch.NotReached: "no pod of the waypoint shows its counters at port 15090; a NetworkPolicy may keep the controller away",
	waypointwatch.NoPods:     "no pod of the waypoint runs",
	waypointwatch.NotCounted: "the waypoint counts no picks; install Istio with the proxyStatsMatcher of manifests/istio/overlay.yaml, and restart the waypoint's pods",
	waypointwatch.NotConfigured: "the waypoint counts the picks of other pools and not of this one; it may have refused its configuration: " +
		"see istiod's log",
}

// emitPickingEvents emits events when calls to a pool are no longer picked, with their number, and when they are picked again.
func (r *Reconciler) emitPickingEvents(p *inferencev1.InferencePool, parents []poolstatus.Parent, all map[types.NamespacedName]observed) {
	for _, parent := range parents {
		told := parent.SaidOfPicking(p.Status.Parents)
		was := told != nil && told.Reason == string(poolstatus.ReasonUnpicked)
		switch reason := parent.Picking.Reason; {
		case reason == poolstatus.ReasonUnpicked && !was:
			n := all[parent.Gateway].Counts
			r.events.Eventf(p, nil, corev1.EventTypeWarning, string(reason), "Watch", "%s",
				note(fmt.Sprintf("waypoint %s: %d of %d calls of the last 30 s without a pick: %s", parent.Gateway, n.Unpicked, n.Asked, parent.Picking.Message)))
		case reason == poolstatus.ReasonPicked && was:
			r.events.Eventf(p, nil, corev1.EventTypeNormal, string(reason), "Watch", "%s", note(fmt.Sprintf("waypoint %s: calls are picked again", parent.Gateway)))
		}
	}
}

// addWatch adds the watch over waypoints to a manager. The channel gets each pool whose verdict has changed.
func addWatch(m manager.Manager, settings translate.Settings, interval time.Duration) (*waypointwatch.Watch, <-chan event.GenericEvent, error) {
	changed := make(chan event.GenericEvent)
	log := m.GetLogger().WithName("waypoint-watch")
	failing := false
	waypoints := newWatchedWaypoints(m.GetClient(), m.GetCache(), settings)
	watch := waypointwatch.New(waypointwatch.StatsPort,
		func(ctx context.Context) ([]waypointwatch.Waypoint, error) {
			out, err := waypoints.get(ctx)
			failing = failing && err != nil
			return out, err
		},
		func(ctx context.Context, name types.NamespacedName) {
			select {
			case changed <- event.GenericEvent{Object: poolNamed(name)}:
			case <-ctx.Done():
			}
		},
		func(err error) {
			if !failing {
				log.Error(err, "listing the waypoints to watch; whether calls are picked is unknown until this succeeds")
			}
			failing = true
		},
	)
	if err := metrics.Registry.Register(watch); err != nil {
		return nil, nil, fmt.Errorf("registering the metrics of waypoints: %w", err)
	}
	return watch, changed, m.Add(manager.RunnableFunc(func(ctx context.Context) error {
		watch.Run(ctx, interval)
		return nil
	}))
}

func poolNamed(name types.NamespacedName) *inferencev1.InferencePool {
	return &inferencev1.InferencePool{ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name}}
}
