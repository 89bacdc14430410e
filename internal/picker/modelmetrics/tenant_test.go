package modelmetrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRateIsSharedByTenants(t *testing.T) {
	const shortest, longest = 50 * time.Millisecond, 5 * time.Second
	for name, test := range map[string]struct {
		endpoints []int
		want      []time.Duration
	}{
		"a tenant alone has all":             {[]int{1000}, []time.Duration{1562500 * time.Microsecond}},
		"there is enough":                    {[]int{8, 16, 8}, []time.Duration{shortest, shortest, shortest}},
		"equal tenants have equal parts":     {[]int{320, 320}, []time.Duration{time.Second, time.Second}},
		"a large one stretches its own":      {[]int{5000, 8, 1}, []time.Duration{longest, shortest, shortest}},
		"it has what a small one leaves":     {[]int{880, 10}, []time.Duration{2 * time.Second, shortest}},
		"beside a large one half is left":    {[]int{5000, 160}, []time.Duration{longest, 500 * time.Millisecond}},
		"tenants without endpoints use none": {[]int{0, 1000, 0}, []time.Duration{shortest, 1562500 * time.Microsecond, shortest}},
	} {
		t.Run(name, func(t *testing.T) {
			tenants := make([]*tenant, len(test.endpoints))
			for i, n := range test.endpoints {
				tenants[i] = newTenant(newShared(1))
				tenants[i].endpoints = n
			}
			setIntervals(DefaultOptions(), slices.Clone(tenants))
			var got []time.Duration
			for _, tenant := range tenants {
				got = append(got, time.Duration(tenant.interval.Load()).Round(time.Microsecond))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("intervals of %v endpoints (-want +got):\n%s", test.endpoints, diff)
			}
		})
	}
}

// good is how many endpoints the well-behaved tenant has.
const good = 2

// beside scrapes so many endpoints of a greedy tenant at http://greedy, and the good tenant's at http://good.
func beside(t *testing.T, s *Scraper, greedy int) {
	t.Helper()
	targets := map[netip.AddrPort]Target{}
	for i := range greedy {
		targets[endpoint(good+i)] = Target{URL: "http://greedy/metrics", Tenant: "greedy"}
	}
	for i := range good {
		targets[endpoint(i)] = Target{URL: "http://good/metrics", Tenant: "good"}
	}
	update(t, s, targets)
}

// wantShortestInterval fails unless the good tenant's endpoints were scraped as often as without the other tenant.
func wantShortestInterval(t *testing.T, s *Scraper, sink *recorder) {
	t.Helper()
	longest := s.options.MinInterval*11/10 + 1
	for i := range good {
		events := sink.of(endpoint(i))
		if len(events) < 30 {
			t.Fatalf("the good tenant's endpoint %d was read %d times", i, len(events))
		}
		if gap := slices.Max(gaps(events)); gap > longest {
			t.Errorf("the good tenant's endpoint %d was not read for %v, want %v", i, gap, longest)
		}
		if failed := slices.IndexFunc(events, isFailure); failed >= 0 {
			t.Errorf("the good tenant's endpoint %d: %v", i, events[failed].err)
		}
	}
}

func TestManyEndpointsStretchTheirOwnIntervalAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, answer(load))
		served := s.dial
		s.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "greedy:80" {
				return nil, errors.New("5,000 servers would make the test slow")
			}
			return served(ctx, network, address)
		}
		beside(t, s, 5000)
		time.Sleep(2 * time.Second)
		wantShortestInterval(t, s, sink)
	})
}

// 40 endpoints send pages that are valid and come just in time. The good pages are long, since those were to wait.
func TestSlowPagesHoldUpTheirTenantAlone(t *testing.T) {
	long := load + strings.Repeat("# HELP\n", pageSizes[1]/7)
	for name, slow := range map[string]string{
		"long":        long,
		"the longest": load + strings.Repeat("# HELP\n", (MaxPage-len(load)-1)/7),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newRecorder()
				s := newScraper(t, DefaultOptions(), sink)
				newBubbleServer(t, s, func(w http.ResponseWriter, r *http.Request) {
					if r.Host == "good" {
						answer(long)(w, r)
						return
					}
					all := len(slow) - 1
					_, _ = w.Write([]byte(slow[:all]))
					_ = http.NewResponseController(w).Flush()
					time.Sleep(950 * time.Millisecond)
					_, _ = w.Write([]byte(slow[all:]))
				})
				const greedy = 40
				beside(t, s, greedy)
				for range 20 {
					time.Sleep(99 * time.Millisecond)
					s.shared.memory.mu.Lock()
					free := s.shared.memory.free
					s.shared.memory.mu.Unlock()
					if free < maxHeld/5-MaxPage {
						t.Errorf("%d bytes are free for others", free)
					}
				}
				wantShortestInterval(t, s, sink)
				told := 0 // which of the slow endpoints come first is random
				for i := range greedy {
					told += len(sink.of(endpoint(good + i)))
				}
				if told == 0 {
					t.Error("nothing is told of the slow pages")
				}
			})
		})
	}
}

