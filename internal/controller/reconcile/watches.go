package reconcile

import (
	"cmp"
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
)

// names is a set of pools or routes.
type names map[types.NamespacedName]bool

func (n names) requests() []reconcile.Request {
	var out []reconcile.Request
	for name := range n {
		out = append(out, reconcile.Request{NamespacedName: name})
	}
	slices.SortFunc(out, func(a, b reconcile.Request) int { return cmp.Compare(a.String(), b.String()) })
	return out
}

// watcher finds the names to reconcile after an event of an object: names whose last reconcile read the object, or looked
// for it, and the object's owner. A name that was not reconciled yet has an event of its own.
type watcher struct {
	*dependents
	indexed []index
	// ownerOf finds the owner of an object, if any.
	ownerOf func(client.Object) (types.NamespacedName, bool)
}

func (w watcher) handler() handler.EventHandler {
	return handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		return w.names(o).requests()
	})
}

func (w watcher) names(o client.Object) names {
	out := w.of(readsOf(o, w.indexed))
	if name, ok := w.ownerOf(o); ok {
		out[name] = true
	}
	return out
}

// poolOf is the pool itself, or the pool that one of our objects was made for.
func poolOf(o client.Object) (types.NamespacedName, bool) {
	if _, is := o.(*inferencev1.InferencePool); is {
		return client.ObjectKeyFromObject(o), true
	}
	owner, ours := apply.Owner(o)
	_, gateway := o.(*gatewayv1.Gateway) // which is made for a namespace
	return owner, ours && !gateway && isPool(owner)
}

// noOwner finds no owner. It is for controllers whose own objects are queued by For.
func noOwner(client.Object) (types.NamespacedName, bool) { return types.NamespacedName{}, false }
