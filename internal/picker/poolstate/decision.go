package poolstate

import (
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
)

// Decision is a pick, or a preview of one, with the numbers behind it.
type Decision struct {
	Pool string
	// At is when the decision was made, on the pool's clock.
	At time.Duration
	// Chosen is the endpoint that was reserved, as "ip:port"; "" where none was.
	Chosen                     string
	Model                      string
	PromptTokens, PromptBlocks int
	// Candidates is how many endpoints might serve the call. Ranking orders them, best first; only the draw between equals
	// is not in it. The Ranking of a recent pick has only the chosen endpoint and the next best.
	Candidates int
	Ranking    []Ranked
	// Wait is how long the call is expected to wait at the picker first, as a call of nobody in particular; only of a preview.
	Wait time.Duration
}

// Ranked is an endpoint's place in a ranking.
type Ranked struct {
	Address string // ip:port
	selection.Reason
	// ObservedToExpected is how many times as long as expected the first tokens of the picker's recent calls to the endpoint
	// took; NaN where none was followed.
	ObservedToExpected float64
}

// Rank returns what Pick would decide now, and reserves nothing. The error is a *refusal.Error, as Pick's is.
func (p *Pool) Rank(c *Call) (*Decision, error) {
	m, wait := p.preview(c)
	if m.err != nil {
		return nil, m.err
	}
	d := p.decision(c.Facts, m.rows, m.at, "")
	d.Wait = wait
	return d, nil
}

func (p *Pool) preview(c *Call) (made, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	ranked, err := p.consider(c, now)
	if err != nil {
		return made{at: now, err: err}, 0
	}
	return made{rows: p.rank(&ranked.call, now), at: now}, p.wouldWait(c, now)
}

// rank copies the numbers of all candidates, in no order. The pool's mutex is held, so rank does no more than that.
func (p *Pool) rank(call *selection.Call, now time.Duration) []Ranked {
	reasons := p.choice.Explain(call, now)
	out := make([]Ranked, len(reasons))
	for i, r := range reasons {
		s := &p.slots[r.Endpoint]
		out[i] = Ranked{Address: s.text, Reason: r, ObservedToExpected: s.observed.toExpected()}
	}
	return out
}

// decision sorts the copied numbers into a Decision. The pool's mutex is not held.
func (p *Pool) decision(facts *request.Facts, rows []Ranked, at time.Duration, chosen string) *Decision {
	slices.SortStableFunc(rows, func(a, b Ranked) int { return a.Compare(b.Reason) })
	return &Decision{
		Pool: p.name.String(), At: at, Chosen: chosen, Model: facts.Model,
		PromptTokens: facts.PromptTokens(), PromptBlocks: len(facts.Blocks), Candidates: len(rows), Ranking: rows,
	}
}

// LogValue returns the best of the ranking for a log: one group for each.
func (d *Decision) LogValue() slog.Value {
	attrs := []slog.Attr{
		slog.String("model", clipped(d.Model)), slog.Int("promptTokens", d.PromptTokens), slog.Int("candidates", d.Candidates),
	}
	for _, r := range d.Ranking[:min(len(d.Ranking), selection.Choices)] {
		attrs = append(attrs, slog.Group(r.Address,
			"cost", Rounded(r.Cost), "wait", Rounded(r.Wait), "prefill", Rounded(r.Prefill), "others", Rounded(r.Others),
			"cachedTokens", r.CachedTokens, "queueTokens", math.Round(r.QueueTokens), "inFlight", r.InFlight,
			"adapter", r.AdapterState, "class", r.Class))
	}
	return slog.GroupValue(attrs...)
}

// Rounded rounds a number of seconds for people to read: to a microsecond.
func Rounded(v float64) float64 { return math.Round(v*1e6) / 1e6 }

// Known returns a rounded number for people to read, or nil for NaN, which stands for an unknown one.
func Known(v float64) *float64 {
	if math.IsNaN(v) {
		return nil
	}
	v = Rounded(v)
	return &v
}

// clipped bounds a client's own text that is kept.
func clipped(text string) string { return text[:min(len(text), 100)] }

const (
	// recentInterval is the least time between two picks that are kept for people to read. For all other picks this costs
	// one comparison; a kept pick computes its ranking.
	recentInterval = 250 * time.Millisecond
	// recentPicks is how many picks are kept.
	recentPicks = 16
)

// recent are some of a pool's latest picks, the oldest overwritten first.
type recent struct {
	next  time.Duration // the time from which on another pick is kept
	made  int           // how many picks have been kept so far
	picks [recentPicks]Decision
}

// due says whether a pick at the given time is to be kept. If so, picks within recentInterval after it are not.
func (r *recent) due(now time.Duration) bool {
	if now < r.next {
		return false
	}
	r.next = now + recentInterval
	return true
}

// keep adds a pick.
func (r *recent) keep(d Decision) {
	r.picks[r.made%recentPicks] = d
	r.made++
}

// latest returns the kept picks, the newest first.
func (r *recent) latest() []Decision {
	var out []Decision
	for i := r.made - 1; i >= max(0, r.made-recentPicks); i-- {
		out = append(out, r.picks[i%recentPicks])
	}
	return out
}

// abridged returns a copy with only the chosen endpoint and the next best, which shares no memory with the request.
func (d *Decision) abridged() Decision {
	out := *d
	out.Model = strings.Clone(clipped(d.Model))
	out.Ranking = make([]Ranked, 0, 2)
	other := false
	for _, r := range d.Ranking {
		if chosen := r.Address == d.Chosen; chosen || !other {
			out.Ranking = append(out.Ranking, r)
			other = other || !chosen
		}
	}
	return out
}
