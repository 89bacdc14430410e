package poolstate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

var llama = named("models/llama")

func named(text string) types.NamespacedName {
	name, _ := pool.ParseName(text)
	return name
}

// testClock is a clock that stands still unless it is moved.
type testClock struct{ now time.Duration }

func newFleet(t testing.TB) (*Fleet, *testClock) {
	t.Helper()
	clock := &testClock{}
	return New(Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()),
		Seed:    1,
		Clock:   func() time.Duration { return clock.now },
	}), clock
}

func endpointsOf(addresses ...string) []pool.Endpoint {
	var out []pool.Endpoint
	for _, a := range addresses {
		out = append(out, pool.Endpoint{Address: netip.MustParseAddrPort(a)})
	}
	return out
}

// numbered makes n endpoints 10.0.0.1:8000, 10.0.0.2:8000 and so on.
func numbered(n int) []pool.Endpoint {
	var out []pool.Endpoint
	for i := range n {
		out = append(out, pool.Endpoint{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)}), 8000)})
	}
	return out
}

func poolOf(t testing.TB, endpoints ...pool.Endpoint) (*Pool, *testClock) {
	t.Helper()
	f, clock := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, endpoints)
	return f.Pool(llama), clock
}

// prompt makes the facts of a prompt of so many whole blocks; prompts of other seeds share nothing with it, and a
// longer one of the same seed continues it.
func prompt(seed uint64, blocks int) *request.Facts {
	f := &request.Facts{PromptBytes: blocks * request.BlockBytes}
	for i := range blocks {
		f.Blocks = append(f.Blocks, seed<<32|uint64(i+1))
	}
	return f
}

// pick picks without a subset and returns the reservation and its first choice.
func pick(t testing.TB, p *Pool, facts *request.Facts) (*Reservation, string) {
	t.Helper()
	r := &Reservation{}
	if _, err := p.Pick(&Call{Facts: facts}, r); err != nil {
		t.Fatalf("pick: %v", err)
	}
	first, _, _ := strings.Cut(string(r.Endpoints(nil)), ",")
	return r, first
}

func (p *Pool) requests(addr string) int {
	n, ok := p.byAddr[netip.MustParseAddrPort(addr)]
	if !ok {
		return -1
	}
	return p.choice.InFlight(n)
}

func (p *Pool) queue(addr string) float64 {
	return p.choice.Queue(p.byAddr[netip.MustParseAddrPort(addr)], p.clock())
}

