package engine

import (
	"fmt"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/kvcache"
)

// Request is one prompt to continue.
type Request struct {
	// Adapter is the LoRA adapter, or empty for the base model.
	Adapter string
	// CacheSalt separates prefix caches: different salts share no block.
	CacheSalt string
	// Prompt is the model's text; not empty.
	Prompt []byte
	// MaxTokens bounds the answer; 0 means up to the context's length.
	MaxTokens int
	// IgnoreEOS makes the answer exactly MaxTokens long.
	IgnoreEOS bool
}

// FinishReason says why an answer ended, in vLLM's words.
type FinishReason string

// The reasons.
const (
	FinishStop   FinishReason = "stop"   // the answer ended by itself
	FinishLength FinishReason = "length" // MaxTokens or the context's length was reached
	FinishAbort  FinishReason = "abort"  // the caller left, or the engine stopped
)

// Output is a request's progress since the previous output.
type Output struct {
	// Text is the new text, in whole tokens.
	Text string
	// PromptTokens, CachedTokens and AnswerTokens count all tokens so far.
	PromptTokens, CachedTokens, AnswerTokens int
	// Finish is empty until the last output.
	Finish FinishReason
	// Timing is that of the last output, once there was a token.
	Timing Timing
}

// Timing is where a request's time went: in the queue, from its first step to its
// first token, and from there to its last token.
type Timing struct{ Queue, Prefill, Decode time.Duration }

// ContextLengthError refuses a request that exceeds the context's length.
type ContextLengthError struct {
	// ContextLength, Prompt and MaxTokens are in tokens. MaxTokens is 0 if the
	// request has none.
	ContextLength, Prompt, MaxTokens int
}

func (e *ContextLengthError) Error() string {
	return fmt.Sprintf("This model's maximum context length is %d tokens. However, the prompt has %d tokens and %d are requested for the answer.",
		e.ContextLength, e.Prompt, max(1, e.MaxTokens))
}

// sequence is a request in the engine. The engine's lock guards all fields that
// change.
type sequence struct {
	adapter      string
	promptBytes  int
	promptTokens int
	answer       []byte
	answerTokens int
	ends         bool // by itself
	hashes       []uint64
	blockSize    int

	skipped   bool           // for want of its adapter
	lease     *kvcache.Lease // nil while the sequence waits
	cached    int            // prompt tokens found in the cache
	prefilled int            // prompt tokens computed or found
	generated int            // answer tokens
	finish    FinishReason
	err       error

	arrived, began, first, last time.Time // first and last are the times of tokens

	// changed holds one signal when there is news for the caller.
	changed chan struct{}
}

// newSequence prepares what needs no lock: the answer and the hashes of all
// blocks.
func newSequence(cfg Config, req Request) (*sequence, error) {
	promptTokens := ceilDiv(len(req.Prompt), BytesPerToken)
	limit := req.MaxTokens
	if limit == 0 {
		limit = cfg.ContextLength() - promptTokens
	}
	if limit < 1 || limit > cfg.ContextLength()-promptTokens {
		return nil, &ContextLengthError{ContextLength: cfg.ContextLength(), Prompt: promptTokens, MaxTokens: req.MaxTokens}
	}
	name := cfg.Model
	if req.Adapter != "" {
		name = req.Adapter
	}
	seed := seedOf(name, req.CacheSalt)
	text, ends := answer(seed, req.Prompt, limit, cfg.AnswerTokens, req.IgnoreEOS)
	whole := slices.Concat(req.Prompt, text)
	return &sequence{
		adapter:      req.Adapter,
		promptBytes:  len(req.Prompt),
		promptTokens: promptTokens,
		answer:       text,
		answerTokens: len(text) / BytesPerToken,
		ends:         ends,
		hashes:       blockHashes(seed, whole, cfg.BlockSize*BytesPerToken),
		blockSize:    cfg.BlockSize,
		arrived:      time.Now(),
		changed:      make(chan struct{}, 1),
	}, nil
}

// reusable returns the blocks that the cache may have. The prompt's last token is
// always computed, as the first answer token comes from it.
func (s *sequence) reusable() []uint64 {
	return s.hashes[:min((s.promptTokens-1)/s.blockSize, len(s.hashes))]
}

// blocks returns the number of blocks of the whole sequence. The last answer
// token is never an input, so it needs no place.
func (s *sequence) blocks() int {
	return ceilDiv(s.promptTokens+s.answerTokens-1, s.blockSize)
}

func (s *sequence) decoding() bool { return s.generated > 0 }

// emit counts one more answer token.
func (s *sequence) emit(now time.Time) {
	if !s.decoding() {
		s.first = now
	}
	s.last = now
	s.generated++
}

// timing is zero until the sequence has finished and if it never had a token.
func (s *sequence) timing() Timing {
	if s.finish == "" || !s.decoding() {
		return Timing{}
	}
	return Timing{Queue: s.began.Sub(s.arrived), Prefill: s.first.Sub(s.began), Decode: s.last.Sub(s.first)}
}

// computePrompt takes the blocks for n more prompt tokens and fills them.
func (s *sequence) computePrompt(n int) {
	s.prefilled += n
	s.lease.Extend(ceilDiv(s.prefilled, s.blockSize))
	s.publish(min(s.prefilled*BytesPerToken, s.promptBytes))
}

// computeAnswer takes the block for the last generated token and fills it.
func (s *sequence) computeAnswer() {
	s.lease.Extend(ceilDiv(s.promptTokens+s.generated, s.blockSize))
	s.publish(s.promptBytes + s.generated*BytesPerToken)
}

// publish makes the full blocks in the first bytes findable.
func (s *sequence) publish(bytes int) {
	s.lease.Publish(s.hashes[:bytes/(s.blockSize*BytesPerToken)])
}

// output returns the progress since the given number of answer tokens.
func (s *sequence) output(seen int) Output {
	return Output{
		Text:         string(s.answer[seen*BytesPerToken : s.generated*BytesPerToken]),
		PromptTokens: s.promptTokens,
		CachedTokens: s.cached,
		AnswerTokens: s.generated,
		Finish:       s.finish,
		Timing:       s.timing(),
	}
}

// signal tells the caller that there is news, and never blocks.
func (s *sequence) signal() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}
