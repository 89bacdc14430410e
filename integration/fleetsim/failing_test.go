package main

import (
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// In overload, a failing server does not keep the other servers' caches from being used: they do as well as without it.
func TestFailingServerInOverload(t *testing.T) {
	const failing, without = "one of 8 failing", "the 7 without it"
	lasts := 5 * time.Minute
	calls := workload.Faster(workload.Documents(1, 400, 8, 2*lasts), 2)
	broken := plain(8, 1000)
	broken.Changes = []sim.Change{{Server: 0, Kind: sim.Fail}}
	got, err := measure([]study{
		{name: failing, fleet: broken, calls: calls},
		{name: without, fleet: plain(7, 1000), calls: calls},
	}, []policy.Policy{policy.Ours}, 1)
	if err != nil {
		t.Fatal(err)
	}
	a, b := got.of(failing, policy.Ours.Name), got.of(without, policy.Ours.Name)
	t.Logf("TTFT p90 %.2f s beside %.2f s, mean %.2f s beside %.2f s, cached %.3f beside %.3f", p90(a.Summary), p90(b.Summary),
		a.Mean.Seconds(), b.Mean.Seconds(), a.Cached, b.Cached)
	if a.Cached < 0.97*b.Cached || p90(a.Summary) > 1.1*p90(b.Summary) {
		t.Error("one failing server makes the others do worse than without it")
	}
	if a.first > 0 {
		t.Errorf("the server that fails answered %.3f of the calls", a.first)
	}
}
