package poolstate

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// lookedAtOnce is how many endpoints are looked at without letting picks in between: some 20 µs.
const lookedAtOnce = 64

// LiveState is all pools as they are now, in the order of their names.
func (f *Fleet) LiveState() livestate.State {
	names := f.Names()
	slices.SortFunc(names, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	out := livestate.State{Time: time.Now(), Pools: make([]livestate.Pool, 0, len(names))}
	for _, name := range names {
		if p := f.Pool(name); p != nil { // it may be gone by now
			out.Pools = append(out.Pools, p.LiveState(out.Time))
		}
	}
	return out
}

// LiveState is the pool as it is now, which is wall by the wall's clock. Picks go on while it is looked at, so that what
// it says of two endpoints may be some microseconds apart.
func (p *Pool) LiveState(wall time.Time) livestate.Pool {
	snap := p.snapshot.Load()
	out := livestate.Pool{Name: p.name.String(), Endpoints: make([]livestate.Endpoint, 0, len(snap.numbers))}
	for i := 0; i < len(snap.numbers); i += lookedAtOnce {
		p.mu.Lock()
		now := p.clock()
		for k := i; k < min(i+lookedAtOnce, len(snap.numbers)); k++ {
			if n, e := snap.numbers[k], snap.endpoints[k]; p.slots[n].member && p.slots[n].addr == e.Address {
				out.Endpoints = append(out.Endpoints, p.standing(n, e.Pod, now))
			}
		}
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	out.Picks = p.recent.latest(now, wall)
	for n := range p.slots {
		if s := &p.slots[n]; !s.member && p.view.InFlight(int32(n)) > 0 {
			out.Endpoints = append(out.Endpoints, p.standing(int32(n), "", now))
		}
	}
	return out
}

// standing tells of one endpoint. The pool's mutex is held.
func (p *Pool) standing(n int32, pod string, now time.Duration) livestate.Endpoint {
	s, v := &p.slots[n], p.view.Standing(n, now)
	out := livestate.Endpoint{
		Name: pod, Address: s.text, Ready: s.member,
		ReservedRequests: v.InFlight, ReservedTokens: rounded(v.QueueTokens),
		FirstToken: rounded(v.FirstToken), PrefillRate: rounded(v.Rate),
		Health: livestate.Health{Failures: v.Failures, AvoidedFor: rounded(v.AvoidedFor)},
	}
	if s.observed == nil {
		return out
	}
	r := &s.observed.reading
	out.CachedShare, out.ObservedFirstToken = s.observed.cachedShare(), s.observed.firstToken()
	out.Reading = &livestate.Reading{
		Age: rounded((now - s.observed.at).Seconds()), Running: r.Running, Waiting: r.Waiting, KVUse: rounded(r.KVUsage),
	}
	if r.MaxLoRA > 0 {
		out.Reading.Adapters = &livestate.Adapters{
			Slots: r.MaxLoRA, Running: sorted(r.RunningAdapters), Waiting: sorted(r.WaitingAdapters), Known: sorted(v.Adapters),
		}
	}
	return out
}

// sorted is a copy in order; it is never nil, so that JSON has a list.
func sorted(names []string) []string {
	out := append(make([]string, 0, len(names)), names...)
	slices.Sort(out)
	return out
}

// LiveStateHandler answers GET /debug/pools with all pools as they are now as JSON, a livestate.State, and
// GET /debug/pools?pool=namespace/name with one; 400 and 404 have a JSON object with the field error.
func LiveStateHandler(f *Fleet) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		state, status, err := liveStateRequest(f, r)
		w.Header().Set("Cache-Control", "no-store")
		answer(w, status, state, err)
	})
}

func liveStateRequest(f *Fleet, r *http.Request) (livestate.State, int, error) {
	query := r.URL.Query()
	if !query.Has("pool") {
		return f.LiveState(), http.StatusOK, nil
	}
	name, ok := ParseName(query.Get("pool"))
	if !ok {
		return livestate.State{}, http.StatusBadRequest, errors.New("want a pool as pool=namespace/name")
	}
	p := f.Pool(name)
	if p == nil {
		return livestate.State{}, http.StatusNotFound, errors.New("there is no such pool")
	}
	now := time.Now()
	return livestate.State{Time: now, Pools: []livestate.Pool{p.LiveState(now)}}, http.StatusOK, nil
}
