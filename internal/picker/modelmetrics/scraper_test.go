package modelmetrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// event is a call of the sink.
type event struct {
	endpoint netip.AddrPort
	at       time.Time
	reading  Reading
	n        int
	err      error
}

// recorder is a sink that keeps everything.
type recorder struct {
	mu     sync.Mutex
	events []event
	more   chan struct{} // has something when an event came
	pace   atomic.Int64  // time.Duration
}

func newRecorder() *recorder { return &recorder{more: make(chan struct{}, 1)} }

func (r *recorder) Scraped(endpoint netip.AddrPort, reading Reading) {
	r.add(event{endpoint: endpoint, reading: reading})
}

func (r *recorder) ScrapeFailed(endpoint netip.AddrPort, n int, err error) {
	r.add(event{endpoint: endpoint, n: n, err: err})
}

func (r *recorder) Pace(netip.AddrPort) time.Duration { return time.Duration(r.pace.Load()) }

func (r *recorder) add(e event) {
	e.at = time.Now()
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *recorder) all() []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// of are the events of one endpoint.
func (r *recorder) of(endpoint netip.AddrPort) []event {
	return slices.DeleteFunc(r.all(), func(e event) bool { return e.endpoint != endpoint })
}

// await returns the first event that is as wanted.
func (r *recorder) await(t *testing.T, what string, wanted func(event) bool) event {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for seen := 0; ; {
		events := r.all()
		for _, e := range events[seen:] {
			if wanted(e) {
				return e
			}
		}
		seen = len(events)
		select {
		case <-r.more:
		case <-timeout:
			t.Fatalf("no event %q among %d", what, seen)
		}
	}
}

func isReading(e event) bool { return e.err == nil }
func isFailure(e event) bool { return e.err != nil }

// endpoint is a made-up address; the target's URL says where its page is.
func endpoint(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 8000)
}

// quick are options for real servers.
func quick() Options {
	return Options{MinInterval: 5 * time.Millisecond, MaxInterval: 50 * time.Millisecond, Rate: 1000, Timeout: 300 * time.Millisecond, Concurrency: 4}
}

func newScraper(t *testing.T, options Options, sink Sink) *Scraper {
	t.Helper()
	s, err := New(options, sink)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func set(t *testing.T, s *Scraper, urls ...string) {
	t.Helper()
	targets := map[netip.AddrPort]Target{}
	for i, url := range urls {
		targets[endpoint(i)] = Target{URL: url}
	}
	update(t, s, targets)
}

// update makes the scraper scrape exactly these endpoints.
func update(t *testing.T, s *Scraper, targets map[netip.AddrPort]Target) {
	t.Helper()
	var gone []netip.AddrPort
	s.mu.Lock()
	for e := range s.targets {
		if _, ok := targets[e]; !ok {
			gone = append(gone, e)
		}
	}
	s.mu.Unlock()
	if err := s.Update(targets, gone); err != nil {
		t.Fatal(err)
	}
}

func serve(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

func answer(page string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(page)) }
}

func TestScrapeOverOneConnection(t *testing.T) {
	var connections atomic.Int32
	var headers atomic.Pointer[http.Header]
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		headers.Store(&r.Header)
		_, _ = w.Write(vllmPage())
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()

	sink := newRecorder()
	before := time.Now()
	options := quick()
	options.Timeout = 10 * time.Second // however busy the machine is
	s := newScraper(t, options, sink)
	set(t, s, server.URL+"/metrics")
	count := 0
	e := sink.await(t, "a 20th reading", func(event) bool { count++; return count == 20 })
	set(t, s, server.URL+"/metrics") // changes nothing
	sink.await(t, "a 40th reading", func(event) bool { count++; return count == 60 })
	if e.err != nil || e.reading.Engine != VLLM || e.reading.Running != 37 {
		t.Errorf("got %+v", e)
	}
	if e.reading.At.Before(before) || e.reading.Age(e.at) < 0 || e.reading.Age(e.at) > time.Minute {
		t.Errorf("reading of %v, begun at %v, came at %v", e.reading.At, before, e.at)
	}
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections for 40 scrapes", n)
	}
	h := *headers.Load()
	if h.Get("Accept") != "text/plain" || h.Get("Accept-Encoding") != "" {
		t.Errorf("headers were %v", h)
	}
}

// bare answers with a status line alone, and then closes the connection or keeps it open.
func bare(open bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 200\r\n\r\n")
		if open {
			_, _ = conn.Read(make([]byte, 1)) // until the other side leaves
		}
	}
}

