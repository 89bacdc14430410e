package modelmetrics

import (
	"fmt"
	"strconv"
	"strings"
)

// Buckets of vLLM's histograms.
var (
	firstTokenBuckets = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	tokenTimeBuckets  = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	latencyBuckets    = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	stepBuckets       = []float64{1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}
	lengthBuckets     = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000}
)

// vllmPage writes a page as vLLM does: all its metrics, those of Python and of the process, 38 KB.
func vllmPage() []byte {
	var b strings.Builder
	const labels = `engine="0",model_name="meta-llama/Llama-3.1-8B-Instruct"`
	head := func(name, kind string) {
		fmt.Fprintf(&b, "# HELP %s What the server tells.\n# TYPE %s %s\n", name, name, kind)
	}
	single := func(name, kind, labels, value string) {
		head(name, kind)
		fmt.Fprintf(&b, "%s{%s} %s\n", name, labels, value)
	}
	histogram := func(name string, buckets []float64) {
		head(name, "histogram")
		for i, le := range buckets {
			fmt.Fprintf(&b, "%s_bucket{engine=\"0\",le=\"%s\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"} %d.0\n",
				name, strconv.FormatFloat(le, 'f', -1, 64), 1234*i)
		}
		fmt.Fprintf(&b, "%s_bucket{engine=\"0\",le=\"+Inf\",model_name=\"meta-llama/Llama-3.1-8B-Instruct\"} 61234.0\n", name)
		fmt.Fprintf(&b, "%s_count{%s} 61234.0\n%s_sum{%s} 123456.78901234\n", name, labels, name, labels)
	}
	head("python_gc_objects_collected_total", "counter")
	for g := range 3 {
		fmt.Fprintf(&b, "python_gc_objects_collected_total{generation=\"%d\"} 11890.0\n", g)
	}
	head("process_start_time_seconds", "gauge")
	b.WriteString("process_start_time_seconds 1.78862645773e+09\n")
	single("vllm:num_requests_running", "gauge", labels, "37.0")
	single("vllm:num_requests_waiting", "gauge", labels, "12.0")
	head("vllm:num_requests_waiting_by_reason", "gauge")
	fmt.Fprintf(&b, "vllm:num_requests_waiting_by_reason{%s,reason=\"capacity\"} 9.0\n", labels)
	single("vllm:kv_cache_usage_perc", "gauge", labels, "0.8125")
	single("vllm:prefix_cache_queries_total", "counter", labels, "8.128902e+06")
	single("vllm:prefix_cache_queries_created", "gauge", labels, "1.7886264577368872e+09")
	single("vllm:prefix_cache_hits_total", "counter", labels, "4.028902e+06")
	single("vllm:prompt_tokens_total", "counter", labels, "8.128903e+06")
	single("vllm:generation_tokens_total", "counter", labels, "7.557572e+06")
	for _, h := range []struct {
		name    string
		buckets []float64
	}{
		{"vllm:request_prompt_tokens", lengthBuckets}, {"vllm:request_generation_tokens", lengthBuckets},
		{"vllm:iteration_tokens_total", stepBuckets}, {"vllm:request_max_num_generation_tokens", lengthBuckets},
		{"vllm:request_params_n", stepBuckets[:5]}, {"vllm:request_params_max_tokens", lengthBuckets},
		{"vllm:time_to_first_token_seconds", firstTokenBuckets}, {"vllm:inter_token_latency_seconds", tokenTimeBuckets},
		{"vllm:request_time_per_output_token_seconds", tokenTimeBuckets}, {"vllm:e2e_request_latency_seconds", latencyBuckets},
		{"vllm:request_queue_time_seconds", latencyBuckets}, {"vllm:request_inference_time_seconds", latencyBuckets},
		{"vllm:request_prefill_time_seconds", latencyBuckets}, {"vllm:request_decode_time_seconds", latencyBuckets},
		{"http_request_duration_seconds", stepBuckets[:3]},
	} {
		histogram(h.name, h.buckets)
	}
	head("vllm:lora_requests_info", "gauge")
	for i, sets := range [][2]string{{"", ""}, {"sql", "sql"}, {"sql,chat", "chat,summary"}, {"old", ""}} {
		at := 1.7886264577368872e+09 + float64(i)
		if i == 3 {
			at -= 1000
		}
		fmt.Fprintf(&b, "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"%s\",waiting_lora_adapters=\"%s\"} %v\n",
			sets[0], sets[1], at)
	}
	single("vllm:cache_config_info", "gauge", `block_size="16",cache_dtype="auto",calculate_kv_scales="False",`+
		`cpu_offload_gb="0",enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.9",is_attention_free="False",`+
		`num_cpu_blocks="None",num_gpu_blocks="27684",num_gpu_blocks_override="None",prefix_caching_hash_algo="sha256",`+
		`sliding_window="None",swap_space="4",swap_space_bytes="4294967296"`, "1.0")
	return []byte(b.String())
}
