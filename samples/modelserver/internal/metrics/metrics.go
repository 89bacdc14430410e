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
	queue      prometheus.Observer
	prefill    prometheus.Observer
	decode     prometheus.Observer
	computed   prometheus.Observer
	finished   *prometheus.CounterVec
}

// Buckets of vLLM's histograms.
var (
	firstTokenBuckets = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	latencyBuckets    = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	tokenBuckets      = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000}
)

// New returns the page of a server for a base model with this name.
func New(model string, e *engine.Engine) *Metrics {
	labels := prometheus.Labels{"model_name": model, "engine": engineLabel}
	registry := prometheus.NewRegistry()
	histogram := func(name, help string, buckets []float64) prometheus.Observer {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: labels, Buckets: buckets})
		registry.MustRegister(h)
		return h
	}
	finished := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "vllm:request_success_total", Help: "Finished requests by reason.", ConstLabels: labels,
	}, []string{"finished_reason"})
	for _, reason := range []engine.FinishReason{engine.FinishStop, engine.FinishLength, engine.FinishAbort} {
		finished.WithLabelValues(string(reason))
	}
	registry.MustRegister(finished, newEngineCollector(labels, e),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return &Metrics{
		registry:   registry,
		finished:   finished,
		firstToken: histogram("vllm:time_to_first_token_seconds", "Time to first token in seconds.", firstTokenBuckets),
		latency:    histogram("vllm:e2e_request_latency_seconds", "Time from arrival to the last token in seconds.", latencyBuckets),
		queue:      histogram("vllm:request_queue_time_seconds", "Time from arrival to the first step in seconds.", latencyBuckets),
		prefill:    histogram("vllm:request_prefill_time_seconds", "Time from the first step to the first token in seconds.", latencyBuckets),
		decode:     histogram("vllm:request_decode_time_seconds", "Time from the first token to the last in seconds.", latencyBuckets),
		computed:   histogram("vllm:request_prefill_kv_computed_tokens", "Prompt tokens that were not found in the prefix cache.", tokenBuckets),
	}
}

// Handler serves the page.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// FirstToken records the time from a request's arrival to its first token.
func (m *Metrics) FirstToken(d time.Duration) { m.firstToken.Observe(d.Seconds()) }

// Finished records why a request ended, by its last output, and, if it ended by
// itself, where its time went.
func (m *Metrics) Finished(last engine.Output, d time.Duration) {
	m.finished.WithLabelValues(string(last.Finish)).Inc()
	if last.Finish == engine.FinishAbort {
		return
	}
	m.latency.Observe(d.Seconds())
	m.queue.Observe(last.Timing.Queue.Seconds())
	m.prefill.Observe(last.Timing.Prefill.Seconds())
	m.decode.Observe(last.Timing.Decode.Seconds())
	m.computed.Observe(float64(last.PromptTokens - last.CachedTokens))
}

// engineCollector exports the engine's state as metrics.
type engineCollector struct {
	engine *engine.Engine

	running, waiting, usage      *prometheus.Desc
	waitingBy, promptBy          *prometheus.Desc
	prompt, generation           *prometheus.Desc
	cacheQueries, cacheHits      *prometheus.Desc
	cacheConfig, loraRequestInfo *prometheus.Desc
}

func newEngineCollector(labels prometheus.Labels, e *engine.Engine) *engineCollector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, nil, labels)
	}
	return &engineCollector{
		engine:  e,
		running: desc("vllm:num_requests_running", "Requests in the running batch."),
		waiting: desc("vllm:num_requests_waiting", "Requests waiting to be run."),
		waitingBy: prometheus.NewDesc("vllm:num_requests_waiting_by_reason",
			"Requests waiting to be run: for capacity, or deferred for want of their adapter.", []string{"reason"}, labels),
		promptBy: prometheus.NewDesc("vllm:prompt_tokens_by_source_total",
			"Prompt tokens processed, by where they came from.", []string{"source"}, labels),
		usage:        desc("vllm:kv_cache_usage_perc", "KV cache blocks in use; 1 means all."),
		prompt:       desc("vllm:prompt_tokens_total", "Prompt tokens processed."),
		generation:   desc("vllm:generation_tokens_total", "Tokens generated."),
		cacheQueries: desc("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache."),
		cacheHits:    desc("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache."),
		// In vLLM neither of these two has a model_name, and the second has no engine.
		cacheConfig: prometheus.NewDesc("vllm:cache_config_info", "The cache's configuration.",
			[]string{"block_size", "num_gpu_blocks", "kv_cache_size_tokens"}, prometheus.Labels{
				"engine": engineLabel, "cache_dtype": "auto", "enable_prefix_caching": "True",
			}),
		loraRequestInfo: prometheus.NewDesc("vllm:lora_requests_info",
			"Adapters in use, in both labels; the value is when that was so, and the newest holds.",
			[]string{"max_lora", "running_lora_adapters", "waiting_lora_adapters"}, nil),
	}
}

// Describe names every metric that Collect may send.
func (c *engineCollector) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.running, c.waiting, c.waitingBy, c.usage, c.prompt, c.promptBy, c.generation,
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
	counter := func(d *prometheus.Desc, v int, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(c.running, float64(stats.Running))
	gauge(c.waiting, float64(stats.Waiting))
	gauge(c.waitingBy, float64(stats.Waiting-stats.Deferred), "capacity")
	gauge(c.waitingBy, float64(stats.Deferred), "deferred")
	gauge(c.usage, float64(stats.UsedBlocks)/float64(stats.NumBlocks))
	counter(c.prompt, stats.Totals.PromptTokens)
	counter(c.promptBy, stats.Totals.Computed, "local_compute")
	counter(c.promptBy, stats.Totals.Reused, "local_cache_hit")
	counter(c.promptBy, 0, "external_kv_transfer") // there is nothing to transfer from
	counter(c.generation, stats.Totals.GenerationTokens)
	counter(c.cacheQueries, stats.Totals.CacheQueries)
	counter(c.cacheHits, stats.Totals.CacheHits)
	gauge(c.cacheConfig, 1, strconv.Itoa(cfg.BlockSize), strconv.Itoa(cfg.NumBlocks), strconv.Itoa(cfg.BlockSize*cfg.NumBlocks))
	for _, set := range stats.LoRAs {
		at := float64(set.At.UnixNano()) / float64(time.Second)
		gauge(c.loraRequestInfo, at, strconv.Itoa(cfg.MaxLoRAs), set.Adapters, set.Adapters)
	}
}
