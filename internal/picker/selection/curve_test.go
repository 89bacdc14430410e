package selection

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// lab is an endpoint that prefills one call after the other by a true curve, at 8,000 tokens a second, and counts truly.
type lab struct {
	*State
	truth   curve
	now     float64
	counted Counters
	running int
	noise   *rand.Rand // of the times; nil for none
	give    float64    // the largest part of a time by which it varies
}

func newLab(truth curve) *lab {
	l := &lab{State: stateWith(1, picksettings.Defaults()), truth: truth, now: 1, counted: Counters{Prefilled: 1, FirstTokens: 1, FirstTokenSeconds: 1}}
	l.read(1)
	l.read(2)
	l.now = 3
	return l
}

func (l *lab) read(at float64) {
	l.Observe(0, second(at), &Reading{At: second(at), Running: l.running, WaitingSplit: true, Counters: l.counted})
}

// takes is how long the endpoint really takes for a call that comes when it prefills nothing.
func (l *lab) takes(prompt, uncached int) float64 {
	tokens := l.truth.work(float64(prompt), float64(uncached)) + l.truth.perCall + l.truth.perRunning*float64(l.running)
	if l.noise != nil {
		tokens *= 1 + l.give*(2*l.noise.Float64()-1)
	}
	return tokens / 8000
}

// serve has the endpoint serve a call, and returns how long its first token was expected to take and took.
func (l *lab) serve(prompt, uncached int) (c Claim, expected, took float64) {
	c = l.Reserve(0, second(l.now), callFor("", prompt), uncached)
	took = l.takes(prompt, uncached)
	l.running++
	l.counted.Prefilled += int64(uncached)
	l.counted.FirstTokens++
	l.counted.FirstTokenSeconds += took
	l.read(l.now + took + 0.01)
	return c, c.place.due - c.place.at, took
}

func (l *lab) end(c Claim, took float64) {
	l.Release(&c, Ended, second(l.now+took+0.1))
	l.running--
	l.now += took + 0.3
	l.Age(second(l.now), numbers(1))
}

// longest is the longest cached part of a prompt, in tokens.
const longest = 8000

// learn serves calls of many lengths, of which parts are cached, while up to so many others run.
func (l *lab) learn(calls, others int) {
	var running []Claim
	for i := range calls {
		if len(running) < i*5%(others+1) {
			c, _, took := l.serve(100, 100)
			running, l.now = append(running, c), l.now+took+0.3
		}
		uncached := 50 + i*37%4000
		c, _, took := l.serve(uncached+i*5381%longest, uncached)
		l.end(c, took)
		if len(running) > (i+1)*5%(others+1) {
			l.end(running[0], 0)
			running = running[1:]
		}
	}
}

// The pool learns what a prefill costs beside its tokens, and expects first tokens accordingly.
func TestCurveIsLearned(t *testing.T) {
	for name, truth := range map[string]curve{
		"nothing":                   {},
		"a step of 20 ms":           {perCall: 160},
		"a step of 64 ms":           {perCall: 512},
		"attention of an 8B model":  {perCall: 80, context: 1.0 / 30_000},
		"attention of a tiny model": {perCall: 80, context: 1.0 / 1700},
		"calls that decode":         {perCall: 80, perRunning: 100},
		"all of it":                 {perCall: 160, perRunning: 50, context: 1.0 / 10_000},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(truth)
			l.noise, l.give = rand.New(rand.NewPCG(1, 1)), 0.05
			l.learn(300, 6)
			l.noise = nil
			got := l.curve
			if !within(got.perCall, truth.perCall, 0.25, 50) || !within(got.perRunning, truth.perRunning, 0.25, 10) || !within(got.context, truth.context, 0.25, 1e-5) {
				t.Errorf("the curve is %+v, want %+v", got, truth)
			}
			if rate := l.Rate(0); !within(rate, 8000, 0.15, 0) {
				t.Errorf("the speed is taken for %.0f tokens a second, want 8000", rate)
			}
			for _, call := range [][2]int{{500, 500}, {4000, 100}, {8000, 2000}, {8000, 8000}} {
				c, expected, took := l.serve(call[0], call[1])
				if !within(expected, took, 0.12, 0.01) {
					t.Errorf("a call of %v tokens is expected to take %.2f s, and takes %.2f", call, expected, took)
				}
				l.end(c, took)
			}
		})
	}
}

