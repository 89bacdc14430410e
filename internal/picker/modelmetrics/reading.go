package modelmetrics

import "time"

// Reading is what one endpoint reported of itself at one time. The zero Reading stands for an endpoint that was never
// read: its Engine is Detect, and its age has no meaning.
//
// Where several engines are behind one endpoint (data parallelism: vLLM's label engine, SGLang's dp_rank), the reading
// covers all of them, since a caller cannot choose among them: requests and capacity are sums, the KV cache's usage is
// the mean.
type Reading struct {
	// Engine is the program whose metrics were read.
	Engine Engine
	// At is when the page was requested, so that a slow answer does not count as fresh.
	At time.Time

	// Waiting and Running are the requests in the server's queue and in its batch.
	Waiting, Running int
	// KVUsage is the share of the KV cache that running requests use, 0 to 1.
	KVUsage float64

	// CapacityTokens is how many tokens the KV cache holds; 0 where the server does not report it.
	CapacityTokens int64

	// MaxLoRA is how many adapters can be resident at once; 0 where there are none or the server does not report it.
	MaxLoRA int
	// RunningAdapters are the adapters of running requests, WaitingAdapters those of waiting requests alone: no name is in
	// both, or twice in one. Readings share these slices; they must not be changed.
	RunningAdapters, WaitingAdapters []string

	// PromptTokens counts prompt tokens since the server's start, cached ones too; CacheQueries those looked up in the
	// prefix cache; CacheHits those found there. They are 0 where the server does not report them. vLLM counts as it
	// computes, SGLang and trtllm-serve when a request ends.
	PromptTokens, CacheQueries, CacheHits int64

	// FirstTokens counts the calls that got their first token, and FirstTokenSeconds is the sum of the times from their
	// arrival to it; 0 where the server does not report them.
	FirstTokens       int64
	FirstTokenSeconds float64

	// Restarts is how often the server was seen to restart since the endpoint is scraped. Where it differs from that of an
	// earlier reading, the server's cache was emptied in between.
	Restarts int
}

// Age is how long before now the reading was taken, at least 0. If now is from time.Now, both times have Go's monotonic
// clock, so that steps of the wall clock change no age.
func (r Reading) Age(now time.Time) time.Duration {
	return max(0, now.Sub(r.At))
}
