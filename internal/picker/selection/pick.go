package selection

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

const (
	// Choices is the length of a ranking where there are so many endpoints: one to serve and two to retry on.
	Choices = 3

	// BlockTokens is the length of a prefix block in tokens, at four bytes a token.
	BlockTokens = request.BlockBytes / 4

	// callTokens is what a call in flight costs a new one, in tokens to prefill: the share of each step that its
	// decoding takes. It is a block, so that one cached block outweighs one call more.
	callTokens = 64

	// batch is the number of calls in flight below which their bound is not asked: a server takes them into one
	// batch without slowing noticeably. With 8, simulated servers that answer questions about well-known documents had
	// a 90th percentile of the time to the first token 3 to 7 % longer.
	batch = 16

	// sessionWorth is what a session's own endpoint is worth to it, in seconds: as much as a prefill of 40,000 tokens
	// takes at the default speed.
	sessionWorth = 5

	// equal is the difference in cost, in seconds, that is none: a tenth of a server's step.
	equal = 1e-3

	// What a token to prefill costs others, as a multiple of its time: least at the least, and one more for each
	// busyTime, in seconds, that even the shortest queue is long; most at the most.
	leastOthers, mostOthers = 1, 8
	busyTime                = 2
)

// class is the set of bounds that an endpoint is beyond. A candidate is taken only where none of a lower class is left,
// whatever it costs. Each bound outweighs all those before it.
type class uint8

const (
	overBound class = 1 << iota
	noSlot
	shedding
	silent
	unhealthy

	numClasses
)

// Call is one call that an endpoint is wanted for.
type Call struct {
	Facts *request.Facts
	// Session names the session that the call belongs to; "" where it belongs to none.
	Session string
	// Candidates are the numbers of the endpoints that may be picked, in any order, each once.
	Candidates []int32
	// Cached has, by endpoint number, how many of the prompt's blocks, from its head, an endpoint is taken to hold.
	Cached []int32
}

// pick is one choice under way: the state, the call, and what is the same for all candidates.
type pick struct {
	*State
	*Call
}

// scratch is the memory that a pick works in. It holds nothing between picks.
type scratch struct {
	costs   []float64
	classes []class
	short   []int32
	equals  []int32
	holds   []bool // by endpoint number; all false between picks
}

// Choice is one place of a ranking.
type Choice struct {
	Endpoint int32
	// Cached and Uncached are the prompt's tokens that the endpoint is taken to hold and those that it has to
	// prefill.
	Cached, Uncached int
	// Cost is the endpoint's, in seconds.
	Cost float64
}

// Pick ranks up to Choices candidates into out, best first, and returns their number: 0 only where there is no
// candidate. The state's Age must have been called for the moment.
func (s *State) Pick(c *Call, now time.Duration, rnd *rand.Rand, out *[Choices]Choice) int {
	p := pick{s, c}
	if len(p.Candidates) == 0 {
		return 0
	}
	// 1. What is the same for all candidates.
	r := p.rule(now)
	// 2. The cost of each by its load and its cache.
	p.costs(&r)
	// 3. What only some calls, and only some moments, have to do with.
	if r.id != none {
		p.addAdapter(&r)
	}
	if p.unwell > 0 {
		p.addHealth(&r)
	}
	if c.Session != "" {
		p.addSession(&r)
	}
	// 4. The least, and what comes behind it.
	return p.rank(&r, rnd, out)
}

// rule is what one pick has in mind for all candidates.
type rule struct {
	now    float64 // seconds of the clock
	prompt int     // tokens
	share  float64 // what a token to prefill costs, this call and others, as a multiple of its time
	bound  int32   // the number of calls in flight at which a candidate takes no more

	id       int32 // the adapter's; none where the call needs none
	name     uint64
	loadTime float64
}

func (p *pick) rule(now time.Duration) rule {
	r := rule{now: now.Seconds(), prompt: p.Facts.PromptTokens()}
	p.crowd(&r)
	if r.id = p.adapters.find(p.Facts.Model); r.id != none {
		r.name = Hash(p.Facts.Model)
		r.loadTime = p.settings.AdapterLoad.Seconds()
	}
	return r
}

