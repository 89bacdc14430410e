package poolstate

import (
	"math"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
)

const (
	// outputMemory is the time after which what is known of answers weighs 1/e, in seconds.
	outputMemory = 60
	// assumedOutput is how many tokens an answer is taken to have until servers tell, with the weight of one answer.
	assumedOutput = 200
	// outputCost is what a token of an answer costs beside one to prefill. Virtual token counters take 2; a server of the simulated fleet
	// spends 2.5 times as long on it.
	outputCost = 2
	// mostAnswers and mostTokens bound what a server may say that it answered between two readings, and how long, in tokens.
	mostAnswers, mostTokens = 1000, 32 << 10
	// mostOutput bounds an answer's length, as a multiple of the mean.
	mostOutput = 20
)

// outputs is what is known of the answers' lengths: sums that decay.
type outputs struct {
	tokens, answers float64 // that servers generated
	seconds, ended  float64 // how long the picker's own answers took from their first token
	at              time.Duration
}

func (o *outputs) decay(now time.Duration) {
	keep := math.Exp(-max(0, now-o.at).Seconds() / outputMemory)
	o.tokens, o.answers, o.seconds, o.ended = o.tokens*keep, o.answers*keep, o.seconds*keep, o.ended*keep
	o.at = max(o.at, now)
}

// see takes what a server counted between two readings.
func (o *outputs) see(now time.Duration, last, r *modelmetrics.Reading) {
	tokens, answers := r.GeneratedTokens-last.GeneratedTokens, min(r.Ended-last.Ended, mostAnswers)
	if last.At.IsZero() || tokens < 0 || answers <= 0 || last.Ended == 0 { // not every server counts answers
		return
	}
	tokens = min(tokens, answers*mostTokens)
	o.decay(now)
	o.tokens += float64(tokens)
	o.answers += float64(answers)
}

// mean is the mean length of an answer, in tokens.
func (o *outputs) mean() float64 { return (o.tokens + assumedOutput) / (o.answers + 1) }

// of returns how long an answer is taken to be that took so many seconds from its first token, in tokens.
func (o *outputs) of(now time.Duration, seconds float64) float64 {
	o.decay(now)
	o.seconds += seconds
	o.ended++
	return o.mean() * min(seconds*o.ended/max(o.seconds, 1e-9), mostOutput)
}