func within(got, want, part, least float64) bool { return math.Abs(got-want) <= part*want+least }

// An endpoint that takes the same time for each token, give or take a fifth, is taken for what it is.
func TestCurveOfAnEvenServer(t *testing.T) {
	for seed := range uint64(20) {
		l := newLab(curve{perCall: 80})
		l.noise, l.give = rand.New(rand.NewPCG(seed, 1)), 0.2
		bent := 0
		for range 30 {
			l.learn(10, 3)
			if l.curve.context > 0 {
				bent++
			}
		}
		if bent > 6 {
			t.Errorf("seed %d: attention was seen %d of 30 times", seed, bent)
		}
	}
}

// Calls that are alike tell nothing of the curve, however their times vary.
func TestCurveOfCallsThatAreAlike(t *testing.T) {
	for seed := range uint64(20) {
		l := newLab(curve{perCall: 200})
		l.noise, l.give = rand.New(rand.NewPCG(seed, 1)), 0.5
		for range 100 {
			c, _, took := l.serve(300+l.noise.IntN(20), 300)
			l.end(c, took)
		}
		if got := l.curve; got != (curve{perCall: usualPerCall}) {
			t.Errorf("seed %d: the curve is %+v, want the usual one", seed, got)
		}
	}
}

// Calls that come in one burst, before any other call lets the pool take what it learned, spoil nothing.
func TestCurveOfABurst(t *testing.T) {
	l := newLab(curve{perCall: 80})
	var burst []Claim
	for range 40 {
		burst = append(burst, l.Reserve(0, second(l.now), callFor("", 300), 300))
	}
	l.running = len(burst)
	for i := range burst {
		took := l.takes(300, 300) * float64(i+1)
		l.counted.Prefilled += 300
		l.counted.FirstTokens++
		l.counted.FirstTokenSeconds += took
		l.read(l.now + took + 0.001)
	}
	l.now += 3
	for i := range burst {
		l.end(burst[i], 0)
	}
	l.learn(100, 0)
	if got := l.curve; got.perCall > 160 || got.context > 0 {
		t.Errorf("after a burst the curve is %+v", got)
	}
	if rate := l.Rate(0); !within(rate, 8000, 0.2, 0) {
		t.Errorf("after a burst the speed is taken for %.0f tokens a second, want 8000", rate)
	}
}

// Prefills that take one step, however long they are, show no attention.
func TestCurveOfShortPrefills(t *testing.T) {
	for seed := range uint64(20) {
		l := newLab(curve{})
		l.noise, l.give = rand.New(rand.NewPCG(seed, 1)), 0.2
		bent := 0
		for range 150 {
			uncached := 16 + l.noise.IntN(100)
			l.truth.perCall = 160 - float64(uncached)
			c, _, took := l.serve(uncached+l.noise.IntN(8000), uncached)
			l.end(c, took)
			if got := l.curve; got.context > 0 || got.perRunning > 0 {
				bent++
			}
		}
		if bent > 30 {
			t.Errorf("seed %d: attention or running calls were seen %d of 150 times", seed, bent)
		}
	}
}