func TestTenantLeavesMemory(t *testing.T) {
	for _, size := range pageSizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			m := newMemory(maxHeld)
			greedy, other := &tenant{}, &tenant{}
			for ok := true; ok; {
				ok, _ = m.take(greedy, size)
			}
			if size == MaxPage {
				if greedy.held != mostLongest*MaxPage {
					t.Errorf("one alone holds %d pages of the longest size, want %d", greedy.held/MaxPage, mostLongest)
				}
			} else if greedy.held < maxHeld*3/4 || greedy.held > maxHeld*4/5+MaxPage {
				t.Errorf("one alone holds %d bytes, want about four fifths of %d", greedy.held, maxHeld)
			}
			if ok, _ := m.take(other, MaxPage); !ok {
				t.Error("there is no room for another tenant's page")
			}
			if m.free+greedy.held+other.held != maxHeld {
				t.Errorf("free %d, held %d and %d", m.free, greedy.held, other.held)
			}
		})
	}
}

// A page that is longer than its tenant's memory allows fails. The next scrape waits until there is enough memory.
func TestPageWaitsForItsTenantsMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScraper(t, DefaultOptions(), newRecorder())
		s.shared.memory = newMemory(pageSizes[1])
		newBubbleServer(t, s, answer(load+strings.Repeat("# HELP\n", pageSizes[0]/7)))
		f, err := newFetcher("http://good/metrics", s.dial)
		if err != nil {
			t.Fatal(err)
		}
		defer f.close()
		tenant := newTenant(s.shared)
		parsed := 0
		fetch := func(ctx context.Context) error {
			return f.fetch(ctx, tenant, time.Second, func(page []byte, _ time.Time) error { parsed = len(page); return nil })
		}
		if err := fetch(t.Context()); !errors.Is(err, errNoRoom) {
			t.Fatalf("the first scrape gives %v, want that there is no room", err)
		}

		other, err := newRoom(t.Context(), tenant, 0)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := fetch(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("beside another page the scrape gives %v, want that it waits", err)
		}
		done := make(chan error, 1)
		go func() { done <- fetch(t.Context()) }()
		synctest.Wait()
		other.close()
		if err := <-done; err != nil || parsed < pageSizes[0] {
			t.Errorf("of the page %d bytes are parsed, %v", parsed, err)
		}
		if tenant.held != 0 || s.shared.memory.free != pageSizes[1] {
			t.Errorf("in the end %d bytes are held and %d free", tenant.held, s.shared.memory.free)
		}
	})
}

// Many endpoints have pages that take 100 ms each, which is what the largest cost that are made to cost much.
func TestParsingIsShared(t *testing.T) {
	const costly = 100 * time.Millisecond
	for name, test := range map[string]struct {
		slots, greedy int // tenants
		longest       time.Duration
	}{
		"a slot is free beside one tenant":  {2, 1, 0},
		"one of one slot is served in turn": {1, 1, costly},
		"three of one slot are":             {1, 3, 3 * costly},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const whole = time.Minute
				s := newShared(test.slots)
				ctx, cancel := context.WithTimeout(t.Context(), whole)
				defer cancel()
				parsed := make([]time.Duration, test.greedy) // by whoever has the tenant's turn
				for i := range test.greedy {
					tenant := newTenant(s)
					for range 40 {
						go func() {
							for tenant.parse(ctx, func() error { time.Sleep(costly); parsed[i] += costly; return nil }) == nil {
							}
						}()
					}
				}
				other := newTenant(s)
				for ctx.Err() == nil {
					time.Sleep(50 * time.Millisecond)
					asked := time.Now()
					_ = other.parse(ctx, func() error {
						if waited := time.Since(asked); waited > test.longest {
							t.Errorf("a page waited for %v, want %v", waited, test.longest)
						}
						return nil
					})
				}
				synctest.Wait()
				time.Sleep(costly) // pages that were begun
				synctest.Wait()
				for _, took := range parsed {
					if most := time.Duration(float64(whole)*parseShare) + parseAhead + costly; took > most {
						t.Errorf("a tenant had pages parsed for %v of a minute, want %v", took, most)
					}
				}
			})
		})
	}
}
