package workload

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestReadTrace(t *testing.T) {
	calls, err := ReadTrace(strings.NewReader(`{"timestamp": 3000, "input_length": 1100, "output_length": 0, "hash_ids": [7, 8, 9]}
{"timestamp": 0, "input_length": 1300, "output_length": 20, "hash_ids": [7, 8, 10]}
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(calls) != 2 || calls[0].At != 0 || calls[1].At != 3*time.Second {
		t.Fatalf("ReadTrace gave %+v, want two calls in the order of time", calls)
	}
	if got, want := []int{calls[0].Prompt, calls[0].Output, calls[1].Prompt, calls[1].Output}, []int{1300, 20, 1100, 1}; !slices.Equal(got, want) {
		t.Errorf("lengths are %v, want %v", got, want)
	}
	a, b := calls[0].Blocks, calls[1].Blocks
	if len(a) != 20 || len(b) != 17 {
		t.Fatalf("prompts have %d and %d blocks, want 20 and 17", len(a), len(b))
	}
	if !slices.Equal(a[:16], b[:16]) || a[16] == b[16] {
		t.Error("prompts that agree in two ids must agree in 16 blocks and no more")
	}
	if distinct := len(slices.Compact(slices.Sorted(slices.Values(a)))); distinct != len(a) {
		t.Errorf("%d of %d blocks of one prompt differ, want all", distinct, len(a))
	}
}

func TestReadTraceRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"no JSON":         `{"timestamp": 1`,
		"too few ids":     `{"timestamp": 1, "input_length": 600, "output_length": 1, "hash_ids": [1]}`,
		"no prompt":       `{"timestamp": 1, "input_length": 0, "output_length": 1, "hash_ids": []}`,
		"a huge prompt":   `{"timestamp": 1, "input_length": 2000000000, "output_length": 1, "hash_ids": [1]}`,
		"before the time": `{"timestamp": -1, "input_length": 10, "output_length": 1, "hash_ids": [1]}`,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadTrace(strings.NewReader(line)); err == nil {
				t.Error("ReadTrace accepted it")
			}
		})
	}
}

func TestTextBlocks(t *testing.T) {
	head := text{}.with(1, 100)
	a, b := head.with(2, 100).blocks(0), head.with(3, 100).blocks(0)
	if len(a) != 3 || len(b) != 3 {
		t.Fatalf("200 tokens have %d and %d blocks, want 3", len(a), len(b))
	}
	if a[0] != b[0] {
		t.Error("texts with the same head differ in its block")
	}
	if a[1] == b[1] || a[2] == b[2] {
		t.Error("texts that part in their second block agree behind the place")
	}
	if c := head.with(2, 100).blocks(1); c[0] == a[0] {
		t.Error("a text has the same blocks under another adapter")
	}
}

// all returns the generated workloads.
func all(seed uint64) map[string][]Call {
	const lasts = 5 * time.Minute
	return map[string][]Call{
		"bursts":      Bursts(seed, 3, 64, 30*time.Second),
		"adapters":    Adapters(seed, 15, 5, lasts),
		"agents":      Agents(seed, 0.5, lasts),
		"chats":       Chats(seed, 2, lasts),
		"documents":   Documents(seed, 50, 3, lasts),
		"independent": Independent(seed, 5, lasts),
	}
}

func TestGeneratedWorkloads(t *testing.T) {
	again, other := all(1), all(2)
	for name, calls := range all(1) {
		t.Run(name, func(t *testing.T) {
			if len(calls) < 100 {
				t.Fatalf("there are %d calls, want at least 100", len(calls))
			}
			if !slices.IsSortedFunc(calls, func(a, b Call) int { return int(a.At - b.At) }) {
				t.Error("calls are not in the order of time")
			}
			for _, c := range calls {
				if c.Prompt < 1 || c.Output < 1 || len(c.Blocks) != c.Prompt/BlockTokens {
					t.Fatalf("a call has a prompt of %d tokens in %d blocks and an output of %d", c.Prompt, len(c.Blocks), c.Output)
				}
			}
			if !reflect.DeepEqual(calls, again[name]) {
				t.Error("the same seed gives other calls")
			}
			if reflect.DeepEqual(calls, other[name]) {
				t.Error("another seed gives the same calls")
			}
		})
	}
}

// Each workload has the property of its name: prompts share much, or nothing.
func TestSharedPrefixes(t *testing.T) {
	calls := all(1)
	for name, want := range map[string]struct{ least, most float64 }{
		"bursts":      {0.97, 0.99}, // 63 of 64
		"agents":      {0.85, 1},
		"documents":   {0.5, 1},
		"independent": {0, 0},
	} {
		reusable := 1 - float64(WorkingSet(calls[name]))/float64(Tokens(calls[name]))
		if name == "independent" {
			reusable = max(0, reusable-0.03) // the ends of prompts fill no block
		}
		if reusable < want.least || reusable > want.most {
			t.Errorf("%s: %.3f of the tokens are there before, want %g to %g", name, reusable, want.least, want.most)
		}
	}
}

func TestFasterAndSpread(t *testing.T) {
	calls := []Call{{At: 0}, {At: 3 * time.Second}, {At: 3 * time.Second}}
	if got := Faster(calls, 2)[2].At; got != 1500*time.Millisecond {
		t.Errorf("at twice the speed the last call comes at %s, want 1.5s", got)
	}
	spread := Spread(1, calls, 3*time.Second)
	for i, c := range spread {
		if c.At < calls[i].At || c.At >= calls[i].At+3*time.Second {
			t.Errorf("call %d moved from %s to %s, out of its 3 s", i, calls[i].At, c.At)
		}
	}
	if spread[1].At == spread[2].At {
		t.Error("two calls still come at once")
	}
}
