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
	const failing, without, seeds = "one of 8 failing", "the 7 without it", 8 // one seed's times differ by a tenth by chance
	lasts := 5 * time.Minute
	var got, want result
	for seed := uint64(1); seed <= seeds; seed++ {
		calls := workload.Faster(workload.Documents(seed, 400, 8, 2*lasts), 2)
		broken := plain(8, 1000)
		broken.Changes = []sim.Change{{Server: 0, Kind: sim.Fail}}
		all, err := measure([]study{
			{name: failing, fleet: broken, calls: calls},
			{name: without, fleet: plain(7, 1000), calls: calls},
		}, []policy.Policy{policy.Ours}, seed)
		if err != nil {
			t.Fatal(err)
		}
		for sum, of := range map[*result]string{&got: failing, &want: without} {
			one := all.of(of, policy.Ours.Name)
			sum.P90 += one.P90 / seeds
			sum.Mean += one.Mean / seeds
			sum.Cached += one.Cached / seeds
			sum.first += one.first / seeds
		}
	}
	t.Logf("TTFT p90 %.2f s beside %.2f s, mean %.2f s beside %.2f s, cached %.3f beside %.3f", p90(got.Summary), p90(want.Summary),
		got.Mean.Seconds(), want.Mean.Seconds(), got.Cached, want.Cached)
	if got.Cached < 0.97*want.Cached || p90(got.Summary) > 1.1*p90(want.Summary) {
		t.Error("one failing server makes the others do worse than without it")
	}
	if got.first > 0 {
		t.Errorf("the server that fails answered %.3f of the calls", got.first)
	}
}
