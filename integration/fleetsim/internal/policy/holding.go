package policy

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// holding lets calls wait, as a waypoint's picker does.
type holding struct {
	*ours
	held []*held // in the order of arrival
}

// held is a call that waits.
type held struct {
	id    int
	call  *workload.Call
	facts request.Facts
	w     *poolstate.Waiting
	r     *poolstate.Reservation
}

// newHolding makes a picker that lets calls wait, with rules for callers.
func newHolding(s Setting, callers string) (*holding, error) {
	p, err := newOurs(s, nil)
	if err != nil {
		return nil, err
	}
	settings := picksettings.Defaults()
	settings.Callers = callers
	p.fleet.Configure(poolName, settings)
	return &holding{ours: p}, nil
}

// Namespace is the namespace of a call's caller.
func Namespace(tenant int) string { return fmt.Sprintf("tenant-%d", tenant) }

// identity is a caller's, as a waypoint proves it.
func identity(tenant int) string {
	return "spiffe://cluster.local/ns/" + Namespace(tenant) + "/sa/default"
}

func (p *holding) Pick(now time.Duration, id int, c *workload.Call) int {
	p.pass(now)
	p.tokenized = c
	h := &held{id: id, call: c, facts: factsOf(c), r: &poolstate.Reservation{}}
	_, w, err := p.pool.Ask(&poolstate.Call{Facts: &h.facts, Body: whole, Caller: identity(c.Tenant), Bytes: 1}, h.r)
	if err != nil {
		return Refused
	}
	if h.w = w; w != nil && w.Held() {
		p.held = append(p.held, h)
		return Held
	}
	return p.decided(h)
}

// decided returns the server of a call that was decided on.
func (p *holding) decided(h *held) int {
	if h.w != nil {
		p.tokenized = h.call
		if _, err := h.w.Wait(context.Background()); err != nil {
			return Refused
		}
	}
	return p.picked(h.id, h.call, h.r)
}

// Left also reports a caller who leaves while the call waits.
func (p *holding) Left(now time.Duration, id int, began bool) {
	i := slices.IndexFunc(p.held, func(h *held) bool { return h.id == id })
	if i < 0 {
		p.ours.Left(now, id, began)
		return
	}
	p.pass(now)
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.held[i].w.Wait(gone); err == nil { // picked just before
		p.held[i].r.Release(poolstate.Abandoned)
	}
	p.held = slices.Delete(p.held, i, i+1)
}

func (p *holding) Holds() bool { return len(p.held) > 0 }

func (p *holding) Pass(now time.Duration, decided func(id, server int)) {
	p.pass(now)
	var went []*held
	p.held = slices.DeleteFunc(p.held, func(h *held) bool {
		if h.w.Held() {
			return false
		}
		went = append(went, h)
		return true
	})
	for _, h := range went {
		decided(h.id, p.decided(h))
	}
}
