package poolstate

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/admission"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/prefixindex"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Pool is one pool's state. Its methods may be called from several goroutines.
type Pool struct {
	name     types.NamespacedName
	metrics  *telemetry.PoolMetrics
	clock    func() time.Duration
	after    func(time.Duration, func())
	log      *slog.Logger
	index    *prefixindex.Index
	snapshot atomic.Pointer[snapshot]
	settings atomic.Pointer[picksettings.Settings]

	noEndpoints, notInSubset *refusal.Error

	// mu makes a pick and its reservation one step, so that each call of a burst sees all calls before it. It is held for
	// microseconds, never over I/O.
	mu      sync.Mutex
	rnd     *rand.Rand
	byAddr  map[netip.AddrPort]int32 // endpoints that are members, that left and are remembered, or that left and still have calls
	slots   []slot
	free    []int32
	left    []int32          // numbers of remembered endpoints, in the order in which they left
	tidying bool             // tidy is due
	choice  *selection.State // by number, as slots are
	coarse  bool             // some endpoint has blocks that are longer than those of the index
	held    []int32          // working memory of a pick: how many of the prompt's blocks each endpoint has, by number
	cached  []int32          // the same, as far as the servers tell and keep; see cachedBlocks
	subset  []int32          // working memory of a pick: its candidates
	recent  recent
	pace    pace
	doubts  doubts

	toldRoom  *fairshare.Share
	tokenizer Tokenizer
	tellers   int // endpoints whose servers tell of their caches
	tokenized tokenized
	closed    bool
	lastID    uint64

	teller     Teller // nil where no other picker follows this one
	theirs     map[string]map[uint64]*Reservation
	theirsRoom *fairshare.Share
	own        stint              // of this picker
	others     map[string]stint   // of those that are followed, by process
	followedAt time.Duration      // when another picker last picked
	sharers    []selection.Sharer // working memory of a pick: who picks for the pool at the same time, this picker first
	taken      uint64             // how many readings were taken at once

	choices [selection.Choices]selection.Choice // working memory of a pick
	waits   waits
}

// snapshot is the pool's endpoints at one time; it never changes.
type snapshot struct {
	endpoints []pool.Endpoint
	numbers   []int32 // parallel to endpoints
}

// slot is the state of one endpoint's number. A number is reused once its endpoint has left and is forgotten, and its
// last call has ended.
type slot struct {
	addr netip.AddrPort
	// text is the address as replies contain it.
	text string
	// process distinguishes the server from earlier and later ones at the same address.
	process string
	// member says that the endpoint is in the snapshot.
	member bool
	// remembered says that the endpoint left, at leftAt on the pool's clock, and may come back with its cache.
	remembered bool
	leftAt     time.Duration
	// withdrawn counts the withdrawals from the index. Blocks that other calls inserted may have gone with one.
	withdrawn uint64
	// blocks is the endpoint's reported cache capacity, in blocks of the index; 0 where it did not report one.
	blocks int
	// grain is how many blocks of the index are one of the server's; 0 where that is not known, or less than one.
	grain int32
	// restarts is how often the server had restarted by its last reading; -1 where there was none.
	restarts int
	stored   stored
	// blockTokens is how long the server's blocks are by its metrics; 0 where they do not say it.
	blockTokens int
	// told is nil where the server does not tell of its cache.
	told *told
	// speedTold is when other pickers were last told of its speed.
	speedTold time.Duration
	// observed is nil until the endpoint is read.
	observed *observed
}

// shares are what a pool's namespace has of the picker's memory.
type shares struct{ index, doubted, told, theirs, waiting *fairshare.Share }

