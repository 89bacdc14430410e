package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/metrics"
)

func testConfig() engine.Config {
	return engine.Config{
		Model: "base", BlockSize: 16, NumBlocks: 4096, MaxModelLen: 8192,
		MaxNumSeqs: 8, MaxBatchedTokens: 2048,
		PrefillTokensPerSecond: 8000, DecodeTokensPerSecond: 50, AnswerTokens: 32,
		MaxLoRAs: 2, LoRALoadTime: time.Second, TimeScale: 100,
	}
}

// client calls a server that runs as long as the test.
type client struct {
	t      *testing.T
	url    string
	engine *engine.Engine
}

func newClient(t *testing.T, cfg engine.Config) client {
	e := engine.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	s := New("pod-1", []string{"lora-a", "lora-b", "lora-c"}, e, metrics.New(cfg.Model, e), slog.New(slog.DiscardHandler))
	srv := httptest.NewServer(s.Handler())
	t.Cleanup(srv.Close)
	return client{t: t, url: srv.URL, engine: e}
}

func (c client) do(method, path, body string) (status int, header http.Header, answer string) {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// completion has the fields of answers and chunks that the tests read.
type completion struct {
	ID, Object, Model string
	Choices           []struct {
		Text           string
		Message, Delta struct{ Role, Content string }
		FinishReason   string `json:"finish_reason"`
	}
	Usage *struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
		TotalTokens      int `json:"total_tokens"`
		Details          struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

func (c client) complete(path string, body any) completion {
	c.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	status, _, answer := c.do("POST", path, string(b))
	if status != 200 {
		c.t.Fatalf("%s: %d %s", path, status, answer)
	}
	return parse(c.t, answer)
}

func parse(t *testing.T, body string) (out completion) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return out
}

type chat struct {
	Model     string           `json:"model"`
	MaxTokens int              `json:"max_completion_tokens,omitempty"`
	Messages  []map[string]any `json:"messages"`
}

func turn(role string, content any) map[string]any {
	return map[string]any{"role": role, "content": content}
}

func TestChatTurnTwoReportsCachedTokens(t *testing.T) {
	c := newClient(t, testConfig())
	talk := chat{Model: "base", Messages: []map[string]any{
		turn("system", strings.Repeat("You help. ", 100)),
		turn("user", []map[string]any{{"type": "text", "text": "What is a waypoint?"}}),
	}}
	one := c.complete("/v1/chat/completions", talk)
	answer := one.Choices[0].Message
	if one.Object != "chat.completion" || one.Model != "base" || answer.Role != "assistant" || one.Choices[0].FinishReason != "stop" {
		t.Errorf("turn 1: %+v", one)
	}
	u := one.Usage
	if u.Details.CachedTokens != 0 || u.CompletionTokens*4 != len(answer.Content) || u.TotalTokens != u.PromptTokens+u.CompletionTokens {
		t.Errorf("turn 1: %+v with an answer of %d bytes", u, len(answer.Content))
	}
	talk.Messages = append(talk.Messages, turn("assistant", answer.Content), turn("user", "And why?"))
	two := c.complete("/v1/chat/completions", talk).Usage
	if known := u.TotalTokens - 1; two.Details.CachedTokens != known/16*16 {
		t.Errorf("turn 2 found %d tokens, want all full blocks of %d", two.Details.CachedTokens, known)
	}
}

func TestCompletions(t *testing.T) {
	text := strings.Repeat("word", 40)
	tests := map[string]struct {
		body             map[string]any
		wantPrompt, want int
	}{
		"text, 16 tokens unless told": {map[string]any{"prompt": text, "ignore_eos": true}, 40, 16},
		"list of one text":            {map[string]any{"prompt": []string{text}, "max_tokens": 3}, 40, 3},
		"token ids":                   {map[string]any{"prompt": []int{1, 2, 3}, "max_tokens": 1}, 3, 1},
		"partial token":               {map[string]any{"prompt": "hello", "max_tokens": 1}, 2, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := newClient(t, testConfig()).complete("/v1/completions", tt.body)
			if got.Object != "text_completion" || got.Choices[0].FinishReason != "length" || len(got.Choices[0].Text) != 4*tt.want {
				t.Errorf("%+v", got)
			}
			if got.Usage.PromptTokens != tt.wantPrompt || got.Usage.CompletionTokens != tt.want {
				t.Errorf("usage %+v", got.Usage)
			}
		})
	}
}

