// Package kvcache is the model server's block store: which KV blocks are in use,
// which hold reusable content, and which is evicted next. It knows nothing of
// time, requests, text or adapters: callers pass block hashes.
//
// The policy is that of vLLM's block pool. Unused blocks wait in a queue, least
// recently used first. A request's blocks enter the queue last block first, so
// that a prefix loses its tail before its head. A block's content stays findable
// until the block is used for other content.
package kvcache

// Cache is a fixed number of blocks. It is not safe for concurrent use.
type Cache struct {
	// blocks has one element more than the cache has blocks: the last one is the
	// sentinel of the circular queue of free blocks.
	blocks   []block
	byHash   map[uint64]int
	free     int
	reserved int
}

type block struct {
	hash       uint64
	published  bool
	users      int
	prev, next int
}

// New returns a cache of n empty blocks, n >= 0.
func New(n int) *Cache {
	c := &Cache{blocks: make([]block, n+1), byHash: make(map[uint64]int)}
	sentinel := c.sentinel()
	c.blocks[sentinel].prev, c.blocks[sentinel].next = sentinel, sentinel
	for i := range n {
		c.enqueueLast(i)
	}
	return c
}

// Total returns the number of blocks.
func (c *Cache) Total() int { return len(c.blocks) - 1 }

// Used returns the number of blocks that leases hold. Cached blocks without a
// lease are free, as in vLLM's kv_cache_usage_perc.
func (c *Cache) Used() int { return c.Total() - c.free }

// Reset forgets all content. It does nothing and returns false if a lease holds
// or reserves any block.
func (c *Cache) Reset() bool {
	if c.Used() > 0 || c.reserved > 0 {
		return false
	}
	clear(c.byHash)
	for i := range c.blocks {
		c.blocks[i].published = false
	}
	return true
}

// Open leases total blocks. It shares the longest cached leading run of prefix,
// and reserves the rest for Extend. If the cache has too few blocks, it changes
// nothing and returns false.
//
// The reservation is why a running request is never preempted.
func (c *Cache) Open(prefix []uint64, total int) (*Lease, bool) {
	shared := make([]int, 0, total)
	idle := 0
	for _, hash := range prefix[:min(len(prefix), total)] {
		i, ok := c.byHash[hash]
		if !ok {
			break
		}
		if c.blocks[i].users == 0 {
			idle++
		}
		shared = append(shared, i)
	}
	fresh := total - len(shared)
	if fresh > c.free-c.reserved-idle {
		return nil, false
	}
	for _, i := range shared {
		if c.blocks[i].users == 0 {
			c.dequeue(i)
		}
		c.blocks[i].users++
	}
	c.reserved += fresh
	return &Lease{cache: c, blocks: shared, published: len(shared), cached: len(shared), reserved: fresh}, true
}

// take takes the least recently used free block, and forgets its content. The
// caller has a reservation, so there is one.
func (c *Cache) take() int {
	i := c.blocks[c.sentinel()].next
	c.dequeue(i)
	b := &c.blocks[i]
	if b.published {
		delete(c.byHash, b.hash)
		b.published = false
	}
	b.users = 1
	return i
}

// release ends one use of a block. A block without content is taken again first,
// one with content last.
func (c *Cache) release(i int) {
	b := &c.blocks[i]
	b.users--
	switch {
	case b.users > 0:
	case b.published:
		c.enqueueLast(i)
	default:
		c.enqueueFirst(i)
	}
}

func (c *Cache) sentinel() int { return len(c.blocks) - 1 }

func (c *Cache) enqueueLast(i int)  { c.link(c.blocks[c.sentinel()].prev, i) }
func (c *Cache) enqueueFirst(i int) { c.link(c.sentinel(), i) }

// link puts free block i after block at in the queue.
func (c *Cache) link(at, i int) {
	next := c.blocks[at].next
	c.blocks[i].prev, c.blocks[i].next = at, next
	c.blocks[at].next, c.blocks[next].prev = i, i
	c.free++
}

func (c *Cache) dequeue(i int) {
	b := c.blocks[i]
	c.blocks[b.prev].next, c.blocks[b.next].prev = b.next, b.prev
	c.free--
}

// Lease is one request's blocks, in the order of its text.
type Lease struct {
	cache     *Cache
	blocks    []int
	published int
	cached    int
	reserved  int
}

// Cached returns the number of leading blocks that Open found in the cache.
func (l *Lease) Cached() int { return l.cached }

// Extend takes reserved blocks until the lease holds n, or all that it reserved.
func (l *Lease) Extend(n int) {
	for len(l.blocks) < n && l.reserved > 0 {
		l.blocks = append(l.blocks, l.cache.take())
		l.reserved--
		l.cache.reserved--
	}
}

// Publish makes the leading blocks findable: hashes[i] names the content of the
// lease's block i. If another block has the same content, because two requests
// computed it at the same time, that other block stays findable.
func (l *Lease) Publish(hashes []uint64) {
	for ; l.published < min(len(hashes), len(l.blocks)); l.published++ {
		i, hash := l.blocks[l.published], hashes[l.published]
		if _, ok := l.cache.byHash[hash]; ok {
			continue
		}
		l.cache.byHash[hash] = i
		l.cache.blocks[i].hash, l.cache.blocks[i].published = hash, true
	}
}

// Close releases all blocks, the last first. Closing twice is harmless.
func (l *Lease) Close() {
	for k := len(l.blocks) - 1; k >= 0; k-- {
		l.cache.release(l.blocks[k])
	}
	l.cache.reserved -= l.reserved
	l.blocks, l.reserved = nil, 0
}