// Other prompts change nothing of a speed, nor does a pause what is known.
func TestCurveOutlastsOtherPrompts(t *testing.T) {
	l := newLab(curve{perCall: 80, context: 1.0 / 3000})
	l.learn(300, 0)
	for range 2 {
		for i := range 60 {
			uncached := 300 + i*37%1500
			c, expected, took := l.serve(uncached+18_000+i*531%4000, uncached)
			if !within(expected, took, 0.2, 0.02) {
				t.Fatalf("call %d is expected to take %.2f s, and takes %.2f", i, expected, took)
			}
			l.end(c, took)
		}
		l.now += 600
		l.Age(second(l.now), numbers(1))
	}
}

// What calls that are answered take of each step counts once.
func TestManyRunningCalls(t *testing.T) {
	l := newLab(curve{perCall: 80, perRunning: 10})
	for range 27 {
		c, _, took := l.serve(100, 100)
		l.now += took + 0.3
		_ = c // it goes on
	}
	for i := range 200 {
		uncached := 200 + i*37%800
		c, expected, took := l.serve(uncached, uncached)
		if i > 100 && !within(expected, took, 0.15, 0.01) {
			t.Fatalf("call %d is expected to take %.3f s, and takes %.3f", i, expected, took)
		}
		l.end(c, took)
	}
}

// A prompt that was evicted takes longer than expected, which says nothing of the curve.
func TestEvictedPromptsDoNotBendTheCurve(t *testing.T) {
	l := newLab(curve{perCall: 80})
	for i := range 200 {
		prompt := 1000 + i*5381%longest
		l.learn(1, 0)
		c := l.Reserve(0, second(l.now), callFor("", prompt), 200)
		took := l.takes(prompt, prompt)
		l.running++
		l.counted.Prefilled += int64(prompt)
		l.counted.FirstTokens++
		l.counted.FirstTokenSeconds += took
		l.read(l.now + took + 0.01)
		l.end(c, took)
	}
	if l.curve.context > 0 {
		t.Errorf("prompts that were evicted are taken for attention: %+v", l.curve)
	}
}

// What a picker tells of an endpoint's speed holds for another that has learned no curve.
func TestToldSpeedOfACurve(t *testing.T) {
	l := newLab(curve{perCall: 80, context: 1.0 / 3000})
	l.learn(300, 0)
	other := stateWith(1, picksettings.Defaults())
	other.Learn(0, l.Learned(0, second(l.now)), 0)
	other.Age(0, numbers(1))
	mean := l.fit.sums[1]/l.fit.weight - usualPerCall
	behind := l.fit.sums[2] / (mean * l.fit.weight)
	uncached := int(mean)
	call := callFor("", int(behind+mean/2))
	there := other.Reserve(0, 0, call, uncached)
	here := l.Reserve(0, second(l.now), call, uncached)
	got, want := there.place.due-there.place.at, here.place.due-here.place.at
	if !within(got, want, 0.3, 0) {
		t.Errorf("the other picker expects a usual call to take %.2f s, want %.2f", got, want)
	}
}

// A long cached prompt is worth more where attention is slow, and what a pick costs is what Explain tells.
func TestPickCountsAttention(t *testing.T) {
	v := viewOf([]endpoint{{cached: 100, requests: 1, queue: 14_000}, {}})
	call := callFor("", 100*BlockTokens)
	best := func() int32 {
		var out [Choices]Choice
		v.Pick(v.of(call), 0, rand.New(rand.NewPCG(1, 1)), &out)
		for _, why := range v.Explain(v.of(call), 0) {
			if i := int(why.Endpoint); out[0].Endpoint == why.Endpoint && !near(out[0].Cost, why.Cost) {
				t.Errorf("endpoint %d costs %v, and Explain tells %v", i, out[0].Cost, why.Cost)
			}
		}
		return out[0].Endpoint
	}
	if got := best(); got != 1 {
		t.Errorf("without attention endpoint %d is picked, want the idle one", got)
	}
	v.curve.context, v.density = 1.0/3000, 1.5
	if got := best(); got != 0 {
		t.Errorf("with attention endpoint %d is picked, want the one that holds the prompt", got)
	}
}