func TestStreams(t *testing.T) {
	tests := map[string]struct {
		path, body, wantObject, wantID string
		wantUsage                      bool
	}{
		"chat": {"/v1/chat/completions",
			`{"stream":true,"max_tokens":20,"ignore_eos":true,"messages":[{"role":"user","content":"hi"}]}`, "chat.completion.chunk", "chatcmpl-", false},
		"chat with usage": {"/v1/chat/completions",
			`{"stream":true,"max_tokens":20,"ignore_eos":true,"messages":[{"role":"user","content":"hi"}],"stream_options":{"include_usage":true}}`, "chat.completion.chunk", "chatcmpl-", true},
		"completion with usage": {"/v1/completions",
			`{"stream":true,"max_tokens":20,"ignore_eos":true,"prompt":"hi","stream_options":{"include_usage":true}}`, "text_completion", "cmpl-", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			config := testConfig()
			config.TimeScale = 2 // 10 ms a token: a busy machine sends the tokens of its pauses in one chunk
			c := newClient(t, config)
			status, header, body := c.do("POST", tt.path, tt.body)
			if status != 200 || !strings.HasPrefix(header.Get("Content-Type"), "text/event-stream") {
				t.Fatalf("%d, %v", status, header)
			}
			frames := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n")
			last := len(frames) - 1
			if frames[last] != "data: [DONE]" {
				t.Fatalf("ends with %q", frames[last])
			}
			var chunks []completion
			for _, f := range frames[:last] {
				data, ok := strings.CutPrefix(f, "data: ")
				if !ok {
					t.Fatalf("frame %q", f)
				}
				chunks = append(chunks, parse(t, data))
			}
			if tt.wantUsage {
				end := chunks[len(chunks)-1]
				if end.Usage == nil || end.Usage.CompletionTokens != 20 || end.Choices == nil || len(end.Choices) != 0 {
					t.Errorf("last chunk %+v, want usage and an empty list of choices", end)
				}
				chunks = chunks[:len(chunks)-1]
			}
			if strings.HasPrefix(tt.path, "/v1/chat") && chunks[0].Choices[0].Delta.Role != "assistant" {
				t.Errorf("first chunk %+v names no role", chunks[0])
			}
			text := ""
			for i, chunk := range chunks {
				choice := chunk.Choices[0]
				text += choice.Text + choice.Delta.Content
				if chunk.Object != tt.wantObject || !strings.HasPrefix(chunk.ID, tt.wantID) || chunk.ID != chunks[0].ID || chunk.Usage != nil {
					t.Errorf("chunk %d: %+v", i, chunk)
				}
				if finished := choice.FinishReason != ""; finished != (i == len(chunks)-1) {
					t.Errorf("chunk %d of %d has finish reason %q", i, len(chunks), choice.FinishReason)
				}
			}
			if len(text) != 80 || len(chunks) < 3 {
				t.Errorf("%d bytes of text in %d chunks, want 80 in several", len(text), len(chunks))
			}
		})
	}
}

