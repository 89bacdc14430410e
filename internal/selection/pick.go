// Package selection decides which endpoint serves a call. It is pure: the facts, the pool's state, the time and the
// source of chance come in, a ranking comes out, and nothing is changed. Addresses, locks, streams and clusters may
// not enter.
package selection

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/inferencereq"
)

const (
	// Choices is the length of a ranking where there are so many endpoints: one to serve and two to retry on.
	Choices = 3

	// BlockTokens is the length of a prefix block in tokens, at four bytes a token.
	BlockTokens = inferencereq.BlockBytes / 4

	// othersShare is what a token to prefill costs those who come behind, as a multiple of what it costs the call
	// itself: in a fleet near its limit each of them is waited for about once more.
	othersShare = 1

	// requestTokens is what a call in flight costs a new one, in prefill tokens: the share of each step that its
	// decoding takes. It is half a block, so that one cached block outweighs up to three calls more.
	requestTokens = 32

	// spread bounds an endpoint's calls in flight to this multiple of the mean over the candidates, so that a
	// burst of one prompt does not herd where it is cached.
	spread = 2

	// batch is the number of calls in flight below which the bound is not asked: a server takes them into one
	// batch without slowing noticeably.
	batch = 8
)

// View is the pool as one pick sees it. Loads and Cached have an entry for each endpoint number; Candidates are the
// numbers that may be picked.
type View struct {
	Candidates []int32
	Loads      []Load
	// Cached is how many of the prompt's blocks, from its head, each endpoint is taken to hold.
	Cached []int32
	// Costs is room for the work, kept from pick to pick by the caller.
	Costs []float64
}

// Choice is one place of a ranking.
type Choice struct {
	Endpoint int32
	// Cached and Uncached are the prompt's tokens that the endpoint is taken to hold and those that it has to
	// prefill.
	Cached, Uncached int
}

// Pick ranks up to Choices candidates into out, best first, and returns their number: 0 only where there is no
// candidate.
//
// An endpoint's cost is the time until this call's first token plus what the call costs others, in seconds:
//
//	(queue + (1 + othersShare)·uncached + requestTokens·inflight) / rate
//
// with the queue of uncached prompt tokens ahead and the call's own, at the endpoint's prefill rate. A cached prefix
// so keeps a conversation where it is until the queue there costs more than the cache saves; a call with nothing
// cached anywhere goes where the least waits.
func Pick(facts *inferencereq.Facts, v *View, now time.Duration, rnd *rand.Rand, out *[Choices]Choice) int {
	n := len(v.Candidates)
	if n == 0 {
		return 0
	}
	// 1. Bound: no candidate takes more than its part of the calls in flight. At least one is always within it.
	bound := loadBound(v)
	// 2. Cost of each; those over the bound come after all others, in the order of their cost.
	prompt := facts.PromptTokens()
	costs := growTo(&v.Costs, n)
	for i, e := range v.Candidates {
		costs[i] = cost(&v.Loads[e], uncached(prompt, v.Cached[e]), now)
		if v.Loads[e].Requests >= bound {
			costs[i] += overBound
		}
	}
	// 3. The cheapest; of several, the longer unpicked of two drawn by lot.
	best := cheapest(v, costs, rnd)
	// 4. The rest of the ranking, by cost alone.
	ranked := 0
	for at := best; at >= 0 && ranked < Choices; at = leastFrom(costs, rnd) {
		e := v.Candidates[at]
		costs[at] = math.Inf(1)
		own := uncached(prompt, v.Cached[e])
		out[ranked] = Choice{Endpoint: e, Cached: prompt - own, Uncached: own}
		ranked++
	}
	return ranked
}

// overBound is more than any cost, in seconds, and small enough that adding a cost to it loses nothing that matters.
const overBound = 1e9

// loadBound is the number of calls in flight at which a candidate takes no more.
func loadBound(v *View) int {
	total := 0
	for _, e := range v.Candidates {
		total += v.Loads[e].Requests
	}
	n := len(v.Candidates)
	return max(batch, (spread*(total+1)+n-1)/n)
}

func cost(l *Load, own int, now time.Duration) float64 {
	return (l.Queue(now) + (1+othersShare)*float64(own) + requestTokens*float64(l.Requests)) / l.Rate
}

// uncached is how many of a prompt's tokens an endpoint that holds so many of its blocks has to prefill. Even a
// prompt that is held whole has its last token computed.
func uncached(prompt int, blocks int32) int {
	if prompt == 0 {
		return 0
	}
	return max(1, prompt-int(blocks)*BlockTokens)
}

// cheapest is the index of the lowest cost. Between equals two are drawn and the one that was picked longer ago is
// taken: an idle fleet is used evenly, and pickers that do not know of each other do not move in step.
func cheapest(v *View, costs []float64, rnd *rand.Rand) int {
	least, ties := math.Inf(1), 0
	for _, c := range costs {
		switch {
		case c < least:
			least, ties = c, 1
		case c == least:
			ties++
		}
	}
	if ties == 1 {
		return nthEqual(costs, least, 0)
	}
	a, b := rnd.IntN(ties), rnd.IntN(ties-1)
	if b >= a {
		b++
	}
	x, y := nthEqual(costs, least, a), nthEqual(costs, least, b)
	if v.Loads[v.Candidates[y]].LastPick < v.Loads[v.Candidates[x]].LastPick {
		return y
	}
	return x
}

// nthEqual is the index of the n-th entry, from 0, that is equal to value.
func nthEqual(costs []float64, value float64, n int) int {
	for i, c := range costs {
		if c == value {
			if n == 0 {
				return i
			}
			n--
		}
	}
	return -1
}

// leastFrom is the index of the lowest cost, or -1 where none is left. It begins to look at a random place, so that
// of equals not always the same one is the second choice.
func leastFrom(costs []float64, rnd *rand.Rand) int {
	at, least := -1, math.Inf(1)
	start := rnd.IntN(len(costs))
	for k := range costs {
		i := start + k
		if i >= len(costs) {
			i -= len(costs)
		}
		if costs[i] < least {
			at, least = i, costs[i]
		}
	}
	return at
}

func growTo(s *[]float64, n int) []float64 {
	if cap(*s) < n {
		*s = make([]float64, n)
	}
	return (*s)[:n]
}
