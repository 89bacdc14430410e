// Package prefixindex remembers which endpoint of a pool has which prefix blocks cached. It must not know requests,
// pools or addresses: endpoints are small numbers that its user assigns, and blocks are chained hashes.
//
// Prompts with a common head form a tree. Along a prompt, the set of holders changes at few places: where prompts
// diverge, and where an endpoint has evicted the rest. A bitset of endpoints for each block would thus repeat itself
// thousands of times. So a node of the tree is a run of blocks between two places where prompts diverge. A node has one
// word for each endpoint in it: how many of the run's blocks, from its head, the endpoint holds. Matching a prompt of
// 2,048 blocks takes one look-up for each run and a binary search in the last one.
//
// Each endpoint is assumed to evict as model servers do: the least recently used block first, and of blocks used at the
// same time the deepest first. So an endpoint that holds a block holds all blocks before it: matching rests on this
// invariant. It needs no bookkeeping for each block. A use of a prompt uses all of its blocks, so no block is older
// than one behind it, and only the ends of what an endpoint holds can be the oldest. A use is noted once, at the
// prompt's end. When an end is evicted, the block before it becomes an end and inherits its recency.
//
// Match takes no lock. Writers take the index's mutex. They replace what readers see, or change it one word at a time,
// so that a reader sees each run either before or after a change.
package prefixindex

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

const (
	// sweepNodes bounds how many nodes of forgotten endpoints are freed at a time: about 10 µs.
	sweepNodes = 64
	// sweepEvery is how often a timer frees them without an Insert: 0.2 % of a CPU, and some 10,000 conversations a
	// second.
	sweepEvery = 5 * time.Millisecond
	// firstClock leaves room below it for uses that a new index learns from an older one.
	firstClock = 1 << 62
)

// Index is one pool's index of prefixes. All methods may be called from several goroutines.
//
// Blocks must be chained: a hash stands for its block and all blocks before it. Where the hashes of two different
// prefixes collide, the later one is not remembered.
type Index struct {
	runs atomic.Pointer[table]
	// numbers maps a holder's id to the number of its endpoint, -1 for a forgotten one.
	numbers atomic.Pointer[[]int32]

	mu        sync.Mutex
	room      *fairshare.Share // the tenant's share of the memory of all indexes
	taken     int64            // bytes taken of room
	capacity  int
	clock     uint64 // counts inserts, from firstClock
	blocks    int
	shares    int             // how many shares endpoints have in nodes
	endpoints map[int]*holder // by number
	holders   []*holder       // by id; nil where an id is free
	freeIDs   []uint32
	forgotten []*holder // not yet swept
	sweeping  bool      // a timer for sweep is set
	closed    bool
}

// holder is what one endpoint holds. Only writers access it.
type holder struct {
	id       uint32
	capacity int
	size     int // blocks held
	ends     endsHeap
	moves    uint64 // counts changes of ends
	others   others
}

// New makes an empty index. capacity is how many blocks an endpoint is assumed to hold until SetCapacity is called for
// it. The index takes its memory, in bytes, from room. Where room has no more, endpoints lose the blocks that they used
// least recently, starting with the endpoint that holds the most.
func New(capacity int, room *fairshare.Share) *Index {
	x := &Index{room: room, capacity: max(capacity, 0), clock: firstClock, endpoints: map[int]*holder{}}
	x.runs.Store(newTable(minSlots))
	x.numbers.Store(&[]int32{})
	return x
}

// Match writes into depth[n], for every endpoint number n below len(depth), how many of the blocks, from the head and
// without a gap, endpoint n holds. While an Insert or Forget runs, Match may see a part of its effect. It allocates
// nothing and takes no lock.
func (x *Index) Match(blocks []uint64, depth []int32) {
	clear(depth)
	numbers := *x.numbers.Load()
	for at, r := 0, x.next(blocks); r != nil; {
		n := common(r.blocks, blocks[at:])
		var next *run
		if n == len(r.blocks) {
			next = x.next(blocks[at+n:])
		}
		// All holders of the next run hold this one too, and get their depth there. So a head that 1,000 endpoints hold, in
		// 64 runs, costs little more than one run.
		if next == nil || next.live.Load() != r.live.Load() {
			r.depths(at, n, numbers, depth)
		}
		at += n
		r = next
	}
}

// Held returns how many of the blocks, from the head and without a gap, one endpoint holds, as Match does for all.
func (x *Index) Held(endpoint int, blocks []uint64) int {
	numbers := *x.numbers.Load()
	at := 0
	for r := x.next(blocks); r != nil; r = x.next(blocks[at:]) {
		n := common(r.blocks, blocks[at:])
		held := min(n, r.heldBy(endpoint, numbers))
		at += held
		if held < len(r.blocks) {
			break
		}
	}
	return at
}

// heldBy returns how many of a run's blocks, from its head, an endpoint holds.
func (r *run) heldBy(endpoint int, numbers []int32) int {
	for i := range r.held {
		id, held := unpack(atomic.LoadUint64(&r.held[i]))
		if held > 0 && int(id) < len(numbers) && int(atomic.LoadInt32(&numbers[id])) == endpoint {
			return held
		}
	}
	return 0
}

