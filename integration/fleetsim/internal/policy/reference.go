package policy

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// Reference is the default profile of the endpoint picker that the Gateway API Inference Extension documents. It sums
// scores between 0 and 1: of the queue's length (weight 2), of the KV cache's utilisation (2) and of the prefix that it
// believes cached (3). The highest sum wins, a random one of equals. It reads metrics every 50 ms. For each server it
// remembers the last 31,250 blocks of 64 tokens sent there, each block by itself.
var Reference = Policy{"reference", func(s Setting) (Picker, error) {
	p := &reference{rnd: chance(s, 3), holders: map[uint64]uint64{}}
	for range s.Servers {
		p.memories = append(p.memories, newMemory(31250))
	}
	p.metrics = make([]server.Metrics, len(s.Servers))
	return p, nil
}}

const (
	queueWeight  = 2
	kvWeight     = 2
	prefixWeight = 3
)

type reference struct {
	members
	rnd      *rand.Rand
	metrics  []server.Metrics
	memories []*memory         // by server
	holders  map[uint64]uint64 // a bit for each server, by block
}

func (p *reference) Interval() time.Duration { return 50 * time.Millisecond }

func (p *reference) Scraped(_ time.Duration, metrics []server.Metrics) { copy(p.metrics, metrics) }

func (p *reference) Ended(time.Duration, int) {}

func (p *reference) Pick(_ time.Duration, _ int, c *workload.Call) int {
	matched := p.match(c.Blocks)
	shortest, longest := math.MaxInt, 0
	for _, m := range p.members {
		shortest = min(shortest, queued(p.metrics[m]))
		longest = max(longest, queued(p.metrics[m]))
	}
	best, highest, equal := 0, -1.0, 0
	for _, m := range p.members {
		queue := 1.0
		if longest > shortest {
			queue = float64(longest-queued(p.metrics[m])) / float64(longest-shortest)
		}
		prefix := 0.0
		if len(c.Blocks) > 0 {
			prefix = float64(matched[m]) / float64(len(c.Blocks))
		}
		score := queueWeight*queue + kvWeight*(1-p.metrics[m].KVUsage) + prefixWeight*prefix
		switch {
		case score > highest:
			best, highest, equal = m, score, 1
		case score == highest:
			if equal++; p.rnd.IntN(equal) == 0 {
				best = m
			}
		}
	}
	p.remember(best, c.Blocks)
	return best
}

// match counts the blocks that each server should hold, up to the first block that no server holds.
func (p *reference) match(blocks []uint64) []int {
	matched := make([]int, len(p.memories))
	for _, b := range blocks {
		holders := p.holders[b]
		if holders == 0 {
			break
		}
		for m := range matched {
			matched[m] += int(holders >> m & 1)
		}
	}
	return matched
}

func (p *reference) remember(m int, blocks []uint64) {
	for _, b := range blocks {
		evicted, any := p.memories[m].use(b)
		p.holders[b] |= 1 << m
		if any {
			if p.holders[evicted] &^= 1 << m; p.holders[evicted] == 0 {
				delete(p.holders, evicted)
			}
		}
	}
}

// memory is a set of blocks of limited size that evicts the least recently used one.
type memory struct {
	size    int
	entries map[uint64]*entry
	ring    entry // the most recently used first
}

type entry struct {
	block      uint64
	prev, next *entry
}

func newMemory(size int) *memory {
	m := &memory{size: size, entries: map[uint64]*entry{}}
	m.ring.prev, m.ring.next = &m.ring, &m.ring
	return m
}

// use notes a block and returns the block evicted for it, if any.
func (m *memory) use(block uint64) (evicted uint64, any bool) {
	e := m.entries[block]
	switch {
	case e != nil:
		e.prev.next, e.next.prev = e.next, e.prev
	case len(m.entries) < m.size:
		e = &entry{block: block}
		m.entries[block] = e
	default:
		e = m.ring.prev
		e.prev.next, e.next.prev = e.next, e.prev
		evicted, any = e.block, true
		delete(m.entries, evicted)
		e.block = block
		m.entries[block] = e
	}
	e.prev, e.next = &m.ring, m.ring.next
	e.prev.next, e.next.prev = e, e
	return evicted, any
}

// queued is num_requests_waiting, which does not tell deferred calls apart.
func queued(m server.Metrics) int { return m.Waiting + m.Deferred }
