package selection

import "math"

// A prompt's length is counted in tokens of four bytes, as the picker has no tokenizer. Servers count in tokens of their own:
// English text has more bytes for each, most other scripts have fewer, and a chat's template adds some. The prompt's length
// and the speed of prefill are both in the picker's tokens, so the difference cancels out in times. It does not in what a cache
// holds.
//
// Each endpoint has a ratio of its own, so that a page that lies harms no other endpoint.
type tokenRatio struct {
	own, counted float64 // tokens of calls' prompts, by the picker and by the server's counters; sums that decay
	at           float64 // when the sums were last decayed
}

const (
	// ratioMemory is the time after which what was observed of a ratio weighs 1/e, in seconds.
	ratioMemory = 300
	// assumedTokens is the weight of the assumed ratio of one, in tokens.
	assumedTokens = 20_000
	// mostRatio bounds the ratio from both sides: from half a byte for each token, where prompts have images, to 32 bytes.
	mostRatio = 8
)

// observe notes the prompts of calls that got their first token, in the picker's tokens, and what a server counted. It may count
// them at another time.
func (r *tokenRatio) observe(now, own, counted float64) {
	keep := math.Exp(-max(0, now-r.at) / ratioMemory)
	r.own = r.own*keep + own
	r.counted = min(r.counted*keep+max(0, counted), r.own*mostRatio)
	r.at = max(now, r.at)
}

func (r *tokenRatio) value() float64 {
	return max((r.counted+assumedTokens)/(r.own+assumedTokens), 1.0/mostRatio)
}

// TokenRatio returns how many tokens endpoint n's server counts for a token of the picker's.
func (s *State) TokenRatio(n int32) float64 { return s.loads[n].ratio.value() }
