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

// Target is where the metrics of an endpoint are.
type Target struct {
	// URL is that of the page, such as http://10.0.0.7:8000/metrics.
	URL string
	// Engine is the program behind it, or Detect.
	Engine Engine
	// Tenant is the owner of the endpoint. However many endpoints a tenant has, and whatever their pages are like, they hold
	// up no endpoint of another tenant.
	Tenant string
}

// Sink takes what the scraper finds out. Its methods are called from many goroutines, but of one endpoint never two at
// once; they hold up that endpoint's next scrape. They may come once more, late, for an endpoint that Update
// has just taken away.
type Sink interface {
	// Scraped takes the reading of an endpoint.
	Scraped(endpoint netip.AddrPort, r Reading)
	// ScrapeFailed says that there is no new reading of an endpoint, for the n-th time in a row. The last one goes on
	// ageing. The error is a StatusError, ErrNoEngine, ErrIncomplete, or one of the network.
	ScrapeFailed(endpoint netip.AddrPort, n int, err error)
	// Pace is the time after which a new reading of an endpoint is of use. It is asked after each scrape, and can only
	// make the time to the next one longer than the options say.
	Pace(endpoint netip.AddrPort) time.Duration
}

// Scraper reads a fleet's endpoints again and again, each in a goroutine of its own. Its methods may be called at any
// time, from any goroutine.
type Scraper struct {
	options Options
	sink    Sink
	dial    dialFunc
	shared  *shared

	mu      sync.Mutex
	closed  bool
	targets map[netip.AddrPort]*target
	tenants map[string]*tenant // kept without endpoints too: a tenant that comes again has the share it had
	running sync.WaitGroup
}

// New returns a scraper without endpoints. Close must be called in the end.
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

// Update says where endpoints are read from now on, and which are not read any more; others stay as they are. Those that
// are there already, and whose target is the same, go on undisturbed; the others are read within MinInterval. The error
// tells of targets that have no usable URL: they are left out, the others are set. After Close it does nothing.
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
	setIntervals(s.options, slices.Collect(maps.Values(s.tenants))) // before the first scrapes ask for them
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

// add makes an endpoint's target, which is not read yet.
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

// Close ends all scrapes and returns when they have ended; the sink is not called any more then.
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

// target is an endpoint that is being read.
type target struct {
	Target
	endpoint netip.AddrPort
	scraper  *Scraper
	tenant   *tenant
	ctx      context.Context // ends when the endpoint goes
	cancel   context.CancelFunc
	fetcher  *fetcher
	parser   *Parser
	failures int // in a row
}

// run reads the endpoint until its context ends. Delays are measured on the monotonic clock, from scrape to scrape.
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

// delay is the time from the start of one scrape to that of the next: the tenant's interval or the sink's pace, whichever
// is longer, doubled with each failure up to MaxInterval, and a tenth more or less. After the first scrape it is anything
// up to that: endpoints that came together are spread over the interval, and the tenth keeps them from falling into step
// again.
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
