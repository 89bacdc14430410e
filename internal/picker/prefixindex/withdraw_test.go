package prefixindex

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWithdraw(t *testing.T) {
	long, short, fork := chain(1, 2, 3, 4, 5), chain(1, 2, 3), chain(1, 2, 9, 9)
	tests := map[string]struct {
		do   func(x *Index)
		ask  []uint64
		want int32 // held by endpoint 0
	}{
		"all of it":                    {do: func(x *Index) { x.Insert(0, long); x.Withdraw(0, long, 0) }, ask: long},
		"what was held before":         {do: func(x *Index) { x.Insert(0, short); x.Insert(0, long); x.Withdraw(0, long, 3) }, ask: long, want: 3},
		"what was held in one node":    {do: func(x *Index) { x.Insert(1, long); x.Insert(0, long); x.Withdraw(0, long, 3) }, ask: long, want: 3},
		"a longer prompt keeps it":     {do: func(x *Index) { x.Insert(0, short); x.Insert(0, long); x.Withdraw(0, short, 0) }, ask: long, want: 5},
		"a fork keeps its head":        {do: func(x *Index) { x.Insert(0, long); x.Insert(0, fork); x.Withdraw(0, fork, 0) }, ask: long, want: 5},
		"a fork itself goes":           {do: func(x *Index) { x.Insert(0, long); x.Insert(0, fork); x.Withdraw(0, fork, 2) }, ask: fork, want: 2},
		"another endpoint's stays":     {do: func(x *Index) { x.Insert(0, long); x.Insert(1, long); x.Withdraw(1, long, 0) }, ask: long, want: 5},
		"nothing was inserted":         {do: func(x *Index) { x.Insert(0, fork); x.Withdraw(0, long, 2) }, ask: fork, want: 4},
		"an endpoint that is unknown":  {do: func(x *Index) { x.Insert(0, long); x.Withdraw(7, long, 0) }, ask: long, want: 5},
		"no blocks":                    {do: func(x *Index) { x.Insert(0, long); x.Withdraw(0, nil, 0) }, ask: long, want: 5},
		"again after it was withdrawn": {do: func(x *Index) { x.Insert(0, long); x.Withdraw(0, long, 0); x.Insert(0, long) }, ask: long, want: 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			x := New(100, unlimited())
			tt.do(x)
			depth := make([]int32, 2)
			x.Match(tt.ask, depth)
			if depth[0] != tt.want {
				t.Errorf("holds %d blocks, want %d", depth[0], tt.want)
			}
		})
	}
}

// Whatever is inserted and withdrawn, an endpoint's size is what it holds, and its evictions go on working.
func TestWithdrawKeepsTheBooks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	x := New(60, unlimited())
	var prompts [][]uint64
	for range 40 {
		p := []int{rnd.IntN(2), rnd.IntN(2)}
		for range 1 + rnd.IntN(12) {
			p = append(p, rnd.IntN(3))
		}
		prompts = append(prompts, chain(p...))
	}
	depth := make([]int32, 3)
	for range 20000 {
		e, p := rnd.IntN(3), prompts[rnd.IntN(len(prompts))]
		x.Match(p, depth)
		before := slices.Clone(depth)
		x.Insert(e, p)
		if rnd.IntN(2) == 0 {
			continue
		}
		x.Withdraw(e, p, int(before[e]))
		x.Match(p, depth)
		for other := range depth {
			if other != e && depth[other] != before[other] {
				t.Fatalf("endpoint %d holds %d blocks after another's withdrawal, %d before", other, depth[other], before[other])
			}
		}
	}
	for e, h := range x.endpoints {
		if h.size > h.capacity || h.size != x.count(h.id) {
			t.Errorf("endpoint %d: size %d, of %d; it holds %d", e, h.size, h.capacity, x.count(h.id))
		}
		if len(h.ends) > 4*len(prompts) {
			t.Errorf("endpoint %d: %d ends of %d prompts", e, len(h.ends), len(prompts))
		}
		x.SetCapacity(e, 0)
	}
	if diff := cmp.Diff(0, x.Blocks()); diff != "" {
		t.Errorf("blocks after everything was evicted (-want +got):\n%s", diff)
	}
}

// count adds up what an endpoint holds in all runs.
func (x *Index) count(id uint32) int {
	total := 0
	slots := x.runs.Load().slots
	for i := range slots {
		if r := slots[i].run.Load(); r != nil && r != removed {
			if at := r.node.find(id); at >= 0 {
				total += r.node.held(at)
			}
		}
	}
	return total
}
