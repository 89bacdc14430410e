package poolstate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

func addressOf(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// Each endpoint's capacity in the index is the cache capacity that the endpoint reports.
func TestCapacityIsLearned(t *testing.T) {
	p, clock := poolOf(t, numbered(1)...)
	e := "10.0.0.1:8000"
	fill := func() (cached int) {
		for conversation := range uint64(4) {
			r, _ := pick(t, p, prompt(conversation, 100))
			clock.now += time.Minute
			r.Release(Answered)
		}
		for conversation := range uint64(4) {
			cached += (heldAt(t, p, prompt(conversation, 100), e) + 63) / 64
		}
		return cached
	}
	if got := fill(); got != 400 {
		t.Errorf("%d blocks cached of 400 with the assumed capacity, want all", got)
	}
	p.Observe(addressOf(e), modelmetrics.Reading{CapacityTokens: 64 * 150}, 0)
	if got := fill(); got != 150 {
		t.Errorf("%d blocks cached of 400 with room for 150", got)
	}
	p.Observe(addressOf(e), modelmetrics.Reading{}, 0) // does not tell: what is known stays
	if got := fill(); got != 150 {
		t.Errorf("%d blocks cached after a reading that does not tell, want 150", got)
	}
}

func TestRestartForgets(t *testing.T) {
	p, clock := poolOf(t, numbered(2)...)
	r, home := pick(t, p, prompt(1, 50))
	r.Release(Answered)
	tell := func(restarts int) {
		clock.now += time.Second
		p.Observe(addressOf(home), modelmetrics.Reading{Restarts: restarts}, 0)
	}
	cached := func() int { return heldAt(t, p, prompt(1, 50), home) }
	tell(3) // the first reading: the count has begun before we knew it
	if cached() == 0 {
		t.Error("the first reading made the picker forget the prompt")
	}
	tell(3)
	if cached() == 0 {
		t.Error("a reading without a restart made the picker forget the prompt")
	}
	tell(4)
	if got := cached(); got != 0 {
		t.Errorf("%d tokens are taken to be cached after a restart", got)
	}
}

// A restart is read while calls are in flight. What those calls bring to the new server is remembered when they end there.
func TestRestartLeavesCallsInFlight(t *testing.T) {
	for outcome, want := range map[Outcome]int{Answered: 50*64 - 1, Failed: 0, Shed: 0} {
		p, clock := poolOf(t, numbered(1)...)
		home := numbered(1)[0].Address
		p.Observe(home, modelmetrics.Reading{}, 0)
		clock.now += time.Minute
		r, on := pick(t, p, prompt(1, 50))
		clock.now += time.Second
		p.Observe(home, modelmetrics.Reading{Restarts: 1}, 0)
		clock.now += time.Minute
		r.Release(outcome)
		if got := heldAt(t, p, prompt(1, 50), on); got != want {
			t.Errorf("after outcome %v %d tokens are taken to be cached, want %d", outcome, got, want)
		}
	}
}

// The picker learns speeds from servers' counters, also of servers to which it sends no calls.
func TestSpeedIsReadFromCounters(t *testing.T) {
	p, clock := poolOf(t, numbered(2)...)
	for n := range int64(60) {
		clock.now += time.Second
		for _, e := range numbered(2) {
			// Each second a call of 3,000 tokens, 1,000 of them cached, with its first token after 100 ms: 20,000 a second.
			p.Observe(e.Address, modelmetrics.Reading{
				At: time.Unix(n+1, 0), MaxLoRA: 2, Waiting: 1, WaitingSplit: true, PromptTokens: 3000 * n, CacheHits: 1000 * n, FirstTokens: n, FirstTokenSeconds: 0.1 * float64(n),
			}, 0)
		}
	}
	_, _ = pick(t, p, prompt(1, 1)) // takes the pool's mean
	for _, e := range p.Snapshot().Endpoints {
		if got := e.Rate; got < 18_000 || got > 22_000 {
			t.Errorf("endpoint %s is taken to prefill %v tokens a second, want about 20,000", e.Address, got)
		}
	}
}

// Readings show load that came from elsewhere. A reading of an endpoint that is not in the pool is dropped.
func TestReadingsSteer(t *testing.T) {
	p, _ := poolOf(t, numbered(3)...)
	p.Observe(addressOf("10.0.0.1:8000"), modelmetrics.Reading{Running: 50}, 0)
	p.Observe(addressOf("10.0.0.2:8000"), modelmetrics.Reading{Running: 40}, 0)
	p.Observe(addressOf("[::ffff:10.0.0.3]:8000"), modelmetrics.Reading{Running: 2}, 0)
	p.Observe(addressOf("10.9.9.9:1"), modelmetrics.Reading{Running: 2}, 0)
	for i := range uint64(20) {
		if r, e := pick(t, p, prompt(i, 2)); e != "10.0.0.3:8000" {
			t.Fatalf("call %d goes to %s, want the one with the fewest calls", i, e)
		} else {
			r.Release(Answered)
		}
	}
}

// realReading reads a page that a real vLLM wrote.
func realReading(t *testing.T, page string) modelmetrics.Reading {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "modelmetrics", "testdata", "vllm-0.32.0", page))
	if err != nil {
		t.Fatal(err)
	}
	r, err := modelmetrics.NewParser(modelmetrics.VLLM).Parse(text, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// At a server that defers calls for want of an adapter slot, calls to the base model run past them, and a call for
// another adapter would wait.
func TestRealServerThatDefersCalls(t *testing.T) {
	const crowded, idle = "10.0.0.1:8000", "10.0.0.2:8000"
	p, clock := poolOf(t, numbered(2)...)
	adapters := modelmetrics.Reading{MaxLoRA: 2, WaitingAdapters: []string{"chat", "third"}}
	p.Observe(addressOf(crowded), adapters, 0)
	pickAt(t, p, crowded, prompt(1, 20)).Release(Answered)
	for i := range uint64(2) {
		facts := prompt(10+i, 200)
		facts.Model = "chat"
		pickAt(t, p, crowded, facts)
	}
	clock.now += time.Second
	p.Observe(addressOf(crowded), realReading(t, "metrics-lora-deferred.txt"), 0)
	p.Observe(addressOf(idle), realReading(t, "metrics-idle.txt"), 0)
	if got := p.queue(crowded); got > 1 {
		t.Errorf("%v tokens are taken to wait ahead of a call to the base model", got)
	}
	if _, e := pick(t, p, prompt(1, 21)); e != crowded {
		t.Errorf("a call to the base model avoids the server that has its prefix, and goes to %s", e)
	}
	for _, model := range []string{"third", "chat"} {
		facts := prompt(20, 1)
		facts.Model = model
		if _, e := pick(t, p, facts); e != idle {
			t.Errorf("a call for %s goes to %s, where it waits for a slot", model, e)
		}
	}
}

// With the real scraper and a real page, all pools of the endpoint have the reading within moments.
func TestFleetIsReadByTheScraper(t *testing.T) {
	var busy atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "vllm:num_requests_running{engine=\"0\"} %d\nvllm:num_requests_waiting{engine=\"0\"} 0\nvllm:kv_cache_usage_perc{engine=\"0\"} 0.1\n", busy.Load())
	}))
	defer server.Close()
	busy.Store(7)
	f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
	scraper, err := modelmetrics.New(modelmetrics.DefaultOptions(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer scraper.Close()
	f.ReadBy(scraper)
	endpoint := addressOf(strings.TrimPrefix(server.URL, "http://"))
	for _, name := range []string{"llama", "qwen"} {
		name := types.NamespacedName{Namespace: "models", Name: name}
		f.SetPool(pool.Pool{Name: name}, []pool.Endpoint{{Address: endpoint}})
		eventually(t, "the reading in "+name.Name, func() bool {
			why, err := f.Pool(name).Rank(&Call{Facts: &request.Facts{}})
			return err == nil && why.Ranking[0].Calls == 7 && !math.IsInf(why.Ranking[0].ReadingAge, 0)
		})
	}
}

// targets is a scraper that only records its targets.
type targets struct {
	set map[netip.AddrPort]modelmetrics.Target
	err error
}

func (s *targets) Update(t map[netip.AddrPort]modelmetrics.Target, gone []netip.AddrPort) error {
	if s.set == nil {
		s.set = map[netip.AddrPort]modelmetrics.Target{}
	}
	maps.Copy(s.set, t)
	for _, e := range gone {
		delete(s.set, e)
	}
	return s.err
}

// If two pools want a common endpoint scraped differently, the first by name decides, whichever came first. The other
// decides once the first has left.
func TestFirstPoolDecidesHowACommonEndpointIsRead(t *testing.T) {
	path := func(p string) picksettings.Settings {
		s := picksettings.Defaults()
		s.MetricsPath = p
		return s
	}
	a, b := types.NamespacedName{Namespace: "models", Name: "a"}, types.NamespacedName{Namespace: "models", Name: "b"}
	for name, order := range map[string][]types.NamespacedName{"first by name comes first": {a, b}, "first by name comes last": {b, a}} {
		t.Run(name, func(t *testing.T) {
			f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
			scraper := &targets{}
			f.ReadBy(scraper)
			for _, name := range order {
				f.Configure(name, path("/"+name.Name))
				f.SetPool(pool.Pool{Name: name}, numbered(1))
			}
			check := func(want string) {
				t.Helper()
				if got := scraper.set[addressOf("10.0.0.1:8000")].URL; got != want {
					t.Errorf("it is read at %q, want %q", got, want)
				}
			}
			check("http://10.0.0.1:8000/a")
			f.Configure(a, path("/other"))
			check("http://10.0.0.1:8000/other")
			f.SetPool(pool.Pool{Name: a}, nil)
			check("http://10.0.0.1:8000/b")
			f.RemovePool(b)
			check("")
		})
	}
}

// BenchmarkPoolsAtStart adds all pools of a cluster, each with 10 endpoints, while a scraper gets their targets.
func BenchmarkPoolsAtStart(b *testing.B) {
	for _, pools := range []int{100, 1000} {
		b.Run(fmt.Sprint("pools=", pools), func(b *testing.B) {
			for b.Loop() {
				f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
				f.ReadBy(&targets{})
				for n := range pools {
					name := types.NamespacedName{Namespace: "models", Name: fmt.Sprint(n)}
					f.Configure(name, picksettings.Defaults())
					f.SetPool(pool.Pool{Name: name}, tenOf(n))
				}
			}
		})
	}
}

// BenchmarkPodEvent removes one of the 10 endpoints of one of 1,000 pools and adds it again.
func BenchmarkPodEvent(b *testing.B) {
	f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry())})
	f.ReadBy(&targets{})
	names := make([]types.NamespacedName, 1000)
	for n := range names {
		names[n] = types.NamespacedName{Namespace: "models", Name: fmt.Sprint(n)}
		f.SetPool(pool.Pool{Name: names[n]}, tenOf(n))
	}
	all := tenOf(7)
	for b.Loop() {
		f.SetPool(pool.Pool{Name: names[7]}, all[1:])
		f.SetPool(pool.Pool{Name: names[7]}, all)
	}
}

