package poolstate

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// reserved is what another picker tells of a call to the first endpoint.
func reserved(call uint64, facts *request.Facts) *Event {
	return &Event{Kind: Reserved, Pool: llama, Call: call, Endpoint: addressOf("10.0.0.1:8000"), Facts: *facts, Uncached: facts.PromptTokens()}
}

func released(call uint64) *Event {
	return &Event{Kind: Released, Pool: llama, Call: call, Outcome: Answered}
}

// A server counts a call before another picker tells of it. Its reading waits, so that the call is not taken for one of
// others, whose prompts would take room in the index.
func TestReadingsWaitForWhatIsTold(t *testing.T) {
	clock := &testClock{}
	var due []func()
	f := New(Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Clock: func() time.Duration { return clock.now },
		After: func(d time.Duration, do func()) {
			if d == toldWithin {
				due = append(due, do)
			}
		},
	})
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	p := f.Pool(llama)
	counted := int64(0)
	read := func() {
		p.Observe(addressOf("10.0.0.1:8000"), modelmetrics.Reading{
			Running: 2, WaitingSplit: true, CapacityTokens: 200 * 64, FirstTokens: counted, FirstTokenSeconds: float64(counted),
			ComputedTokens: counted * 50 * 64, Ended: max(0, counted-2),
		}, 0)
	}
	f.Apply("other", reserved(1, prompt(9, 50)))
	f.Apply("other", released(1))
	for call := uint64(2); call < 20; call += 2 {
		counted += 2
		read() // before the calls that it counts are told
		for i := range uint64(2) {
			f.Apply("other", reserved(call+i, prompt(i, 50)))
		}
		clock.now += toldWithin
		for _, do := range due {
			do()
		}
		due = due[:0]
		for i := range uint64(2) {
			f.Apply("other", released(call+i))
		}
		clock.now += followedFor - 2*toldWithin
	}
	if got := heldAt(t, p, prompt(9, 50), "10.0.0.1:8000") / 64; got < 49 {
		t.Errorf("of the first prompt %d blocks are left, want 50: three prompts have room", got)
	}
}

// However many calls another picker tells of, and never of their ends, a pool follows so many, and keeps so much of them.
func TestFollowedCallsAreBounded(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	long := prompt(1, request.MaxBlocks)
	for call := range uint64(mostTheirs + 10) {
		f.Apply("other", reserved(call, long))
		f.Apply("other", reserved(call, long)) // told twice
	}
	p := f.Pool(llama)
	if got := p.choice.InFlight(0); got != mostTheirs {
		t.Errorf("%d calls are followed, want %d", got, mostTheirs)
	}
	if got := f.theirs.Taken(); got > maxTheirs {
		t.Errorf("their blocks have %d bytes, want %d at most", got, maxTheirs)
	}
	for call := range uint64(100) {
		f.Apply("other", released(call))
	}
	f.Lost("other")
	if calls, bytes := p.choice.InFlight(0), f.theirs.Taken(); calls != 0 || bytes != 0 {
		t.Errorf("%d calls and %d bytes are left", calls, bytes)
	}
	f.Apply("other", reserved(1, long))
	f.RemovePool(llama)
	if bytes := f.theirs.Taken(); bytes != 0 {
		t.Errorf("a pool that is gone leaves %d bytes", bytes)
	}
}