func TestPickRefuses(t *testing.T) {
	tests := map[string]struct {
		endpoints []pool.Endpoint
		subset    Subset
		want      refusal.Reason
	}{
		"no endpoint":               {want: refusal.NoEndpoints},
		"no endpoint, and a subset": {subset: Subset{Given: true}, want: refusal.NoEndpoints},
		"an empty subset":           {endpoints: numbered(2), subset: Subset{Given: true}, want: refusal.NotInSubset},
		"a subset of other endpoints": {
			endpoints: numbered(2),
			subset:    Subset{Given: true, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.9:8000")}},
			want:      refusal.NotInSubset,
		},
		"a subset of the right address and another port": {
			endpoints: numbered(2),
			subset:    Subset{Given: true, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:8001")}},
			want:      refusal.NotInSubset,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, _ := poolOf(t, tt.endpoints...)
			r := &Reservation{}
			_, err := p.Pick(&Call{Facts: prompt(1, 4), Subset: tt.subset}, r)
			if err == nil {
				t.Fatal("picked, want a refusal")
			}
			got := refusal.Of(err)
			if got.Reason != tt.want || !strings.Contains(got.Message, "models/llama") {
				t.Errorf("refused as %s: %q; want %s, with the pool's name", got.Reason, got.Message, tt.want)
			}
			if r.Held() {
				t.Error("a refused call holds a reservation")
			}
		})
	}
}

func TestPickHoldsToSubset(t *testing.T) {
	endpoints := endpointsOf("10.0.0.1:8000", "10.0.0.1:8001", "10.0.0.2:8000", "[fd00::1]:8000", "[fd00::2]:8000")
	tests := map[string]struct {
		texts []string
		want  []string
	}{
		"one":                         {texts: []string{"10.0.0.2:8000"}, want: []string{"10.0.0.2:8000"}},
		"two, one of them twice":      {texts: []string{"10.0.0.2:8000", " 10.0.0.1:8001", "10.0.0.2:8000"}, want: []string{"10.0.0.1:8001", "10.0.0.2:8000"}},
		"IPv6":                        {texts: []string{"[fd00::1]:8000"}, want: []string{"[fd00::1]:8000"}},
		"all ports of an address":     {texts: []string{"10.0.0.1"}, want: []string{"10.0.0.1:8000", "10.0.0.1:8001"}},
		"IPv6 without port":           {texts: []string{"fd00::2"}, want: []string{"[fd00::2]:8000"}},
		"IPv6 in brackets, no port":   {texts: []string{"[fd00::2]"}, want: []string{"[fd00::2]:8000"}},
		"internal address":            {texts: []string{"envoy://connect_originate/10.0.0.2:8000"}, want: []string{"10.0.0.2:8000"}},
		"IPv4 written as IPv6":        {texts: []string{"[::ffff:10.0.0.2]:8000"}, want: []string{"10.0.0.2:8000"}},
		"what is not understood, too": {texts: []string{"", "model-server:8000", "10.0.0.2:8000"}, want: []string{"10.0.0.2:8000"}},
		"one that is not in the pool": {texts: []string{"10.0.0.7:8000", "10.0.0.2:8000"}, want: []string{"10.0.0.2:8000"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, _ := poolOf(t, endpoints...)
			// The prompt is cached only at an endpoint that the subset does not allow.
			facts := prompt(1, 8)
			for range 3 {
				subset := Subset{Given: true}
				for _, text := range tt.texts {
					subset.Add(text)
				}
				r := &Reservation{}
				if _, err := p.Pick(&Call{Facts: facts, Subset: subset}, r); err != nil {
					t.Fatal(err)
				}
				got := strings.Split(string(r.Endpoints(nil)), ",")
				slices.Sort(got)
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Fatalf("endpoints (-want +got):\n%s", diff)
				}
				r.Release(Answered)
			}
		})
	}
}

func TestConversationStays(t *testing.T) {
	p, clock := poolOf(t, numbered(8)...)
	home := map[uint64]string{}
	for turn := 1; turn <= 5; turn++ {
		for conversation := range uint64(40) {
			r, got := pick(t, p, prompt(conversation, turn*3))
			if turn == 1 {
				home[conversation] = got
			}
			if got != home[conversation] {
				t.Fatalf("turn %d of conversation %d goes to %s, turn 1 went to %s", turn, conversation, got, home[conversation])
			}
			if want := (turn - 1) * 3 * 64; r.CachedTokens != want {
				t.Fatalf("turn %d: %d tokens cached, want %d", turn, r.CachedTokens, want)
			}
			clock.now += time.Second
			r.Release(Answered)
		}
	}
	spread := map[string]int{}
	for _, e := range home {
		spread[e]++
	}
	for e, n := range spread {
		if n > 12 {
			t.Errorf("%d of 40 conversations began at %s of 8 endpoints", n, e)
		}
	}
}

func TestFirstTurnsGoByLoad(t *testing.T) {
	p, _ := poolOf(t, numbered(8)...)
	count := map[string]int{}
	for conversation := range uint64(64) {
		_, e := pick(t, p, prompt(conversation, 10))
		count[e]++
	}
	for e, n := range count {
		if n != 8 {
			t.Errorf("%d of 64 equal calls in flight at %s, want 8", n, e)
		}
	}
}

// A burst of one prompt that nobody has cached: 64 calls come before the first ends.
func TestBurstNeitherHerdsNorScatters(t *testing.T) {
	for _, blocks := range []int{8, 32, 128, 1024} {
		t.Run(fmt.Sprintf("blocks=%d", blocks), func(t *testing.T) {
			p, _ := poolOf(t, numbered(8)...)
			var mu sync.Mutex
			count, cached := map[string]int{}, 0
			var all sync.WaitGroup
			for range 64 {
				all.Go(func() {
					r, e := pick(t, p, prompt(1, blocks))
					mu.Lock()
					defer mu.Unlock()
					count[e]++
					cached += r.CachedTokens
				})
			}
			all.Wait()
			for e, n := range count {
				if n > 16 {
					t.Errorf("%d of 64 calls herd on %s of 8 endpoints", n, e)
				}
			}
			// At best all but the first call find the prompt; each endpoint more has to prefill it once.
			if best := 63 * blocks * 64; cached*10 < best*8 {
				t.Errorf("%d prompt tokens cached of %d at best: the burst scatters", cached, best)
			}
		})
	}
}

