// Package metrics is the server's metrics page, with vLLM's names, labels and
// buckets. It reads the engine's state at each request of the page. It decides
// nothing.
//
// Latencies are those of callers: with a time scale of 20 they are 20 times
// shorter than the model's.
package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
)

// engineLabel is the index of the only engine.
const engineLabel = "0"

// Metrics is the metrics page of one server.
type Metrics struct {
	registry   *prometheus.Registry
	firstToken prometheus.Observer
	latency    prometheus.Observer
	finished   *prometheus.CounterVec
}

// New returns the page of a server for a base model with this name.
func New(model string, e *engine.Engine) *Metrics {
	labels := prometheus.Labels{"model_name": model, "engine": engineLabel}
	firstToken := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "vllm:time_to_first_token_seconds", Help: "Time to first token in seconds.", ConstLabels: labels,
		Buckets: []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560},
	})
	latency := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "vllm:e2e_request_latency_seconds", Help: "Time from arrival to the last token in seconds.", ConstLabels: labels,
		Buckets: []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680},
	})
	finished := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "vllm:request_success_total", Help: "Finished requests by reason.", ConstLabels: labels,
	}, []string{"finished_reason"})
	for _, reason := range []engine.FinishReason{engine.FinishStop, engine.FinishLength, engine.FinishAbort} {
		finished.WithLabelValues(string(reason))
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(firstToken, latency, finished, newEngineCollector(labels, e),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Metrics{registry: registry, firstToken: firstToken, latency: latency, finished: finished}
}

// Handler serves the page.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// FirstToken records the time from a request's arrival to its first token.
func (m *Metrics) FirstToken(d time.Duration) { m.firstToken.Observe(d.Seconds()) }

// Finished records why a request ended and, if it ended by itself, its duration.
func (m *Metrics) Finished(reason engine.FinishReason, d time.Duration) {
	m.finished.WithLabelValues(string(reason)).Inc()
	if reason != engine.FinishAbort {
		m.latency.Observe(d.Seconds())
	}
}

// engineCollector exports the engine's state as metrics.
type engineCollector struct {
	engine *engine.Engine

	running, waiting, usage      *prometheus.Desc
	prompt, generation           *prometheus.Desc
	cacheQueries, cacheHits      *prometheus.Desc
	cacheConfig, loraRequestInfo *prometheus.Desc
}

func newEngineCollector(labels prometheus.Labels, e *engine.Engine) *engineCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, nil, labels)
	}
	return &engineCollector{
		engine:       e,
		running:      desc("vllm:num_requests_running", "Requests in the running batch."),
		waiting:      desc("vllm:num_requests_waiting", "Requests waiting to be run."),
		usage:        desc("vllm:kv_cache_usage_perc", "KV cache blocks in use; 1 means all."),
		prompt:       desc("vllm:prompt_tokens_total", "Prompt tokens processed."),
		generation:   desc("vllm:generation_tokens_total", "Tokens generated."),
		cacheQueries: desc("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache."),
		cacheHits:    desc("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache."),
		// In vLLM neither of these two has a model_name, and the second has no engine.
		cacheConfig: prometheus.NewDesc("vllm:cache_config_info", "The cache's configuration.",
			[]string{"block_size", "num_gpu_blocks"}, prometheus.Labels{
				"engine": engineLabel, "cache_dtype": "auto", "enable_prefix_caching": "True",
			}),
		loraRequestInfo: prometheus.NewDesc("vllm:lora_requests_info",
			"Adapters of running and waiting requests; the value is when that was so, and the newest holds.",
			[]string{"max_lora", "running_lora_adapters", "waiting_lora_adapters"}, nil),
	}
}

// Describe names every metric that Collect may send.
func (c *engineCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.running, c.waiting, c.usage, c.prompt, c.generation,
		c.cacheQueries, c.cacheHits, c.cacheConfig, c.loraRequestInfo,
	} {
		descs <- d
	}
}

// Collect reads the engine once, so that all values are of the same moment.
func (c *engineCollector) Collect(metrics chan<- prometheus.Metric) {
	stats, cfg := c.engine.Stats(), c.engine.Config()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v int) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(c.running, float64(stats.Running))
	gauge(c.waiting, float64(stats.Waiting))
	gauge(c.usage, float64(stats.UsedBlocks)/float64(stats.NumBlocks))
	counter(c.prompt, stats.Totals.PromptTokens)
	counter(c.generation, stats.Totals.GenerationTokens)
	counter(c.cacheQueries, stats.Totals.CacheQueries)
	counter(c.cacheHits, stats.Totals.CacheHits)
	gauge(c.cacheConfig, 1, strconv.Itoa(cfg.BlockSize), strconv.Itoa(cfg.NumBlocks))
	for _, set := range stats.LoRAs {
		at := float64(set.At.UnixNano()) / float64(time.Second)
		gauge(c.loraRequestInfo, at, strconv.Itoa(cfg.MaxLoRAs), set.Running, set.Waiting)
	}
}