func TestErrors(t *testing.T) {
	const chatPath, textPath = "/v1/chat/completions", "/v1/completions"
	tests := map[string]struct {
		path, body  string
		wantStatus  int
		wantType    string
		wantMessage string
	}{
		"bad JSON":           {chatPath, `{"messages":`, 400, "BadRequestError", "unexpected end"},
		"wrong type":         {chatPath, `{"messages":3}`, 400, "BadRequestError", "messages"},
		"no body":            {textPath, ``, 400, "BadRequestError", "unexpected end"},
		"unknown model":      {chatPath, `{"model":"gpt","messages":[{"role":"user","content":"x"}]}`, 404, "NotFoundError", "The model `gpt` does not exist."},
		"no messages":        {chatPath, `{"messages":[]}`, 400, "BadRequestError", "messages"},
		"no role":            {chatPath, `{"messages":[{"content":"x"}]}`, 400, "BadRequestError", "messages[0]"},
		"bad content":        {chatPath, `{"messages":[{"role":"user","content":3}]}`, 400, "BadRequestError", "messages[0]"},
		"bad part":           {chatPath, `{"messages":[{"role":"user","content":["x"]}]}`, 400, "BadRequestError", "content[0]"},
		"no prompt":          {textPath, `{}`, 400, "BadRequestError", "prompt"},
		"empty prompt":       {textPath, `{"prompt":""}`, 400, "BadRequestError", "prompt"},
		"empty list":         {textPath, `{"prompt":[]}`, 400, "BadRequestError", "prompt"},
		"several prompts":    {textPath, `{"prompt":["a","b"]}`, 400, "BadRequestError", "2 texts"},
		"several answers":    {textPath, `{"prompt":"a","n":2}`, 400, "BadRequestError", "n must be 1"},
		"no tokens":          {textPath, `{"prompt":"a","max_tokens":0}`, 400, "BadRequestError", "max_tokens"},
		"options, no stream": {textPath, `{"prompt":"a","stream_options":{}}`, 400, "BadRequestError", "stream"},
		"answer too long":    {textPath, `{"prompt":"a","max_tokens":8192}`, 400, "BadRequestError", "maximum context length is 8192"},
		"too long, streamed": {textPath, `{"prompt":"a","max_tokens":8192,"stream":true}`, 400, "BadRequestError", "maximum context length is 8192"},
		"adapter known":      {"/v1/load_lora_adapter", `{"lora_name":"lora-a","lora_path":"/a"}`, 400, "BadRequestError", "already been loaded"},
		"adapter no path":    {"/v1/load_lora_adapter", `{"lora_name":"x"}`, 400, "BadRequestError", "lora_path"},
		"adapter with comma": {"/v1/load_lora_adapter", `{"lora_name":"x,y","lora_path":"/a"}`, 400, "BadRequestError", "lora_name"},
		"adapter unknown":    {"/v1/unload_lora_adapter", `{"lora_name":"x"}`, 404, "NotFoundError", "cannot be found"},
	}
	c := newClient(t, testConfig())
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, header, body := c.do("POST", tt.path, tt.body)
			var got errorBody
			if err := json.Unmarshal([]byte(body), &got); err != nil {
				t.Fatalf("%v in %q", err, body)
			}
			if status != tt.wantStatus || got.Error.Code != tt.wantStatus || got.Error.Type != tt.wantType || !strings.Contains(got.Error.Message, tt.wantMessage) {
				t.Errorf("%d %+v, want %d %s with %q", status, got.Error, tt.wantStatus, tt.wantType, tt.wantMessage)
			}
			if header.Get(ServedByHeader) != "pod-1" {
				t.Errorf("served by %q", header.Get(ServedByHeader))
			}
		})
	}
}

func TestLargeBodies(t *testing.T) {
	tests := map[string]struct {
		bytes       int
		wantStatus  int
		wantMessage string
	}{
		"over the context": {20 << 20, 400, "maximum context length is 8192 tokens. However, the prompt has 5242880 tokens"},
		"over the limit":   {maxBodyBytes, 413, "too large"},
	}
	c := newClient(t, testConfig())
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			body := io.MultiReader(strings.NewReader(`{"prompt":"`), bytes.NewReader(bytes.Repeat([]byte("x"), tt.bytes)), strings.NewReader(`"}`))
			resp, err := http.Post(c.url+"/v1/completions", "application/json", body)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.wantStatus || !strings.Contains(string(answer), tt.wantMessage) {
				t.Errorf("%d %s", resp.StatusCode, answer)
			}
		})
	}
}

func TestModelsAndAdapters(t *testing.T) {
	c := newClient(t, testConfig())
	names := func() (ids []string) {
		_, _, body := c.do("GET", "/v1/models", "")
		var list struct{ Data []modelCard }
		if err := json.Unmarshal([]byte(body), &list); err != nil {
			t.Fatal(err)
		}
		for _, m := range list.Data {
			ids = append(ids, m.ID)
			if isBase := m.ID == "base"; isBase != (m.Parent == nil) || isBase != (m.MaxModelLen != nil) {
				t.Errorf("%+v", m)
			}
		}
		return ids
	}
	steps := []struct {
		path, adapter string
		want          []string
	}{
		{"/v1/load_lora_adapter", "lora-x", []string{"base", "lora-a", "lora-b", "lora-c", "lora-x"}},
		{"/v1/unload_lora_adapter", "lora-b", []string{"base", "lora-a", "lora-c", "lora-x"}},
	}
	for _, step := range steps {
		if status, _, body := c.do("POST", step.path, fmt.Sprintf(`{"lora_name":%q,"lora_path":"/x"}`, step.adapter)); status != 200 {
			t.Fatalf("%s: %d %s", step.path, status, body)
		}
		if diff := cmp.Diff(step.want, names()); diff != "" {
			t.Errorf("after %s (-want +got):\n%s", step.path, diff)
		}
	}
	got := c.complete("/v1/completions", map[string]any{"model": "lora-x", "prompt": "hello"})
	if got.Model != "lora-x" {
		t.Errorf("answered by %q", got.Model)
	}
	if status, _, _ := c.do("POST", "/v1/completions", `{"model":"lora-b","prompt":"hello"}`); status != 404 {
		t.Errorf("an adapter that was unloaded answers %d", status)
	}
}

