// Package waypointwatch judges whether the calls to pools through waypoints are picked: it reads the counters of the
// waypoints' pods every few seconds, and judges by their changes. It must not know a Kubernetes client, write to a cluster,
// or decide how a verdict is reported.
//
// It does not trust the counters: the owner of a namespace decides what its pods answer. It reads a pod within bounds of
// time and size. A pod's page counts only for the pools of the pod's own waypoint. A slow pod does not delay others' pods.
package waypointwatch

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/clock"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Bounds on what is read at once.
const (
	// maxPods is how many pods of one waypoint are read, the first by name. Calls spread evenly over all pods.
	maxPods = 16
	// readsByNamespace is how many pods of one namespace are read at once. Reading a pod takes some milliseconds.
	readsByNamespace = 4
	// readsAtOnce is how many pods are read at once in all. To delay other namespaces, pods of 64 namespaces would have to
	// be slow at once. Even then each reading waits for readTimeout at most. A reading takes some 16 KiB of memory.
	readsAtOnce = 256
	// bytesBySecond limits how fast the pages of one namespace are read, after the first pageBurst bytes of a round. A
	// processor parses some 200 MiB a second. The pages of 100 pools at 25 pods fit into one burst.
	bytesBySecond = 4 << 20
	pageBurst     = 4 << 20
	// leastInterval is the least time between two rounds.
	leastInterval = time.Second
)

// Waypoint is a waypoint to watch.
type Waypoint struct {
	Name  types.NamespacedName
	Pools []Pool
	// Pods are the running pods, in the order of their names.
	Pods []Pod
}

// Pool is a pool that a waypoint serves.
type Pool struct {
	Name types.NamespacedName
	// Duplex says that the pool's picker gets bodies as streams, as other projects' pickers do.
	Duplex bool
	// ByDefault says that the pool asks the default picker, and no other.
	ByDefault bool
}

// Pod is a pod of a waypoint.
type Pod struct {
	UID     types.UID
	Address netip.Addr
}

// Place is a pool at a waypoint.
type Place struct{ Pool, Waypoint types.NamespacedName }

// Watch watches waypoints. It is also the collector of its metrics. Its methods may be called from any goroutine.
type Watch struct {
	list    func(context.Context) ([]Waypoint, error)
	changed func(context.Context, types.NamespacedName)
	failed  func(error)
	fetch   fetch
	clock   clock.WithTicker
	slots   chan struct{} // has an element for each pod that is being read
	look    chan struct{} // has an element if the next round is to begin at once

	mu     sync.Mutex
	places map[Place]*place
	pods   map[podPlace]history
	busy   map[string]bool // namespaces whose last round is still running
	// unpicked is the latest time after which calls certainly had no pick of the default picker.
	unpicked time.Time
}

// fetch reads a pod's page, and returns how many bytes it read, also after an error.
type fetch func(context.Context, netip.Addr) (page map[string]counters, bytes int, err error)

// podPlace is a pool at a pod.
type podPlace struct {
	Place
	pod types.UID
}

// New makes a Watch of the waypoints that list returns, by their pods' counters at a port. It calls changed with a pool's
// name whenever a verdict on the pool has changed, and failed with each error of list.
func New(port int, list func(context.Context) ([]Waypoint, error), changed func(context.Context, types.NamespacedName), failed func(error)) *Watch {
	return newWatch(list, changed, failed, newFetcher(port).fetch, clock.RealClock{})
}

func newWatch(
	list func(context.Context) ([]Waypoint, error), changed func(context.Context, types.NamespacedName), failed func(error),
	fetch fetch, ticks clock.WithTicker,
) *Watch {
	return &Watch{
		list: list, changed: changed, failed: failed, fetch: fetch, clock: ticks,
		slots:  make(chan struct{}, readsAtOnce),
		look:   make(chan struct{}, 1),
		places: map[Place]*place{},
		pods:   map[podPlace]history{},
		busy:   map[string]bool{},
	}
}

// Run reads all waypoints every interval until ctx ends.
func (w *Watch) Run(ctx context.Context, interval time.Duration) {
	ticker := w.clock.NewTicker(interval)
	defer ticker.Stop()
	var running sync.WaitGroup
	defer running.Wait()
	for {
		began := w.clock.Now()
		w.round(ctx, &running)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		case <-w.look:
		}
		// Calls that wait for a pick while a page is read count by the next page, which must not come before they have ended.
		select {
		case <-ctx.Done():
			return
		case <-w.clock.After(began.Add(leastInterval).Sub(w.clock.Now())):
		}
	}
}

// Look makes the next round begin soon: leastInterval after the last one, or at once.
func (w *Watch) Look() {
	select {
	case w.look <- struct{}{}:
	default: // it will begin already
	}
}

// Unpicked reports whether calls after a time had no pick of the default picker: a waypoint has counted some since a
// reading after that time.
func (w *Watch) Unpicked(after time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.unpicked.After(after)
}