// TestScrapeBadServers lets each server misbehave for a while: the failure is reported, and the endpoint is read again
// as soon as possible.
func TestScrapeBadServers(t *testing.T) {
	is := func(target error) func(error) bool { return func(err error) bool { return errors.Is(err, target) } }
	something := func(err error) bool { return err != nil }
	for name, test := range map[string]struct {
		bad  http.HandlerFunc
		want func(error) bool
	}{
		"an error": {
			func(w http.ResponseWriter, _ *http.Request) { http.Error(w, load, http.StatusServiceUnavailable) },
			is(StatusError(http.StatusServiceUnavailable)),
		},
		"a redirect": {
			func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
			is(StatusError(http.StatusFound)),
		},
		"an empty page":        {answer(""), is(ErrNoEngine)},
		"garbage":              {answer("\x00\xff\x1f\x8b" + strings.Repeat("{\"\\", 10000)), is(ErrNoEngine)},
		"half of what matters": {answer(strings.Split(load, "vllm:kv")[0]), is(ErrIncomplete)},
		"no answer":            {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, is(context.DeadlineExceeded)},
		"half a page, then nothing": {
			func(w http.ResponseWriter, r *http.Request) {
				_, _ = w.Write([]byte(load))
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			},
			is(context.DeadlineExceeded),
		},
		"a byte at a time": {
			func(w http.ResponseWriter, r *http.Request) {
				for i := 0; r.Context().Err() == nil; i++ {
					_, _ = w.Write([]byte(load)[i%len(load):][:1])
					_ = http.NewResponseController(w).Flush()
					time.Sleep(10 * time.Millisecond)
				}
			},
			is(context.DeadlineExceeded),
		},
		"a connection closed within the page": {
			func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Length", "100000")
				_, _ = w.Write([]byte(load))
				panic(http.ErrAbortHandler)
			},
			something,
		},
		"a status line without headers":               {bare(false), is(ErrNoEngine)},
		"a status line without headers, then nothing": {bare(true), is(context.DeadlineExceeded)},
		"a connection closed at once":                 {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, something},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var well atomic.Bool
			server := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if well.Load() {
					answer(load)(w, r)
				} else {
					test.bad(w, r)
				}
			})
			sink := newRecorder()
			s := newScraper(t, quick(), sink)
			set(t, s, server.URL)
			e := sink.await(t, "a second failure", func(e event) bool { return e.n == 2 })
			if !test.want(e.err) {
				t.Errorf("error is %v", e.err)
			}
			if readings := slices.DeleteFunc(sink.all(), isFailure); len(readings) > 0 {
				t.Errorf("there is a reading: %+v", readings[0].reading)
			}
			well.Store(true)
			sink.await(t, "a reading", isReading)
		})
	}
}

func TestScrapeUnreachable(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()
	sink := newRecorder()
	s := newScraper(t, quick(), sink)
	set(t, s, "http://"+address)
	sink.await(t, "a third failure", func(e event) bool { return e.n == 3 })
}

// TestScrapeHugePage serves an endless page: its beginning is read, and the rest is not waited for.
func TestScrapeHugePage(t *testing.T) {
	var sent atomic.Int64
	noise := []byte(strings.Repeat("vllm:e2e_request_latency_seconds_bucket{le=\"1\"} 1\n", 1000))
	server := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := w.Write([]byte(load))
		for err == nil && r.Context().Err() == nil {
			var n int
			n, err = w.Write(noise)
			sent.Add(int64(n))
		}
	})
	sink := newRecorder()
	options := quick()
	options.Timeout = 10 * time.Second
	s := newScraper(t, options, sink)
	set(t, s, server.URL)
	e := sink.await(t, "anything", func(event) bool { return true })
	if e.err != nil || e.reading.Running != 3 {
		t.Errorf("got %+v", e)
	}
	if got := sent.Load(); got < MaxPage/2 {
		t.Errorf("only %d bytes were sent", got)
	}
}

