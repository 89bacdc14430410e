package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"istio.io/api/label"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/apply"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/translate"
	"github.com/inference-waypoint/inference-waypoint/internal/controller/waypointwatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// watchedWaypoints is the list of the waypoints to watch. The watch asks for the list every few seconds. As the list depends
// on all EnvoyFilters of pools, it is made again only after an event of an EnvoyFilter, Service or pod.
type watchedWaypoints struct {
	client    client.Reader
	informers cache.Informers
	settings  translate.Settings
	// unfollowed are the kinds without an event handler yet.
	unfollowed []client.Object
	// stale says that last may be out of date.
	stale atomic.Bool
	last  []waypointwatch.Waypoint
}

func newWatchedWaypoints(c client.Reader, informers cache.Informers, settings translate.Settings) *watchedWaypoints {
	out := &watchedWaypoints{
		client: c, informers: informers, settings: settings,
		unfollowed: []client.Object{envoyFilterKind, &corev1.Service{}, &corev1.Pod{}},
	}
	out.stale.Store(true)
	return out
}

// get is called from one goroutine at a time. Callers must not change the result.
func (w *watchedWaypoints) get(ctx context.Context) ([]waypointwatch.Waypoint, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	if err := w.follow(ctx); err != nil {
		return nil, err
	}
	if !w.stale.Swap(false) { // before the list is made, so that an event meanwhile marks the list as stale
		return w.last, nil
	}
	out, err := watched(ctx, w.client, w.settings)
	if err != nil {
		w.stale.Store(true)
		return nil, err
	}
	w.last = out
	return out, nil
}

// follow adds event handlers that mark the list as stale. It does so only when the list is first asked for: the manager waits
// for informers at its start, and a controller that may not read pods must serve pools all the same.
func (w *watchedWaypoints) follow(ctx context.Context) error {
	for len(w.unfollowed) > 0 {
		kind := w.unfollowed[0]
		informer, err := w.informers.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
		if err == nil {
			_, err = informer.AddEventHandler(w.handler())
		}
		if err != nil {
			return fmt.Errorf("following the events of a %T: %w", kind, err)
		}
		w.unfollowed = w.unfollowed[1:]
	}
	return nil
}

// handler handles the events that may change the list. It ignores EnvoyFilters that are not ours.
func (w *watchedWaypoints) handler() toolscache.ResourceEventHandler {
	see := func(o any) {
		if f, is := o.(*networkingv1alpha3.EnvoyFilter); is {
			if _, ours := apply.Owner(f); !ours {
				return
			}
		}
		w.stale.Store(true)
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    see,
		UpdateFunc: func(before, after any) { see(before); see(after) },
		DeleteFunc: see,
	}
}

// gatewayNameLabel is Istio's label for the Gateway's name on the pods of a waypoint.
var gatewayNameLabel = label.IoK8sNetworkingGatewayGatewayName.Name

// listTimeout is how long the cache may take to list waypoints. It answers at once, unless it is not filled because the
// controller may not read pods.
const listTimeout = 5 * time.Second

// watched are the waypoints that EnvoyFilters of pools target, with their running pods.
func watched(ctx context.Context, c client.Reader, settings translate.Settings) ([]waypointwatch.Waypoint, error) {
	g := newReader(ctx, c, settings, nil)
	var filters networkingv1alpha3.EnvoyFilterList
	g.err = c.List(ctx, &filters, client.HasLabels{pool.OwnedLabel}, client.UnsafeDisableDeepCopy)
	found := map[types.NamespacedName]*waypointwatch.Waypoint{}
	for _, f := range filters.Items {
		name, ok := waypointOf(f)
		owner, ours := apply.Owner(f)
		if !ok || !ours || !isPool(owner) || name.Namespace != f.Namespace {
			continue
		}
		if found[name] == nil {
			found[name] = &waypointwatch.Waypoint{Name: name}
		}
		found[name].Pools = append(found[name].Pools, waypointwatch.Pool{Name: owner, Duplex: g.asksOthers(f), ByDefault: g.asksDefault(f)})
	}
	var pods corev1.PodList
	if g.err == nil {
		g.err = c.List(ctx, &pods, client.HasLabels{gatewayNameLabel}, client.UnsafeDisableDeepCopy)
	}
	if g.err != nil {
		return nil, fmt.Errorf("listing the waypoints to watch: %w", g.err)
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int { return cmp.Compare(a.Name, b.Name) })
	for i := range pods.Items {
		pod := &pods.Items[i]
		at := found[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Labels[gatewayNameLabel]}]
		if address, runs := podAddress(pod); at != nil && runs {
			at.Pods = append(at.Pods, waypointwatch.Pod{UID: pod.UID, Address: address})
		}
	}
	var out []waypointwatch.Waypoint
	for _, at := range found {
		out = append(out, *at)
	}
	return out, nil
}

// asksOthers reports whether an EnvoyFilter asks any picker that is not ours.
func (g *reader) asksOthers(f *networkingv1alpha3.EnvoyFilter) bool {
	for _, picker := range translate.AskedBy(f) {
		if !g.isOwn(picker) {
			return true
		}
	}
	return false
}

// asksDefault reports whether an EnvoyFilter asks the default picker, and no other.
func (g *reader) asksDefault(f *networkingv1alpha3.EnvoyFilter) bool {
	asked := translate.AskedBy(f)
	return len(asked) == 1 && g.settings.DefaultPicker != nil && asked[0] == *g.settings.DefaultPicker
}

func (g *reader) isOwn(picker translate.ServicePort) bool {
	return translate.IsOwnPicker(picker, g.Service(picker.Service), g.settings)
}

// podAddress is the address of a running pod.
func podAddress(pod *corev1.Pod) (netip.Addr, bool) {
	address, err := netip.ParseAddr(pod.Status.PodIP)
	return address, err == nil && pod.DeletionTimestamp == nil && pod.Status.Phase == corev1.PodRunning &&
		address.IsGlobalUnicast() // who may write a pod's status must not make the controller call itself
}