func TestMetricsPage(t *testing.T) {
	c := newClient(t, testConfig())
	prompt := strings.Repeat("word", 64)
	for range 2 {
		c.complete("/v1/completions", map[string]any{"model": "lora-a", "prompt": prompt, "max_tokens": 5, "ignore_eos": true})
	}
	_, _, page := c.do("GET", "/metrics", "")
	labels := `{engine="0",model_name="base"`
	for _, want := range []string{
		"vllm:num_requests_running" + labels + "} 0",
		"vllm:num_requests_waiting" + labels + "} 0",
		"vllm:kv_cache_usage_perc" + labels + "} 0",
		"vllm:prompt_tokens_total" + labels + "} 128",
		"vllm:generation_tokens_total" + labels + "} 10",
		"vllm:prefix_cache_queries_total" + labels + "} 128",
		"vllm:prefix_cache_hits_total" + labels + "} 48",
		"vllm:time_to_first_token_seconds_count" + labels + "} 2",
		"vllm:e2e_request_latency_seconds_count" + labels + "} 2",
		`vllm:request_success_total{engine="0",finished_reason="length",model_name="base"} 2`,
		`vllm:request_success_total{engine="0",finished_reason="stop",model_name="base"} 0`,
		`vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",` +
			`kv_cache_size_tokens="65536",num_gpu_blocks="4096"} 1`,
		`vllm:lora_requests_info{max_lora="2",running_lora_adapters="",waiting_lora_adapters=""} 1.`,
		`vllm:lora_requests_info{max_lora="2",running_lora_adapters="lora-a",waiting_lora_adapters="lora-a"} 1.`,
		`vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="capacity"} 0`,
		`vllm:num_requests_waiting_by_reason{engine="0",model_name="base",reason="deferred"} 0`,
		`vllm:prompt_tokens_by_source_total{engine="0",model_name="base",source="local_compute"} 80`,
		`vllm:prompt_tokens_by_source_total{engine="0",model_name="base",source="local_cache_hit"} 48`,
		`vllm:prompt_tokens_by_source_total{engine="0",model_name="base",source="external_kv_transfer"} 0`,
		"vllm:request_prefill_kv_computed_tokens_sum" + labels + "} 80",
		"vllm:request_prefill_kv_computed_tokens_count" + labels + "} 2",
		"vllm:request_prefill_time_seconds_count" + labels + "} 2",
		"vllm:request_queue_time_seconds_count" + labels + "} 2",
		"vllm:request_decode_time_seconds_count" + labels + "} 2",
	} {
		if !strings.Contains(page, "\n"+want) {
			t.Errorf("no %s on the page", want)
		}
	}
	if t.Failed() {
		t.Log(page)
	}
}

func TestDisconnectFreesTheRequest(t *testing.T) {
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream=%v", stream), func(t *testing.T) {
			cfg := testConfig()
			cfg.TimeScale = 1
			c := newClient(t, cfg)
			ctx, leave := context.WithCancel(t.Context())
			body := fmt.Sprintf(`{"prompt":"hello","max_tokens":4000,"ignore_eos":true,"stream":%v}`, stream)
			req, _ := http.NewRequestWithContext(ctx, "POST", c.url+"/v1/completions", strings.NewReader(body))
			left := make(chan struct{})
			go func() {
				defer close(left)
				if resp, err := http.DefaultClient.Do(req); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
			}()
			waitFor(t, func() bool { return c.engine.Stats().Running == 1 })
			leave()
			<-left
			waitFor(t, func() bool { s := c.engine.Stats(); return s.Running == 0 && s.UsedBlocks == 0 })
			waitFor(t, func() bool {
				_, _, page := c.do("GET", "/metrics", "")
				return strings.Contains(page, `finished_reason="abort",model_name="base"} 1`)
			})
		})
	}
}

