package poolstate

import (
	"slices"
	"sort"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// The headers of a streamed answer may come before its prompt is prefilled, and an answer's end looks to the picker
// like a caller who left. A prompt that its endpoint can hardly have prefilled by then still counts as cached, as the
// endpoint may be faster than assumed. The proxy knows which calls were broken off, and reports them a moment before
// the picker sees the end or, mostly, after. All functions here but BrokenOff and settle need the pool's mutex.

const (
	// doubtFor is how long a call that may have been broken off is remembered. A proxy reports a broken-off call at once;
	// opening a connection for the report takes milliseconds.
	doubtFor = 3 * time.Second
	// maxDoubted bounds the memory of such calls, of all pools together, in bytes. A prompt of 64 KiB takes 2 KiB.
	maxDoubted = 16 << 20
	// mostDoubts is how many such calls of a pool are remembered: each call that ends looks through them.
	mostDoubts = 256
	// doubtBytes is the memory of one such call besides its blocks.
	doubtBytes = 64
	// mostReported is how many reported calls are remembered whose end the picker has not seen.
	mostReported = 256
	// idSpare is how many bits of a uint64 a call's id leaves unused: proxies hold the id as a float64.
	idSpare = 12
)

// doubts are the calls that may have been broken off.
type doubts struct {
	room     *fairshare.Share
	ended    []doubt  // in the order of their ends
	reported []uint64 // calls that were reported as broken off and not seen to end; the oldest is overwritten first
	next     int      // the next place in reported to overwrite
	settling bool     // settle is due
}

// doubt is a call that ended before its endpoint can have prefilled all of its blocks.
type doubt struct {
	id       uint64
	at       time.Duration
	endpoint int32
	blocks   []uint64
	sure     int // how many of the blocks the endpoint has cached, whether or not the call was broken off
	theirs   bool
}

func (d *doubt) bytes() int64 { return int64(doubtBytes + 8*len(d.blocks)) }

// nextID returns a call's id. Ids begin at a random number, so that several pickers and pools use different ones.
func (p *Pool) nextID() uint64 {
	p.lastID++ // ids begin below 2^52, so that a float64 holds all of them exactly
	return p.lastID
}

// BrokenOff notes that a call was broken off before its answer's first byte: by the caller, by a timeout or by the
// endpoint. What the endpoint had no time to prefill no longer counts as cached. An id that is not a call's of the pool
// changes nothing.
func (p *Pool) BrokenOff(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell(id, Event{Kind: BrokenOff})
	p.brokenOff(id)
}

func (p *Pool) brokenOff(id uint64) {
	i := slices.IndexFunc(p.doubts.ended, func(d doubt) bool { return d.id == id })
	if i < 0 {
		p.doubts.noteReport(id)
		return
	}
	broken := p.doubts.ended[i]
	p.doubts.remove(i)
	p.takeBack(&broken)
}

// doubt notes that a call ended before its endpoint can have prefilled more than the first sure of its blocks.
func (p *Pool) doubt(r *Reservation, sure int, now time.Duration) {
	n := r.claim.Endpoint
	d := doubt{id: r.id, at: now, endpoint: n, blocks: r.blocks, sure: sure, theirs: r.theirs}
	if slices.Contains(p.doubts.reported, r.id) {
		p.takeBack(&d)
		return
	}
	if !p.slots[n].member && !p.slots[n].remembered {
		return // the endpoint's number is about to be reused
	}
	if p.doubts.add(d) && !p.doubts.settling {
		p.doubts.settling = true
		p.after(doubtFor, p.settle)
	}
}

// takeBack takes out of the index the blocks that a broken-off call did not compute. Calls in flight with the same
// blocks insert them again when they end. For calls that ended in the meantime takeBack inserts them again.
func (p *Pool) takeBack(broken *doubt) {
	n := broken.endpoint
	if !broken.theirs {
		p.metrics.BrokenOff()
	}
	p.slots[n].withdrawn++
	p.index.Withdraw(int(n), broken.blocks, broken.sure)
	p.slots[n].stored.lost((len(broken.blocks) - broken.sure) * selection.BlockTokens)
	for i := range p.doubts.ended {
		if other := &p.doubts.ended[i]; other.endpoint == n && p.slots[n].member && shared(other.blocks, broken.blocks) > broken.sure {
			p.index.Insert(int(n), other.blocks)
		}
	}
}

// found returns how many of the blocks that a call was taken to find at endpoint n were surely there. Blocks that came
// with a call that may have been broken off do not count.
func (d *doubts) found(n int32, blocks []uint64, taken int) int {
	for i := range d.ended {
		if e := &d.ended[i]; e.endpoint == n && shared(e.blocks, blocks) > e.sure {
			taken = min(taken, e.sure)
		}
	}
	return taken
}

// confirm notes that endpoint n has these blocks cached, whatever became of the calls that brought them.
func (d *doubts) confirm(n int32, blocks []uint64) {
	for i := range d.ended {
		if e := &d.ended[i]; e.endpoint == n {
			e.sure = max(e.sure, shared(e.blocks, blocks))
		}
	}
}

// settle drops the calls that a proxy would have reported by now.
func (p *Pool) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &p.doubts
	now := p.clock()
	for len(d.ended) > 0 && d.ended[0].at+doubtFor <= now {
		d.remove(0)
	}
	if d.settling = len(d.ended) > 0; d.settling {
		p.after(max(d.ended[0].at+doubtFor-now, 100*time.Millisecond), p.settle)
	}
}

// add remembers a call, with a copy of its blocks, if there is room. The pool's oldest calls make room.
func (d *doubts) add(call doubt) bool {
	if len(d.ended) == mostDoubts {
		d.remove(0)
	}
	for !d.room.Take(call.bytes()) {
		d.room.Give(call.bytes())
		if len(d.ended) == 0 {
			return false
		}
		d.remove(0)
	}
	call.blocks = slices.Clone(call.blocks)
	d.ended = append(d.ended, call)
	return true
}

func (d *doubts) remove(i int) {
	d.room.Give(d.ended[i].bytes())
	d.ended = slices.Delete(d.ended, i, i+1)
}

// noteReport remembers the id of a broken-off call whose end the picker has not seen, if there is such a call.
func (d *doubts) noteReport(id uint64) {
	if len(d.reported) < mostReported {
		d.reported = append(d.reported, id)
		return
	}
	d.reported[d.next] = id
	d.next = (d.next + 1) % mostReported
}

// forget drops the calls to an endpoint whose cache is forgotten.
func (d *doubts) forget(n int32) {
	for i := len(d.ended) - 1; i >= 0; i-- {
		if d.ended[i].endpoint == n {
			d.remove(i)
		}
	}
}

// shared returns how many first blocks two prompts have in common. A block's hash stands for all before it too.
func shared(a, b []uint64) int {
	return sort.Search(min(len(a), len(b)), func(i int) bool { return a[i] != b[i] })
}
