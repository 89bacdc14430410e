package selection

import (
	"cmp"
	"time"
)

// Reason explains one candidate's place in a ranking. Times are in seconds; they add up to Cost.
type Reason struct {
	Endpoint int32
	// Cost orders the candidates within a class.
	Cost float64
	// Class names the worst bound that the endpoint is beyond, or is "".
	Class string

	// CachedTokens are the prompt's tokens that the endpoint is taken to have cached, and UncachedTokens the others.
	CachedTokens, UncachedTokens int
	// QueueTokens wait to be prefilled ahead of the call; Rate is how many tokens are prefilled in a second.
	QueueTokens, Rate float64
	// InFlight are the picker's own calls; Calls adds the calls from elsewhere that readings report.
	InFlight int
	Calls    float64
	// ReadingAge is how old the last reading is, in seconds; +Inf where there is none.
	ReadingAge float64

	Wait, Prefill, Others, Batch, Pickers, Memory, Adapter, Session float64
	// AdapterState says whether the endpoint has the call's adapter or room for it; "" where the call names no adapter.
	AdapterState string

	class class // all bounds that the endpoint is beyond
}

// ruleOut puts the endpoint behind the candidates of lower classes.
func (r *Reason) ruleOut(name string, by class) {
	r.Class = name
	r.class |= by
}

// The states of an adapter at an endpoint, and the classes.
const (
	AdapterResident = "resident"    // the adapter is loaded, or being loaded
	AdapterFits     = "free slot"   // it can be loaded without evicting another
	AdapterPushes   = "evicts idle" // it can be loaded in the place of an idle one
	AdapterFull     = "slots in use"

	ClassOverBound = "over its share of calls"
	ClassNoSlot    = "no adapter slot"
	ClassShedding  = "sheds calls"
	ClassSilent    = "does not answer"
	ClassUnhealthy = "failed lately"
)

// Explain returns the reasons of all candidates, in their order, as Pick would find them for the call now.
func (s *State) Explain(c *Call, now time.Duration) []Reason {
	p := pick{s, c}
	r := p.rule(now)
	home := -1
	if c.Session != "" {
		home = p.home(&r)
	}
	out := make([]Reason, len(p.Candidates))
	p.ensureHolds()
	if r.id != none {
		p.markHolders(&r)
		defer p.unmarkHolders(&r)
	}
	for i, e := range p.Candidates {
		out[i] = p.reason(&r, e, i == home)
	}
	return out
}

// reason splits a candidate's cost into its terms, which add up to the cost that Pick compares.
func (p *pick) reason(r *rule, e int32, home bool) Reason {
	h := &p.hot[e]
	own := Uncached(r.prompt, p.Cached[e])
	work := p.curve.work(float64(r.prompt), float64(own))
	why := Reason{
		Endpoint: e, CachedTokens: r.prompt - own, UncachedTokens: own,
		QueueTokens: h.queue(r.now) / p.density, Rate: h.rate / p.density,
		InFlight: int(h.own), Calls: h.calls, ReadingAge: r.now - p.loads[e].reading.at,
		Wait: max(0, h.empty-r.now), Prefill: (work + p.curve.perCall) * h.perToken,
	}
	tokens := float64(own) * p.density * h.perToken
	why.Others = (r.share-1)*work*h.perToken + h.displaces*tokens
	why.Batch = callTokens * h.perToken * h.calls
	why.Pickers = p.unheard(r.now) * float64(h.theirs)
	why.Memory = max(0, why.Wait+tokens-h.room)
	if r.over(h) {
		why.ruleOut(ClassOverBound, overBound)
	}
	if r.id != none {
		p.explainAdapter(r, e, &why)
	}
	if name, by := p.illness(e, r.now); by != 0 {
		why.ruleOut(name, by)
	}
	if home {
		why.Session = -sessionWorth
	}
	why.Cost = why.Wait + why.Prefill + why.Others + why.Batch + why.Pickers + why.Memory + why.Adapter + why.Session
	return why
}

func (p *pick) explainAdapter(r *rule, e int32, why *Reason) {
	if p.scratch.holds[e] {
		why.AdapterState = AdapterResident
		return
	}
	var full bool
	why.Adapter, full = p.adapterCost(r, e)
	free, _ := p.adapters.spare(e, r.now)
	switch {
	case full:
		why.AdapterState = AdapterFull
		if p.adapters.proven(r.id) {
			why.ruleOut(ClassNoSlot, noSlot)
		}
	case free > 0:
		why.AdapterState = AdapterFits
	default:
		why.AdapterState = AdapterPushes
	}
}

// Compare orders reasons as a ranking does, best first. Candidates between which Pick draws by lot differ by little.
func (r Reason) Compare(o Reason) int {
	return cmp.Or(cmp.Compare(r.class, o.class), cmp.Compare(r.Cost, o.Cost))
}
