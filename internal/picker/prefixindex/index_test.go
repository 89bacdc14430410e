package prefixindex

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// chain makes the hashes of a prompt, given as its blocks' contents.
func chain(contents ...int) []uint64 {
	out := make([]uint64, len(contents))
	h := uint64(0x6a09e667f3bcc908)
	for i, c := range contents {
		h = (h + uint64(c)) * 0x9e3779b97f4a7c15
		h ^= h >> 29
		out[i] = h
	}
	return out
}

// prompt makes the hashes of n blocks that no other seed has.
func prompt(seed uint64, n int) []uint64 {
	rng := rand.New(rand.NewPCG(seed, 7))
	out := make([]uint64, n)
	for i := range out {
		out[i] = rng.Uint64()
	}
	return out
}

// match returns how many of the blocks each endpoint holds, and checks that Match and Held agree.
func match(x *Index, endpoints int, blocks []uint64) []int32 {
	depth := make([]int32, endpoints)
	x.Match(blocks, depth)
	for n, held := range depth {
		if one := x.Held(n, blocks); one != int(held) {
			panic(fmt.Sprintf("endpoint %d holds %d blocks when asked alone, and %d among all", n, one, held))
		}
	}
	return depth
}

func TestIndex(t *testing.T) {
	a, b := chain(1, 2, 3, 4), chain(1, 2, 8, 9)
	for name, tc := range map[string]struct {
		do        func(x *Index)
		blocks    []uint64
		wantDepth []int32
		wantSize  int
	}{
		"nothing is known at first": {
			do: func(*Index) {}, blocks: a, wantDepth: []int32{0, 0, 0},
		},
		"a prompt is held by whom it was sent to": {
			do:     func(x *Index) { x.Insert(1, a) },
			blocks: a, wantDepth: []int32{0, 4, 0}, wantSize: 4,
		},
		"a common head is held, what follows it is not": {
			do:     func(x *Index) { x.Insert(0, a); x.Insert(2, b) },
			blocks: b, wantDepth: []int32{2, 0, 4}, wantSize: 6,
		},
		"a conversation grows": {
			do:     func(x *Index) { x.Insert(0, a[:1]); x.Insert(0, a[:3]); x.Insert(1, a[:2]); x.Insert(0, a) },
			blocks: a, wantDepth: []int32{4, 2, 0}, wantSize: 4,
		},
		"a longer prompt matches no deeper than it was sent": {
			do:     func(x *Index) { x.Insert(0, a) },
			blocks: chain(1, 2, 3, 4, 5), wantDepth: []int32{4, 0, 0}, wantSize: 4,
		},
		"the oldest prompt's tail goes first": {
			do: func(x *Index) {
				x.SetCapacity(0, 6)
				x.Insert(0, a)
				x.Insert(0, chain(7, 7, 7))
			},
			blocks: a, wantDepth: []int32{3, 0, 0}, wantSize: 6,
		},
		"a used head stays while its unused tail goes": {
			do: func(x *Index) {
				x.SetCapacity(0, 6)
				x.Insert(0, a)
				x.Insert(0, chain(7, 7))
				x.Insert(0, a[:2])
				x.Insert(0, chain(8, 8, 8, 8))
			},
			blocks: a, wantDepth: []int32{2, 0, 0}, wantSize: 6,
		},
		"each endpoint has its own capacity": {
			do: func(x *Index) {
				x.SetCapacity(0, 1)
				x.SetCapacity(1, 3)
				for e := range 3 {
					x.Insert(e, a)
				}
			},
			blocks: a, wantDepth: []int32{1, 3, 4}, wantSize: 4,
		},
		"a smaller capacity evicts at once": {
			do:     func(x *Index) { x.Insert(0, a); x.SetCapacity(0, 2) },
			blocks: a, wantDepth: []int32{2, 0, 0}, wantSize: 2,
		},
		"no capacity holds nothing": {
			do:     func(x *Index) { x.SetCapacity(0, 0); x.Insert(0, a); x.SetCapacity(1, -1); x.Insert(1, a) },
			blocks: a, wantDepth: []int32{0, 0, 0},
		},
		"forgotten at once, the others are not": {
			do:     func(x *Index) { x.Insert(0, a); x.Insert(1, a[:2]); x.Forget(0) },
			blocks: a, wantDepth: []int32{0, 2, 0}, wantSize: 2,
		},
		"a number given out anew starts with nothing and the default capacity": {
			do: func(x *Index) {
				x.SetCapacity(0, 1)
				x.Insert(0, a)
				x.Forget(0)
				x.Insert(0, b)
			},
			blocks: b, wantDepth: []int32{4, 0, 0}, wantSize: 4,
		},
		"blocks of others take room": {
			do:     func(x *Index) { x.SetCapacity(0, 6); x.Insert(0, a); x.Occupy(0, 3); x.Insert(1, a); x.Occupy(1, 90) },
			blocks: a, wantDepth: []int32{3, 4, 0}, wantSize: 4,
		},
		"blocks of others go when they are the oldest": {
			do: func(x *Index) {
				x.SetCapacity(0, 6)
				x.Insert(0, a[:1])
				x.Occupy(0, 5)
				x.Insert(0, a)
			},
			blocks: a, wantDepth: []int32{4, 0, 0}, wantSize: 4,
		},
		"more blocks of others than there is room": {
			do:     func(x *Index) { x.SetCapacity(0, 6); x.Insert(0, a); x.Occupy(0, 1<<40); x.Insert(0, b) },
			blocks: b, wantDepth: []int32{4, 0, 0}, wantSize: 4,
		},
		"no blocks of others, and none of an unknown endpoint": {
			do: func(x *Index) {
				x.SetCapacity(0, 4)
				x.Insert(0, a)
				x.Occupy(0, 0)
				x.Occupy(0, -5)
				x.Occupy(7, 5)
				x.Occupy(-1, 5)
			},
			blocks: a, wantDepth: []int32{4, 0, 0}, wantSize: 4,
		},
		"numbers beyond the depths asked for, and none": {
			do:     func(x *Index) { x.Insert(3, a); x.Insert(1<<20, a); x.Insert(-1, a); x.Forget(-1); x.Forget(9) },
			blocks: a, wantDepth: []int32{0, 0, 0}, wantSize: 4,
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := New(100, unlimited())
			tc.do(x)
			if diff := cmp.Diff(tc.wantDepth, match(x, 3, tc.blocks)); diff != "" {
				t.Errorf("depth (-want +got):\n%s", diff)
			}
			x.sweepAll()
			if got := x.Blocks(); got != tc.wantSize {
				t.Errorf("Blocks() = %d, want %d", got, tc.wantSize)
			}
		})
	}
}

