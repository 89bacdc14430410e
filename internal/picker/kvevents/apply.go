package kvevents

import (
	"hash/maphash"
	"math"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenblocks"
)

const (
	// blockBytes is the memory of a block in named and in the endpoint's counts. TestBytesAreAsMeasured measures it.
	blockBytes = 88
	// portion is for how many blocks memory is taken at a time.
	portion = 256
	// lockedBlocks is how many blocks are applied before the rank waits for its tenant's rate, and other ranks may go on:
	// 0.1 ms.
	lockedBlocks = 256
	// maxBlockTokens bounds the length of a block.
	maxBlockTokens = 1 << 14
)

// apply applies a batch's events to the rank's blocks, and tells what changed.
func (r *rank) apply(seq uint64, payload []byte) error {
	r.position = position{known: true, last: seq, sum: maphash.Bytes(hashSeed, payload)}
	err := decode(payload, func(e *event) error {
		if err := r.endpoint.ctx.Err(); err != nil {
			return err
		}
		switch e.kind {
		case eventStored:
			return r.store(e)
		case eventRemoved:
			return r.remove(e)
		default:
			return r.clearAll()
		}
	})
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	r.endpoint.blocks.flush(false)
	return err
}

// chain is the blocks of a stored event, each the parent of the next.
type chain struct {
	hashes, tokens, keys cursor
	keyed                bool // keys has an entry for each block
	blocks               int
	blockTokens          int
	adapter              []byte
	medium               medium
}

// chainOf returns the blocks of an event. It reports false for an event that says nothing about whole blocks: of another
// group, of an adapter without a name, or whose lists do not fit each other.
func chainOf(e *event) (c chain, ok bool) {
	c = chain{
		hashes:  cursor{data: e.hashes},
		tokens:  cursor{data: e.tokens},
		keys:    cursor{data: e.extraKeys},
		keyed:   !none(e.extraKeys),
		adapter: text(e.loraName),
		medium:  e.where(),
	}
	if !e.counts() || len(c.adapter) == 0 && !none(e.loraID) {
		return c, false
	}
	if c.blockTokens, ok = whole(e.blockSize, maxBlockTokens); !ok || c.blockTokens == 0 {
		return c, false
	}
	var err error
	if c.blocks, err = c.hashes.array(); err != nil || c.blocks == 0 {
		return c, false
	}
	if tokens, err := c.tokens.array(); err != nil || tokens != c.blocks*c.blockTokens {
		return c, false
	}
	if c.keyed {
		if entries, err := c.keys.array(); err != nil || entries != c.blocks {
			return c, false
		}
	}
	return c, true
}

// next returns the hash and the name of the next block. It reports false where something in it is malformed.
func (c *chain) next(parent uint64, tokens []uint32) (hash, name uint64, ok bool) {
	hash, err := c.hashes.hash()
	if err != nil || c.tokens.uint32s(tokens) != nil {
		return 0, 0, false
	}
	if c.keyed {
		keys, err := c.keys.keys(c.adapter)
		if err != nil {
			return 0, 0, false
		}
		if len(keys) > 0 {
			parent = tokenblocks.Keyed(parent, keys)
		}
	}
	return hash, tokenblocks.Next(parent, tokens), true
}

// store stores the blocks of an event. Blocks whose parent is not known have no name and are left out, as are those
// behind a malformed one.
func (r *rank) store(e *event) error {
	c, ok := chainOf(e)
	if !ok {
		return nil
	}
	parent, ok := r.parent(e, c.adapter)
	if !ok {
		return nil
	}
	if err := r.makeTokens(c.blockTokens); err != nil {
		return err
	}
	for left := c.blocks; left > 0; left -= lockedBlocks {
		n := min(left, lockedBlocks)
		if err := r.endpoint.tenant.pay(r.endpoint.ctx, n*blockCost); err != nil {
			return err
		}
		var err error
		if parent, ok, err = r.storeSome(&c, parent, n); err != nil || !ok {
			return err
		}
	}
	return nil
}

// parent returns the name of the block before the event's blocks.
func (r *rank) parent(e *event, adapter []byte) (uint64, bool) {
	if none(e.parent) {
		return tokenblocks.Root(string(adapter)), true
	}
	c := cursor{data: e.parent}
	hash, err := c.hash()
	if err != nil {
		return 0, false
	}
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	b, ok := r.named[hash]
	return b.name, ok
}

