package modelmetrics

import "fmt"

// Engine is the model server's program, which decides the names of its metrics.
type Engine uint8

// The engines whose metrics are known.
const (
	// Detect stands for the engine whose metrics the page has.
	Detect Engine = iota
	// VLLM is vLLM's own server, of versions 0.5 and later.
	VLLM
	// SGLang is SGLang's server, started with --enable-metrics.
	SGLang
	// TRTLLMServe is TensorRT-LLM's own server, trtllm-serve, with enable_iter_perf_stats.
	TRTLLMServe
	// TritonTRTLLM is the TensorRT-LLM backend of the Triton Inference Server. Its metrics are on their own port, 8002.
	TritonTRTLLM

	numEngines
)

// engineNames are the engines' names in the Gateway API Inference Extension.
var engineNames = [numEngines]string{
	Detect:       "",
	VLLM:         "vllm",
	SGLang:       "sglang",
	TRTLLMServe:  "trtllm-serve",
	TritonTRTLLM: "triton-tensorrt-llm",
}

// String is the engine's name, empty for Detect.
func (e Engine) String() string {
	if e >= numEngines {
		return fmt.Sprintf("Engine(%d)", uint8(e))
	}
	return engineNames[e]
}

// ParseEngine returns the engine of a name; the empty name is Detect.
func ParseEngine(name string) (Engine, error) {
	for e, n := range engineNames {
		if n == name {
			return Engine(e), nil
		}
	}
	return Detect, fmt.Errorf("unknown engine %q; known are %q", name, engineNames[1:])
}

// field is the meaning of a metric. Gauges come first and counters after them, as they are stored in arrays.
type field uint8

const (
	waiting field = iota
	running
	usage
	blockSize
	blocks
	capacity     // in tokens, where the server tells it outright
	waitingRoom  // of the waiting calls, those that wait for capacity
	waitingApart // calls that wait for something else, and that waiting does not count

	numGauges
)

const (
	promptTokens field = numGauges + iota
	cacheQueries
	cacheHits
	firstTokens
	generatedTokens
	computedTokens
	transferredTokens
	endedCalls

	// A restart is not seen by this counter: it is a sum of times, which a server can set back.
	firstTokenSeconds

	endOfCounters
	numCounters = endOfCounters - numGauges
	numCounts   = firstTokenSeconds - numGauges // the counters that never drop
)

const (
	cacheConfig    field = endOfCounters + iota // labels: block size, number of blocks, capacity in tokens
	loraRequests                                // labels: slots, running adapters, waiting adapters; value: Unix time
	requestsBy                                  // label: which gauge the sample is
	blocksBy                                    // label: which gauge the sample is
	waitingBy                                   // label: why the calls wait
	promptTokensBy                              // label: which counter the sample is
	processStart                                // Unix time
	unknownMetric                               // any other metric
)

// maxLabels is the greatest number of labels that are read of a metric.
const maxLabels = 3

// metric is a metric that is read: its meaning, and the labels that are read with it.
type metric struct {
	engine Engine
	field  field
	labels [maxLabels]string
}

// shardLabels name the label that distinguishes the engines behind one endpoint, each of which has its own queue and
// cache: the data-parallel ranks, and for Triton the models.
var shardLabels = [numEngines]string{
	VLLM:         "engine",
	SGLang:       "dp_rank",
	TritonTRTLLM: "model",
}

