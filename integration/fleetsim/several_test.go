package main

import (
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Of each death the calls count that came after it, and only those of the asked time.
func TestFollowed(t *testing.T) {
	var calls []workload.Call
	for at := range 101 {
		calls = append(calls, workload.Call{At: time.Duration(at) * time.Second})
	}
	s := severalStudy{study: study{name: "calls", calls: calls}}
	r := results{}
	for _, part := range []float64{0.25, 0.9} {
		d := s.withDeath(part)
		s.deaths = append(s.deaths, d)
		var kept []sim.Outcome
		for _, c := range d.calls {
			if c.At >= d.from {
				kept = append(kept, sim.Outcome{At: c.At, Prompt: 100, Cached: int(c.At.Seconds())})
			}
		}
		r[[2]string{d.name, policy.Unheld.Name}] = result{kept: kept}
	}
	for _, test := range []struct {
		within time.Duration
		calls  int
		cached float64
	}{
		{soonAfter, 10, 0.595}, // from 25 to 29 s and from 90 to 94 s
		{after, 30 + 11, (30*0.395 + 11*0.95) / 41},
	} {
		got := s.followed(r, policy.Unheld.Name, test.within)
		if got.Calls != test.calls || got.Cached < test.cached-1e-9 || got.Cached > test.cached+1e-9 {
			t.Errorf("within %s: %d calls with a cached share of %g, want %d with %g", test.within, got.Calls, got.Cached, test.calls, test.cached)
		}
	}
}

func TestSeveralGoalsTakeTheWorstWorkload(t *testing.T) {
	r := results{}
	var studies []severalStudy
	for i, name := range []string{"light", "heavy"} {
		studies = append(studies, severalStudy{study: study{name: name}, title: name})
		one := sim.Summary{P90: time.Second, Cached: 0.5}
		r[[2]string{name, policy.Unheld.Name}] = result{Summary: one}
		r[[2]string{name, policy.Pinned(mostPickers).Name}] = result{Summary: one}
		r[[2]string{name, policy.Split(shards).Name}] = result{Summary: sim.Summary{P90: time.Second * time.Duration(i+1), Cached: 0.5 - 0.1*float64(i)}}
	}
	goals := severalGoals(studies, r)
	for i, want := range []float64{1, 1, 2, 0.8} {
		if g := goals[i]; g.got < want-1e-9 || g.got > want+1e-9 || g.met() != (want == 1) || g.met() == (g.hindrance() != "") {
			t.Errorf("%s is %g, %s, held back %q; want %g", g.name, g.got, g.verdict(), g.hindrance(), want)
		}
	}
	if got := goals[2].hindrance(); got != "on heavy" {
		t.Errorf("the split is held back %q, want on heavy", got)
	}
}
