package fairshare

import (
	"fmt"
	"testing"
	"testing/quick"
)

// Tenants that take all they can leave others room, and together get no more than the whole.
func TestGreedyTenants(t *testing.T) {
	for hogs, want := range map[int]int64{1: 800, 2: 444, 10: 97} {
		w := New(1000)
		for range 10_000 { // each in turn, so that none is first
			for h := range hogs {
				if hog := w.Of(fmt.Sprint(h)); !hog.Take(1) {
					hog.Give(1)
				}
			}
		}
		for h := range hogs {
			if got := w.Of(fmt.Sprint(h)).taken.Load(); got < want || got > want+5 {
				t.Errorf("one of %d has %d of 1000, want about %d", hogs, got, want)
			}
		}
		if !w.Of("late").Take(1) {
			t.Errorf("with %d at work there is nothing for one that comes late", hogs)
		}
	}
}

func TestLimits(t *testing.T) {
	one := New(1)
	if first := one.Of("a"); !first.Take(1) || first.Take(1) || one.Of("b").Take(1) {
		t.Error("of one thing not exactly the first has it")
	}
	if !New(0).Of("a").Take(1 << 40) {
		t.Error("without a limit there is one")
	}
}

// When all tenants have given back what they took, in any order, nothing is taken.
func TestBalance(t *testing.T) {
	balanced := func(steps []struct {
		Tenant uint8
		N      uint16
	}) bool {
		w := New(1 << 16)
		for _, step := range steps {
			w.Of(fmt.Sprint(step.Tenant % 4)).Take(int64(step.N))
		}
		for _, step := range steps {
			w.Of(fmt.Sprint(step.Tenant % 4)).Give(int64(step.N))
		}
		return w.Taken() == 0 && w.Of("0").taken.Load() == 0
	}
	if err := quick.Check(balanced, nil); err != nil {
		t.Error(err)
	}
}
