// Package waypointwatch tells whether the calls that come to pools by waypoints are picked: it reads what the waypoints'
// pods have counted, every few seconds, and judges by what has changed. It knows no client of Kubernetes, writes
// nothing to a cluster, and leaves to its caller what is said of a verdict.
//
// What it reads is not trusted: whoever owns a namespace decides what its pods answer. A pod is read within bounds of time
// and size, it can tell only of the pools that its own waypoint serves, and it keeps nobody else's from being read.
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
	// maxPods are the pods of one waypoint that are read, the first by name. Calls are spread over all pods alike.
	maxPods = 16
	// readsByNamespace is how many pods of one namespace are read at once. A pod that answers takes some milliseconds.
	readsByNamespace = 4
	// readsAtOnce is how many pods are read at once in all. To hold up the others, the pods of 64 namespaces would have to
	// be slow at once, and then each waits for readTimeout at most. A reading holds some 16 KiB.
	readsAtOnce = 256
	// bytesBySecond is how fast the pages of one namespace are read, behind the first pageBurst of a round, however many
	// waypoints it has: a processor parses some 200 MiB a second. Those of 100 pools at 25 pods are read in one burst.
	bytesBySecond = 4 << 20
	pageBurst     = 4 << 20
)

// Waypoint is one to watch.
type Waypoint struct {
	Name  types.NamespacedName
	Pools []Pool
	// Pods are those that run, in the order of their names.
	Pods []Pod
}

// Pool is one that a waypoint serves.
type Pool struct {
	Name types.NamespacedName
	// Duplex says that the pool's picker is sent bodies as they come, as others' are.
	Duplex bool
}

// Pod is one of a waypoint's.
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
	slots   chan struct{} // holds one for each pod that is read

	mu     sync.Mutex
	places map[Place]*place
	pods   map[podPlace]history
	busy   map[string]bool // namespaces whose last round is not over
}

// fetch reads a pod's page, and says how many bytes of it were read, also where it is refused.
type fetch func(context.Context, netip.Addr) (page map[string]counters, bytes int, err error)

// podPlace is a pool at a pod.
type podPlace struct {
	Place
	pod types.UID
}

// New watches the waypoints that list tells of, by what their pods show at a port. A pool's name is given to changed
// whenever a verdict on it is another than before, and why a list cannot be had to failed.
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
		w.round(ctx, &running)
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
	}
}

// Verdict is what is known of a pool at a waypoint, and the calls that led to it.
func (w *Watch) Verdict(at Place) (Verdict, Counts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := w.places[at]
	if p == nil {
		return Verdict{}, Counts{}
	}
	return p.verdict, p.counts()
}

// round has the waypoints of each namespace read, each namespace by itself. One whose last round is not over is left
// out.
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
	w.keep(byNamespace)
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

// keep makes the places that are new, and forgets those that are gone.
func (w *Watch) keep(byNamespace map[string][]Waypoint) {
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

// read reads the pods of a namespace's waypoints, some at a time, and judges each waypoint when its pods are read.
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
				page, bytes, _ := w.fetch(ctx, pod.Address) // a page that is not there is judged as such
				<-w.slots
				pages[i] = page
				_ = pace.WaitN(ctx, bytes) // in the namespace's own time; it fails when ctx ends
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

// judge takes in what the pods of a waypoint told, each page for one pod or nil, and returns the pools of which the verdict has changed.
func (w *Watch) judge(at Waypoint, pages []map[string]counters) []types.NamespacedName {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.clock.Now()
	var out []types.NamespacedName
	for _, p := range at.Pools {
		here := Place{p.Name, at.Name}
		known := w.places[here]
		if known == nil {
			continue // it is gone meanwhile
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
			sum = sum.plus(w.history(podPlace{here, at.Pods[i].UID}, c, p.Duplex))
		}
		if counted {
			known.saw(now, sum)
		} else {
			known.unread = whyUnread(pages)
		}
		if known.judge(now) {
			out = append(out, p.Name)
		}
	}
	return out
}

func (w *Watch) history(at podPlace, c counters, duplex bool) evidence {
	h, known := w.pods[at]
	var out evidence
	if known {
		out = h.next(c, duplex)
	} else {
		h, out = begin(c)
	}
	w.pods[at] = h
	return out
}

// whyUnread is why the pages of a waypoint, nil for a pod without one, tell nothing of a pool.
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
