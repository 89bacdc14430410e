package prefixindex

import (
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

// copyAll merges what endpoints below the given number hold in one index into another.
func copyAll(t testing.TB, from, to *Index, endpoints int) {
	t.Helper()
	for e := range endpoints {
		m := to.Merger(e)
		from.Copy(e, func(p Piece) bool {
			if !m.Merge(p) {
				t.Fatalf("endpoint %d: a piece does not follow the one before: %+v", e, p)
			}
			return true
		})
	}
}

// pieces returns clones of an endpoint's pieces.
func pieces(x *Index, endpoint int) []Piece {
	var out []Piece
	x.Copy(endpoint, func(p Piece) bool {
		p.Blocks = slices.Clone(p.Blocks)
		out = append(out, p)
		return true
	})
	return out
}

// checkBooks checks the tree's invariants and that the index's numbers are what the tree has.
func checkBooks(t testing.TB, x *Index) {
	t.Helper()
	x.mu.Lock()
	if !x.closed && x.taken != x.bytes() {
		t.Errorf("the index took %d bytes and has %d", x.taken, x.bytes())
	}
	x.mu.Unlock()
	x.sweepAll()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.account()
	blocks, shares, runs := 0, 0, 0
	children, kids := map[*node]int{}, map[*node]map[uint32]int{}
	nodes := x.nodes()
	for _, n := range nodes {
		runs++
		blocks += len(n.run.blocks)
		shares += checkShares(t, x, n)
		if p := n.parent; p != nil {
			children[p]++
			if kids[p] == nil {
				kids[p] = map[uint32]int{}
			}
			for _, w := range n.run.held {
				if id, held := unpack(w); held > 0 {
					kids[p][id]++
				}
			}
		}
	}
	for _, n := range nodes {
		if n.children != children[n] {
			t.Errorf("a node has %d children and counts %d", children[n], n.children)
		}
		for i, w := range n.run.held {
			if id, held := unpack(w); held > 0 && int(n.holds[i].kids) != kids[n][id] {
				t.Errorf("a share has %d kids and counts %d", kids[n][id], n.holds[i].kids)
			}
		}
	}
	if blocks != x.blocks || shares != x.shares || runs != x.runs.Load().live {
		t.Errorf("the index counts %d blocks, %d shares, %d runs, and has %d, %d, %d", x.blocks, x.shares, x.runs.Load().live, blocks, shares, runs)
	}
	for e, h := range x.endpoints {
		if h.size+h.others.blocks > h.capacity || h.size != x.count(h.id) {
			t.Errorf("endpoint %d: size %d and %d of others, of %d; it holds %d", e, h.size, h.others.blocks, h.capacity, x.count(h.id))
		}
	}
}

func (x *Index) nodes() []*node {
	var out []*node
	slots := x.runs.Load().slots
	for i := range slots {
		if r := slots[i].run.Load(); r != nil && r != removed {
			out = append(out, r.node)
		}
	}
	return out
}

// checkShares checks the shares in one node and returns how many there are.
func checkShares(t testing.TB, x *Index, n *node) int {
	t.Helper()
	shares := 0
	for i, w := range n.run.held {
		id, held := unpack(w)
		if held == 0 {
			continue
		}
		shares++
		s, h := n.holds[i], x.holders[id]
		if held > len(n.run.blocks) || n.find(id) != i || s.kids > 0 && held < len(n.run.blocks) {
			t.Errorf("share %d of a node is of %d blocks of %d and has %d kids; the id's first is %d", i, held, len(n.run.blocks), s.kids, n.find(id))
		}
		if s.kids == 0 && !slices.ContainsFunc(h.ends, func(e end) bool { return e.node == n && e.used <= s.used }) {
			t.Errorf("an end of holder %d is not among its ends, or as a younger one", id)
		}
		if p := n.parent; p != nil && (p.find(id) < 0 || p.held(p.find(id)) != len(p.run.blocks)) {
			t.Errorf("holder %d does not hold all of a parent", id)
		}
	}
	if shares == 0 || shares != int(n.run.live.Load()) || len(n.holds) != len(n.run.held) || n.run.node != n {
		t.Errorf("a node has %d shares and counts %d; %d words, %d uses", shares, n.run.live.Load(), len(n.run.held), len(n.holds))
	}
	return shares
}

func TestCopyTellsPaths(t *testing.T) {
	a, b := chain(1, 2, 3, 4), chain(1, 2, 8, 9)
	for name, tc := range map[string]struct {
		do   func(x *Index)
		want []Piece
	}{
		"nothing of an unknown endpoint":    {do: func(x *Index) { x.Insert(1, a) }},
		"nothing of one that holds nothing": {do: func(x *Index) { x.SetCapacity(0, 7) }},
		"nothing of a forgotten one":        {do: func(x *Index) { x.Insert(0, a); x.Forget(0) }},
		"nothing of before it was forgotten": {
			do:   func(x *Index) { x.Insert(0, a); x.Forget(0); x.Insert(0, b) },
			want: []Piece{{Blocks: b}},
		},
		"a path with the inserts since its use": {
			do:   func(x *Index) { x.Insert(0, a); x.Insert(1, b); x.Insert(1, b) },
			want: []Piece{{Blocks: a, Age: 2}},
		},
		"no more of a run than is held": {
			do:   func(x *Index) { x.Insert(1, a); x.Insert(0, a[:3]) },
			want: []Piece{{Blocks: a[:3]}},
		},
		"a common head once": {
			do:   func(x *Index) { x.Insert(0, a); x.Insert(0, b) },
			want: []Piece{{Blocks: a, Age: 1}, {Keep: 2, Blocks: b[2:]}},
		},
		"a head that was used later than what follows it": {
			do:   func(x *Index) { x.Insert(0, a); x.Insert(0, a[:2]) },
			want: []Piece{{Blocks: a[:2]}, {Keep: 2, Blocks: a[2:], Age: 1}},
		},
		"no head that was used earlier": {
			do:   func(x *Index) { x.Insert(0, a[:2]); x.Insert(0, a); x.Insert(1, b) },
			want: []Piece{{Blocks: a, Age: 1}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := New(100, unlimited())
			tc.do(x)
			if diff := cmp.Diff(tc.want, pieces(x, 0)); diff != "" {
				t.Errorf("pieces (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCopyStops(t *testing.T) {
	x := New(1000, unlimited())
	for i := range uint64(10) {
		x.Insert(0, prompt(i, 3))
	}
	told := 0
	x.Copy(0, func(Piece) bool { told++; return told < 4 })
	if told != 4 {
		t.Errorf("%d pieces are told, want no more than the 4 that were asked for", told)
	}
	told = 0
	x.Copy(0, func(Piece) bool { told++; x.Forget(0); return true })
	if told != 1 {
		t.Errorf("%d pieces are told, want none after the endpoint was forgotten", told)
	}
}

// randomPrompts makes prompts that part at random places, and some that are heads of others.
func randomPrompts(rng *rand.Rand, n int) [][]uint64 {
	out := make([][]uint64, n)
	for i := range out {
		contents := make([]int, 1+rng.IntN(24))
		for j := range contents {
			if rng.IntN(4) == 0 {
				contents[j] = rng.IntN(3)
			}
		}
		out[i] = chain(contents...)
	}
	return out
}

// usedIndex makes an index to which all sorts of things were done.
func usedIndex(rng *rand.Rand, prompts [][]uint64, endpoints, capacity int) *Index {
	x := New(capacity, unlimited())
	for range 50 + rng.IntN(600) {
		e, p := rng.IntN(endpoints), prompts[rng.IntN(len(prompts))]
		switch rng.IntN(20) {
		case 0:
			x.Forget(e)
		case 1, 2:
			held := x.Held(e, p)
			x.Insert(e, p)
			x.Withdraw(e, p, held)
		default:
			x.Insert(e, p)
		}
	}
	x.sweepAll()
	return x
}

// compare checks that two indexes answer alike for all prompts, and hold as much.
func compare(t *testing.T, want, got *Index, prompts [][]uint64, endpoints int) {
	t.Helper()
	for _, p := range prompts {
		if w, g := match(want, endpoints, p), match(got, endpoints, p); !slices.Equal(w, g) {
			t.Fatalf("depths %v, want %v", g, w)
		}
	}
	if want.Blocks() != got.Blocks() {
		t.Fatalf("%d blocks, want %d", got.Blocks(), want.Blocks())
	}
	for e, h := range want.endpoints {
		if size := got.endpoints[e].size; size != h.size {
			t.Fatalf("endpoint %d holds %d blocks, want %d", e, size, h.size)
		}
	}
}

// A copy answers as its original does, takes no more memory, and evicts in the same order. The original may have nodes
// that it split for prompts that are gone, so only a copy's copy is sure to take the same memory.
func TestCopyRoundTrip(t *testing.T) {
	const endpoints, capacity = 4, 60
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 5))
		prompts := randomPrompts(rng, 40)
		x := usedIndex(rng, prompts, endpoints, capacity)
		once, twice := New(capacity, unlimited()), New(capacity, unlimited())
		copyAll(t, x, once, endpoints)
		copyAll(t, once, twice, endpoints)
		compare(t, x, once, prompts, endpoints)
		compare(t, x, twice, prompts, endpoints)
		checkBooks(t, once)
		if x.bytes() < once.bytes() || once.bytes() != twice.bytes() {
			t.Fatalf("seed %d: the original has %d bytes, its copy %d, and the copy's copy %d", seed, x.bytes(), once.bytes(), twice.bytes())
		}
		for range 200 {
			e, p := rng.IntN(endpoints), prompts[rng.IntN(len(prompts))]
			if rng.IntN(3) == 0 {
				p = randomPrompt(rng, 1+rng.IntN(10))
			}
			x.Insert(e, p)
			once.Insert(e, p)
			compare(t, x, once, prompts, endpoints)
		}
		checkBooks(t, x)
		checkBooks(t, once)
	}
}

// Where no prompt is the head of another and nothing is evicted, no node was split for nothing. Then a copy has the same
// runs and shares as its original.
func TestCopyTakesTheSameMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 6))
	x, y := New(1<<20, unlimited()), New(1<<20, unlimited())
	for i, p := range randomPrompts(rng, 500) {
		x.Insert(i%7, append(p, rng.Uint64()))
	}
	copyAll(t, x, y, 7)
	if x.bytes() != y.bytes() || x.shares != y.shares || x.runs.Load().live != y.runs.Load().live {
		t.Errorf("the copy has %d bytes, %d shares, %d runs, want %d, %d, %d", y.bytes(), y.shares, y.runs.Load().live, x.bytes(), x.shares, x.runs.Load().live)
	}
}

