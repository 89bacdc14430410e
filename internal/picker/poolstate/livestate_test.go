package poolstate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

func ptr(v float64) *float64 { return &v }

func TestLiveState(t *testing.T) {
	p, clock := poolOf(t,
		pool.Endpoint{Address: netip.MustParseAddrPort("10.0.0.1:8000"), Pod: "one"},
		pool.Endpoint{Address: netip.MustParseAddrPort("10.0.0.2:8000"), Pod: "two"})
	one := netip.MustParseAddrPort("10.0.0.1:8000")
	reading := modelmetrics.Reading{
		At: time.Unix(100, 0), Running: 3, Waiting: 1, KVUsage: 0.25, MaxLoRA: 4, RunningAdapters: []string{"sql", "chat"},
		CacheQueries: 1000, CacheHits: 900, FirstTokens: 10, FirstTokenSeconds: 100,
	}
	p.Observe(one, reading, 0)
	reading.At, reading.CacheQueries, reading.CacheHits = reading.At.Add(time.Second), 1400, 1000
	reading.FirstTokens, reading.FirstTokenSeconds = 12, 101
	clock.now = time.Second
	p.Observe(one, reading, 0)
	// A call that goes to the other endpoint, which then leaves the pool.
	var r Reservation
	if err := p.Pick(prompt(1, 50), &Subset{Given: true, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:8000")}}, &r); err != nil {
		t.Fatal(err)
	}
	p.setEndpoints([]pool.Endpoint{{Address: one, Pod: "one"}})
	clock.now = 1500 * time.Millisecond

	wall := time.Unix(1000, 0)
	want := livestate.Pool{
		Name: "models/llama",
		Endpoints: []livestate.Endpoint{{
			Name: "one", Address: "10.0.0.1:8000", Ready: true,
			Reading: &livestate.Reading{Age: 0.5, Running: 3, Waiting: 1, KVUse: 0.25, Adapters: &livestate.Adapters{
				Slots: 4, Running: []string{"chat", "sql"}, Waiting: []string{}, Known: []string{"chat", "sql"},
			}},
			CachedShare: ptr(0.25), ObservedFirstToken: ptr(0.5), FirstToken: 0.4, PrefillRate: 8000,
		}, {
			Address: "10.0.0.2:8000", ReservedRequests: 1, ReservedTokens: 0, FirstToken: 0.4, PrefillRate: 8000,
		}},
		Picks: []livestate.Pick{{
			Time: wall.Add(-500 * time.Millisecond), Endpoint: "10.0.0.2:8000", Reason: "no other endpoint may serve the call",
			PromptTokens: 3200, Candidates: 1, Cost: 0.832,
		}},
	}
	if diff := cmp.Diff(want, p.LiveState(wall)); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	r.Release(Abandoned)
	if got := len(p.LiveState(wall).Endpoints); got != 1 {
		t.Errorf("after its last call %d endpoints are shown, want 1", got)
	}
}

// What was counted before a restart, or long ago, is in no average.
func TestObservedForgets(t *testing.T) {
	var o observed
	at := time.Unix(100, 0)
	take := func(seconds int, r modelmetrics.Reading) {
		r.At = at.Add(time.Duration(seconds) * time.Second)
		o.take(r, time.Duration(seconds)*time.Second)
	}
	take(0, modelmetrics.Reading{CacheQueries: 500, CacheHits: 500})
	if got := o.cachedShare(); got != nil {
		t.Errorf("before anything was counted the share is %v", *got)
	}
	take(1, modelmetrics.Reading{CacheQueries: 100, CacheHits: 100, Restarts: 1})
	take(2, modelmetrics.Reading{CacheQueries: 200, CacheHits: 150, Restarts: 1})
	take(1, modelmetrics.Reading{CacheQueries: 9000, Restarts: 1}) // older than the last
	if diff := cmp.Diff(ptr(0.5), o.cachedShare()); diff != "" {
		t.Errorf("share (-want +got):\n%s", diff)
	}
	take(1000, modelmetrics.Reading{CacheQueries: 200, CacheHits: 150, Restarts: 1})
	if got := o.cachedShare(); got != nil {
		t.Errorf("long after the last call the share is %v", *got)
	}
}

func TestRecentPicks(t *testing.T) {
	p, clock := poolOf(t, numbered(2)...)
	wall := time.Unix(1000, 0)
	r, home := pick(t, p, prompt(1, 20))
	r.Release(Answered)
	clock.now = recentInterval / 2
	r, _ = pick(t, p, prompt(2, 20)) // too early to be kept
	r.Release(Answered)
	clock.now = recentInterval
	facts := prompt(1, 20)
	facts.Model = "<script>"
	r, _ = pick(t, p, facts)
	r.Release(Answered)
	second := 0.4
	want := []livestate.Pick{{
		Time: wall, Endpoint: home, Model: "<script>", Reason: "holds 1279 of 1280 prompt tokens (0.32 s less)",
		PromptTokens: 1280, CachedTokens: 1279, Candidates: 2, Second: &second,
	}, {
		Time: wall.Add(-recentInterval), Endpoint: home, Reason: "drawn among equals", PromptTokens: 1280, Candidates: 2,
		Cost: 0.32, Second: ptr(0.32),
	}}
	got := p.LiveState(wall).Picks
	for i := range min(len(got), len(want)) {
		want[i].Cost, want[i].Second = got[i].Cost, got[i].Second // selection's own business, checked in its tests
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("picks (-want +got):\n%s", diff)
	}
	for i := range 3 * recentPicks {
		clock.now = time.Duration(i+2) * recentInterval
		r, _ = pick(t, p, prompt(uint64(i), 1))
		r.Release(Answered)
	}
	if got := len(p.LiveState(wall).Picks); got != recentPicks {
		t.Errorf("%d picks are kept, want %d", got, recentPicks)
	}
}

func TestReason(t *testing.T) {
	tests := map[string]struct {
		first, second Candidate
		want          string
	}{
		"equal":   {Candidate{}, Candidate{}, "drawn among equals"},
		"queue":   {Candidate{}, Candidate{Cost: Cost{Wait: 2, Batch: 1}}, "shorter queue (2 s less)"},
		"calls":   {Candidate{}, Candidate{Cost: Cost{Wait: 1, Batch: 2}}, "fewer calls in flight (2 s less)"},
		"memory":  {Candidate{}, Candidate{Cost: Cost{Memory: 1}}, "more free KV memory (1 s less)"},
		"adapter": {Candidate{AdapterState: "resident"}, Candidate{Cost: Cost{Adapter: 1}}, "adapter resident (1 s less)"},
		"session": {Candidate{Cost: Cost{Session: -5}}, Candidate{}, "the session's own endpoint (5 s less)"},
		"speed":   {Candidate{}, Candidate{Cost: Cost{Prefill: 1}}, "faster prefill (1 s less)"},
		"class":   {Candidate{}, Candidate{Class: "failed lately"}, "the next best: failed lately"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := reason(&tt.first, &tt.second); got != tt.want {
				t.Errorf("reason is %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLiveStateHandler(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(200))
	f.SetPool(pool.Pool{Name: named("models/empty")}, nil)
	tests := map[string]struct {
		query      string
		wantStatus int
		wantPools  string // names and how many endpoints they have
		wantError  string
	}{
		"all":          {wantStatus: http.StatusOK, wantPools: "models/empty 0 models/llama 200 "},
		"one":          {query: "?pool=models/llama", wantStatus: http.StatusOK, wantPools: "models/llama 200 "},
		"no such pool": {query: "?pool=models/none", wantStatus: http.StatusNotFound, wantError: "no such pool"},
		"no name":      {query: "?pool=llama", wantStatus: http.StatusBadRequest, wantError: "namespace/name"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			LiveStateHandler(f).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/debug/pools"+tt.query, nil))
			var got struct {
				livestate.State
				Error string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			pools := ""
			for _, p := range got.Pools {
				pools += fmt.Sprintf("%s %d ", p.Name, len(p.Endpoints))
			}
			if w.Code != tt.wantStatus || pools != tt.wantPools || !strings.Contains(got.Error, tt.wantError) {
				t.Errorf("status %d, pools %q, error %q; want %d, %q, %q", w.Code, pools, got.Error, tt.wantStatus, tt.wantPools, tt.wantError)
			}
		})
	}
}

// What picks pay for those that are kept: "none" keeps none, "usual" those of a pool of 100,000 calls a second.
func BenchmarkPickRecent(b *testing.B) {
	for name, step := range map[string]time.Duration{"none": 0, "usual": 10 * time.Microsecond} {
		b.Run(name, func(b *testing.B) {
			p, clock := poolOf(b, numbered(100)...)
			if step == 0 {
				p.recent.next = time.Hour
			}
			facts, subset := &request.Facts{PromptBytes: 4000}, &Subset{}
			var r Reservation
			for b.Loop() {
				clock.now += 10 * time.Microsecond
				if err := p.Pick(facts, subset, &r); err != nil {
					b.Fatal(err)
				}
				r.Release(Answered)
			}
		})
	}
}