// naive is an LRU over single blocks, by its definition.
type naive struct {
	clock    int
	capacity map[int]int
	held     map[int]map[uint64]use // by endpoint
	unnamed  uint64
}

type use struct{ clock, depth int }

func (m *naive) insert(endpoint int, blocks []uint64) {
	m.clock++
	m.know(endpoint)
	for i, b := range blocks {
		m.held[endpoint][b] = use{m.clock, i}
	}
	m.evict(endpoint)
}

func (m *naive) know(endpoint int) {
	if m.held[endpoint] == nil {
		m.held[endpoint] = map[uint64]use{}
	}
}

// occupy adds blocks that no prompt has, used as late as the last prompt and evicted after it.
func (m *naive) occupy(endpoint, blocks int) {
	held := m.held[endpoint]
	if held == nil {
		return
	}
	for range min(blocks, m.capacity[endpoint]) {
		m.unnamed++
		held[1<<63|m.unnamed] = use{m.clock, -1}
	}
	m.evict(endpoint)
}

func (m *naive) evict(endpoint int) {
	held := m.held[endpoint]
	order := make([]uint64, 0, len(held))
	for b := range held {
		order = append(order, b)
	}
	slices.SortFunc(order, func(a, b uint64) int {
		if c := held[a].clock - held[b].clock; c != 0 {
			return c
		}
		return held[b].depth - held[a].depth
	})
	for _, b := range order[:max(0, len(order)-m.capacity[endpoint])] {
		delete(held, b)
	}
}

