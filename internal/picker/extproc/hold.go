package extproc

import (
	"math"
	"strconv"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// A call that waits for its endpoint is held: the reply to its message comes later. The proxy is told so by a reply that only sets
// another time for it, which Envoy takes once for each message.

// The headers by which callers say on whose behalf they call, and which InferenceObjective the call has: the names of the reference picker.
const (
	behalfHeader    = "x-gateway-inference-fairness-id"
	objectiveHeader = "x-gateway-inference-objective"
)

// mostName bounds such a name, in bytes: that of an object in Kubernetes has at most 253.
const mostName = 256

func nameOf(value []byte) string { return string(value[:min(len(value), mostName)]) }

// heldCall is what a held call takes of memory beside its body and its blocks, in bytes: its stream.
const heldCall = 16 << 10

// holdsFor reads for how long a proxy lets a call wait. A time that is none or negative counts as 0, and none is longer than MostHold.
func holdsFor(value string) time.Duration {
	if value == "" {
		return 0
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0
	}
	return min(max(d, 0), pool.MostHold)
}

// ask has a call picked, which may be held for that. It returns for how long it was.
func (x *session) ask(p *poolstate.Pool, call *poolstate.Call) (why *poolstate.Decision, held time.Duration, err error) {
	if x.holds == 0 || x.bodiless {
		why, err = p.Pick(call, &x.reservation)
		return why, 0, err
	}
	why, w, err := p.Ask(call, &x.reservation)
	if w == nil {
		return why, 0, err
	}
	begin := time.Now()
	if w.Held() {
		x.server.awaitBody.pass(x)
		if x.requestMode != duplex { // there the proxy sets the reply to the headers no time
			_ = x.sendReply(reply{kind: x.message.kind, holds: pool.MostHold}) // a proxy that is gone ends the context
		}
	}
	why, err = w.Wait(x.context)
	if x.context.Err() != nil && !x.reservation.Held() {
		return nil, 0, nil
	}
	return why, time.Since(begin), err
}

// withinOf reads a time in the given unit; 0 where it is none.
func withinOf(value []byte, unit time.Duration) time.Duration {
	n, err := strconv.ParseFloat(string(value), 64)
	if err != nil || !(n > 0) || n > math.MaxInt32 {
		return 0
	}
	return time.Duration(n * float64(unit))
}