func TestReadPageCutsAtALine(t *testing.T) {
	read := func(page string) []byte {
		t.Helper()
		room, err := newRoom(t.Context(), newTenant(newShared(1)), 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readPage(strings.NewReader(page), &room)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	line := "vllm:num_requests_running 123456789\n"
	if got, want := len(read(strings.Repeat(line, MaxPage/len(line)+10))), MaxPage/len(line)*len(line); got != want {
		t.Errorf("%d bytes, want %d", got, want)
	}
	if got := len(read(strings.Repeat("x", 2*MaxPage))); got != 0 {
		t.Errorf("a line without end gives %d bytes", got)
	}
	for _, size := range pageSizes[:2] {
		for n := size - 1; n <= size+1; n++ {
			if got := len(read(strings.Repeat("x", n))); got != n {
				t.Errorf("%d bytes of %d", got, n)
			}
		}
	}
}

// Pages that come slowly delay no other page, however many pages may be parsed at a time, and end with a failure.
func TestDrippingPagesHoldUpNobody(t *testing.T) {
	for name, begin := range map[string]string{
		"with nothing yet":   "",
		"in an ordinary one": load,
		"in a large one":     strings.Repeat("# HELP\n", pageSizes[1]/7+1),
	} {
		t.Run(name, func(t *testing.T) {
			dripping := make(chan struct{}, 1)
			drip := serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = w.Write([]byte(begin))
				for {
					if http.NewResponseController(w).Flush() != nil {
						return
					}
					select {
					case dripping <- struct{}{}:
					default:
					}
					select {
					case <-r.Context().Done():
						return
					case <-time.After(50 * time.Millisecond):
						_, _ = w.Write([]byte("#"))
					}
				}
			})
			well := serve(t, answer(load))
			options := quick()
			options.Concurrency = 1
			options.Timeout = time.Minute
			sink := newRecorder()
			s := newScraper(t, options, sink)
			set(t, s, drip.URL, well.URL)
			<-dripping
			start, readings := time.Now(), 0
			sink.await(t, "many readings beside the drip", func(e event) bool {
				if e.endpoint == endpoint(0) {
					t.Fatalf("the dripping page has ended with %v, which proves nothing of others", e.err)
				}
				if e.err == nil && e.at.After(start) {
					readings++
				}
				return readings == 10
			})
		})
	}
	t.Run("told", func(t *testing.T) {
		drip := serve(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte("#"))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(time.Millisecond)
			}
		})
		options := quick()
		options.Timeout = 50 * time.Millisecond
		sink := newRecorder()
		set(t, newScraper(t, options, sink), drip.URL)
		sink.await(t, "the failure", func(e event) bool { return errors.Is(e.err, context.DeadlineExceeded) })
	})
}

func TestTargetsComeAndGo(t *testing.T) {
	server := serve(t, answer(load))
	sink := newRecorder()
	before := runtime.NumGoroutine()
	s := newScraper(t, quick(), sink)
	for round := range 20 {
		urls := make([]string, 1+round%5)
		for i := range urls {
			urls[i] = server.URL + fmt.Sprint("/", round)
		}
		set(t, s, urls...)
		last := endpoint(len(urls) - 1)
		start := time.Now()
		sink.await(t, "a reading of the newest", func(e event) bool { return e.endpoint == last && e.err == nil && e.at.After(start) })
	}
	update(t, s, nil)
	awaitGoroutines(t, before)

	set(t, s, server.URL)
	sink.await(t, "a reading of the first", func(e event) bool { return e.err == nil })
	s.Close()
	n := len(sink.all())
	set(t, s, server.URL, server.URL)
	time.Sleep(50 * time.Millisecond)
	if got := len(sink.all()); got != n {
		t.Errorf("%d events after Close", got-n)
	}
	awaitGoroutines(t, before)
}

// awaitGoroutines waits until connections are closed on both sides, which only the number of goroutines shows.
func awaitGoroutines(t *testing.T, most int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > most; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			buffer := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, want at most %d:\n%s", runtime.NumGoroutine(), most, buffer[:runtime.Stack(buffer, true)])
		}
	}
}

func TestUpdateChangesATarget(t *testing.T) {
	one, other := serve(t, answer(load)), serve(t, answer("sglang:num_running_reqs 1\nsglang:num_queue_reqs 0\nsglang:token_usage 0\n"))
	sink := newRecorder()
	s := newScraper(t, quick(), sink)
	set(t, s, one.URL)
	sink.await(t, "a reading of the one", func(e event) bool { return e.reading.Engine == VLLM })
	set(t, s, other.URL)
	sink.await(t, "a reading of the other", func(e event) bool { return e.reading.Engine == SGLang })
	update(t, s, map[netip.AddrPort]Target{endpoint(0): {URL: other.URL, Engine: VLLM}})
	sink.await(t, "no engine of that name", func(e event) bool { return errors.Is(e.err, ErrNoEngine) })
}

