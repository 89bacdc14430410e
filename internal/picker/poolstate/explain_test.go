package poolstate

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

func TestExplainHandler(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(4))
	f.SetPool(pool.Pool{Name: named("models/empty")}, nil)
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("word ", 2000) + `"}]}`
	var facts request.Facts
	facts.Read("/v1/chat/completions", []byte(body), false)
	r, home := pick(t, f.Pool(llama), &facts)
	r.Release(Answered)
	server := httptest.NewServer(ExplainHandler(f))
	defer server.Close()
	tests := map[string]struct {
		query      url.Values
		body       io.Reader
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
			response, err := http.Post(server.URL+"/debug/explain?"+tt.query.Encode(), "application/json", tt.body)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			var got struct {
				Explanation
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
	for _, e := range numbered(4) {
		if got := f.Pool(llama).requests(e.Address.String()); got != 0 {
			t.Errorf("%d calls are reserved at %s by explanations", got, e.Address)
		}
	}
}

// zeros is a body without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// At the debug level each pick tells its reasons, with names cut to what a log bears; otherwise nothing is computed.
func TestPickTellsItsReasons(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelInfo, slog.LevelDebug} {
		var out bytes.Buffer
		f := New(Options{
			Metrics: telemetry.NewMetrics(prometheus.NewRegistry()),
			Log:     slog.New(slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: level})),
		})
		f.SetPool(pool.Pool{Name: llama}, numbered(5))
		facts := prompt(1, 10)
		facts.Model = strings.Repeat("m", 10<<10)
		_, first := pick(t, f.Pool(llama), facts)
		if level == slog.LevelInfo {
			why, err := f.Pool(llama).PickExplained(facts, &Subset{}, "", new(Reservation), false)
			if out.Len() > 0 || why != nil || err != nil {
				t.Errorf("at the info level a pick logs %s and tells %v, %v", out.String(), why, err)
			}
			continue
		}
		var line struct {
			Pool string
			Why  map[string]any
		}
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		if line.Pool != "models/llama" || line.Why["promptTokens"] != 640.0 || line.Why["candidates"] != 5.0 || out.Len() > 4000 {
			t.Errorf("a pick of %s logs %s", first, out.String())
		}
	}
}
