package reconcile

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// othersKinds are kinds that the controller reads only to report objects without effect. A cluster may lack them.
var othersKinds = []client.Object{&networkingv1.VirtualService{}, &networkingv1.DestinationRule{}}

// optionalKinds are all kinds that a cluster may lack.
var optionalKinds = append(slices.Clone(othersKinds), &gatewayv1.GRPCRoute{})

// installed reports whether the API server has a kind. If the API server does not answer it is true, and the later watch
// of the kind reports the error.
func installed(mapper meta.RESTMapper, scheme *runtime.Scheme, kind client.Object) bool {
	return !meta.IsNoMatchError(find(mapper, scheme, kind))
}

// find asks the API server for a kind. The error is a NoMatchError if the API server lacks the kind.
func find(mapper meta.RESTMapper, scheme *runtime.Scheme, kind client.Object) error {
	gvk, err := apiutil.GVKForObject(kind, scheme)
	if err == nil {
		_, err = mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	}
	return err
}

// kindsInterval is how often a controller looks for the kinds that the cluster lacked at its start.
const kindsInterval = 30 * time.Second

// AwaitKinds looks which kinds the cluster lacks now, and must be called before Add. The function that it makes returns an
// error once the cluster has one of them, and nil when its context ends. The program must then restart, as Add makes the
// watches and the cache's indexes: without the indexes every later read of the kind fails.
func AwaitKinds(mapper meta.RESTMapper, scheme *runtime.Scheme) func(context.Context) error {
	lacking := slices.DeleteFunc(slices.Clone(optionalKinds), func(kind client.Object) bool { return installed(mapper, scheme, kind) })
	return func(ctx context.Context) error {
		for len(lacking) > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(kindsInterval):
			}
			for _, kind := range lacking {
				if find(mapper, scheme, kind) == nil {
					return fmt.Errorf("the cluster now has the kind %s, which it lacked when this program started: the program exits, to start again with a watch of the kind", reflect.TypeOf(kind).Elem().Name())
				}
			}
		}
		return nil
	}
}
