package poolstate

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// Pickers tell each other what they decide, so that each can pick for any pool as well as the picker that has picked for it
// until now. A call of another picker changes a pool's state as a call of the picker's own does, a moment later. It is in no
// metric, and makes nobody read the servers more often.

const (
	// mostTheirs is how many calls of one other picker a pool follows: as many as a picker takes.
	mostTheirs = 50_000
	// maxTheirs bounds the memory of these calls' blocks, of all pools together, in bytes. The blocks of calls beyond that
	// are forgotten after the call's begin: then it does not matter to the index how the call ends.
	maxTheirs = 64 << 20
	// toldWithin is how long after a pick another picker knows of it: 0.2 s until it is told, and some time on the way. A
	// reading of a server is taken so much later where another picker alone picks, as if the server had been read then. It would
	// else count calls that were not told yet, and they would be taken for calls of others.
	toldWithin = 250 * time.Millisecond
	// followedFor is how long a pool counts as picked for by a picker after a pick there.
	followedFor = 2 * time.Second
	// speedEvery is how often another picker is told what is observed of a server's prefill. It cannot observe that itself: it
	// hears of calls in messages, and not when they began.
	speedEvery = 5 * time.Second
	// lostAtOnce is how many calls of a lost picker end while the pool's mutex is held.
	lostAtOnce = 64
)

// EventKind is a kind of event. Most are events in a call's life.
type EventKind uint8

// The kinds of events.
const (
	Reserved  EventKind = iota + 1 // the call is picked for Endpoint
	Moved                          // Endpoint serves it instead
	Responded                      // the headers of its answer show the endpoint's health: Outcome
	Released                       // it has ended: Outcome
	BrokenOff                      // a proxy reports that it was broken off before its answer's first byte
	Learned                        // of no call: what was observed of Endpoint's prefill: Speed
)

// Event is one thing that a picker decided or learned.
type Event struct {
	Kind EventKind
	Pool types.NamespacedName
	// Call is the call's id. Calls of different pickers have different ones, but for chance.
	Call uint64
	// Endpoint is set where Reserved, Moved or Learned.
	Endpoint netip.AddrPort
	// Facts has, where Reserved, the model, the prompt's length and blocks, and whether the answer streams.
	Facts request.Facts
	// Uncached are, where Reserved, the prompt's tokens that the endpoint is taken to have to prefill.
	Uncached int
	// Outcome is set where Responded or Released.
	Outcome Outcome
	// NotPrefilled says, where Released, that the endpoint is taken not to have prefilled the prompt. Else Unsure is how many
	// of the prompt's blocks it lacks if the call turns out to have been broken off.
	NotPrefilled bool
	Unsure       int
	// Speed is set where Learned.
	Speed selection.Learned
	// Soon says, where Reserved, that others pick for the pool too and should hear of it as soon as they can.
	Soon bool
}

// Teller tells other pickers what this one decides. Its methods are called with a pool's mutex held: they must be quick.
type Teller interface {
	// Process is this picker's id, by which others know it.
	Process() string
	// Followed says whether any picker follows.
	Followed() bool
	// Tell tells all that follow. It must not keep the event's blocks.
	Tell(*Event)
}

// tell tells an event of one of the picker's own calls. The pool's mutex is held.
func (p *Pool) tell(call uint64, e Event) {
	if p.teller == nil || !p.teller.Followed() {
		return
	}
	told := e // which is allocated here, and so only where somebody follows
	told.Pool, told.Call = p.name, call
	p.teller.Tell(&told)
}

// tellSpeed tells what is observed of endpoint n's prefill, now and then, where this picker picks.
func (p *Pool) tellSpeed(n int32, now time.Duration) {
	s := &p.slots[n]
	if p.teller == nil || now < s.speedTold+speedEvery || now > p.own.last+speedEvery || !p.teller.Followed() {
		return
	}
	s.speedTold = now
	if speed := p.choice.Learned(n, now); speed.Seconds > 0 {
		p.tell(0, Event{Kind: Learned, Endpoint: s.addr, Speed: speed})
	}
}

// Apply applies an event of the picker that is called from. What it says of unknown pools, endpoints and calls changes
// nothing. The event's blocks must not change afterwards.
func (f *Fleet) Apply(from string, e *Event) {
	if p := f.Pool(e.Pool); p != nil {
		p.apply(from, e)
	}
}

// Lost ends the calls of a picker that cannot tell how they go on. They are not known to have ended: what endpoints report of
// them counts as calls of others, and their prompts stay in the index.
func (f *Fleet) Lost(from string) {
	for _, p := range *f.pools.Load() {
		p.mu.Lock()
		lost := p.lose(from)
		p.mu.Unlock()
		for len(lost) > 0 {
			n := min(len(lost), lostAtOnce)
			p.mu.Lock()
			p.giveUp(lost[:n])
			p.mu.Unlock()
			lost = lost[n:]
		}
	}
}