func TestSmallBurstStaysTogether(t *testing.T) {
	p, _ := poolOf(t, numbered(8)...)
	used := map[string]bool{}
	for range 8 {
		_, e := pick(t, p, prompt(1, 128))
		used[e] = true
	}
	if len(used) != 1 {
		t.Errorf("8 calls with one prompt of 8,192 tokens went to %d endpoints, want 1", len(used))
	}
}

func TestReservationLifecycle(t *testing.T) {
	const a, b = "10.0.0.1:8000", "10.0.0.2:8000"
	type state struct {
		RequestsA, RequestsB int
		QueueA, QueueB       float64
	}
	tests := map[string]struct {
		do   func(r *Reservation, clock *testClock)
		want state
	}{
		"held":              {do: func(*Reservation, *testClock) {}, want: state{RequestsA: 1, QueueA: 640}},
		"answered":          {do: func(r *Reservation, _ *testClock) { r.Release(Answered) }},
		"abandoned":         {do: func(r *Reservation, _ *testClock) { r.Release(Abandoned) }},
		"released again":    {do: func(r *Reservation, _ *testClock) { r.Release(Answered); r.Release(Abandoned) }},
		"served as picked":  {do: func(r *Reservation, _ *testClock) { r.Served(netip.MustParseAddrPort(a)) }, want: state{RequestsA: 1, QueueA: 640}},
		"served by another": {do: func(r *Reservation, _ *testClock) { r.Served(netip.MustParseAddrPort(b)) }, want: state{RequestsB: 1, QueueB: 640}},
		"served by another that has most of it cached": {
			do: func(r *Reservation, _ *testClock) {
				r.pool.index.Insert(int(r.pool.byAddr[netip.MustParseAddrPort(b)]), prompt(1, 8).Blocks)
				r.Served(netip.MustParseAddrPort(b))
			}, want: state{RequestsB: 1, QueueB: 128},
		},
		"served by another, then back": {
			do: func(r *Reservation, _ *testClock) {
				r.Served(netip.MustParseAddrPort(b))
				r.Served(netip.MustParseAddrPort(a))
			}, want: state{RequestsA: 1, QueueA: 640},
		},
		"served by another, released": {
			do: func(r *Reservation, _ *testClock) { r.Served(netip.MustParseAddrPort(b)); r.Release(Answered) },
		},
		"served by a stranger": {do: func(r *Reservation, _ *testClock) { r.Served(netip.MustParseAddrPort("10.9.9.9:1")) }},
		"served after release": {do: func(r *Reservation, _ *testClock) { r.Release(Answered); r.Served(netip.MustParseAddrPort(b)) }},
		"the queue drains":     {do: func(_ *Reservation, c *testClock) { c.now += time.Minute }, want: state{RequestsA: 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, clock := poolOf(t, numbered(2)...)
			r := &Reservation{}
			subset := Subset{Given: true}
			subset.Add(a)
			if _, err := p.Pick(&Call{Facts: prompt(1, 10), Subset: subset}, r); err != nil {
				t.Fatal(err)
			}
			tt.do(r, clock)
			got := state{p.requests(a), p.requests(b), p.queue(a), p.queue(b)}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("state (-want +got):\n%s", diff)
			}
		})
	}
}

// pickAt picks with a subset of one endpoint.
func pickAt(t testing.TB, p *Pool, addr string, facts *request.Facts) *Reservation {
	t.Helper()
	only, r := Subset{Given: true}, &Reservation{}
	only.Add(addr)
	if _, err := p.Pick(&Call{Facts: facts, Subset: only}, r); err != nil {
		t.Fatal(err)
	}
	return r
}

// heldAt returns how many tokens of a prompt the pool takes an endpoint to have cached.
func heldAt(t *testing.T, p *Pool, facts *request.Facts, addr string) int {
	t.Helper()
	only := Subset{Given: true}
	only.Add(addr)
	why, err := p.Rank(&Call{Facts: facts, Subset: only})
	if err != nil {
		t.Fatal(err)
	}
	return why.Ranking[0].CachedTokens
}

