// Package traffic calls models as services do: streamed chat completions, and conversations that grow turn by turn. It
// measures what a caller can see, and knows nothing of the mesh.
package traffic

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Message is one message of a chat.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Answer is the outcome of one call.
type Answer struct {
	Text         string
	PromptTokens int
	CachedTokens int // of the prompt, as the model server reports
	// Endpoint is the model server's name for itself.
	Endpoint string
	// FirstToken and Total are the times from the call's start to the first piece of text and to the answer's end.
	FirstToken, Total time.Duration
}

// Refused is an answer that is not from a model.
type Refused struct {
	Status int
	Body   string
}

func (r *Refused) Error() string { return fmt.Sprintf("status %d: %s", r.Status, r.Body) }

// Chat requests a chat's next message, streamed, of up to maxTokens tokens, at the API's usual path.
func Chat(ctx context.Context, client *http.Client, host, model string, messages []Message, maxTokens int) (*Answer, error) {
	return ChatAt(ctx, client, host+"/v1/chat/completions", model, messages, maxTokens)
}

// ChatAt is Chat at a URL with any path.
func ChatAt(ctx context.Context, client *http.Client, url, model string, messages []Message, maxTokens int) (*Answer, error) {
	body := Body(model, messages, maxTokens)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making a chat request: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	began := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("calling %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return nil, &Refused{Status: response.StatusCode, Body: strings.TrimSpace(string(text))}
	}
	answer := &Answer{Endpoint: response.Header.Get("X-Served-By")}
	if err := answer.read(response.Body, began); err != nil {
		return nil, fmt.Errorf("reading the answer of %s: %w", answer.Endpoint, err)
	}
	answer.Total = time.Since(began)
	return answer, nil
}

// Body is the body of Chat's request.
func Body(model string, messages []Message, maxTokens int) []byte {
	body, _ := json.Marshal(map[string]any{ // strings and numbers always encode
		"model": model, "messages": messages, "max_tokens": maxTokens,
		"stream": true, "stream_options": map[string]bool{"include_usage": true},
	})
	return body
}

// chunk is the part of a streamed piece that is read.
type chunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage *struct {
		PromptTokens        int `json:"prompt_tokens"`
		PromptTokensDetails struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	} `json:"usage"`
}

func (a *Answer) read(body io.Reader, began time.Time) error {
	var text strings.Builder
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		data, ok := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !ok {
			continue
		}
		if string(data) == "[DONE]" {
			a.Text = text.String()
			return nil
		}
		var c chunk
		if err := json.Unmarshal(data, &c); err != nil {
			return fmt.Errorf("decoding a piece: %w", err)
		}
		if len(c.Choices) > 0 && c.Choices[0].Delta.Content != "" {
			if a.FirstToken == 0 {
				a.FirstToken = time.Since(began)
			}
			text.WriteString(c.Choices[0].Delta.Content)
		}
		if c.Usage != nil {
			a.PromptTokens, a.CachedTokens = c.Usage.PromptTokens, c.Usage.PromptTokensDetails.CachedTokens
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return errors.New("the stream ended before [DONE]")
}

// Conversation is a chat that grows: each turn sends the whole history.
type Conversation struct {
	Messages []Message
	random   *rand.Rand
}

// NewConversation starts with a system prompt. Equal seeds give equal texts at any time; different seeds give different
// texts.
func NewConversation(system string, seed uint64) *Conversation {
	return &Conversation{
		Messages: []Message{{Role: "system", Content: system}},
		random:   rand.New(rand.NewPCG(seed, 0)),
	}
}

// Ask takes one turn: a question of about so many tokens, with an answer of up to maxTokens.
func (c *Conversation) Ask(ctx context.Context, client *http.Client, url, model string, tokens, maxTokens int) (*Answer, error) {
	asked := append(slices.Clone(c.Messages), Message{Role: "user", Content: Text(c.random, tokens)})
	answer, err := Chat(ctx, client, url, model, asked, maxTokens)
	if err != nil {
		return nil, err
	}
	asked = append(asked, Message{Role: "assistant", Content: answer.Text})
	c.Messages = asked
	return answer, nil
}

var words = strings.Fields("order parcel refund invoice account address delivery carrier warehouse return colour size stock price discount voucher " +
	"basket checkout payment card bank transfer customer support ticket reply manager region country tax customs label")

// Text makes text of about so many tokens, at four bytes a token.
func Text(random *rand.Rand, tokens int) string {
	var out strings.Builder
	for out.Len() < 4*tokens {
		out.WriteString(words[random.IntN(len(words))])
		out.WriteByte(' ')
	}
	return out.String()
}