// merge notes uses at a time that may have passed.
func (m *naive) merge(endpoint int, blocks []uint64, clock int) {
	m.know(endpoint)
	for i, b := range blocks {
		if u, ok := m.held[endpoint][b]; !ok || u.clock < clock {
			m.held[endpoint][b] = use{clock, i}
		}
	}
	m.evict(endpoint)
}

// TestMergeModel lets the index and the naive LRU insert and merge the same random things and compares what they hold.
func TestMergeModel(t *testing.T) {
	const endpoints, capacity = 3, 60
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 8))
		prompts := randomPrompts(rng, 60)
		x, m := New(capacity, unlimited()), &naive{capacity: map[int]int{}, held: map[int]map[uint64]use{}}
		mergers, made, lasts := make([]*Merger, endpoints), make([]int, endpoints), make([][]uint64, endpoints)
		taken := map[int]bool{} // no two uses are at the same time, so there is one order to evict them
		for e := range endpoints {
			m.capacity[e] = capacity
		}
		for step := range 300 {
			e, p := rng.IntN(endpoints), prompts[rng.IntN(len(prompts))]
			if mergers[e] == nil || rng.IntN(20) == 0 {
				mergers[e], made[e], lasts[e] = x.Merger(e), m.clock, nil
			}
			switch age := rng.IntN(200); {
			case rng.IntN(30) == 0:
				n := 20 + rng.IntN(capacity)
				x.SetCapacity(e, n)
				m.capacity[e] = n
				m.know(e)
				m.evict(e)
			case rng.IntN(2) == 0 || taken[made[e]-age]:
				x.Insert(e, p)
				m.insert(e, p)
				taken[m.clock] = true
			default:
				keep := 0
				if len(lasts[e]) > 0 {
					keep = rng.IntN(1 + common(lasts[e], p))
				}
				if !mergers[e].Merge(Piece{Keep: keep, Blocks: p[keep:], Age: uint64(age)}) {
					t.Fatalf("seed %d, step %d: a piece that keeps %d of %d blocks does not follow", seed, step, keep, len(lasts[e]))
				}
				m.merge(e, p, made[e]-age)
				taken[made[e]-age], lasts[e] = true, p
			}
			for _, p := range prompts {
				if want, got := m.match(endpoints, p), match(x, endpoints, p); !slices.Equal(want, got) {
					t.Fatalf("seed %d, step %d: depths %v, want %v", seed, step, got, want)
				}
			}
			if got, want := x.Blocks(), m.size(); got != want {
				t.Fatalf("seed %d, step %d: %d blocks, want %d", seed, step, got, want)
			}
		}
		checkBooks(t, x)
	}
}