func TestUpdateRefusesURLs(t *testing.T) {
	server := serve(t, answer(load))
	sink := newRecorder()
	s := newScraper(t, quick(), sink)
	err := s.Update(map[netip.AddrPort]Target{
		endpoint(0): {URL: "ftp://10.0.0.1/metrics"},
		endpoint(1): {URL: "http://10.0.0.1:port/metrics"},
		endpoint(2): {URL: ""},
		endpoint(3): {URL: server.URL},
	}, nil)
	for i := range 3 {
		if err == nil || !strings.Contains(err.Error(), endpoint(i).String()) {
			t.Errorf("error does not tell of %s: %v", endpoint(i), err)
		}
	}
	sink.await(t, "a reading of the usable one", func(e event) bool { return e.endpoint == endpoint(3) && e.err == nil })
}

func TestOptions(t *testing.T) {
	if err := DefaultOptions().Validate(); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	err := Options{MaxInterval: -1}.Validate()
	for _, want := range []string{"shortest", "longest", "rate", "timeout", "concurrency"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing of the %s in: %v", want, err)
		}
	}
	for n, want := range map[int]time.Duration{
		0: 50 * time.Millisecond, 1: 50 * time.Millisecond, 32: 50 * time.Millisecond,
		100: 156250 * time.Microsecond, 1000: 1562500 * time.Microsecond, 1e9: 5 * time.Second,
	} {
		if got := DefaultOptions().Interval(n); got != want {
			t.Errorf("interval of %d endpoints is %v, want %v", n, got, want)
		}
	}
}

// bubbleServer serves connections that are made of pipes, for tests in which time is not real.
type bubbleServer struct {
	conns chan net.Conn
	done  chan struct{}
	http  http.Server
}

func newBubbleServer(t *testing.T, s *Scraper, handler http.HandlerFunc) {
	b := &bubbleServer{conns: make(chan net.Conn), done: make(chan struct{}), http: http.Server{Handler: handler}}
	s.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		client, server := net.Pipe()
		select {
		case b.conns <- server:
			return client, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	go func() { _ = b.http.Serve(b) }()
	t.Cleanup(func() {
		s.Close()
		_ = b.http.Shutdown(context.Background()) // waits for handlers, which Close does not
	})
}

func (b *bubbleServer) Accept() (net.Conn, error) {
	select {
	case c := <-b.conns:
		return c, nil
	case <-b.done:
		return nil, net.ErrClosed
	}
}

func (b *bubbleServer) Close() error {
	close(b.done)
	return nil
}

func (b *bubbleServer) Addr() net.Addr { return &net.TCPAddr{} }

func bubbleURLs(n int) []string {
	urls := make([]string, n)
	for i := range urls {
		urls[i] = fmt.Sprintf("http://10.0.0.%d:8000/metrics", i)
	}
	return urls
}

// gaps returns the times from each scrape of an endpoint to the next.
func gaps(events []event) []time.Duration {
	var out []time.Duration
	for i := 1; i < len(events); i++ {
		out = append(out, events[i].at.Sub(events[i-1].at))
	}
	return out
}

func TestIntervalFollowsTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, answer(load))
		start := time.Now()
		for _, n := range []int{8, 128, 8} {
			began := time.Now()
			set(t, s, bubbleURLs(n)...)
			time.Sleep(10 * time.Second)
			interval := s.options.Interval(n)
			for i := range n {
				events := slices.DeleteFunc(sink.of(endpoint(i)), func(e event) bool { return e.at.Before(began) })
				// The first gap is of the interval before, or a part of one: new endpoints are spread.
				steady := gaps(events)[1:]
				if slices.Max(steady)-slices.Min(steady) < interval/20 {
					t.Fatalf("%d endpoints: all gaps are about %v, and could fall into step", n, steady[0])
				}
				for _, gap := range steady {
					if gap < interval*9/10 || gap > interval*11/10+1 {
						t.Fatalf("%d endpoints: gap of %v, want %v", n, gap, interval)
					}
				}
				if first := events[0].at.Sub(began); i >= 8 && first > s.options.MinInterval {
					t.Errorf("endpoint %d was first read after %v", i, first)
				}
				if want := int(10 * time.Second / interval); len(events) < want*9/10 || len(events) > want*11/10+2 {
					t.Errorf("%d endpoints: %d scrapes of one, want %d", n, len(events), want)
				}
			}
		}
		if events := sink.of(endpoint(100)); events[len(events)-1].at.After(start.Add(20 * time.Second)) {
			t.Error("an endpoint that went was scraped later")
		}
	})
}

// A zero interval, which no options give, would end the picker if a random part of it were asked for.
func TestDelayOfNothing(t *testing.T) {
	s := newScraper(t, DefaultOptions(), newRecorder())
	unset := &target{scraper: s, tenant: newTenant(s.shared)}
	if got := unset.delay(true); got != 0 {
		t.Errorf("with an interval of nothing the delay is %v", got)
	}
}

