package policy

import (
	"math"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/server"
	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// start makes a picker for idle servers.
func start(t *testing.T, p Policy, servers int) (Picker, []*server.Server) {
	t.Helper()
	s := Setting{
		Seed:        1,
		Rate:        func(int) float64 { return 8000 },
		AdapterLoad: time.Second,
	}
	for range servers {
		s.Servers = append(s.Servers, server.New(server.Default(1000)))
	}
	picker, err := p.New(s)
	if err != nil {
		t.Fatal(err)
	}
	members := make([]int, servers)
	for n := range members {
		members[n] = n
	}
	picker.Members(0, members)
	return picker, s.Servers
}

func prompt(seed uint64, tokens int) *workload.Call {
	c := &workload.Call{Prompt: tokens, Output: 10}
	for i := range tokens / workload.BlockTokens {
		c.Blocks = append(c.Blocks, seed<<32|uint64(i))
	}
	return c
}

func TestEveryPolicyPicksMembersOnly(t *testing.T) {
	for _, p := range All() {
		t.Run(p.Name, func(t *testing.T) {
			picker, _ := start(t, p, 4)
			picker.Members(time.Second, []int{1, 3})
			counts := map[int]int{}
			for id := range 40 {
				counts[picker.Pick(time.Duration(id+1)*time.Second, id, prompt(uint64(id), 1000))]++
				picker.Ended(time.Duration(id+1)*time.Second+time.Millisecond, id)
			}
			if counts[1]+counts[3] != 40 || counts[1] == 0 || counts[3] == 0 {
				t.Errorf("40 calls went to %v, want all to 1 and 3 and some to each", counts)
			}
		})
	}
}

// Pickers that know prefixes send a prompt where it was before; other pickers need not.
func TestPrefixesAreFollowed(t *testing.T) {
	for _, p := range []Policy{Reference, Ours, Oracle} {
		t.Run(p.Name, func(t *testing.T) {
			picker, servers := start(t, p, 4)
			now, id := time.Duration(0), 0
			send := func(c *workload.Call) int {
				n := picker.Pick(now, id, c)
				servers[n].Submit(now, id, c)
				now += 10 * time.Second
				for _, s := range servers {
					s.Advance(now, func(e server.Ended) { picker.Ended(e.Last, e.ID) })
				}
				id++
				return n
			}
			home := send(prompt(1, 8000))
			for other := range 6 {
				send(prompt(uint64(other+2), 2000))
			}
			if got := send(prompt(1, 8000)); got != home {
				t.Errorf("a prompt that server %d holds went to %d", home, got)
			}
		})
	}
}

func TestLeastRequestEvensOut(t *testing.T) {
	picker, _ := start(t, LeastRequest, 8)
	counts := make([]int, 8)
	for id := range 800 {
		counts[picker.Pick(0, id, prompt(1, 100))]++
	}
	for n, c := range counts {
		if c < 90 || c > 110 {
			t.Errorf("server %d has %d of 800 calls in flight, want about 100", n, c)
		}
	}
}

func TestReferenceScores(t *testing.T) {
	idle := server.Metrics{}
	tests := map[string]struct {
		metrics []server.Metrics
		known   int // the server that has seen the prompt, -1 for none
		want    int
	}{
		"the shortest queue":                {metrics: []server.Metrics{{Waiting: 3}, {Waiting: 2}, {Waiting: 4}}, known: -1, want: 1},
		"the freest memory":                 {metrics: []server.Metrics{{KVUsage: 0.5}, {KVUsage: 0.4}, {KVUsage: 0.3}}, known: -1, want: 2},
		"the prefix":                        {metrics: []server.Metrics{idle, idle, idle}, known: 1, want: 1},
		"the prefix over the longest queue": {metrics: []server.Metrics{{Waiting: 100}, idle, idle}, known: 0, want: 0},
		"not over queue and memory":         {metrics: []server.Metrics{{Waiting: 100, KVUsage: 0.9}, {Waiting: 50, KVUsage: 0.9}, idle}, known: 0, want: 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			picker, _ := start(t, Reference, 3)
			r := picker.(*reference)
			if test.known >= 0 {
				r.remember(test.known, prompt(1, 1000).Blocks)
			}
			r.Scraped(0, test.metrics)
			if got := r.Pick(0, 0, prompt(1, 1000)); got != test.want {
				t.Errorf("picked %d, want %d", got, test.want)
			}
		})
	}
}

func TestMemoryForgetsTheOldest(t *testing.T) {
	m := newMemory(2)
	for _, step := range []struct{ block, wantEvicted uint64 }{{1, 0}, {2, 0}, {1, 0}, {3, 2}, {4, 1}, {3, 0}} {
		if got, _ := m.use(step.block); got != step.wantEvicted {
			t.Errorf("use(%d) forgot %d, want %d", step.block, got, step.wantEvicted)
		}
	}
}

func TestOracleKnowsAdapters(t *testing.T) {
	config := server.Default(1000)
	config.AdapterSlots = 1
	setting := Setting{Rate: func(int) float64 { return 8000 }, AdapterLoad: time.Second}
	for range 3 {
		setting.Servers = append(setting.Servers, server.New(config))
	}
	call := prompt(1, 600)
	call.Adapter = "a"
	setting.Servers[1].Submit(0, 0, call)
	setting.Servers[1].Advance(math.MaxInt64, func(server.Ended) {})
	picker, err := Oracle.New(setting)
	if err != nil {
		t.Fatal(err)
	}
	picker.Members(0, []int{0, 1, 2})
	again := prompt(2, 600)
	again.Adapter = "a"
	if got := picker.Pick(0, 1, again); got != 1 {
		t.Errorf("a call of an adapter that server 1 has went to %d", got)
	}
}
