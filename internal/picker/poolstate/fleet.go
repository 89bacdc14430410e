// Package poolstate holds the state of the pools that the picker serves: their endpoints as an immutable snapshot, each
// endpoint's work and cached prefixes, and the reservations of calls in flight. It must not know the rule by which an
// endpoint is chosen (package selection), where pools come from (the sources), or a proxy's messages.
package poolstate

import (
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Options configure a Fleet.
type Options struct {
	Metrics *telemetry.Metrics
	// Seed seeds the random draws between equal endpoints.
	Seed uint64
	// Clock is a monotonic clock with any origin; nil is the process's own.
	Clock func() time.Duration
	// After calls a function in its own goroutine once a time has passed on the clock; nil is the process's own.
	After func(time.Duration, func())
	// Log gets, at the debug level, why each call went where it did; nil logs nothing.
	Log *slog.Logger
	// Tokenizer learns the tokens of prompts for pools whose servers tell of their caches; nil learns none.
	Tokenizer Tokenizer
	// Teller tells other pickers what this one decides; nil where there are none.
	Teller Teller
	// MaxIndexBytes bounds the memory of prefix indexes, of all pools together. The pools of a namespace have at most four
	// times as much as is free. 0 sets no limit.
	MaxIndexBytes int64
	// MaxWaitingBytes bounds the memory of calls that wait, in the same way. 0 sets no limit.
	MaxWaitingBytes int64
}

// Fleet holds all pools by name. Its methods may be called from several goroutines.
type Fleet struct {
	options Options
	memory  *fairshare.Whole // bytes of the pools' prefix indexes
	doubted *fairshare.Whole // bytes of the calls that may have been broken off
	told    *fairshare.Whole // bytes of what servers told of their caches
	theirs  *fairshare.Whole // bytes of the blocks of other pickers' calls in flight
	waiting *fairshare.Whole // bytes of the calls that wait
	pools   atomic.Pointer[map[types.NamespacedName]*Pool]
	seed    atomic.Uint64

	mu      sync.Mutex // serialises writers of pools
	made    uint64     // pools made so far
	scraper Scraper    // nil where endpoints are not scraped
	// subscriber is nil where no server's events are heard. heard are the pools for which it hears an endpoint.
	subscriber Subscriber
	heard      map[netip.AddrPort][]*Pool
	warned     warned
	members    members
	// objectives are the priorities of InferenceObjectives, by pool and name, also of pools that do not exist.
	objectives map[types.NamespacedName]map[string]int
}

// New makes a fleet without pools.
func New(o Options) *Fleet {
	if o.Clock == nil {
		start := time.Now()
		o.Clock = func() time.Duration { return time.Since(start) }
	}
	if o.After == nil {
		o.After = func(d time.Duration, f func()) { time.AfterFunc(d, f) }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{options: o, memory: fairshare.New(o.MaxIndexBytes), doubted: fairshare.New(maxDoubted), heard: map[netip.AddrPort][]*Pool{},
		told: fairshare.New(maxTold), theirs: fairshare.New(maxTheirs), waiting: fairshare.New(o.MaxWaitingBytes), warned: warned{at: map[netip.AddrPort]time.Duration{}}, objectives: map[types.NamespacedName]map[string]int{}}
	f.pools.Store(&map[types.NamespacedName]*Pool{})
	return f
}

// Seed is the seed of the hashes of prompt blocks.
func (f *Fleet) Seed() uint64 { return f.seed.Load() }

// SetSeed changes the seed of the hashes of prompt blocks. Prefixes indexed before are then never found, and are
// evicted as the least recently used.
func (f *Fleet) SetSeed(seed uint64) { f.seed.Store(seed) }

// Pool returns the pool of a name, or nil.
func (f *Fleet) Pool(name types.NamespacedName) *Pool { return (*f.pools.Load())[name] }

// SetPool adds a pool, or replaces its endpoints. The state of an endpoint that stays is kept; one that left takes no
// more calls from now on. A new pool has the default settings.
func (f *Fleet) SetPool(p pool.Pool, endpoints []pool.Endpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.ensure(p.Name)
	before := known.Endpoints()
	if known.setEndpoints(endpoints) {
		f.membersChanged(known, before, known.Endpoints())
		f.hearAnew(replacedIn(before, known.Endpoints()))
	}
}

// Configure sets how a pool picks. A pool that does not exist yet is added, without endpoints.
func (f *Fleet) Configure(name types.NamespacedName, settings picksettings.Settings) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.ensure(name)
	if known.configure(settings) {
		f.readAgain(addressesIn(known.Endpoints()))
	}
}

// SetObjectives sets the priorities of a pool's InferenceObjectives, by their names. The pool need not exist yet. The map must not be
// changed any more.
func (f *Fleet) SetObjectives(name types.NamespacedName, objectives map[string]int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objectives[name] = objectives
	if objectives == nil {
		delete(f.objectives, name)
	}
	if known := f.Pool(name); known != nil {
		known.setObjectives(objectives)
	}
}

// ensure returns the pool of a name, and adds it if it does not exist.
func (f *Fleet) ensure(name types.NamespacedName) *Pool {
	known := f.Pool(name)
	if known == nil {
		f.made++
		known = newPool(name, f.options, shares{f.memory.Of(name.Namespace), f.doubted.Of(name.Namespace), f.told.Of(name.Namespace), f.theirs.Of(name.Namespace), f.waiting.Of(name.Namespace)}, rand.New(rand.NewPCG(f.options.Seed, f.made)))
		known.setObjectives(f.objectives[name])
		f.swap(func(pools map[types.NamespacedName]*Pool) { pools[name] = known })
	}
	return known
}

// RemovePool forgets a pool. Calls in flight end as they would have.
func (f *Fleet) RemovePool(name types.NamespacedName) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.Pool(name)
	if known == nil {
		return
	}
	f.swap(func(pools map[types.NamespacedName]*Pool) { delete(pools, name) })
	known.close()
	f.options.Metrics.DropPool(name.String())
	f.membersChanged(known, known.Endpoints(), nil)
}

// Names lists the pools, in no order.
func (f *Fleet) Names() []types.NamespacedName {
	pools := *f.pools.Load()
	names := make([]types.NamespacedName, 0, len(pools))
	for name := range pools {
		names = append(names, name)
	}
	return names
}

// swap replaces the map of pools by a changed copy.
func (f *Fleet) swap(change func(map[types.NamespacedName]*Pool)) {
	next := maps.Clone(*f.pools.Load())
	change(next)
	f.pools.Store(&next)
	f.options.Metrics.SetPools(len(next))
}
