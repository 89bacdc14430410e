package server

import "github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"

// cache is the KV cache: a fixed number of blocks. A block is free and empty, or held by calls, or kept under its name
// after its last holder has left. A kept block can be used again; the least recently used one is evicted first.
type cache struct {
	size   int
	empty  int
	blocks map[uint64]*block
	// kept is the ring of named blocks without a holder. The first in it is evicted next.
	kept    block
	keptLen int
	spare   *block // for reuse, chained by next
	answers uint64 // number of blocks of answers so far
	// changed are the blocks that were stored or evicted since the last look.
	changed []Changed
}

// Changed is a block, by the name of the prompt up to its end, that a cache has stored or evicted.
type Changed struct {
	Name   uint64
	Stored bool
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

// free returns the number of blocks that a call could take.
func (c *cache) free() int { return c.empty + c.keptLen }

// hold makes a call a holder of a block if the cache has the block.
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

// has reports whether the cache has a block.
func (c *cache) has(name uint64) bool { return c.blocks[name] != nil }

// take takes n unnamed blocks, and evicts kept ones as needed. It takes all or none.
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

// name gives a taken block a name, so that other calls find it. If a block has that name already, it returns nil and the
// taken block stays unnamed.
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
	c.changed = append(c.changed, Changed{name, true})
	return b
}

// answer gives a taken block of generated tokens a name that no prompt asks for: a number, spread over all names.
func (c *cache) answer() *block {
	c.answers++
	return c.name(workload.Mix(0, c.answers))
}

// release returns the blocks of a call: its named blocks, in the order of the prompt, and a number of unnamed ones. The
// last blocks of the prompt are evicted first.
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
	c.changed = append(c.changed, Changed{b.name, false})
	b.next = c.spare
	c.spare = b
}

func (c *cache) unlink(b *block) {
	b.prev.next, b.next.prev = b.next, b.prev
	b.prev, b.next = nil, nil
	c.keptLen--
}
