package request

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

const prose = "The picker sits in front of every token that the mesh generates, and costs next to nothing. "

const code = "func main() {\n\tif err := run(os.Args); err != nil {\n\t\tfmt.Fprintln(os.Stderr, \"error:\", err)\n\t\tos.Exit(1)\n\t}\n}\n"

// abroad is what a client that writes ASCII only makes of text in other scripts.
const abroad = `\u63a8\u8ad6\u306e\u63a8\u8ad6\uff0c\u4ec0\u4e48\u662f\u7f13\u5b58 `

// chatBody makes a chat of eight messages and about size bytes, as a Python client writes it.
func chatBody(size int, sample string) []byte {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	body := struct {
		Messages  []message `json:"messages"`
		Model     string    `json:"model"`
		MaxTokens int       `json:"max_tokens"`
		Stream    bool      `json:"stream"`
	}{Model: "Qwen/Qwen3-32B", MaxTokens: 1024, Stream: true}
	const messages = 8
	escaped, _ := json.Marshal(sample)
	n := max(1, size/messages/(len(escaped)-2))
	for i := range messages {
		role := []string{"system", "user", "assistant"}[min(i, 1)+i/2%2]
		body.Messages = append(body.Messages, message{role, fmt.Sprint(i) + strings.Repeat(sample, n)})
	}
	out, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	return out
}

func BenchmarkRead(b *testing.B) {
	for _, kind := range []struct{ name, sample string }{{"prose", prose}, {"code", code}, {"escaped", abroad}} {
		for _, kb := range []int{1, 8, 64, 512} {
			b.Run(fmt.Sprintf("%s/%dKB", kind.name, kb), func(b *testing.B) {
				body := bytes.ReplaceAll(chatBody(kb<<10, kind.sample), []byte(`\\u`), []byte(`\u`))
				var f Facts
				f.Read(Head{Path: "/v1/chat/completions", ContentType: "application/json"}, body)
				b.SetBytes(int64(len(body)))
				b.ReportAllocs()
				for b.Loop() {
					f.Read(Head{Path: "/v1/chat/completions", ContentType: "application/json"}, body)
				}
			})
		}
	}
}

func BenchmarkHashBlock(b *testing.B) {
	block := make([]byte, BlockBytes)
	b.SetBytes(BlockBytes)
	for b.Loop() {
		block[0] = byte(hashOf(1, block))
	}
}
