package livestate

// Explanation is why a call goes to an endpoint: the JSON of POST /debug/explain.
type Explanation struct {
	Pool         string      `json:"pool"`
	Model        string      `json:"model,omitempty"`
	PromptTokens int         `json:"promptTokens"`
	PromptBlocks int         `json:"promptBlocks"`
	Candidates   []Candidate `json:"candidates"` // best first
	// Wait is how long the request is expected to wait at the picker first, in seconds, if it comes from a caller without priority whose
	// other calls do not wait.
	Wait float64 `json:"expectedWaitSeconds"`
}

// Candidate is one endpoint's place in an explanation. Times are in seconds. The terms under Cost add up to its total.
// Class names the bound that puts the endpoint behind all candidates without one.
type Candidate struct {
	Endpoint       string   `json:"endpoint"`
	Class          string   `json:"class,omitempty"`
	CachedTokens   int      `json:"cachedTokens"`
	UncachedTokens int      `json:"uncachedTokens"`
	QueueTokens    float64  `json:"queueTokens"`
	TokensPerSec   float64  `json:"prefillTokensPerSecond"`
	InFlight       int      `json:"inFlight"`
	Calls          float64  `json:"callsWithThoseOfOthers"`
	ReadingAge     *float64 `json:"readingAgeSeconds"` // null where there is no reading
	FirstToken     float64  `json:"expectedFirstTokenSeconds"`
	// ObservedToExpected tells how true FirstToken may be: the endpoint's field of the same name in Endpoint.
	ObservedToExpected *float64 `json:"observedToExpectedFirstToken"`
	AdapterState       string   `json:"adapter,omitempty"`
	Cost               Cost     `json:"costSeconds"`
}

// Cost is an endpoint's cost and its terms, as in the package comment of selection.
type Cost struct {
	Total   float64 `json:"total"`
	Wait    float64 `json:"wait"`
	Prefill float64 `json:"prefill"`
	Others  float64 `json:"others"`
	Batch   float64 `json:"batch"`
	// Pickers is what other pickers may have sent to an endpoint of theirs, where several pick for the pool.
	Pickers float64 `json:"pickers"`
	Memory  float64 `json:"memory"`
	Adapter float64 `json:"adapter"`
	Session float64 `json:"session"`
}
