package prefixindex

import "slices"

const (
	// copyEnds is how many ends are copied while the mutex is held: about 10 µs.
	copyEnds = 4096
	// copyWords bounds how many words of runs are looked at while the mutex is held: about 10 µs. Only a single path may
	// exceed the bound, by what an Insert of that path looks at.
	copyWords = 16_384
	// nodeWords is what a node costs that no cache of the processor has, as a number of words.
	nodeWords = 256
)

// Piece is one path that an endpoint holds, told after another one.
type Piece struct {
	// Keep is how many blocks of the path of the piece before, from its head, the path begins with.
	Keep int
	// Blocks are the path's other blocks.
	Blocks []uint64
	// Age is how many inserts the index saw between the path's last use and the copy's begin: 0 for a later use.
	Age uint64
}

// Copy tells what an endpoint holds, for a Merger of another index: each path that ends where the endpoint holds nothing
// behind, or where its last use is later than all uses behind. Paths with a common head follow each other, so the
// common head is told once. A piece's blocks are valid until yield returns, which ends the copy by returning false.
//
// Calls of other methods go on while Copy runs. Copy tells all that the endpoint holds all the while, and nothing that
// it never held. It ends early where the endpoint is forgotten. It does not tell the blocks of Occupy. It takes about 70
// bytes of memory for each end.
func (x *Index) Copy(endpoint int, yield func(Piece) bool) {
	h, clock := x.known(endpoint)
	if h == nil {
		return
	}
	c := pathCopy{x: x, endpoint: endpoint, h: h, clock: clock, ends: x.copyEnds(h)}
	c.steps = append(make([]pathStep, 0, len(c.ends)+1), pathStep{})
	c.inner = map[*node]int32{}
	for len(c.ends) > 0 {
		c.steps = slices.Grow(c.steps, copyWords/nodeWords)
		c.portion()
	}
	c.tell(yield)
}

// known returns an endpoint's holder, nil for an unknown one, and the clock.
func (x *Index) known(endpoint int) (*holder, uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.endpoints[endpoint], x.clock
}

// copyEnds copies an endpoint's heap of ends, in portions. It begins again with larger portions where the heap changed
// between two of them, since an end may have moved to where the copy had been.
func (x *Index) copyEnds(h *holder) []end {
	for portion := copyEnds; ; portion *= 2 {
		if ends, ok := x.tryCopyEnds(h, portion); ok {
			return ends
		}
	}
}

func (x *Index) tryCopyEnds(h *holder, portion int) ([]end, bool) {
	x.mu.Lock()
	moves, n := h.moves, len(h.ends)
	x.mu.Unlock()
	out := make([]end, 0, n)
	for len(out) < n {
		x.mu.Lock()
		same := h.moves == moves
		if same {
			out = append(out, h.ends[len(out):min(len(out)+portion, n)]...)
		}
		x.mu.Unlock()
		if !same {
			return nil, false
		}
	}
	return out, true
}

// pathCopy collects the paths of one endpoint as a tree.
//
// The index's tree may change between two portions. A node that is split keeps its end, so the path to its end stays the
// same. Where the endpoint lost an end, it may hold a part of the path still: the nearest node before that it holds. An
// end that the heap has twice is told twice, which is rare and harmless.
type pathCopy struct {
	x        *Index
	endpoint int
	h        *holder
	clock    uint64 // at the begin
	ends     []end  // not yet looked at
	steps    []pathStep
	inner    map[*node]int32 // the steps of nodes that the endpoint holds all of and goes on from
	way      []found         // from an end upwards
}

// found is a share of the endpoint that is not copied yet.
type found struct {
	node   *node
	step   pathStep
	goesOn bool // the endpoint holds blocks behind it
}

// pathStep is a copy of one share in a node. The first step, without blocks, stands before all others.
type pathStep struct {
	blocks          []uint64
	used            uint64 // the share's own last use
	behind          uint64 // the last use of all steps behind
	depth           int    // how many blocks lie before the step's end
	up, first, next int32  // the step before, the first one behind, and the next one behind the same
}

// portion collects the paths of a few ends.
func (c *pathCopy) portion() {
	c.x.mu.Lock()
	defer c.x.mu.Unlock()
	if c.x.endpoints[c.endpoint] != c.h {
		c.ends = nil
		return
	}
	for words := 0; words < copyWords && len(c.ends) > 0; {
		last := len(c.ends) - 1
		words += c.climb(c.ends[last].node)
		c.ends = c.ends[:last]
	}
}

// climb adds the path to a node's end, or to the nearest end before it that the endpoint holds. It returns about how
// many words it looked at.
func (c *pathCopy) climb(n *node) (words int) {
	c.way = c.way[:0]
	at := int32(0)
	for ; n != nil; n = n.parent {
		if s, ok := c.inner[n]; ok && c.steps[s].endsLike(n) {
			at = s
			break
		}
		words += nodeWords + len(n.run.held)
		if i := n.find(c.h.id); i >= 0 {
			s := &n.holds[i]
			c.way = append(c.way, found{n, pathStep{blocks: n.run.blocks[:n.held(i)], used: s.used}, s.kids > 0})
		}
	}
	for _, f := range slices.Backward(c.way) {
		at = c.add(at, f.step)
		if f.goesOn {
			c.inner[f.node] = at
		}
	}
	return words + nodeWords
}

// endsLike reports whether the step still ends where the node does. The last hash stands for all of the path.
func (s *pathStep) endsLike(n *node) bool {
	return s.blocks[len(s.blocks)-1] == n.run.blocks[len(n.run.blocks)-1]
}