// crowd sets what depends on how much the candidates have to do: the bound on calls in flight, below which at least one
// always is, and what a token to prefill costs. Where some candidate is idle or soon is, others pay for the token what
// they do at half the fleet's limit. Where all have long queues, every call that comes until one of them is empty waits
// for it, and what is short is the work that all can do together: then caches count for more. Candidates that are
// avoided take no calls, so their empty queues say nothing, unless all are avoided.
func (p *pick) crowd(r *rule) {
	l := p.load(r.now, p.unwell > 0)
	if l.candidates == 0 {
		l = p.load(r.now, false)
	}
	mean := float64(l.calls+1) / float64(l.candidates)
	r.bound = int32(max(batch, math.Ceil(p.settings.Spread*mean)))
	others := min(max(leastOthers, (l.soonest-r.now)/busyTime), mostOthers)
	r.share = 1 + others*p.settings.CacheBias
}

// crowdLoad is what several candidates have to do together.
type crowdLoad struct {
	candidates, calls int32
	soonest           float64 // when the first of them will be idle
}

// load sums up the candidates, or those of them that are not avoided.
func (p *pick) load(now float64, healthy bool) crowdLoad {
	l := crowdLoad{soonest: math.Inf(1)}
	for _, e := range p.Candidates {
		if healthy {
			if _, by := p.illness(e, now); by != 0 {
				continue
			}
		}
		h := &p.hot[e]
		l.candidates++
		l.calls += h.own
		if h.empty < l.soonest {
			l.soonest = h.empty
		}
	}
	return l
}

// costs writes the cost of each candidate by load and cache, in seconds, and whether it is over its bound. Of all that a
// pick does it is the one loop over all candidates that computes: 2 ns for each.
func (p *pick) costs(r *rule) {
	n := len(p.Candidates)
	if cap(p.scratch.costs) < n {
		p.scratch.costs, p.scratch.classes = make([]float64, n), make([]class, n)
	}
	costs, classes := p.scratch.costs[:n], p.scratch.classes[:n]
	for i, e := range p.Candidates {
		h := &p.hot[e]
		wait := h.empty - r.now
		if wait < 0 {
			wait = 0
		}
		prefill := float64(Uncached(r.prompt, p.Cached[e])) * h.perToken
		cost := wait + (r.share+h.displaces)*prefill + callTokens*h.perToken*h.calls
		if short := wait + prefill - h.room; short > 0 {
			cost += short
		}
		costs[i], classes[i] = cost, 0
		if h.own >= r.bound {
			classes[i] = overBound
		}
	}
	p.scratch.costs, p.scratch.classes = costs, classes
}

// Uncached is how many of a prompt's tokens an endpoint that holds so many of its blocks has to prefill. Even a
// prompt that is held whole has its last token computed.
func Uncached(prompt int, blocks int32) int {
	if own := prompt - int(blocks)*BlockTokens; own > 0 || prompt <= 0 {
		return own
	}
	return 1
}

// addAdapter adds what the call's adapter costs where it is not resident.
func (p *pick) addAdapter(r *rule) {
	p.ensureHolds()
	p.markHolders(r, true)
	for i, e := range p.Candidates {
		if !p.scratch.holds[e] {
			cost, full := p.adapterCost(r, e)
			if full && p.adapters.proven(r.id) {
				p.scratch.classes[i] |= noSlot
			}
			p.scratch.costs[i] += cost
		}
	}
	p.markHolders(r, false)
}

func (p *pick) ensureHolds() {
	if missing := p.Len() - len(p.scratch.holds); missing > 0 {
		p.scratch.holds = append(p.scratch.holds, make([]bool, missing)...)
	}
}

func (p *pick) markHolders(r *rule, as bool) {
	for _, e := range p.adapters.names[r.id].holders {
		p.scratch.holds[e] = as
	}
}

// adapterCost is what an adapter costs at an endpoint where it is not resident: to load it, and to be away from its
// home.
func (p *pick) adapterCost(r *rule, e int32) (cost float64, full bool) {
	cost, full = p.adapters.cost(e, r.now, r.loadTime)
	return cost + homing*r.loadTime*(1-rendezvous(r.name, p.keys[e])), full
}

// addHealth puts those that are not well behind all others.
func (p *pick) addHealth(r *rule) {
	for i, e := range p.Candidates {
		_, by := p.illness(e, r.now)
		p.scratch.classes[i] |= by
	}
}

