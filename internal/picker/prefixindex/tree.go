package prefixindex

import (
	"slices"
	"sync/atomic"
)

// run is a node as readers see it. Its fields never change, except live and the words of held, one at a time.
type run struct {
	blocks []uint64
	held   []uint64     // words of an endpoint's id and how many of the blocks it holds; see pack
	live   atomic.Int32 // how many of the words say that the endpoint holds a block
	node   *node
}

// node is a run as writers see it. Each holder of a node holds all of its parent.
type node struct {
	run      *run
	parent   *node
	children int
	holds    []hold // one for each word of run.held
}

// hold is one endpoint's share in one node.
type hold struct {
	used   uint64 // the clock at the last use that ended here; in an end, also of one that went on from here
	kids   int32  // how many of the node's children the endpoint has a share in; at 0 the share is an end
	queued bool   // the node is in the endpoint's heap of ends
}

func pack(id uint32, held int) uint64 { return uint64(id)<<32 | uint64(uint32(held)) }

func unpack(w uint64) (id uint32, held int) { return uint32(w >> 32), int(uint32(w)) }

// find returns the place of an endpoint's share, -1 if it has none.
func (n *node) find(id uint32) int {
	for i, w := range n.run.held {
		if uint32(w>>32) == id && uint32(w) != 0 {
			return i
		}
	}
	return -1
}

func (n *node) held(i int) int {
	_, held := unpack(n.run.held[i])
	return held
}

func (n *node) setHeld(i int, id uint32, held int) {
	atomic.StoreUint64(&n.run.held[i], pack(id, held))
}

// put publishes a node's new run to readers.
func (x *Index) put(n *node, blocks, held []uint64) {
	old := n.run
	n.run = &run{blocks: blocks, held: held, node: n}
	n.run.live.Store(old.live.Load())
	x.runs.Load().set(old, n.run)
}

// place is the end of a node on the way of a path: the endpoint's share in the node, and how many of the path's blocks
// lie before that end. The zero node stands for the place before all blocks.
type place struct {
	node  *node
	share int
	depth int
}

// insert follows the blocks through the tree, makes the endpoint a holder of each node on the way, adds the missing
// blocks, and notes the use at the end.
func (x *Index) insert(h *holder, blocks []uint64, used uint64) {
	at, ok := place{}, true
	for ok && at.depth < len(blocks) {
		at, ok = x.step(h, at, blocks[at.depth:], used)
	}
	x.use(h, at, used)
}

// use notes that the endpoint used the blocks up to a place. A use that is earlier than what is known changes nothing.
func (x *Index) use(h *holder, at place, used uint64) {
	if at.node == nil {
		return
	}
	s := &at.node.holds[at.share]
	s.used = max(s.used, used)
	if s.kids == 0 && !s.queued {
		x.queue(h, at.node, at.share)
	}
}

// step makes the endpoint hold the next node's part of the blocks, which go on behind the given place, and returns the
// place behind it. Only a collision of hashes prevents that.
func (x *Index) step(h *holder, at place, blocks []uint64, used uint64) (place, bool) {
	r := x.runs.Load().get(blocks[0])
	if r == nil {
		return x.grow(h, at, blocks, used), true
	}
	n := r.node
	if n.parent != at.node {
		return at, false
	}
	k, i := common(r.blocks, blocks), n.find(h.id)
	if cut := n.parting(i, k, k < len(blocks), used); cut < len(r.blocks) {
		upper, ok := x.split(n, cut)
		if !ok {
			return at, false
		}
		n, k, i = upper, cut, upper.find(h.id)
	}
	i = x.hold(h, n, i, at.share, k, used)
	return place{n, i, at.depth + k}, true
}

// parting returns behind how many of its blocks a node must be split before the endpoint with share i, -1 for none, uses
// the first k of them: where the path leaves the node, or where the endpoint's blocks before and behind have different
// ages from then on. It returns the number of all blocks where the node stays whole.
func (n *node) parting(i, k int, leaves bool, used uint64) int {
	whole := len(n.run.blocks)
	if i >= 0 {
		held, before := n.held(i), n.holds[i].used
		if held > k && before < used {
			return k
		}
		if held < k && before > used {
			return held // what a copy adds behind them was used earlier than they were
		}
	}
	if leaves {
		return k
	}
	return whole
}

