package selection

import (
	"math"
	"slices"
)

// Counters are a server's counters since its start, over the calls of all callers; 0 where it does not report them.
type Counters struct {
	// Prefilled is the number of prompt tokens that were computed, of calls that have their first token. It must be 0 where
	// the server counts it later.
	Prefilled int64
	// FirstTokens is the number of calls that got a first token, and FirstTokenSeconds the sum of their times to it.
	FirstTokens       int64
	FirstTokenSeconds float64
	// Prompts is the number of prompt tokens, cached ones too. Servers may count them before the first token, or when the call
	// ends.
	Prompts int64
	// Ended is the number of calls that ended, but perhaps not of those whose callers left.
	Ended int64
}

// firstTokens follows which of an endpoint's calls have their first token. Servers count first tokens, and give them in
// the order of arrival. A server takes several prompts into one batch, and then none of them waits by its own count of
// waiting calls: only the first tokens show which prompts are prefilled. Where others call the server too, it is not known
// whose first tokens are counted.
type firstTokens struct {
	last Counters // of the last reading
	// known says that the server counts first tokens, and that all calls there were the picker's own since position since.
	known bool
	since float64
	// upTo is the position of the first call without its first token.
	upTo float64
	// ended are calls that ended well since the last reading, and whose first token it had not counted.
	ended []endedCall
	// again is when calls are followed again, after more first tokens were counted than calls were known.
	again float64
	// free is when the last first token came: the server then began with the next prompt, or was free.
	free float64
}

// endedCall is a call that has ended, and when.
type endedCall struct {
	place
	at float64
}

// FirstTokens are the first tokens between two readings.
type FirstTokens struct {
	// Taken says that the reading was taken. If it was not, all else is zero.
	Taken bool
	// Counted are those of all callers' calls in the last two seconds, at their mean rate since the reading before.
	Counted float64
	// Shared says that others may call the endpoint too.
	Shared bool
	// Calls are the first tokens that are known to be of the picker's own calls.
	Calls int
	// Expected and Observed are the sums of their times to first token, in seconds: as expected when they were picked, and as
	// the server measured them.
	Expected, Observed float64
}

// prefills are what a server prefilled between two readings.
type prefills struct {
	calls   int
	own     bool    // all calls were the picker's own
	loads   bool    // some may have waited until an adapter was loaded
	tokens  float64 // 0 where the number is not known
	prompts float64 // of own calls, with their cached tokens
	// computed are the prompt tokens that the server counted as computed; 0 where it does not.
	computed float64
	seconds  float64 // without pauses
	// tried are the sums of what own calls brought, and starts is how many of the calls came to an empty queue.
	tried  prefilled
	starts float64
	// The sums of the own calls' times to first token, in seconds, as expected and as observed.
	expected, observed float64
}

// firstTokens are those of the picker's own calls.
func (p *prefills) firstTokens() FirstTokens {
	if !p.own {
		return FirstTokens{Taken: true, Counted: float64(p.calls)}
	}
	return FirstTokens{Taken: true, Counted: float64(p.calls), Calls: p.calls, Expected: p.expected, Observed: p.observed}
}

const (
	// lag is for how long a server may count a call that has left, and not count one that has come, in seconds: it counts at
	// the beginning of a step.
	lag = 1
	// mostGone and mostEnded bound what is remembered of an endpoint's calls from one reading to the next. Where more calls end,
	// first tokens are not followed.
	mostGone, mostEnded = 1024, 1024
	// strange is for how long, in seconds, calls are not followed after more first tokens were counted than calls were known:
	// others call the server, or a call has several first tokens.
	strange = 10
)

// note notes that a call ended well: it has its first token.
func (f *firstTokens) note(now float64, t place) {
	if f.known && t.start >= f.upTo && len(f.ended) < mostEnded {
		f.ended = append(f.ended, endedCall{t, now})
	}
}

// has reports whether a call is known to have its first token.
func (f *firstTokens) has(t place) bool { return f.known && t.start >= f.since && t.start < f.upTo }

// see takes the counters of a reading that was taken at the time at. queue are the picker's calls that had arrived by then
// and are not deferred, foreign is the number of others, and ratio that of their tokens.
func (f *firstTokens) see(at float64, r *Reading, queue []place, foreign, ratio float64) prefills {
	last := f.last
	f.last = r.Counters
	out := prefills{calls: int(r.FirstTokens - last.FirstTokens)}
	seconds := r.FirstTokenSeconds - last.FirstTokenSeconds
	if last.FirstTokens == 0 || out.calls < 0 {
		f.known, f.free, f.ended = false, at, f.ended[:0]
		return prefills{}
	}
	// The number may drop: vLLM counts what a call finds in the cache when its prefill begins, and its prompt when that ends.
	f.last.Prefilled = max(f.last.Prefilled, last.Prefilled)
	if last.Prefilled > 0 {
		out.computed = float64(f.last.Prefilled-last.Prefilled) / ratio
	}
	switch {
	case foreign > 0:
		f.known, f.ended, f.again = false, f.ended[:0], at+strange
	case !f.known && at < f.again:
	case !f.known:
		f.begin(at, r, queue)
	default:
		out.loads = f.load(queue)
		first := f.take(out.calls, at, queue)
		out.own = out.calls > 0 && len(first) == out.calls && seconds > 0
		f.bound(at, r, queue)
		switch {
		case out.own:
			f.timed(&out, first, seconds, at)
		case len(first) < out.calls:
			f.known, f.ended, f.again = false, f.ended[:0], at+strange
		}
	}
	if out.calls == 0 {
		return prefills{}
	}
	if !out.own {
		out.seconds = busy(float64(out.calls), max(0, seconds), at-f.free)
		out.tokens = out.computed
		f.free = at
	}
	return out
}

