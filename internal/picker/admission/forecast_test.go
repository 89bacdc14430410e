package admission

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// The forecast of a call is when it goes: in a line with nothing to come, and where calls go on coming, shorter and longer ones, of the
// same caller and of others, of the same priority and of a higher one.
func TestForecast(t *testing.T) {
	for name, tt := range map[string]struct {
		comes float64 // work that comes in a second, as a part of what servers do
		from  []string
		high  float64 // the part of it that is of a higher priority
	}{
		"nothing comes":            {from: []string{"a"}},
		"of the same caller":       {comes: 0.7, from: []string{"a"}},
		"of others":                {comes: 0.7, from: []string{"a", "b", "c"}},
		"of a higher priority too": {comes: 0.7, from: []string{"a", "b"}, high: 0.5},
		"more than servers can do": {comes: 1.5, from: []string{"a"}},
	} {
		t.Run(name, func(t *testing.T) {
			var off, n float64
			for seed := range uint64(20) {
				for _, work := range []float64{300, 2000, 8000} {
					expected, got := simulate(seed, work, tt.comes, tt.from, tt.high)
					off += math.Abs(math.Log((expected + 1) / (got + 1)))
					n++
				}
			}
			if mean := math.Exp(off / n); mean > 1.5 {
				t.Errorf("forecasts are off by %.2f times in the mean", mean)
			}
		})
	}
}

// simulate returns the forecast and the time, in seconds, of one call. Servers of 8 times the rate serve one call after the other.
func simulate(seed uint64, work, comes float64, from []string, high float64) (expected, got float64) {
	const all, longest = 8 * rate, 400.0
	rnd := rand.New(rand.NewPCG(seed, 1))
	var l Line
	another := func() *Call {
		c := call(from[rnd.IntN(len(from))], math.Exp(rnd.NormFloat64())*1500)
		if rnd.Float64() < high {
			c.Priority = 1
		}
		return c
	}
	probe := call("a", work)
	const brings = 1500 * 1.65 // tokens, a call
	next, busy := 0.0, 0.0
	for now := 0.0; now < 100+longest; now += 0.01 {
		at := time.Duration(now * float64(time.Second))
		if now >= 100 && probe.At == 0 {
			l.Tick(at, mean)
			for range 200 {
				l.add(at, another())
			}
			expected = min(l.Forecast(probe, all).Seconds(), longest)
			l.add(at, probe)
		}
		for comes > 0 && next <= now {
			next += rnd.ExpFloat64() * brings / (comes * all)
			l.add(at, another())
		}
		for busy <= now {
			c := l.serve()
			if c == nil {
				busy = now + 0.01
				break
			}
			if c == probe {
				return expected, now - 100
			}
			busy += c.Work / all
		}
	}
	return expected, longest
}

func TestForecastsWithoutALine(t *testing.T) {
	var l Line
	for _, work := range []float64{0, 1, 1e6, 1e12} {
		if got := l.Forecast(call("a", work), 8*rate); got != 0 {
			t.Errorf("a call of %g tokens waits %s in an empty line", work, got)
		}
	}
}
