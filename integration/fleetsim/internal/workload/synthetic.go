package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// newSource makes the random source of one workload; kind separates workloads of one seed.
func newSource(seed, kind uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, kind)) }

// Kinds of workloads, which separate their random draws and their texts.
const (
	burstKind uint64 = iota + 1
	adapterKind
	agentKind
	chatKind
	documentKind
	independentKind
	spreadKind
	leaveKind
)

// Bursts are bursts of size equal prompts of 8,192 tokens within 100 ms, gap apart: a batch job, or a page that everybody
// opens at once.
func Bursts(seed uint64, bursts, size int, gap time.Duration) []Call {
	rnd := newSource(seed, burstKind)
	var calls []Call
	for b := range bursts {
		t := text{}.with(Mix(burstKind, uint64(b)), 8192)
		blocks := t.blocks(0)
		for range size {
			calls = append(calls, Call{
				At:     time.Duration(b)*gap + time.Duration(rnd.Int64N(int64(100*time.Millisecond))),
				Prompt: t.tokens,
				Output: length(rnd, 100, 0.5, 400),
				Blocks: blocks,
			})
		}
	}
	sortByTime(calls)
	return calls
}

// Adapters are calls to LoRA adapters whose popularity follows Zipf's law (the k-th has weight 1/k). Each adapter has a
// system prompt of 512 tokens, and each call a question of its own.
func Adapters(seed uint64, adapters int, perSecond float64, lasts time.Duration) []Call {
	rnd := newSource(seed, adapterKind)
	names := make([]string, adapters)
	weights := make([]float64, adapters)
	for k := range names {
		names[k] = fmt.Sprintf("adapter-%02d", k)
		weights[k] = 1 / float64(k+1)
	}
	return poisson(rnd, perSecond, lasts, func(at time.Duration) Call {
		a := drawn(rnd, weights)
		t := text{}.with(Mix(adapterKind, uint64(a)), 512).with(rnd.Uint64(), length(rnd, 1000, 0.8, 8000))
		return Call{
			At: at, Prompt: t.tokens, Output: length(rnd, 150, 0.7, 1000),
			Adapter: names[a], Blocks: t.blocks(uint64(a) + 1),
		}
	})
}

// Agents are sessions of 20 kinds of agents. All sessions of a kind share a system prompt with tools of 4,000 to 16,000
// tokens. A session has 3 to 20 turns, each with the whole history, the last answer and a tool's result.
func Agents(seed uint64, sessionsPerSecond float64, lasts time.Duration) []Call {
	rnd := newSource(seed, agentKind)
	systems := make([]text, 20)
	weights := make([]float64, len(systems))
	for k := range systems {
		systems[k] = text{}.with(Mix(agentKind, uint64(k)), 4000+rnd.IntN(12000))
		weights[k] = 1 / float64(k+1)
	}
	return sessions(rnd, sessionsPerSecond, lasts, sessionShape{
		head:  func() text { return systems[drawn(rnd, weights)] },
		turns: func() int { return 3 + rnd.IntN(18) },
		said:  func() int { return length(rnd, 700, 0.8, 4000) },
		reply: func() int { return length(rnd, 150, 0.7, 800) },
		pause: 3 * time.Second,
	})
}

// Chats are conversations with people: one short system prompt for all, 1 to 10 turns of a few hundred tokens, and
// pauses to read and write.
func Chats(seed uint64, sessionsPerSecond float64, lasts time.Duration) []Call {
	rnd := newSource(seed, chatKind)
	system := text{}.with(chatKind, 300)
	return sessions(rnd, sessionsPerSecond, lasts, sessionShape{
		head:  func() text { return system },
		turns: func() int { return 1 + min(9, int(rnd.ExpFloat64()*3)) },
		said:  func() int { return length(rnd, 250, 1.2, 6000) },
		reply: func() int { return length(rnd, 250, 0.7, 1500) },
		pause: 30 * time.Second,
	})
}

// Documents are questions about documents of 2,000 to 30,000 tokens, whose popularity follows Zipf's law.
func Documents(seed uint64, documents int, perSecond float64, lasts time.Duration) []Call {
	rnd := newSource(seed, documentKind)
	texts := make([]text, documents)
	weights := make([]float64, documents)
	for k := range texts {
		texts[k] = text{}.with(Mix(documentKind, uint64(k)), 2000+rnd.IntN(28000))
		weights[k] = 1 / float64(k+1)
	}
	return poisson(rnd, perSecond, lasts, func(at time.Duration) Call {
		t := texts[drawn(rnd, weights)].with(rnd.Uint64(), length(rnd, 80, 0.7, 1000))
		return Call{At: at, Prompt: t.tokens, Output: length(rnd, 200, 0.7, 1500), Blocks: t.blocks(0)}
	})
}

// Independent are prompts of about 3,000 tokens without a common prefix: servers differ only in load.
func Independent(seed uint64, perSecond float64, lasts time.Duration) []Call {
	rnd := newSource(seed, independentKind)
	return poisson(rnd, perSecond, lasts, func(at time.Duration) Call {
		t := text{}.with(rnd.Uint64(), length(rnd, 2200, 0.8, 30000))
		return Call{At: at, Prompt: t.tokens, Output: length(rnd, 200, 0.7, 1500), Blocks: t.blocks(0)}
	})
}

// sessionShape describes the conversations of a workload.
type sessionShape struct {
	head        func() text
	turns       func() int
	said, reply func() int // tokens
	pause       time.Duration
}

// sessions begin at random times. A turn follows the previous one after the time to write the answer, at 50 tokens a
// second, and an exponential pause. The times are fixed in advance, so that all pickers get the same calls.
func sessions(rnd *rand.Rand, perSecond float64, lasts time.Duration, shape sessionShape) []Call {
	var calls []Call
	for k, first := range arrivals(rnd, perSecond, lasts) {
		at, t := first, shape.head()
		for range shape.turns() {
			t = t.with(rnd.Uint64(), shape.said())
			reply := shape.reply()
			if at >= lasts || t.tokens > 100000 {
				break
			}
			calls = append(calls, Call{At: at, Prompt: t.tokens, Output: reply, Session: uint64(k) + 1, Blocks: t.blocks(0)})
			t = t.with(rnd.Uint64(), reply)
			at += time.Duration(reply)*20*time.Millisecond + time.Duration(rnd.ExpFloat64()*float64(shape.pause))
		}
	}
	sortByTime(calls)
	return calls
}

func poisson(rnd *rand.Rand, perSecond float64, lasts time.Duration, call func(time.Duration) Call) []Call {
	times := arrivals(rnd, perSecond, lasts)
	calls := make([]Call, 0, len(times))
	for _, at := range times {
		calls = append(calls, call(at))
	}
	return calls
}

// arrivals returns the times of a Poisson process.
func arrivals(rnd *rand.Rand, perSecond float64, lasts time.Duration) []time.Duration {
	var times []time.Duration
	for at := 0.0; ; {
		at += rnd.ExpFloat64() / perSecond
		t := time.Duration(at * float64(time.Second))
		if t >= lasts {
			return times
		}
		times = append(times, t)
	}
}

// length draws from a log-normal distribution with this median, from 1 to limit.
func length(rnd *rand.Rand, median, sigma float64, limit int) int {
	return min(limit, max(1, int(median*math.Exp(sigma*rnd.NormFloat64()))))
}

// drawn draws an index with a probability in proportion to its weight.
func drawn(rnd *rand.Rand, weights []float64) int {
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	at := rnd.Float64() * sum
	for i, w := range weights {
		if at -= w; at < 0 {
			return i
		}
	}
	return len(weights) - 1
}
