package poolstate

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Averages hold no counts from before a restart, or from long ago.
func TestObservedForgets(t *testing.T) {
	var o observed
	at := time.Unix(100, 0)
	take := func(seconds int, r modelmetrics.Reading) {
		r.At = at.Add(time.Duration(seconds) * time.Second)
		o.take(r, time.Duration(seconds)*time.Second)
	}
	take(0, modelmetrics.Reading{CacheQueries: 500, CacheHits: 500})
	if got := o.cachedShare(); !math.IsNaN(got) {
		t.Errorf("before anything was counted the share is %v", got)
	}
	take(1, modelmetrics.Reading{CacheQueries: 100, CacheHits: 100, Restarts: 1})
	take(2, modelmetrics.Reading{CacheQueries: 200, CacheHits: 150, Restarts: 1})
	take(1, modelmetrics.Reading{CacheQueries: 9000, Restarts: 1}) // older than the last
	if got := o.cachedShare(); got != 0.5 {
		t.Errorf("the share is %v, want 0.5", got)
	}
	take(1000, modelmetrics.Reading{CacheQueries: 200, CacheHits: 150, Restarts: 1})
	if got := o.cachedShare(); !math.IsNaN(got) {
		t.Errorf("long after the last call the share is %v", got)
	}
}

// Some of the latest picks are kept, each with the chosen endpoint and the next best.
func TestRecentPicks(t *testing.T) {
	p, clock := poolOf(t, numbered(3)...)
	r, home := pick(t, p, prompt(1, 20))
	r.Release(Answered)
	clock.now = recentInterval / 2
	r, _ = pick(t, p, prompt(2, 20)) // too early to be kept
	r.Release(Answered)
	clock.now = recentInterval
	facts := prompt(1, 20)
	facts.Model = strings.Repeat("m", 10<<10)
	r, _ = pick(t, p, facts)
	r.Release(Answered)
	got := p.Snapshot().Picks
	if len(got) != 2 || got[0].At != recentInterval || got[1].At != 0 {
		t.Fatalf("kept are %+v, want the picks at %s and at 0", got, recentInterval)
	}
	for _, d := range got {
		ranked := slices.ContainsFunc(d.Ranking, func(r Ranked) bool { return r.Address == home })
		if d.Chosen != home || d.Candidates != 3 || d.PromptTokens != 1280 || len(d.Ranking) != 2 || !ranked || len(d.Model) > 100 {
			t.Errorf("kept is %+v, want %s of 3 and the next best", d, home)
		}
	}
	if cached := got[0].Ranking[0].CachedTokens; cached != 1279 {
		t.Errorf("%d tokens were cached for the second pick, want 1,279", cached)
	}
	for i := range 3 * recentPicks {
		clock.now = time.Duration(i+2) * recentInterval
		r, _ = pick(t, p, prompt(uint64(i), 1))
		r.Release(Answered)
	}
	if got := len(p.Snapshot().Picks); got != recentPicks {
		t.Errorf("%d picks are kept, want %d", got, recentPicks)
	}
}

// At the debug level each pick logs its reasons, with clipped model names; at other levels no reasons are computed.
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
			why, err := f.Pool(llama).Pick(&Call{Facts: facts}, new(Reservation))
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

// The cost of keeping recent picks: "none" keeps none, "usual" as many as a pool of 100,000 calls a second keeps.
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
				if _, err := p.Pick(&Call{Facts: facts, Subset: *subset}, &r); err != nil {
					b.Fatal(err)
				}
				r.Release(Answered)
			}
		})
	}
}