// An endpoint is taken to have cached the prompts that it has prefilled or is about to.
func TestWhoHoldsThePrompt(t *testing.T) {
	const a, b = "10.0.0.1:8000", "10.0.0.2:8000"
	served := func(r *Reservation, addr string) { r.Served(netip.MustParseAddrPort(addr)) }
	at := pickAt
	long, short := prompt(1, 50), prompt(1, 20)
	const all = 50*64 - 1
	tests := map[string]struct {
		do           func(t *testing.T, p *Pool, clock *testClock)
		wantA, wantB int // tokens
	}{
		"picked":          {do: func(t *testing.T, p *Pool, _ *testClock) { at(t, p, a, long) }, wantA: all},
		"answered":        {do: func(t *testing.T, p *Pool, _ *testClock) { at(t, p, a, long).Release(Answered) }, wantA: all},
		"the caller left": {do: func(t *testing.T, p *Pool, _ *testClock) { at(t, p, a, long).Release(Abandoned) }},
		"the caller left after the prefill, while others generate for longer": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := at(t, p, b, prompt(9, 1))
			c.now += 10 * time.Second
			r.Release(Answered)
			r = at(t, p, a, long)
			c.now += time.Second
			r.Release(Abandoned)
		}, wantA: all},
		"the caller left an endpoint that may hang": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := at(t, p, a, long)
			c.now += 2 * time.Second
			r.Release(Abandoned)
		}},
		"failed, a long time later": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := at(t, p, a, long)
			c.now += time.Minute
			r.Responded(Failed)
			r.Release(Failed)
		}},
		"served by the other, a long time later": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := at(t, p, a, long)
			c.now += time.Minute
			served(r, b)
			r.Release(Answered)
		}, wantB: all},
		"failed": {do: func(t *testing.T, p *Pool, _ *testClock) { at(t, p, a, long).Release(Failed) }},
		"served by the other": {do: func(t *testing.T, p *Pool, _ *testClock) {
			r := at(t, p, a, long)
			served(r, b)
			r.Release(Answered)
		}, wantB: all},
		"served by the other, which held the head": {do: func(t *testing.T, p *Pool, _ *testClock) {
			at(t, p, b, short).Release(Answered)
			r := at(t, p, a, long)
			served(r, b)
			r.Release(Failed)
		}, wantB: 20 * 64},
		"the first choice keeps what it held before": {do: func(t *testing.T, p *Pool, _ *testClock) {
			at(t, p, a, short).Release(Answered)
			served(at(t, p, a, long), b)
		}, wantA: 20 * 64, wantB: all},
		"one of a burst fails, another is answered": {do: func(t *testing.T, p *Pool, _ *testClock) {
			first, second := at(t, p, a, long), at(t, p, a, long)
			first.Release(Abandoned)
			second.Release(Answered)
		}, wantA: all},
		"served by a stranger": {do: func(t *testing.T, p *Pool, _ *testClock) { served(at(t, p, a, long), "10.9.9.9:1") }},
		"served by a stranger, soon after the time of the prefill": {do: func(t *testing.T, p *Pool, c *testClock) {
			at(t, p, b, prompt(9, 1)).Release(Answered)
			r := at(t, p, a, long)
			c.now += 400 * time.Millisecond
			served(r, "10.9.9.9:1")
		}},
		"refused, a long time later": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := at(t, p, a, long)
			c.now += time.Minute
			r.Release(Refused)
		}},
		"the answer began, and the caller left at once": {do: func(t *testing.T, p *Pool, _ *testClock) {
			r := at(t, p, a, long)
			r.Responded(Ended)
			r.Release(Ended)
		}},
		"the answer began, and was over after its time": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := at(t, p, a, long)
			r.Responded(Ended)
			c.now += time.Second
			r.Release(Ended)
		}, wantA: all},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, clock := poolOf(t, numbered(2)...)
			tt.do(t, p, clock)
			if got := heldAt(t, p, long, a); got != tt.wantA {
				t.Errorf("A is taken to hold %d tokens, want %d", got, tt.wantA)
			}
			if got := heldAt(t, p, long, b); got != tt.wantB {
				t.Errorf("B is taken to hold %d tokens, want %d", got, tt.wantB)
			}
		})
	}
}