// makeTokens makes room for the tokens of a block.
func (r *rank) makeTokens(n int) error {
	if n > cap(r.tokens) {
		if err := r.base.set(rankBytes + int64(4*n)); err != nil {
			return err
		}
		r.tokens = make([]uint32, n)
	}
	r.tokens = r.tokens[:n]
	return nil
}

// storeSome stores the next n blocks, and returns the name of the last one.
func (r *rank) storeSome(c *chain, parent uint64, n int) (uint64, bool, error) {
	e := r.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.blocks.fits(c.blockTokens, n, e.reset) {
		return 0, false, nil
	}
	for range n {
		hash, name, ok := c.next(parent, r.tokens)
		if !ok {
			return 0, false, nil
		}
		if err := r.put(hash, name, c.medium); err != nil {
			return 0, false, err
		}
		parent = name
	}
	return parent, true, nil
}

// put notes that a medium has a block. The caller has the endpoint's lock.
func (r *rank) put(hash, name uint64, in medium) error {
	b, ok := r.named[hash]
	switch {
	case !ok:
		if err := r.makeRoom(); err != nil {
			return err
		}
		r.endpoint.blocks.add(name, true)
		b = named{name: name}
	case b.name != name: // no engine gives two blocks one hash
		r.endpoint.blocks.add(b.name, false)
		r.endpoint.blocks.add(name, true)
		b = named{name: name}
	}
	if b.in[in] < math.MaxUint8 {
		b.in[in]++
	}
	r.named[hash] = b
	return nil
}

// makeRoom takes memory for one more block.
func (r *rank) makeRoom() error {
	if len(r.named) < r.room {
		return nil
	}
	if err := r.entries.set(int64(r.room+portion) * blockBytes); err != nil {
		return err
	}
	r.room += portion // a map never gets smaller, so neither does its room
	return nil
}

// remove evicts the blocks of an event from a medium. Those that are not known are left out.
func (r *rank) remove(e *event) error {
	hashes := cursor{data: e.hashes}
	n, err := hashes.array()
	if err != nil || !e.counts() {
		return nil
	}
	where := e.where()
	for left := n; left > 0; left -= lockedBlocks {
		some := min(left, lockedBlocks)
		if err := r.endpoint.tenant.pay(r.endpoint.ctx, some*blockCost); err != nil {
			return err
		}
		if !r.removeSome(&hashes, where, some) {
			return nil
		}
	}
	return nil
}

func (r *rank) removeSome(hashes *cursor, from medium, n int) bool {
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	for range n {
		hash, err := hashes.hash()
		if err != nil {
			return false
		}
		r.take(hash, from)
	}
	return true
}

// take notes that a medium no longer has a block. The caller has the endpoint's lock.
func (r *rank) take(hash uint64, from medium) {
	b, ok := r.named[hash]
	if !ok || b.in[from] == 0 {
		return
	}
	if b.in[from]--; b.in != [media]uint8{} {
		r.named[hash] = b
		return
	}
	delete(r.named, hash)
	r.endpoint.blocks.add(b.name, false)
}

// forget voids all that the rank told, as it is not known what became of it.
func (r *rank) forget() {
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	r.position = position{}
	if len(r.named) > 0 {
		r.endpoint.clear(r)
		r.endpoint.blocks.flush(false)
	}
}

// clearAll removes all blocks of the rank. It costs as much as to store them did, which an event of a few bytes does not.
func (r *rank) clearAll() error {
	if err := r.endpoint.tenant.pay(r.endpoint.ctx, (1+r.size())*blockCost); err != nil {
		return err
	}
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	r.endpoint.clear(r)
	return nil
}

// size is how many blocks the rank has.
func (r *rank) size() int {
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	return len(r.named)
}

// clear removes all blocks of a rank, and gives their memory back. Where no other rank has any, all that was told of the
// endpoint is void. The caller has the lock.
func (e *endpoint) clear(r *rank) {
	alone := true
	for _, other := range e.ranks {
		alone = alone && (other == r || len(other.named) == 0)
	}
	switch {
	case len(r.named) == 0:
	case alone:
		e.blocks.void()
	default:
		for _, b := range r.named {
			e.blocks.add(b.name, false)
		}
		e.blocks.compact()
	}
	r.drop()
}

// reset voids all blocks of all ranks. The caller has the lock.
func (e *endpoint) reset() {
	for _, r := range e.ranks {
		r.drop()
	}
	e.blocks.void()
}

// drop gives back the memory of the rank's blocks.
func (r *rank) drop() {
	r.named = map[uint64]named{}
	r.entries.free()
	r.room = 0
}
