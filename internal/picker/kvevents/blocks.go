package kvevents

// blocks counts how often the ranks of an endpoint have each block, and tells the net changes. The endpoint's lock
// guards it.
type blocks struct {
	tell   func(Change)
	tokens int // the length of all blocks; 0 where it is not known yet
	// others is how many blocks of another length were stored since the last one of this length.
	others  int
	count   map[uint64]uses // by name
	most    int             // how many there were since count was made
	touched []uint64        // names whose uses are touched
	cleared bool            // not told yet
	stored  []uint64        // of the change that is told, to be used again
	removed []uint64
}

// uses says how often a block is there, and whether that changed since the last change was told.
type uses struct {
	n       uint32
	touched bool
	was     bool // whether it was there then
}

func newBlocks(tell func(Change)) blocks {
	return blocks{tell: tell, count: map[uint64]uses{}, cleared: true}
}

// add counts one more use of a block, or one less.
func (b *blocks) add(name uint64, more bool) {
	u := b.count[name]
	if !u.touched {
		u.touched, u.was = true, u.n > 0
		b.touched = append(b.touched, name)
	}
	if more {
		u.n++
	} else {
		u.n--
	}
	b.count[name] = u
	b.most = max(b.most, len(b.count))
	if len(b.touched) == mostNames {
		b.flush(false)
	}
}

// flush tells what changed since the last flush; if told to, also that nothing did.
func (b *blocks) flush(always bool) {
	b.stored, b.removed = b.stored[:0], b.removed[:0]
	for _, name := range b.touched {
		u := b.count[name]
		switch is := u.n > 0; {
		case is && !u.was:
			b.stored = append(b.stored, name)
		case !is && u.was:
			b.removed = append(b.removed, name)
		}
		if u.n == 0 {
			delete(b.count, name)
		} else {
			b.count[name] = uses{n: u.n}
		}
	}
	b.touched = b.touched[:0]
	if always || b.cleared || len(b.stored)+len(b.removed) > 0 {
		b.tell(Change{Cleared: b.cleared, Stored: b.stored, Removed: b.removed, BlockTokens: b.tokens})
		b.cleared = false
	}
}

// void forgets all blocks.
func (b *blocks) void() {
	b.count, b.most = map[uint64]uses{}, 0 // a cleared map keeps its memory
	b.touched = b.touched[:0]
	b.cleared = true
	b.others = 0
}

// compact gives back the memory of blocks that are no longer there, where they were most of all. A map keeps the size that it once
// had, and to copy it costs as much as what is left in it.
func (b *blocks) compact() {
	b.flush(false)
	if len(b.count) > b.most/4 {
		return
	}
	count := make(map[uint64]uses, len(b.count))
	for name, u := range b.count {
		count[name] = u
	}
	b.count, b.most = count, len(count)
}

// fits reports whether blocks of a length may be stored: all of an endpoint's blocks have one length. vLLM also
// tells of single shorter blocks, and of chunks of blocks in other media. Where more blocks in a row have another length
// than there are blocks at all, it was a wrong length that was known before: reset must then void all blocks.
func (b *blocks) fits(tokens, n int, reset func()) bool {
	if b.tokens == tokens {
		b.others = 0
		return true
	}
	if b.others += n; b.tokens > 0 && b.others <= len(b.count) {
		return false
	}
	if b.tokens > 0 {
		reset()
	}
	b.tokens, b.others = tokens, 0
	return true
}