// Of a call that is prefilled, the overhead comes first, and then the tokens with the least before them.
func TestComputedOfACurve(t *testing.T) {
	s := stateWith(1, picksettings.Defaults())
	s.curve = curve{perCall: 800, context: 1.0 / 4000}
	c := s.Reserve(0, 0, callFor("", 4000), 4000) // 800 and 6,000 tokens of work
	for at, want := range map[time.Duration]int{0: 0, second(0.1): 0, second(0.475): 2325, second(0.85): 4000, second(9): 4000} {
		if got := s.Computed(&c, at); got < want-1 || got > want+1 {
			t.Errorf("after %s %d tokens are computed, want %d", at, got, want)
		}
	}
}

// Observations that are alike or impossible give a usual or a bounded overhead.
func TestOverheadIsBounded(t *testing.T) {
	for name, tt := range map[string]struct{ tokens, seconds, least, most float64 }{
		"one length":      {1000, 0.125, usualPerCall - 1, usualPerCall + 1},
		"no tokens":       {0, 1, 0, mostPerCall},
		"no time":         {1000, 1e-300, 0, mostPerCall},
		"an endless time": {1000, math.MaxFloat64, 0, mostPerCall},
		"too many tokens": {math.MaxFloat64, 1, 0, mostPerCall},
	} {
		t.Run(name, func(t *testing.T) {
			var f curveFit
			for range 100 {
				f.observe(1, prefilled{tokens: tt.tokens}, tt.seconds)
			}
			if got, _ := f.curve(); !(got.perCall >= tt.least && got.perCall <= tt.most) {
				t.Errorf("the overhead is %v tokens, want %v to %v", got.perCall, tt.least, tt.most)
			}
		})
	}
}

// Whatever one endpoint counts, the pool's overhead stays near what the others show, and is right again soon.
func TestOverheadOfALiar(t *testing.T) {
	for name, lie := range map[string]float64{"no time at all": 1e-9, "an hour": 3600} {
		t.Run(name, func(t *testing.T) {
			const overhead = 160
			s := stateWith(4, picksettings.Defaults())
			sums, now := [4]float64{1, 1, 1, 1}, 1.0
			for n := range int32(4) {
				s.Observe(n, second(0.5), counting(second(0.5), 0, 1, 1))
				s.Observe(n, second(0.9), counting(second(0.9), 0, 1, 1))
			}
			for i := range 400 {
				n := int32(i % 4)
				tokens := 50 + i*37%4000
				c := s.Reserve(n, second(now), callFor("", tokens), tokens)
				took := (float64(tokens) + overhead) / 8000
				if sums[n] += took; n == 0 {
					sums[n] += lie - took
				}
				s.Observe(n, second(now+took+0.01), counting(second(now+took+0.01), 1, int64(2+i/4), sums[n]))
				s.Release(&c, Ended, second(now+took+0.1))
				now++
				s.Age(second(now), numbers(4))
			}
			if s.curve.perCall > 3*overhead || s.Rate(1) < 6500 || s.Rate(1) > 9500 {
				t.Errorf("a call is taken to cost %.0f tokens more and an honest endpoint to prefill %.0f a second, want about %d and 8000",
					s.curve.perCall, s.Rate(1), overhead)
			}
		})
	}
}

// After calls without prompts and without overhead, the overhead is still a number, and is learned again.
func TestOverheadAfterEmptyCalls(t *testing.T) {
	s := followed()
	s.fit = curveFit{weight: 100, sums: [4]float64{100, 1}, moment: [4][4]float64{{1, 1}, {1, 1}}, at: 2}
	add(s, second(3), 0)
	s.Observe(0, second(3.1), counting(second(3.1), 1, 2, 1.05))
	if c, _ := s.fit.curve(); !(c.perCall >= 0 && c.perCall <= mostPerCall && c.context <= mostContext) {
		t.Errorf("the curve is %+v of %+v", c, s.fit)
	}
}
