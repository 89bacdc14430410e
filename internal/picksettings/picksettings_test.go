package picksettings

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	with := func(change func(*Settings)) Settings {
		s := Defaults()
		change(&s)
		return s
	}
	tests := map[string]struct {
		annotations map[string]string // without the prefix
		want        Settings
		wantWrong   []string // what each error tells, in their order
	}{
		"none": {want: Defaults()},
		"all": {
			annotations: map[string]string{
				"session-header": "X-Session-ID", "cache-bias": "1.5", "spread": "3", "prefill-rate": "20000", "cache-tokens": "100000",
				"adapter-load-time": "300ms", "avoid-for": "2s", "avoid-max": "5m", "engine": "sglang", "metrics-path": "/m",
				"usage": "true", "prefix-source": "events", "split": "callers", "patience": "5s", "callers": "a/* priority=1", "endpoints-within": "2m", "trust-callers": "true",
			},
			want: Settings{
				SessionHeader: "x-session-id", CacheBias: 1.5, Spread: 3, PrefillRate: 20000, CacheTokens: 100_000,
				AdapterLoad: 300 * time.Millisecond, AvoidFor: 2 * time.Second, AvoidMax: 5 * time.Minute, Engine: "sglang", MetricsPath: "/m",
				Usage: true, PrefixEvents: true, Split: true, Patience: 5 * time.Second, Callers: "a/* priority=1", EndpointsWithin: 2 * time.Minute,
				TrustCallers: true,
			},
		},
		"a wrong one leaves the others": {
			annotations: map[string]string{"spread": "0.5", "cache-bias": "2"},
			want:        with(func(s *Settings) { s.CacheBias = 2 }),
			wantWrong:   []string{`inference-waypoint.io/pick-spread is "0.5": want a number from 1 to 100`},
		},
		"all that is wrong at once": {
			annotations: map[string]string{
				"session-header": "a b", "cache-bias": "NaN", "prefill-rate": "-1", "cache-tokens": "1e9", "adapter-load-time": "5",
				"avoid-for": "0s", "avoid-max": "48h", "engine": "llama", "metrics-path": "metrics", "usage": "yes", "prefix-source": "zmq", "split": "sessions",
				"patience": "6m", "callers": "everybody", "endpoints-within": "-1s", "trust-callers": "all",
			},
			want: Defaults(),
			wantWrong: []string{"pick-adapter-load-time", "pick-avoid-for", "pick-avoid-max", "pick-cache-bias", "pick-cache-tokens",
				"pick-callers", "pick-endpoints-within", "pick-engine", "pick-metrics-path", "pick-patience", "pick-prefill-rate", "pick-prefix-source", "pick-session-header", "pick-split", "pick-trust-callers", "pick-usage"},
		},
		"a misspelt one": {
			annotations: map[string]string{"sesion-header": "x"}, want: Defaults(),
			wantWrong: []string{"there is no annotation inference-waypoint.io/pick-sesion-header"},
		},
		"times in the wrong order": {
			annotations: map[string]string{"avoid-for": "2m"},
			want:        with(func(s *Settings) { s.AvoidFor, s.AvoidMax = 2*time.Minute, 2*time.Minute }),
			wantWrong:   []string{"less than avoid-for"},
		},
		"an empty header":       {annotations: map[string]string{"session-header": ""}, want: Defaults(), wantWrong: []string{"want the name of a header"}},
		"an empty engine":       {annotations: map[string]string{"engine": ""}, want: Defaults(), wantWrong: []string{"want one of vllm"}},
		"a value of a megabyte": {annotations: map[string]string{"spread": strings.Repeat("9", 1<<20)}, want: Defaults(), wantWrong: []string{"pick-spread"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{"inference-waypoint.io/failure-mode": "FailOpen", "example.com/pick-spread": "x"}
			for k, v := range tt.annotations {
				annotations[Prefix+k] = v
			}
			got, wrong := Parse(annotations)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if len(wrong) != len(tt.wantWrong) {
				t.Fatalf("wrong are %d, want %d: %v", len(wrong), len(tt.wantWrong), errors.Join(wrong...))
			}
			for i, want := range tt.wantWrong {
				if text := wrong[i].Error(); !strings.Contains(text, want) || len(text) > 500 {
					t.Errorf("error %d does not tell of %s, in few words: %.600s", i, want, text)
				}
			}
		})
	}
}

// docs/picker-settings.md has every annotation with its default.
func TestSettingsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/picker-settings.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{} // default by name
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.HasPrefix(cells[1], " `pick-") {
			continue
		}
		name := strings.TrimPrefix(strings.Trim(cells[1], " `"), "pick-")
		documented[name] = strings.Trim(cells[3], " `")
	}
	d := Defaults()
	want := map[string]string{
		"session-header": "none", "engine": "found out", "metrics-path": d.MetricsPath,
		"cache-bias": fmt.Sprint(d.CacheBias), "spread": fmt.Sprint(d.Spread), "prefill-rate": fmt.Sprint(d.PrefillRate),
		"cache-tokens": fmt.Sprint(d.CacheTokens), "adapter-load-time": text(d.AdapterLoad),
		"avoid-for": text(d.AvoidFor), "avoid-max": text(d.AvoidMax), "usage": fmt.Sprint(d.Usage), "prefix-source": "text", "split": "none",
		"patience": text(d.Patience), "callers": "none", "endpoints-within": text(d.EndpointsWithin), "trust-callers": fmt.Sprint(d.TrustCallers),
	}
	if diff := cmp.Diff(want, documented); diff != "" {
		t.Errorf("defaults in docs/picker-settings.md (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(setters)), slices.Sorted(maps.Keys(want))); diff != "" {
		t.Errorf("names of settings (-want +got):\n%s", diff)
	}
}

// text is a time as people write it: 1m, not 1m0s.
func text(d time.Duration) string {
	return strings.TrimSuffix(d.String(), "m0s") + map[bool]string{true: "m"}[d >= time.Minute && d%time.Minute == 0]
}
