package waypointwatch

import (
	"testing"
	"time"
)

// TestJudge reads a waypoint every five seconds. Each step is a reading, or several alike, and the verdict after it.
func TestJudge(t *testing.T) {
	const every = 5 * time.Second
	type step struct {
		times  int
		e      evidence
		unread bool
		want   Verdict
	}
	n := func(asked, unpicked, timeouts, replies int64) evidence {
		return evidence{asked, unpicked, timeouts, replies}
	}
	none := evidence{}
	refused, turned, slow := Verdict{Unpicked, Refused}, Verdict{Unpicked, Turned}, Verdict{Unpicked, TooSlow}
	picked := Verdict{State: Picked}
	tests := map[string]struct {
		called bool // before the first reading
		steps  []step
	}{
		"never called":              {steps: []step{{1, none, false, Verdict{State: NotCalled}}, {200, none, false, Verdict{State: NotCalled}}}},
		"called before":             {called: true, steps: []step{{1, none, false, Verdict{State: Before}}, {1, n(1, 0, 0, 3), false, picked}}},
		"picked, and idle later":    {steps: []step{{1, n(9, 0, 0, 27), false, picked}, {119, none, false, picked}, {1, none, false, Verdict{State: Idle}}, {1, n(1, 0, 0, 2), false, picked}}},
		"a few are not":             {steps: []step{{10, n(100, 9, 0, 273), false, picked}}},
		"a tenth is not":            {steps: []step{{1, n(100, 10, 0, 270), false, refused}}},
		"judged at the first":       {steps: []step{{1, none, false, Verdict{State: NotCalled}}, {1, n(1, 1, 0, 0), false, refused}}},
		"it hangs":                  {steps: []step{{1, n(9, 0, 0, 27), false, picked}, {1, n(5, 5, 5, 1), false, slow}}},
		"half by time":              {steps: []step{{1, n(10, 10, 5, 0), false, slow}}},
		"it stays without calls":    {steps: []step{{1, n(5, 5, 0, 0), false, refused}, {500, none, false, refused}, {1, n(5, 0, 0, 15), false, picked}}},
		"callers that do not wait":  {steps: []step{{1, n(5, 5, 5, 0), false, slow}, {10, n(5, 0, 0, 0), false, slow}}},
		"an outage is refused":      {steps: []step{{6, n(10, 0, 0, 30), false, picked}, {1, n(10, 6, 0, 12), false, refused}, {20, n(10, 10, 0, 0), false, refused}}},
		"some are turned away":      {steps: []step{{1, n(10, 3, 0, 21), false, refused}, {5, n(10, 3, 0, 21), false, refused}, {1, n(10, 3, 0, 21), false, turned}}},
		"resumes within the window": {steps: []step{{20, n(10, 10, 0, 0), false, refused}, {6, n(10, 0, 0, 30), false, picked}}},
		"a fit is over": {steps: []step{
			{6, n(10, 0, 0, 30), false, picked}, {1, n(10, 10, 0, 0), false, refused}, {5, n(10, 0, 0, 30), false, refused}, {1, n(10, 0, 0, 30), false, picked},
		}},
		"unread":                   {steps: []step{{5, none, true, Verdict{}}, {1, none, true, Verdict{Unread, NotReached}}, {1, none, false, Verdict{State: NotCalled}}}},
		"unread for a while":       {steps: []step{{1, n(9, 0, 0, 27), false, picked}, {5, none, true, picked}, {1, none, false, picked}}},
		"unread for long":          {steps: []step{{1, n(9, 0, 0, 27), false, picked}, {5, none, true, picked}, {1, none, true, Verdict{Unread, NotReached}}}},
		"unpicked before unread":   {steps: []step{{1, n(9, 9, 0, 0), false, refused}, {9, none, true, Verdict{Unread, NotReached}}, {1, none, false, refused}}},
		"replies to calls of old":  {steps: []step{{1, n(9, 9, 0, 0), false, refused}, {9, n(0, 0, 0, 3), false, refused}}},
		"the proxy is started new": {steps: []step{{1, n(9, 0, 0, 27), false, picked}, {200, none, false, Verdict{State: Idle}}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			now := time.Unix(1000, 0)
			p := &place{began: now, unread: NotReached, called: tt.called}
			for i, s := range tt.steps {
				changed := p.verdict != s.want
				for range s.times {
					now = now.Add(every)
					if !s.unread {
						p.addEvidence(now, s.e)
					}
					told := p.judge(now)
					changed = changed && !told
				}
				if p.verdict != s.want {
					t.Fatalf("after step %d: %+v, want %+v", i, p.verdict, s.want)
				}
				if changed {
					t.Errorf("step %d changed the verdict, and nobody was told", i)
				}
			}
		})
	}
}

// A verdict does not change with each reading, even if the causes alternate.
func TestJudgeIsSteady(t *testing.T) {
	for name, alternating := range map[string][]evidence{
		"a call now and then, half of them unpicked": {{1, 1, 0, 0}, {}, {1, 0, 0, 3}, {}},
		"slow and refused by turns":                  {{10, 10, 10, 0}, {10, 10, 0, 0}},
		"refused and turned away by turns":           {{10, 10, 0, 0}, {10, 10, 0, 0}, {10, 10, 0, 0}, {10, 10, 0, 0}, {10, 10, 0, 0}, {10, 10, 0, 0}, {10, 5, 0, 15}},
	} {
		now, changes := time.Unix(1000, 0), 0
		p := &place{began: now}
		for i := range 720 { // an hour
			now = now.Add(5 * time.Second)
			p.addEvidence(now, alternating[i%len(alternating)])
			if p.judge(now) {
				changes++
			}
		}
		if changes > 122 {
			t.Errorf("%s: the verdict changed %d times in an hour", name, changes)
		}
	}
	now, changes := time.Unix(1000, 0), 0
	p := &place{began: now}
	for i := range 720 {
		now = now.Add(5 * time.Second)
		p.unread = []Cause{NotReached, NotCounted}[i%2]
		if p.judge(now) {
			changes++
		}
	}
	if changes > 122 {
		t.Errorf("of why counters are unread the verdict changed %d times in an hour", changes)
	}
}
