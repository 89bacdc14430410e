package api

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/engine"
)

// defaultCompletionTokens bounds a completion without max_tokens, as in OpenAI's
// and vLLM's API. Only the context's length bounds a chat's answer.
const defaultCompletionTokens = 16

// sampling holds the fields of both kinds of request. Fields that only change the
// words, such as temperature, are accepted and ignored.
type sampling struct {
	Model         string         `json:"model"`
	MaxTokens     *int           `json:"max_tokens"`
	N             *int           `json:"n"`
	Stream        bool           `json:"stream"`
	StreamOptions *streamOptions `json:"stream_options"`
	IgnoreEOS     bool           `json:"ignore_eos"`
	CacheSalt     string         `json:"cache_salt"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

type chatRequest struct {
	sampling
	MaxCompletionTokens *int            `json:"max_completion_tokens"`
	Messages            []message       `json:"messages"`
	Tools               json.RawMessage `json:"tools"`
}

type completionRequest struct {
	sampling
	Prompt json.RawMessage `json:"prompt"`
}

func (s *Server) chatCompletions(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, func(body []byte) (*generation, error) {
		var req chatRequest
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, fmt.Errorf("reading the request: %w", err)
		}
		prompt, err := renderChat(req.Tools, req.Messages)
		if err != nil {
			return nil, err
		}
		maxTokens := cmp.Or(req.MaxCompletionTokens, req.MaxTokens)
		return s.newGeneration(chatFormat, req.sampling, prompt, maxTokens)
	})
}

func (s *Server) completions(w http.ResponseWriter, r *http.Request) {
	s.serve(w, r, func(body []byte) (*generation, error) {
		var req completionRequest
		if err := json.Unmarshal(body, &req); err != nil {
			return nil, fmt.Errorf("reading the request: %w", err)
		}
		prompt, err := completionPrompt(req.Prompt)
		if err != nil {
			return nil, err
		}
		maxTokens := cmp.Or(req.MaxTokens, new(defaultCompletionTokens))
		return s.newGeneration(completionFormat, req.sampling, prompt, maxTokens)
	})
}

// serve reads the body, parses it with understand, and answers it.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, understand func([]byte) (*generation, error)) {
	arrived := time.Now()
	body, err := readBody(w, r)
	if err != nil {
		s.fail(w, err)
		return
	}
	g, err := understand(body)
	if err != nil {
		s.fail(w, err)
		return
	}
	g.arrived = arrived
	g.id = g.format.idPrefix + cmp.Or(r.Header.Get("X-Request-Id"), rand.Text())
	s.generate(w, r, g)
}

// newGeneration checks the fields of both kinds of request.
func (s *Server) newGeneration(f format, p sampling, prompt []byte, maxTokens *int) (*generation, error) {
	adapter, ok := s.models.adapter(p.Model)
	switch {
	case !ok:
		return nil, &requestError{http.StatusNotFound, fmt.Sprintf("The model `%s` does not exist.", p.Model)}
	case p.N != nil && *p.N != 1:
		return nil, badRequest("n must be 1: this server gives one answer to a request")
	case maxTokens != nil && *maxTokens < 1:
		return nil, badRequest("max_tokens must be at least 1, got %d.", *maxTokens)
	case p.StreamOptions != nil && !p.Stream:
		return nil, badRequest("Stream options can only be defined when `stream=True`.")
	}
	req := engine.Request{Adapter: adapter, CacheSalt: p.CacheSalt, Prompt: prompt, IgnoreEOS: p.IgnoreEOS}
	if maxTokens != nil {
		req.MaxTokens = *maxTokens
	}
	return &generation{
		model:    cmp.Or(p.Model, s.models.base),
		request:  req,
		stream:   p.Stream,
		endUsage: p.StreamOptions != nil && p.StreamOptions.IncludeUsage,
		format:   f,
	}, nil
}

// completionPrompt reads a prompt: a text, a list of one text, or token ids,
// each of which stands for 4 bytes.
func completionPrompt(raw json.RawMessage) ([]byte, error) {
	var text string
	var texts []string
	var tokens []uint32
	switch {
	case json.Unmarshal(raw, &text) == nil:
	case json.Unmarshal(raw, &texts) == nil:
		if len(texts) > 1 {
			return nil, badRequest("prompt has %d texts: this server takes one in a request", len(texts))
		}
		if len(texts) == 1 {
			text = texts[0]
		}
	case json.Unmarshal(raw, &tokens) == nil:
		buf := make([]byte, 0, len(tokens)*engine.BytesPerToken)
		for _, token := range tokens {
			buf = binary.LittleEndian.AppendUint32(buf, token)
		}
		return buf, nil
	default:
		return nil, badRequest("prompt must be a text, a list of one text, or a list of token ids")
	}
	if text == "" {
		return nil, badRequest("prompt must be given and not be empty")
	}
	return []byte(text), nil
}

// readJSON reads a small request of the server's own routes.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("reading the request: %w", err)
	}
	return nil
}

// readBody reads the whole body before any check, so that a refusal reaches a
// caller who has finished sending.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, fmt.Errorf("reading the body: %w", err)
	}
	if err != nil {
		return nil, badRequest("reading the body: %v", err)
	}
	return body, nil
}
