package page

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

func ptr(v float64) *float64 { return &v }

// sample has an endpoint of each kind.
func sample() livestate.State {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e8, time.UTC)
	return livestate.State{Time: at, Picker: "picker-0", Others: []livestate.Other{
		{Picker: "10.0.0.9:9004"}, {Picker: "picker-1", Silent: ptr(0.3)},
	}, Pools: []livestate.Pool{{
		Name: "models/llama",
		Endpoints: []livestate.Endpoint{{
			Name: "llama-1", Address: "10.0.0.1:8000", Ready: true,
			Reading: &livestate.Reading{Age: 0.2, Running: 1234, Waiting: 5, KVUse: 0.625, Adapters: &livestate.Adapters{
				Slots: 4, Running: []string{"sql"}, Known: []string{"chat", "sql"},
			}},
			ReservedRequests: 7, ReservedTokens: 45678.4, CachedShare: ptr(0.305), FirstToken: 0.25, ObservedFirstToken: ptr(1.25),
			ObservedToExpected: ptr(1.46), PrefillRate: 8000,
		}, {
			Address: "10.0.0.2:8000", Ready: true,
		}, {
			Address: "10.0.0.3:8000", Ready: true, Health: livestate.Health{Failures: 2, AvoidedFor: 1.5},
		}, {
			Address: "10.0.0.4:8000", Reading: &livestate.Reading{Age: 9},
		}, {
			Address: "10.0.0.5:8000", Ready: true, Reading: &livestate.Reading{Age: 9},
		}},
		Picks: []livestate.Pick{{
			Time: at, Endpoint: "10.0.0.1:8000", Model: "<script>alert(1)</script>", Reason: "shorter queue (2 s less)",
			PromptTokens: 1280, CachedTokens: 640, Candidates: 5, Cost: 0.1, Second: ptr(2.1),
		}},
		PickedBy: []livestate.PickedBy{{Picker: "picker-0", Since: 60, Until: 0.1}},
	}, {
		Name: "models/twice", PickedBy: []livestate.PickedBy{{Picker: "picker-0", Since: 60}, {Picker: "picker-1", Since: 9, Until: 4}},
	}, {Name: "models/empty"}}}
}

func get(t *testing.T, state livestate.State, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(func() livestate.State { return state }).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

func TestPage(t *testing.T) {
	for _, path := range []string{"/", "/tables"} {
		body := get(t, sample(), path).Body.String()
		for _, want := range []string{
			"models/llama", "4 of 5 endpoints ready", "Running 1,234, waiting at the servers 5 and at the picker 0, in flight by this picker and those that it follows 7", "llama-1 <small>10.0.0.1:8000",
			"62 %", "45,678", "30 %", "250 ms", "1.2 s", "<td>1.5 ×</td>", "200 ms ago", "<b>sql</b> running", "2 of 4 slots: chat, sql",
			"not read", "avoided for 1.5 s", "leaving", "stale",
			"shorter queue (2 s less)", "&lt;script&gt;alert(1)", "2.1 s", "03:04:05.6",
			"This is picker picker-0.", "It knows what picker-1 decided until 0.3 s ago.", "⚠ It does not follow 10.0.0.9:9004.",
			"picker-0 picks for the pool, last 0.1 s ago.", "⚠ picker-0 and picker-1 pick for the pool at the same time.",
			"models/empty", "calls to this pool get 503", "None yet.",
		} {
			if !strings.Contains(body, want) {
				t.Errorf("%s lacks %q", path, want)
			}
		}
		if strings.Contains(body, "<script>alert") {
			t.Errorf("%s has a client's markup", path)
		}
		if whole := strings.Contains(body, "<!DOCTYPE html>"); whole != (path == "/") {
			t.Errorf("%s is a whole page: %v", path, whole)
		}
	}
	if body := get(t, livestate.State{}, "/").Body.String(); !strings.Contains(body, "No pool is known") {
		t.Error("a picker without pools does not say so")
	}
}

func TestHeaders(t *testing.T) {
	for path, kind := range map[string]string{
		"/": "text/html", "/tables": "text/html", "/page.css": "text/css", "/page.js": "text/javascript",
	} {
		w := get(t, sample(), path)
		h := w.Header()
		if w.Code != http.StatusOK || !strings.HasPrefix(h.Get("Content-Type"), kind) || w.Body.Len() == 0 {
			t.Errorf("%s: status %d, %s, %d bytes", path, w.Code, h.Get("Content-Type"), w.Body.Len())
		}
		if !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none'; script-src 'self'") ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s has the headers %v", path, h)
		}
	}
	if w := get(t, sample(), "/other"); w.Code != http.StatusNotFound {
		t.Errorf("another path gives %d, want 404", w.Code)
	}
	w := httptest.NewRecorder()
	Handler(sample).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST gives %d, want 405", w.Code)
	}
}

// The policy forbids what stands in the page itself.
func TestNothingInline(t *testing.T) {
	body := get(t, sample(), "/").Body.String()
	for _, inline := range []string{"<style", " style=", "onclick", "<script>", "javascript:", "http://", "https://"} {
		if strings.Contains(body, inline) {
			t.Errorf("the page has %s", inline)
		}
	}
}

func BenchmarkTables(b *testing.B) {
	state := sample()
	for i := range 100 {
		e := state.Pools[0].Endpoints[0]
		e.Name = fmt.Sprint(i)
		state.Pools[0].Endpoints = append(state.Pools[0].Endpoints, e)
	}
	h := Handler(func() livestate.State { return state })
	for b.Loop() {
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/tables", nil))
	}
}
