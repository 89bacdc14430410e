package poolstate

import (
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// TestPaceFollowsCalls asks a pool of 8 at a steady rate, and then no more.
func TestPaceFollowsCalls(t *testing.T) {
	for name, test := range map[string]struct {
		gap       time.Duration // from call to call; 0: there are none
		rest      time.Duration // after the last
		min, want time.Duration
	}{
		"no call yet":                    {0, 0, time.Second, time.Second},
		"ten calls a second":             {100 * time.Millisecond, 0, 90 * time.Millisecond, 110 * time.Millisecond},
		"three calls a second":           {333 * time.Millisecond, 0, 280 * time.Millisecond, 350 * time.Millisecond},
		"a thousand calls a second":      {time.Millisecond, 0, 900 * time.Microsecond, 1100 * time.Microsecond},
		"a call a minute":                {time.Minute, 30 * time.Second, time.Second, time.Second},
		"ten a second, an hour ago":      {100 * time.Millisecond, time.Hour, time.Second, time.Second},
		"ten a second, two seconds ago":  {100 * time.Millisecond, 2 * time.Second, 250 * time.Millisecond, 300 * time.Millisecond},
		"ten a second, the clock jumped": {100 * time.Millisecond, -time.Hour, 90 * time.Millisecond, 110 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			var p pace
			now := time.Hour
			for end := now + 20*time.Second; test.gap > 0 && now < end; now += test.gap {
				p.asked.add(now, 1, paceMemory)
			}
			if got := p.interval(8, now-test.gap+test.rest); got < test.min || got > test.want {
				t.Errorf("readings every %v, want %v to %v", got, test.min, test.want)
			}
		})
	}
}

// Others change the load of a pool's endpoints as much as the pool's own calls do. Where the pool has none, nobody waits for
// readings.
func TestCallsOfOthersQuickenThePace(t *testing.T) {
	var p pace
	for now := time.Duration(0); now < 20*time.Second; now += 100 * time.Millisecond {
		p.served.add(now, 4, paceMemory)
	}
	if got := p.interval(8, 20*time.Second); got != restInterval {
		t.Errorf("readings every %v without a call, want %v", got, restInterval)
	}
	p.asked.add(20*time.Second, 1, paceMemory)
	if got := p.interval(8, 20*time.Second); got < 20*time.Millisecond || got > 30*time.Millisecond {
		t.Errorf("readings every %v where others make 40 calls a second, want about 25ms", got)
	}
}

// TestBusiestPoolSetsThePace has two pools share an endpoint.
func TestBusiestPoolSetsThePace(t *testing.T) {
	f, clock := newFleet(t)
	busy := named("models/busy")
	f.SetPool(pool.Pool{Name: llama}, endpointsOf("10.0.0.1:8000", "10.0.0.2:8000"))
	f.SetPool(pool.Pool{Name: busy}, endpointsOf("10.0.0.2:8000", "10.0.0.3:8000"))
	for range 100 {
		clock.now += 50 * time.Millisecond
		var r Reservation
		if _, err := f.Pool(busy).Pick(&Call{Facts: prompt(1, 1)}, &r); err != nil {
			t.Fatal(err)
		}
		r.Release(Answered)
	}
	for endpoint, want := range map[string]bool{"10.0.0.1:8000": false, "10.0.0.2:8000": true, "10.0.0.3:8000": true, "10.9.9.9:8000": false} {
		if got := f.Pace(addressOf(endpoint)); (got < restInterval) != want || got <= 0 {
			t.Errorf("%s is read every %v, want it busy: %v", endpoint, got, want)
		}
	}
}