// share finds out which pickers pick for the pool at the same time as this one.
func (p *Pool) share(now time.Duration) {
	all := p.sharers[:0]
	if p.settings.Load().Split && p.teller != nil {
		all = append(all, selection.Sharer{Key: selection.Hash(p.teller.Process()), Calls: p.own.calls.until(now, callsOver)})
		for process, s := range p.others {
			if now < s.last+stintShown {
				all = append(all, selection.Sharer{Key: selection.Hash(process), Calls: s.calls.until(now, callsOver)})
			}
		}
		slices.SortFunc(all[1:], func(a, b selection.Sharer) int { return cmp.Compare(a.Key, b.Key) })
	}
	p.sharers = all
	p.choice.Share(all)
}

// standsBy says whether another picker picks for the pool, and this one does not.
func (p *Pool) standsBy(now time.Duration) bool {
	return now < p.followedAt+followedFor && now >= p.own.last+followedFor
}

func (p *Pool) apply(from string, e *Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	switch e.Kind {
	case Reserved:
		p.follow(from, e, now)
		return
	case BrokenOff:
		p.brokenOff(e.Call)
		return
	case Learned:
		if n, known := p.byAddr[e.Endpoint]; known && p.standsBy(now) {
			p.choice.Learn(n, e.Speed, now)
		}
		return
	}
	r := p.theirs[from][e.Call]
	if r == nil {
		return
	}
	n, known := p.byAddr[e.Endpoint]
	switch {
	case e.Kind == Moved && known:
		p.move(r, n, now)
	case e.Kind == Moved:
		p.release(r, Refused, now)
		p.unfollow(from, r)
	case e.Kind == Responded && e.Outcome <= Failed:
		p.choice.Responded(&r.claim, e.Outcome, now)
	case e.Kind == Released:
		p.releaseTold(r, e, now)
		p.unfollow(from, r)
	}
}

// releaseTold ends a call of another picker. What that one takes the endpoint to have prefilled counts. Here a short call
// begins and ends in one moment, when the message comes that tells of both.
func (p *Pool) releaseTold(r *Reservation, e *Event, now time.Duration) {
	outcome, prefilled := e.Outcome, !e.NotPrefilled
	switch {
	case outcome > Failed: // of a later version
		outcome = Abandoned
	case outcome == Ended && prefilled:
		outcome = Answered
	}
	prefilled = prefilled && outcome <= Answered
	p.choice.Release(&r.claim, outcome, now)
	p.depart(r, prefilled)
	p.keep(r, prefilled, min(max(0, len(r.blocks)-e.Unsure), len(r.blocks)), now)
}

// follow begins a call of another picker.
func (p *Pool) follow(from string, e *Event, now time.Duration) {
	calls := p.theirs[from]
	n, known := p.byAddr[e.Endpoint]
	if !known || p.closed || calls[e.Call] != nil || len(calls) >= mostTheirs {
		return
	}
	facts := e.Facts
	facts.Blocks = facts.Blocks[:min(len(facts.Blocks), request.MaxBlocks)]
	facts.PromptBytes = max(facts.PromptBytes, 0)
	uncached := min(max(e.Uncached, 0), facts.PromptTokens())
	p.followedAt = now
	theirs, known := p.others[from]
	if !known {
		theirs = never
	}
	theirs.pick(now)
	p.others[from] = theirs
	r := &Reservation{}
	p.reserve(r, e.Call, &selection.Call{Facts: &facts},
		&selection.Choice{Endpoint: n, Cached: facts.PromptTokens() - uncached, Uncached: uncached}, p.index.Held(int(n), facts.Blocks), now)
	r.theirs, r.room = true, int64(8*len(facts.Blocks))
	if !p.theirsRoom.Take(r.room) {
		p.theirsRoom.Give(r.room)
		r.room, r.blocks = 0, nil
	}
	if calls == nil {
		calls = map[uint64]*Reservation{}
		p.theirs[from] = calls
	}
	calls[e.Call] = r
}

func (p *Pool) unfollow(from string, r *Reservation) {
	p.theirsRoom.Give(r.room)
	delete(p.theirs[from], r.id)
}

// lose forgets another picker, and returns its calls, the last ones first: they are those that an endpoint's queue is fastest
// without.
func (p *Pool) lose(from string) []*Reservation {
	calls := slices.Collect(maps.Values(p.theirs[from]))
	slices.SortFunc(calls, func(a, b *Reservation) int { return cmp.Compare(b.id, a.id) })
	delete(p.theirs, from)
	delete(p.others, from)
	return calls
}

// giveUp ends calls of a lost picker. Nobody is to blame, and most will be prefilled.
func (p *Pool) giveUp(calls []*Reservation) {
	now := p.clock()
	for _, r := range calls {
		p.choice.Release(&r.claim, Abandoned, now)
		p.takeAway(r, true)
		p.reuse(r.claim.Endpoint)
		p.theirsRoom.Give(r.room)
	}
}
