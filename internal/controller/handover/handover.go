// Package handover orders changes of EnvoyFilters so that no call loses a cluster or route that it uses. It must write
// nothing: it decides what to write now, and when to plan again. Envoy gets clusters, chains and routes separately and in
// no fixed order, and calls stay on a replaced chain until it is drained. So a cluster is written before the routes that
// name it, and configuration that calls may still use is removed only after the drain time.
package handover

import (
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	networkingapi "istio.io/api/networking/v1alpha3"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/inference-waypoint/inference-waypoint/internal/controller/envoypatch"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Times are the times that changes take at a waypoint.
type Times struct {
	// Settle is how long after its write a cluster counts as ready at the waypoint: istiod debounces changes for 100 ms,
	// and Envoy then asks for the cluster's endpoints.
	Settle time.Duration
	// Drain is how long calls may use replaced configuration: Istio drains a chain for 45 s, and istiod may take seconds.
	Drain time.Duration
}

// Filters remembers the planned and live parts of each owner's EnvoyFilters, and since when they are there. Parts that are
// there at its first plan count as ready. If they are no longer wanted, their drain time starts with that plan.
type Filters struct {
	times Times
	clock clock.PassiveClock

	mu     sync.Mutex
	owners map[types.NamespacedName]map[types.NamespacedName]*filter
}

// New makes Filters that remember nothing yet.
func New(times Times, c clock.PassiveClock) *Filters {
	return &Filters{times: times, clock: c, owners: map[types.NamespacedName]map[types.NamespacedName]*filter{}}
}

// Wanted is a desired EnvoyFilter.
type Wanted struct {
	Filter *networkingv1alpha3.EnvoyFilter
	// Called says that calls may reach its hosts even before the EnvoyFilter exists, as with a Service.
	Called bool
}

// Plan is what to write of an owner's EnvoyFilters now.
type Plan struct {
	// Now are the wanted EnvoyFilters, in their order, as far as they may be written now. Leaving are the parts that stay
	// for a while of unwanted EnvoyFilters; write them after Now.
	Now, Leaving []*networkingv1alpha3.EnvoyFilter
	// Again is when to plan again; zero if there is nothing left to do.
	Again time.Duration
}

// Plan compares an owner's wanted and live EnvoyFilters, and decides what to write now.
func (f *Filters) Plan(owner types.NamespacedName, wanted []Wanted, live []*networkingv1alpha3.EnvoyFilter) Plan {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.owners[owner]
	if known == nil {
		known = map[types.NamespacedName]*filter{}
		f.owners[owner] = known
	}
	now := f.clock.Now()
	for _, l := range live {
		if known[nameOf(l)] == nil {
			known[nameOf(l)] = existing(l)
		}
		known[nameOf(l)].observe(l, now)
	}
	defer func() {
		for _, k := range known {
			k.release()
		}
	}()
	var plan Plan
	unwanted := maps.Clone(known)
	for _, w := range wanted {
		name := nameOf(w.Filter)
		delete(unwanted, name)
		if known[name] == nil {
			known[name] = newFilter(w.Called)
		}
		next, wait := known[name].next(w.Filter, f.times, now)
		plan.Now = append(plan.Now, next)
		plan.Again = Sooner(plan.Again, wait)
	}
	for _, name := range sorted(unwanted) {
		rest, wait := known[name].leave(f.times, now)
		if rest == nil {
			delete(known, name)
			continue
		}
		plan.Leaving = append(plan.Leaving, rest)
		plan.Again = Sooner(plan.Again, wait)
	}
	if len(known) == 0 {
		delete(f.owners, owner)
	}
	return plan
}

// Settled is how long it takes until a planned EnvoyFilter is ready at its waypoint in all parts, so that its hosts may
// be called there; zero if it is ready.
func (f *Filters) Settled(owner, name types.NamespacedName) (wait time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.owners[owner][name]
	if known == nil {
		return f.times.Settle
	}
	parts := partsOf(known.last)
	for p := range known.seen {
		parts[p] = nil
	}
	for p := range parts {
		if p.kind != routes {
			wait = max(wait, known.settles(p, f.times, f.clock.Now()))
		}
	}
	return wait
}

// Sooner is the shorter of two waits. Zero means no wait.
func Sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// filter is the memory of one EnvoyFilter.
type filter struct {
	// last is the last plan; nil before the first plan, and once the live EnvoyFilter equals it. A thousand of them would
	// take a hundred megabytes.
	last *networkingv1alpha3.EnvoyFilter
	// final says that last is the wanted EnvoyFilter without parts that only stay for a while.
	final bool
	// live is the EnvoyFilter in the cluster; set only during a plan.
	live *networkingv1alpha3.EnvoyFilter
	// called says that calls may use the routes at once, so that routes must not name parts that are not ready.
	called bool
	// named are the parts that routes may name already, and seen is when each part was first seen in the cluster.
	named map[part]bool
	seen  map[part]time.Time
	// unwantedSince is since when each part of last is no longer wanted.
	unwantedSince map[part]time.Time
}

func newFilter(called bool) *filter {
	return &filter{called: called, named: map[part]bool{}, seen: map[part]time.Time{}, unwantedSince: map[part]time.Time{}}
}

// existing makes the memory of an EnvoyFilter that existed before the first plan.
func existing(live *networkingv1alpha3.EnvoyFilter) *filter {
	f := newFilter(true)
	for p := range partsOf(live) {
		f.named[p], f.seen[p] = true, time.Time{}
	}
	return f
}

// observe records the live EnvoyFilter, and the parts that are new in it.
func (f *filter) observe(live *networkingv1alpha3.EnvoyFilter, now time.Time) {
	f.called, f.live = true, live
	for p := range partsOf(live) {
		if _, before := f.seen[p]; !before {
			f.seen[p] = now
		}
	}
}

// release drops what is not needed until the next plan.
func (f *filter) release() {
	if f.final && f.last != nil && f.live != nil && same(f.last, f.live) {
		f.last = nil
	}
	f.live = nil
}

// lastOrLive is the last plan, which may not be in the cluster yet, or else the live EnvoyFilter; nil if there is neither.
func (f *filter) lastOrLive() *networkingv1alpha3.EnvoyFilter {
	if f.last != nil {
		return f.last
	}
	return f.live
}

// same reports whether two EnvoyFilters are equal for istiod.
func same(a, b *networkingv1alpha3.EnvoyFilter) bool {
	for _, annotation := range listed {
		if a.Annotations[annotation] != b.Annotations[annotation] {
			return false
		}
	}
	return proto.Equal(&a.Spec, &b.Spec)
}

// next is what to write of a wanted EnvoyFilter.
func (f *filter) next(want *networkingv1alpha3.EnvoyFilter, times Times, now time.Time) (_ *networkingv1alpha3.EnvoyFilter, again time.Duration) {
	parts := partsOf(want)
	if unsettled := f.unsettled(parts, times, now); f.called && unsettled > 0 {
		out := withNewClusters(want, f.lastOrLive(), parts)
		f.last, f.final, again = out, false, unsettled
		return out, again
	}
	kept, again := f.draining(parts, times, now)
	f.last, f.final = with(want, kept), len(kept) == 0
	clear(f.named)
	for p := range parts {
		f.named[p] = true
	}
	return f.last, again
}

// unsettled is how long it takes until routes may name all wanted parts; zero if they may now.
func (f *filter) unsettled(wanted map[part]*patch, times Times, now time.Time) (wait time.Duration) {
	for p := range wanted {
		if p.kind != routes && !f.named[p] { // Envoy waits for the routes of a chain itself
			wait = max(wait, f.settles(p, times, now))
		}
	}
	return wait
}

// settles is how long it takes until a part is ready at the waypoint.
func (f *filter) settles(p part, times Times, now time.Time) time.Duration {
	seen, there := f.seen[p]
	if !there {
		return times.Settle
	}
	return max(0, times.Settle-now.Sub(seen))
}

// draining are the parts of the last plan that are no longer wanted, but that calls may still use.
func (f *filter) draining(wanted map[part]*patch, times Times, now time.Time) (kept map[part]*patch, again time.Duration) {
	kept = map[part]*patch{}
	maps.DeleteFunc(f.unwantedSince, func(p part, _ time.Time) bool { _, is := wanted[p]; return is })
	for p, as := range partsOf(f.lastOrLive()) {
		if _, is := wanted[p]; is {
			continue
		}
		if f.unwantedSince[p].IsZero() {
			f.unwantedSince[p] = now
		}
		rest := times.Drain - now.Sub(f.unwantedSince[p])
		if rest <= 0 {
			delete(f.unwantedSince, p)
			delete(f.seen, p)
			delete(f.named, p)
			continue
		}
		kept[p] = as
		again = Sooner(again, rest)
	}
	return kept, again
}

// leave is what to write of an EnvoyFilter that is no longer wanted; nil if it may be deleted. Its patches of chains are
// removed at once.
func (f *filter) leave(times Times, now time.Time) (_ *networkingv1alpha3.EnvoyFilter, again time.Duration) {
	kept, again := f.draining(nil, times, now)
	before := f.lastOrLive()
	if before == nil || len(kept) == 0 {
		return nil, 0
	}
	f.last, f.final = with(emptied(before), kept), false
	return f.last, again
}

// withNewClusters adds the new clusters of the wanted filter to the last one, whose routes do not name them yet.
func withNewClusters(want, last *networkingv1alpha3.EnvoyFilter, wanted map[part]*patch) *networkingv1alpha3.EnvoyFilter {
	base := last
	if base == nil {
		base = emptied(want)
	}
	had, added := partsOf(base), map[part]*patch{}
	for p, as := range wanted {
		if _, is := had[p]; !is && p.kind != routes {
			added[p] = as
		}
	}
	return with(base, added)
}

// with adds parts to a filter, in the order of their names.
func with(f *networkingv1alpha3.EnvoyFilter, further map[part]*patch) *networkingv1alpha3.EnvoyFilter {
	out := bareCopy(f)
	lists := map[string][]string{}
	for _, p := range slices.SortedFunc(maps.Keys(further), compare) {
		if listed[p.kind] != "" {
			lists[p.kind] = append(lists[p.kind], p.name)
		} else {
			out.Spec.ConfigPatches = append(out.Spec.ConfigPatches, further[p])
		}
	}
	for kind, names := range lists {
		names = append(names, listOf(f, kind)...)
		slices.Sort(names)
		if out.Annotations == nil {
			out.Annotations = map[string]string{}
		}
		out.Annotations[listed[kind]] = strings.Join(slices.Compact(names), ",")
	}
	return out
}

// emptied is a filter that patches nothing and refers to nothing.
func emptied(f *networkingv1alpha3.EnvoyFilter) *networkingv1alpha3.EnvoyFilter {
	out := f.DeepCopy()
	out.Spec.ConfigPatches = nil
	for _, annotation := range listed {
		delete(out.Annotations, annotation)
	}
	return out
}

// bareCopy copies a filter for an apply, without the metadata that the API server sets.
func bareCopy(f *networkingv1alpha3.EnvoyFilter) *networkingv1alpha3.EnvoyFilter {
	out := f.DeepCopy()
	meta := out.ObjectMeta
	out.ObjectMeta.Reset()
	out.Namespace, out.Name, out.Labels, out.Annotations = meta.Namespace, meta.Name, meta.Labels, meta.Annotations
	out.APIVersion, out.Kind = networkingv1alpha3.SchemeGroupVersion.String(), "EnvoyFilter"
	return out
}

func nameOf(f *networkingv1alpha3.EnvoyFilter) types.NamespacedName {
	return types.NamespacedName{Namespace: f.Namespace, Name: f.Name}
}

func sorted(m map[types.NamespacedName]*filter) []types.NamespacedName {
	return slices.SortedFunc(maps.Keys(m), func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
}

type patch = networkingapi.EnvoyFilter_EnvoyConfigObjectPatch

// part is something in an EnvoyFilter that other configuration names: a cluster, which routes name; a route configuration,
// which a chain fetches; a Service whose cluster istiod sends; or a picker whose cluster a waypoint patches. Envoy ends
// calls in flight in a cluster that changes.
type part struct{ kind, name string }

// The kinds of a part.
const (
	cluster = "cluster"
	routes  = "routes"
	service = "service"
	picker  = "picker"
)

// listed has the annotation that lists the parts of a kind. Parts of other kinds are patches.
var listed = map[string]string{service: envoypatch.ReferencedServices, picker: pool.AskedPickersAnnotation}

func compare(a, b part) int { return strings.Compare(a.kind+" "+a.name, b.kind+" "+b.name) }

// partsOf finds a filter's parts. All other patches of a filter change chains.
func partsOf(f *networkingv1alpha3.EnvoyFilter) map[part]*patch {
	out := map[part]*patch{}
	if f == nil {
		return out
	}
	for _, p := range f.Spec.GetConfigPatches() {
		switch p.GetApplyTo() {
		case networkingapi.EnvoyFilter_CLUSTER:
			out[part{cluster, p.GetPatch().GetValue().GetFields()["name"].GetStringValue()}] = p
		case networkingapi.EnvoyFilter_VIRTUAL_HOST:
			out[part{routes, p.GetMatch().GetRouteConfiguration().GetName()}] = p
		}
	}
	for kind := range listed {
		for _, name := range listOf(f, kind) {
			out[part{kind, name}] = nil
		}
	}
	return out
}

// listOf are the names of a kind in a filter's annotation.
func listOf(f *networkingv1alpha3.EnvoyFilter, kind string) []string {
	list := f.Annotations[listed[kind]]
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
