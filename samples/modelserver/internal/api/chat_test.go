package api

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestRenderChat(t *testing.T) {
	tests := map[string]struct {
		body string
		want string
	}{
		"text":       {`[{"role":"user","content":"hi"}]`, "<|user|>\nhi<|end|>\n<|assistant|>\n"},
		"parts":      {`[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]`, "<|user|>\nab<|end|>\n<|assistant|>\n"},
		"null":       {`[{"role":"assistant","content":null}]`, "<|assistant|>\n<|end|>\n<|assistant|>\n"},
		"tool calls": {`[{"role":"assistant","tool_calls":[{"id":"1"}]}]`, "<|assistant|>\n[{\"id\":\"1\"}]<|end|>\n<|assistant|>\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var messages []message
			if err := json.Unmarshal([]byte(tt.body), &messages); err != nil {
				t.Fatal(err)
			}
			got, err := renderChat(nil, messages)
			if err != nil || string(got) != tt.want {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func TestImagesHaveAFixedLengthAndTheirOwnText(t *testing.T) {
	render := func(url string) string {
		content, _ := json.Marshal([]any{map[string]any{"type": "image_url", "image_url": map[string]string{"url": url}}})
		b, err := renderChat(json.RawMessage(`[]`), []message{{Role: "user", Content: content}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	small, large := render("http://a/1.png"), render("data:image/png;base64,"+strings.Repeat("A", 1<<16))
	if len(small) != len(large) || small == large || small != render("http://a/1.png") {
		t.Errorf("%q and %q", small, large)
	}
}

func FuzzCompletionPrompt(f *testing.F) {
	for _, seed := range []string{`"text"`, `["text"]`, `[1,2]`, `[]`, `null`, `{}`, `[[1]]`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if prompt, err := completionPrompt(raw); err == nil && len(prompt) == 0 {
			t.Errorf("%q gives an empty prompt", raw)
		}
	})
}
