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

// Decision is a pick, or what would be picked, with the numbers behind it.
type Decision struct {
	Pool string
	// At is when it was made, on the pool's clock.
	At time.Duration
	// Chosen is the endpoint that was reserved, as "ip:port"; "" where none was.
	Chosen                     string
	Model                      string
	PromptTokens, PromptBlocks int
	// Candidates are the endpoints that might serve the call, and Ranking is of them, best first. The draw between equals
	// is all that it does not foresee. Of a pick that is kept it has the chosen one and the next best alone.
	Candidates int
	Ranking    []Ranked
}

// Ranked is an endpoint's place in a ranking.
type Ranked struct {
	Address string // ip:port
	selection.Reason
}

// Rank is what would be decided now; nothing is reserved. The error is a *refusal.Error, as Pick's is.
func (p *Pool) Rank(c *Call) (*Decision, error) {
	rows, now, err := p.lookRanked(c)
	if err != nil {
		return nil, err
	}
	return p.decision(c.Facts, rows, now, ""), nil
}

func (p *Pool) lookRanked(c *Call) ([]Ranked, time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	call, err := p.look(c, now)
	if err != nil {
		return nil, now, err
	}
	return p.rank(&call, now), now, nil
}

// rank takes down the numbers of all candidates, in no order. The pool's mutex is held, so it copies and does no more.
func (p *Pool) rank(call *selection.Call, now time.Duration) []Ranked {
	reasons := p.choice.Explain(call, now)
	out := make([]Ranked, len(reasons))
	for i, r := range reasons {
		out[i] = Ranked{Address: p.slots[r.Endpoint].text, Reason: r}
	}
	return out
}

// decision puts what was taken down in order. The pool's mutex is not held.
func (p *Pool) decision(facts *request.Facts, rows []Ranked, at time.Duration, chosen string) *Decision {
	slices.SortStableFunc(rows, func(a, b Ranked) int { return a.Compare(b.Reason) })
	return &Decision{
		Pool: p.name.String(), At: at, Chosen: chosen, Model: facts.Model,
		PromptTokens: facts.PromptTokens(), PromptBlocks: len(facts.Blocks), Candidates: len(rows), Ranking: rows,
	}
}

// LogValue has the first of the ranking as a log is read: one group for each.
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

// Rounded is a number of seconds as people are shown it: to a microsecond.
func Rounded(v float64) float64 { return math.Round(v*1e6) / 1e6 }

// clipped bounds what a client's own text takes where it is kept.
func clipped(text string) string { return text[:min(len(text), 100)] }

const (
	// recentInterval is the least time between two picks that are kept for people to see. All that any other pick pays
	// for it is a comparison; a kept one pays for its ranking.
	recentInterval = 250 * time.Millisecond
	// recentPicks is how many are kept.
	recentPicks = 16
)

// recent are some of a pool's latest picks, the oldest overwritten first.
type recent struct {
	next  time.Duration // the moment from which on another one is kept
	made  int           // how many have been kept so far
	picks [recentPicks]Decision
}

// due says whether a pick at a moment is to be kept; those right after it then are not.
func (r *recent) due(now time.Duration) bool {
	if now < r.next {
		return false
	}
	r.next = now + recentInterval
	return true
}

// keep notes a pick.
func (r *recent) keep(d Decision) {
	r.picks[r.made%recentPicks] = d
	r.made++
}

// latest lists those that are kept, the newest first.
func (r *recent) latest() []Decision {
	var out []Decision
	for i := r.made - 1; i >= max(0, r.made-recentPicks); i-- {
		out = append(out, r.picks[i%recentPicks])
	}
	return out
}

// abridged is a copy with the chosen endpoint and the next best alone, and nothing of the request's own memory.
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
