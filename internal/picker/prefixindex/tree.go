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
	used   uint64 // the number of the last insert that ended here; in an end, also of one that went on from here
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
	x.runs.Load().replace(old, n.run)
}

// insert follows the blocks through the tree, makes the endpoint a holder of each node on the way, adds the missing
// blocks, and notes the use at the end.
func (x *Index) insert(h *holder, blocks []uint64) {
	var last *node
	share := -1
	for at := 0; at < len(blocks); {
		r := x.runs.Load().get(blocks[at])
		if r == nil {
			last, share = x.grow(h, last, share, blocks[at:])
			break
		}
		n := r.node
		if n.parent != last {
			break // a collision
		}
		k := common(r.blocks, blocks[at:])
		if at+k < len(blocks) && k < len(r.blocks) || n.holdsBeyond(h.id, k) {
			upper, ok := x.split(n, k)
			if !ok {
				break
			}
			n = upper
		}
		share = x.hold(h, n, share, k)
		last = n
		at += k
	}
	if last == nil {
		return
	}
	s := &last.holds[share]
	if s.used = x.clock; s.kids == 0 && !s.queued {
		x.queue(h, last, share)
	}
}

// holdsBeyond reports whether an endpoint holds more of the node than its first k blocks. If only those are used, the
// ages of the two parts differ from now on.
func (n *node) holdsBeyond(id uint32, k int) bool {
	if k == len(n.run.blocks) {
		return false
	}
	i := n.find(id)
	return i >= 0 && n.held(i) > k
}

// hold makes the endpoint hold at least the node's first k blocks. parentShare is its share in the parent node.
func (x *Index) hold(h *holder, n *node, parentShare, k int) int {
	i := n.find(h.id)
	if i < 0 {
		if n.parent != nil {
			n.parent.holds[parentShare].kids++
		}
		i = x.addShare(n)
	}
	if was := n.held(i); was < k {
		h.size += k - was
		n.setHeld(i, h.id, k)
	}
	return i
}

// addShare adds a share to a node and returns its place. The share holds no block yet.
func (x *Index) addShare(n *node) int {
	n.run.live.Add(1)
	x.shares++
	s := hold{used: x.clock}
	if i := slices.IndexFunc(n.run.held, func(w uint64) bool { return uint32(w) == 0 }); i >= 0 {
		n.holds[i] = s
		return i
	}
	n.holds = append(n.holds, s)
	x.put(n, n.run.blocks, append(n.run.held, 0))
	return len(n.holds) - 1
}

// grow adds blocks that no endpoint holds behind the given node, to its run if it has no children.
func (x *Index) grow(h *holder, last *node, share int, blocks []uint64) (*node, int) {
	x.blocks += len(blocks)
	if last != nil && last.children == 0 {
		k := len(last.run.blocks) + len(blocks)
		x.put(last, append(last.run.blocks, blocks...), last.run.held)
		return last, x.hold(h, last, -1, k)
	}
	n := &node{parent: last}
	if last != nil {
		last.children++
	}
	n.run = &run{blocks: slices.Clone(blocks), node: n}
	x.runs.Store(x.runs.Load().add(n.run))
	return n, x.hold(h, n, share, len(blocks))
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
	x.runs.Load().replace(old, upper.run)
	return upper, true
}

// share adds a holder to a node that no reader sees yet.
func (n *node) share(word uint64, s hold) {
	n.run.held = append(n.run.held, word)
	n.holds = append(n.holds, s)
	n.run.live.Add(1)
}