// depart notes that a call leaves.
func (l *load) depart(now float64) {
	if len(l.gone) == mostGone {
		l.forgetGone(now)
	}
	if len(l.gone) < mostGone {
		l.gone = append(l.gone, now)
	}
}

func (l *load) forgetGone(now float64) {
	l.gone = slices.DeleteFunc(l.gone, func(t float64) bool { return t < now-lag })
}

// strangers returns how many of a reading's foreign calls are not the picker's own that have left of late.
func (l *load) strangers(at, foreign float64) float64 {
	l.forgetGone(at)
	return foreign - float64(len(l.gone))
}

// load reports whether an adapter may have been loaded for a call that had no first token yet. That delays all calls.
func (f *firstTokens) load(queue []place) bool {
	return slices.ContainsFunc(queue, func(t place) bool { return t.loads && t.start >= f.upTo }) ||
		slices.ContainsFunc(f.ended, func(c endedCall) bool { return c.loads })
}

// begin begins to follow the calls: those that do not wait now may have their first token.
func (f *firstTokens) begin(at float64, r *Reading, queue []place) {
	f.known, f.since, f.upTo = true, math.Inf(-1), math.Inf(-1)
	if begun := settled(at, queue) - min(len(queue), r.Waiting); begun > 0 {
		f.upTo = queue[begun-1].end
		f.since = f.upTo
	}
}

// settled returns how many calls of a queue are old enough for a reading to count them.
func settled(at float64, queue []place) int {
	n := len(queue)
	for n > 0 && queue[n-1].at > at-lag {
		n--
	}
	return n
}

// take returns the calls that got the counted first tokens: those that came first. Calls that ended before the reading are
// counted by now, or had none.
func (f *firstTokens) take(calls int, at float64, queue []place) []place {
	if calls == 0 {
		f.ended = slices.DeleteFunc(f.ended, func(c endedCall) bool { return c.at <= at })
		return nil
	}
	var without []place
	for _, c := range f.ended {
		if c.place.at <= at {
			without = append(without, c.place)
		}
	}
	for _, t := range queue {
		if t.start >= f.upTo {
			without = append(without, t)
		}
	}
	slices.SortFunc(without, comparePlaces)
	first := without[:min(calls, len(without))]
	if n := len(first); n > 0 {
		f.upTo = max(f.upTo, first[n-1].end)
	}
	f.ended = slices.DeleteFunc(f.ended, func(c endedCall) bool { return c.at <= at || c.start < f.upTo })
	return first
}

// bound notes that no more calls can be without their first token than the server has.
func (f *firstTokens) bound(at float64, r *Reading, queue []place) {
	n := len(queue)
	if done := settled(at, queue) - min(n, min(n, r.Running)+min(n, r.Waiting)); done > 0 {
		f.upTo = max(f.upTo, queue[done-1].end)
	}
}

// remaining returns how much work is left, in tokens, of the calls without their first token, if the server has done one after
// the other since the last first token.
func (f *firstTokens) remaining(now float64, places []place, perToken float64) float64 {
	ready := f.free
	for _, t := range places {
		if t.start >= f.upTo {
			ready = max(ready, t.at) + t.tokens()*perToken
		}
	}
	return max(0, ready-now) / perToken
}

// timed finds for how long the server prefilled these calls, in the order of arrival, so that their times to first token add
// up to so many seconds and the last came by the time at.
func (f *firstTokens) timed(out *prefills, calls []place, seconds, at float64) {
	out.observed = seconds
	for _, t := range calls {
		out.tokens += t.tokens()
		out.tried.add(t)
		out.prompts += t.prompt
		if t.alone {
			out.starts++
		}
		out.expected += t.due - t.at
	}
	least, most := 0.0, max(0, at-max(f.free, calls[0].at))/max(out.tokens, 1)
	perToken := most
	for range 24 { // halvings, to a millionth
		if sum, end := f.at(perToken, calls); sum > seconds || end > at {
			most = perToken
		} else {
			least = perToken
		}
		perToken = (least + most) / 2
	}
	_, f.free = f.at(perToken, calls)
	out.seconds = out.tokens * perToken
}

// at returns the sum of the calls' times to first token at a server that takes so long for a token, and when the last first token
// comes.
func (f *firstTokens) at(perToken float64, calls []place) (sum, end float64) {
	end = f.free
	for _, t := range calls {
		end = max(end, t.at) + t.tokens()*perToken
		sum += end - t.at
	}
	return sum, end
}

// busy returns for how long a server prefilled, from the sum of the times to first token of so many calls, the last of which
// came so long after the first token before. Calls that arrive at random wait for one another. Let u be the share of the time
// in which the server prefills. A call waits u/2(1-u) times its own prefill (Pollaczek and Khinchine, for prompts of one
// length), less the n-th part of that, as a call does not wait for itself. busy solves this for u, and never returns more
// than the sum or the time that passed.
func busy(calls, first, lasted float64) float64 {
	if lasted <= 0 {
		return 0
	}
	x, a := first/lasted, (1-1/calls)/2
	return lasted * 2 * x / (1 + x + math.Sqrt(max(0, (1+x)*(1+x)-4*(1-a)*x)))
}
