package prefixindex

import "slices"

// Withdraw takes back an Insert that turned out not to be true: the endpoint did not come to hold these blocks, of
// which it had held the first keep before. What it holds of them for another reason stays: blocks that a longer prompt
// goes on from. A use in between of these very blocks is not told from the one that is taken back, so whoever used them
// has to insert them again.
func (x *Index) Withdraw(endpoint int, blocks []uint64, keep int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.endpoints[endpoint]
	if h == nil {
		return
	}
	defer x.tell()
	for {
		n, share, before := x.lastOf(h, blocks)
		if n == nil || before+n.held(share) <= keep || n.holds[share].kids > 0 {
			return
		}
		x.cut(h, n, share, max(0, keep-before))
		if before <= keep {
			return
		}
	}
}

// lastOf is the node, with the endpoint's share in it and the number of blocks before it, where what an endpoint holds
// of a prompt ends. There is none where it holds nothing of the prompt, or goes on in the same run with another one.
func (x *Index) lastOf(h *holder, blocks []uint64) (last *node, share, before int) {
	for at, r := 0, x.next(blocks); r != nil; r = x.next(blocks[at:]) {
		i := r.node.find(h.id)
		if i < 0 {
			break
		}
		k := common(r.blocks, blocks[at:])
		if r.node.held(i) > k {
			return nil, 0, 0
		}
		last, share, before = r.node, i, at
		at += k
		if k < len(r.blocks) {
			break
		}
	}
	return last, share, before
}

// cut shortens an endpoint's end to so many blocks.
func (x *Index) cut(h *holder, n *node, share, held int) {
	h.size -= n.held(share) - held
	n.setHeld(share, h.id, held)
	if held == 0 {
		h.ends.remove(n)
		x.leave(h, n, share)
	}
	x.shorten(n)
}

// remove takes a node's entry out. It looks at all of them, which is a few microseconds for a thousand conversations.
func (h *endsHeap) remove(n *node) {
	i := slices.IndexFunc(*h, func(e end) bool { return e.node == n })
	if i < 0 {
		return
	}
	// Up to the top, past entries that are older, and off.
	s := *h
	for i > 0 {
		s[i] = s[(i-1)/2]
		i = (i - 1) / 2
	}
	h.pop()
}
