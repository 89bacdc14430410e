package kvevents

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// endpoint is an endpoint whose events are received. Its goroutine asks for the sources, and starts a goroutine for each
// rank's connection.
type endpoint struct {
	Target
	address  netip.AddrPort
	options  Options
	sink     Sink
	fallback uint16
	tenant   *tenant
	ctx      context.Context // ends when the endpoint is removed
	cancel   context.CancelFunc
	done     chan struct{} // closed when the goroutine has ended

	// Those of the endpoint's goroutine alone.
	failures int // in a row, to learn the sources
	retry    time.Time
	ended    chan *rank

	mu     sync.Mutex // guards what follows, and what ranks say that it guards
	ranks  map[int]*rank
	blocks blocks
}

func newEndpoint(s *Subscriber, address netip.AddrPort, target Target, t *tenant) *endpoint {
	e := &endpoint{
		Target:   target,
		address:  address,
		options:  s.options,
		sink:     s.sink,
		fallback: s.fallback,
		tenant:   t,
		done:     make(chan struct{}),
		ended:    make(chan *rank, maxRanks), // so that no rank waits for a reader
		ranks:    map[int]*rank{},
	}
	e.blocks = newBlocks(e.tell)
	return e
}

// run receives the endpoint's events until its context ends.
func (e *endpoint) run() {
	var running sync.WaitGroup
	defer e.free()
	defer running.Wait()
	timer := time.NewTimer(rand.N(e.options.RetryMin)) // so that many endpoints do not begin at once
	defer timer.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case r := <-e.ended:
			r.running = false
		case <-timer.C:
			e.connect(&running)
		}
		timer.Reset(time.Until(e.next()))
	}
}

// next is when the first connection is to be made again that failed.
func (e *endpoint) next() time.Time {
	next := time.Now().Add(time.Hour)
	if e.retry.After(time.Now()) {
		return e.retry // without sources no rank connects
	}
	for _, r := range e.ranks {
		if !r.running && r.retry.Before(next) {
			next = r.retry
		}
	}
	return next
}

// connect asks for the sources, and connects to all that are due.
func (e *endpoint) connect(running *sync.WaitGroup) {
	sources, err := e.sources()
	if err != nil {
		if e.failures++; isRefused(err) || e.failures > 1 {
			e.forgetAll()
		}
		e.retry = time.Now().Add(e.backoff(e.failures))
		e.fail(e.failures, fmt.Errorf("asking %s%s for the sources of cache events: %w", e.URL, sourcesPath, err))
		return
	}
	e.failures = 0
	e.dropOthers(sources)
	for number, source := range sources {
		r := e.rank(number)
		if r == nil || r.running || time.Now().Before(r.retry) {
			continue
		}
		r.running, r.source = true, source
		running.Go(func() {
			r.run()
			e.ended <- r
		})
	}
}

func (e *endpoint) sources() (map[int]source, error) {
	if err := e.tenant.pay(e.ctx, dialCost); err != nil {
		return nil, err
	}
	return fetchSources(e.ctx, e.URL, e.options.Timeout, e.fallback)
}

// rank returns the rank of a number; nil where there are too many, as ranks of before are still connected.
func (e *endpoint) rank(number int) *rank {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ranks[number] == nil && len(e.ranks) < maxRanks {
		e.ranks[number] = newRank(e, number)
	}
	return e.ranks[number]
}

// dropOthers drops the ranks that the server no longer has, and whose connections ended.
func (e *endpoint) dropOthers(sources map[int]source) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for number, r := range e.ranks {
		if _, ok := sources[number]; !ok && !r.running {
			e.clear(r)
			delete(e.ranks, number)
			e.blocks.flush(false)
		}
	}
}

// forgetAll voids what all ranks told that are not connected.
func (e *endpoint) forgetAll() {
	for _, r := range e.ranks { // only this goroutine changes the map
		if !r.running {
			r.forget()
		}
	}
}

func isRefused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// tell passes a change on. The caller has the endpoint's lock.
func (e *endpoint) tell(c Change) {
	if e.ctx.Err() == nil {
		e.sink.CacheChanged(e.address, c)
	}
}

// fail reports a failure.
func (e *endpoint) fail(n int, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ctx.Err() == nil {
		e.sink.EventsFailed(e.address, n, err)
	}
}

// backoff is the time to the next attempt after so many failures in a row.
func (e *endpoint) backoff(failures int) time.Duration {
	delay := e.options.RetryMin
	for range failures - 1 {
		if delay *= 2; delay >= e.options.RetryMax {
			delay = e.options.RetryMax
			break
		}
	}
	return delay - delay/10 + rand.N(delay/5+1)
}

// free gives all memory back.
func (e *endpoint) free() {
	for _, r := range e.ranks {
		r.entries.free()
		r.base.free()
		r.named = nil
	}
	e.blocks = blocks{}
}