// Two indexes that each saw a half know all of it after they merged each other's copy.
func TestMergeOfHalves(t *testing.T) {
	const endpoints = 3
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 9))
		prompts := randomPrompts(rng, 200)
		a, b, both := New(1<<20, unlimited()), New(1<<20, unlimited()), New(1<<20, unlimited())
		for i, p := range prompts {
			both.Insert(i%endpoints, p)
			[]*Index{a, b}[rng.IntN(2)].Insert(i%endpoints, p)
		}
		copyAll(t, a, b, endpoints)
		copyAll(t, b, a, endpoints)
		for _, x := range []*Index{a, b} {
			checkBooks(t, x)
			compare(t, both, x, prompts, endpoints)
		}
		before := b.bytes()
		copyAll(t, a, b, endpoints)
		if b.bytes() != before {
			t.Errorf("seed %d: after the same copy again the index has %d bytes, before %d", seed, b.bytes(), before)
		}
	}
}

// However many inserts the two sides counted, neither evicts all of the other's: both lose their older half.
func TestMergeOfDifferentClocks(t *testing.T) {
	for name, busy := range map[string]struct{ from, to int }{
		"the copied index counted more": {from: 100_000},
		"the copied index counted less": {to: 100_000},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := New(100, unlimited()), New(100, unlimited())
			for range busy.from {
				from.Insert(9, chain(1))
			}
			for range busy.to {
				to.Insert(9, chain(1))
			}
			for i := range uint64(20) {
				from.Insert(0, prompt(i, 5))
				to.Insert(0, prompt(100+i, 5))
			}
			copyAll(t, from, to, 1)
			for i := range uint64(20) {
				want := 0
				if i >= 10 {
					want = 5
				}
				if there, here := to.Held(0, prompt(i, 5)), to.Held(0, prompt(100+i, 5)); there != want || here != want {
					t.Errorf("of prompt %d %d blocks are held of the copied index and %d of the own one, want %d", i, there, here, want)
				}
			}
			to.Insert(0, prompt(1000, 95))
			if held := to.Held(0, prompt(1000, 95)); held != 95 {
				t.Errorf("a new prompt has %d blocks, want 95: it is younger than all that was merged", held)
			}
		})
	}
}