// The picker learns of an endpoint before the proxy does, which then asks another one. While the endpoint is new, that
// is no failure and is not counted; later, it is a failure and is counted.
func TestEndpointThatJustCameIsNotBlamed(t *testing.T) {
	const latest, other = "10.0.0.1:8000", "10.0.0.2:8000"
	for name, tt := range map[string]struct {
		after time.Duration // it came
		want  float64
	}{
		"soon":  {after: 500 * time.Millisecond},
		"later": {after: time.Minute, want: 1},
	} {
		t.Run(name, func(t *testing.T) {
			clock, registry := &testClock{}, prometheus.NewRegistry()
			f := New(Options{Metrics: telemetry.NewMetrics(registry), Seed: 1, Clock: func() time.Duration { return clock.now }})
			f.SetPool(pool.Pool{Name: llama}, endpointsOf(other))
			clock.now = time.Hour
			f.SetPool(pool.Pool{Name: llama}, endpointsOf(latest, other))
			p := f.Pool(llama)
			clock.now += tt.after
			pickAt(t, p, latest, prompt(1, 10)).Served(netip.MustParseAddrPort(other))

			if got := p.choice.Standing(p.byAddr[netip.MustParseAddrPort(latest)], clock.now).Failures; float64(got) != tt.want {
				t.Errorf("%v failures, want %v", got, tt.want)
			}
			if got := servedElsewhere(t, registry); got != tt.want {
				t.Errorf("%v calls counted as served elsewhere, want %v", got, tt.want)
			}
			clock.now += 5 * time.Second
			busy := pickAt(t, p, other, prompt(2, 1000))
			defer busy.Release(Answered)
			if _, got := pick(t, p, prompt(3, 10)); got != latest {
				t.Errorf("seconds after, the next call goes to %s, which is busy", got)
			}
		})
	}
}

// servedElsewhere returns the count over all pools.
func servedElsewhere(t *testing.T, registry *prometheus.Registry) (sum float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "inference_waypoint_served_elsewhere_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

// An endpoint whose answers fail takes no calls for a while, longer each time, and then one again.
func TestFailingEndpointIsAvoided(t *testing.T) {
	p, clock := poolOf(t, numbered(2)...)
	r, bad := pick(t, p, prompt(1, 10))
	r.Served(netip.MustParseAddrPort(bad))
	r.Responded(Failed)
	r.Release(Failed)
	seed := uint64(100)
	calls := func() (n int) {
		for range 10 {
			seed++
			r, e := pick(t, p, prompt(seed, 1))
			if e == bad {
				n++
				r.Release(Failed)
			} else {
				r.Release(Answered)
			}
		}
		return n
	}
	if n := calls(); n != 0 {
		t.Errorf("%d of 10 calls go to an endpoint that failed just now, want none", n)
	}
	clock.now += time.Second
	if n := calls(); n != 1 {
		t.Errorf("%d of 10 calls try the endpoint again after a second, want 1, which fails", n)
	}
	clock.now += time.Second
	if n := calls(); n != 0 {
		t.Errorf("%d of 10 calls go to an endpoint that failed twice, a second later, want none", n)
	}
	// A caller that leaves before any answer blames nobody.
	p, _ = poolOf(t, numbered(2)...)
	r, left := pick(t, p, prompt(1, 10))
	r.Release(Abandoned)
	again := false
	for i := range uint64(10) {
		r, e := pick(t, p, prompt(100+i, 1))
		again = again || e == left
		r.Release(Answered)
	}
	if !again {
		t.Error("an endpoint is avoided because a caller left")
	}
}

func TestSessionsStayTogether(t *testing.T) {
	p, _ := poolOf(t, numbered(8)...)
	home := map[string]string{}
	for round := range uint64(3) {
		for i := range 40 {
			session := fmt.Sprint("session-", i)
			r := &Reservation{}
			if _, err := p.Pick(&Call{Facts: prompt(round<<16|uint64(i), 1), Session: session}, r); err != nil {
				t.Fatal(err)
			}
			e, _, _ := strings.Cut(string(r.Endpoints(nil)), ",")
			if home[session] == "" {
				home[session] = e
			}
			if e != home[session] {
				t.Fatalf("%s goes to %s and to %s", session, home[session], e)
			}
			r.Release(Answered)
		}
	}
}

func TestEndpointThatLeaves(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(2))
	p := f.Pool(llama)
	facts := prompt(1, 50)
	r, gone := pick(t, p, facts)
	var stays []pool.Endpoint
	for _, e := range numbered(2) {
		if e.Address.String() != gone {
			stays = append(stays, e)
		}
	}
	f.SetPool(pool.Pool{Name: llama}, stays)

	// 1. It takes no call any more, though it holds the prompt.
	other, e := pick(t, p, facts)
	if e == gone {
		t.Fatalf("picked %s, which has left", gone)
	}
	other.Release(Answered)
	//    Not even where the proxy allows no other.
	only := Subset{Given: true}
	only.Add(gone)
	if _, err := p.Pick(&Call{Facts: facts, Subset: only}, &Reservation{}); refusal.Of(err).Reason != refusal.NotInSubset {
		t.Errorf("a subset of the one that has left gives %v, want a refusal", err)
	}
	// 2. The call there goes on, and ends.
	if got := p.requests(gone); got != 1 {
		t.Errorf("%d calls in flight there, want 1", got)
	}
	r.Release(Answered)
	if got := p.requests(gone); got != 0 {
		t.Errorf("%d calls in flight there, want none", got)
	}
}

