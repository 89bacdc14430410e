package selection

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

const (
	// Choices is the length of a ranking where there are enough endpoints: one to serve and two to retry on.
	Choices = 3

	// BlockTokens is the length of a prefix block in tokens, at four bytes a token.
	BlockTokens = request.BlockBytes / 4

	// callTokens is what a call in flight costs a new one, in tokens to prefill: the share of each step that decoding the
	// call takes. It is a block, so that one cached block outweighs one more call.
	callTokens = 64

	// batch is the number of calls in flight below which the bound on them does not apply: a server takes so many into one
	// batch without slowing noticeably. With 8, simulated servers that answer questions about well-known documents had a
	// 90th percentile of the time to first token that was 3 to 7 % longer.
	batch = 16

	// sessionWorth is what a session's own endpoint is worth to its calls, in seconds: the time of a prefill of 40,000
	// tokens at the default speed.
	sessionWorth = 5

	// rounding is more than the part of a bound on calls that rounding may make of it.
	rounding = 1e-9

	// equal is the difference in cost, in seconds, below which costs count as equal: a tenth of a server's decode step.
	equal = 1e-3

	// What a token to prefill costs others, as a multiple of its time: leastOthers, or, where the shortest queue is
	// longer, its length in units of busyTime, which is in seconds, up to mostOthers.
	leastOthers, mostOthers = 1, 8
	busyTime                = 2
)

// class is the set of bounds that an endpoint is beyond. A candidate is picked only where no candidate of a lower class
// is left, whatever it costs. Each bound outweighs all those before it.
type class uint8

const (
	overBound class = 1 << iota
	noSlot
	shedding
	silent
	unhealthy

	numClasses
)

// Call is one call that needs an endpoint.
type Call struct {
	Facts *request.Facts
	// Session names the call's session; "" where the call has none.
	Session string
	// Candidates are the numbers of the endpoints that may be picked, in any order, each once.
	Candidates []int32
	// Cached is, by endpoint number, how many of the prompt's first blocks the endpoint is taken to have cached.
	Cached []int32
}

// pick is one pick under way: the state and the call.
type pick struct {
	*State
	*Call
}

// scratch is the working memory of a pick or of a reading. It holds nothing between them.
type scratch struct {
	costs   []float64
	classes []class
	short   []int32
	equals  []int32
	holds   []bool  // by endpoint number; all false between picks
	queue   []place // of one endpoint, while it is observed
}

// Choice is one place of a ranking.
type Choice struct {
	Endpoint int32
	// Cached are the prompt's tokens that the endpoint is taken to have cached, and Uncached those that it must prefill.
	Cached, Uncached int
	// Work is how long those take, in tokens that have nothing before them.
	Work float64
	// Cost is the endpoint's, in seconds.
	Cost float64
}

// Pick ranks up to Choices candidates into out, best first, and returns their number: 0 only where there is no
// candidate. The caller must have called Age for the same time.
func (s *State) Pick(c *Call, now time.Duration, rnd *rand.Rand, out *[Choices]Choice) int {
	p := pick{s, c}
	if len(p.Candidates) == 0 {
		return 0
	}
	// 1. Values that are the same for all candidates.
	r := p.rule(now)
	// 2. The cost of each candidate by its load and its cache.
	p.costs(&r)
	// 3. Terms that only some calls, or a pool with unwell endpoints, need.
	if r.id != none {
		p.addAdapter(&r)
	}
	if p.unwell > 0 {
		p.addHealth(&r)
	}
	if c.Session != "" {
		p.addSession(&r)
	}
	// 4. The ranking by class and cost.
	return p.rank(&r, rnd, out)
}

// rule holds the values of one pick that are the same for all candidates.
type rule struct {
	now    float64 // seconds of the clock
	prompt int     // tokens
	share  float64 // the cost of a token to prefill, to this call and to others, as a multiple of its time
	// A candidate takes no more calls at so many in flight, or at so many for each token a second of its speed if that is more.
	bound, boundOfSpeed float64

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

// crowd sets the bound on calls in flight, and what a token to prefill costs. The bound is a multiple of the mean, or of the
// candidate's share of the pool's speed if that is more. In overload it is of the mean alone: cached prompts that were evicted
// then make servers look slow. At least one candidate is always below its bound. Where some candidate is idle or soon will be,
// others pay for the token what they pay at half the fleet's limit. Where all have long queues, every call that arrives until
// one of them is empty waits for the token, and the pool is short of prefill: then cached tokens count for more. Candidates
// that are avoided take no calls, so their empty queues do not count, unless all candidates are avoided.
func (p *pick) crowd(r *rule) {
	l := p.load(r.now, p.unwell > 0)
	if l.candidates == 0 {
		l = p.load(r.now, false)
	}
	most := p.settings.Spread * float64(l.calls+1) * (1 - rounding)
	r.bound = max(batch, most/float64(l.candidates))
	ahead := l.soonest - r.now
	if p.waiting > 0 {
		ahead = max(0, ahead) + p.waiting/l.rate
	}
	if ahead < busyTime {
		r.boundOfSpeed = most / l.rate
	}
	others := min(max(leastOthers, ahead/busyTime), mostOthers)
	r.share = 1 + others*p.settings.CacheBias
}

// crowdLoad is the work of several candidates together.
type crowdLoad struct {
	candidates, calls int32
	rate              float64 // tokens a second
	soonest           float64 // when the first candidate will be idle
}

// load sums up the work of all candidates, or only of those that are not avoided.
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
		l.rate += h.rate
		if h.empty < l.soonest {
			l.soonest = h.empty
		}
	}
	return l
}

