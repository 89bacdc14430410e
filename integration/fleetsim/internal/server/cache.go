package server

// cache is the memory of key and value vectors: a fixed number of blocks, each free and empty, held by calls, or kept
// under its name after its last holder has left, to be used again or to be evicted, least recently used first.
type cache struct {
	size   int
	empty  int
	blocks map[uint64]*block
	// kept is the ring of named blocks that nobody holds, the next to be evicted first.
	kept    block
	keptLen int
	spare   *block // for reuse, chained by next
}

// block is one named block.
type block struct {
	name       uint64
	holders    int
	prev, next *block
}

func newCache(size int) *cache {
	c := &cache{size: size, empty: size, blocks: map[uint64]*block{}}
	c.kept.prev, c.kept.next = &c.kept, &c.kept
	return c
}

// free is the number of blocks that can be had.
func (c *cache) free() int { return c.empty + c.keptLen }

// hold makes a call a holder of a block if it is there.
func (c *cache) hold(name uint64) *block {
	b := c.blocks[name]
	if b == nil {
		return nil
	}
	if b.holders == 0 {
		c.unlink(b)
	}
	b.holders++
	return b
}

// has says whether a block is there.
func (c *cache) has(name uint64) bool { return c.blocks[name] != nil }

// take gives out n blocks without a name, evicting what it must. It gives all or none.
func (c *cache) take(n int) bool {
	if n > c.free() {
		return false
	}
	for ; n > c.empty; c.empty++ {
		c.evict()
	}
	c.empty -= n
	return true
}

// name gives a block that was taken a name, so that others find it. Where there is one of that name already, nil is
// returned and the block stays without.
func (c *cache) name(name uint64) *block {
	if c.has(name) {
		return nil
	}
	b := c.spare
	if b == nil {
		b = &block{}
	} else {
		c.spare = b.next
	}
	*b = block{name: name, holders: 1}
	c.blocks[name] = b
	return b
}

// release gives back what a call held: its named blocks, in the order of the prompt, and so many without a name. The
// last of the prompt are the first to be evicted.
func (c *cache) release(held []*block, unnamed int) {
	c.empty += unnamed
	for i := len(held) - 1; i >= 0; i-- {
		b := held[i]
		if b.holders--; b.holders == 0 {
			b.prev, b.next = c.kept.prev, &c.kept
			b.prev.next, b.next.prev = b, b
			c.keptLen++
		}
	}
}

func (c *cache) evict() {
	b := c.kept.next
	c.unlink(b)
	delete(c.blocks, b.name)
	b.next = c.spare
	c.spare = b
}

func (c *cache) unlink(b *block) {
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
	c.keptLen--
}
