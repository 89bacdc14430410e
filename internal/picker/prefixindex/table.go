package prefixindex

import (
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
)

// table finds a run by its first block. One writer changes it while others read. The writer sets a slot with one store,
// leaves a mark for a removed run so that readers go on searching behind it, and copies a table that fills up.
type table struct {
	slots []slot
	shift int
	// factor is odd and random, so that nobody can prepare prompts whose blocks collide in few slots.
	factor uint64
	live   int
	used   int // slots with live runs and marks
}

// slot has a run and its first block. Neither a search nor a copy of the table thus waits for the memory of runs that it
// passes: of a million runs a copy takes a fraction of the time. The block is written once, before the run.
type slot struct {
	run   atomic.Pointer[run]
	block uint64
}

const minSlots = 64

// removed marks a slot that held a run.
var removed = &run{}

func newTable(slots int) *table {
	return &table{
		slots:  make([]slot, slots),
		shift:  64 - bits.TrailingZeros(uint(slots)),
		factor: rand.Uint64() | 1,
	}
}

func (t *table) get(block uint64) *run {
	_, r := t.find(block)
	return r
}

// find returns the run that begins with a block, and its slot; no run if there is none. The slot may have lost the run by then,
// unless a writer asks.
func (t *table) find(block uint64) (*slot, *run) {
	mask := len(t.slots) - 1
	for i := int(block * t.factor >> t.shift); ; i++ {
		s := &t.slots[i&mask]
		switch r := s.run.Load(); {
		case r == nil:
			return nil, nil
		case s.block == block && r != removed:
			return s, r
		}
	}
}

// set puts r, which may be removed, in the place of a run.
func (t *table) set(old, r *run) {
	s, _ := t.find(old.blocks[0])
	s.run.Store(r)
}

// add adds a run to the table, which must have no other run with that first block, and returns the table to use from
// now on. At most half of the slots are used, by live runs and by marks.
func (t *table) add(r *run) *table {
	if t.used*2 >= len(t.slots) {
		t = t.copy()
	}
	t.put(r.blocks[0], r)
	return t
}

// put puts a run into the first free slot for its first block.
func (t *table) put(block uint64, r *run) {
	mask := len(t.slots) - 1
	i := int(block * t.factor >> t.shift)
	for t.slots[i&mask].run.Load() != nil {
		i++
	}
	s := &t.slots[i&mask]
	s.block = block
	s.run.Store(r)
	t.live++
	t.used++
}

// copy makes a table without marks, at most a quarter full.
func (t *table) copy() *table {
	slots := minSlots
	for slots < t.live*4 {
		slots *= 2
	}
	c := newTable(slots)
	for i := range t.slots {
		if r := t.slots[i].run.Load(); r != nil && r != removed {
			c.put(t.slots[i].block, r)
		}
	}
	return c
}

// remove takes a run out, and returns the table to use from now on.
func (t *table) remove(r *run) *table {
	t.set(r, removed)
	t.live--
	if len(t.slots) > minSlots && t.live*16 < len(t.slots) {
		return t.copy()
	}
	return t
}
