package policy

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

const dies = 20 * time.Second

func severalPolicies() []Policy {
	return []Policy{Pinned(3), Shared(3, true), Shared(3, false), Split(3), SplitUnevenly(3), Failover(dies, true), Failover(dies, false)}
}

// serve lets idle servers serve calls until all are answered and all replicas have heard of it. It returns where each call went.
func serve(t *testing.T, p Policy, calls []workload.Call) (Picker, []int) {
	t.Helper()
	picker, servers := start(t, p, 4)
	scraper := picker.(Scraper)
	went := make([]int, len(calls))
	advance := func(now time.Duration) {
		var ended []server.Ended
		for _, s := range servers {
			s.Advance(now, func(e server.Ended) { ended = append(ended, e) })
		}
		slices.SortStableFunc(ended, func(a, b server.Ended) int { return int(a.Last - b.Last) })
		for _, e := range ended {
			picker.Ended(e.Last, e.ID)
		}
	}
	next, id := time.Duration(0), 0
	for end := calls[len(calls)-1].At + time.Minute; id < len(calls) || next < end; {
		if id < len(calls) && calls[id].At <= next {
			at := calls[id].At
			advance(at)
			went[id] = picker.Pick(at, id, &calls[id])
			servers[went[id]].Submit(at, id, &calls[id])
			id++
			continue
		}
		advance(next)
		metrics := make([]server.Metrics, len(servers))
		for n, s := range servers {
			metrics[n] = s.Metrics()
		}
		scraper.Scraped(next, metrics)
		next += scraper.Interval()
	}
	return picker, went
}

func inFlight(p *poolstate.Pool) int {
	sum := 0
	for _, e := range p.Snapshot().Endpoints {
		sum += e.InFlight
	}
	return sum
}

// What one replica reserves, each replica that hears it gives up again, whoever picked and whoever died.
func TestReplicasEndWithoutCalls(t *testing.T) {
	calls := workload.Chats(1, 3, 40*time.Second)
	for _, p := range severalPolicies() {
		t.Run(p.Name, func(t *testing.T) {
			picker, _ := serve(t, p, calls)
			several := picker.(*replicas)
			if n := len(several.picker); n > 0 {
				t.Errorf("%d calls have a picker after their end", n)
			}
			for _, r := range several.all {
				if n := inFlight(r.pool); n > 0 && !r.dead {
					t.Errorf("replica %s has %d calls in flight after all were answered", r.name, n)
				}
			}
		})
	}
}

// A replica hears of a call 201 ms after it was picked, not sooner, and of its end as late.
func TestReplicasHearLater(t *testing.T) {
	for name, test := range map[string]struct {
		policy Policy
		heard  bool
	}{
		"with events":    {Pinned(2), true},
		"without events": {Shared(2, false), false},
	} {
		t.Run(name, func(t *testing.T) {
			picker, _ := start(t, test.policy, 4)
			p := picker.(*replicas)
			p.route = func(time.Duration, *workload.Call) int { return 0 }
			p.Pick(time.Second, 1, prompt(1, 8000))
			follower := p.all[1].pool
			p.pass(time.Second + HeardWithin - 1)
			if n := inFlight(follower); n != 0 {
				t.Errorf("the other replica has %d calls before it can have heard of any", n)
			}
			p.pass(time.Second + HeardWithin)
			if n := inFlight(follower); (n == 1) != test.heard {
				t.Errorf("the other replica has %d calls", n)
			}
			p.Ended(2*time.Second, 1)
			p.pass(2*time.Second + HeardWithin)
			if n := inFlight(follower); n != 0 {
				t.Errorf("the other replica has %d calls after the end of the only one", n)
			}
		})
	}
}

// Followers change nothing for the replica that picks. Where calls are divided, events change where they go.
func TestWhatEventsChange(t *testing.T) {
	calls := workload.Chats(1, 3, 40*time.Second)
	_, one := serve(t, Ours, calls)
	if _, pinned := serve(t, Pinned(3), calls); !cmp.Equal(one, pinned) {
		t.Error("with followers calls went elsewhere than under one picker")
	}
	_, told := serve(t, Shared(3, true), calls)
	if _, untold := serve(t, Shared(3, false), calls); cmp.Equal(told, untold) {
		t.Error("calls went to the same servers with and without events")
	}
}

// A dead replica's calls are given up by the other, which picks from then on and knows the dead one's prompts if it has heard
// of them.
func TestFailover(t *testing.T) {
	for name, told := range map[string]bool{"told": true, "not told": false} {
		t.Run(name, func(t *testing.T) {
			picker, _ := start(t, Failover(dies, told), 8)
			p := picker.(*replicas)
			home := p.Pick(time.Second, 1, prompt(1, 8000))
			p.Ended(2*time.Second, 1)
			p.Pick(dies-time.Second, 2, prompt(2, 8000)) // which is in flight when the picker dies
			if n := inFlight(p.all[1].pool); n != 0 {
				t.Fatalf("the second replica has %d calls before it heard of one", n)
			}
			p.pass(dies)
			if n := inFlight(p.all[1].pool); (n == 1) != told {
				t.Errorf("the second replica has %d calls of the first", n)
			}
			p.pass(dies + onTheWay)
			if n := inFlight(p.all[1].pool); n != 0 {
				t.Errorf("the second replica has %d calls of the dead one", n)
			}
			found := 0
			for id := range 8 {
				at := dies + time.Duration(id+1)*time.Second
				if p.Pick(at, 10+id, prompt(1, 8000)) == home {
					found++
				}
				p.Ended(at+100*time.Millisecond, 10+id)
			}
			if told && found != 8 {
				t.Errorf("%d of 8 calls with a known prompt went where it was", found)
			}
			p.Ended(dies+time.Minute, 2) // nobody counts it any more
			if !p.all[0].dead {
				t.Error("the first replica is not dead")
			}
		})
	}
}

func TestSplitKeepsConversations(t *testing.T) {
	picker, _ := start(t, Split(4), 4)
	p := picker.(*replicas)
	counts := make([]int, 4)
	for s := range uint64(400) {
		first, later := prompt(s, 1000), prompt(s+1000, 2000)
		first.Session, later.Session = s+1, s+1
		if a, b := p.route(0, first), p.route(0, later); a != b {
			t.Fatalf("calls of one session go to replicas %d and %d", a, b)
		}
		first.Session, later = 0, prompt(s, 2000)
		if a, b := p.route(0, first), p.route(0, later); a != b {
			t.Fatalf("calls with the same first block go to replicas %d and %d", a, b)
		}
		counts[p.route(0, first)]++
	}
	for n, c := range counts {
		if c < 70 || c > 130 {
			t.Errorf("replica %d gets %d of 400 conversations, want about 100", n, c)
		}
	}
}
