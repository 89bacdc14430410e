package modelmetrics

import "time"

// Reading is what one endpoint reported of itself at one time. The zero Reading stands for an endpoint that was never
// read: its Engine is Detect, and its age has no meaning.
//
// Where several engines are behind one endpoint (data parallelism: vLLM's label engine, SGLang's dp_rank), the reading
// covers all of them, since a caller cannot choose among them: requests and capacity are sums, the KV cache's usage is
// the mean.
//
// PromptTokens to Ended are counters since the server's start. A counter is 0 where the server does not report it. The
// comments say when a request is counted. Counters of different times do not belong to the same requests: a request in
// flight is in one and not yet in the other.
type Reading struct {
	// Engine is the program whose metrics were read.
	Engine Engine
	// At is when the page was requested, so that a slow answer does not count as fresh.
	At time.Time

	// Waiting and Running are the requests in the server's queue and in its batch.
	Waiting, Running int
	// Deferred are the requests that wait for something else than capacity: a slot for their adapter, a transfer of KV
	// cache, a grammar. Other requests run past them, so they are no queue, and Waiting does not count them where the page
	// tells them apart. A request that vLLM deferred once stays deferred until it runs.
	Deferred int
	// WaitingSplit says that the page tells waiting requests apart by reason. Where it does not, Waiting may have deferred
	// ones among them.
	WaitingSplit bool
	// KVUsage is the share of the KV cache that running requests use, 0 to 1.
	KVUsage float64

	// CapacityTokens is how many tokens the KV cache holds; 0 where the server does not report it.
	CapacityTokens int64
	// BlockTokens is the length of one of its blocks in tokens; 0 where the server does not report it.
	BlockTokens int64

	// Model is the name of the model that the adapters are of; empty where the server does not report it. A server that goes by
	// several names reports the first.
	Model string
	// MaxLoRA is how many adapters can be resident at once; 0 where there are none or the server does not report it.
	MaxLoRA int
	// RunningAdapters are the adapters of running requests, WaitingAdapters those of waiting requests alone: no name is in
	// both, or twice in one. Readings share these slices; they must not be changed. Recent versions of vLLM list a name in
	// both from the first token of its first request to the end of its last one, and list no adapter whose requests all
	// wait for their first token.
	RunningAdapters, WaitingAdapters []string

	// PromptTokens counts prompt tokens, cached ones too; CacheQueries those looked up in the prefix cache; CacheHits those
	// found there. vLLM counts as it computes, SGLang and trtllm-serve when a request ends.
	PromptTokens, CacheQueries, CacheHits int64

	// FirstTokens counts the calls that got their first token, and FirstTokenSeconds is the sum of the times from their
	// arrival to it.
	FirstTokens       int64
	FirstTokenSeconds float64

	// ComputedTokens are the prompt tokens that were computed, and TransferredTokens those whose KV cache came from
	// elsewhere. vLLM counts a request's tokens at its first token, SGLang with each batch of prefill. SGLang counts no
	// transfers, and with --enable-metrics-for-all-schedulers it counts each token once for each rank.
	ComputedTokens, TransferredTokens int64
	// GeneratedTokens are the generated tokens. vLLM counts with each step, SGLang and trtllm-serve when a request ends.
	GeneratedTokens int64
	// Ended are the requests that ended. All engines count when a request ends. vLLM leaves out requests whose callers left.
	Ended int64

	// Restarts is how often the server was seen to restart since the endpoint is scraped. Where it differs from that of an
	// earlier reading, the server's cache was emptied in between.
	Restarts int
}

// Age is how long before now the reading was taken, at least 0. If now is from time.Now, both times have Go's monotonic
// clock, so that steps of the wall clock change no age.
func (r Reading) Age(now time.Time) time.Duration {
	return max(0, now.Sub(r.At))
}