// addSession makes the session's own endpoint cheaper: of the healthy candidates the one that rendezvous hashing gives
// it, so that replicas of the picker agree without a word and an endpoint that leaves takes only its own sessions.
func (p *pick) addSession(r *rule) {
	if at := p.home(r); at >= 0 {
		p.scratch.costs[at] -= sessionWorth
	}
}

// home is the index of the candidate that is a session's own, -1 where none is healthy.
func (p *pick) home(r *rule) int {
	session := Hash(p.Session)
	home, best := -1, -1.0
	for i, e := range p.Candidates {
		if x := rendezvous(session, p.keys[e]); x > best {
			if class, _ := p.illness(e, r.now); class == "" {
				home, best = i, x
			}
		}
	}
	return home
}

// rank takes the candidates of the lowest class first, and of one class those of the least cost. The very first is, of
// several that cost the least, the longer unpicked of two drawn by lot.
func (p *pick) rank(r *rule, rnd *rand.Rand, out *[Choices]Choice) int {
	ranked, want := 0, min(Choices, len(p.Candidates))
	for class := class(0); class < numClasses; class++ {
		short, low := p.shortlist(class)
		for k := 0; len(short) > 0 && ranked < want; k++ {
			var at int
			if ranked == 0 {
				at = p.drawTwo(short, low[0], rnd)
			} else {
				at = p.leastOf(short, low[k], rnd)
			}
			out[ranked] = p.choice(r, short[at])
			ranked++
			last := len(short) - 1
			short[at] = short[last]
			short = short[:last]
		}
		if ranked == want {
			break
		}
	}
	return ranked
}

func (p *pick) choice(r *rule, at int32) Choice {
	e := p.Candidates[at]
	own := Uncached(r.prompt, p.Cached[e])
	return Choice{Endpoint: e, Cached: r.prompt - own, Uncached: own, Cost: p.scratch.costs[at]}
}

// shortlist lists all candidates of a class that can come into a ranking: those that cost no more than the Choices
// least, and those that cost hardly more than the least. It goes over the costs once, so the list has some that were
// overtaken. Low are the least costs, in their order. A cost that is not a number is taken for the highest.
func (p *pick) shortlist(of class) (short []int32, low [Choices]float64) {
	low = [Choices]float64{math.Inf(1), math.Inf(1), math.Inf(1)}
	short = p.scratch.short[:0]
	limit := math.Inf(1)
	costs, classes := p.scratch.costs, p.scratch.classes
	for i, c := range costs {
		if c > limit || classes[i] != of {
			continue
		}
		short = append(short, int32(i))
		if math.IsNaN(c) {
			c, costs[i] = math.Inf(1), math.Inf(1)
		}
		if c >= low[Choices-1] {
			continue
		}
		for k := range low {
			if c < low[k] {
				c, low[k] = low[k], c
			}
		}
		limit = max(low[Choices-1], low[0]+equal)
	}
	p.scratch.short = short
	return short, low
}

// drawTwo draws two of those on the list that cost hardly more than the least and takes the one that was picked longer
// ago: an idle fleet is used evenly, and pickers that do not know of each other do not move in step. It returns a place
// on the list.
func (p *pick) drawTwo(short []int32, least float64, rnd *rand.Rand) int {
	equals := p.scratch.equals[:0]
	for at, i := range short {
		if p.scratch.costs[i] <= least+equal {
			equals = append(equals, int32(at))
		}
	}
	p.scratch.equals = equals
	if len(equals) == 1 {
		return int(equals[0])
	}
	a, b := rnd.IntN(len(equals)), rnd.IntN(len(equals)-1)
	if b >= a {
		b++
	}
	x, y := int(equals[a]), int(equals[b])
	if p.lastPick(short[y]) < p.lastPick(short[x]) {
		return y
	}
	return x
}

// lastPick is the number of the pick that last chose a candidate.
func (p *pick) lastPick(at int32) uint64 { return p.hot[p.Candidates[at]].lastPick }

// leastOf is the place of the one on the list that costs least; one that costs no more than the bound will do. It begins
// to look at a random place, so that of equals not always the same one is the second choice.
func (p *pick) leastOf(short []int32, bound float64, rnd *rand.Rand) int {
	costs, at := p.scratch.costs, rnd.IntN(len(short))
	for k, place := 0, at; k < len(short); k++ {
		if costs[short[place]] < costs[short[at]] {
			at = place
		}
		if costs[short[at]] <= bound {
			break
		}
		if place++; place == len(short) {
			place = 0
		}
	}
	return at
}
