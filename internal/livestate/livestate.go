// Package livestate holds the JSON types of the picker's live state: of the pools (GET /debug/pools) and of one call
// (POST /debug/explain). It must not know how the values are computed, imports no other package of the project, and has
// no text of a client's request but the model's name. The picker's page and kubectl inference read it.
package livestate

import "time"

// State is the state of all pools, or of the one that was asked for, in the order of their names.
type State struct {
	// Time is when the state was taken, by the picker's clock.
	Time time.Time `json:"time"`
	// Picker is the picker whose state it is: its pod's name, outside Kubernetes its host's.
	Picker string `json:"picker"`
	// Others are the other pickers of the same Service, in the order of their names.
	Others []Other `json:"otherPickers"`
	Pools  []Pool  `json:"pools"`
}

// Other is another picker, as the one that tells the state knows it.
type Other struct {
	// Picker is its name, or its address as far as the name is not known.
	Picker string `json:"picker"`
	// Silent is how long ago it last told its decisions, or that it made none, in seconds; nil where its decisions are not
	// followed. At most so much of what it decided is not known. It is a second at most where all is well.
	Silent *float64 `json:"silentSeconds"`
}

// Pool is one InferencePool.
type Pool struct {
	Name string `json:"name"` // namespace/name
	// Endpoints are in the order of the pool; those that are leaving come last.
	Endpoints []Endpoint `json:"endpoints"`
	// PickedBy are the pickers that picked for the pool in the last ten seconds, in the order of their names.
	PickedBy []PickedBy `json:"pickedBy"`
	// Split says that each picker picks for a part of the callers, at the same time as others.
	Split bool `json:"split,omitempty"`
	// Picks are some of the latest picks, the newest first.
	Picks []Pick `json:"recentPicks"`
	// Line is what waits at the picker until a server would begin with it soon.
	Line Line `json:"line"`
	// Needed is how many servers the pool's calls need, those that wait too; nil where another picker picks for the pool.
	Needed *float64 `json:"serversNeeded"`
}

// Line is what waits at the picker. No server knows of these calls yet.
type Line struct {
	Calls  int     `json:"calls"`
	Tokens float64 `json:"tokens"` // to prefill
	// Oldest is how long the first call has waited, in seconds.
	Oldest float64 `json:"oldestSeconds"`
	// Callers are those of the calls, the ones with the most calls first, at most ten.
	Callers []LineCaller `json:"callers"`
}

// LineCaller is a caller with calls that wait.
type LineCaller struct {
	// Caller is its SPIFFE ID; "" where it has proven none.
	Caller   string  `json:"caller"`
	Priority int     `json:"priority"`
	Weight   float64 `json:"weight"`
	Calls    int     `json:"calls"`
	Oldest   float64 `json:"oldestSeconds"`
}

// PickedBy is a picker that picks for a pool, or did so a moment ago. It has picked from Since to Until seconds ago, with no
// pause of two seconds.
type PickedBy struct {
	Picker string  `json:"picker"`
	Since  float64 `json:"sinceSecondsAgo"`
	Until  float64 `json:"untilSecondsAgo"`
}

// handover is for how long, in seconds, two pickers may both pick for a pool as it goes over from one to the other.
const handover = 3

// AtOnce returns the names of pickers that pick for a pool at the same time, in their order; none where one picks.
func AtOnce(all []PickedBy) (names []string) {
	for i, a := range all {
		for k, b := range all {
			if i != k && min(a.Since, b.Since)-max(a.Until, b.Until) > handover {
				names = append(names, a.Picker)
				break
			}
		}
	}
	return names
}

// Endpoint is one port of one model server. Values that are not known are nil.
type Endpoint struct {
	Name    string `json:"name,omitempty"` // the pod's
	Address string `json:"address"`        // ip:port
	// Ready says that the endpoint can be picked. An endpoint that is not ready has left the pool and still has calls.
	Ready bool `json:"ready"`

	// Reading is what the server reported when it was last read; nil where it was never read.
	Reading *Reading `json:"reading"`

	// ReservedRequests are the calls in flight of this picker and of those that it follows, and ReservedTokens their estimated
	// uncached prompt tokens that wait to be prefilled.
	ReservedRequests int     `json:"reservedRequests"`
	ReservedTokens   float64 `json:"reservedTokens"`

	// CachedShare is the share of recent prompt tokens that the server found in its prefix cache, 0 to 1.
	CachedShare *float64 `json:"cachedShare"`
	// FirstToken is the expected time to first token, in seconds, of a call that arrives now and brings the recent average
	// of uncached tokens.
	FirstToken float64 `json:"expectedFirstTokenSeconds"`
	// ObservedFirstToken is the recent mean time to first token, as the server measures it, in seconds.
	ObservedFirstToken *float64 `json:"observedFirstTokenSeconds"`
	// ObservedToExpected is how many times as long as expected the first tokens of this picker's recent calls took: the
	// geometric mean of the observed times as multiples of those that were expected at the picks. 1.5 says that first
	// tokens came late, 0.5 that they came early. It is not the quotient of the two times above: FirstToken is of a call that
	// arrives now, and ObservedFirstToken is of all callers. It is nil where no first token was followed lately: where no
	// call came, where the server does not count first tokens, and where others call the server too.
	ObservedToExpected *float64 `json:"observedToExpectedFirstToken"`
	// PrefillRate is the speed of prefill that the endpoint is taken to have, in tokens a second.
	PrefillRate float64 `json:"prefillTokensPerSecond"`
	// BytesPerToken is how many bytes of a prompt's text a token of the server's has, as far as the picker has learned: 4 at
	// first.
	BytesPerToken float64 `json:"bytesPerToken"`

	// ToldTokens is how many tokens the server has told, by its events, that its cache has; nil where the pool does not ask for
	// events, and 0 where the server is not heard.
	ToldTokens *int `json:"toldCachedTokens"`

	Health Health `json:"health"`
}

// Reading is what a server reports of itself.
type Reading struct {
	Age     float64 `json:"ageSeconds"`
	Running int     `json:"running"` // calls in the batch
	Waiting int     `json:"waiting"` // calls in the queue
	KVUse   float64 `json:"kvUse"`   // share of the KV cache that running calls use, 0 to 1
	// Adapters are nil where the server reports none.
	Adapters *Adapters `json:"adapters"`
}

// Adapters are an endpoint's LoRA adapters by their names, sorted.
type Adapters struct {
	Slots   int      `json:"slots"`   // how many can be resident
	Running []string `json:"running"` // those of running calls
	Waiting []string `json:"waiting"` // those of waiting calls alone
	Known   []string `json:"known"`   // those that the picker takes to be resident
}

// Health is an endpoint's recent failures and their consequence.
type Health struct {
	// Failures counts failures in a row, of this picker's calls.
	Failures int `json:"failures"`
	// AvoidedFor is for how many more seconds the endpoint is picked only where no other is left; 0 where it is not
	// avoided.
	AvoidedFor float64 `json:"avoidedForSeconds"`
}

// Pick is one choice and its reasons.
type Pick struct {
	Time     time.Time `json:"time"`
	Endpoint string    `json:"endpoint"` // ip:port of the first choice
	Model    string    `json:"model,omitempty"`
	// Reason is the reason in a few words.
	Reason string `json:"reason"`

	PromptTokens int     `json:"promptTokens"`
	CachedTokens int     `json:"cachedTokens"`
	Candidates   int     `json:"candidates"`
	Cost         float64 `json:"costSeconds"`
	// Second is the cost of the next best endpoint, in seconds; nil where there was no other.
	Second *float64 `json:"secondCostSeconds"`
}