// add adds a step behind another one.
func (c *pathCopy) add(up int32, s pathStep) int32 {
	i := int32(len(c.steps))
	before := &c.steps[up]
	s.up, s.next, s.depth = up, before.first, before.depth+len(s.blocks)
	before.first = i
	c.steps = append(c.steps, s)
	return i
}

// tell yields the paths, each before those that go on from it.
func (c *pathCopy) tell(yield func(Piece) bool) {
	for i := len(c.steps) - 1; i > 0; i-- { // each step comes after the one that it is behind
		s := &c.steps[i]
		before := &c.steps[s.up]
		before.behind = max(before.behind, s.used, s.behind)
	}
	var path []uint64
	keep := 0
	for i := c.steps[0].first; i != 0; i = c.after(i) {
		s := &c.steps[i]
		before := c.steps[s.up].depth
		path = append(path[:before], s.blocks...)
		keep = min(keep, before)
		if s.first != 0 && s.used <= s.behind {
			continue
		}
		if h, _ := c.x.known(c.endpoint); h != c.h {
			return
		}
		if !yield(Piece{Keep: keep, Blocks: path[keep:], Age: c.clock - min(s.used, c.clock)}) {
			return
		}
		keep = len(path)
	}
}

// after returns the step that follows when each comes before those behind it, 0 after the last.
func (c *pathCopy) after(i int32) int32 {
	if first := c.steps[i].first; first != 0 {
		return first
	}
	for i != 0 && c.steps[i].next == 0 {
		i = c.steps[i].up
	}
	return c.steps[i].next
}

// Merger adds to an index what another index knows of one endpoint. It is used by one goroutine, while others call the
// index's methods.
//
// Each index counts its own inserts, so a clock's value means nothing to another index. A Merger takes the copy's begin
// and its own making as the same moment, and an age as so many inserts before that moment. The replicas of a picker tell
// each other their inserts, so their clocks run at about the same speed, and the ages of both sides mean the same. Where
// one side counted fewer inserts, its blocks count as younger than they are. That ends by itself: every later use is
// younger than everything merged, and blocks that are not used are evicted from both sides.
//
// Make a Merger before asking for the copy. Then what is inserted while the copy is on its way counts as younger than
// the copy.
type Merger struct {
	x        *Index
	endpoint int
	h        *holder
	clock    uint64   // at the begin
	path     []uint64 // of the last piece, cut at the endpoint's capacity
	told     int      // the length of that path before it was cut
	way      []place  // ends of nodes along the path, the head's first; each may have changed since
}

// Merger begins to merge a copy into the index, as something that the endpoint holds.
func (x *Index) Merger(endpoint int) *Merger {
	x.mu.Lock()
	defer x.mu.Unlock()
	return &Merger{x: x, endpoint: endpoint, h: x.holder(endpoint), clock: x.clock}
}

// Merge notes that the endpoint holds a piece's path, and used it last at its age, or later where the index knows of a
// later use. Pieces must come in their order. Blocks beyond the endpoint's capacity are evicted as by Insert. Merge does
// nothing after the endpoint was forgotten.
//
// Merge reports whether the piece can follow the one before. If it cannot, the piece is ignored, and so are those
// behind it that keep blocks of it.
func (m *Merger) Merge(p Piece) bool {
	if p.Keep < 0 || p.Keep > m.told {
		m.path, m.told = m.path[:0], 0
		return false
	}
	m.told = p.Keep + len(p.Blocks)
	m.x.mu.Lock()
	defer m.x.mu.Unlock()
	if m.h == nil || m.x.closed || m.x.endpoints[m.endpoint] != m.h {
		return true
	}
	m.x.sweepSome()
	m.follow(p)
	m.insert(m.clock - min(p.Age, m.clock))
	m.x.evict(m.h, m.h.capacity)
	m.x.shrink(len(m.path) + slack)
	return true
}

// follow makes the piece's path the current one. Blocks beyond the endpoint's capacity are not looked at.
func (m *Merger) follow(p Piece) {
	if p.Keep > len(m.path) {
		return // the paths differ beyond the capacity
	}
	more := min(len(p.Blocks), max(0, m.h.capacity-p.Keep))
	m.path = append(m.path[:p.Keep], p.Blocks[:more]...)
	for len(m.way) > 0 && m.way[len(m.way)-1].depth > p.Keep {
		m.way = m.way[:len(m.way)-1]
	}
}

// insert inserts the current path, from the last place on the way that is still as it was. So a head that many
// endpoints hold, whose words take long to search, is searched once for many pieces.
func (m *Merger) insert(used uint64) {
	path := m.path[:min(len(m.path), m.h.capacity)]
	at, ok := m.last(path), true
	for ok && at.depth < len(path) {
		if at, ok = m.x.step(m.h, at, path[at.depth:], used); ok {
			m.way = append(m.way, at)
		}
	}
	m.x.use(m.h, at, used)
}

// last returns the last place on the way from which the path goes on, and drops those behind it.
func (m *Merger) last(path []uint64) place {
	for len(m.way) > 0 {
		if at := m.way[len(m.way)-1]; at.depth <= len(path) && m.endsAt(at, path[at.depth-1]) {
			return at
		}
		m.way = m.way[:len(m.way)-1]
	}
	return place{}
}

// endsAt reports whether a place is the end of a node that the endpoint holds all of, and whose last block is the given
// one. A node that any endpoint has a share in is part of the tree.
func (m *Merger) endsAt(at place, block uint64) bool {
	r := at.node.run
	return at.share < len(r.held) && r.held[at.share] == pack(m.h.id, len(r.blocks)) && r.blocks[len(r.blocks)-1] == block
}
