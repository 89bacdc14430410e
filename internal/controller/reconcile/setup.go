package reconcile

import (
	"context"
	"fmt"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/source"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/handover"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
)

// name is the controller's name in logs, metrics and events.
const name = "inference-waypoint"

// parallel is how many pools, and how many routes, are reconciled at once.
const parallel = 8

// envoyFilterKind is an empty EnvoyFilter, for functions that need an object of the kind.
var envoyFilterKind client.Object = &networkingv1alpha3.EnvoyFilter{}

// Scheme knows the kinds that the controller reads and writes.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme,
		inferencev1.Install,
		gatewayv1.Install,
		gatewayv1beta1.Install, // ReferenceGrants, which older clusters have only in this version
		networkingv1.AddToScheme,
		networkingv1alpha3.AddToScheme,
		securityv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("building the scheme: %w", err)
		}
	}
	return scheme, nil
}

// Watches say how the controller looks at what is not in the API server.
type Watches struct {
	// Waypoints is the interval at which the waypoints' counters are read, to see whether calls are picked; 0 for never.
	Waypoints time.Duration
	// Pickers is the interval at which the default picker's pods are asked, to see whether their nodes are there; 0 for never.
	Pickers time.Duration
	// Node is the node on which the controller runs; empty if it is not known.
	Node string
}

// Add adds the controllers of pools, routes and namespaces to a manager. At their start every such object and every object
// of ours is an event, so that they repair changes made while no controller ran.
func Add(ctx context.Context, m manager.Manager, settings translate.Settings, times handover.Times, watch Watches) error {
	for _, i := range indexes(settings) {
		if !installed(m.GetRESTMapper(), m.GetScheme(), i.kind) {
			continue
		}
		if err := m.GetFieldIndexer().IndexField(ctx, i.kind, i.name, i.keys); err != nil {
			return fmt.Errorf("indexing %T by %s: %w", i.kind, i.name, err)
		}
	}
	recorder := m.GetEventRecorder(name)
	w := watcher{&dependents{}, indexes(settings), poolOf}
	pools := ctrl.NewControllerManagedBy(m).
		Named(name+"-pools").
		// Watches, and not For: both would queue the same pool, and the second reconcile could begin before the cache shows
		// what the first one wrote.
		Watches(&inferencev1.InferencePool{}, w.handler()).
		Watches(&networkingv1.ServiceEntry{}, w.handler()).
		Watches(envoyFilterKind, w.handler()).
		Watches(&corev1.Namespace{}, w.handler()).
		Watches(&gatewayv1.Gateway{}, w.handler()).
		Watches(&corev1.Service{}, w.handler()).
		Watches(&gatewayv1.HTTPRoute{}, w.handler()).
		Watches(&gatewayv1beta1.ReferenceGrant{}, w.handler()).
		WithOptions(fairOptions(parallel))
	for _, kind := range othersKinds {
		if installed(m.GetRESTMapper(), m.GetScheme(), kind) {
			pools = pools.Watches(kind, w.handler())
		}
	}
	reconciler := newReconciler(m.GetClient(), recorder, settings, times, clock.RealClock{})
	reconciler.read = w.dependents
	var calls *waypointwatch.Watch
	if watch.Waypoints > 0 {
		var changed <-chan event.GenericEvent
		var err error
		if calls, changed, err = addWatch(m, settings, watch.Waypoints); err != nil {
			return fmt.Errorf("adding the watch over waypoints: %w", err)
		}
		reconciler.picking = calls
		// A verdict on a pool matters also to the pools that its host's routes lead to.
		pools = pools.WatchesRawSource(source.Channel(changed, w.handler()))
	}
	err := pools.Complete(reconciler)
	if err != nil {
		return fmt.Errorf("adding the controller of pools: %w", err)
	}
	w = watcher{&dependents{}, w.indexed, noOwner}
	err = ctrl.NewControllerManagedBy(m).
		Named(name+"-routes").
		For(&gatewayv1.HTTPRoute{}).
		Watches(&gatewayv1.HTTPRoute{}, w.handler()).
		Watches(&inferencev1.InferencePool{}, w.handler()).
		Watches(&corev1.Namespace{}, w.handler()).
		Watches(&gatewayv1.Gateway{}, w.handler()).
		Watches(&corev1.Service{}, w.handler()).
		Watches(&gatewayv1beta1.ReferenceGrant{}, w.handler()).
		WithOptions(fairOptions(parallel)).
		Complete(&routeReconciler{client: m.GetClient(), events: recorder, settings: settings, now: time.Now, read: w.dependents})
	if err != nil {
		return fmt.Errorf("adding the controller of routes: %w", err)
	}
	if err := addGRPCRoutes(m, settings); err != nil {
		return fmt.Errorf("adding the controller of GRPCRoutes: %w", err)
	}
	err = ctrl.NewControllerManagedBy(m).
		Named(name+"-waypoints").
		For(&corev1.Namespace{}).
		Watches(&gatewayv1.Gateway{}, handler.EnqueueRequestsFromMapFunc(namespacesOf)).
		WithOptions(fairOptions(1)).
		Complete(newWaypointReconciler(m.GetClient(), recorder, times, clock.RealClock{}))
	if err != nil {
		return fmt.Errorf("adding the controller of waypoints: %w", err)
	}
	if err := addPickers(m, settings); err != nil {
		return fmt.Errorf("adding the controller of waypoints' pickers: %w", err)
	}
	if settings.DefaultPicker != nil {
		if err := addAccess(m, settings); err != nil {
			return fmt.Errorf("adding the controller of access to the picker: %w", err)
		}
		if watch.Pickers > 0 {
			if err := addLostPickers(m, recorder, *settings.DefaultPicker, calls, watch); err != nil {
				return fmt.Errorf("adding the watch over pickers: %w", err)
			}
		}
	}
	return nil
}

// EveryReplica is a runnable that does not wait for the lease.
type EveryReplica func(context.Context) error

// Start implements manager.Runnable.
func (f EveryReplica) Start(ctx context.Context) error { return f(ctx) }

// NeedLeaderElection implements manager.LeaderElectionRunnable.
func (EveryReplica) NeedLeaderElection() bool { return false }

func newReconciler(c client.Client, recorder events.EventRecorder, settings translate.Settings, times handover.Times, ticks clock.Clock) *Reconciler {
	contests := apply.NewContests(ticks)
	return &Reconciler{
		client: c,
		objects: apply.Set{
			Client:   c,
			Kinds:    []client.ObjectList{&networkingv1.ServiceEntryList{}, &networkingv1alpha3.EnvoyFilterList{}},
			Contests: contests,
		},
		events:   recorder,
		settings: settings,
		clock:    ticks,
		handover: handover.New(times, ticks),
		read:     &dependents{},
		contests: contests,
	}
}

func newWaypointReconciler(c client.Client, recorder events.EventRecorder, times handover.Times, ticks clock.Clock) *waypointReconciler {
	return &waypointReconciler{
		times:        times,
		clock:        ticks,
		unboundSince: map[types.NamespacedName]time.Time{},
		client:       c,
		objects:      apply.Set{Client: c, Kinds: []client.ObjectList{&gatewayv1.GatewayList{}}, Exclusive: true, Contests: apply.NewContests(ticks)},
		events:       recorder,
	}
}

// eachItem calls a function with every object of a list.
func eachItem(list client.ObjectList, do func(client.Object)) error {
	return meta.EachListItem(list, func(o runtime.Object) error {
		if c, ok := o.(client.Object); ok {
			do(c)
		}
		return nil
	})
}
