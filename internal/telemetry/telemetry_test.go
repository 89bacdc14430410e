package telemetry

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestPoolMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	p := m.ForPool("models/llama")
	m.SetPools(1)
	p.SetEndpoints(4)
	p.Picked(100, 75, time.Millisecond)
	p.Picked(100, 0, time.Millisecond)
	p.Picked(0, 0, time.Millisecond) // no prompt: no ratio
	p.Refused("no_endpoints")
	m.RefusedWithoutPool("unknown_pool")
	m.Held(1 << 20)
	m.Held(-1000)
	m.StreamOpened()
	p.StreamOpened()
	p.StreamOpened()
	p.StreamClosed()
	p.StreamOpened()
	p.Used(100, 60, 7)
	p.Used(10, 0, 1)
	p.UsageMissing()
	m.Panicked()
	p.RequestStarted()
	p.RequestStarted()
	p.RequestEnded()
	p.ServedElsewhere()
	for _, status := range []int{200, 204, 404, 503, 0, 302} {
		p.Responded(status)
	}
	want := []string{
		`inference_waypoint_held_body_bytes 1.047576e+06`,
		`inference_waypoint_streams_in_flight{pool=""} 1`,
		`inference_waypoint_streams_in_flight{pool="models/llama"} 2`,
		`inference_waypoint_usage_answers_total{pool="models/llama",usage="missing"} 1`,
		`inference_waypoint_usage_answers_total{pool="models/llama",usage="read"} 2`,
		`inference_waypoint_usage_tokens_total{kind="cached",pool="models/llama"} 60`,
		`inference_waypoint_usage_tokens_total{kind="completion",pool="models/llama"} 8`,
		`inference_waypoint_usage_tokens_total{kind="prompt",pool="models/llama"} 110`,
		`inference_waypoint_panics_total 1`,
		`inference_waypoint_endpoints{pool="models/llama"} 4`,
		`inference_waypoint_pick_duration_seconds_count{pool="models/llama"} 3`,
		`inference_waypoint_picks_total{outcome="load",pool="models/llama"} 2`,
		`inference_waypoint_picks_total{outcome="prefix",pool="models/llama"} 1`,
		`inference_waypoint_pools 1`,
		`inference_waypoint_prefix_hit_tokens_bucket{pool="models/llama",le="0"} 1`,
		`inference_waypoint_prefix_hit_tokens_bucket{pool="models/llama",le="64"} 1`,
		`inference_waypoint_prefix_hit_tokens_bucket{pool="models/llama",le="256"} 2`,
		`inference_waypoint_prefix_hit_ratio_count{pool="models/llama"} 2`,
		`inference_waypoint_prefix_hit_ratio_sum{pool="models/llama"} 0.75`,
		`inference_waypoint_prompt_tokens_matched_total{pool="models/llama"} 75`,
		`inference_waypoint_prompt_tokens_total{pool="models/llama"} 200`,
		`inference_waypoint_refusals_total{pool="",reason="unknown_pool"} 1`,
		`inference_waypoint_refusals_total{pool="models/llama",reason="no_endpoints"} 1`,
		`inference_waypoint_requests_in_flight{pool="models/llama"} 1`,
		`inference_waypoint_responses_total{class="2xx",pool="models/llama"} 2`,
		`inference_waypoint_responses_total{class="4xx",pool="models/llama"} 1`,
		`inference_waypoint_responses_total{class="5xx",pool="models/llama"} 1`,
		`inference_waypoint_responses_total{class="other",pool="models/llama"} 2`,
		`inference_waypoint_served_elsewhere_total{pool="models/llama"} 1`,
	}
	lines := strings.Split(get(t, Handler(reg, false), "/metrics"), "\n")
	for _, line := range want {
		if !slices.Contains(lines, line) {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}

func TestDropPoolLeavesNoSeries(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := NewMetrics(reg)
	gone, stays := m.ForPool("models/gone"), m.ForPool("models/stays")
	gone.Refused("no_endpoints")
	stays.Refused("no_endpoints")
	m.DropPool("models/gone")
	gone.RequestEnded() // a call that outlives its pool
	gone.StreamClosed()

	body := get(t, Handler(reg, false), "/metrics")
	if strings.Contains(body, "models/gone") {
		t.Error("a series of the pool that is gone remains")
	}
	if !strings.Contains(body, `inference_waypoint_refusals_total{pool="models/stays",reason="no_endpoints"} 1`) {
		t.Errorf("the other pool's series is missing in:\n%s", body)
	}
}

func TestBuildInfo(t *testing.T) {
	reg := prometheus.NewRegistry()
	NewMetrics(reg)
	if want := `go_version="` + runtime.Version() + `"`; !strings.Contains(get(t, Handler(reg, false), "/metrics"), want) {
		t.Errorf("no series of build_info with %s", want)
	}
}

func TestHealthz(t *testing.T) {
	if got := get(t, Handler(prometheus.NewRegistry(), false), "/healthz"); got != "ok\n" {
		t.Errorf("/healthz says %q", got)
	}
}

// Profiles reveal the program's inner state and are served only if they are enabled.
func TestProfiles(t *testing.T) {
	for profiles, want := range map[bool]int{true: http.StatusOK, false: http.StatusNotFound} {
		for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline", "/debug/pprof/symbol"} {
			w := httptest.NewRecorder()
			Handler(prometheus.NewRegistry(), profiles).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
			if w.Code != want {
				t.Errorf("with profiles %v, GET %s gives status %d, want %d", profiles, path, w.Code, want)
			}
		}
	}
}

func get(t *testing.T, h http.Handler, path string) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("GET %s: status %d", path, w.Code)
	}
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestLoggerHasLevelAndJSON(t *testing.T) {
	var out bytes.Buffer
	log := NewLogger(&out, slog.LevelWarn)
	log.Info("not this")
	log.Warn("this", "pool", "models/llama")
	var entry map[string]any
	if err := json.Unmarshal(out.Bytes(), &entry); err != nil {
		t.Fatalf("%q is not one JSON object: %v", out.String(), err)
	}
	if entry["msg"] != "this" || entry["pool"] != "models/llama" || entry["level"] != "WARN" {
		t.Errorf("entry is %v", entry)
	}
}
