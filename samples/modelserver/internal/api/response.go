package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
)

// response is a whole answer, or one chunk of a stream.
type response struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	Model   string `json:"model"`
	Choices []any  `json:"choices"`
	Usage   *usage `json:"usage,omitempty"`
}

type usage struct {
	PromptTokens        int           `json:"prompt_tokens"`
	TotalTokens         int           `json:"total_tokens"`
	CompletionTokens    int           `json:"completion_tokens"`
	PromptTokensDetails promptDetails `json:"prompt_tokens_details"`
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

func usageOf(out engine.Output) *usage {
	return &usage{
		PromptTokens:        out.PromptTokens,
		CompletionTokens:    out.AnswerTokens,
		TotalTokens:         out.PromptTokens + out.AnswerTokens,
		PromptTokensDetails: promptDetails{CachedTokens: out.CachedTokens},
	}
}

// format is the JSON form of text on one of the two routes.
type format struct {
	idPrefix           string
	object, partObject string
	// opening is the first chunk of a stream; nil without one.
	opening any
	whole   func(text string, finish engine.FinishReason) any
	part    func(text string, finish engine.FinishReason) any
}

type chatChoice struct {
	Index        int                  `json:"index"`
	Message      *chatText            `json:"message,omitempty"`
	Delta        *chatText            `json:"delta,omitempty"`
	Logprobs     *struct{}            `json:"logprobs"`
	FinishReason *engine.FinishReason `json:"finish_reason"`
}

type chatText struct {
	Role    string `json:"role,omitempty"`
	Content string `json:"content"`
}

type completionChoice struct {
	Index        int                  `json:"index"`
	Text         string               `json:"text"`
	Logprobs     *struct{}            `json:"logprobs"`
	FinishReason *engine.FinishReason `json:"finish_reason"`
}

var chatFormat = format{
	idPrefix: "chatcmpl-",
	object:   "chat.completion", partObject: "chat.completion.chunk",
	opening: chatChoice{Delta: &chatText{Role: "assistant"}},
	whole: func(text string, finish engine.FinishReason) any {
		return chatChoice{Message: &chatText{Role: "assistant", Content: text}, FinishReason: orNull(finish)}
	},
	part: func(text string, finish engine.FinishReason) any {
		return chatChoice{Delta: &chatText{Content: text}, FinishReason: orNull(finish)}
	},
}

var completionFormat = format{
	idPrefix: "cmpl-",
	object:   "text_completion", partObject: "text_completion",
	whole: completionText, part: completionText,
}

func completionText(text string, finish engine.FinishReason) any {
	return completionChoice{Text: text, FinishReason: orNull(finish)}
}

func orNull(finish engine.FinishReason) *engine.FinishReason {
	if finish == "" {
		return nil
	}
	return &finish
}

func (g *generation) response(object string, choices ...any) *response {
	if choices == nil {
		choices = []any{} // becomes [], as the chunk of the usage needs
	}
	return &response{ID: g.id, Object: object, Created: g.arrived.Unix(), Model: g.model, Choices: choices}
}

// responder writes one answer while it is generated.
type responder interface {
	// write returns an error if the caller cannot be reached any more.
	write(engine.Output) error
	// fail ends an answer that was cut.
	fail(error)
}

// wholeResponder keeps the text until the answer ends.
type wholeResponder struct {
	server *Server
	w      http.ResponseWriter
	g      *generation
	text   strings.Builder
}

func (r *wholeResponder) write(out engine.Output) error {
	r.text.WriteString(out.Text)
	if out.Finish != "" {
		resp := r.g.response(r.g.format.object, r.g.format.whole(r.text.String(), out.Finish))
		resp.Usage = usageOf(out)
		r.server.writeJSON(r.w, http.StatusOK, resp)
	}
	return nil
}

func (r *wholeResponder) fail(err error) { r.server.fail(r.w, err) }

// streamResponder sends server-sent events.
type streamResponder struct {
	w      http.ResponseWriter
	g      *generation
	opened bool
}

// newStreamResponder sends the headers at once, as vLLM does: they say that the
// request is queued, not that it has a token.
func newStreamResponder(w http.ResponseWriter, g *generation) *streamResponder {
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	r := &streamResponder{w: w, g: g}
	// A write notices a caller who has left.
	_ = r.flush()
	return r
}

func (r *streamResponder) write(out engine.Output) error {
	f := r.g.format
	if !r.opened && f.opening != nil {
		r.event(r.g.response(f.partObject, f.opening))
	}
	r.opened = true
	r.event(r.g.response(f.partObject, f.part(out.Text, out.Finish)))
	if out.Finish != "" {
		if r.g.endUsage {
			last := r.g.response(f.partObject)
			last.Usage = usageOf(out)
			r.event(last)
		}
		fmt.Fprint(r.w, "data: [DONE]\n\n")
	}
	return r.flush()
}

// fail sends the error as the last event, as the status was sent long before.
func (r *streamResponder) fail(err error) {
	r.event(newErrorBody(err))
	_ = r.flush() // the stream ends either way
}

// event writes one event; the next flush returns a failure.
func (r *streamResponder) event(v any) {
	fmt.Fprint(r.w, "data: ")
	_ = json.NewEncoder(r.w).Encode(v) // adds one of the two newlines
	fmt.Fprint(r.w, "\n")
}

func (r *streamResponder) flush() error { return http.NewResponseController(r.w).Flush() }