// server makes an endpoint from its address and its process, which distinguishes servers at one address.
func server(address, process string) pool.Endpoint {
	return pool.Endpoint{Address: netip.MustParseAddrPort(address), Process: process}
}

// An endpoint that comes back soon still has its cache; another server at its address has nothing cached.
func TestEndpointThatComesBack(t *testing.T) {
	const a, b = "10.0.0.1:8000", "10.0.0.2:8000"
	facts := prompt(1, 50)
	tests := map[string]struct {
		do   func(f *Fleet, p *Pool, clock *testClock, set func(...pool.Endpoint))
		want bool // it holds the prompt
	}{
		"at once": {do: func(_ *Fleet, _ *Pool, _ *testClock, set func(...pool.Endpoint)) {
			set(server(b, ""))
			set(server(a, "uid/0"), server(b, ""))
		}, want: true},
		"after four minutes": {do: func(_ *Fleet, p *Pool, clock *testClock, set func(...pool.Endpoint)) {
			set(server(b, ""))
			clock.now += 4 * time.Minute
			p.tidy()
			set(server(a, "uid/0"), server(b, ""))
		}, want: true},
		"after six": {do: func(_ *Fleet, p *Pool, clock *testClock, set func(...pool.Endpoint)) {
			set(server(b, ""))
			clock.now += 6 * time.Minute
			p.tidy()
			set(server(a, "uid/0"), server(b, ""))
		}},
		"as another pod": {do: func(_ *Fleet, _ *Pool, _ *testClock, set func(...pool.Endpoint)) {
			set(server(b, ""))
			set(server(a, "another/0"), server(b, ""))
		}},
		"as another pod, with nothing in between": {do: func(_ *Fleet, _ *Pool, _ *testClock, set func(...pool.Endpoint)) {
			set(server(a, "another/0"), server(b, ""))
		}},
		"with its container started again": {do: func(_ *Fleet, _ *Pool, _ *testClock, set func(...pool.Endpoint)) {
			set(server(b, ""))
			set(server(a, "uid/1"), server(b, ""))
		}},
		"with a capacity that it had told": {do: func(f *Fleet, p *Pool, _ *testClock, set func(...pool.Endpoint)) {
			p.Observe(addressOf(a), modelmetrics.Reading{CapacityTokens: 1 << 30}, 0)
			settings := picksettings.Defaults()
			settings.CacheTokens = 64
			f.Configure(llama, settings)
			set(server(b, ""))
			set(server(a, "uid/0"), server(b, ""))
		}, want: true},
		"and the reader of its metrics begins anew": {do: func(_ *Fleet, p *Pool, _ *testClock, set func(...pool.Endpoint)) {
			p.Observe(addressOf(a), modelmetrics.Reading{Restarts: 1, CapacityTokens: 1 << 20}, 0)
			pickAt(t, p, a, facts).Release(Answered)
			set(server(b, ""))
			set(server(a, "uid/0"), server(b, ""))
			p.Observe(addressOf(a), modelmetrics.Reading{Restarts: 0, CapacityTokens: 1 << 20}, 0)
		}, want: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f, clock := newFleet(t)
			set := func(endpoints ...pool.Endpoint) { f.SetPool(pool.Pool{Name: llama}, endpoints) }
			set(server(a, "uid/0"), server(b, ""))
			p := f.Pool(llama)
			pickAt(t, p, a, facts).Release(Answered)
			tt.do(f, p, clock, set)
			if got := heldAt(t, p, facts, a) > 0; got != tt.want {
				t.Errorf("it is taken to hold the prompt: %v, want %v", got, tt.want)
			}
		})
	}
}