func TestMergeIgnoresWhatItCannotTake(t *testing.T) {
	a := chain(1, 2, 3, 4)
	whole := Piece{Blocks: a}
	for name, tc := range map[string]struct {
		do       func(x *Index, m *Merger)
		endpoint int
		want     int // blocks of a
	}{
		"a piece":                 {do: func(_ *Index, m *Merger) { m.Merge(whole) }, want: 4},
		"no blocks":               {do: func(_ *Index, m *Merger) { m.Merge(Piece{}) }},
		"more kept than was told": {do: func(_ *Index, m *Merger) { m.Merge(Piece{Keep: 1, Blocks: a}) }},
		"fewer kept than none":    {do: func(_ *Index, m *Merger) { m.Merge(Piece{Keep: -1, Blocks: a}) }},
		"what follows an ignored piece": {do: func(_ *Index, m *Merger) {
			m.Merge(Piece{Blocks: a[:1]})
			m.Merge(Piece{Keep: 9})
			m.Merge(Piece{Keep: 1, Blocks: a[1:]})
		}, want: 1},
		"a head after an ignored piece": {do: func(_ *Index, m *Merger) { m.Merge(Piece{Keep: 9}); m.Merge(whole) }, want: 4},
		"an endpoint below 0":           {do: func(_ *Index, m *Merger) { m.Merge(whole) }, endpoint: -1},
		"an endpoint beyond all":        {do: func(_ *Index, m *Merger) { m.Merge(whole) }, endpoint: math.MaxInt},
		"an age beyond the clock":       {do: func(_ *Index, m *Merger) { m.Merge(Piece{Blocks: a, Age: math.MaxUint64}) }, want: 4},
		"more than the capacity": {
			do:   func(x *Index, m *Merger) { x.SetCapacity(0, 2); m.Merge(whole); m.Merge(Piece{Keep: 3, Blocks: a[3:]}) },
			want: 2,
		},
		"a capacity that grew meanwhile": {
			do: func(x *Index, m *Merger) {
				x.SetCapacity(0, 2)
				m.Merge(Piece{Blocks: a[:3]})
				x.SetCapacity(0, 9)
				m.Merge(Piece{Keep: 3, Blocks: a[3:]})
			},
			want: 2,
		},
		"a closed index":       {do: func(x *Index, m *Merger) { x.Close(); m.Merge(whole) }},
		"a forgotten endpoint": {do: func(x *Index, m *Merger) { x.Forget(0); m.Merge(whole); m.Merge(Piece{Keep: 4}) }},
		"a number that was given out anew": {
			do: func(x *Index, m *Merger) { x.Forget(0); x.sweepAll(); x.Insert(0, a[:1]); m.Merge(whole) }, want: 1,
		},
		"blocks of another chain": {do: func(x *Index, m *Merger) {
			x.Insert(0, chain(7, 7))
			m.Merge(Piece{Blocks: append(slices.Clone(a[:2]), chain(7, 7)...)})
		}, want: 2},
	} {
		t.Run(name, func(t *testing.T) {
			x := New(100, unlimited())
			tc.do(x, x.Merger(tc.endpoint))
			if held := x.Held(0, a); held != tc.want {
				t.Errorf("%d blocks are held, want %d", held, tc.want)
			}
			checkBooks(t, x)
		})
	}
}