func newPool(name types.NamespacedName, o Options, of shares, rnd *rand.Rand) *Pool {
	settings := picksettings.Defaults()
	p := &Pool{
		name:        name,
		metrics:     o.Metrics.ForPool(name.String()),
		clock:       o.Clock,
		after:       o.After,
		log:         o.Log.With("pool", name.String()),
		index:       prefixindex.New(assumedBlocks(&settings), of.index),
		noEndpoints: refusal.New(refusal.NoEndpoints, "pool %s has no ready endpoint", name),
		notInSubset: refusal.New(refusal.NotInSubset,
			"none of the endpoints that the proxy allows is a ready endpoint of pool %s", name),
		rnd:       rnd,
		byAddr:    map[netip.AddrPort]int32{},
		choice:    selection.NewState(settings),
		doubts:    doubts{room: of.doubted},
		waits:     waits{room: of.waiting, by: map[*admission.Call]*Waiting{}},
		toldRoom:  of.told,
		tokenizer: o.Tokenizer,
		tokenized: tokenized{room: of.told},
		lastID:    rand.Uint64() >> idSpare,

		teller:     o.Teller,
		theirs:     map[string]map[uint64]*Reservation{},
		theirsRoom: of.theirs,
		own:        never,
		others:     map[string]stint{},
		followedAt: never.last,
	}
	p.settings.Store(&settings)
	p.snapshot.Store(&snapshot{})
	return p
}

// Name is the pool's name.
func (p *Pool) Name() types.NamespacedName { return p.name }

// Metrics are the pool's metrics.
func (p *Pool) Metrics() *telemetry.PoolMetrics { return p.metrics }

// Endpoints are the endpoints that can be picked now. The slice must not be changed.
func (p *Pool) Endpoints() []pool.Endpoint { return p.snapshot.Load().endpoints }

// SessionHeader is the name, in lower case, of the request header whose value keeps calls of one session together; ""
// where there is none.
func (p *Pool) SessionHeader() string { return p.settings.Load().SessionHeader }

// CountsUsage says whether the tokens that answers report as used are counted.
func (p *Pool) CountsUsage() bool { return p.settings.Load().Usage }

// TrustsCallers says whether the headers count by which callers say on whose behalf they call.
func (p *Pool) TrustsCallers() bool { return p.settings.Load().TrustCallers }

// Call is one call that needs an endpoint.
type Call struct {
	Facts *request.Facts
	// Body is the whole body that the facts were read from; nil where it is not whole, or encoded.
	Body []byte
	// Subset are the endpoints that the proxy allows.
	Subset Subset
	// Session is the value of the pool's SessionHeader; "" is no session.
	Session string
	// Explained makes Pick return the numbers behind the choice.
	Explained bool
	// Caller is the identity of who makes the call, as the proxy has proven it: a SPIFFE ID; "" where it has not.
	Caller string
	// Behalf is on whose behalf the caller calls, and Objective the name of the call's InferenceObjective, both by the caller's own words,
	// which count only where the pool trusts its callers.
	Behalf, Objective string
	// FirstTokenWithin is how long after its arrival the caller wants the first token at the latest; 0 where it does not say.
	FirstTokenWithin time.Duration
	// MostWait is how long the proxy lets the call wait; 0 sets no bound.
	MostWait time.Duration
	// Unread is the length of a body that was not read, in tokens; 0 where the facts are of the whole body.
	Unread int
	// Bytes is what the call takes of memory while it waits.
	Bytes int64
}

// Pick chooses the endpoints for a call and reserves the first of them, in one step. It writes the reservation to r,
// which must be empty or released. r refers to the facts' blocks, which must live until r is released. The decision is
// nil unless c.Explained is set. The error is a *refusal.Error: the pool has no endpoint, or none that the subset
// allows.
func (p *Pool) Pick(c *Call, r *Reservation) (*Decision, error) {
	made := p.choose(c, r)
	return p.finish(c, r, made)
}

func (p *Pool) choose(c *Call, r *Reservation) made {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	p.arrived(now)
	ranked, err := p.consider(c, now)
	if err != nil {
		return made{at: now, err: err}
	}
	p.demand(now)
	return p.commit(c, r, &ranked, now)
}

// made is a choice that was made, for what follows when the pool's mutex is not held any more.
type made struct {
	rows []Ranked // the numbers behind it, where they are wanted
	keep bool     // for people to read
	at   time.Duration
	err  error
}