// hold makes the endpoint hold at least the node's first k blocks. i is its share in the node, -1 for none, and
// parentShare the one in the parent node.
func (x *Index) hold(h *holder, n *node, i, parentShare, k int, used uint64) int {
	if i < 0 {
		if n.parent != nil {
			n.parent.holds[parentShare].kids++
		}
		i = x.addShare(n, used)
	}
	if was := n.held(i); was < k {
		h.size += k - was
		n.setHeld(i, h.id, k)
	}
	return i
}

// addShare adds a share to a node and returns its place. The share holds no block yet.
func (x *Index) addShare(n *node, used uint64) int {
	n.run.live.Add(1)
	x.shares++
	s := hold{used: used}
	if i := slices.IndexFunc(n.run.held, func(w uint64) bool { return uint32(w) == 0 }); i >= 0 {
		n.holds[i] = s
		return i
	}
	n.holds = append(n.holds, s)
	x.put(n, n.run.blocks, append(n.run.held, 0))
	return len(n.holds) - 1
}

// grow adds blocks that no endpoint holds behind the given place: to its node's run, if the node has no children, and if
// the endpoint did not use its blocks later than those.
func (x *Index) grow(h *holder, at place, blocks []uint64, used uint64) place {
	x.blocks += len(blocks)
	last, depth := at.node, at.depth+len(blocks)
	if last != nil && last.children == 0 && last.holds[at.share].used <= used {
		k := len(last.run.blocks) + len(blocks)
		x.put(last, append(last.run.blocks, blocks...), last.run.held)
		return place{last, x.hold(h, last, at.share, -1, k, used), depth}
	}
	n := newNode(last, blocks, h.id, used)
	if last != nil {
		last.children++
		last.holds[at.share].kids++
	}
	x.shares++
	h.size += len(blocks)
	x.runs.Store(x.runs.Load().add(n.run))
	return place{n, 0, depth}
}

// newNode makes a node that one endpoint holds. A single allocation has its parts but the blocks: garbage collection
// takes longer than the rest of an insert when an index of a million nodes has one for each part.
func newNode(parent *node, blocks []uint64, id uint32, used uint64) *node {
	all := &struct {
		node  node
		run   run
		held  [1]uint64
		holds [1]hold
	}{held: [1]uint64{pack(id, len(blocks))}, holds: [1]hold{{used: used}}}
	n, r := &all.node, &all.run
	n.run, n.parent, n.holds = r, parent, all.holds[:]
	r.blocks, r.held, r.node = slices.Clone(blocks), all.held[:], n
	r.live.Store(1)
	return n
}

// split splits a node behind its first k blocks. They become a new node, which split returns; the old node keeps the
// other blocks and its children. Only a collision of hashes prevents that.
func (x *Index) split(n *node, k int) (*node, bool) {
	old := n.run
	if x.runs.Load().get(old.blocks[k]) != nil {
		return nil, false
	}
	upper := &node{parent: n.parent, children: 1, run: &run{blocks: slices.Clone(old.blocks[:k])}}
	upper.run.node = upper
	lower := &run{blocks: slices.Clone(old.blocks[k:]), node: n}
	var lowerHolds []hold
	for i, w := range old.held {
		id, held := unpack(w)
		switch {
		case held > k:
			upper.share(pack(id, k), hold{kids: 1})
			lower.held = append(lower.held, pack(id, held-k))
			lowerHolds = append(lowerHolds, n.holds[i])
		case held > 0:
			s := n.holds[i]
			s.queued = false
			upper.share(w, s)
			x.queue(x.holders[id], upper, len(upper.holds)-1)
		}
	}
	lower.live.Store(int32(len(lowerHolds)))
	x.shares += len(lowerHolds)
	n.run, n.holds, n.parent = lower, lowerHolds, upper
	// A reader finds the whole run until the lower part can be found.
	x.runs.Store(x.runs.Load().add(lower))
	x.runs.Load().set(old, upper.run)
	return upper, true
}

// share adds a holder to a node that no reader sees yet.
func (n *node) share(word uint64, s hold) {
	n.run.held = append(n.run.held, word)
	n.holds = append(n.holds, s)
	n.run.live.Add(1)
}