// What is merged is bounded by the share of the memory, as what is inserted.
func TestMergeKeepsToItsRoom(t *testing.T) {
	const most = 1 << 20
	from := New(1<<30, unlimited())
	rng := rand.New(rand.NewPCG(4, 4))
	for n := range 10_000 {
		from.Insert(n%4, randomPrompt(rng, 1+n%50))
	}
	whole := fairshare.New(most)
	to := New(1<<30, whole.Of("models"))
	copyAll(t, from, to, 4)
	checkBooks(t, to)
	if got := whole.Taken(); got > most*4/5+1000 || got < most/2 {
		t.Errorf("it has %d of %d bytes", got, most)
	}
	for e := range 4 {
		to.SetCapacity(e, 0)
	}
	if got := whole.Taken(); got != 0 {
		t.Errorf("an empty index has %d bytes", got)
	}
}

// FuzzMerge gives mergers pieces that are not chained, among inserts. Answers are then useless, but nothing must fail.
func FuzzMerge(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 1, 2, 4, 16, 2, 2, 8, 3, 3, 24})
	f.Add([]byte{5, 5, 5, 0, 5, 5, 40, 5, 0, 72, 0, 5, 6, 5, 6, 255, 128, 3, 2, 248})
	f.Fuzz(fuzzMerge)
}

