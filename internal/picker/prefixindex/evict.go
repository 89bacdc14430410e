package prefixindex

import "math"

// endsHeap is a lazy min-heap of an endpoint's ends, by their last use. A use of an end does not move its entry. When an
// entry comes to the top, its age is compared with the end's real one, and the entry is moved down, or dropped where the
// share is no end any more. So the top is never younger than the oldest end.
type endsHeap []end

type end struct {
	used uint64
	node *node
}

func (h *endsHeap) push(e end) {
	*h = append(*h, e)
	s := *h
	i := len(s) - 1
	for i > 0 && s[(i-1)/2].used > e.used {
		s[i] = s[(i-1)/2]
		i = (i - 1) / 2
	}
	s[i] = e
}

// replaceTop puts e in the place of the top.
func (h endsHeap) replaceTop(e end) {
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].used < h[c].used {
			c++
		}
		if h[c].used >= e.used {
			break
		}
		h[i] = h[c]
		i = c
	}
	h[i] = e
}

func (h *endsHeap) pop() {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = end{}
	*h = (*h)[:last]
	if last > 0 {
		h.replaceTop(e)
	}
}

// queue adds an endpoint's share in a node to the heap of its ends.
func (x *Index) queue(h *holder, n *node, share int) {
	n.holds[share].queued = true
	h.moves++
	h.ends.push(end{n.holds[share].used, n})
}

// evict removes the endpoint's least recently used blocks, and those of others, until no more than capacity are left.
func (x *Index) evict(h *holder, capacity int) {
	for over := h.size + h.others.blocks - capacity; over > 0; over = h.size + h.others.blocks - capacity {
		if h.others.blocks > 0 && (h.size == 0 || h.others.used() < h.age()) {
			h.others.evict(over)
		} else {
			x.evictOne(h, over)
		}
	}
}

// evictOwn removes the endpoint's least recently used blocks until no more than so many are left.
func (x *Index) evictOwn(h *holder, blocks int) {
	for h.size > blocks {
		x.evictOne(h, h.size-blocks)
	}
}

// age is the last use of the endpoint's oldest end.
func (h *holder) age() uint64 {
	n, i := h.oldest()
	return n.holds[i].used
}

// evictOne shortens the endpoint's oldest end, by at most so many blocks or as many as the node has.
func (x *Index) evictOne(h *holder, most int) {
	n, i := h.oldest()
	held := n.held(i)
	keep := max(0, held-most)
	h.size -= held - keep
	n.setHeld(i, h.id, keep)
	if keep == 0 {
		h.moves++
		h.ends.pop()
		x.leave(h, n, i)
	}
	x.shorten(n)
}

// oldest returns the node and the share with the last of the endpoint's least recently used blocks. There is one while
// the endpoint holds anything.
func (h *holder) oldest() (*node, int) {
	for {
		e := h.ends[0]
		i := e.node.find(h.id)
		switch {
		case i < 0:
			h.ends.pop()
		case e.node.holds[i].kids > 0:
			e.node.holds[i].queued = false
			h.ends.pop()
		case e.node.holds[i].used > e.used:
			h.ends.replaceTop(end{e.node.holds[i].used, e.node})
		default:
			return e.node, i
		}
		h.moves++
	}
}

// leave removes the endpoint's share i from a node of which the endpoint holds no block any more.
func (x *Index) leave(h *holder, n *node, i int) {
	n.run.live.Add(-1)
	x.shares--
	used := n.holds[i].used
	n.holds[i] = hold{}
	p := n.parent
	if p == nil {
		return
	}
	j := p.find(h.id)
	s := &p.holds[j]
	s.used = max(s.used, used)
	if s.kids--; s.kids == 0 && !s.queued {
		x.queue(h, p, j)
	}
}

// shorten drops the blocks of a node that no endpoint holds any more, and the node itself if no block is left. It also
// drops the words of removed shares where they are more than half.
func (x *Index) shorten(n *node) {
	live := int(n.run.live.Load())
	if live == 0 {
		x.blocks -= len(n.run.blocks)
		x.runs.Store(x.runs.Load().remove(n.run))
		if n.parent != nil {
			n.parent.children--
		}
		return
	}
	blocks, held := n.run.blocks, n.run.held
	if n.children == 0 {
		longest := 0
		for _, w := range held {
			longest = max(longest, int(w&math.MaxUint32))
		}
		x.blocks -= len(blocks) - longest
		blocks = fit(blocks, longest)
	}
	if live*2 < len(held) {
		held = n.compact(live)
	}
	if len(blocks) != len(n.run.blocks) || len(held) != len(n.run.held) {
		x.put(n, blocks, held)
	}
}

// fit cuts a run's blocks. Readers may still look at the blocks that are cut off, so fit never lets an append overwrite
// them. It copies the blocks to a smaller array when most of the old one is unused.
func fit(blocks []uint64, n int) []uint64 {
	if n*2 < cap(blocks) {
		return append(make([]uint64, 0, n), blocks[:n]...)
	}
	return blocks[:n:n]
}

// compact copies a node's words without those of removed shares.
func (n *node) compact(live int) []uint64 {
	held := make([]uint64, 0, live)
	holds := make([]hold, 0, live)
	for i, w := range n.run.held {
		if w&math.MaxUint32 != 0 {
			held = append(held, w)
			holds = append(holds, n.holds[i])
		}
	}
	n.holds = holds
	return held
}