func (m *naive) match(endpoints int, blocks []uint64) []int32 {
	out := make([]int32, endpoints)
	for e := range out {
		for _, b := range blocks {
			if _, ok := m.held[e][b]; !ok {
				break
			}
			out[e]++
		}
	}
	return out
}

func (m *naive) size() int {
	all := map[uint64]bool{}
	for _, held := range m.held {
		for b, u := range held {
			if u.depth >= 0 {
				all[b] = true
			}
		}
	}
	return len(all)
}

// TestModel lets the index and the naive LRU do the same random things and compares everything that can be seen.
func TestModel(t *testing.T) {
	const endpoints, capacity = 5, 40
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		x, m := New(capacity, unlimited()), &naive{capacity: map[int]int{}, held: map[int]map[uint64]use{}}
		for e := range endpoints {
			m.capacity[e] = capacity
		}
		branching := 1 + rng.IntN(4)
		random := func() []uint64 {
			contents := make([]int, 1+rng.IntN(24))
			for i := range contents {
				if rng.IntN(4) == 0 {
					contents[i] = rng.IntN(branching)
				}
			}
			return chain(contents...)
		}
		for step := range 400 {
			e := rng.IntN(endpoints)
			switch rng.IntN(40) {
			case 0:
				x.Forget(e)
				delete(m.held, e)
				m.capacity[e] = capacity
			case 1:
				n := rng.IntN(2 * capacity)
				x.SetCapacity(e, n)
				m.capacity[e] = n
				m.know(e)
				m.evict(e)
			case 2, 3, 4:
				n := rng.IntN(12)
				x.Occupy(e, n)
				m.occupy(e, n)
			default:
				p := random()
				x.Insert(e, p)
				m.insert(e, p)
			}
			p := random()
			if diff := cmp.Diff(m.match(endpoints, p), match(x, endpoints, p)); diff != "" {
				t.Fatalf("seed %d, step %d (-want +got):\n%s", seed, step, diff)
			}
			x.sweepAll()
			if got, want := x.Blocks(), m.size(); got != want {
				t.Fatalf("seed %d, step %d: %d blocks, want %d", seed, step, got, want)
			}
			for e, h := range x.endpoints {
				if h.size+h.others.blocks != len(m.held[e]) {
					t.Fatalf("seed %d, step %d: endpoint %d holds %d and %d of others, want %d", seed, step, e, h.size, h.others.blocks, len(m.held[e]))
				}
			}
		}
		for e := range endpoints {
			x.Forget(e)
		}
		x.sweepAll()
		if live := x.runs.Load().live; live != 0 || x.Blocks() != 0 {
			t.Fatalf("seed %d: %d runs and %d blocks are left of nothing", seed, live, x.Blocks())
		}
	}
}

// TestForgetIsSweptByInserts shows that inserts free the memory of forgotten endpoints.
func TestForgetIsSweptByInserts(t *testing.T) {
	x := New(1<<20, unlimited())
	for i := range uint64(1000) {
		x.Insert(1, prompt(i, 3))
	}
	x.Forget(1)
	p := prompt(1<<40, 2)
	for range 1000/sweepNodes + 2 {
		x.Insert(2, p)
	}
	if got := x.Blocks(); got != 2 {
		t.Errorf("Blocks() = %d, want the 2 of the endpoint that is left", got)
	}
	if got := len(x.freeIDs); got != 1 {
		t.Errorf("%d ids are free, want that of the forgotten endpoint", got)
	}
}

// sweepAll frees the memory of all forgotten endpoints.
func (x *Index) sweepAll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(x.forgotten) > 0 {
		x.sweepSome()
	}
}