func fuzzMerge(t *testing.T, ops []byte) {
	x := New(12, unlimited())
	var mergers [4]*Merger
	var blocks []uint64
	for i, b := range ops {
		if b%8 != 0 {
			blocks = append(blocks, uint64(b%8))
			continue
		}
		e := i % 4
		switch op := b >> 3; {
		case op < 8:
			x.Insert(e, blocks)
		case op == 8:
			x.Forget(e)
		case op == 9:
			x.Withdraw(e, blocks, len(blocks)/2)
		case op == 10:
			x.SetCapacity(e, 4+i%12)
		case mergers[e] == nil || op == 11:
			mergers[e] = x.Merger(e)
		default:
			mergers[e].Merge(Piece{Keep: int(op) % 7, Blocks: blocks, Age: uint64(op) * uint64(i)})
		}
		blocks = blocks[:0]
	}
	checkBooks(t, x)
	copyAll(t, x, New(12, unlimited()), 4)
	for e := range 4 {
		x.Forget(e)
	}
	checkBooks(t, x)
	if x.Blocks() != 0 {
		t.Errorf("%d blocks are left of nothing", x.Blocks())
	}
}

// TestMergeOfAnything gives FuzzMerge's target random operations, in each run of the tests.
func TestMergeOfAnything(t *testing.T) {
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 11))
		ops := make([]byte, rng.IntN(300))
		for i := range ops {
			ops[i] = byte(rng.Uint32())
			if rng.IntN(4) == 0 {
				ops[i] &^= 7
			}
		}
		if fuzzMerge(t, ops); t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// While others insert, evict, forget and merge, a copy tells nothing that was never held, and all that is held all the
