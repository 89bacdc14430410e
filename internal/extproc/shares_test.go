package extproc

import (
	"fmt"
	"testing"
	"testing/quick"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/fleet"
)

// Tenants that take all that they can leave the others room, and nobody gets more than there is.
func TestShares(t *testing.T) {
	for hogs, want := range map[int]int64{1: 800, 2: 444, 10: 97} {
		s := &shares{most: 1000}
		for range 10_000 { // each in turn, so that none is first
			for h := range hogs {
				if hog := s.get(fmt.Sprint(h)); !hog.take(1) {
					hog.give(1)
				}
			}
		}
		for h := range hogs {
			if got := s.get(fmt.Sprint(h)).taken.Load(); got < want || got > want+5 {
				t.Errorf("one of %d has %d of 1000, want about %d", hogs, got, want)
			}
		}
		if !s.get("late").take(1) {
			t.Errorf("with %d at work there is nothing for one that comes late", hogs)
		}
	}
	alone := &shares{most: 1}
	if one := alone.get("a"); !one.take(1) || one.take(1) || alone.get("b").take(1) {
		t.Error("of one thing not exactly the first has it")
	}
	unlimited := &shares{}
	if !unlimited.get("a").take(1 << 40) {
		t.Error("without a limit there is one")
	}
}

// What is taken is what was given back, whoever took it in whatever order.
func TestSharesBalance(t *testing.T) {
	balanced := func(steps []struct {
		Tenant uint8
		N      uint16
	}) bool {
		s := &shares{most: 1 << 16}
		for _, step := range steps {
			s.get(fmt.Sprint(step.Tenant % 4)).take(int(step.N))
		}
		for _, step := range steps {
			s.get(fmt.Sprint(step.Tenant % 4)).give(int(step.N))
		}
		return s.taken.Load() == 0 && s.get("0").taken.Load() == 0
	}
	if err := quick.Check(balanced, nil); err != nil {
		t.Error(err)
	}
}

// One namespace's calls, whatever pools they name, leave room for another's.
func TestTenantLeavesRoom(t *testing.T) {
	for hostile, label := range map[string]string{"hostile/qwen": "pool=hostile/qwen", "models/none": "pool="} {
		t.Run(hostile, func(t *testing.T) {
			w := newWorldWith(t, fleet.Options{Seed: 1}, Options{MaxStreams: 50}, fourEndpoints...)
			w.set("hostile/qwen", fourEndpoints...)
			for range 60 {
				x := w.open(t, hostile, withModes(full, none))
				defer x.close()
				x.send(requestHeaders(false)) // and no body
			}
			for end := time.Now().Add(10 * time.Second); w.metric(t, "refusals_total", "reason=overloaded", label) != 20; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("not 20 of 60 calls are refused where one may have 40 of 50")
				}
			}
			for range 5 {
				x := w.open(t, llama, nil)
				defer x.close()
				x.send(requestHeaders(true))
				picked(t, x.recv())
			}
		})
	}
}
