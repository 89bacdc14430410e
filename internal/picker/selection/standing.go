package selection

import (
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

// Standing is what is known of one endpoint at one time, for people to read.
type Standing struct {
	// InFlight are the picker's own calls, QueueTokens their uncached prompt tokens that wait to be prefilled.
	InFlight    int
	QueueTokens float64
	// Rate is the speed of prefill in tokens a second, of tokens like those of late. BytesPerToken is how many bytes of text a token of the server's has.
	Rate, BytesPerToken float64
	// FirstToken is the time to the first token of a call that arrives now and brings the recent average of uncached
	// tokens, in seconds.
	FirstToken float64
	// Failures counts failures in a row; AvoidedFor is how many more seconds the endpoint is avoided, 0 if it is not.
	Failures   int
	AvoidedFor float64
	// Adapters are the names of the adapters that are taken to be resident, sorted.
	Adapters []string
}

// Standing returns the standing of endpoint n at the given time.
func (s *State) Standing(n int32, now time.Duration) Standing {
	t := now.Seconds()
	h := &s.hot[n]
	out := Standing{
		InFlight: int(h.own), QueueTokens: s.Queue(n, now), Rate: h.rate / s.density,
		BytesPerToken: request.BytesPerToken / s.TokenRatio(n),
		FirstToken:    max(0, h.empty-t) + (s.MeanTokens()+s.curve.perCall)*h.perToken,
		Failures:      s.health[n].failed.count, AvoidedFor: max(0, s.health[n].failed.until-t, s.health[n].shed.until-t),
	}
	for _, r := range s.adapters.slots[n].resident {
		if name := &s.adapters.names[r.id]; name.kind == proven {
			out.Adapters = append(out.Adapters, name.name)
		}
	}
	slices.Sort(out.Adapters)
	return out
}
