package prefixindex

// The memory of an index, in bytes, as in a heap of many short prompts. A node is a run and a tree node with their
// slots in the table. A share is its words in both and an entry in the heap of ends. TestBytesAreAsMeasured measures
// them.
const (
	blockBytes = 8
	nodeBytes  = 164
	shareBytes = 48
)

const (
	// slack is how many more blocks than it brings an Insert may evict where there is no memory left: so an index that
	// exceeds its share shrinks, a little at a time.
	slack = 256
	// portion is how many blocks are evicted between two looks at the share.
	portion = 64
)

func (x *Index) bytes() int64 {
	return int64(blockBytes*x.blocks + nodeBytes*x.runs.Load().live + shareBytes*x.shares)
}

// account takes the index's growth from its share, or gives memory back, and reports whether the share allows the rest.
func (x *Index) account() bool {
	if x.closed {
		return true
	}
	now := x.bytes()
	fits := x.room.Take(now - x.taken)
	x.taken = now
	return fits
}

// shrink evicts up to most blocks from the endpoints that hold the most, until the share allows the index its memory.
func (x *Index) shrink(most int) {
	for !x.account() && most > 0 {
		h := x.fullest()
		if h == nil {
			return
		}
		before := h.size
		x.evictOwn(h, max(0, h.size-min(portion, most)))
		most -= before - h.size
	}
}

// fullest returns the endpoint that holds the most blocks; nil where none holds any.
func (x *Index) fullest() *holder {
	var out *holder
	for _, h := range x.endpoints {
		if h.size > 0 && (out == nil || h.size > out.size || h.size == out.size && h.id < out.id) {
			out = h
		}
	}
	return out
}
