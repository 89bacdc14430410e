package prefixindex

import "slices"

// Withdraw takes back an Insert whose blocks the endpoint did not come to hold, except the first keep, which it held
// before. Blocks from which a longer prompt goes on stay. Withdraw cannot tell a later use of these blocks from the use
// that it takes back, so calls that used them in between must insert them again.
func (x *Index) Withdraw(endpoint int, blocks []uint64, keep int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.endpoints[endpoint]
	if h == nil {
		return
	}
	defer x.account()
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

// lastOf finds where the blocks that an endpoint holds of a prompt end: the node, the endpoint's share in it, and the
// number of blocks before it. It returns no node where the endpoint holds none of them, or holds more of the last run.
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
		h.moves++
		h.ends.remove(n)
		x.leave(h, n, share)
	}
	x.shorten(n)
}

// remove removes a node's entry. It searches all entries, which takes a few microseconds for a thousand conversations.
func (h *endsHeap) remove(n *node) {
	i := slices.IndexFunc(*h, func(e end) bool { return e.node == n })
	if i < 0 {
		return
	}
	// The entry moves up to the top, past older ones, and is popped.
	s := *h
	for i > 0 {
		s[i] = s[(i-1)/2]
		i = (i - 1) / 2
	}
	h.pop()
}
