package modelmetrics

import (
	"cmp"
	"context"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// parseShare is the greatest share of one core that parsing a tenant's pages takes. 640 ordinary pages a second take a
	// fifteenth; pages of 4 MiB that are made to cost as much as possible would take 60 cores.
	parseShare = 1. / 4
	// parseAhead is for how long a tenant's pages are parsed without a pause after a rest. It suffices for 1,000 ordinary
	// pages, so that a large new pool is read at once.
	parseAhead = 100 * time.Millisecond
)

// shared is what the pages of all tenants share.
type shared struct {
	memory  *memory
	parsing chan struct{} // holds one element for each page that is being parsed
}

func newShared(concurrency int) *shared {
	return &shared{memory: newMemory(maxHeld), parsing: make(chan struct{}, concurrency)}
}

// tenant is the owner of endpoints. Beyond its share, its pages wait behind each other.
type tenant struct {
	shared    *shared
	endpoints int           // guarded by the scraper's mutex
	interval  atomic.Int64  // time.Duration
	held      int           // bytes of pages, guarded by the memory's mutex
	longest   int           // pages of the longest size among them, guarded likewise
	first     chan struct{} // holds one element while a page waits for memory

	// turn holds one element while one of the tenant's pages is parsed or is the next to be. So the pages that wait for
	// parsing are of different tenants, and tenants are served in turn.
	turn chan struct{}
	paid time.Time // until when the tenant waits for what was parsed; guarded by turn
}

func newTenant(s *shared) *tenant {
	return &tenant{shared: s, first: make(chan struct{}, 1), turn: make(chan struct{}, 1)}
}

// take waits until the channel takes one more element.
func take(ctx context.Context, turns chan struct{}) error {
	select {
	case turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// parse parses a page when it is the tenant's turn.
func (t *tenant) parse(ctx context.Context, page func() error) error {
	if err := take(ctx, t.turn); err != nil {
		return err
	}
	defer func() { <-t.turn }()
	if err := sleepUntil(ctx, t.paid); err != nil {
		return err
	}
	if err := take(ctx, t.shared.parsing); err != nil {
		return err
	}
	defer func() { <-t.shared.parsing }()
	start := time.Now()
	defer func() { t.pay(start, time.Since(start)) }()
	return page()
}

// pay charges the tenant for a parsed page: its next page waits until a parser at the tenant's share of a core would
// have parsed all. Unused time counts for the tenant up to parseAhead.
func (t *tenant) pay(start time.Time, took time.Duration) {
	if ahead := start.Add(-time.Duration(float64(parseAhead) / parseShare)); t.paid.Before(ahead) {
		t.paid = ahead
	}
	t.paid = t.paid.Add(time.Duration(float64(took) / parseShare))
}

func sleepUntil(ctx context.Context, at time.Time) error {
	wait := time.Until(at)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// setIntervals divides the rate among the tenants: each gets as much as any other, or as much as it can use. Those that
// can use least come first, and the others share what is left.
func setIntervals(o Options, tenants []*tenant) {
	slices.SortFunc(tenants, func(a, b *tenant) int { return cmp.Compare(a.endpoints, b.endpoints) })
	left := o.Rate
	for i, t := range tenants {
		rate := left / float64(len(tenants)-i)
		t.interval.Store(int64(o.interval(t.endpoints, rate)))
		left -= min(rate, float64(t.endpoints)/o.MinInterval.Seconds())
	}
}
