package conversations

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// table shows calls as they end.
type table struct{ out io.Writer }

func newTable(out io.Writer, title string) *table {
	_, _ = fmt.Fprintf(out, "\nCalls %s:\n%-9s %12s %4s %13s  %-9s %13s %12s %9s\n", title,
		"service", "conversation", "turn", "prompt tokens", "endpoint", "cached tokens", "first token", "whole")
	return &table{out: out}
}

func (t *table) row(c Call) {
	if c.Err != nil {
		_, _ = fmt.Fprintf(t.out, "%-9s %12d %4d  failed: %v\n", c.Service, c.Conversation, c.Turn, c.Err)
		return
	}
	_, _ = fmt.Fprintf(t.out, "%-9s %12d %4d %13d  %-9s %13d %9d ms %6d ms\n", c.Service, c.Conversation, c.Turn,
		c.PromptTokens, c.Endpoint, c.CachedTokens, c.FirstToken.Milliseconds(), c.Total.Milliseconds())
}

// figures summarise a run.
type figures struct {
	calls, failed int
	cachedShare   float64 // of prompt tokens
	meanFirst     time.Duration
	p90First      time.Duration
	spread        map[string]int // endpoint → calls
}

func sum(calls []Call) figures {
	f := figures{calls: len(calls), spread: map[string]int{}}
	var prompt, cached int
	var first []time.Duration
	var total time.Duration
	for _, c := range calls {
		if c.Err != nil {
			f.failed++
			continue
		}
		prompt += c.PromptTokens
		cached += c.CachedTokens
		first = append(first, c.FirstToken)
		total += c.FirstToken
		f.spread[c.Endpoint]++
	}
	if len(first) == 0 {
		return f
	}
	slices.Sort(first)
	f.cachedShare = float64(cached) / float64(prompt)
	f.meanFirst = total / time.Duration(len(first))
	f.p90First = first[int(math.Ceil(0.9*float64(len(first))))-1]
	return f
}

func (f figures) spreadText() string {
	out := make([]string, 0, len(f.spread))
	for _, endpoint := range slices.Sorted(maps.Keys(f.spread)) {
		out = append(out, fmt.Sprint(f.spread[endpoint]))
	}
	return strings.Join(out, " / ")
}

// Goal is how much better picking must be than another way to balance calls.
type Goal struct {
	// Cached is the factor by which picking must raise the share of prompt tokens from the cache.
	Cached float64
	// FirstToken is the greatest mean time to first token, as a multiple of the other way's.
	FirstToken float64
}

// Clearly is the goal where servers are stand-ins with small caches.
var Clearly = Goal{Cached: 2, FirstToken: 1}

// Compare shows two runs side by side, the second under the other way's name. It fails if a call failed or if picking missed
// the goal.
func Compare(out io.Writer, picked []Call, name string, others []Call, goal Goal) error {
	p, r := sum(picked), sum(others)
	row := func(name, p, r string) { _, _ = fmt.Fprintf(out, "%-34s %18s %18s\n", name, p, r) }
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	percent := func(x float64) string { return fmt.Sprintf("%.0f %%", 100*x) }
	_, _ = fmt.Fprintln(out, "\nThe same conversations, compared:")
	row("", "picking", name)
	row("calls served", fmt.Sprintf("%d of %d", p.calls-p.failed, p.calls), fmt.Sprintf("%d of %d", r.calls-r.failed, r.calls))
	row("prompt tokens from cache", percent(p.cachedShare), percent(r.cachedShare))
	row("time to first token, mean", ms(p.meanFirst), ms(r.meanFirst))
	row("time to first token, p90", ms(p.p90First), ms(r.p90First))
	row("calls on each endpoint", p.spreadText(), r.spreadText())
	switch {
	case p.failed+r.failed > 0:
		return fmt.Errorf("%d calls were not served", p.failed+r.failed)
	case p.cachedShare < goal.Cached*r.cachedShare:
		return fmt.Errorf("picking served %s of the prompt tokens from cache, %s %s: less than %g times as much",
			percent(p.cachedShare), name, percent(r.cachedShare), goal.Cached)
	case p.meanFirst.Seconds() > goal.FirstToken*r.meanFirst.Seconds():
		return fmt.Errorf("the mean time to first token is %s with picking and %s with %s: more than %g times as long",
			ms(p.meanFirst), ms(r.meanFirst), name, goal.FirstToken)
	}
	_, err := fmt.Fprintf(out, "\nPicking served %.1f times as many prompt tokens from cache.\n", p.cachedShare/r.cachedShare)
	return err
}
