package poolstate

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

func TestParseSettings(t *testing.T) {
	tests := map[string]struct {
		annotations map[string]string // without the prefix
		want        Settings
		wantWrong   int
	}{
		"none": {want: Settings{Rule: selection.Defaults(), CacheTokens: 524288, Engine: modelmetrics.Detect, MetricsPath: "/metrics"}},
		"all, and a wrong one": {
			annotations: map[string]string{
				"session-header": "X-Session-ID", "cache-bias": "1.5", "spread": "3", "prefill-rate": "20000", "cache-tokens": "100000",
				"adapter-load-time": "300ms", "avoid-for": "2s", "avoid-max": "5m", "engine": "sglang", "metrics-path": "/m", "sprad": "5",
			},
			want: Settings{
				Rule: selection.Settings{
					CacheBias: 1.5, Spread: 3, PrefillRate: 20000,
					AdapterLoad: 300 * time.Millisecond, AvoidFor: 2 * time.Second, AvoidMax: 5 * time.Minute,
				},
				SessionHeader: "x-session-id", CacheTokens: 100_000, Engine: modelmetrics.SGLang, MetricsPath: "/m",
			},
			wantWrong: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{}
			for k, v := range tt.annotations {
				annotations[picksettings.Prefix+k] = v
			}
			got, wrong := ParseSettings(annotations)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
			if len(wrong) != tt.wantWrong {
				t.Errorf("wrong are %v, want %d", wrong, tt.wantWrong)
			}
		})
	}
}

// The engines that an annotation may name are those whose metrics can be read.
func TestEnginesOfSettingsAreKnown(t *testing.T) {
	var known []string
	for e := modelmetrics.VLLM; ; e++ {
		name := e.String()
		if parsed, err := modelmetrics.ParseEngine(name); err != nil || parsed != e {
			break
		}
		known = append(known, name)
	}
	if diff := cmp.Diff(slices.Sorted(slices.Values(known)), slices.Sorted(slices.Values(picksettings.Engines))); diff != "" {
		t.Errorf("engines (-that can be read +that can be named):\n%s", diff)
	}
}