// finish does what follows a choice. The pool's mutex is not held.
func (p *Pool) finish(c *Call, r *Reservation, m made) (*Decision, error) {
	if r.untokenized {
		p.tokenize(c, r.texts[0])
	}
	if m.err != nil || m.rows == nil {
		return nil, m.err
	}
	decision := p.decision(c.Facts, m.rows, m.at, r.texts[0])
	if m.keep {
		p.keepRecent(decision.abridged())
	}
	if p.logged() {
		p.log.Debug("ranked the endpoints", "why", decision)
	}
	if !c.Explained {
		return nil, nil
	}
	return decision, nil
}

func (p *Pool) logged() bool { return p.log.Enabled(context.Background(), slog.LevelDebug) }

// arrived notes that a call came.
func (p *Pool) arrived(now time.Duration) {
	p.pace.asked.add(now, 1, paceMemory)
	p.own.pick(now)
}

// ranking is the call for which endpoints were ranked last, and how many of them are in p.choices.
type ranking struct {
	call selection.Call
	n    int
}

// consider ranks the endpoints for a call.
func (p *Pool) consider(c *Call, now time.Duration) (r ranking, err error) {
	if r.call, err = p.selectionCall(c, now); err == nil {
		r.n = p.choice.Pick(&r.call, now, p.rnd, &p.choices)
	}
	return r, err
}

// commit reserves the first of the endpoints that were ranked for a call.
func (p *Pool) commit(c *Call, r *Reservation, ranked *ranking, now time.Duration) made {
	m := made{at: now, keep: p.recent.due(now)}
	if m.keep || c.Explained || p.logged() {
		m.rows = p.rank(&ranked.call, now)
	}
	first := &p.choices[0]
	p.reserve(r, p.nextID(), &ranked.call, first, int(p.held[first.Endpoint]), now)
	p.choice.Decided(first.Endpoint, now, first.Work)
	p.tell(r.id, Event{Kind: Reserved, Endpoint: p.slots[first.Endpoint].addr, Facts: *c.Facts, Uncached: first.Uncached, Soon: len(p.sharers) > 1})
	r.picked = ranked.n
	for i, c := range p.choices[:ranked.n] {
		r.texts[i] = p.slots[c.Endpoint].text
	}
	r.untokenized = p.tellers > 0 && p.untokenized(c, first.Endpoint)
	p.metrics.RequestStarted()
	return m
}

func (p *Pool) keepRecent(d Decision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recent.keep(d)
}

// selectionCall makes a call for package selection: with its candidates, and their cached blocks of its prompt.
func (p *Pool) selectionCall(c *Call, now time.Duration) (selection.Call, error) {
	snap := p.snapshot.Load()
	if len(snap.numbers) == 0 {
		return selection.Call{}, p.noEndpoints
	}
	candidates := snap.numbers
	if c.Subset.Given {
		if candidates = p.admitted(&c.Subset); len(candidates) == 0 {
			return selection.Call{}, p.notInSubset
		}
	}
	p.index.Match(c.Facts.Blocks, p.held)
	p.share(now)
	p.choice.Age(now, snap.numbers)
	return selection.Call{Facts: c.Facts, Session: c.Session, Candidates: candidates, Cached: p.cachedBlocks(c.Facts.Blocks)}, nil
}

// admitted lists the endpoints that a subset allows, each once.
func (p *Pool) admitted(s *Subset) []int32 {
	p.subset = p.subset[:0]
	for _, want := range s.Endpoints {
		if want.Port() != 0 {
			if n, ok := p.byAddr[want]; ok && p.slots[n].member {
				p.subset = append(p.subset, n)
			}
			continue
		}
		for n, slot := range p.slots {
			if slot.member && slot.addr.Addr() == want.Addr() {
				p.subset = append(p.subset, int32(n))
			}
		}
	}
	slices.Sort(p.subset)
	p.subset = slices.Compact(p.subset)
	return p.subset
}

