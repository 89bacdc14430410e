package main

import (
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// alone is an upper bound for every picker: each call has an idle server to itself, whose cache holds each block of each
// earlier call.
func alone(c server.Config, calls []workload.Call) sim.Summary {
	const perBlock = server.BlockTokens / workload.BlockTokens
	seen := map[uint64]bool{}
	outcomes := make([]sim.Outcome, 0, len(calls))
	for i := range calls {
		call := &calls[i]
		cached := 0
		for at := perBlock; cached+server.BlockTokens < call.Prompt && seen[call.Blocks[at-1]]; at += perBlock {
			cached += server.BlockTokens
		}
		for at := perBlock; at <= len(call.Blocks); at += perBlock {
			seen[call.Blocks[at-1]] = true
		}
		left := call.Prompt - cached
		steps := (left + c.BatchTokens - 1) / c.BatchTokens
		first := time.Duration(steps)*c.Step + time.Duration(c.Work(call.Prompt, cached)/c.PrefillRate*float64(time.Second))
		outcomes = append(outcomes, sim.Outcome{At: call.At, First: call.At + first, Prompt: call.Prompt, Cached: cached, Resident: true})
	}
	return sim.Summarize(outcomes)
}