// metrics are the metrics that are read. Their sources, as of 2026, are vLLM's v1/metrics/loggers.py, SGLang's
// observability/metrics_collector.py (page_size and num_pages became gauges in 0.5.11), TensorRT-LLM's
// metrics/collector.py, and the README of Triton's tensorrtllm_backend.
var metrics = map[string]metric{
	"vllm:num_requests_waiting": {engine: VLLM, field: waiting},
	"vllm:num_requests_waiting_by_reason": {engine: VLLM, field: waitingBy,
		labels: [maxLabels]string{"reason"}},
	"vllm:num_requests_running": {engine: VLLM, field: running,
		labels: [maxLabels]string{"model_name"}},
	"vllm:kv_cache_usage_perc":  {engine: VLLM, field: usage},
	"vllm:gpu_cache_usage_perc": {engine: VLLM, field: usage}, // before 0.10; for a while both were shown, equal
	"vllm:cache_config_info": {engine: VLLM, field: cacheConfig,
		labels: [maxLabels]string{"block_size", "num_gpu_blocks", "kv_cache_size_tokens"}},
	"vllm:prompt_tokens_total": {engine: VLLM, field: promptTokens},
	"vllm:prompt_tokens_by_source_total": {engine: VLLM, field: promptTokensBy,
		labels: [maxLabels]string{"source"}},
	"vllm:generation_tokens_total":                  {engine: VLLM, field: generatedTokens},
	"vllm:prefix_cache_queries_total":               {engine: VLLM, field: cacheQueries},
	"vllm:prefix_cache_hits_total":                  {engine: VLLM, field: cacheHits},
	"vllm:time_to_first_token_seconds_count":        {engine: VLLM, field: firstTokens},
	"vllm:time_to_first_token_seconds_sum":          {engine: VLLM, field: firstTokenSeconds},
	"vllm:request_prefill_kv_computed_tokens_count": {engine: VLLM, field: endedCalls},
	"vllm:lora_requests_info": {engine: VLLM, field: loraRequests,
		labels: [maxLabels]string{"max_lora", "running_lora_adapters", "waiting_lora_adapters"}},

	"sglang:num_queue_reqs":         {engine: SGLang, field: waiting},
	"sglang:num_grammar_queue_reqs": {engine: SGLang, field: waitingApart},
	"sglang:num_running_reqs":       {engine: SGLang, field: running},
	"sglang:token_usage":            {engine: SGLang, field: usage},
	"sglang:page_size":              {engine: SGLang, field: blockSize},
	"sglang:num_pages":              {engine: SGLang, field: blocks},
	"sglang:max_total_num_tokens":   {engine: SGLang, field: capacity},
	"sglang:cache_config_info":      {engine: SGLang, field: cacheConfig, labels: [maxLabels]string{"page_size", "num_pages"}},
	"sglang:prompt_tokens_total":    {engine: SGLang, field: promptTokens},
	"sglang:realtime_tokens_total": {engine: SGLang, field: promptTokensBy,
		labels: [maxLabels]string{"mode"}},
	"sglang:generation_tokens_total":                {engine: SGLang, field: generatedTokens},
	"sglang:cached_tokens_total":                    {engine: SGLang, field: cacheHits},
	"sglang:time_to_first_token_seconds_count":      {engine: SGLang, field: firstTokens},
	"sglang:time_to_first_token_seconds_sum":        {engine: SGLang, field: firstTokenSeconds},
	"sglang:uncached_prompt_tokens_histogram_count": {engine: SGLang, field: endedCalls},

	"trtllm_num_requests_waiting":               {engine: TRTLLMServe, field: waiting},
	"trtllm_num_requests_running":               {engine: TRTLLMServe, field: running},
	"trtllm_kv_cache_utilization":               {engine: TRTLLMServe, field: usage},
	"trtllm_kv_cache_tokens_per_block":          {engine: TRTLLMServe, field: blockSize},
	"trtllm_kv_cache_max_blocks":                {engine: TRTLLMServe, field: blocks},
	"trtllm_prompt_tokens_total":                {engine: TRTLLMServe, field: promptTokens},
	"trtllm_generation_tokens_total":            {engine: TRTLLMServe, field: generatedTokens},
	"trtllm_prompt_cached_tokens_total":         {engine: TRTLLMServe, field: cacheHits},
	"trtllm_time_to_first_token_seconds_count":  {engine: TRTLLMServe, field: firstTokens},
	"trtllm_time_to_first_token_seconds_sum":    {engine: TRTLLMServe, field: firstTokenSeconds},
	"trtllm_request_prefill_time_seconds_count": {engine: TRTLLMServe, field: endedCalls},

	"nv_trt_llm_request_metrics":        {engine: TritonTRTLLM, field: requestsBy, labels: [maxLabels]string{"request_type"}},
	"nv_trt_llm_kv_cache_block_metrics": {engine: TritonTRTLLM, field: blocksBy, labels: [maxLabels]string{"kv_cache_block_type"}},

	"process_start_time_seconds": {field: processStart},
}

// requestGauge returns the gauge of one of Triton's request metrics, by its request_type.
func requestGauge(kind []byte) field {
	switch string(kind) {
	case "waiting":
		return waiting
	case "scheduled":
		return running
	}
	return unknownMetric
}

// blockGauge returns the gauge of one of Triton's block metrics, by its kv_cache_block_type.
func blockGauge(kind []byte) field {
	switch string(kind) {
	case "fraction":
		return usage
	case "tokens_per":
		return blockSize
	case "max":
		return blocks
	}
	return unknownMetric
}

// waitingGauge returns the gauge of vLLM's waiting calls that wait for a reason. The other reasons, of which there is
// one in 0.32, are what is left of all waiting calls.
func waitingGauge(reason []byte) field {
	if string(reason) == "capacity" {
		return waitingRoom
	}
	return unknownMetric
}

// promptCounter returns the counter of prompt tokens from a source in vLLM's words, or of a mode in SGLang's.
func promptCounter(source []byte) field {
	switch string(source) {
	case "local_compute", "prefill_compute":
		return computedTokens
	case "external_kv_transfer":
		return transferredTokens
	}
	return unknownMetric
}