// costs writes each candidate's cost by load and cache, in seconds, and whether the candidate is over its bound. No
// other loop of a pick computes something for every candidate: 2 ns for each.
func (p *pick) costs(r *rule) {
	n := len(p.Candidates)
	if cap(p.scratch.costs) < n {
		p.scratch.costs, p.scratch.classes = make([]float64, n), make([]class, n)
	}
	costs, classes := p.scratch.costs[:n], p.scratch.classes[:n]
	unheard := p.unheard(r.now)
	// curve.work times the share is uncached·(first - each·uncached).
	first, each := r.share*(1+p.curve.context*float64(r.prompt)), r.share*p.curve.context/2
	perCall, density := p.curve.perCall, p.density
	for i, e := range p.Candidates {
		h := &p.hot[e]
		wait := h.empty - r.now
		if wait < 0 {
			wait = 0
		}
		uncached := float64(Uncached(r.prompt, p.Cached[e]))
		mean := density * uncached
		cost := wait + (uncached*(first-each*uncached)+h.displaces*mean+perCall+callTokens*h.calls)*h.perToken + unheard*float64(h.theirs)
		if short := wait + mean*h.perToken - h.room; short > 0 {
			cost += short
		}
		costs[i], classes[i] = cost, 0
		if r.over(h) {
			classes[i] = overBound
		}
	}
	p.scratch.costs, p.scratch.classes = costs, classes
}

// over reports whether an endpoint has as many calls in flight as it may have.
func (r *rule) over(h *hot) bool {
	return float64(h.own) >= max(r.bound, r.boundOfSpeed*h.rate)
}

// Uncached returns how many of a prompt's tokens an endpoint must prefill that has so many of its blocks cached. A
// server computes at least the last token, even of a prompt that is cached whole.
func Uncached(prompt int, blocks int32) int {
	if own := prompt - int(blocks)*BlockTokens; own > 0 || prompt <= 0 {
		return own
	}
	return 1
}

// addAdapter adds the adapter's cost at the candidates where the adapter is not held, or has no slot.
func (p *pick) addAdapter(r *rule) {
	p.ensureHolds()
	p.markHolders(r)
	for i, e := range p.Candidates {
		if !p.scratch.holds[e] {
			cost, full := p.adapterCost(r, e)
			if full && p.adapters.proven(r.id) {
				p.scratch.classes[i] |= noSlot
			}
			p.scratch.costs[i] += cost
		}
	}
	p.unmarkHolders(r)
}

func (p *pick) ensureHolds() {
	if missing := p.Len() - len(p.scratch.holds); missing > 0 {
		p.scratch.holds = append(p.scratch.holds, make([]bool, missing)...)
	}
}

// markHolders marks the endpoints at which a call finds its adapter loaded, or soon will.
func (p *pick) markHolders(r *rule) {
	for _, e := range p.adapters.names[r.id].holders {
		p.scratch.holds[e] = !p.adapters.waits(e, r.id, r.now)
	}
}

func (p *pick) unmarkHolders(r *rule) {
	for _, e := range p.adapters.names[r.id].holders {
		p.scratch.holds[e] = false
	}
}

// adapterCost is the cost of an adapter at an endpoint where it is not resident: to load it there, and to be away from
// its home.
func (p *pick) adapterCost(r *rule, e int32) (cost float64, full bool) {
	cost, full = p.adapters.cost(e, r.now, r.loadTime)
	return cost + homing*r.loadTime*(1-rendezvous(r.name, p.keys[e])), full
}

// addHealth puts the candidates that are not well behind all others.
func (p *pick) addHealth(r *rule) {
	for i, e := range p.Candidates {
		_, by := p.illness(e, r.now)
		p.scratch.classes[i] |= by
	}
}

// addSession lowers the cost of the session's own endpoint: the healthy candidate that rendezvous hashing gives the
// session. Replicas of the picker so agree without talking, and an endpoint that leaves takes only its own sessions.
func (p *pick) addSession(r *rule) {
	if at := p.home(r); at >= 0 {
		p.scratch.costs[at] -= sessionWorth
	}
}

// home returns the index of the session's own candidate, -1 where no candidate is healthy.
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

// rank takes the candidates by class, and within a class by cost. Where several cost the least, the first place goes to
// one of two drawn by lot: the one whose last pick is longer ago.
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
	return Choice{Endpoint: e, Cached: r.prompt - own, Uncached: own, Work: p.curve.work(float64(r.prompt), float64(own)), Cost: p.scratch.costs[at]}
}

// shortlist lists the candidates of a class that can come into a ranking: those that cost no more than the Choices
// least, and those that cost hardly more than the least. As it goes over the costs once, the list also has some that
// others then undercut. low are the least costs, in order. A cost that is not a number counts as the highest.
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

// drawTwo draws two of the listed candidates that cost hardly more than the least, and takes the one whose last pick is
// longer ago. So an idle fleet is used evenly, and pickers that do not know of each other do not move in step. It
// returns the candidate's place on the list.
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

// lastPick returns the number of the pick that last chose a candidate.
func (p *pick) lastPick(at int32) uint64 { return p.hot[p.Candidates[at]].lastPick }

// leastOf returns the place on the list of the candidate that costs least, or of the first that costs no more than
// bound. It starts at a random place, so that among equals not always the same one is the second choice.
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
