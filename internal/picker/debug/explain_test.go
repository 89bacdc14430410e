package debug

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

var llama = types.NamespacedName{Namespace: "models", Name: "llama"}

// newFleet makes a fleet whose clock stands still unless it is moved.
func newFleet(t *testing.T) (f *poolstate.Fleet, clock *time.Duration) {
	t.Helper()
	clock = new(time.Duration)
	return poolstate.New(poolstate.Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1, Clock: func() time.Duration { return *clock },
	}), clock
}

// numbered makes n endpoints 10.0.0.1:8000, 10.0.0.2:8000 and so on.
func numbered(n int) []pool.Endpoint {
	var out []pool.Endpoint
	for i := range n {
		out = append(out, pool.Endpoint{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i / 250), byte(i%250 + 1)}), 8000)})
	}
	return out
}

func TestExplainHandler(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(4))
	f.SetPool(pool.Pool{Name: types.NamespacedName{Namespace: "models", Name: "empty"}}, nil)
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 2000) + `"}]}`
	var facts request.Facts
	facts.Read(request.Head{Path: "/v1/chat/completions"}, []byte(body))
	var r poolstate.Reservation
	if _, err := f.Pool(llama).Pick(&poolstate.Call{Facts: &facts}, &r); err != nil {
		t.Fatal(err)
	}
	home, _, _ := strings.Cut(string(r.Endpoints(nil)), ",")
	r.Release(poolstate.Answered)
	server := httptest.NewServer(ExplainHandler(f))
	defer server.Close()
	tests := map[string]struct {
		query      url.Values
		body       io.Reader
		encoding   string
		wantStatus int
		wantFirst  string
		wantCount  int
		wantError  string
	}{
		"the one that holds the prompt": {
			query: url.Values{"pool": {"models/llama"}}, wantStatus: 200, wantFirst: home, wantCount: 4,
		},
		"in a subset": {
			query: url.Values{"pool": {"models/llama"}, "subset": {"10.0.0.9:1", home}}, wantStatus: 200, wantFirst: home, wantCount: 1,
		},
		"a body that is encoded": {
			query: url.Values{"pool": {"models/llama"}}, body: gzipped(t, body), encoding: "gzip", wantStatus: 200, wantFirst: home, wantCount: 4,
		},
		"nothing in the subset": {query: url.Values{"pool": {"models/llama"}, "subset": {"10.0.0.9:1"}}, wantStatus: 503, wantError: "proxy allows"},
		"no pool named":         {wantStatus: 400, wantError: "namespace/name"},
		"no such pool":          {query: url.Values{"pool": {"models/none"}}, wantStatus: 404, wantError: "no such pool"},
		"no endpoint":           {query: url.Values{"pool": {"models/empty"}}, wantStatus: 503, wantError: "models/empty"},
		"a body that is too long": {
			query: url.Values{"pool": {"models/llama"}}, body: io.LimitReader(zeros{}, explainLimit+1), wantStatus: 413, wantError: "16 MiB",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if tt.body == nil {
				tt.body = strings.NewReader(body)
			}
			asked, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+"/debug/explain?"+tt.query.Encode(), tt.body)
			if err != nil {
				t.Fatal(err)
			}
			asked.Header.Set("Content-Encoding", tt.encoding)
			response, err := http.DefaultClient.Do(asked)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			var got struct {
				livestate.Explanation
				Error string
			}
			if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
				t.Fatal(err)
			}
			if response.StatusCode != tt.wantStatus || !strings.Contains(got.Error, tt.wantError) {
				t.Fatalf("status %d, error %q; want %d, %q", response.StatusCode, got.Error, tt.wantStatus, tt.wantError)
			}
			if len(got.Candidates) != tt.wantCount {
				t.Fatalf("%d candidates, want %d", len(got.Candidates), tt.wantCount)
			}
			if tt.wantCount == 0 {
				return
			}
			first := got.Candidates[0]
			if first.Endpoint != tt.wantFirst || first.CachedTokens < 2000 || first.Cost.Total <= 0 || got.PromptBlocks == 0 || got.Model != "m" {
				t.Errorf("the ranking of %+v begins with %+v", got.Explanation, first)
			}
		})
	}
	for _, e := range f.Pool(llama).Snapshot().Endpoints {
		if e.InFlight != 0 {
			t.Errorf("%d calls are reserved at %s by explanations", e.InFlight, e.Address)
		}
	}
}

func gzipped(t *testing.T, text string) io.Reader {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &out
}

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
