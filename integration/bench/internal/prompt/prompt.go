// Package prompt makes bodies of chat calls for a load: prose and code in the JSON that clients write, of an exact size,
// each with a serial number at the head of the prompt. It does not know the server.
package prompt

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Model is the model in all bodies.
const Model = "llama-3.1-8b"

// SerialLength is the length of a serial number, in bytes.
const SerialLength = 16

// zero is the serial number of a new body. It occurs nowhere else in the body.
const zero = "0000000000000000"

var words = strings.Fields("the picker reads a request once and sends it to the endpoint that holds most of its prefix in the " +
	"cache so that the model does not compute again what it has computed for another user a moment ago while a busy " +
	"endpoint is left alone until it has answered what waits there already")

// snippet has the characters that make JSON of code costly: line breaks, tabs, quotes and backslashes.
const snippet = "```go\nfunc main() {\n\tif err := run(os.Args[1:]); err != nil {\n\t\tfmt.Fprintf(os.Stderr, \"failed: %v\\n\", err)\n" +
	"\t\tos.Exit(1)\n\t}\n\tpath := \"C:\\\\temp\\\\report.txt\"\n}\n```\n"

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Chat makes the body of a streamed chat completion of exactly size bytes, or of the smallest possible size: a system
// prompt that starts with the serial number, and turns of prose with code in every other paragraph. The same size gives the
// same body.
func Chat(size int) []byte {
	random := rand.New(rand.NewPCG(uint64(size), 1))
	body := encode([]message{{"system", zero + " You answer in short sentences."}}, 0)
	messages := []message{{"system", zero + " You answer in short sentences."}}
	for len(body) < size {
		role := []string{"assistant", "user"}[len(messages)%2]
		longer := append(slices.Clip(messages), message{role, paragraph(random, 200+size/8)})
		if body = encode(longer, 0); len(body) > size {
			break
		}
		messages = longer
	}
	shortest := encode(append(messages, message{"user", ""}), 0)
	return encode(append(messages, message{"user", ""}), max(0, size-len(shortest)))
}

// paragraph makes about so many bytes of text.
func paragraph(random *rand.Rand, size int) string {
	var out strings.Builder
	for out.Len() < size {
		for range 40 {
			out.WriteString(words[random.IntN(len(words))])
			out.WriteByte(' ')
		}
		out.WriteString("\n\n")
		if random.IntN(2) == 0 && out.Len()+len(snippet) < size {
			out.WriteString(snippet)
		}
	}
	return out.String()
}

// encode writes a body; fill letters are added to the last message.
func encode(messages []message, fill int) []byte {
	last := &messages[len(messages)-1]
	last.Content += strings.Repeat("x", fill)
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // few clients do
	// Strings, numbers and booleans always encode.
	_ = encoder.Encode(struct {
		Model     string    `json:"model"`
		Messages  []message `json:"messages"`
		MaxTokens int       `json:"max_tokens"`
		Stream    bool      `json:"stream"`
	}{Model, messages, 1024, true})
	return bytes.TrimRight(out.Bytes(), "\n")
}

// SerialAt finds the serial number in a body that Chat made, or in a message with such a body.
func SerialAt(body []byte) int { return bytes.Index(body, []byte(zero)) }

// SetSerial writes a serial number into place, which has SerialLength bytes.
func SetSerial(place []byte, n uint64) {
	copy(place, fmt.Appendf(make([]byte, 0, SerialLength), "%016x", n))
}
