package fleet

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/modelmetrics"
)

func TestParseSettings(t *testing.T) {
	with := func(change func(*Settings)) Settings {
		s := DefaultSettings()
		change(&s)
		return s
	}
	tests := map[string]struct {
		annotations map[string]string // without the prefix
		want        Settings
		wantErr     []string // all of these are told
	}{
		"none": {want: DefaultSettings()},
		"all": {
			annotations: map[string]string{
				"session-header": "X-Session-ID", "cache-bias": "1.5", "spread": "3", "prefill-rate": "20000", "cache-tokens": "100000",
				"adapter-load-time": "300ms", "avoid-for": "2s", "avoid-max": "5m", "engine": "sglang", "metrics-path": "/m",
			},
			want: with(func(s *Settings) {
				s.SessionHeader, s.Rule.CacheBias, s.Rule.Spread, s.Rule.PrefillRate = "x-session-id", 1.5, 3, 20000
				s.CacheTokens, s.Rule.AdapterLoad, s.Rule.AvoidFor, s.Rule.AvoidMax = 100_000, 300*time.Millisecond, 2*time.Second, 5*time.Minute
				s.Engine, s.MetricsPath = modelmetrics.SGLang, "/m"
			}),
		},
		"a wrong one leaves the others": {
			annotations: map[string]string{"spread": "0.5", "cache-bias": "2"},
			want:        with(func(s *Settings) { s.Rule.CacheBias = 2 }),
			wantErr:     []string{"inference-waypoint.io/pick-spread", `"0.5"`, "1 to 100"},
		},
		"all that is wrong at once": {
			annotations: map[string]string{
				"session-header": "a b", "cache-bias": "NaN", "prefill-rate": "-1", "cache-tokens": "1e9", "adapter-load-time": "5",
				"avoid-for": "0s", "avoid-max": "48h", "engine": "llama", "metrics-path": "metrics",
			},
			want: DefaultSettings(),
			wantErr: []string{"pick-session-header", "pick-cache-bias", "pick-prefill-rate", "pick-cache-tokens", "pick-adapter-load-time",
				"pick-avoid-for", "pick-avoid-max", "pick-engine", "pick-metrics-path"},
		},
		"a misspelt one": {
			annotations: map[string]string{"sesion-header": "x"}, want: DefaultSettings(),
			wantErr: []string{"pick-sesion-header", "session-header"},
		},
		"times in the wrong order": {
			annotations: map[string]string{"avoid-for": "2m"},
			want:        with(func(s *Settings) { s.Rule.AvoidFor, s.Rule.AvoidMax = 2*time.Minute, 2*time.Minute }),
			wantErr:     []string{"less than avoid-for"},
		},
		"an empty header": {annotations: map[string]string{"session-header": ""}, want: DefaultSettings(), wantErr: []string{"want the name of a header"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{"inference-waypoint.io/failure-mode": "FailOpen", "example.com/pick-spread": "x"}
			for k, v := range tt.annotations {
				annotations[AnnotationPrefix+k] = v
			}
			got, err := ParseSettings(annotations)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if (err != nil) != (tt.wantErr != nil) {
				t.Fatalf("error is %v, want one: %v", err, tt.wantErr != nil)
			}
			for _, want := range tt.wantErr {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error does not tell of %s: %v", want, err)
				}
			}
		})
	}
}
