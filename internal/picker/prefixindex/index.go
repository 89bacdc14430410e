// Package prefixindex remembers which endpoint of a pool holds which prefix block. It knows endpoints as small
// numbers that its user gives out, and blocks as chained hashes; it knows nothing of requests, pools or addresses.
//
// Prompts with a common head make a tree. A bitset of endpoints for each block would say the same thing thousands of
// times over, since along a prompt the set of holders changes at few places: where prompts part ways, and where an
// endpoint has evicted the rest. So the tree's nodes are runs of blocks between two places where prompts part, and a
// node has one word for each endpoint in it: how many of the run's blocks, from its head, the endpoint holds. A prompt
// of 2,048 blocks is matched by one look-up for each run and a binary search in the last one.
//
// Each endpoint is taken to keep its blocks as model servers do: least recently used out first, and of those used at
// the same time the deepest first. Hence the invariant on which matching rests: an endpoint that holds a block holds
// all blocks before it. It needs no bookkeeping for each block. A use of a prompt uses all of its blocks, so a block
// is at least as recent as any block behind it; only the ends of what an endpoint holds can be the oldest; and a use
// is noted once, at the prompt's end. When an end goes, what was before it becomes an end and inherits its recency.
//
// Match takes no lock. Writers take the index's mutex; what readers see they replace or change one word at a time, so
// that a reader sees each run either before or after a change.
package prefixindex

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

const (
	// sweepNodes bounds what is cleaned up at a time of what Forget left behind: about 10 µs.
	sweepNodes = 64
	// sweepEvery is how often that is done where no Insert does it: 0.2 % of a CPU, and some 10,000 conversations a second.
	sweepEvery = 5 * time.Millisecond
)

// Index is one pool's memory of prefixes. All methods may be called from several goroutines.
//
// Blocks must be chained: a hash stands for its block and all blocks before it. Where the hashes of two different
// prefixes collide, the later one is not remembered.
type Index struct {
	runs atomic.Pointer[table]
	// numbers gives the number of the endpoint that a holder's id stands for, -1 for one that was forgotten.
	numbers atomic.Pointer[[]int32]

	mu        sync.Mutex
	room      *fairshare.Share // of the memory of all indexes
	told      int64            // what was taken of it
	capacity  int
	clock     uint64 // counts inserts
	blocks    int
	shares    int             // of endpoints in nodes
	endpoints map[int]*holder // by number
	holders   []*holder       // by id; nil where an id is free
	freeIDs   []uint32
	forgotten []*holder // not yet swept
	sweeping  bool      // there is a timer that sweeps
	closed    bool
}

// holder is what one endpoint holds. Only writers see it.
type holder struct {
	id       uint32
	capacity int
	size     int // blocks held
	ends     endsHeap
}

// New makes an empty index; capacity is the number of blocks that an endpoint is taken to hold until SetCapacity
// tells its own. The index takes its memory, in bytes, from the room; where that has no more, endpoints lose the blocks
// that they used least recently, those first that have the most.
func New(capacity int, room *fairshare.Share) *Index {
	x := &Index{room: room, capacity: max(capacity, 0), endpoints: map[int]*holder{}}
	x.runs.Store(newTable(minSlots))
	x.numbers.Store(&[]int32{})
	return x
}

// Match writes into depth[n], for every endpoint number n below len(depth), how many of the blocks, counted from the
// head without a gap, endpoint n holds. Against an Insert or Forget that runs at the same time, it may see a part of
// its effect. It allocates nothing and waits for nobody.
func (x *Index) Match(blocks []uint64, depth []int32) {
	clear(depth)
	numbers := *x.numbers.Load()
	for at, r := 0, x.next(blocks); r != nil; {
		n := common(r.blocks, blocks[at:])
		var next *run
		if n == len(r.blocks) {
			next = x.next(blocks[at+n:])
		}
		// All who hold the next run hold this one, and are written there: a head that 1,000 endpoints hold, parted
		// into 64 runs, costs little more than one run.
		if next == nil || next.live.Load() != r.live.Load() {
			r.depths(at, n, numbers, depth)
		}
		at += n
		r = next
	}
}

// Held is how many of the blocks, counted from the head without a gap, one endpoint holds: what Match writes for it.
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

// heldBy is how many of a run's blocks, from its head, an endpoint holds.
func (r *run) heldBy(endpoint int, numbers []int32) int {
	for i := range r.held {
		id, held := unpack(atomic.LoadUint64(&r.held[i]))
		if held > 0 && int(id) < len(numbers) && int(atomic.LoadInt32(&numbers[id])) == endpoint {
			return int(held)
		}
	}
	return 0
}

// next is the run that begins with the first of the blocks; nil where there is none.
func (x *Index) next(blocks []uint64) *run {
	if len(blocks) == 0 {
		return nil
	}
	return x.runs.Load().get(blocks[0])
}

// depths writes how deep the holders of a run are: it begins behind the given number of blocks, and n of it match.
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

// Insert notes that the endpoint now holds these blocks, the first of which is a prompt's head, and has used all of
// them. What exceeds the endpoint's capacity is evicted; of blocks that exceed it by themselves the head is kept.
func (x *Index) Insert(endpoint int, blocks []uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sweepSome()
	h := x.holder(endpoint)
	if h == nil || x.closed {
		return
	}
	x.clock++
	x.insert(h, blocks[:min(len(blocks), h.capacity)])
	x.evict(h, h.capacity)
	x.shrink(len(blocks) + slack)
}

// SetCapacity tells how many blocks an endpoint holds, in blocks of the caller's hashing.
func (x *Index) SetCapacity(endpoint, blocks int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if h := x.holder(endpoint); h != nil {
		h.capacity = max(blocks, 0)
		x.evict(h, h.capacity)
		x.tell()
	}
}

// Close gives the index's room back. It takes in nothing more.
func (x *Index) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.room.Give(x.told)
	x.told, x.closed = 0, true
}

// Forget drops everything known of an endpoint: it left, or its cache was emptied. Its number may be given out anew.
// No Match sees it from now on; its memory comes back in small pieces, with the inserts that follow and with time.
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

// Blocks is the number of blocks that any endpoint holds, each counted once. It falls behind Forget until what was
// forgotten is cleaned up.
func (x *Index) Blocks() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.blocks
}

// holder returns what an endpoint holds, of a new one nothing; nil if the number is no endpoint's.
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

// sweep frees a little of what forgotten endpoints held, and does so again until nothing is left.
func (x *Index) sweep() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.sweepSome()
	x.tell()
	if x.sweeping = len(x.forgotten) > 0; x.sweeping {
		time.AfterFunc(sweepEvery, x.sweep)
	}
}

// sweepSome frees a little of what forgotten endpoints held.
func (x *Index) sweepSome() {
	for budget := sweepNodes; budget > 0 && len(x.forgotten) > 0; budget-- {
		last := len(x.forgotten) - 1
		h := x.forgotten[last]
		if h.size > 0 {
			x.evictOne(h, 0)
			continue
		}
		x.holders[h.id] = nil
		x.freeIDs = append(x.freeIDs, h.id)
		x.forgotten = x.forgotten[:last]
	}
}

// common is how many blocks two chains of at least one block have in common. Since each hash stands for all before
// it, it suffices to look at few.
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