// tenOf are the 10 endpoints of the n-th pool.
func tenOf(n int) []pool.Endpoint {
	out := make([]pool.Endpoint, 10)
	for i := range out {
		address := netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), byte(i)})
		out[i] = pool.Endpoint{Pod: fmt.Sprint(i), Address: netip.AddrPortFrom(address, 8000)}
	}
	return out
}

func TestScraperIsToldOfEndpoints(t *testing.T) {
	var log lockedBuffer
	f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.NewTextHandler(&log, nil))})
	f.SetPool(pool.Pool{Name: llama}, numbered(2))
	scraper := &targets{err: errors.New("one has no usable URL")}
	f.ReadBy(scraper)
	want := map[netip.AddrPort]modelmetrics.Target{
		addressOf("10.0.0.1:8000"): {URL: "http://10.0.0.1:8000/metrics", Tenant: llama.Namespace},
		addressOf("10.0.0.2:8000"): {URL: "http://10.0.0.2:8000/metrics", Tenant: llama.Namespace},
	}
	if diff := cmp.Diff(want, scraper.set, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("endpoints at first (-want +got):\n%s", diff)
	}
	settings := picksettings.Defaults()
	settings.MetricsPath, settings.Engine = "/m", "sglang"
	f.Configure(llama, settings)
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	want = map[netip.AddrPort]modelmetrics.Target{addressOf("10.0.0.1:8000"): {URL: "http://10.0.0.1:8000/m", Engine: modelmetrics.SGLang, Tenant: llama.Namespace}}
	if diff := cmp.Diff(want, scraper.set, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("endpoints after a change (-want +got):\n%s", diff)
	}
	f.RemovePool(llama)
	if len(scraper.set) != 0 {
		t.Errorf("endpoints after the pool's removal: %v", scraper.set)
	}
	if !strings.Contains(log.String(), "no usable URL") {
		t.Errorf("the log does not tell of what cannot be read: %s", log.String())
	}
	// A scrape that fails again and again is logged once.
	for n := range 20 {
		f.ScrapeFailed(addressOf("10.0.0.1:8000"), n+1, context.DeadlineExceeded)
	}
	if n := strings.Count(log.String(), "cannot be read; it"); n != 1 {
		t.Errorf("an endpoint that cannot be read is told %d times, want once", n)
	}
}