func TestStreamSendsTokensAsTheyCome(t *testing.T) {
	cfg := testConfig()
	cfg.TimeScale = 1
	c := newClient(t, cfg)
	resp, err := http.Post(c.url+"/v1/completions", "application/json",
		strings.NewReader(`{"prompt":"hello","max_tokens":4000,"ignore_eos":true,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "data: {") {
		t.Errorf("first line %q, %v", line, err)
	}
	if c.engine.Stats().Running != 1 {
		t.Error("the first token came after the answer's end")
	}
	if status, _, answer := c.do("POST", "/reset_prefix_cache", ""); status != 409 {
		t.Errorf("reset while a request runs: %d %s", status, answer)
	}
}

func TestStreamAnswersWhileItsRequestWaits(t *testing.T) {
	cfg := testConfig()
	cfg.TimeScale, cfg.MaxNumSeqs = 1, 1
	c := newClient(t, cfg)
	impatient := &http.Client{Timeout: 5 * time.Second} // the first answer takes 80 s
	for want := range 2 {
		resp, err := impatient.Post(c.url+"/v1/completions", "application/json",
			strings.NewReader(`{"prompt":"hello","max_tokens":4000,"ignore_eos":true,"stream":true}`))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		waitFor(t, func() bool { s := c.engine.Stats(); return s.Running == 1 && s.Waiting == want })
	}
}

func TestRequestIDIsTheCallers(t *testing.T) {
	c := newClient(t, testConfig())
	req, _ := http.NewRequest("POST", c.url+"/v1/completions", strings.NewReader(`{"prompt":"hello"}`))
	req.Header.Set("X-Request-Id", "trace-1")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if got := parse(t, string(body)).ID; got != "cmpl-trace-1" {
		t.Errorf("id %q", got)
	}
}

func TestLoRATurnedOff(t *testing.T) {
	cfg := testConfig()
	cfg.MaxLoRAs = 0
	c := newClient(t, cfg)
	if status, _, body := c.do("POST", "/v1/load_lora_adapter", `{"lora_name":"x","lora_path":"/x"}`); status != 400 {
		t.Errorf("%d %s", status, body)
	}
	if _, _, page := c.do("GET", "/metrics", ""); strings.Contains(page, "lora_requests_info") {
		t.Error("the page has a LoRA metric")
	}
}

func TestResetPrefixCache(t *testing.T) {
	c := newClient(t, testConfig())
	body := map[string]any{"prompt": strings.Repeat("word", 64)}
	c.complete("/v1/completions", body)
	if status, _, answer := c.do("POST", "/reset_prefix_cache", ""); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	if got := c.complete("/v1/completions", body).Usage.Details.CachedTokens; got != 0 {
		t.Errorf("%d tokens found after the reset", got)
	}
}

func TestSmallRoutes(t *testing.T) {
	c := newClient(t, testConfig())
	if status, header, _ := c.do("GET", "/health", ""); status != 200 || header.Get(ServedByHeader) != "pod-1" {
		t.Errorf("/health: %d %v", status, header)
	}
	if status, _, body := c.do("GET", "/version", ""); status != 200 || !strings.Contains(body, `"version":`) {
		t.Errorf("/version: %d %s", status, body)
	}
	if status, _, _ := c.do("GET", "/v1/completions", ""); status != 405 {
		t.Errorf("GET of a POST route: %d", status)
	}
}

func TestFaults(t *testing.T) {
	c := newClient(t, testConfig())
	const path, body = "/v1/completions", `{"model":"base","prompt":"Hello","max_tokens":1}`
	set := func(name string, want int) {
		t.Helper()
		if status, _, answer := c.do("PUT", "/fault/"+name, ""); status != want {
			t.Errorf("PUT /fault/%s: %d %s, want %d", name, status, answer, want)
		}
	}
	for _, step := range []struct {
		fault          string
		status, health int
	}{{"shed", 429, 200}, {"fail", 500, 200}, {"unready", 200, 503}, {"none", 200, 200}} {
		set(step.fault, 200)
		if status, _, answer := c.do("POST", path, body); status != step.status {
			t.Errorf("with fault %s: %d %s, want %d", step.fault, status, answer, step.status)
		}
		if status, _, _ := c.do("GET", "/health", ""); status != step.health {
			t.Errorf("/health with fault %s: %d, want %d", step.fault, status, step.health)
		}
	}
	set("fire", 404)
	set("abort", 200)
	if response, err := http.Post(c.url+path, "application/json", strings.NewReader(body)); err == nil {
		_ = response.Body.Close()
		t.Errorf("with fault abort: %s, want a connection that closes", response.Status)
	}
	set("hang", 200)
	ctx, leave := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer leave()
	request, err := http.NewRequestWithContext(ctx, "POST", c.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if response, err := http.DefaultClient.Do(request); !errors.Is(err, context.DeadlineExceeded) {
		_ = response.Body.Close()
		t.Errorf("with fault hang: %v, want no answer", err)
	}
}

// waitFor polls done for at most 5 s, as another goroutine makes it true.
func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited 5s in vain")
		}
	}
}