// Verdict is the current verdict on a pool at a waypoint, and the counts of calls behind it.
func (w *Watch) Verdict(at Place) (Verdict, Counts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.places[at]
	if p == nil {
		return Verdict{}, Counts{}
	}
	return p.verdict, p.counts()
}

// round starts one reader for each namespace's waypoints. It leaves out namespaces whose last round is still running.
func (w *Watch) round(ctx context.Context, running *sync.WaitGroup) {
	waypoints, err := w.list(ctx)
	if err != nil {
		w.failed(err)
		return
	}
	byNamespace := map[string][]Waypoint{}
	for _, at := range waypoints {
		at.Pods = at.Pods[:min(len(at.Pods), maxPods)]
		byNamespace[at.Name.Namespace] = append(byNamespace[at.Name.Namespace], at)
	}
	w.syncPlaces(byNamespace)
	for _, namespace := range slices.Sorted(maps.Keys(byNamespace)) {
		if w.begin(namespace) {
			running.Go(func() {
				defer w.end(namespace)
				w.read(ctx, byNamespace[namespace])
			})
		}
	}
}

func (w *Watch) begin(namespace string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[namespace] {
		return false
	}
	w.busy[namespace] = true
	return true
}

func (w *Watch) end(namespace string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, namespace)
}

// syncPlaces adds new places, and drops places that are gone.
func (w *Watch) syncPlaces(byNamespace map[string][]Waypoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	places, pods := map[Place]bool{}, map[podPlace]bool{}
	for _, waypoints := range byNamespace {
		for _, at := range waypoints {
			for _, p := range at.Pools {
				here := Place{p.Name, at.Name}
				places[here] = true
				if w.places[here] == nil {
					w.places[here] = &place{began: w.clock.Now(), unread: NotReached}
				}
				for _, pod := range at.Pods {
					pods[podPlace{here, pod.UID}] = true
				}
			}
		}
	}
	maps.DeleteFunc(w.places, func(here Place, _ *place) bool { return !places[here] })
	maps.DeleteFunc(w.pods, func(here podPlace, _ history) bool { return !pods[here] })
}

// read reads the pods of a namespace's waypoints, some in parallel, and judges each waypoint after all its pods are read.
func (w *Watch) read(ctx context.Context, waypoints []Waypoint) {
	own := make(chan struct{}, readsByNamespace)
	pace := rate.NewLimiter(bytesBySecond, pageBurst)
	var all sync.WaitGroup
	for _, at := range waypoints {
		pages := make([]map[string]counters, len(at.Pods))
		var pods sync.WaitGroup
		for i, pod := range at.Pods {
			own <- struct{}{}
			pods.Go(func() {
				defer func() { <-own }()
				w.slots <- struct{}{}
				page, bytes, _ := w.fetch(ctx, pod.Address) // judge handles a nil page
				<-w.slots
				pages[i] = page
				_ = pace.WaitN(ctx, bytes) // delays only this namespace; fails when ctx ends
			})
		}
		all.Go(func() {
			pods.Wait()
			if ctx.Err() != nil {
				return
			}
			for _, name := range w.judge(at, pages) {
				w.changed(ctx, name)
			}
		})
	}
	all.Wait()
}

// judge adds the evidence of a waypoint's pods, with one page or nil for each pod, and returns the pools whose verdict changed.
func (w *Watch) judge(at Waypoint, pages []map[string]counters) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.clock.Now()
	var out []types.NamespacedName
	for _, p := range at.Pools {
		here := Place{p.Name, at.Name}
		known := w.places[here]
		if known == nil {
			continue // the place was dropped meanwhile
		}
		name := pool.CounterName(p.Name)
		var sum evidence
		counted := false
		for i, page := range pages {
			c, ok := page[name]
			if !ok {
				continue
			}
			counted = true
			known.called = known.called || c.called()
			fresh, since := w.history(podPlace{here, at.Pods[i].UID}, c, p.Duplex)
			sum = sum.plus(fresh)
			if p.ByDefault && fresh.unpicked > 0 && since.After(w.unpicked) {
				w.unpicked = since
			}
		}
		if counted {
			known.addEvidence(now, sum)
		} else {
			known.unread = whyUnread(pages)
		}
		if known.judge(now) {
			out = append(out, p.Name)
		}
	}
	return out
}

// history returns the new evidence of a pod, and the time of the reading since which it came; 0 for a first reading.
func (w *Watch) history(at podPlace, c counters, duplex bool) (out evidence, since time.Time) {
	h, known := w.pods[at]
	if known {
		since = h.read
		out = h.next(c, duplex)
	} else {
		h, out = firstReading(c)
	}
	h.read = w.clock.Now()
	w.pods[at] = h
	return out, since
}

// whyUnread is why the pages of a waypoint, with nil for a pod without a page, have no counters of a pool.
func whyUnread(pages []map[string]counters) Cause {
	why := NoPods
	for _, page := range pages {
		switch {
		case len(page) > 0:
			return NotConfigured
		case page != nil:
			why = NotCounted
		case why == NoPods:
			why = NotReached
		}
	}
	return why
}
