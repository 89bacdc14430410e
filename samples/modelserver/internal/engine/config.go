// Package engine is the server's model: it queues requests, runs them in steps as
// vLLM's scheduler does, and produces their text at the speed of a GPU. It holds
// the timing, the batch, the use of the prefix cache and the LoRA slots. HTTP,
// JSON and metric names stay outside.
//
// # Tokens
//
// A token is 4 bytes of text; the last one of a prompt may be shorter. An
// answer continues the bytes of its prompt, so a later prompt that repeats
// both finds the blocks of both.
//
// # Time
//
// One step computes at most MaxBatchedTokens tokens: one for each sequence
// that is decoding, then prompt tokens in the order of arrival. It takes
//
//	prompt tokens / PrefillTokensPerSecond
//	  + (1 + 0.01 × (decoding − 1)) / DecodeTokensPerSecond   if any sequence decodes
//
// so prefill is serial, a long prompt delays the tokens of the others as
// chunked prefill does, and a batch of 101 decodes half as fast per sequence
// as a batch of one. Everything is divided by TimeScale.
package engine

import "time"

// BytesPerToken is the length of a token.
const BytesPerToken = 4

// batchSlowdown is what each further decoding sequence adds to the time of a
// decode step. Most of that time is reading the weights, which the batch shares;
// the rest is reading each sequence's own KV cache.
const batchSlowdown = 0.01

// Config configures the engine. Each number is positive, except MaxLoRAs and
// LoRALoadTime, which may be 0.
type Config struct {
	// Model seeds the hashes of prompts without an adapter.
	Model string
	// BlockSize is the number of tokens in a KV block.
	BlockSize int
	// NumBlocks is the number of KV blocks.
	NumBlocks int
	// MaxModelLen bounds the tokens of prompt and answer together.
	MaxModelLen int
	// MaxNumSeqs bounds the sequences that run at once.
	MaxNumSeqs int
	// MaxBatchedTokens bounds the tokens of one step; at least MaxNumSeqs.
	MaxBatchedTokens int
	// PrefillTokensPerSecond is the prefill speed of all sequences together.
	PrefillTokensPerSecond float64
	// DecodeTokensPerSecond is the speed of a sequence that decodes alone.
	DecodeTokensPerSecond float64
	// AnswerTokens is the mean length of an answer that ends by itself.
	AnswerTokens int
	// MaxLoRAs is the number of adapters that can be resident; 0 means none.
	MaxLoRAs int
	// LoRALoadTime is how long an adapter takes to become resident.
	LoRALoadTime time.Duration
	// TimeScale makes everything this many times faster.
	TimeScale float64
}

// ContextLength returns the largest number of tokens of a request: MaxModelLen,
// or what the KV blocks hold if that is less.
func (c Config) ContextLength() int {
	return min(c.MaxModelLen, c.NumBlocks*c.BlockSize)
}

// wall converts a duration of the model into one of the wall clock. All durations
// of the engine pass through it.
func (c Config) wall(d time.Duration) time.Duration {
	return time.Duration(float64(d) / c.TimeScale)
}

// stepTime returns the time of a step with a number of prompt tokens and one
// token for each decoding sequence.
func (c Config) stepTime(promptTokens, decoding int) time.Duration {
	seconds := float64(promptTokens) / c.PrefillTokensPerSecond
	if decoding > 0 {
		seconds += (1 + batchSlowdown*float64(decoding-1)) / c.DecodeTokensPerSecond
	}
	return c.wall(time.Duration(seconds * float64(time.Second)))
}
