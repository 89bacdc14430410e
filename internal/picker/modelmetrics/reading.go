package modelmetrics

import "time"

// Reading is what one endpoint told of itself at one moment. The zero Reading stands for an endpoint that was never
// read: its Engine is Detect, and its age is not to be asked for.
//
// Where several engines stand behind one endpoint (data parallelism: vLLM's label engine, SGLang's dp_rank), the
// reading is of all of them together, since a caller cannot choose among them: requests and capacity are sums, the KV
// cache's usage is the mean of theirs.
type Reading struct {
	// Engine is the program whose metrics were read.
	Engine Engine
	// At is when the page was asked for, so that an answer that was long in coming is not taken for a fresh one.
	At time.Time

	// Waiting and Running are the requests in the server's queue and in its batch.
	Waiting, Running int
	// KVUsage is the share of the KV cache that running requests hold, 0 to 1.
	KVUsage float64

	// CapacityTokens is how many tokens the KV cache holds; 0 where the server does not tell.
	CapacityTokens int64

	// MaxLoRA is the number of adapters that can be resident at once; 0 where there are none or the server does not tell.
	MaxLoRA int
	// RunningAdapters are the adapters of running requests, WaitingAdapters those of requests that only wait: no name is
	// in both, or twice in one. Readings share these slices; they must not be changed.
	RunningAdapters, WaitingAdapters []string

	// PromptTokens counts the tokens of prompts since the server's start, cached ones too; CacheQueries the prompt tokens looked up in the prefix cache and CacheHits those found there. They are 0
	// where the server does not tell. vLLM counts as it computes; SGLang and trtllm-serve when a request has ended.
	PromptTokens, CacheQueries, CacheHits int64

	// FirstTokens counts the calls that have their first token, and FirstTokenSeconds is the sum of the times that these took
	// from their arrival; 0 where the server does not tell.
	FirstTokens       int64
	FirstTokenSeconds float64

	// Restarts is how often the server behind the endpoint was seen to have started anew since the endpoint is read.
	// Where it differs from that of a reading before, the server's cache has been emptied in between.
	Restarts int
}

// Age is how long before now the reading was taken, at least 0. Both times carry Go's monotonic clock if now is from
// time.Now, so that steps of the wall clock change no age.
func (r Reading) Age(now time.Time) time.Duration {
	return max(0, now.Sub(r.At))
}
