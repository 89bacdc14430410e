package top

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/cmd/kubectl-inference/internal/snapshottest"
	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

func TestText(t *testing.T) {
	share, first, late, told := 0.79, 0.0264, 1.46, 409600
	endpoints := []livestate.Endpoint{
		{
			Name: "llama-0", Address: "10.244.0.6:8000", Ready: true, ReservedRequests: 3, ReservedTokens: 1234.4, CachedShare: &share,
			FirstToken: 0.051, ObservedFirstToken: &first, ObservedToExpected: &late, PrefillRate: 8000, ToldTokens: &told,
			Reading: &livestate.Reading{Age: 0.15, Running: 7, Waiting: 2, KVUse: 0.634, Adapters: &livestate.Adapters{Slots: 8, Known: []string{"de", "en", "fr", "it", "pl"}}},
		},
		{Name: "llama-1", Address: "10.244.0.7:8000", Ready: true, Health: livestate.Health{Failures: 3, AvoidedFor: 4.2}, PrefillRate: 8000},
		{Address: "10.244.0.8:8000", Reading: &livestate.Reading{Age: 30, Running: 1}, ReservedRequests: 1},
	}
	needed := 5.3
	line := livestate.Line{Calls: 12, Tokens: 34_000, Oldest: 3.21, Callers: []livestate.LineCaller{
		{Caller: "spiffe://cluster.local/ns/shop/sa/web", Priority: 1, Weight: 2, Calls: 11, Oldest: 3.21}, {Weight: 1, Calls: 1, Oldest: 0.5},
	}}
	for name, wide := range map[string]bool{"pool": false, "pool-wide": true, "pool-waiting": false} {
		t.Run(name, func(t *testing.T) {
			r := Report{Picker: "pod inference-system/inference-picker-0", State: livestate.State{
				Time: time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC), Picker: "inference-picker-0",
				Others: []livestate.Other{{Picker: "10.244.0.9:9004"}, {Picker: "inference-picker-1", Silent: &share}},
				Pools: []livestate.Pool{{
					Name: "models/llama", Endpoints: endpoints, PickedBy: []livestate.PickedBy{{Picker: "inference-picker-0", Since: 60, Until: 0.1}},
				}},
			}}
			if name == "pool-waiting" {
				r.Pools[0].Line, r.Pools[0].Needed = line, &needed
			}
			snapshottest.Golden(t, filepath.Join("testdata", name+".txt"), r.Text(wide))
		})
	}
}
