package explain

import (
	"testing"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

func TestReason(t *testing.T) {
	tests := map[string]struct {
		first, second livestate.Candidate
		want          string
	}{
		"equal":   {livestate.Candidate{}, livestate.Candidate{}, "drawn among equals"},
		"queue":   {livestate.Candidate{}, livestate.Candidate{Cost: livestate.Cost{Wait: 2, Batch: 1}}, "shorter queue (2 s less)"},
		"calls":   {livestate.Candidate{}, livestate.Candidate{Cost: livestate.Cost{Wait: 1, Batch: 2}}, "fewer calls in flight (2 s less)"},
		"memory":  {livestate.Candidate{}, livestate.Candidate{Cost: livestate.Cost{Memory: 1}}, "more free KV memory (1 s less)"},
		"adapter": {livestate.Candidate{AdapterState: "resident"}, livestate.Candidate{Cost: livestate.Cost{Adapter: 1}}, "adapter resident (1 s less)"},
		"session": {livestate.Candidate{Cost: livestate.Cost{Session: -5}}, livestate.Candidate{}, "the session's own endpoint (5 s less)"},
		"speed":   {livestate.Candidate{}, livestate.Candidate{Cost: livestate.Cost{Prefill: 1}}, "faster prefill (1 s less)"},
		"class":   {livestate.Candidate{}, livestate.Candidate{Class: "failed lately"}, "the next best: failed lately"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := reason(&tt.first, &tt.second); got != tt.want {
				t.Errorf("reason is %q, want %q", got, tt.want)
			}
		})
	}
}
