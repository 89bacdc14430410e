package explain

import (
	"path/filepath"
	"testing"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/snapshottest"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

func TestText(t *testing.T) {
	age := 0.12
	warm := poolstate.Candidate{
		Endpoint: "10.244.0.6:8000", CachedTokens: 1100, UncachedTokens: 134, InFlight: 2, ReadingAge: &age, FirstToken: 0.0201,
		Cost: poolstate.Cost{Total: 0.031, Prefill: 0.0201, Batch: 0.0109},
	}
	cold := poolstate.Candidate{
		Endpoint: "10.244.0.7:8000", UncachedTokens: 1234, ReadingAge: &age, FirstToken: 0.185,
		Cost: poolstate.Cost{Total: 0.185, Prefill: 0.185},
	}
	full := poolstate.Candidate{Endpoint: "10.244.0.8:8000", UncachedTokens: 1234, Class: "no adapter slot", AdapterState: "slots in use", FirstToken: 1.5}
	busy := poolstate.Candidate{
		Endpoint: "10.244.0.9:8000", CachedTokens: 1234, QueueTokens: 30_000, FirstToken: 4.5, Cost: poolstate.Cost{Total: 4.5, Wait: 4.5},
	}
	names := map[string]string{"10.244.0.6:8000": "llama-0", "10.244.0.7:8000": "llama-1"}
	tests := map[string]struct {
		candidates []poolstate.Candidate
		wide       bool
	}{
		"cached":      {candidates: []poolstate.Candidate{warm, cold, busy, full}},
		"cached-wide": {candidates: []poolstate.Candidate{warm, cold, busy, full}, wide: true},
		"cold":        {candidates: []poolstate.Candidate{cold, cold}},
		"whole":       {candidates: []poolstate.Candidate{busy}},
		"nowhere":     {},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			r := Report{
				Explanation: poolstate.Explanation{Pool: "models/llama", Model: "llama-3.1-8b", PromptTokens: 1234, Candidates: tt.candidates},
				Names:       names, Picker: "pod inference-system/inference-picker-0",
			}
			snapshottest.Golden(t, filepath.Join("testdata", name+".txt"), r.Text(tt.wide))
		})
	}
}