// A pod that is replaced while a call to it is in flight takes that call's load and fate along.
func TestReplacedWhileBusy(t *testing.T) {
	const a = "10.0.0.1:8000"
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, []pool.Endpoint{server(a, "old/0")})
	p := f.Pool(llama)
	r := pickAt(t, p, a, prompt(1, 50))
	f.SetPool(pool.Pool{Name: llama}, []pool.Endpoint{server(a, "new/0")})
	if got := p.requests(a); got != 0 {
		t.Errorf("%d calls in flight at the new one, want none", got)
	}
	r.Release(Failed)
	if got := p.choice.Standing(p.byAddr[addressOf(a)], 0).Failures; got != 0 {
		t.Errorf("the new one has %d failures of the old one's", got)
	}
	if got := len(p.slots); got != 2 || len(p.free) != 1 {
		t.Errorf("%d numbers, %d of them free, want the old one's free of two", got, len(p.free))
	}
}

// The state of endpoints that left is forgotten by a timer, also in a pool without calls.
func TestEndpointsThatLeftAreForgottenInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1})
		f.SetPool(pool.Pool{Name: llama}, numbered(4))
		p := f.Pool(llama)
		for i := range uint64(40) {
			r, _ := pick(t, p, prompt(i, 10))
			r.Release(Answered)
		}
		f.SetPool(pool.Pool{Name: llama}, numbered(2))
		time.Sleep(time.Minute)
		f.SetPool(pool.Pool{Name: llama}, nil)
		if got := p.index.Blocks(); got != 400 {
			t.Errorf("%d blocks are remembered, want all 400", got)
		}
		time.Sleep(rememberFor - 30*time.Second)
		synctest.Wait()
		p.mu.Lock()
		left := len(p.left)
		p.mu.Unlock()
		if left != 2 {
			t.Errorf("%d endpoints are remembered, want the two that left last", left)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		if got := p.index.Blocks(); got != 0 || len(p.byAddr) != 0 {
			t.Errorf("%d blocks of %d endpoints are remembered, want none", got, len(p.byAddr))
		}
	})
}

func TestEndpointThatComesBackWhileBusy(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	p := f.Pool(llama)
	r, e := pick(t, p, prompt(1, 10))
	f.SetPool(pool.Pool{Name: llama}, nil)
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	if got := p.requests(e); got != 1 {
		t.Errorf("%d calls in flight, want the 1 that still runs", got)
	}
	r.Release(Answered)
	if got := p.requests(e); got != 0 {
		t.Errorf("%d calls in flight after the last, want 0", got)
	}
}

func TestNumbersAreReused(t *testing.T) {
	f, _ := newFleet(t)
	for i := range 100 {
		f.SetPool(pool.Pool{Name: llama}, endpointsOf(fmt.Sprintf("10.0.1.%d:80", i+1), fmt.Sprintf("10.0.2.%d:80", i+1)))
		r, _ := pick(t, f.Pool(llama), prompt(1, 2))
		r.Release(Answered)
	}
	if got := len(f.Pool(llama).slots); got > mostRemembered+4 {
		t.Errorf("%d numbers for 2 endpoints at a time, want at most %d", got, mostRemembered+4)
	}
}

