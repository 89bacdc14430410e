package main

import (
	"fmt"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/sim"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// scale says how much a run measures.
type scale struct {
	sizes  []int     // numbers of servers
	caches []float64 // sizes of all caches together, as parts of the working set
	speeds []float64 // of the trace
	loads  []float64 // speeds of the trace for the load curve
	calls  int       // number of calls of the trace
	lasts  time.Duration
	bursts int
	deaths int // of a picker
}

var (
	whole = scale{
		sizes:  []int{8, 16},
		caches: []float64{0.05, 0.2, 0.5},
		speeds: []float64{1, 2, 4},
		loads:  []float64{0.25, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 8},
		calls:  1 << 30,
		lasts:  20 * time.Minute,
		bursts: 10,
		deaths: 8,
	}
	quick = scale{
		sizes:  []int{8},
		caches: []float64{0.2},
		speeds: []float64{1, 2},
		loads:  []float64{0.5, 2, 3, 4, 5, 6, 8},
		calls:  3000,
		lasts:  5 * time.Minute,
		bursts: 4,
		deaths: 4,
	}
)

// goalSpeeds are the speeds for the goals. At higher speeds a fleet of 8 is overloaded.
var goalSpeeds = map[float64]bool{1: true, 2: true}

// traceStudy is the trace on one fleet.
type traceStudy struct {
	study
	speed float64
	// alone is an upper bound for every picker.
	alone sim.Summary
}

func traceStudies(s scale, calls []workload.Call) []traceStudy {
	var out []traceStudy
	best := alone(server.Default(0), calls) // depends on the calls' order only, so it is the same at all speeds
	for _, n := range s.sizes {
		for _, part := range s.caches {
			fleet := fleetOf(n, part, calls)
			for _, speed := range s.speeds {
				out = append(out, traceStudy{
					study: study{
						name:  traceName(speed, n, part),
						fleet: fleet,
						calls: workload.Faster(calls, speed),
					},
					speed: speed,
					alone: best,
				})
			}
		}
	}
	return out
}

// attention is that of an 8B model of 32 layers of 4,096: attention to 30,000 tokens takes as many operations as the rest of a
// token's prefill.
const attention = 30_000

// attentionStudies are the trace on servers whose time for a token grows with the tokens before it. Such servers do less, so at
// the trace's own speed.
func attentionStudies(s scale, calls []workload.Call) []study {
	var out []study
	for _, n := range s.sizes {
		fleet := fleetOf(n, 0.2, calls)
		fleet.Server.Attention = attention
		out = append(out, study{name: traceName(1, n, 0.2) + ", attention", fleet: fleet, calls: calls})
	}
	return out
}

func traceName(speed float64, servers int, caches float64) string {
	return fmt.Sprintf("%g× on %d, caches %g %%", speed, servers, caches*100)
}

// loadStudies are the trace at rising speeds on 16 servers of 24,000 prompt tokens a second: on slower servers its long
// prompts alone take more than the curve's limit of 2 s. With spread, calls do not arrive in bunches.
func loadStudies(s scale, seed uint64, calls []workload.Call, spread bool) []study {
	fleet := fleetOf(16, 0.2, calls)
	fleet.Server.PrefillRate = 24000
	name := "as recorded"
	if spread {
		calls = workload.Spread(seed, calls, 3*time.Second)
		name = "spread"
	}
	var out []study
	for _, speed := range s.loads {
		out = append(out, study{
			name:  fmt.Sprintf("%s at %g×", name, speed),
			fleet: fleet,
			calls: workload.Faster(calls, speed),
		})
	}
	return out
}

// Names of the workloads that goals refer to.
const (
	burstsName   = "bursts of 64 equal prompts"
	fewAdapters  = "15 adapters"
	manyAdapters = "100 adapters"
	slowedName   = "one of 8 slowed 3×"
	withoutName  = "the 7 without it"
	burstGap     = 30 * time.Second
	slowedAt     = 2 * time.Minute
	noticed      = 10 * time.Second
)

// otherStudies are the synthetic workloads, each on 8 servers with caches of 1,000 blocks of 512 tokens.
func otherStudies(s scale, seed uint64) []study {
	even := workload.Independent(seed, 10, s.lasts)
	slowed := plain(8, 1000)
	slowed.Changes = []sim.Change{{At: slowedAt, Server: 0, Kind: sim.Slow, Slowness: 3}}
	withAdapters := plain(8, 1000)
	withAdapters.Server.AdapterSlots = 4
	agents := workload.Agents(seed, 1, s.lasts)
	return []study{
		{name: burstsName, fleet: plain(8, 1000), calls: workload.Bursts(seed, s.bursts, 64, burstGap), window: burstGap},
		{name: fewAdapters, fleet: withAdapters, calls: workload.Adapters(seed, 15, 16, s.lasts)},
		{name: manyAdapters, fleet: withAdapters, calls: workload.Adapters(seed, 100, 8, s.lasts)},
		{name: "agents", fleet: plain(8, 1000), calls: agents},
		{name: "agents, servers replaced", fleet: replaced(s.lasts), calls: agents},
		{name: "chats", fleet: plain(8, 1000), calls: workload.Chats(seed, 6, s.lasts)},
		{name: "documents", fleet: plain(8, 1000), calls: workload.Documents(seed, 400, 8, s.lasts)},
		{name: "independent prompts", fleet: plain(8, 1000), calls: even},
		{name: slowedName, fleet: slowed, calls: even, from: slowedAt + noticed},
		{name: withoutName, fleet: plain(7, 1000), calls: even, from: slowedAt + noticed},
	}
}

// Names of the studies of servers and callers that misbehave, for goals.
const (
	slowFleet  = "8 servers of 0.1× the speed"
	fastFleet  = "8 servers of 10× the speed"
	mixedFleet = "8 servers of 0.1× to 10×"
	leaveName  = "callers who leave"
	failName   = "one of 8 fails"
	shedName   = "one of 8 sheds"
	hangName   = "one of 8 hangs"
	lackName   = "the other 7 alone"
	foreign    = "a foreign client"
	sameName   = "one with the same documents"
	textName   = "two bytes a token"
)

const (
	// learned is the time after which speeds that differ from the assumed one count.
	learned = time.Minute
	// patience is how long callers wait where a server hangs.
	patience = 30 * time.Second
)

// harderStudies are servers whose speed nobody told, callers who leave, servers in trouble, and clients that do not ask
// the picker.
func harderStudies(s scale, seed uint64) []study {
	chats := workload.Streamed(workload.Chats(seed, 6, s.lasts))
	waiting := workload.Patient(chats, patience)
	small := plain(8, 200)
	small.Foreign = workload.Independent(seed+1, 8, s.lasts)
	docs := plain(8, 600)
	docs.Foreign = workload.Documents(seed+1, 400, 2, s.lasts)
	return []study{
		{name: slowFleet, fleet: atSpeed(0.1), calls: workload.Streamed(workload.Chats(seed, 0.6, s.lasts)), from: learned},
		{name: fastFleet, fleet: atSpeed(10), calls: workload.Streamed(workload.Chats(seed, 15, s.lasts/2)), from: learned},
		{name: mixedFleet, fleet: atSpeeds(0.1, 0.2, 0.4, 0.7, 1.4, 2.7, 5.2, 10), calls: workload.Streamed(workload.Chats(seed, 10, s.lasts/2)), from: learned},
		{name: leaveName, fleet: plain(8, 1000), calls: workload.Leaving(seed, chats, 0.3, 2*time.Second)},
		{name: failName, fleet: changed(sim.Change{Kind: sim.Fail}), calls: chats},
		{name: shedName, fleet: changed(sim.Change{Kind: sim.Shed, Most: 4}), calls: chats},
		{name: hangName, fleet: changed(sim.Change{At: slowedAt, Kind: sim.Hang}), calls: waiting},
		{name: lackName, fleet: plain(7, 1000), calls: waiting},
		{name: foreign, fleet: small, calls: workload.Streamed(workload.Chats(seed, 2, s.lasts))},
		{name: textName, fleet: plain(8, 300), calls: workload.Of(2, workload.Streamed(workload.Chats(seed, 3, s.lasts)))},
		{name: sameName, fleet: docs, calls: workload.Streamed(workload.Documents(seed, 400, 2, s.lasts))},
	}
}

// atSpeed is a fleet of 8 with a multiple of the speed that the picker assumes.
func atSpeed(times float64) sim.Fleet {
	f := plain(8, 1000)
	f.Server.PrefillRate *= times
	return f
}

// atSpeeds is a fleet of servers that differ in speed, by these multiples of the one that the picker assumes.
func atSpeeds(times ...float64) sim.Fleet {
	f := plain(len(times), 1000)
	for n, t := range times {
		f.Changes = append(f.Changes, sim.Change{Server: n, Kind: sim.Slow, Slowness: 1 / t})
	}
	return f
}

// changed is a fleet of 8 with a change of its first server.
func changed(c sim.Change) sim.Fleet {
	f := plain(8, 1000)
	f.Changes = []sim.Change{c}
	return f
}

// replaced is a fleet of 8 in which, as in a rollout, one server leaves every 2 minutes and a new one joins 10 s later.
func replaced(lasts time.Duration) sim.Fleet {
	f := plain(8, 1000)
	for k := 0; ; k++ {
		at := time.Duration(k+1) * 2 * time.Minute
		if at >= lasts {
			return f
		}
		f.Changes = append(f.Changes,
			sim.Change{At: at, Server: k, Kind: sim.Leave},
			sim.Change{At: at + noticed, Server: 8 + k, Kind: sim.Join})
	}
}

// fleetOf is a fleet whose caches together hold a part of the calls' working set, 0 to 1. Each cache holds at least the
// longest call, which could not be served otherwise.
func fleetOf(servers int, part float64, calls []workload.Call) sim.Fleet {
	longest := 0
	for i := range calls {
		longest = max(longest, calls[i].Prompt+calls[i].Output)
	}
	blocks := int(part * float64(workload.WorkingSet(calls)) / float64(servers) / server.BlockTokens)
	return plain(servers, max(blocks, longest/server.BlockTokens+1))
}

// plain is a fleet of servers with caches of so many blocks each.
func plain(servers, blocks int) sim.Fleet {
	return sim.Fleet{Servers: servers, Server: server.Default(blocks)}
}
