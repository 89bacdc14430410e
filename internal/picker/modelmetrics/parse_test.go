package modelmetrics

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	now        = time.Now()
	equateNone = cmpopts.EquateEmpty()
)

// load is what every vLLM page needs.
const load = `vllm:num_requests_running{engine="0"} 3
vllm:num_requests_waiting{engine="0"} 2
vllm:kv_cache_usage_perc{engine="0"} 0.25
`

func loadReading() Reading {
	return Reading{Engine: VLLM, At: now, Running: 3, Waiting: 2, KVUsage: 0.25}
}

func with(r Reading, change func(*Reading)) Reading {
	change(&r)
	return r
}

func TestParseEngines(t *testing.T) {
	for name, test := range map[string]struct {
		page string
		told Engine
		want Reading
	}{
		"vLLM, a whole page": {
			page: string(vllmPage()),
			want: Reading{
				Engine: VLLM, At: now, Waiting: 9, Running: 37, Deferred: 3, WaitingSplit: true, KVUsage: 0.8125, CapacityTokens: 27684 * 16, BlockTokens: 16,
				Model: "meta-llama/Llama-3.1-8B-Instruct", MaxLoRA: 4, RunningAdapters: []string{"sql", "chat"}, WaitingAdapters: []string{"summary"},
				PromptTokens: 8128903, CacheQueries: 8128902, CacheHits: 4028902,
				FirstTokens: 61234, FirstTokenSeconds: 123456.78901234,
				GeneratedTokens: 7557572,
			},
		},
		"vLLM, its older name of the usage": {
			page: strings.ReplaceAll(load, "kv_cache_usage_perc", "gpu_cache_usage_perc"),
			want: loadReading(),
		},
		"vLLM, both names of the usage count once": {
			page: load + "vllm:gpu_cache_usage_perc{engine=\"0\"} 0.25\n",
			want: loadReading(),
		},
		"vLLM, two engines": {
			page: load + `vllm:num_requests_running{engine="1"} 5
vllm:num_requests_waiting{engine="1"} 1
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="110"} 1
vllm:prompt_tokens_total{engine="0"} 10
vllm:prompt_tokens_total{engine="1"} 20
`,
			want: Reading{Engine: VLLM, At: now, Running: 8, Waiting: 3, KVUsage: 0.5, CapacityTokens: 3360, BlockTokens: 16, PromptTokens: 30},
		},
		"vLLM, the model of one of two engines": {
			page: `vllm:num_requests_running{engine="0",model_name="a \"b\""} 3
vllm:num_requests_running{engine="1"} 0
vllm:num_requests_waiting{engine="0",model_name="other"} 2
vllm:num_requests_waiting{engine="1"} 0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.25
`,
			want: Reading{Engine: VLLM, At: now, Running: 3, Waiting: 2, KVUsage: 0.25, Model: `a "b"`},
		},
		"vLLM, capacity without the engine's label": {
			page: load + `vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1` + "\n",
			want: with(loadReading(), func(r *Reading) { r.CapacityTokens, r.BlockTokens = 1600, 16 }),
		},
		"vLLM, capacity told outright": {
			page: load + `vllm:cache_config_info{block_size="16",engine="0",kv_cache_size_tokens="700",num_gpu_blocks="100"} 1` + "\n",
			want: with(loadReading(), func(r *Reading) { r.CapacityTokens, r.BlockTokens = 700, 16 }),
		},
		"vLLM, waiting for a reason": {
			page: load + `vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 1
vllm:num_requests_waiting_by_reason{engine="0",reason="deferred"} 1
`,
			want: with(loadReading(), func(r *Reading) { r.Waiting, r.Deferred, r.WaitingSplit = 1, 1, true }),
		},
		"vLLM, waiting for a reason that is not known": {
			page: load + `vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 0
vllm:num_requests_waiting_by_reason{engine="0",reason="moonlight"} 2
`,
			want: with(loadReading(), func(r *Reading) { r.Waiting, r.Deferred, r.WaitingSplit = 0, 2, true }),
		},
		"vLLM, two engines of which one tells why": {
			page: load + strings.ReplaceAll(load, `engine="0"`, `engine="1"`) +
				`vllm:num_requests_waiting_by_reason{engine="1",reason="capacity"} 0` + "\n",
			want: Reading{Engine: VLLM, At: now, Running: 6, Waiting: 2, Deferred: 2, KVUsage: 0.25},
		},
		"vLLM, prompt tokens by source": {
			page: load + `vllm:prompt_tokens_by_source_total{engine="0",source="local_compute"} 10
vllm:prompt_tokens_by_source_total{engine="1",source="local_compute"} 20
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 4
vllm:prompt_tokens_by_source_total{engine="0",source="external_kv_transfer"} 2
`,
			want: with(loadReading(), func(r *Reading) { r.ComputedTokens, r.TransferredTokens = 30, 2 }),
		},
		"vLLM, number of blocks not known yet": {
			page: load + `vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="None"} 1` + "\n",
			want: with(loadReading(), func(r *Reading) { r.BlockTokens = 16 }),
		},
		"SGLang": {
			page: `# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 7.0
sglang:num_queue_reqs{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 4.0
sglang:token_usage{engine_type="unified",model_name="m",pp_rank="0",tp_rank="0"} 0.28
sglang:cache_config_info{page_size="64",num_pages="11147"} 1.0
sglang:prompt_tokens_total{model_name="m"} 8.128902e+06
sglang:generation_tokens_total{model_name="m"} 7.557572e+06
sglang:cached_tokens_total{cache_source="device",model_name="m"} 1000.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 500.0
`,
			want: Reading{
				Engine: SGLang, At: now, Running: 7, Waiting: 4, KVUsage: 0.28, CapacityTokens: 64 * 11147, BlockTokens: 64,
				PromptTokens: 8128902, CacheQueries: 8128902, CacheHits: 1500, GeneratedTokens: 7557572,
			},
		},
		"SGLang, ranks repeat, priorities divide, data parallelism adds": {
			page: `sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 7
sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 7
sglang:num_running_reqs{dp_rank="1",tp_rank="2"} 1
sglang:num_queue_reqs{dp_rank="0",priority="",tp_rank="0"} 4
sglang:num_queue_reqs{dp_rank="0",priority="1",tp_rank="0"} 3
sglang:num_queue_reqs{dp_rank="0",priority="2",tp_rank="0"} 1
sglang:num_queue_reqs{dp_rank="1",priority="",tp_rank="2"} 0
sglang:token_usage{dp_rank="0",tp_rank="0"} 0.5
sglang:token_usage{dp_rank="1",tp_rank="2"} 0.1
sglang:page_size{dp_rank="0",tp_rank="0"} 1
sglang:page_size{dp_rank="1",tp_rank="2"} 1
sglang:num_pages{dp_rank="0",tp_rank="0"} 1000
sglang:num_pages{dp_rank="0",tp_rank="1"} 1000
sglang:num_pages{dp_rank="1",tp_rank="2"} 1200
`,
			want: Reading{Engine: SGLang, At: now, Running: 8, Waiting: 4, KVUsage: 0.3, CapacityTokens: 2200, BlockTokens: 1},
		},
		"SGLang, what it counts of prefill, and calls that wait for their grammar": {
			page: `sglang:num_running_reqs 1
sglang:num_queue_reqs 3
sglang:num_grammar_queue_reqs 2
sglang:token_usage 0
sglang:realtime_tokens_total{mode="prefill_compute"} 500
sglang:realtime_tokens_total{mode="prefill_cache"} 300
sglang:realtime_tokens_total{mode="decode"} 90
sglang:uncached_prompt_tokens_histogram_count 4
`,
			want: Reading{
				Engine: SGLang, At: now, Running: 1, Waiting: 3, Deferred: 2,
				ComputedTokens: 500, Ended: 4,
			},
		},
		"SGLang, capacity in tokens": {
			page: "sglang:num_running_reqs 1\nsglang:num_queue_reqs 0\nsglang:token_usage 0\nsglang:max_total_num_tokens 161721\n",
			want: Reading{Engine: SGLang, At: now, Running: 1, CapacityTokens: 161721},
		},
		"trtllm-serve": {
			page: `trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 9.0
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 5.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.75
trtllm_kv_cache_max_blocks{engine_type="trtllm",model_name="m"} 200.0
trtllm_kv_cache_tokens_per_block{engine_type="trtllm",model_name="m"} 32.0
trtllm_prompt_tokens_total{engine_type="trtllm",model_name="m"} 100.0
trtllm_generation_tokens_total{engine_type="trtllm",model_name="m"} 50.0
trtllm_prompt_cached_tokens_total{engine_type="trtllm",model_name="m"} 64.0
trtllm_request_prefill_time_seconds_count{engine_type="trtllm",model_name="m"} 7.0
`,
			want: Reading{
				Engine: TRTLLMServe, At: now, Running: 9, Waiting: 5, KVUsage: 0.75, CapacityTokens: 6400, BlockTokens: 32,
				PromptTokens: 100, CacheQueries: 100, CacheHits: 64,
				GeneratedTokens: 50, Ended: 7,
			},
		},
		"Triton": {
			page: `nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="context",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 6
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.4875
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 3042
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 6240
`,
			want: Reading{Engine: TritonTRTLLM, At: now, Running: 6, Waiting: 1, KVUsage: 0.4875, CapacityTokens: 64 * 6240, BlockTokens: 64},
		},
		"two engines: the first that is complete": {
			page: "vllm:num_requests_running 99\nsglang:num_running_reqs 1\nsglang:num_queue_reqs 2\nsglang:token_usage 0.5\n",
			want: Reading{Engine: SGLang, At: now, Running: 1, Waiting: 2, KVUsage: 0.5},
		},
		"two complete engines: the constants' order": {
			page: "sglang:num_running_reqs 1\nsglang:num_queue_reqs 2\nsglang:token_usage 0.5\n" + load,
			want: loadReading(),
		},
		"two complete engines: the one that was told": {
			page: "sglang:num_running_reqs 1\nsglang:num_queue_reqs 2\nsglang:token_usage 0.5\n" + load,
			told: SGLang,
			want: Reading{Engine: SGLang, At: now, Running: 1, Waiting: 2, KVUsage: 0.5},
		},
		"last line without an end, carriage returns, tabs, a timestamp, spaces in labels": {
			page: "vllm:num_requests_running\t{ engine = \"0\" , x=\"}\", }  3 1788626457\r\n" +
				"vllm:num_requests_waiting{engine=\"0\"}\t2\r\nvllm:kv_cache_usage_perc{x=\"a\\\"} 9 \\\\\",engine=\"0\"} 2.5e-1",
			want: loadReading(),
		},
		"values out of range": {
			page: "vllm:num_requests_running 1e300\nvllm:num_requests_waiting 2.4\nvllm:kv_cache_usage_perc 1.7\n",
			want: Reading{Engine: VLLM, At: now, Running: 1 << 53, Waiting: 2, KVUsage: 1},
		},
		"names that only begin alike": {
			page: load + "vllm:num_requests_waiting_long{engine=\"0\"} 50\nvllm:num_requests_running_total 7\n",
			want: loadReading(),
		},
		"a reason that does not tell what waits for capacity": {
			page: load + "vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"deferred\"} 50\n",
			want: loadReading(),
		},
		"numbers that are none, where they may be missing": {
			page: load + "vllm:prompt_tokens_total NaN\nvllm:generation_tokens_total -1\nvllm:prefix_cache_hits_total +Inf\n" +
				"vllm:cache_config_info{block_size=\"-16\",num_gpu_blocks=\"Inf\"} 1\n",
			want: loadReading(),
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewParser(test.told).Parse([]byte(test.page), now)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got, equateNone, cmpopts.EquateApprox(0, 1e-9)); diff != "" {
				t.Errorf("reading (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	whole := vllmPage()
	for name, test := range map[string]struct {
		page string
		told Engine
		want error
	}{
		"an empty page":              {"", Detect, ErrNoEngine},
		"a page of another program":  {"<html><body>vllm: it works</body></html>\n", Detect, ErrNoEngine},
		"another engine than told":   {load, SGLang, ErrNoEngine},
		"an engine that there isn't": {load, numEngines, ErrNoEngine},
		"comments only":              {"# TYPE vllm:num_requests_running gauge\n", Detect, ErrNoEngine},
		"a page's beginning":         {string(whole[:strings.Index(string(whole), "vllm:kv_cache")]), Detect, ErrIncomplete},
		"a page's end":               {string(whole[len(whole)/2:]), Detect, ErrIncomplete},
		"nothing waiting":            {strings.Replace(load, "waiting", "waving", 1), Detect, ErrIncomplete},
		"NaN running":                {strings.Replace(load, "} 3", "} NaN", 1), Detect, ErrIncomplete},
		"infinitely many waiting":    {strings.Replace(load, "} 2", "} +Inf", 1), Detect, ErrIncomplete},
		"negative usage":             {strings.Replace(load, "0.25", "-0.25", 1), Detect, ErrIncomplete},
		"no value":                   {strings.Replace(load, "} 3", "}", 1), Detect, ErrIncomplete},
		"one of two engines tells its queue": {
			load + "vllm:num_requests_running{engine=\"1\"} 1\nvllm:kv_cache_usage_perc{engine=\"1\"} 0\n", Detect, ErrIncomplete,
		},
		"SGLang before its first request": {"sglang:prompt_tokens_total 0\n", Detect, ErrIncomplete},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewParser(test.told).Parse([]byte(test.page), now)
			if !errors.Is(err, test.want) {
				t.Errorf("error is %v, want %v", err, test.want)
			}
			if diff := cmp.Diff(Reading{}, got); diff != "" {
				t.Errorf("there is a reading beside the error:\n%s", diff)
			}
		})
	}
}

func TestParseRestarts(t *testing.T) {
	type step struct {
		page string
		want int // restarts; -1 stands for a page that gives no reading
	}
	const otherEngine = "sglang:num_running_reqs 1\nsglang:num_queue_reqs 2\nsglang:token_usage 0.5\n"
	tokens := func(n int) string { return load + fmt.Sprintf("vllm:prompt_tokens_total %d\n", n) }
	started := func(at float64) string { return load + fmt.Sprintf("process_start_time_seconds %.2f\n", at) }
	for name, steps := range map[string][]step{
		"counters grow":                         {{tokens(0), 0}, {tokens(10), 0}, {tokens(10), 0}, {tokens(1e9), 0}},
		"a counter drops":                       {{tokens(10), 0}, {tokens(9), 1}, {tokens(10), 1}, {tokens(0), 2}},
		"seen over a page that gives nothing":   {{tokens(10), 0}, {"", -1}, {tokens(9), 1}},
		"a page that gives nothing hides none":  {{tokens(10), 0}, {"vllm:prompt_tokens_total 1\n", -1}, {tokens(11), 0}},
		"a missing counter is no drop":          {{tokens(10), 0}, {load, 0}, {tokens(11), 0}, {load, 0}, {tokens(5), 1}},
		"a later start":                         {{started(100), 0}, {started(100.5), 0}, {started(130), 1}, {started(130), 1}},
		"the clock was set back":                {{started(1e9), 0}, {started(1e9 - 3600), 0}},
		"start not told once":                   {{started(100), 0}, {load, 0}, {started(100), 0}, {started(200), 1}},
		"another engine":                        {{load, 0}, {otherEngine, 1}, {otherEngine, 1}, {load, 2}},
		"a later start and a drop are one":      {{started(1) + tokens(9), 0}, {started(9) + tokens(1), 1}, {started(9) + tokens(2), 1}},
		"a sum of times may drop":               {{load + "vllm:time_to_first_token_seconds_sum 9", 0}, {load + "vllm:time_to_first_token_seconds_sum 8", 0}},
		"ended requests counted anew":           {{load + "vllm:request_prefill_kv_computed_tokens_count 9", 0}, {load + "vllm:request_prefill_kv_computed_tokens_count 8", 1}},
		"a drop of one of two engines' counter": {{tokens(10) + `vllm:prompt_tokens_total{engine="1"} 10`, 0}, {tokens(11), 1}},
	} {
		t.Run(name, func(t *testing.T) {
			p := NewParser(Detect)
			for i, s := range steps {
				r, err := p.Parse([]byte(s.page), now)
				switch {
				case s.want < 0 && err == nil:
					t.Fatalf("page %d gave a reading", i)
				case s.want >= 0 && err != nil:
					t.Fatalf("page %d: %v", i, err)
				case s.want >= 0 && r.Restarts != s.want:
					t.Errorf("page %d: %d restarts, want %d", i, r.Restarts, s.want)
				}
			}
		})
	}
}

func TestParseAdapters(t *testing.T) {
	series := func(at string, running, waiting string) string {
		return fmt.Sprintf("vllm:lora_requests_info{max_lora=\"2\",running_lora_adapters=\"%s\",waiting_lora_adapters=\"%s\"} %s\n",
			running, waiting, at)
	}
	long := strings.Repeat("x", 10<<10)
	var many []string
	for i := range 2 * maxAdapters {
		many = append(many, fmt.Sprintf("a%d", i))
	}
	for name, test := range map[string]struct {
		page                     string
		wantRunning, wantWaiting []string
	}{
		"none":                       {page: series("1", "", "")},
		"an adapter in both is once": {series("1", "a,b", "b,c,a"), []string{"a", "b"}, []string{"c"}},
		"the newest of many series": {
			series("1.5e9", "old", "") + series("1.6e9", "a", "b") + series("1.55e9", "", "older"),
			[]string{"a"}, []string{"b"},
		},
		"the newest is empty":        {page: series("1.5e9", "old", "") + series("1.6e9", "", "")},
		"a series with a bad time":   {series("2", "a", "") + series("NaN", "b", ""), []string{"a"}, nil},
		"named twice, spaces, empty": {series("1", "a, a,,b ", " ,"), []string{"a", "b"}, nil},
		"escapes":                    {series("1", `q\"uote,back\\slash`, `new\nline}`), []string{`q"uote`, `back\slash`}, []string{"new\nline}"}},
		"a name of 10 KB":            {series("1", long, long+",b"), []string{long}, []string{"b"}},
		"too many":                   {series("1", strings.Join(many, ","), "b"), many[:maxAdapters], nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := NewParser(Detect).Parse([]byte(load+test.page), now)
			if err != nil {
				t.Fatal(err)
			}
			if r.MaxLoRA != 2 {
				t.Errorf("MaxLoRA is %d, want 2", r.MaxLoRA)
			}
			if diff := cmp.Diff(test.wantRunning, r.RunningAdapters, equateNone); diff != "" {
				t.Errorf("running (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.wantWaiting, r.WaitingAdapters, equateNone); diff != "" {
				t.Errorf("waiting (-want +got):\n%s", diff)
			}
		})
	}
}

// TestParseKeepsNothingOfThePage gives one buffer to two pages: readings of the first must not change.
func TestParseKeepsNothingOfThePage(t *testing.T) {
	p := NewParser(Detect)
	page := []byte(load + "vllm:lora_requests_info{running_lora_adapters=\"ab,c\",waiting_lora_adapters=\"d\"} 1\n")
	first, err := p.Parse(page, now)
	if err != nil {
		t.Fatal(err)
	}
	want := with(loadReading(), func(r *Reading) { r.RunningAdapters, r.WaitingAdapters = []string{"ab", "c"}, []string{"d"} })
	copy(page, strings.ReplaceAll(string(page), "ab,c", "a,bc")) // the same bytes but for the comma
	second, err := p.Parse(page, now)
	if err != nil {
		t.Fatal(err)
	}
	clear(page)
	if diff := cmp.Diff(want, first); diff != "" {
		t.Errorf("first reading (-want +got):\n%s", diff)
	}
	want.RunningAdapters = []string{"a", "bc"}
	if diff := cmp.Diff(want, second); diff != "" {
		t.Errorf("second reading (-want +got):\n%s", diff)
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	p, page := NewParser(Detect), vllmPage()
	if got := testing.AllocsPerRun(100, func() {
		if _, err := p.Parse(page, now); err != nil {
			t.Fatal(err)
		}
	}); got != 0 {
		t.Errorf("%v allocations a page, want none", got)
	}
}

func TestParseBoundsTheShards(t *testing.T) {
	var b strings.Builder
	for i := range maxShards {
		b.WriteString(strings.ReplaceAll(load, `engine="0"`, fmt.Sprintf(`engine="%d"`, i)))
	}
	r, err := NewParser(Detect).Parse([]byte(b.String()), now)
	if err != nil || r.Running != 3*maxShards || r.Waiting != 2*maxShards || r.KVUsage != 0.25 {
		t.Errorf("%d shards: %+v, %v", maxShards, r, err)
	}
	b.WriteString(strings.ReplaceAll(load, `engine="0"`, `engine="more"`))
	if r, err := NewParser(Detect).Parse([]byte(b.String()), now); !errors.Is(err, ErrIncomplete) {
		t.Errorf("more shards: %+v, %v", r, err)
	}
}

func TestAge(t *testing.T) {
	r := Reading{At: now}
	for name, test := range map[string]struct {
		now  time.Time
		want time.Duration
	}{
		"later":   {now.Add(time.Second), time.Second},
		"earlier": {now.Add(-time.Second), 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.Age(test.now); got != test.want {
				t.Errorf("age is %v, want %v", got, test.want)
			}
		})
	}
}

func TestEngineNames(t *testing.T) {
	for e := range numEngines {
		if got, err := ParseEngine(e.String()); err != nil || got != e {
			t.Errorf("ParseEngine(%q) = %v, %v", e.String(), got, err)
		}
	}
	if _, err := ParseEngine("tgi"); err == nil {
		t.Error("an unknown engine is no error")
	}
	if got := numEngines.String(); got != "Engine(5)" {
		t.Errorf("name of no engine is %q", got)
	}
}

func FuzzParse(f *testing.F) {
	whole := vllmPage()
	f.Add(whole, whole[:len(whole)/2])
	f.Add([]byte(load+"vllm:num_requests_waiting_by_reason{engine=\"0\",reason=\"capacity\"} 1\n"),
		[]byte(load+"vllm:prompt_tokens_by_source_total{source=\"local_compute\"} 1\nvllm:time_to_first_token_seconds_sum -1\n"))
	f.Add([]byte(load), []byte("sglang:num_running_reqs 1\nsglang:num_queue_reqs{dp_rank=\"1\"} 2\nsglang:token_usage 0.5\n"))
	f.Add([]byte(load+`vllm:lora_requests_info{max_lora="2",running_lora_adapters="a,\"b",waiting_lora_adapters="\\"} 1`), []byte("{} {"))
	f.Add([]byte("trtllm_kv_cache_utilization 1e999\n"), []byte(`nv_trt_llm_request_metrics{request_type="waiting"} NaN`))
	f.Add([]byte("vllm:num_requests_running}{ 1\nvllm:num_requests_running{\"\n"), []byte("process_start_time_seconds -0\n"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		p := NewParser(Detect)
		for _, page := range [][]byte{first, second, first} {
			r, err := p.Parse(page, now)
			if err != nil {
				if !errors.Is(err, ErrNoEngine) && !errors.Is(err, ErrIncomplete) {
					t.Fatalf("untyped error: %v", err)
				}
				continue
			}
			adapters := slices.Concat(r.RunningAdapters, r.WaitingAdapters)
			slices.Sort(adapters)
			switch {
			case r.Engine == Detect || r.Engine >= numEngines,
				r.Waiting < 0, r.Running < 0, !(r.KVUsage >= 0 && r.KVUsage <= 1),
				r.CapacityTokens < 0, r.MaxLoRA < 0, r.Deferred < 0,
				r.ComputedTokens < 0, r.TransferredTokens < 0, r.GeneratedTokens < 0, r.Ended < 0, !(r.FirstTokenSeconds >= 0),
				r.PromptTokens < 0, r.CacheQueries < 0, r.CacheHits < 0,
				len(slices.Compact(slices.Clone(adapters))) != len(adapters), len(adapters) > maxAdapters:
				t.Fatalf("not a sane reading: %+v", r)
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	p, page := NewParser(Detect), vllmPage()
	b.SetBytes(int64(len(page)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Parse(page, now); err != nil {
			b.Fatal(err)
		}
	}
}
