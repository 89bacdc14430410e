package answer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// answers are model servers' answers, by API. Long ones are cut where tailLength cuts them.
var answers = map[string]struct {
	answer string
	want   Usage
	wantOK bool
}{
	"chat": {
		answer: `{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hello."},"finish_reason":"stop"}],` +
			`"usage":{"prompt_tokens":120,"total_tokens":128,"completion_tokens":8,"prompt_tokens_details":{"cached_tokens":96}},"kv_transfer_params":null}`,
		want: Usage{Prompt: 120, Cached: 96, Completion: 8}, wantOK: true,
	},
	"chat, details null": {
		answer: `{"choices":[],"usage":{"prompt_tokens":120,"completion_tokens":8,"prompt_tokens_details":null}}`,
		want:   Usage{Prompt: 120, Completion: 8}, wantOK: true,
	},
	"chat, indented": {
		answer: "{\r\n  \"choices\" : [ ],\r\n  \"usage\" : {\r\n    \"prompt_tokens\" : 120 ,\r\n    \"completion_tokens\" : 8\r\n  }\r\n}\r\n",
		want:   Usage{Prompt: 120, Completion: 8}, wantOK: true,
	},
	"chat, other details": {
		answer: `{"usage":{"completion_tokens_details":{"reasoning_tokens":5,"accepted_prediction_tokens":1},"completion_tokens":8,"prompt_tokens_details":{"audio_tokens":3,"cached_tokens":64},"prompt_tokens":120}}`,
		want:   Usage{Prompt: 120, Cached: 64, Completion: 8}, wantOK: true,
	},
	"embeddings": {
		answer: `{"object":"list","data":[{"embedding":[` + strings.Repeat("0.123456,", 3000) + `0]}],"usage":{"prompt_tokens":12,"total_tokens":12}}`,
		want:   Usage{Prompt: 12}, wantOK: true,
	},
	"chat, long": {
		answer: `{"choices":[{"message":{"content":"` + strings.Repeat(`\"usage\": {\\\"`, 2000) + `"}}],"usage":{"prompt_tokens":120,"completion_tokens":8000}}`,
		want:   Usage{Prompt: 120, Completion: 8000}, wantOK: true,
	},
	"chat stream": {
		answer: "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}],\"usage\":null}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"lo\"}}]}\n\n" +
			"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":96}}}\n\ndata: [DONE]\n\n",
		want: Usage{Prompt: 120, Cached: 96, Completion: 2}, wantOK: true,
	},
	"chat stream, long": {
		answer: strings.Repeat("data: {\"choices\":[{\"delta\":{\"content\":\"word \"}}]}\n\n", 1000) +
			"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":1000}}\n\ndata: [DONE]\n\n",
		want: Usage{Prompt: 120, Completion: 1000}, wantOK: true,
	},
	"chat stream, usage in each event": {
		answer: "data: {\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":1}}\r\n\r\ndata: {\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":2}}\r\n\r\ndata: [DONE]\r\n\r\n",
		want:   Usage{Prompt: 120, Completion: 2}, wantOK: true,
	},
	"chat stream, broken off": {
		answer: "data: {\"usage\":{\"prompt_tokens\":120,\"completion_tokens\":1}}\n\ndata: {\"usage\":{\"prompt_tok",
		want:   Usage{Prompt: 120, Completion: 1}, wantOK: true,
	},
	"response": {
		answer: `{"object":"response","output":[],"usage":{"input_tokens":120,"input_tokens_details":{"cached_tokens":96},"output_tokens":8,"output_tokens_details":{"reasoning_tokens":3},"total_tokens":128},"user":null,"metadata":{"usage":"mine"}}`,
		want:   Usage{Prompt: 120, Cached: 96, Completion: 8}, wantOK: true,
	},
	"response stream": {
		answer: "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\n" +
			"event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{}],\"usage\":{\"input_tokens\":120,\"output_tokens\":8}},\"sequence_number\":9}\n\n",
		want: Usage{Prompt: 120, Completion: 8}, wantOK: true,
	},
	"response stream, last event longer than what is kept": {
		answer: "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[\"" + strings.Repeat("word ", 4000) +
			"\"],\"usage\":{\"input_tokens\":120,\"output_tokens\":4000},\"metadata\":{}},\"sequence_number\":9}\n\n",
		want: Usage{Prompt: 120, Completion: 4000}, wantOK: true,
	},
	"message": {
		answer: `{"type":"message","content":[{"type":"tool_use","input":{"usage":{"input_tokens":1,"output_tokens":1}}}],"usage":{"input_tokens":20,"cache_creation_input_tokens":4,"cache_read_input_tokens":96,"output_tokens":8}}`,
		want:   Usage{Prompt: 120, Cached: 96, Completion: 8}, wantOK: true,
	},
	"message stream": {
		answer: "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[],\"usage\":{\"input_tokens\":20,\"cache_read_input_tokens\":100,\"output_tokens\":1}}}\n\n" +
			"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"Hello\"}}\n\n" +
			"event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":8}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
		want: Usage{Prompt: 120, Cached: 100, Completion: 8}, wantOK: true,
	},
	"said by the model": {answer: `{"choices":[{"message":{"content":"{\"usage\":{\"prompt_tokens\":1}}"}}]}`},
	"said in a tool's arguments": {
		answer: `{"content":[{"type":"tool_use","input":{"usage":{"input_tokens":1,"output_tokens":1}}}]}`,
	},
	"said in another member":        {answer: `{"metadata":{"usage":{"input_tokens":1,"output_tokens":1}}}`},
	"stream without usage":          {answer: "data: {\"choices\":[{\"delta\":{\"content\":\"Hello\"}}]}\n\ndata: [DONE]\n\n"},
	"error":                         {answer: `{"error":{"message":"no","type":"NotFoundError"}}`},
	"usage null":                    {answer: `{"usage":null}`},
	"usage empty":                   {answer: `{"usage":{}}`},
	"usage not closed":              {answer: `{"usage":{"prompt_tokens":1`},
	"usage of texts":                {answer: `{"usage":{"prompt_tokens":"1","completion_tokens":[2]}}`},
	"usage negative":                {answer: `{"usage":{"prompt_tokens":-1}}`},
	"usage of fractions":            {answer: `{"usage":{"prompt_tokens":1.5,"completion_tokens":1e3}}`},
	"usage beyond all measure":      {answer: `{"usage":{"prompt_tokens":99999999999999999999999}}`},
	"more cached than there is":     {answer: `{"usage":{"prompt_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}`},
	"compressed":                    {answer: "\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff\xaaV*-NLOU\xb2R\xa8V*(\xca\xcf-(\x89/\xc9\xcf\x023\x8cj\x01"},
	"text":                          {answer: "usage: 5 tokens"},
	"brackets that do not fit":      {answer: `[{"usage":{"prompt_tokens":1}]}`},
	"many brackets":                 {answer: strings.Repeat("}", 5000)},
	"a text that does not begin":    {answer: `usage":{"prompt_tokens":1}}`},
	"escapes without end":           {answer: strings.Repeat(`\`, 9000) + `"}`},
	"empty":                         {},
	"a line break and nothing else": {answer: "\n"},
}

func TestReadUsage(t *testing.T) {
	for name, tt := range answers {
		for _, piece := range []int{1, 7, 1000, 1 << 20} {
			t.Run(fmt.Sprintf("%s, in pieces of %d", name, piece), func(t *testing.T) {
				var kept Tail
				for p := range slices.Chunk([]byte(tt.answer), piece) {
					kept.Add(p)
				}
				got, ok := readUsage(kept.bytes())
				if ok != tt.wantOK || ok && got != tt.want {
					t.Errorf("usage %+v, %t, want %+v, %t", got, ok, tt.want, tt.wantOK)
				}
			})
		}
	}
}

// Tail keeps an answer's end, whatever its pieces.
func TestTailKeepsTheEnd(t *testing.T) {
	var answer []byte
	for n := range 5000 {
		answer = fmt.Appendf(answer, "%d,", n)
	}
	for _, length := range []int{0, 1, tailLength - 1, tailLength, tailLength + 1, 2*tailLength + 5, len(answer)} {
		for _, piece := range []int{1, 100, tailLength, tailLength + 1, 3 * tailLength} {
			var kept Tail
			kept.Add([]byte("of the answer before"))
			kept.Reset()
			for p := range slices.Chunk(answer[:length], piece) {
				kept.Add(p)
			}
			got, cut := kept.bytes()
			if want := answer[max(0, length-tailLength):length]; !bytes.Equal(got, want) || cut != (length > tailLength) {
				t.Errorf("of %d bytes in pieces of %d, %d are kept (cut: %t), want the last %d", length, piece, len(got), cut, len(want))
			}
		}
	}
}

// FuzzUsage checks three things: no panic; no more cached tokens than the prompt has; and the same usage however long
// the answer's text is.
func FuzzUsage(f *testing.F) {
	for _, tt := range answers {
		f.Add([]byte(tt.answer), []byte(tt.answer))
	}
	f.Add([]byte("data: {"), []byte(`\"usage\":{"`))
	f.Fuzz(func(t *testing.T, answer, text []byte) {
		for _, cut := range []bool{false, true} {
			if got, ok := readUsage(answer, cut); ok && (got.Cached > got.Prompt || min(got.Prompt, got.Cached, got.Completion) < 0) {
				t.Errorf("usage %+v", got)
			}
		}
		want := Usage{Prompt: 20, Cached: 10, Completion: 5}
		const said = `"usage":{"prompt_tokens":20,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":10}}`
		for _, form := range []string{`{"choices":[{"text":%s}],` + said + `}`, "data: {\"choices\":[{\"text\":%s}]}\n\ndata: {\"choices\":[]," + said + "}\n\ndata: [DONE]\n\n"} {
			for _, times := range []int{1, 1 + tailLength/(len(text)+1)} {
				var kept Tail
				kept.Add(fmt.Appendf(nil, form, quoted(bytes.Repeat(text, times))))
				if got, ok := readUsage(kept.bytes()); !ok || got != want {
					t.Errorf("usage %+v, %t of a text of %d bytes, want %+v", got, ok, times*len(text), want)
				}
			}
		}
	})
}

func BenchmarkUsage(b *testing.B) {
	for _, name := range []string{"chat", "chat stream, long"} {
		b.Run(name, func(b *testing.B) {
			var kept Tail
			kept.Add([]byte(answers[name].answer))
			answer, cut := kept.bytes()
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := readUsage(answer, cut); !ok {
					b.Fatal("there is no usage")
				}
			}
		})
	}
}

// quoted is a JSON text.
func quoted(text []byte) []byte {
	out, err := json.Marshal(string(text))
	if err != nil {
		panic(err) // texts always marshal
	}
	return out
}
