package modelmetrics

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Target says where and how the metrics of an endpoint are scraped.
type Target struct {
	// URL is the page's URL, such as http://10.0.0.7:8000/metrics.
	URL string
	// Engine is the endpoint's engine, or Detect.
	Engine Engine
	// Tenant is the owner of the endpoint. A tenant's endpoints delay no endpoint of another tenant, however many they are
	// and whatever their pages are like.
	Tenant string
}

// Sink receives the scraper's results. Many goroutines call its methods, but never two at once for one endpoint; a
// method that blocks delays that endpoint's next scrape. One more late call may come for an endpoint that Update has
// just removed.
type Sink interface {
	// Scraped receives the reading of an endpoint.
	Scraped(endpoint netip.AddrPort, r Reading)
	// ScrapeFailed reports that scraping an endpoint failed, for the n-th time in a row. The last reading goes on ageing.
	// The error is a StatusError, ErrNoEngine, ErrIncomplete, or one of the network.
	ScrapeFailed(endpoint netip.AddrPort, n int, err error)
	// Pace returns the time after which a new reading of an endpoint is of use. It is called after each scrape, and can
	// only lengthen the time to the next one beyond what the options say.
	Pace(endpoint netip.AddrPort) time.Duration
}

// Scraper scrapes endpoints again and again, each in a goroutine of its own. Any goroutine may call its methods at any
// time.
type Scraper struct {
	options Options
	sink    Sink
	dial    dialFunc
	shared  *shared

	mu      sync.Mutex
	closed  bool
	targets map[netip.AddrPort]*target
	tenants map[string]*tenant // a tenant without endpoints stays, so that it has its old share when endpoints come back
	running sync.WaitGroup
}

// New returns a scraper without endpoints. The caller must call Close in the end.
func New(options Options, sink Sink) (*Scraper, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	return &Scraper{
		options: options,
		sink:    sink,
		dial:    defaultDial(),
		shared:  newShared(options.Concurrency),
		targets: map[netip.AddrPort]*target{},
		tenants: map[string]*tenant{},
	}, nil
}

// Update sets the targets of endpoints, and stops scraping the endpoints in gone; all others stay as they are. An
// endpoint whose target is unchanged goes on undisturbed; the others are scraped within MinInterval. The error names
// the endpoints without a usable URL: they are left out, the others are set. After Close, Update does nothing.
func (s *Scraper) Update(targets map[netip.AddrPort]Target, gone []netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	for _, endpoint := range gone {
		s.stop(endpoint)
	}
	var added []*target
	var errs []error
	for _, endpoint := range slices.SortedFunc(maps.Keys(targets), netip.AddrPort.Compare) {
		if known, ok := s.targets[endpoint]; ok && known.Target == targets[endpoint] {
			continue
		}
		s.stop(endpoint)
		t, err := s.add(endpoint, targets[endpoint])
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %s: %w", endpoint, err))
			continue
		}
		added = append(added, t)
	}
	setIntervals(s.options, slices.Collect(maps.Values(s.tenants))) // before the first scrapes use the intervals
	for _, t := range added {
		s.running.Go(t.run)
	}
	return errors.Join(errs...)
}

func (s *Scraper) stop(endpoint netip.AddrPort) {
	if t, ok := s.targets[endpoint]; ok {
		t.cancel()
		t.tenant.endpoints--
		delete(s.targets, endpoint)
	}
}

// add makes an endpoint's target, which run then scrapes.
func (s *Scraper) add(endpoint netip.AddrPort, what Target) (*target, error) {
	fetcher, err := newFetcher(what.URL, s.dial)
	if err != nil {
		return nil, err
	}
	tenant := s.tenants[what.Tenant]
	if tenant == nil {
		tenant = newTenant(s.shared)
		s.tenants[what.Tenant] = tenant
	}
	tenant.endpoints++
	t := &target{Target: what, endpoint: endpoint, scraper: s, tenant: tenant, fetcher: fetcher, parser: NewParser(what.Engine)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	s.targets[endpoint] = t
	return t, nil
}

// Close ends all scrapes and waits for them. Afterwards no method of the sink is called any more.
func (s *Scraper) Close() {
	s.mu.Lock()
	s.closed = true
	for _, t := range s.targets {
		t.cancel()
	}
	clear(s.targets)
	s.mu.Unlock()
	s.running.Wait()
}

// target is an endpoint that is being scraped.
type target struct {
	Target
	endpoint netip.AddrPort
	scraper  *Scraper
	tenant   *tenant
	ctx      context.Context // ends when the endpoint is removed
	cancel   context.CancelFunc
	fetcher  *fetcher
	parser   *Parser
	failures int // in a row
}

// run scrapes the endpoint until its context ends. Delays are from scrape to scrape, on the monotonic clock.
func (t *target) run() {
	defer t.fetcher.close()
	timer := time.NewTimer(rand.N(t.scraper.options.MinInterval))
	defer timer.Stop()
	for first := true; ; first = false {
		select {
		case <-t.ctx.Done():
			return
		case <-timer.C:
		}
		start := time.Now()
		t.scrape()
		timer.Reset(t.delay(first) - time.Since(start))
	}
}

func (t *target) scrape() {
	var reading Reading
	err := t.fetcher.fetch(t.ctx, t.tenant, t.scraper.options.Timeout, func(page []byte, asked time.Time) (err error) {
		reading, err = t.parser.Parse(page, asked)
		return err
	})
	switch {
	case t.ctx.Err() != nil: // no longer an endpoint
	case err != nil:
		t.failures++
		t.scraper.sink.ScrapeFailed(t.endpoint, t.failures, err)
	default:
		t.failures = 0
		t.scraper.sink.Scraped(t.endpoint, reading)
	}
}

// delay is the time from the start of one scrape to the start of the next: the tenant's interval or the sink's pace,
// whichever is longer. It is doubled with each failure, up to MaxInterval, and then varied by up to a tenth. After the
// first scrape it is random, up to that time, so that endpoints that came together are spread over the interval. The
// tenth keeps them spread.
func (t *target) delay(first bool) time.Duration {
	longest := t.scraper.options.MaxInterval
	delay := min(longest, max(time.Duration(t.tenant.interval.Load()), t.scraper.sink.Pace(t.endpoint)))
	for range t.failures {
		if delay *= 2; delay >= longest {
			delay = longest
			break
		}
	}
	if first {
		return rand.N(delay + 1) // N takes no zero
	}
	return delay - delay/10 + rand.N(delay/5+1)
}