func TestPools(t *testing.T) {
	f, _ := newFleet(t)
	qwen := types.NamespacedName{Namespace: "models", Name: "qwen"}
	if f.Pool(llama) != nil {
		t.Fatal("a pool that nobody made")
	}
	f.SetPool(pool.Pool{Name: llama}, numbered(2))
	f.SetPool(pool.Pool{Name: qwen}, numbered(2))
	// Pools are isolated: what one has cached and carries is nothing to the other.
	r, _ := pick(t, f.Pool(llama), prompt(1, 10))
	if other, _ := pick(t, f.Pool(qwen), prompt(1, 10)); other.CachedTokens != 0 {
		t.Error("a pool knows the other's prefixes")
	}
	f.RemovePool(llama)
	f.RemovePool(llama)
	if f.Pool(llama) != nil || len(f.Names()) != 1 {
		t.Errorf("pools after a removal: %v", f.Names())
	}
	r.Release(Answered) // a pool removed while a call is in flight
	f.SetPool(pool.Pool{Name: llama}, append(numbered(2), numbered(2)...))
	if got := len(f.Pool(llama).Endpoints()); got != 2 {
		t.Errorf("%d endpoints of 2 that are named twice", got)
	}
}

// Everything at once, for the race detector, and the books must balance at the end.
func TestConcurrentUse(t *testing.T) {
	f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1})
	f.SetPool(pool.Pool{Name: llama}, numbered(10))
	p := f.Pool(llama)
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Go(func() {
			for i := range 200 {
				r := &Reservation{}
				if _, err := p.Pick(&Call{Facts: prompt(uint64(i%7), 5)}, r); err != nil {
					continue
				}
				if i%3 == 0 {
					r.Served(numbered(10)[(i+w)%10].Address)
				}
				r.Release(Outcome(i % 2))
			}
		})
	}
	workers.Go(func() {
		for i := range 200 {
			f.SetPool(pool.Pool{Name: llama}, numbered(10)[i%5:5+i%6])
		}
	})
	workers.Wait()
	f.SetPool(pool.Pool{Name: llama}, numbered(10))
	for _, e := range numbered(10) {
		if got := p.requests(e.Address.String()); got != 0 {
			t.Errorf("%d calls in flight at %s after all have ended", got, e.Address)
		}
	}
	if len(p.slots) > 20 {
		t.Errorf("%d numbers for 10 endpoints", len(p.slots))
	}
}

func TestParseEndpoint(t *testing.T) {
	tests := map[string]struct {
		want   string
		wantOK bool
	}{
		"10.0.0.1:8000":  {"10.0.0.1:8000", true},
		"[fd00::1]:8000": {"[fd00::1]:8000", true},
		"10.0.0.1":       {"10.0.0.1:0", true},
		"fd00::1":        {"[fd00::1]:0", true},
		"[fd00::1]":      {"[fd00::1]:0", true},
		"envoy://connect_originate/10.0.0.1:8000":  {"10.0.0.1:8000", true},
		"envoy://connect_originate/[fd00::1]:8000": {"[fd00::1]:8000", true},
		" 10.0.0.1:8000 ":                          {"10.0.0.1:8000", true}, //nolint:gocritic // the spaces are the case
		"[::ffff:10.0.0.1]:8000":                   {"10.0.0.1:8000", true},
		"":                                         {},
		"/":                                        {},
		"10.0.0.1:80000":                           {},
		"model-server:8000":                        {},
	}
	for text, tt := range tests {
		t.Run(text, func(t *testing.T) {
			got, ok := ParseEndpoint(text)
			if ok != tt.wantOK {
				t.Fatalf("understood: %v, want %v", ok, tt.wantOK)
			}
			if ok && got.String() != tt.want {
				t.Errorf("read as %s, want %s", got, tt.want)
			}
		})
	}
}

func BenchmarkPoolPick(b *testing.B) {
	for _, n := range []int{10, 100, 1000} {
		for _, blocks := range []int{4, 32, 256, 2048} {
			b.Run(fmt.Sprintf("endpoints=%d/blocks=%d", n, blocks), func(b *testing.B) {
				f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1})
				f.SetPool(pool.Pool{Name: llama}, numbered(n))
				p, facts, r := f.Pool(llama), prompt(1, blocks), &Reservation{}
				b.ReportAllocs()
				for b.Loop() {
					if _, w, err := p.Ask(&Call{Facts: facts}, r); err != nil || w != nil {
						b.Fatalf("the call waits, or %v", err)
					}
					r.Release(Answered)
				}
			})
		}
	}
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
