// Package endpointmetrics makes metrics of each endpoint, and of each pool's need of endpoints, from a livestate.State, only when they are scraped. It must
// not know how the state comes about. Labels name endpoints of existing pools, and nothing from clients.
package endpointmetrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/livestate"
)

// gauge is one metric of an endpoint. value returns false for an unknown value, which gets no series.
type gauge struct {
	desc  *prometheus.Desc
	value func(*livestate.Endpoint) (float64, bool)
}

type collector struct {
	state  func() livestate.State
	gauges []gauge
}

// New makes a collector of the metrics of the state.
func New(state func() livestate.State) prometheus.Collector {
	return &collector{state: state, gauges: []gauge{
		always("ready", "1 if the endpoint can be picked, 0 if it has left its pool and still has calls.",
			func(e *livestate.Endpoint) float64 {
				if e.Ready {
					return 1
				}
				return 0
			}),
		always("requests_reserved", "Calls of this picker in flight at the endpoint.",
			func(e *livestate.Endpoint) float64 { return float64(e.ReservedRequests) }),
		always("tokens_reserved", "Estimated uncached prompt tokens of this picker's calls that wait in the prefill queue.",
			func(e *livestate.Endpoint) float64 { return e.ReservedTokens }),
		always("expected_first_token_seconds", "Expected time to first token of an average call that arrives now.",
			func(e *livestate.Endpoint) float64 { return e.FirstToken }),
		always("bytes_per_token", "Bytes of a prompt's text for each token that the endpoint counts, as the picker has learned. It begins at 4.",
			func(e *livestate.Endpoint) float64 { return e.BytesPerToken }),
		always("avoided_seconds", "Seconds for which the endpoint is still avoided after failures.",
			func(e *livestate.Endpoint) float64 { return e.Health.AvoidedFor }),
		read("reading_age_seconds", "Age of the last reading of the endpoint's metrics.",
			func(r *livestate.Reading) float64 { return r.Age }),
		read("requests_running", "Calls in the endpoint's batch, by the endpoint's metrics.",
			func(r *livestate.Reading) float64 { return float64(r.Running) }),
		read("requests_waiting", "Calls in the endpoint's queue, by the endpoint's metrics.",
			func(r *livestate.Reading) float64 { return float64(r.Waiting) }),
		read("kv_cache_usage_ratio", "Share of the endpoint's KV cache that running calls use.",
			func(r *livestate.Reading) float64 { return r.KVUse }),
		{describe("cached_ratio", "Share of recent prompt tokens that the endpoint found in its prefix cache."),
			func(e *livestate.Endpoint) (float64, bool) { return known(e.CachedShare) }},
		{describe("told_cached_tokens", "Tokens that the endpoint has told, by its events, that its cache has. There is no value where the pool does not ask for events, and 0 where the endpoint is not heard."),
			func(e *livestate.Endpoint) (float64, bool) {
				if e.ToldTokens == nil {
					return 0, false
				}
				return float64(*e.ToldTokens), true
			}},
		{describe("observed_first_token_seconds", "Recent mean time to first token, by the endpoint's metrics."),
			func(e *livestate.Endpoint) (float64, bool) { return known(e.ObservedFirstToken) }},
		{describe("observed_to_expected_first_token_ratio",
			"Times to first token of this picker's recent calls, as multiples of the expected ones: their geometric mean."),
			func(e *livestate.Endpoint) (float64, bool) { return known(e.ObservedToExpected) }},
	}}
}

// needed is the metric of a pool.
var needed = prometheus.NewDesc("inference_waypoint_servers_needed",
	"Servers that the pool's calls need at the speed of its servers: for the prompts that come and those that wait, and for the memory of the calls that run, whichever is more. A picker that stands by has no value; of a split pool each picker takes the others' calls to be like its own.",
	[]string{"pool"}, nil)

func describe(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("inference_waypoint_endpoint_"+name, help, []string{"pool", "endpoint"}, nil)
}

func always(name, help string, value func(*livestate.Endpoint) float64) gauge {
	return gauge{describe(name, help), func(e *livestate.Endpoint) (float64, bool) { return value(e), true }}
}

func read(name, help string, value func(*livestate.Reading) float64) gauge {
	return gauge{describe(name, help), func(e *livestate.Endpoint) (float64, bool) {
		if e.Reading == nil {
			return 0, false
		}
		return value(e.Reading), true
	}}
}

func known(v *float64) (float64, bool) {
	if v == nil {
		return 0, false
	}
	return *v, true
}

func (c *collector) Describe(out chan<- *prometheus.Desc) {
	out <- needed
	for _, g := range c.gauges {
		out <- g.desc
	}
}

func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, p := range c.state().Pools {
		if p.Needed != nil {
			out <- prometheus.MustNewConstMetric(needed, prometheus.GaugeValue, *p.Needed, p.Name)
		}
		for i := range p.Endpoints {
			e := &p.Endpoints[i]
			for _, g := range c.gauges {
				if v, ok := g.value(e); ok {
					out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, v, p.Name, e.Address)
				}
			}
		}
	}
}