// setEndpoints replaces the snapshot. It reports whether that changed anything.
func (p *Pool) setEndpoints(endpoints []pool.Endpoint) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.snapshot.Load()
	if slices.Equal(before.endpoints, endpoints) {
		return false
	}
	stays := make(map[int32]bool, len(endpoints))
	next := &snapshot{}
	for _, e := range endpoints {
		e.Address = canonical(e.Address)
		n := p.join(e)
		if stays[n] {
			continue // named twice
		}
		stays[n] = true
		next.endpoints = append(next.endpoints, e)
		next.numbers = append(next.numbers, n)
	}
	for _, n := range before.numbers {
		if !stays[n] {
			p.leave(n)
		}
	}
	p.snapshot.Store(next)
	p.metrics.SetEndpoints(len(next.endpoints))
	if now := p.clock(); len(next.endpoints) > 0 {
		p.woken(now)
	} else {
		p.fallAsleep(now)
	}
	p.letGo(p.clock())
	return true
}

// configure replaces the settings. It reports whether that changed anything.
func (p *Pool) configure(settings picksettings.Settings) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *p.settings.Load() == settings {
		return false
	}
	p.settings.Store(&settings)
	p.choice.Configure(settings)
	p.reclass()
	for n := range p.slots {
		if p.slots[n].member && p.slots[n].blocks == 0 {
			p.index.SetCapacity(n, assumedBlocks(&settings))
		}
		if !settings.PrefixEvents {
			p.untell(int32(n))
		}
	}
	if !settings.PrefixEvents {
		p.tokenized.forget()
	}
	return true
}

// assumedBlocks is the cache capacity assumed of an endpoint until it reports its own, in blocks of the index.
func assumedBlocks(s *picksettings.Settings) int { return s.CacheTokens / selection.BlockTokens }

// join makes an endpoint a member, and returns its number. An endpoint that comes back keeps its state. Another server
// at a known address is a new endpoint: it has nothing in its cache.
func (p *Pool) join(e pool.Endpoint) int32 {
	n, known := p.byAddr[e.Address]
	if known && p.slots[n].process != e.Process {
		p.replaced(n)
		known = false
	}
	if !known {
		n = p.newSlot()
		text := e.Address.String()
		p.slots[n] = slot{addr: e.Address, text: text, process: e.Process, restarts: -1}
		p.choice.Reset(n, selection.Hash(text))
		p.byAddr[e.Address] = n
	}
	s := &p.slots[n]
	if s.member {
		return n
	}
	s.member = true
	if s.remembered {
		s.remembered = false
		p.left = slices.DeleteFunc(p.left, func(of int32) bool { return of == n })
	}
	if s.blocks == 0 {
		p.index.SetCapacity(int(n), assumedBlocks(p.settings.Load()))
	}
	p.choice.Joined(n, p.clock())
	return n
}

func (p *Pool) newSlot() int32 {
	if last := len(p.free) - 1; last >= 0 {
		n := p.free[last]
		p.free = p.free[:last]
		return n
	}
	p.slots = append(p.slots, slot{})
	p.held = append(p.held, 0)
	return int32(len(p.slots) - 1)
}

// forget drops the state of what an endpoint had in its memory. A restart is read late: calls in flight may be at the new
// server, and insert their blocks again when they end. The calls of the old server ended with it.
func (p *Pool) forget(n int32) {
	p.index.Forget(int(n))
	p.slots[n].withdrawn++
	p.doubts.forget(n)
	p.choice.Restarted(n)
	p.slots[n].blocks = 0
	p.slots[n].stored.emptied()
}

// reuse frees the number of an endpoint that has left, is forgotten, and has no calls any more.
func (p *Pool) reuse(n int32) {
	s := &p.slots[n]
	if s.member || s.remembered || p.choice.InFlight(n) > 0 {
		return
	}
	if p.byAddr[s.addr] == n {
		delete(p.byAddr, s.addr)
	}
	*s = slot{}
	p.free = append(p.free, n)
}
