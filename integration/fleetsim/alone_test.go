package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/policy"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Calls that are far apart meet an idle server, and a large cache holds all their blocks.
func TestAloneIsWhatAnIdleServerDoes(t *testing.T) {
	calls := workload.Documents(1, 5, 1, time.Minute)
	for i := range calls {
		calls[i].At = time.Duration(i) * 10 * time.Minute
	}
	outcomes, err := sim.Run(plain(1, 10000), calls, policy.RoundRobin, 1)
	if err != nil {
		t.Fatal(err)
	}
	got := alone(server.Default(10000), calls)
	if diff := cmp.Diff(sim.Summarize(outcomes), got); diff != "" || got.Cached == 0 {
		t.Errorf("alone is not what an idle server does, with %.2f cached (-server +alone):\n%s", got.Cached, diff)
	}
}