// lockedBuffer is a buffer for a writer and a reader at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// The engine annotation allows exactly the engines whose metrics can be read.
func TestEnginesOfSettingsAreKnown(t *testing.T) {
	var known []string
	for e := modelmetrics.VLLM; ; e++ {
		name := e.String()
		if parsed, err := modelmetrics.ParseEngine(name); err != nil || parsed != e {
			break
		}
		known = append(known, name)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(known)), slices.Sorted(slices.Values(picksettings.Engines))); diff != "" {
		t.Errorf("engines (-that can be read +that can be named):\n%s", diff)
	}
}

// The tokens that a server computed are those of the calls that have their first token, or none.
func TestPrefilledAtTheFirstToken(t *testing.T) {
	for name, tt := range map[string]struct {
		reading modelmetrics.Reading
		want    int64
	}{
		"vLLM":            {modelmetrics.Reading{Engine: modelmetrics.VLLM, PromptTokens: 100, CacheHits: 60, ComputedTokens: 30}, 30},
		"an older vLLM":   {modelmetrics.Reading{Engine: modelmetrics.VLLM, PromptTokens: 100, CacheHits: 60}, 40},
		"SGLang":          {modelmetrics.Reading{Engine: modelmetrics.SGLang, PromptTokens: 100, CacheHits: 60, ComputedTokens: 50}, 50},
		"an older SGLang": {modelmetrics.Reading{Engine: modelmetrics.SGLang, PromptTokens: 100, CacheHits: 60}, 0},
		"trtllm-serve":    {modelmetrics.Reading{Engine: modelmetrics.TRTLLMServe, PromptTokens: 100, CacheHits: 60}, 0},
	} {
		if got := prefilled(&tt.reading); got != tt.want {
			t.Errorf("%s: %d tokens, want %d", name, got, tt.want)
		}
	}
}
