package endpointmetrics

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

func TestCollector(t *testing.T) {
	share, late, told := 0.5, 1.5, 4096
	state := livestate.State{Pools: []livestate.Pool{{Name: "models/llama", Endpoints: []livestate.Endpoint{{
		Address: "10.0.0.1:8000", Ready: true, ReservedRequests: 2, ReservedTokens: 300, FirstToken: 0.25, CachedShare: &share,
		Reading: &livestate.Reading{Age: 0.1, Running: 3, Waiting: 4, KVUse: 0.75}, ObservedFirstToken: &share, ObservedToExpected: &late, BytesPerToken: 4.5, ToldTokens: &told,
	}, {
		Address: "10.0.0.2:8000", Health: livestate.Health{AvoidedFor: 1.5},
	}}}}}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(New(func() livestate.State { return state }))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			got[f.GetName()] += fmt.Sprintf("%s %s %g ", m.GetLabel()[1].GetValue(), m.GetLabel()[0].GetValue(), m.GetGauge().GetValue())
		}
	}
	const one, two = "models/llama 10.0.0.1:8000 ", "models/llama 10.0.0.2:8000 "
	want := map[string]string{
		"inference_waypoint_endpoint_ready":                                  one + "1 " + two + "0 ",
		"inference_waypoint_endpoint_observed_to_expected_first_token_ratio": one + "1.5 ",
		"inference_waypoint_endpoint_requests_reserved":                      one + "2 " + two + "0 ",
		"inference_waypoint_endpoint_tokens_reserved":                        one + "300 " + two + "0 ",
		"inference_waypoint_endpoint_expected_first_token_seconds":           one + "0.25 " + two + "0 ",
		"inference_waypoint_endpoint_bytes_per_token":                        one + "4.5 " + two + "0 ",
		"inference_waypoint_endpoint_told_cached_tokens":                     one + "4096 ",
		"inference_waypoint_endpoint_avoided_seconds":                        one + "0 " + two + "1.5 ",
		"inference_waypoint_endpoint_reading_age_seconds":                    one + "0.1 ",
		"inference_waypoint_endpoint_requests_running":                       one + "3 ",
		"inference_waypoint_endpoint_requests_waiting":                       one + "4 ",
		"inference_waypoint_endpoint_kv_cache_usage_ratio":                   one + "0.75 ",
		"inference_waypoint_endpoint_cached_ratio":                           one + "0.5 ",
		"inference_waypoint_endpoint_observed_first_token_seconds":           one + "0.5 ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}
