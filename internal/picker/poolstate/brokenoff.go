package poolstate

import (
	"slices"
	"sort"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

// The head of a streamed answer may come before its prompt is prefilled, and its end looks to the picker like a caller who
// left. Where such a call ended before its endpoint can have prefilled the prompt, at the speed that it is taken to have, the
// prompt is still taken to be cached: the endpoint may be faster. The proxy knows which calls were broken off and says so a
// moment before the picker sees the end or, mostly, after. The pool's mutex is held, but in BrokenOff and settle.

const (
	// doubtFor is how long a call stays known that may have been broken off. A proxy says at once that one was; opening
	// a connection for that takes milliseconds.
	doubtFor = 3 * time.Second
	// maxDoubted bounds what is kept of such calls, of all pools together, in bytes. A prompt of 64 KiB takes 2 KiB.
	maxDoubted = 16 << 20
	// mostDoubts is how many such calls of a pool are kept: each call that ends looks through them.
	mostDoubts = 256
	// doubtBytes is what one takes beside its blocks.
	doubtBytes = 64
	// toldEarly is how many calls are kept of which it was said that they were broken off and nothing else is known.
	toldEarly = 64
	// idSpare is how many bits of a number a call's name does not take: proxies hold it as a float64.
	idSpare = 12
)

// doubts are the calls that may have been broken off.
type doubts struct {
	room  *fairshare.Share
	ended []doubt  // in the order of their ends
	told  []uint64 // calls that were broken off and not seen to end; the oldest is overwritten first
	next  int      // where in told
	timer *time.Timer
}

// doubt is a call that ended before its endpoint can have prefilled all of its blocks.
type doubt struct {
	id       uint64
	at       time.Duration
	endpoint int32
	blocks   []uint64
	sure     int // so many of the blocks the endpoint holds, whatever became of the call
}

func (d *doubt) bytes() int64 { return int64(doubtBytes + 8*len(d.blocks)) }

// nextID names a call. Names begin at random, so that those of several pickers and pools differ.
func (p *Pool) nextID() uint64 {
	p.lastID++ // from at most 2^52 on, so that all names stay exact
	return p.lastID
}

// BrokenOff says that a call was broken off before its answer's first byte: by the caller, by a time limit or by the
// endpoint. What its endpoint did not have the time to prefill is not taken to be cached any more. A name that is no call's
// of the pool changes nothing.
func (p *Pool) BrokenOff(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.doubts.ended, func(d doubt) bool { return d.id == id })
	if i < 0 {
		p.doubts.tell(id)
		return
	}
	broken := p.doubts.ended[i]
	p.doubts.remove(i)
	p.takeBack(&broken)
}

// doubt notes that a call ended before its endpoint can have prefilled more than some of its blocks.
func (p *Pool) doubt(r *Reservation, sure int, now time.Duration) {
	n := r.claim.Endpoint
	d := doubt{id: r.id, at: now, endpoint: n, blocks: r.blocks, sure: sure}
	if slices.Contains(p.doubts.told, r.id) {
		p.takeBack(&d)
		return
	}
	if !p.slots[n].member && !p.slots[n].remembered {
		return // its number is about to be given out anew
	}
	if p.doubts.add(d) && p.doubts.timer == nil {
		p.doubts.timer = time.AfterFunc(doubtFor, p.settle)
	}
}

// takeBack takes out of the index what a call that was broken off did not come to compute. Calls in flight that hold the
// same blocks insert them again when they end, and for those that ended since it is done here.
func (p *Pool) takeBack(broken *doubt) {
	n := broken.endpoint
	p.metrics.BrokenOff()
	p.slots[n].withdrawn++
	p.index.Withdraw(int(n), broken.blocks, broken.sure)
	for i := range p.doubts.ended {
		if other := &p.doubts.ended[i]; other.endpoint == n && p.slots[n].member && shared(other.blocks, broken.blocks) > broken.sure {
			p.index.Insert(int(n), other.blocks)
		}
	}
}

// found is how many of so many blocks that a call was taken to find at endpoint n were there for sure: not those that a call
// brought which may have been broken off.
func (d *doubts) found(n int32, blocks []uint64, taken int) int {
	for i := range d.ended {
		if e := &d.ended[i]; e.endpoint == n && shared(e.blocks, blocks) > e.sure {
			taken = min(taken, e.sure)
		}
	}
	return taken
}

// confirm notes that endpoint n holds these blocks, whatever became of the calls that brought them.
func (d *doubts) confirm(n int32, blocks []uint64) {
	for i := range d.ended {
		if e := &d.ended[i]; e.endpoint == n {
			e.sure = max(e.sure, shared(e.blocks, blocks))
		}
	}
}

// settle drops the calls of which it would have been said by now that they were broken off.
func (p *Pool) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := &p.doubts
	now := p.clock()
	for len(d.ended) > 0 && d.ended[0].at+doubtFor <= now {
		d.remove(0)
	}
	d.timer = nil
	if len(d.ended) > 0 {
		d.timer = time.AfterFunc(max(d.ended[0].at+doubtFor-now, 100*time.Millisecond), p.settle)
	}
}

// add keeps a call, with a copy of its blocks, and says whether there was room for it. The oldest of the pool give way.
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

// tell keeps the name of a call that was broken off and is not seen to end yet, if it is one at all.
func (d *doubts) tell(id uint64) {
	if len(d.told) < toldEarly {
		d.told = append(d.told, id)
		return
	}
	d.told[d.next] = id
	d.next = (d.next + 1) % toldEarly
}

// forget drops the calls to an endpoint of which nothing is known any more.
func (d *doubts) forget(n int32) {
	for i := len(d.ended) - 1; i >= 0; i-- {
		if d.ended[i].endpoint == n {
			d.remove(i)
		}
	}
}

// shared is how many blocks two prompts have in common. Each stands for all before it.
func shared(a, b []uint64) int {
	return sort.Search(min(len(a), len(b)), func(i int) bool { return a[i] != b[i] })
}
