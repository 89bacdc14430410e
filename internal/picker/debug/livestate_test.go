package debug

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
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

func ptr(v float64) *float64 { return &v }

func TestLiveState(t *testing.T) {
	f, clock := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, []pool.Endpoint{
		{Address: netip.MustParseAddrPort("10.0.0.1:8000"), Pod: "one"}, {Address: netip.MustParseAddrPort("10.0.0.2:8000"), Pod: "two"},
	})
	p := f.Pool(llama)
	one := netip.MustParseAddrPort("10.0.0.1:8000")
	reading := modelmetrics.Reading{
		At: time.Unix(100, 0), Running: 3, Waiting: 1, KVUsage: 0.25, MaxLoRA: 4, RunningAdapters: []string{"sql", "chat"},
		CacheQueries: 1000, CacheHits: 900, FirstTokens: 10, FirstTokenSeconds: 100,
	}
	p.Observe(one, reading, 0)
	reading.At, reading.CacheQueries, reading.CacheHits = reading.At.Add(time.Second), 1400, 1000
	reading.FirstTokens, reading.FirstTokenSeconds = 12, 101
	*clock = time.Second
	p.Observe(one, reading, 0)
	// A call that goes to the other endpoint, which then leaves the pool.
	var r poolstate.Reservation
	only := poolstate.Subset{Given: true, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:8000")}}
	if _, err := p.Pick(&poolstate.Call{Facts: &request.Facts{PromptBytes: 50 * request.BlockBytes}, Subset: only}, &r); err != nil {
		t.Fatal(err)
	}
	f.SetPool(pool.Pool{Name: llama}, []pool.Endpoint{{Address: one, Pod: "one"}})
	*clock = 1500 * time.Millisecond

	wall := time.Unix(1000, 0)
	want := livestate.Pool{
		Name: "models/llama", Line: livestate.Line{Callers: []livestate.LineCaller{}}, Needed: ptr(0.277778),
		Endpoints: []livestate.Endpoint{{
			Name: "one", Address: "10.0.0.1:8000", Ready: true,
			Reading: &livestate.Reading{Age: 0.5, Running: 3, Waiting: 1, KVUse: 0.25, Adapters: &livestate.Adapters{
				Slots: 4, Running: []string{"chat", "sql"}, Waiting: []string{}, Known: []string{"chat", "sql"},
			}},
			CachedShare: ptr(0.25), ObservedFirstToken: ptr(0.5), FirstToken: 0.4, PrefillRate: 8000, BytesPerToken: 4,
		}, {
			Address: "10.0.0.2:8000", ReservedRequests: 1, ReservedTokens: 0, FirstToken: 0.4, PrefillRate: 8000, BytesPerToken: 4,
		}},
		PickedBy: []livestate.PickedBy{{Picker: "picker-0", Since: 0.5, Until: 0.5}},
		Picks: []livestate.Pick{{
			Time: wall.Add(-500 * time.Millisecond), Endpoint: "10.0.0.2:8000", Reason: "no other endpoint may serve the call",
			PromptTokens: 3200, Candidates: 1, Cost: 0.832,
		}},
	}
	if diff := cmp.Diff(want, poolAt(p, wall, map[string]string{"": "picker-0"})); diff != "" {
		t.Errorf("state (-want +got):\n%s", diff)
	}
	r.Release(poolstate.Abandoned)
	if got := len(poolAt(p, wall, map[string]string{"": "picker-0"}).Endpoints); got != 1 {
		t.Errorf("after its last call %d endpoints are shown, want 1", got)
	}
}

// How true expected times were is in the state and in explanations, with null where it is not known.
func TestObservedToExpected(t *testing.T) {
	const followed, other = "10.0.0.1:8000", "10.0.0.2:8000"
	f, clock := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(2))
	p := f.Pool(llama)
	observe := func(at time.Duration, firstTokens int64, seconds float64) {
		*clock = at
		p.Observe(netip.MustParseAddrPort(followed), modelmetrics.Reading{
			At: time.Unix(100, 0).Add(at), WaitingSplit: true, FirstTokens: firstTokens, FirstTokenSeconds: seconds,
		}, 0)
	}
	observe(time.Second, 1, 1)
	observe(2*time.Second, 1, 1)
	var r poolstate.Reservation
	only := poolstate.Subset{Given: true, Endpoints: []netip.AddrPort{netip.MustParseAddrPort(followed)}}
	call := request.Facts{PromptBytes: 125 * request.BlockBytes} // 8,000 tokens, at the assumed 8,000 a second
	if _, err := p.Pick(&poolstate.Call{Facts: &call, Subset: only}, &r); err != nil {
		t.Fatal(err)
	}
	observe(4*time.Second, 2, 1+1.5)

	type endpoint struct {
		Address, Endpoint string
		Of                json.RawMessage `json:"observedToExpectedFirstToken"`
	}
	var state struct {
		Pools []struct{ Endpoints []endpoint }
	}
	w := httptest.NewRecorder()
	Picker{Fleet: f, Name: "one"}.LiveStateHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/debug/pools", nil))
	if err := json.Unmarshal(w.Body.Bytes(), &state); err != nil {
		t.Fatal(err)
	}
	var explanation struct{ Candidates []endpoint }
	w = httptest.NewRecorder()
	ExplainHandler(f).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/debug/explain?pool=models/llama", strings.NewReader(`{}`)))
	if err := json.Unmarshal(w.Body.Bytes(), &explanation); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]endpoint{"state": state.Pools[0].Endpoints, "explanation": explanation.Candidates} {
		of := map[string]string{}
		for _, e := range got {
			of[e.Address+e.Endpoint] = fmt.Sprintf("%.3s", e.Of) // one of the names is empty
		}
		if diff := cmp.Diff(map[string]string{followed: "1.5", other: "nul"}, of); diff != "" {
			t.Errorf("in the %s (-want +got):\n%s", name, diff)
		}
	}
}

func TestLiveStateHandler(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(200))
	f.SetPool(pool.Pool{Name: types.NamespacedName{Namespace: "models", Name: "empty"}}, nil)
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
			Picker{Fleet: f, Name: "one"}.LiveStateHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/debug/pools"+tt.query, nil))
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
