package request

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const (
	chatPath        = "/v1/chat/completions"
	completionsPath = "/v1/completions"
	responsesPath   = "/v1/responses"
	embeddingsPath  = "/v1/embeddings"
	messagesPath    = "/v1/messages"
	poolingPath     = "/pooling"
	rerankPath      = "/v1/rerank"
	scoringPath     = "/generative_scoring"
	generatePath    = "/generate"
	speechPath      = "/v1/audio/transcriptions"
)

// long is a text of n blocks that has no repeats.
func long(seed string, n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n*BlockBytes; i++ {
		b.WriteString(seed)
		b.WriteByte(byte('a' + i%26))
		b.WriteByte(byte('a' + i/26%26))
	}
	return b.String()[:n*BlockBytes]
}

func read(path, body string) Facts {
	var f Facts
	f.Read(Head{Path: path}, []byte(body))
	return f
}

func TestRead(t *testing.T) {
	for name, tc := range map[string]struct {
		path, body string
		want       Facts
		wantBlocks int
	}{
		"chat": {
			path:       chatPath,
			body:       `{"model":"m","stream":true,"max_tokens":7,"messages":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want:       Facts{API: ChatCompletions, Model: "m", Stream: true, PromptBytes: 2*BlockBytes + 8},
			wantBlocks: 2,
		},
		"path with a prefix, a query and a slash": {
			path: "/tenants/a/v1/chat/completions/?trace=1&x=/v1/completions", body: `{"model":"m"}`,
			want: Facts{API: ChatCompletions, Model: "m"},
		},
		"a path that a route rewrites": {
			path: "/llama/chat/completions", body: `{"messages":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want: Facts{API: ChatCompletions, PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"Azure's path names the model": {
			path: "/openai/deployments/gpt%204/chat/completions?api-version=2024-10-21",
			body: `{"messages":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want: Facts{API: ChatCompletions, Model: "gpt%204", PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"the body's model wins": {
			path: "/openai/deployments/a/embeddings", body: `{"model":"m","input":"` + long("e", 1) + `"}`,
			want: Facts{API: Embeddings, Model: "m", PromptBytes: BlockBytes}, wantBlocks: 1,
		},
		"Triton's generate": {
			path: "/v2/models/llama/generate_stream", body: `{"text_input":"` + long("t", 2) + `","max_tokens":4}`,
			want: Facts{Model: "llama", PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"the body tells a chat": {
			path: "/llama", body: `{"model":"m","messages":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want: Facts{Model: "m", PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"the body tells a completion": {
			path: "/", body: `{"prompt":"` + long("p", 2) + `"}`, want: Facts{PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"the body tells a response": {
			path: "/llama", body: `{"input":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want: Facts{PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"the body tells texts to embed": {
			path: "/llama", body: `{"input":["` + long("x", 2) + `","y"]}`,
			want: Facts{PromptBytes: 2*BlockBytes + 1}, wantBlocks: 2,
		},
		"SGLang's generate, whose adapter is named beside the text": {
			path: generatePath, body: `{"text":"` + long("t", 2) + `","lora_path":"adapter","sampling_params":{"text":"x"},"stream":true}`,
			want: Facts{Model: "adapter", Stream: true, PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"SGLang's generate, a batch of token ids and of adapters": {
			path: generatePath, body: `{"input_ids":[[` + strings.Repeat("12,", 63) + `3],[4]],"lora_path":[null,"a","b"]}`,
			want: Facts{Model: "a", PromptBytes: BlockBytes + 4}, wantBlocks: 1,
		},
		"an adapter beside a model, whatever the order": {
			path: chatPath, body: `{"lora_path":["a\/b"],"model":"m"}`, want: Facts{API: ChatCompletions, Model: "a/b"},
		},
		"no adapter":         {path: chatPath, body: `{"model":"m","lora_path":""}`, want: Facts{API: ChatCompletions, Model: "m"}},
		"a list of none":     {path: chatPath, body: `{"model":"m","lora_path":[null,7]}`, want: Facts{API: ChatCompletions, Model: "m"}},
		"an adapter cut off": {path: chatPath, body: `{"model":"m","lora_path":["a"`, want: Facts{API: ChatCompletions, Model: "m"}},
		"vLLM's generate": {
			path: "/inference/v1/generate", body: `{"model":"m","token_ids":[` + strings.Repeat("12,", 127) + `3],"token_offsets":[[0,1]],"sampling_params":{}}`,
			want: Facts{Model: "m", PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"TGI's generate": {
			path: generatePath, body: `{"inputs":"` + long("t", 2) + `","parameters":{"max_new_tokens":4}}`,
			want: Facts{PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"pooling of texts": {
			path: poolingPath, body: `{"model":"m","task":"embed","input":["` + long("p", 1) + `","abc"]}`,
			want: Facts{API: Pooling, Model: "m", PromptBytes: BlockBytes + 3}, wantBlocks: 1,
		},
		"pooling of a chat": {
			path: poolingPath, body: `{"messages":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want: Facts{API: Pooling, PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"pooling of a plugin's data": {
			path: poolingPath, body: `{"model":"m","data":{"data":"` + strings.Repeat("A", 1<<20) + `","data_format":"b64_json"}}`,
			want: Facts{API: Pooling, Model: "m", PromptBytes: MediaBytes + 2}, wantBlocks: 16,
		},
		"classifying token ids": {
			path: "/classify", body: `{"input":[[` + strings.Repeat("12,", 63) + `3]]}`,
			want: Facts{API: Pooling, PromptBytes: BlockBytes}, wantBlocks: 1,
		},
		"SGLang's classifying": {
			path: "/classify", body: `{"text":["` + long("p", 1) + `","` + long("q", 1) + `"]}`,
			want: Facts{API: Pooling, PromptBytes: 2 * BlockBytes}, wantBlocks: 1,
		},
		"embedding a chat": {
			path: embeddingsPath, body: `{"input":[{"role":"user","content":"` + long("x", 2) + `"}]}`,
			want: Facts{API: Embeddings, PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"rerank: each document has the query and the instruction before it": {
			path: rerankPath, body: `{"model":"m","instruct":"` + long("i", 1) + `","query":"` + long("q", 1) + `","documents":["` + long("d", 2) + `","xy","z"],"top_n":2}`,
			want: Facts{API: Pairs, Model: "m", PromptBytes: 3*2*BlockBytes + 2*BlockBytes + 3}, wantBlocks: 4,
		},
		"rerank of objects and parts": {
			path: "/v2/rerank", body: `{"query":[{"type":"text","text":"` + long("q", 1) + `"}],"documents":[{"text":"` + long("d", 1) + `"},[{"type":"text","text":"ab"}],{"other":"x"}]}`,
			want: Facts{API: Pairs, PromptBytes: 3*BlockBytes + BlockBytes + 2}, wantBlocks: 2,
		},
		"a query of two parts is one query": {
			path: rerankPath, body: `{"query":[{"text":"ab"},{"text":"cd"}],"documents":["x","y"]}`,
			want: Facts{API: Pairs, PromptBytes: 2*(len("ab")+2+len("cd")) + 2},
		},
		"rerank of TEI": {
			path: "/rerank", body: `{"query":"` + long("q", 1) + `","texts":["` + long("d", 1) + `"]}`,
			want: Facts{API: Pairs, PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"score of as many texts as texts": {
			path: "/score", body: `{"text_1":["` + long("a", 1) + `","` + long("b", 1) + `"],"text_2":["` + long("c", 1) + `","d"]}`,
			want: Facts{API: Pairs, PromptBytes: 3*BlockBytes + 1}, wantBlocks: 2,
		},
		"score of one text and one text": {
			path: "/v1/score", body: `{"data_1":"` + long("a", 1) + `","data_2":"` + long("c", 1) + `"}`,
			want: Facts{API: Pairs, PromptBytes: 2 * BlockBytes}, wantBlocks: 2,
		},
		"scoring of token ids": {
			path: scoringPath, body: `{"query":[` + strings.Repeat("12,", 63) + `3],"items":[[` + strings.Repeat("12,", 63) + `3],[4]],"label_token_ids":[1,2]}`,
			want: Facts{API: Pairs, PromptBytes: 3*BlockBytes + 4}, wantBlocks: 2,
		},
		"documents beside messages are no pairs": {
			path: "/v2/chat", body: `{"documents":["` + long("d", 3) + `"],"messages":[{"role":"user","content":"` + long("m", 2) + `"}]}`,
			want: Facts{PromptBytes: 2*BlockBytes + 8}, wantBlocks: 2,
		},
		"what pairs repeat is bounded": {
			path: rerankPath, body: `{"query":"` + long("q", 1000) + `","documents":[` + strings.Repeat(`"",`, MaxPairs) + `""]}`,
			want: Facts{API: Pairs, PromptBytes: 1000*BlockBytes + MaxRepeated}, wantBlocks: 1000,
		},
		"a query counts with a bounded number of documents": {
			path: rerankPath, body: `{"query":"abcd","documents":[` + strings.Repeat(`"",`, 3*MaxPairs) + `""]}`,
			want: Facts{API: Pairs, PromptBytes: 4 * MaxPairs},
		},
		"a query without documents": {path: rerankPath, body: `{"query":"abcd"}`, want: Facts{API: Pairs, PromptBytes: 4}},
		"of a repeated query the first that is not empty": {
			path: rerankPath, body: `{"query":"","query":"abcd","query":"x","documents":["a"]}`, want: Facts{API: Pairs, PromptBytes: 5},
		},
		"rendering a chat": {
			path: "/v1/chat/completions/render", body: `{"messages":[{"content":"x"}],"model":"m"}`,
			want: Facts{API: NoPrompt, Model: "m"},
		},
		"JSON in the place of a recording": {
			path: speechPath, body: `{"model":"m","prompt":"x","file":"y"}`, want: Facts{API: Speech, Model: "m"},
		},
		"an input that is cut": {path: "/llama", body: `{"model":"m","input":[`, want: Facts{Model: "m"}},
		"a call that prefills nothing has a model and no prompt": {
			path: "/tokenize", body: `{"prompt":"abc","messages":[{"content":"x"}],"model":"m"}`,
			want: Facts{API: NoPrompt, Model: "m"},
		},
		"counting the tokens of messages": {
			path: "/v1/messages/count_tokens", body: `{"messages":[{"content":"x"}],"model":"m"}`,
			want: Facts{API: NoPrompt, Model: "m"},
		},
		"a model's name that is too long": {
			path: chatPath, body: `{"model":"a` + strings.Repeat("é", MaxModelBytes) + `"}`,
			want: Facts{API: ChatCompletions, Model: "a" + strings.Repeat("é", MaxModelBytes/2-1)},
		},
		"one of escapes": {
			path: chatPath, body: `{"model":"` + strings.Repeat(`\u0061`, 2*MaxModelBytes) + `"}`,
			want: Facts{API: ChatCompletions, Model: strings.Repeat("a", MaxModelBytes)},
		},
		"completions": {
			path: completionsPath, body: `{"prompt":"` + long("p", 1) + `"}`,
			want: Facts{API: Completions, PromptBytes: BlockBytes}, wantBlocks: 1,
		},
		"completions, a batch: blocks of the first, bytes of all": {
			path: completionsPath, body: `{"prompt":["` + long("p", 1) + `","` + long("q", 3) + `"]}`,
			want: Facts{API: Completions, PromptBytes: 4 * BlockBytes}, wantBlocks: 1,
		},
		"completions, token ids are four bytes": {
			path: completionsPath, body: `{"prompt":[` + strings.Repeat("12,", 127) + `3]}`,
			want: Facts{API: Completions, PromptBytes: 512}, wantBlocks: 2,
		},
		"embeddings, a batch of token ids": {
			path: embeddingsPath, body: `{"input":[[` + strings.Repeat("12,", 63) + `3],[` + strings.Repeat("12,", 63) + `3]]}`,
			want: Facts{API: Embeddings, PromptBytes: 512}, wantBlocks: 1,
		},
		"responses, input as a string": {
			path: responsesPath, body: `{"input":"` + long("r", 1) + `","max_output_tokens":3}`,
			want: Facts{API: Responses, PromptBytes: BlockBytes + 8}, wantBlocks: 1,
		},
		"messages": {
			path:       messagesPath,
			body:       `{"system":"` + long("s", 1) + `","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}`,
			want:       Facts{API: Messages, PromptBytes: BlockBytes + 10},
			wantBlocks: 1,
		},
		"an image counts the same whatever its length": {
			path: chatPath,
			body: `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` +
				strings.Repeat("A", 1<<20) + `"}}]}]}`,
			want:       Facts{API: ChatCompletions, PromptBytes: MediaBytes + 10},
			wantBlocks: 16,
		},
		"a model's name with escapes": {
			path: chatPath, body: `{"mod\u0065l":"a\/b\u00e9\ud83d\ude00\n"}`,
			want: Facts{API: ChatCompletions, Model: "a/bé😀\n"},
		},
		"of repeated keys the last": {
			path: chatPath, body: `{"model":"a","model":"b","stream":true,"stream":false}`,
			want: Facts{API: ChatCompletions, Model: "b"},
		},
		"of a repeated prompt the first": {
			path: completionsPath, body: `{"prompt":"abcd","prompt":"x"}`,
			want: Facts{API: Completions, PromptBytes: 4},
		},
		"values of a wrong type": {
			path: chatPath, body: `{"model":7,"stream":"true","max_tokens":"5","messages":{"a":1},"tools":3}`,
			want: Facts{API: ChatCompletions, PromptBytes: 1},
		},
		"what is not closed is not read": {
			path: chatPath, body: `{"stream":true,"model":"ab`,
			want: Facts{API: ChatCompletions, Stream: true},
		},
		"a number that may be cut": {
			path: chatPath, body: `{"model":"m","max_tokens":5`, want: Facts{API: ChatCompletions, Model: "m"},
		},
		"empty":    {path: chatPath, want: Facts{API: ChatCompletions}},
		"not JSON": {path: chatPath, body: "model=m&stream=1", want: Facts{API: ChatCompletions}},
		"an array": {path: chatPath, body: `["model","m"]`, want: Facts{API: ChatCompletions}},
		"deep nesting": {
			path: chatPath,
			body: `{"a":` + strings.Repeat(`[{"a":`, 100000) + strings.Repeat("}]", 100000) + `,"model":"m"}`,
			want: Facts{API: ChatCompletions, Model: "m"},
		},
		"no more than the most blocks": {
			path: completionsPath, body: `{"prompt":"` + long("p", MaxBlocks+100) + `","model":"m"}`,
			want:       Facts{API: Completions, Model: "m", PromptBytes: (MaxBlocks + 100) * BlockBytes},
			wantBlocks: MaxBlocks,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Facts{Model: "before", Stream: true, PromptBytes: 4, Blocks: []uint64{1, 2}}
			got.Read(Head{Path: tc.path}, []byte(tc.body))
			ignore := cmpopts.IgnoreFields(Facts{}, "Blocks")
			if diff := cmp.Diff(tc.want, got, ignore); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			if len(got.Blocks) != tc.wantBlocks {
				t.Errorf("%d blocks, want %d", len(got.Blocks), tc.wantBlocks)
			}
		})
	}
}

// TestDeepPrompt nests messages in messages, with the keys in an order that makes each wait for its item's end: the
// time must not grow with the square of the depth, nor the stack with the depth.
func TestDeepPrompt(t *testing.T) {
	const depth = 200_000
	f := read(chatPath, `{"messages":[`+strings.Repeat(`{"content":[`, depth)+strings.Repeat(`],"role":"u"}`, depth)+`],"model":"m"}`)
	if f.Model != "m" || f.PromptBytes < depth {
		t.Errorf("model %q, %d bytes of prompt: reading did not come to the end", f.Model, f.PromptBytes)
	}
}

// TestSameBlocks changes what must not change the blocks.
func TestSameBlocks(t *testing.T) {
	text := long("text", 3)
	for name, tc := range map[string]struct{ path, a, b string }{
		"keys of the request": {
			chatPath,
			`{"model":"m","cache_salt":"s","tools":[{"function":{"name":"f"}}],"messages":[{"role":"user","content":"` + text + `"}]}`,
			`{"messages":[{"role":"user","content":"` + text + `"}],"cache_salt":"s","tools":[{"function":{"name":"f"}}],"model":"m"}`,
		},
		"tools of whole blocks behind messages and system": {
			messagesPath,
			`{"messages":[{"role":"user","content":"` + text + `"}],"system":"` + long("s", 2) + `x","tools":[{"description":"` + text + `yz","name":"f"}]}`,
			`{"tools":[{"name":"f","description":"` + text + `yz"}],"system":"` + long("s", 2) + `x","messages":[{"content":"` + text + `","role":"user"}]}`,
		},
		"keys of a message, of parts, of calls": {
			chatPath,
			`{"messages":[{"role":"user","name":"n","content":[{"type":"text","text":"` + text + `"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"1","function":{"name":"f","arguments":"{}"}}]},{"role":"user","content":"` + text + `"}]}`,
			`{"messages":[{"content":[{"text":"` + text + `","type":"text"}],"name":"n","role":"user"},{"tool_calls":[{"function":{"arguments":"{}","name":"f"},"id":"2"}],"role":"assistant"},{"role":"user","content":"` + text + `"}]}`,
		},
		"a content of one part": {
			chatPath,
			`{"messages":[{"role":"user","content":"` + text + `"}]}`,
			`{"messages":[{"role":"user","content":[{"type":"text","text":"` + text + `","cache_control":{"type":"ephemeral"}}]}]}`,
		},
		"an input that is one message": {
			responsesPath,
			`{"input":"` + text + `"}`,
			`{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"` + text + `"}]}]}`,
		},
		"escapes": {
			completionsPath,
			`{"prompt":"A/\n\"\\é😀` + text + `"}`,
			`{"pr\u006fmpt":"\u0041\/\u000A\u0022\u005c\u00E9\uD83D\uDE00` + strings.ReplaceAll(text, "t", `\u0074`) + `"}`,
		},
		"halves of pairs": {
			completionsPath,
			`{"prompt":"\ud83dx\ude00\ud83d\n\ud83d\ud83d\ude00` + text + `"}`,
			`{"prompt":"\ufffdx\ufffd\ufffd\n` + "\uFFFD😀" + text + `"}`,
		},
		"whitespace inside of a schema": {
			chatPath,
			`{"tools":[{"function":{"name":"f","parameters":{"a":[1,true,"x y"]}}}],"messages":[{"role":"user","content":"` + text + `"}]}`,
			"{\"tools\":[{\"function\":{\"name\":\"f\",\"parameters\":{ \"a\" :\r\n[\t1 , true,\"x\\u0020y\"] }}}],\"messages\":[{\"role\":\"user\",\"content\":\"" + text + `"}]}`,
		},
		"sides of pairs, by any name, in any order": {
			"/score",
			`{"instruction":"be brief","text_1":"` + text + `","text_2":["` + text + `","x"]}`,
			`{"documents":["` + text + `","x"],"queries":["` + text + `"],"instruction":"be brief"}`,
		},
		"a query behind an empty one": {
			rerankPath,
			`{"query":"q` + text + `","documents":["` + text + `"]}`,
			`{"query":"","query":"q` + text + `","documents":["` + text + `"]}`,
		},
		"a query and documents of one part": {
			rerankPath,
			`{"query":"` + text + `","documents":["` + text + `"]}`,
			`{"query":[{"text":"` + text + `","type":"text"}],"documents":[{"text":"` + text + `"}]}`,
		},
		"the document first, in any order": {
			scoringPath,
			`{"item_first":true,"items":["` + text + `xy","z"],"query":"q` + text + `"}`,
			`{"query":"q` + text + `","items":["` + text + `xy","z"],"item_first":true}`,
		},
		"whitespace inside of data": {
			poolingPath,
			`{"model":"m","data":{"a":["x","y"]}}`,
			`{"data": { "a" : [ "\u0078","y" ] },"model":"m"}`,
		},
		"details of an image": {
			chatPath,
			`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x/y"}}]}]}`,
			`{"messages":[{"role":"user","content":[{"image_url":{"detail":"low","url":"http:\/\/x\/y"},"type":"image_url"}]}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := read(tc.path, tc.a), read(tc.path, tc.b)
			if len(a.Blocks) < 3 {
				t.Fatalf("only %d blocks", len(a.Blocks))
			}
			if diff := cmp.Diff(a, b); diff != "" {
				t.Errorf("facts differ (-a +b):\n%s", diff)
			}
		})
	}
}

// TestOtherBlocks changes what must change the blocks, and checks from which block on.
func TestOtherBlocks(t *testing.T) {
	text, tail := long("text", 3), long("tail", 4)
	chat := func(messages string) string { return `{"messages":[` + messages + `]}` }
	for name, tc := range map[string]struct {
		path, a, b string
		wantShared int
	}{
		"model": {completionsPath, `{"model":"a","prompt":"` + text + `"}`, `{"model":"b","prompt":"` + text + `"}`, 0},
		"salt":  {completionsPath, `{"cache_salt":"a","prompt":"` + text + `"}`, `{"prompt":"` + text + `"}`, 0},
		"salt is not model": {
			completionsPath, `{"cache_salt":"a","model":"b","prompt":"` + text + `"}`, `{"cache_salt":"b","model":"a","prompt":"` + text + `"}`, 0,
		},
		"role": {
			chatPath, chat(`{"role":"user","content":"` + text + `"}`), chat(`{"role":"system","content":"` + text + `"}`), 0,
		},
		"where a message ends": {
			chatPath,
			chat(`{"role":"user","content":"` + text + tail + `"}`),
			chat(`{"role":"user","content":"` + text + `"},{"role":"user","content":"` + tail + `"}`), 3,
		},
		"where a part ends": {
			chatPath,
			chat(`{"role":"user","content":[{"text":"` + text + tail + `"}]}`),
			chat(`{"role":"user","content":[{"text":"` + text + `"},{"text":"` + tail + `"}]}`), 3,
		},
		"a short tool": {
			chatPath,
			`{"tools":[{"function":{"name":"f"}}],"messages":[{"role":"user","content":"` + text + `"}]}`,
			`{"tools":[{"function":{"name":"g"}}],"messages":[{"role":"user","content":"` + text + `"}]}`, 0,
		},
		"a short system prompt": {
			messagesPath,
			`{"system":"be brief","messages":[{"role":"user","content":"` + text + `"}]}`,
			`{"messages":[{"role":"user","content":"` + text + `"}]}`, 0,
		},
		"instructions are not tools": {
			responsesPath,
			`{"instructions":"x","input":"` + text + `"}`,
			`{"tools":"x","input":"` + text + `"}`, 0,
		},
		"images": {
			chatPath,
			chat(`{"role":"user","content":[{"text":"` + text + `"},{"image_url":{"url":"a"}}]}`),
			chat(`{"role":"user","content":[{"text":"` + text + `"},{"image_url":{"url":"b"}}]}`), 3,
		},
		"image data of Anthropic": {
			messagesPath,
			chat(`{"role":"user","content":[{"source":{"type":"base64","data":"a"}}]}`),
			chat(`{"role":"user","content":[{"source":{"type":"base64","data":"b"}}]}`), 0,
		},
		"a tool's result": {
			messagesPath,
			chat(`{"role":"user","content":[{"type":"tool_result","content":"` + text + `"}]}`),
			chat(`{"role":"user","content":[{"type":"tool_result","content":[{"text":"` + long("other", 3) + `"}]}]}`), 0,
		},
		"a call's arguments": {
			chatPath,
			chat(`{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"` + text + `a` + tail + `"}}]}`),
			chat(`{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"` + text + `b` + tail + `"}}]}`), 3,
		},
		"an Anthropic call's input": {
			messagesPath,
			chat(`{"role":"assistant","content":[{"name":"f","input":{"a":"` + text + `a` + tail + `"}}]}`),
			chat(`{"role":"assistant","content":[{"name":"f","input":{"a":"` + text + `b` + tail + `"}}]}`), 3,
		},
		"a function's output": {
			responsesPath,
			`{"input":[{"call_id":"1","output":"` + text + `a` + tail + `"}]}`,
			`{"input":[{"call_id":"2","output":"` + text + `b` + tail + `"}]}`, 3,
		},
		"token ids": {
			completionsPath,
			`{"prompt":[` + strings.Repeat("1,", 64) + strings.Repeat("2,", 64) + `1]}`,
			`{"prompt":[` + strings.Repeat("1,", 64) + strings.Repeat("3,", 64) + `1]}`, 1,
		},
		"where a query ends": {
			rerankPath,
			`{"query":"` + text + `a","documents":["` + tail + `"]}`,
			`{"query":"` + text + `","documents":["a` + tail + `"]}`, 3,
		},
		"an instruction": {
			rerankPath,
			`{"instruct":"a","query":"` + text + `","documents":["` + tail + `"]}`,
			`{"query":"` + text + `","documents":["` + tail + `"]}`, 0,
		},
		"the first document": {
			rerankPath,
			`{"query":"` + text + `","documents":["` + tail + `","b"]}`,
			`{"query":"` + text + `","documents":["b` + tail + `","` + tail + `"]}`, 3,
		},
		"the last bytes of a query, of two": {
			"/score",
			`{"text_1":["` + text + `a","x"],"text_2":["` + tail + `","x"]}`,
			`{"text_1":["` + text + `b","x"],"text_2":["` + tail + `","x"]}`, 3,
		},
		"which side is first": {
			scoringPath,
			`{"query":"` + text + `","items":["` + tail + `"]}`,
			`{"item_first":true,"query":"` + text + `","items":["` + tail + `"]}`, 0,
		},
		"the second side, where documents are first": {
			scoringPath,
			`{"item_first":true,"query":"` + tail + `","items":["` + text + `","x"]}`,
			`{"item_first":true,"query":"a` + tail + `","items":["` + text + `","x"]}`, 3,
		},
		"data": {
			poolingPath, `{"data":{"data":"a","b":1}}`, `{"data":{"data":"a","b":2}}`, 0,
		},
		"an adapter": {
			generatePath, `{"text":"` + text + `","lora_path":"a"}`, `{"text":"` + text + `","lora_path":"b"}`, 0,
		},
		"a later byte": {
			completionsPath, `{"prompt":"` + text + "a" + tail + `"}`, `{"prompt":"` + text + "b" + tail + `"}`, 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := read(tc.path, tc.a).Blocks, read(tc.path, tc.b).Blocks
			if min(len(a), len(b)) <= tc.wantShared {
				t.Fatalf("%d and %d blocks, want more than the %d shared ones", len(a), len(b), tc.wantShared)
			}
			for i := range min(len(a), len(b)) {
				if shared := a[i] == b[i]; shared != (i < tc.wantShared) {
					t.Errorf("block %d is shared: %v, want the first %d", i, shared, tc.wantShared)
				}
			}
		})
	}
}

// TestCutQuery cuts a query that comes behind the documents in the body, and before them in the prompt: the documents
// must not follow a part of the query.
func TestCutQuery(t *testing.T) {
	body := `{"documents":["` + long("d", 3) + `"],"query":"` + long("q", 4) + `"}`
	whole, head := read(rerankPath, body).Blocks, read(rerankPath, body[:len(body)-2*BlockBytes]).Blocks
	if diff := cmp.Diff(whole[:2], head); diff != "" {
		t.Errorf("blocks (-of the whole +of the head):\n%s", diff)
	}
}

// TestBlocksAcrossPaths reads one chat as its callers may send it: a route's rewrite, which the picker does not see,
// and a path that says nothing must not part it from the others.
func TestBlocksAcrossPaths(t *testing.T) {
	chat := `{"model":"m","tools":[{"function":{"name":"f"}}],"messages":[{"role":"user","content":"` + long("x", 3) + `"}]}`
	want := read(chatPath, chat).Blocks
	for _, path := range []string{"/llama", "/llama/chat/completions", "/openai/deployments/other/chat/completions?api-version=1", ""} {
		if diff := cmp.Diff(want, read(path, chat).Blocks); diff != "" {
			t.Errorf("%q: blocks (-want +got):\n%s", path, diff)
		}
	}
	a, b := read("/deployments/m/chat/completions", `{"messages":[{"role":"user","content":"`+long("x", 3)+`"}]}`),
		read("/deployments/n/chat/completions", `{"messages":[{"role":"user","content":"`+long("x", 3)+`"}]}`)
	if a.Blocks[0] == b.Blocks[0] {
		t.Error("two models of two paths share a block")
	}
}

func TestReadDoesNotAllocate(t *testing.T) {
	for name, sample := range map[string]string{"prose": prose, "code": code} {
		body := chatBody(64<<10, sample)
		var f Facts
		f.Read(Head{Path: chatPath}, body)
		if n := testing.AllocsPerRun(10, func() { f.Read(Head{Path: chatPath}, body) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

// TestBlocksAreTheSameEverywhere pins two hashes: replicas of the picker that disagreed would send one conversation to
// several endpoints, and so would an old and a new version side by side.
func TestBlocksAreTheSameEverywhere(t *testing.T) {
	got := read(chatPath, `{"model":"m","cache_salt":"s","messages":[{"role":"user","content":"`+long("x", 2)+`"}]}`).Blocks
	if diff := cmp.Diff([]uint64{13078743314779733755, 10898576831670753468}, got); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
}