// while.
func TestCopyWhileOthersWrite(t *testing.T) {
	const roomy, small, forgetful, endpoints = 0, 1, 2, 3
	rng := rand.New(rand.NewPCG(1, 12))
	x := New(1<<20, unlimited())
	x.SetCapacity(small, 2000)
	heads := [][]uint64{randomPrompt(rng, 40), randomPrompt(rng, 40)}
	var kept [endpoints][][]uint64
	for i := range 300 {
		p := slices.Concat(heads[i%2], randomPrompt(rng, 20))
		kept[i%endpoints] = append(kept[i%endpoints], p)
		x.Insert(i%endpoints, p)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 2 {
		wg.Go(func() { writeUntil(done, x, kept[:], rand.New(rand.NewPCG(uint64(g), 13)), forgetful) })
	}
	other := New(1<<20, unlimited())
	for until := time.Now().Add(time.Second); time.Now().Before(until); {
		for e := range endpoints {
			checkCopy(t, x, other, e, kept[e], e == roomy)
		}
	}
	close(done)
	wg.Wait()
	checkBooks(t, x)
	checkBooks(t, other)
}

// writeUntil lets endpoints use parts of the prompts that belong to each, and of no others.
func writeUntil(done chan struct{}, x *Index, prompts [][][]uint64, rng *rand.Rand, forgetful int) {
	for {
		select {
		case <-done:
			return
		default:
		}
		e := rng.IntN(len(prompts))
		p := prompts[e][rng.IntN(len(prompts[e]))]
		p = p[:1+rng.IntN(len(p))]
		switch rng.IntN(50) {
		case 0:
			x.Forget(forgetful)
		case 1:
			x.Merger(e).Merge(Piece{Blocks: p, Age: rng.Uint64N(100)})
		default:
			x.Insert(e, p)
		}
	}
}

// checkCopy copies an endpoint and checks that each path is the head of one of the prompts, and if asked, that all
// prompts are told.
func checkCopy(t *testing.T, x, to *Index, endpoint int, prompts [][]uint64, all bool) {
	t.Helper()
	of, told := map[uint64][]uint64{}, map[uint64]bool{}
	for _, p := range prompts {
		for i, b := range p {
			of[b] = p[:i+1]
		}
	}
	var path []uint64
	m := to.Merger(endpoint)
	x.Copy(endpoint, func(p Piece) bool {
		path = append(path[:p.Keep], p.Blocks...)
		if !slices.Equal(path, of[path[len(path)-1]]) {
			t.Errorf("endpoint %d never held a path of %d blocks", endpoint, len(path))
		}
		told[path[len(path)-1]] = true
		return m.Merge(p)
	})
	for i, p := range prompts {
		if all && !told[p[len(p)-1]] {
			t.Errorf("prompt %d of endpoint %d is not told", i, endpoint)
		}
	}
}

// BenchmarkCopy copies 512 MiB, by the index's account, into an empty index: 1,000 endpoints with conversations of 50
// blocks, of which the first 10 are one of 8 heads that all share.
func BenchmarkCopy(b *testing.B) {
	const endpoints = 1000
	from := New(1<<30, unlimited())
	rng := rand.New(rand.NewPCG(1, 1))
	heads := make([][]uint64, 8)
	for i := range heads {
		heads[i] = randomPrompt(rng, 10)
	}
	for n := 0; from.bytes() < 512<<20; n++ {
		from.Insert(n%endpoints, append(slices.Clone(heads[rng.IntN(len(heads))]), randomPrompt(rng, 40)...))
	}
	var sent message
	for b.Loop() {
		to := New(1<<30, unlimited())
		var copying, merging time.Duration
		ends, blocks := 0, 0
		for e := range endpoints {
			begin := time.Now()
			sent.fill(from, e)
			copied := time.Now()
			m := to.Merger(e)
			for _, p := range sent.pieces {
				m.Merge(p)
			}
			copying, merging = copying+copied.Sub(begin), merging+time.Since(copied)
			ends, blocks = ends+len(sent.pieces), blocks+len(sent.blocks)
		}
		if from.bytes() != to.bytes() {
			b.Fatalf("the copy has %d bytes, its original %d", to.bytes(), from.bytes())
		}
		b.ReportMetric(float64(copying.Nanoseconds())/float64(ends), "ns/end-copied")
		b.ReportMetric(float64(merging.Nanoseconds())/float64(ends), "ns/end-merged")
		b.ReportMetric(float64(ends), "ends")
		b.ReportMetric(float64(8*blocks+16*ends)/1e6, "MB-sent") // 16 bytes for Keep and Age
	}
}

// message has an endpoint's pieces, with their blocks behind each other, about as a message to another replica has them.
type message struct {
	pieces []Piece
	blocks []uint64
}

func (m *message) fill(x *Index, endpoint int) {
	m.pieces, m.blocks = m.pieces[:0], m.blocks[:0]
	x.Copy(endpoint, func(p Piece) bool {
		m.blocks = append(m.blocks, p.Blocks...)
		m.pieces = append(m.pieces, p)
		return true
	})
	at := 0
	for i := range m.pieces {
		n := len(m.pieces[i].Blocks)
		m.pieces[i].Blocks = m.blocks[at : at+n]
		at += n
	}
}
