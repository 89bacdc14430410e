package poolcontroller

import (
	"context"
	"fmt"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/meshconfig"
	"github.com/inference-waypoint/inference-waypoint/internal/ownedobjects"
)

// name is the controller's in logs, metrics and events.
const name = "inference-waypoint"

// parallel is how many pools are reconciled at once: a reconcile mostly waits for the API server.
const parallel = 8

// Scheme knows the kinds that the controller reads and writes.
func Scheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme,
		inferencev1.Install,
		gatewayv1.Install,
		networkingv1.AddToScheme,
		networkingv1alpha3.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("building the scheme: %w", err)
		}
	}
	return scheme, nil
}

// Add adds the controller to a manager. At its start every pool and every object of ours is an event, so that what
// changed while no controller ran is set right, including the objects of pools that went away meanwhile.
func Add(ctx context.Context, m manager.Manager, settings meshconfig.Settings) error {
	for _, kind := range []client.Object{&networkingv1.ServiceEntry{}, &networkingv1alpha3.EnvoyFilter{}} {
		if err := m.GetFieldIndexer().IndexField(ctx, kind, ownedobjects.OwnerIndex, ownedobjects.OwnerKeys); err != nil {
			return fmt.Errorf("indexing %T by owner: %w", kind, err)
		}
	}
	r := newReconciler(m.GetClient(), m.GetEventRecorder(name), settings)
	return ctrl.NewControllerManagedBy(m).
		Named(name).
		For(&inferencev1.InferencePool{}).
		Watches(&networkingv1.ServiceEntry{}, handler.EnqueueRequestsFromMapFunc(ownerOf)).
		Watches(&networkingv1alpha3.EnvoyFilter{}, handler.EnqueueRequestsFromMapFunc(ownerOf)).
		Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(r.poolsIn)).
		Watches(&gatewayv1.Gateway{}, handler.EnqueueRequestsFromMapFunc(r.poolsAt)).
		Watches(&corev1.Service{}, handler.EnqueueRequestsFromMapFunc(r.poolsPickedBy)).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).
		Complete(r)
}

// ownerOf is the pool that one of our objects is for.
func ownerOf(_ context.Context, o client.Object) []reconcile.Request {
	owner, ok := ownedobjects.Owner(o)
	if !ok {
		return nil
	}
	return []reconcile.Request{{NamespacedName: owner}}
}

// poolsIn are the pools of a namespace, whose labels may bind them to a waypoint.
func (r *Reconciler) poolsIn(ctx context.Context, namespace client.Object) []reconcile.Request {
	return r.pools(ctx, namespace.GetName(), func(*inferencev1.InferencePool) bool { return true })
}

// poolsAt are the pools that are bound to a Gateway.
func (r *Reconciler) poolsAt(ctx context.Context, gateway client.Object) []reconcile.Request {
	at := client.ObjectKeyFromObject(gateway)
	namespaces := map[string]*corev1.Namespace{}
	return r.pools(ctx, "", func(p *inferencev1.InferencePool) bool {
		if _, read := namespaces[p.Namespace]; !read {
			// A namespace that cannot be read has no labels; the pool's own reconcile meets the error.
			namespaces[p.Namespace], _ = get[corev1.Namespace](ctx, r.client, types.NamespacedName{Name: p.Namespace})
		}
		waypoint, bound := meshconfig.WaypointOf(p, namespaces[p.Namespace])
		return bound && waypoint == at
	})
}

// poolsPickedBy are the pools whose picker a Service is.
func (r *Reconciler) poolsPickedBy(ctx context.Context, service client.Object) []reconcile.Request {
	at, namespace := client.ObjectKeyFromObject(service), service.GetNamespace()
	if r.settings.DefaultPicker != nil && r.settings.DefaultPicker.Service == at {
		namespace = "" // pools anywhere
	}
	return r.pools(ctx, namespace, func(p *inferencev1.InferencePool) bool {
		picker, named := meshconfig.PickerOf(p, r.settings)
		return named && picker.Service == at
	})
}

// pools lists the pools of a namespace, or of all, that a condition holds for. They are read from the cache and not
// copied: the condition must not change them.
func (r *Reconciler) pools(ctx context.Context, namespace string, keep func(*inferencev1.InferencePool) bool) []reconcile.Request {
	var list inferencev1.InferencePoolList
	if err := r.client.List(ctx, &list, client.InNamespace(namespace), client.UnsafeDisableDeepCopy); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "listing pools")
		return nil
	}
	var out []reconcile.Request
	for i := range list.Items {
		if keep(&list.Items[i]) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
		}
	}
	return out
}

func newReconciler(c client.Client, recorder events.EventRecorder, settings meshconfig.Settings) *Reconciler {
	return &Reconciler{
		client: c,
		objects: ownedobjects.Set{
			Client: c,
			Kinds:  []client.ObjectList{&networkingv1.ServiceEntryList{}, &networkingv1alpha3.EnvoyFilterList{}},
		},
		events:   recorder,
		settings: settings,
		now:      time.Now,
	}
}