// TestIntervalFollowsThePace tries paces below the tenant's interval, above it, and above MaxInterval.
func TestIntervalFollowsThePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, answer(load))
		set(t, s, bubbleURLs(1)...)
		for _, test := range []struct{ pace, want time.Duration }{
			{time.Millisecond, 50 * time.Millisecond},
			{400 * time.Millisecond, 400 * time.Millisecond},
			{time.Hour, 5 * time.Second},
			{0, 50 * time.Millisecond},
		} {
			sink.pace.Store(int64(test.pace))
			began := time.Now()
			time.Sleep(time.Minute)
			steady := gaps(slices.DeleteFunc(sink.all(), func(e event) bool { return e.at.Before(began.Add(10 * time.Second)) }))
			if mean := 50 * time.Second / time.Duration(len(steady)+1); mean < test.want*85/100 || mean > test.want*115/100 {
				t.Errorf("at a pace of %v the endpoint is read every %v, want %v", test.pace, mean, test.want)
			}
		}
	})
}

// TestScrapesDoNotBunch adds many endpoints at once: already their second scrapes are spread over the interval.
func TestScrapesDoNotBunch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, answer(load))
		start := time.Now()
		set(t, s, bubbleURLs(250)...) // every 390 ms
		time.Sleep(700 * time.Millisecond)
		perSlot := map[time.Duration]int{}
		for _, e := range sink.all() {
			if since := e.at.Sub(start); since > s.options.MinInterval {
				perSlot[since/(10*time.Millisecond)]++
			}
		}
		for slot, n := range perSlot {
			// 6.4 are to be expected, and more than 25 once in 10^8 slots; unspread, it would be 50.
			if n > 25 {
				t.Errorf("%d scrapes within the 10 ms from %v", n, slot*10*time.Millisecond)
			}
		}
	})
}

func TestFailingEndpointsAreAskedLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bad atomic.Bool
		bad.Store(true)
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, func(w http.ResponseWriter, r *http.Request) {
			if bad.Load() {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			answer(load)(w, r)
		})
		set(t, s, bubbleURLs(1)...)
		time.Sleep(time.Minute)
		events := sink.all()
		for i, gap := range gaps(events)[1:] {
			want := min(50*time.Millisecond<<(i+2), 5*time.Second)
			if gap < want*9/10 || gap > want*11/10+1 {
				t.Errorf("%d failures: gap of %v, want %v", i+2, gap, want)
			}
		}
		if n := len(events); events[n-1].n != n {
			t.Errorf("the last of %d failures is the %d-th", n, events[n-1].n)
		}
		bad.Store(false)
		time.Sleep(6 * time.Second)
		events = sink.all()
		last := gaps(events)[len(events)-2]
		if events[len(events)-1].err != nil || last > 55*time.Millisecond+1 {
			t.Errorf("after recovery: %+v, gap of %v", events[len(events)-1], last)
		}
	})
}

// TestTimeout scrapes a server that never answers, and checks the time that it takes.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		start := time.Now()
		set(t, s, bubbleURLs(1)...)
		time.Sleep(1100 * time.Millisecond)
		events := sink.all()
		if len(events) != 1 || !errors.Is(events[0].err, context.DeadlineExceeded) {
			t.Fatalf("events are %+v", events)
		}
		if took := events[0].at.Sub(start); took < time.Second || took > 1050*time.Millisecond {
			t.Errorf("gave up after %v", took)
		}
	})
}

// TestTargetsThatGoAreNotFailures removes an endpoint while it is being scraped.
func TestTargetsThatGoAreNotFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		set(t, s, bubbleURLs(1)...)
		time.Sleep(500 * time.Millisecond)
		set(t, s)
		time.Sleep(5 * time.Second)
		if events := sink.all(); len(events) > 0 {
			t.Errorf("events are %+v", events)
		}
	})
}

// TestReadingsAreAsOldAsTheQuestion scrapes a slow server: the reading's age counts from the request.
func TestReadingsAreAsOldAsTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newRecorder()
		s := newScraper(t, DefaultOptions(), sink)
		newBubbleServer(t, s, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(700 * time.Millisecond)
			answer(load)(w, r)
		})
		set(t, s, bubbleURLs(1)...)
		time.Sleep(3 * time.Second)
		events := sink.all()
		if age := events[0].reading.Age(events[0].at); age != 700*time.Millisecond {
			t.Errorf("age is %v, want 700ms", age)
		}
		for _, gap := range gaps(events) {
			if gap != 700*time.Millisecond {
				t.Errorf("gap of %v: after an answer that took longer than the interval, the next question comes at once", gap)
			}
		}
	})
}
