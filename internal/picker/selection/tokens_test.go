package selection

import (
	"math"
	"testing"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// The servers of a pool count two tokens for each of the picker's: their caches hold half as much of its text.
func TestTokenRatio(t *testing.T) {
	for name, test := range map[string]struct {
		own, counted, want float64
	}{
		"nothing observed":   {0, 0, 1},
		"as assumed":         {1e6, 1e6, 1},
		"two for each":       {1e6, 2e6, 2},
		"half of one":        {1e6, 5e5, 0.5},
		"a few prompts":      {2e4, 4e4, 1.5},
		"a page that lies":   {1e6, 1e15, 8},
		"counts backwards":   {1e6, -1e9, 0.125},
		"never counts any":   {1e9, 0, 0.125},
		"counts before ours": {0, 1e6, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var r tokenRatio
			r.observe(1, test.own, test.counted)
			if got := r.value(); math.Abs(got-test.want) > 0.02*test.want+0.005 {
				t.Errorf("the ratio is %g, want %g", got, test.want)
			}
		})
	}
}

// A server may count a prompt before its first token, or when the call ends.
func TestTokensAreCountedAtAnyTime(t *testing.T) {
	for name, ahead := range map[string]int64{"before": 1, "with": 0, "after": -1} {
		t.Run(name, func(t *testing.T) {
			s := followed()
			now := 3.0
			for i := range int64(200) {
				c := add(s, second(now), 5000)
				now += 2
				r := counting(second(now), 0, 2+i, 3+float64(i))
				r.Prompts = 10_000 * (2 + i + ahead)
				s.Observe(0, second(now), r)
				s.Release(c, Answered, second(now))
				now++
			}
			if got := s.TokenRatio(0); got < 1.8 || got > 2.1 {
				t.Errorf("the ratio is %g, want about 2", got)
			}
		})
	}
}

// Prompts of other callers tell nothing of how long the picker's own are.
func TestTokensOfOthersDoNotCount(t *testing.T) {
	s := stateWith(1, picksettings.Defaults())
	for i := range int64(50) {
		at := float64(1 + i)
		r := counted(at, 2, 0, 10+i, 8+i)
		r.Prompts = 100_000 * (i + 1)
		s.Observe(0, second(at), r)
	}
	if got := s.TokenRatio(0); got != 1 {
		t.Errorf("the ratio is %g by prompts of others, want 1", got)
	}
}