// next returns the run that begins with the first of the blocks, or nil.
func (x *Index) next(blocks []uint64) *run {
	if len(blocks) == 0 {
		return nil
	}
	return x.runs.Load().get(blocks[0])
}

// depths writes the depths of a run's holders. before blocks come ahead of the run, and its first n blocks match.
func (r *run) depths(before, n int, numbers, depth []int32) {
	for i := range r.held {
		id, held := unpack(atomic.LoadUint64(&r.held[i]))
		if held == 0 || int(id) >= len(numbers) {
			continue
		}
		if number := atomic.LoadInt32(&numbers[id]); uint(number) < uint(len(depth)) {
			depth[number] = int32(before + min(n, held))
		}
	}
}

// Insert notes that the endpoint now holds these blocks, which begin at a prompt's head, and has used all of them.
// Blocks beyond the endpoint's capacity are evicted; of a prompt that is longer than the capacity the head is kept.
func (x *Index) Insert(endpoint int, blocks []uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sweepSome()
	h := x.holder(endpoint)
	if h == nil || x.closed {
		return
	}
	x.clock++
	x.insert(h, blocks[:min(len(blocks), h.capacity)], x.clock)
	x.evict(h, h.capacity)
	x.shrink(len(blocks) + slack)
}

// SetCapacity sets how many blocks an endpoint holds, in blocks of the caller's hashing.
func (x *Index) SetCapacity(endpoint, blocks int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h := x.holder(endpoint); h != nil {
		h.capacity = max(blocks, 0)
		x.evict(h, h.capacity)
		x.account()
	}
}

// Occupy notes that the endpoint now also holds so many blocks that no Insert names, such as those of other callers. They
// take room, and are evicted as if they had been used now.
func (x *Index) Occupy(endpoint, blocks int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.endpoints[endpoint]
	if h == nil || blocks <= 0 {
		return
	}
	h.others.add(x.clock, min(blocks, h.capacity), h.capacity)
	x.evict(h, h.capacity)
	x.account()
}

// Close gives the index's memory back. A closed index takes no more blocks.
func (x *Index) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.room.Give(x.taken)
	x.taken, x.closed = 0, true
}

// Forget drops everything known of an endpoint that left, or whose cache was emptied. Its number may be reused. No
// Match sees the endpoint from now on. Its memory is freed in small steps, by later inserts and by a timer.
func (x *Index) Forget(endpoint int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	h := x.endpoints[endpoint]
	if h == nil {
		return
	}
	delete(x.endpoints, endpoint)
	atomic.StoreInt32(&(*x.numbers.Load())[h.id], -1)
	x.forgotten = append(x.forgotten, h)
	if !x.sweeping {
		x.sweeping = true
		time.AfterFunc(sweepEvery, x.sweep)
	}
}

// Blocks returns the number of blocks that any endpoint holds, each counted once. It still counts blocks of forgotten
// endpoints until they are freed.
func (x *Index) Blocks() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.blocks
}

// holder returns an endpoint's holder, and makes it for a new endpoint; nil if the number is no endpoint's.
func (x *Index) holder(endpoint int) *holder {
	if h := x.endpoints[endpoint]; h != nil || endpoint < 0 || endpoint > math.MaxInt32 {
		return h
	}
	h := &holder{capacity: x.capacity}
	numbers := *x.numbers.Load()
	if n := len(x.freeIDs); n > 0 {
		h.id, x.freeIDs = x.freeIDs[n-1], x.freeIDs[:n-1]
		x.holders[h.id] = h
	} else {
		h.id = uint32(len(x.holders))
		x.holders = append(x.holders, h)
		numbers = append(numbers[:len(numbers):len(numbers)], -1)
		x.numbers.Store(&numbers)
	}
	atomic.StoreInt32(&numbers[h.id], int32(endpoint))
	x.endpoints[endpoint] = h
	return h
}

// sweep frees a few nodes of forgotten endpoints, and sets a timer for the next few until none are left.
func (x *Index) sweep() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sweepSome()
	x.account()
	if x.sweeping = len(x.forgotten) > 0; x.sweeping {
		time.AfterFunc(sweepEvery, x.sweep)
	}
}

// sweepSome frees a few nodes of forgotten endpoints.
func (x *Index) sweepSome() {
	for budget := sweepNodes; budget > 0 && len(x.forgotten) > 0; budget-- {
		last := len(x.forgotten) - 1
		h := x.forgotten[last]
		if h.size > 0 {
			x.evictOne(h, h.size)
			continue
		}
		x.holders[h.id] = nil
		x.freeIDs = append(x.freeIDs, h.id)
		x.forgotten = x.forgotten[:last]
	}
}

// common returns how many blocks two chains of at least one block have in common. Each hash stands for all blocks
// before it too, so few comparisons suffice.
func common(a, b []uint64) int {
	n := min(len(a), len(b))
	if a[n-1] == b[n-1] {
		return n
	}
	low, high := 0, n-1 // the first low are equal, the one at high is not
	for low < high {
		if mid := (low + high) / 2; a[mid] == b[mid] {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}
