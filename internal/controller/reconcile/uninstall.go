package reconcile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"
	inferencev1 "sigs.k8s.io/gateway-api-inference-extension/api/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/poolstatus"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/poolkey"
)

// Uninstall deletes every object that a controller made, and removes its entries from every status. Pools and routes stay.
// No controller may run meanwhile: it would make the objects again. Uninstall goes on after an error, and can be repeated
// without harm. The client must not read from a cache.
//
// No call is lost to a Service that was a pool's front: calls go to the Service's own endpoints. A waypoint serves a
// connection with its old filter chain until the chain is drained. So the routes that the chain fetches, and the clusters,
// stay for the drain time after the chain's patches are gone. In the picker's namespace Uninstall deletes the policy that
// admits waypoints to the picker, and the key.
func Uninstall(ctx context.Context, c client.Client, pickerNamespace string, drain time.Duration) error {
	withdrawn, err := withdrawFilters(ctx, c)
	errs := []error{err}
	if withdrawn {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(drain):
		}
	}
	for _, kind := range []client.ObjectList{&networkingv1alpha3.EnvoyFilterList{}, &networkingv1.ServiceEntryList{}, &gatewayv1.GatewayList{}} {
		errs = append(errs, deleteOwned(ctx, c, kind))
	}
	errs = append(errs, deleteOwned(ctx, c, &securityv1.AuthorizationPolicyList{}, client.InNamespace(pickerNamespace)), poolkey.Delete(ctx, c, pickerNamespace))
	return errors.Join(append(errs, clearPools(ctx, c), clearRoutes(ctx, c), clearGRPCRoutes(ctx, c))...)
}

// chained are the kinds of patches that change filter chains.
var chained = []networkingapi.EnvoyFilter_ApplyTo{networkingapi.EnvoyFilter_HTTP_FILTER, networkingapi.EnvoyFilter_NETWORK_FILTER}

// withdrawFilters removes the patches of filter chains from our EnvoyFilters, and reports whether there were any.
func withdrawFilters(ctx context.Context, c client.Client) (bool, error) {
	var list networkingv1alpha3.EnvoyFilterList
	if err := c.List(ctx, &list, client.HasLabels{pool.OwnedLabel}); err != nil {
		return false, fmt.Errorf("listing our EnvoyFilters: %w", err)
	}
	withdrawn := false
	var errs []error
	for _, f := range list.Items {
		before, n := f.DeepCopy(), len(f.Spec.GetConfigPatches())
		f.Spec.ConfigPatches = slices.DeleteFunc(f.Spec.GetConfigPatches(), func(p *networkingapi.EnvoyFilter_EnvoyConfigObjectPatch) bool {
			return slices.Contains(chained, p.GetApplyTo())
		})
		if _, ours := apply.Owner(f); !ours || len(f.Spec.ConfigPatches) == n {
			continue
		}
		withdrawn = true
		if err := c.Patch(ctx, f, client.MergeFrom(before), apply.FieldOwner); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("withdrawing EnvoyFilter %s: %w", client.ObjectKeyFromObject(f), err))
		}
	}
	return withdrawn, errors.Join(errs...)
}

func deleteOwned(ctx context.Context, c client.Client, kind client.ObjectList, where ...client.ListOption) error {
	if err := c.List(ctx, kind, append(where, client.HasLabels{pool.OwnedLabel})...); err != nil {
		return fmt.Errorf("listing our objects in a %T: %w", kind, err)
	}
	var errs []error
	err := eachItem(kind, func(o client.Object) {
		if _, ours := apply.Owner(o); !ours {
			return
		}
		uid := o.GetUID()
		if err := c.Delete(ctx, o, client.Preconditions{UID: &uid}); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("deleting %T %s: %w", o, client.ObjectKeyFromObject(o), err))
		}
	})
	return errors.Join(append(errs, err)...)
}

func clearPools(ctx context.Context, c client.Client) error {
	var pools inferencev1.InferencePoolList
	if err := c.List(ctx, &pools); err != nil {
		return fmt.Errorf("listing pools: %w", err)
	}
	var errs []error
	for i := range pools.Items {
		p := &pools.Items[i]
		errs = append(errs, clearStatus(ctx, c, p, func() (client.Object, bool, error) {
			parents, changed, err := poolstatus.Merge(p.Status.Parents, nil, p.Generation, time.Time{})
			next := p.DeepCopy()
			next.Status.Parents = parents
			return next, changed, err
		}))
	}
	return errors.Join(errs...)
}

func clearRoutes(ctx context.Context, c client.Client) error {
	var list gatewayv1.HTTPRouteList
	if err := c.List(ctx, &list); err != nil {
		return fmt.Errorf("listing HTTPRoutes: %w", err)
	}
	var errs []error
	for i := range list.Items {
		errs = append(errs, clearRoute(ctx, c, &list.Items[i], statusOfHTTPRoute))
	}
	return errors.Join(errs...)
}

func clearGRPCRoutes(ctx context.Context, c client.Client) error {
	var list gatewayv1.GRPCRouteList
	switch err := c.List(ctx, &list); {
	case meta.IsNoMatchError(err): // the cluster has no kind GRPCRoute
		return nil
	case err != nil:
		return fmt.Errorf("listing GRPCRoutes: %w", err)
	}
	var errs []error
	for i := range list.Items {
		errs = append(errs, clearRoute(ctx, c, &list.Items[i], statusOfGRPCRoute))
	}
	return errors.Join(errs...)
}

func clearRoute[R interface {
	client.Object
	DeepCopy() R
}](ctx context.Context, c client.Client, route R, status func(R) *gatewayv1.RouteStatus) error {
	return clearStatus(ctx, c, route, func() (client.Object, bool, error) {
		return withVerdicts(route, status, nil, time.Time{})
	})
}

// clearStatus writes the status that cleared makes of the live object. If another controller wrote the status meanwhile, it
// reads the object and tries again.
func clearStatus(ctx context.Context, c client.Client, live client.Object, cleared func() (client.Object, bool, error)) error {
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		next, changed, err := cleared()
		if err != nil || !changed {
			return err
		}
		base := live.DeepCopyObject().(client.Object)
		err = c.Status().Patch(ctx, next, client.MergeFromWithOptions(base, client.MergeFromWithOptimisticLock{}), apply.FieldOwner)
		if err != nil {
			return errors.Join(err, c.Get(ctx, client.ObjectKeyFromObject(live), live))
		}
		return nil
	})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("clearing the status of %T %s: %w", live, client.ObjectKeyFromObject(live), err)
	}
	return nil
}