// An index without calls also frees the memory of forgotten endpoints, a little at a time.
func TestForgetIsSweptInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := New(1<<20, unlimited())
		for e := range 3 {
			for i := range uint64(1000) {
				x.Insert(e, prompt(uint64(e)<<20|i, 3))
			}
		}
		for e := range 3 {
			x.Forget(e)
		}
		if got := x.Blocks(); got < 8000 {
			t.Errorf("%d blocks are left at once, want nearly all", got)
		}
		time.Sleep(3 * sweepEvery)
		if got := x.Blocks(); got < 3000 {
			t.Errorf("%d blocks are left after three times, want most", got)
		}
		time.Sleep(100 * sweepEvery)
		if got := x.Blocks(); got != 0 {
			t.Errorf("%d blocks are left, want none", got)
		}
		// The next one that is forgotten is swept as well.
		x.Insert(1, prompt(1, 3))
		x.Forget(1)
		time.Sleep(2 * sweepEvery)
		if got := x.Blocks(); got != 0 {
			t.Errorf("%d blocks of the second time are left, want none", got)
		}
	})
}

// FuzzIndex gives the index hashes that are not chained: its answers are then useless, but it must not fail.
func FuzzIndex(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 1, 2, 4, 0, 2, 2, 0, 3, 3, 1})
	f.Add([]byte{5, 5, 5, 0, 5, 5, 0, 5, 0, 0, 0, 5, 6, 5, 6})
	f.Fuzz(func(t *testing.T, ops []byte) {
		x := New(12, unlimited())
		depth := make([]int32, 4)
		var blocks []uint64
		for i, b := range ops {
			if b%8 != 0 {
				blocks = append(blocks, uint64(b%8))
				continue
			}
			x.Match(blocks, depth)
			x.Insert(int(b>>3)%4, blocks)
			if b > 240 {
				x.Forget(i % 4)
			}
			blocks = blocks[:0]
		}
		for e := range 4 {
			x.Forget(e)
		}
		x.sweepAll()
		if x.Blocks() != 0 {
			t.Errorf("%d blocks are left of nothing", x.Blocks())
		}
	})
}

// TestConcurrently is for the race detector; what can be asserted while others write is that depths are possible.
func TestConcurrently(t *testing.T) {
	const endpoints = 8
	x := New(300, unlimited())
	shared := prompt(1, 50)
	prompts := make([][]uint64, 40)
	for i := range prompts {
		prompts[i] = append(slices.Clone(shared[:10+i]), prompt(uint64(i+2), 30)...)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 3))
			for range 3000 {
				p := prompts[rng.IntN(len(prompts))]
				x.Insert(rng.IntN(endpoints), p[:1+rng.IntN(len(p))])
				if rng.IntN(100) == 0 {
					x.Forget(rng.IntN(endpoints))
				}
			}
		})
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 4))
			depth := make([]int32, endpoints)
			for range 10000 {
				p := prompts[rng.IntN(len(prompts))]
				x.Match(p, depth)
				if m := slices.Max(depth); int(m) > len(p) {
					t.Errorf("depth %d of %d blocks", m, len(p))
				}
			}
		})
	}
	wg.Wait()
}

// A reader that finds a run just as it is removed sees the run or nothing.
func TestMatchWhileARunIsRemoved(t *testing.T) {
	x, p := New(10, unlimited()), prompt(1, 5)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			depth := make([]int32, 1)
			for {
				select {
				case <-done:
					return
				default:
				}
				if x.Match(p, depth); depth[0] != 0 && depth[0] != 5 {
					t.Errorf("the endpoint holds %d blocks, want all 5 or none", depth[0])
				}
			}
		})
	}
	for range 100_000 {
		x.Insert(0, p)
		x.Withdraw(0, p, 0)
	}
	close(done)
	wg.Wait()
}

func TestMatchDoesNotAllocate(t *testing.T) {
	x, p := New(1<<20, unlimited()), prompt(1, 2048)
	for e := range 100 {
		x.Insert(e, p[:2048-e])
	}
	depth := make([]int32, 100)
	if n := testing.AllocsPerRun(100, func() { x.Match(p, depth) }); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
	if n := testing.AllocsPerRun(100, func() { x.Insert(7, p[:2000]) }); n != 0 {
		t.Errorf("%v allocations to touch what is held, want none", n)
	}
}

