package debug

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/explain"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/peers"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Picker is the picker whose state is told.
type Picker struct {
	Fleet *poolstate.Fleet
	// Name is its name for people.
	Name string
	// Others are the other pickers; nil where there are none.
	Others *peers.Peers
}

// LiveState returns the state of all pools, in the order of their names.
func (p Picker) LiveState() livestate.State {
	names := p.Fleet.Names()
	slices.SortFunc(names, func(a, b types.NamespacedName) int { return strings.Compare(a.String(), b.String()) })
	return p.state(names)
}

func (p Picker) state(names []types.NamespacedName) livestate.State {
	out := livestate.State{
		Time: time.Now(), Picker: p.Name, Others: []livestate.Other{}, Pools: make([]livestate.Pool, 0, len(names)),
	}
	processes := map[string]string{"": p.Name}
	for _, o := range p.Others.Others() {
		other := livestate.Other{Picker: o.Name}
		if o.Process != "" {
			processes[o.Process] = o.Name
			silent := poolstate.Rounded(o.Silent.Seconds())
			other.Silent = &silent
		}
		out.Others = append(out.Others, other)
	}
	for _, name := range names {
		if pool := p.Fleet.Pool(name); pool != nil { // the pool may be gone by now
			out.Pools = append(out.Pools, poolAt(pool, out.Time, processes))
		}
	}
	return out
}

// poolAt returns a pool's state now; wall is the same time by the wall clock, and processes are the pickers' names.
func poolAt(p *poolstate.Pool, wall time.Time, processes map[string]string) livestate.Pool {
	now := p.Snapshot()
	out := livestate.Pool{
		Name:      p.Name().String(),
		Endpoints: make([]livestate.Endpoint, 0, len(now.Endpoints)),
		PickedBy:  make([]livestate.PickedBy, 0, len(now.Stints)),
		Split:     now.Split,
		Picks:     make([]livestate.Pick, 0, len(now.Picks)),
	}
	for _, s := range now.Stints {
		if name, known := processes[s.Process]; known { // a picker may have been lost in between
			out.PickedBy = append(out.PickedBy, livestate.PickedBy{
				Picker: name, Since: poolstate.Rounded((now.At - s.First).Seconds()), Until: poolstate.Rounded((now.At - s.Last).Seconds()),
			})
		}
	}
	slices.SortFunc(out.PickedBy, func(a, b livestate.PickedBy) int { return strings.Compare(a.Picker, b.Picker) })
	for i := range now.Endpoints {
		out.Endpoints = append(out.Endpoints, endpoint(&now.Endpoints[i]))
	}
	out.Line, out.Needed = line(&now.Line), poolstate.Known(now.Needed)
	for i := range now.Picks {
		d := &now.Picks[i]
		out.Picks = append(out.Picks, explain.Pick(d, wall.Add(d.At-now.At)))
	}
	return out
}

// mostCallers bounds how many callers are told.
const mostCallers = 10

func line(l *poolstate.Line) livestate.Line {
	out := livestate.Line{Calls: l.Calls, Tokens: poolstate.Rounded(l.Tokens), Oldest: poolstate.Rounded(l.Oldest.Seconds()), Callers: []livestate.LineCaller{}}
	for _, c := range l.Callers[:min(len(l.Callers), mostCallers)] {
		out.Callers = append(out.Callers, livestate.LineCaller{
			Caller: c.Identity, Priority: c.Priority, Weight: c.Weight, Calls: c.Calls, Oldest: poolstate.Rounded(c.Oldest.Seconds()),
		})
	}
	return out
}

func endpoint(e *poolstate.EndpointState) livestate.Endpoint {
	out := livestate.Endpoint{
		Name: e.Pod, Address: e.Address, Ready: e.Member,
		ReservedRequests: e.InFlight, ReservedTokens: poolstate.Rounded(e.QueueTokens),
		FirstToken: poolstate.Rounded(e.FirstToken), PrefillRate: poolstate.Rounded(e.Rate), BytesPerToken: poolstate.Rounded(e.BytesPerToken),
		Health:      livestate.Health{Failures: e.Failures, AvoidedFor: poolstate.Rounded(e.AvoidedFor)},
		CachedShare: poolstate.Known(e.CachedShare), ObservedFirstToken: poolstate.Known(e.ObservedFirstToken),
		ObservedToExpected: poolstate.Known(e.ObservedToExpected),
	}
	if e.ToldTokens >= 0 {
		out.ToldTokens = &e.ToldTokens
	}
	r := e.Reading
	if r == nil {
		return out
	}
	out.Reading = &livestate.Reading{Age: poolstate.Rounded(e.ReadingAge.Seconds()), Running: r.Running, Waiting: r.Waiting, KVUse: poolstate.Rounded(r.KVUsage)}
	if r.MaxLoRA > 0 {
		out.Reading.Adapters = &livestate.Adapters{
			Slots: r.MaxLoRA, Running: sorted(r.RunningAdapters), Waiting: sorted(r.WaitingAdapters), Known: sorted(e.Adapters),
		}
	}
	return out
}

// sorted returns a sorted copy, never nil, so that JSON has a list.
func sorted(names []string) []string {
	out := append(make([]string, 0, len(names)), names...)
	slices.Sort(out)
	return out
}

// LiveStateHandler serves GET /debug/pools, all pools' state as JSON (a livestate.State), and GET
// /debug/pools?pool=namespace/name, one pool's. 400 and 404 have a JSON object with the field error.
func (p Picker) LiveStateHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		state, status, err := p.liveStateRequest(r)
		w.Header().Set("Cache-Control", "no-store")
		answer(w, status, state, err)
	})
}

func (p Picker) liveStateRequest(r *http.Request) (livestate.State, int, error) {
	query := r.URL.Query()
	if !query.Has("pool") {
		return p.LiveState(), http.StatusOK, nil
	}
	name, ok := pool.ParseName(query.Get("pool"))
	if !ok {
		return livestate.State{}, http.StatusBadRequest, errors.New("the query must name a pool as pool=namespace/name")
	}
	state := p.state([]types.NamespacedName{name})
	if len(state.Pools) == 0 {
		return livestate.State{}, http.StatusNotFound, errors.New("there is no such pool")
	}
	return state, http.StatusOK, nil
}
