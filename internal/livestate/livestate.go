// Package livestate holds what the picker tells of its pools as they are now, the JSON of GET /debug/pools, and of a call,
// that of POST /debug/explain. The picker's own page and kubectl inference read them. Values only: nothing that computes
// them may enter, no sibling is imported, and no text of a client's request but the model's name has a place in them.
package livestate

import "time"

// State is all pools, or the one that was asked for, in the order of their names.
type State struct {
	// Time is when the state was taken, by the picker's clock.
	Time  time.Time `json:"time"`
	Pools []Pool    `json:"pools"`
}

// Pool is one InferencePool.
type Pool struct {
	Name string `json:"name"` // namespace/name
	// Endpoints are in the order of the pool, those that are leaving at the end.
	Endpoints []Endpoint `json:"endpoints"`
	// Picks are some of the latest, the newest first: a sample where there are many.
	Picks []Pick `json:"recentPicks"`
}

// Endpoint is one port of one model server. Whatever is nil is not known.
type Endpoint struct {
	Name    string `json:"name,omitempty"` // the pod's
	Address string `json:"address"`        // ip:port
	// Ready says that the endpoint can be picked. One that is not has left the pool and still has calls.
	Ready bool `json:"ready"`

	// Reading is what the server told of itself when it was last read; nil where it never was.
	Reading *Reading `json:"reading"`

	// ReservedRequests are the calls of this picker in flight, ReservedTokens their estimated prompt tokens that wait to
	// be prefilled.
	ReservedRequests int     `json:"reservedRequests"`
	ReservedTokens   float64 `json:"reservedTokens"`

	// CachedShare is the share of the prompt tokens of late that the server found in its prefix cache, 0 to 1.
	CachedShare *float64 `json:"cachedShare"`
	// FirstToken is the expected time to the first token, in seconds, of a call that comes now and brings as many uncached
	// tokens as calls of late did on average.
	FirstToken float64 `json:"expectedFirstTokenSeconds"`
	// ObservedFirstToken is the mean time to first token of late, as the server measures it, in seconds.
	ObservedFirstToken *float64 `json:"observedFirstTokenSeconds"`
	// PrefillRate is the speed of prefill that the endpoint is taken to have, in tokens a second.
	PrefillRate float64 `json:"prefillTokensPerSecond"`

	Health Health `json:"health"`
}

// Reading is what a server tells of itself.
type Reading struct {
	Age     float64 `json:"ageSeconds"`
	Running int     `json:"running"` // calls in the batch
	Waiting int     `json:"waiting"` // calls in the queue
	KVUse   float64 `json:"kvUse"`   // share of the KV cache that running calls hold, 0 to 1
	// Adapters are nil where the server tells of none.
	Adapters *Adapters `json:"adapters"`
}

// Adapters are an endpoint's LoRA adapters by their names, sorted.
type Adapters struct {
	Slots   int      `json:"slots"`   // how many can be resident
	Running []string `json:"running"` // those of running calls
	Waiting []string `json:"waiting"` // those of calls that only wait
	Known   []string `json:"known"`   // those that the picker takes to be resident
}

// Health is what an endpoint's failures say.
type Health struct {
	// Failures are those in a row, by this picker's calls.
	Failures int `json:"failures"`
	// AvoidedFor is for how many seconds more the endpoint is picked only where no other is left; 0 where it is not
	// avoided.
	AvoidedFor float64 `json:"avoidedForSeconds"`
}

// Pick is one choice and its reasons.
type Pick struct {
	Time     time.Time `json:"time"`
	Endpoint string    `json:"endpoint"` // ip:port of the first choice
	Model    string    `json:"model,omitempty"`
	// Reason is why in a few words.
	Reason string `json:"reason"`

	PromptTokens int     `json:"promptTokens"`
	CachedTokens int     `json:"cachedTokens"`
	Candidates   int     `json:"candidates"`
	Cost         float64 `json:"costSeconds"`
	// Second is what the next best would have cost, in seconds; nil where there was no other.
	Second *float64 `json:"secondCostSeconds"`
}
