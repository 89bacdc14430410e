package modelmetrics

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// Options set how often endpoints are scraped, and how long a scrape may take.
type Options struct {
	// MinInterval and MaxInterval bound the time from one scrape of an endpoint to its next. MaxInterval also is the
	// longest time for which a failing endpoint is left alone.
	MinInterval, MaxInterval time.Duration
	// Rate is the most scrapes a second, of all endpoints together, unless MaxInterval demands more. Each tenant has as
	// much of it as any other, or as much as it can use.
	Rate float64
	// Timeout is how long one scrape may take, from the connection to the page's last byte.
	Timeout time.Duration
	// Concurrency is how many pages are parsed at the same time; of each tenant one at most.
	Concurrency int
}

// DefaultOptions cost about a tenth of a core at most: 640 scrapes a second, each some 160 µs for a page of 38 KB
// (BenchmarkScraper on two idle cores; 115 µs with GOMAXPROCS=1). Up to 32 endpoints are scraped every 50 ms, 100 every
// 156 ms, 1,000 every 1.6 s; a Sink's Pace may make that less often. At most half of the cores parse pages, so that
// calls have the rest. Of two cores both may parse, so that one tenant's long page does not delay another's.
func DefaultOptions() Options {
	return Options{
		MinInterval: 50 * time.Millisecond,
		MaxInterval: 5 * time.Second,
		Rate:        640,
		Timeout:     time.Second,
		Concurrency: max(2, runtime.GOMAXPROCS(0)/2),
	}
}

// Validate returns all that is wrong with the options.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(o.MinInterval >= time.Millisecond, "the shortest scrape interval must be at least 1ms, got %v", o.MinInterval)
	check(o.MaxInterval >= o.MinInterval && o.MaxInterval <= time.Hour,
		"the longest scrape interval must be from the shortest (%v) to 1h, got %v", o.MinInterval, o.MaxInterval)
	check(o.Rate > 0 && o.Rate <= 1e6, "the scrape rate must be above 0 and at most 1e6 a second, got %v", o.Rate)
	check(o.Timeout >= time.Millisecond, "the scrape timeout must be at least 1ms, got %v", o.Timeout)
	check(o.Concurrency >= 1 && o.Concurrency <= 1<<16, "the scrape concurrency must be from 1 to 65536, got %d", o.Concurrency)
	return errors.Join(errs...)
}

// Interval is the time between two scrapes of an endpoint where one tenant has all n endpoints:
//
//	n / Rate, but at least MinInterval and at most MaxInterval
//
// The cost so grows with the number of endpoints up to Rate. Beyond that the readings' age grows, up to MaxInterval.
func (o Options) Interval(n int) time.Duration { return o.interval(n, o.Rate) }

// interval is the Interval of n endpoints at a given rate.
func (o Options) interval(n int, rate float64) time.Duration {
	seconds := min(float64(n)/rate, o.MaxInterval.Seconds())
	return min(max(o.MinInterval, time.Duration(seconds*float64(time.Second))), o.MaxInterval)
}