// BenchmarkMatch looks up a prompt of 2,048 blocks. Whole: all holders hold all of it, in one run. Parted: it is
// parted into 64 runs by other prompts that leave it, and each holder holds another length of it.
func BenchmarkMatch(b *testing.B) {
	p := prompt(1, 2048)
	for _, holders := range []int{1, 10, 100, 1000} {
		depth := make([]int32, holders)
		whole, parted := New(1<<20, unlimited()), New(1<<20, unlimited())
		for e := range holders {
			whole.Insert(e, p)
			parted.Insert(e, p[:2048-e])
		}
		for i := range 63 {
			parted.Insert(0, append(slices.Clone(p[:32*(i+1)]), prompt(uint64(i+2), 10)...))
		}
		for name, x := range map[string]*Index{"whole": whole, "parted": parted} {
			b.Run(fmt.Sprintf("%s/holders=%d", name, holders), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					x.Match(p, depth)
				}
			})
		}
	}
}

// BenchmarkInsert inserts 2,048 blocks: warm, where the endpoint holds them all, alone or with 999 others; a turn of
// a conversation that adds 16 blocks to 2,032; and cold, where 2,048 others have to go.
func BenchmarkInsert(b *testing.B) {
	p := prompt(1, 2048)
	for _, holders := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("warm/holders=%d", holders), func(b *testing.B) {
			x := New(31250, unlimited())
			for e := range holders {
				x.Insert(e, p)
			}
			b.ReportAllocs()
			for b.Loop() {
				x.Insert(holders-1, p)
			}
		})
	}
	b.Run("turn", func(b *testing.B) {
		x, p := New(31250, unlimited()), slices.Clone(p)
		x.Insert(0, p)
		rng := rand.New(rand.NewPCG(1, 1))
		b.ReportAllocs()
		for b.Loop() {
			for i := range p[2032:] {
				p[2032+i] = rng.Uint64()
			}
			x.Insert(0, p)
		}
	})
	b.Run("cold", func(b *testing.B) {
		x, p := New(31250, unlimited()), slices.Clone(p)
		rng := rand.New(rand.NewPCG(1, 1))
		b.ReportAllocs()
		for b.Loop() {
			for i := range p {
				p[i] = rng.Uint64()
			}
			x.Insert(0, p)
		}
	})
}

// BenchmarkMemory fills 100 endpoints with 31,250 blocks each: conversations that share one of ten system prompts of
// 20 blocks and then grow by 1 to 40 blocks a turn, on one endpoint mostly. It prints the heap for each block that
// is held, and for each pair of an endpoint and a block.
func BenchmarkMemory(b *testing.B) {
	const endpoints, capacity = 100, 31250
	for b.Loop() {
		before := heap()
		x := New(capacity, unlimited())
		rng := rand.New(rand.NewPCG(1, 1))
		for inserted := 0; inserted < endpoints*capacity*5/4; {
			p := slices.Clone(prompt(rng.Uint64N(10), 20))
			e := rng.IntN(endpoints)
			for range 1 + rng.IntN(10) {
				more := prompt(rng.Uint64(), 1+rng.IntN(40))
				inserted += len(more)
				p = append(p, more...)
				if rng.IntN(8) == 0 {
					e = rng.IntN(endpoints)
				}
				x.Insert(e, p)
			}
		}
		pairs := 0
		for _, h := range x.holders {
			pairs += h.size
		}
		bytes := float64(heap() - before)
		b.ReportMetric(bytes/float64(x.Blocks()), "B/block")
		b.ReportMetric(bytes/float64(pairs), "B/pair")
		b.ReportMetric(float64(x.Blocks())/float64(x.runs.Load().live), "blocks/run")
		b.ReportMetric(bytes/1e6, "MB")
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
