package api

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// message is one turn of a chat.
type message struct {
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	ToolCalls json.RawMessage `json:"tool_calls"`
}

type contentPart struct {
	Type string `json:"type"`
	Text string `json:"text"`
}

// renderChat turns messages into the model's text, as a chat template does: tools
// first, each turn between marks, and last the mark before the answer. So a chat
// that includes an earlier answer continues the text of that answer.
func renderChat(tools json.RawMessage, messages []message) ([]byte, error) {
	if len(messages) == 0 {
		return nil, badRequest("messages must be given and not be empty")
	}
	var b bytes.Buffer
	if present(tools) {
		fmt.Fprintf(&b, "<|tools|>\n%s<|end|>\n", tools)
	}
	for i, m := range messages {
		if m.Role == "" {
			return nil, badRequest("messages[%d] has no role", i)
		}
		fmt.Fprintf(&b, "<|%s|>\n", m.Role)
		if err := renderContent(&b, m.Content); err != nil {
			return nil, badRequest("messages[%d]: %v", i, err)
		}
		if present(m.ToolCalls) {
			b.Write(m.ToolCalls)
		}
		b.WriteString("<|end|>\n")
	}
	b.WriteString("<|assistant|>\n")
	return b.Bytes(), nil
}

// renderContent writes a text, or the texts of a list of parts. Another part,
// such as an image, becomes a mark of fixed length with the part's hash.
func renderContent(b *bytes.Buffer, raw json.RawMessage) error {
	if !present(raw) {
		return nil
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		b.WriteString(text)
		return nil
	}
	var parts []json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return fmt.Errorf("content must be a text or a list of parts")
	}
	for i, raw := range parts {
		var part contentPart
		if json.Unmarshal(raw, &part) != nil || part.Type == "" {
			return fmt.Errorf("content[%d] must be an object with a type", i)
		}
		if part.Type == "text" {
			b.WriteString(part.Text)
		} else {
			fmt.Fprintf(b, "<|%s:%016x|>", part.Type, xxhash.Sum64(raw))
		}
	}
	return nil
}

func present(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }
