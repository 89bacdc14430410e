package prefixindex

// What an index takes of memory, in bytes, as a heap of many short prompts has it: a node is a run and a node of the tree
// with their slots in the table; a share is its words in both and an entry in the heap of ends. Measured by
// TestBytesAreAsMeasured.
const (
	blockBytes = 8
	nodeBytes  = 140
	shareBytes = 48
)

const (
	// slack is how many blocks an Insert takes away beside as many as it brings, where there is no room: so an index that
	// has more than it may shrinks, a little at a time.
	slack = 256
	// portion is how many blocks are taken away between two looks at the room.
	portion = 64
)

func (x *Index) bytes() int64 {
	return int64(blockBytes*x.blocks + nodeBytes*x.runs.Load().live + shareBytes*x.shares)
}

// tell takes what the index has grown by from the room, or gives back, and says whether it may have what it has.
func (x *Index) tell() bool {
	if x.closed {
		return true
	}
	now := x.bytes()
	fits := x.room.Take(now - x.told)
	x.told = now
	return fits
}

// shrink takes blocks from the endpoints that have the most until the index has no more than it may, so many at most.
func (x *Index) shrink(most int) {
	for !x.tell() && most > 0 {
		h := x.fullest()
		if h == nil {
			return
		}
		before := h.size
		x.evict(h, max(0, h.size-min(portion, most)))
		most -= before - h.size
	}
}

// fullest is the endpoint that holds the most blocks; nil where none holds any.
func (x *Index) fullest() *holder {
	var out *holder
	for _, h := range x.endpoints {
		if h.size > 0 && (out == nil || h.size > out.size || h.size == out.size && h.id < out.id) {
			out = h
		}
	}
	return out
}
