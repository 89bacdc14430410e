package explain

import (
	"path/filepath"
	"testing"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/snapshottest"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

func TestText(t *testing.T) {
	age, late, early := 0.12, 1.23, 0.0456
	warm := livestate.Candidate{
		Endpoint: "10.244.0.6:8000", CachedTokens: 1100, UncachedTokens: 134, InFlight: 2, ReadingAge: &age, FirstToken: 0.0201,
		ObservedToExpected: &late, Cost: livestate.Cost{Total: 0.031, Prefill: 0.0201, Batch: 0.0109},
	}
	cold := livestate.Candidate{
		Endpoint: "10.244.0.7:8000", UncachedTokens: 1234, ReadingAge: &age, FirstToken: 0.185,
		Cost: livestate.Cost{Total: 0.185, Prefill: 0.185},
	}
	full := livestate.Candidate{Endpoint: "10.244.0.8:8000", UncachedTokens: 1234, Class: "no adapter slot", AdapterState: "slots in use", FirstToken: 1.5}
	busy := livestate.Candidate{
		Endpoint: "10.244.0.9:8000", CachedTokens: 1234, QueueTokens: 30_000, FirstToken: 4.5, ObservedToExpected: &early,
		Cost: livestate.Cost{Total: 4.5, Wait: 4.5},
	}
	names := map[string]string{"10.244.0.6:8000": "llama-0", "10.244.0.7:8000": "llama-1"}
	tests := map[string]struct {
		candidates []livestate.Candidate
		wide       bool
	}{
		"cached":      {candidates: []livestate.Candidate{warm, cold, busy, full}},
		"cached-wide": {candidates: []livestate.Candidate{warm, cold, busy, full}, wide: true},
		"cold":        {candidates: []livestate.Candidate{cold, cold}},
		"whole":       {candidates: []livestate.Candidate{busy}},
		"nowhere":     {},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := Report{
				Explanation: livestate.Explanation{Pool: "models/llama", Model: "llama-3.1-8b", PromptTokens: 1234, Candidates: tt.candidates},
				Names:       names, Picker: "pod inference-system/inference-picker-0",
			}
			snapshottest.Golden(t, filepath.Join("testdata", name+".txt"), r.Text(tt.wide))
		})
	}
}
