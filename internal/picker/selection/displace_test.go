package selection

import (
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// Two endpoints are idle and have the same part of a prompt cached. One has taken in more than its cache holds, the
// other nothing: the call goes to the one where it evicts nothing.
func TestNewPromptsGoWhereTheyPushOutLeast(t *testing.T) {
	const cache = 10000
	for name, tt := range map[string]struct {
		took, size int
		ago        time.Duration
		want       int32
	}{
		"the cache of one was exchanged lately":   {took: 20000, size: cache, ago: 20 * s, want: 1},
		"what it pushes out is old":               {took: 20000, size: cache, ago: time.Hour, want: 0},
		"the size of the cache is not known":      {took: 20000, size: 0, ago: 20 * s, want: 0},
		"it began anew, with an empty cache":      {took: 0, size: cache, ago: 20 * s, want: 0},
		"it took in a negligible part of a large": {took: 20000, size: 1 << 30, ago: 20 * s, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			state := stateWith(2, picksettings.Defaults())
			read := func(n int32, now time.Duration) {
				state.Observe(n, now, &Reading{At: now, KVTokens: tt.size})
			}
			read(0, s)
			read(1, s)
			state.Release(add(state, s, 20000), Answered, 2*s)
			if tt.took == 0 {
				state.Restarted(0)
			}
			now := 2*s + tt.ago
			read(0, now)
			read(1, now)
			state.Age(now, numbers(2))
			v := &view{State: state, Candidates: numbers(2), Cached: []int32{4, 4}}
			v.hot[0].lastPick, v.hot[1].lastPick = 0, 1 // of equals the first is taken
			if got := pickCall(v, callFor("a", 2000), now, 1)[0].Endpoint; got != tt.want {
				t.Errorf("a new prompt goes to %d, want %d", got, tt.want)
			}
		})
	}
}

// Two endpoints whose speeds seem a tenth apart count as equal, so that the difference empties no cache.
func TestSmallDifferencesOfSpeedAreNone(t *testing.T) {
	const mean = 8000.0
	for name, tt := range map[string]struct {
		speed    speed
		low, top float64
	}{
		"nothing was seen":               {speed{}, mean, mean},
		"a tenth slower":                 {speed{tokens: 216000, seconds: 30}, mean, mean},
		"a tenth faster":                 {speed{tokens: 264000, seconds: 30}, mean, mean},
		"half as fast, in half a second": {speed{tokens: 2000, seconds: 0.5}, 0.9 * mean, mean},
		"a third as fast, for long":      {speed{tokens: 80000, seconds: 30}, 0.33 * mean, 0.37 * mean},
		"three times as fast, for long":  {speed{tokens: 720000, seconds: 30}, 2.7 * mean, 3 * mean},
	} {
		if got := tt.speed.rate(mean); got < tt.low*(1-1e-9) || got > tt.top*(1+1e-9) {
			t.Errorf("%s: taken for %.0f tokens a second, want %.0f to %.0f", name, got, tt.low, tt.top)
		}
	}
}
