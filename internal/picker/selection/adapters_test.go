package selection

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// world is a pool whose servers have adapter slots; it keeps the picker's readings up to date.
type world struct {
	*view
	now   time.Duration
	slots int
}

func newWorld(endpoints, slots int) *world {
	w := &world{view: viewOf(make([]endpoint, endpoints)), slots: slots}
	for i := range endpoints {
		w.read(int32(i), 0)
	}
	return w
}

// read makes a reading of endpoint n with running adapters.
func (w *world) read(n int32, others int, running ...string) {
	w.now += time.Millisecond
	w.Observe(n, w.now, &Reading{At: w.now, MaxAdapters: w.slots, RunningAdapters: running, Running: len(running) + others})
}

// defers makes a reading of endpoint n with running adapters, on which so many calls are deferred.
func (w *world) defers(n int32, deferred int, running ...string) {
	w.now += time.Millisecond
	w.Observe(n, w.now, &Reading{
		At: w.now, MaxAdapters: w.slots, RunningAdapters: running, Running: len(running), Deferred: deferred, WaitingSplit: true,
	})
}

// reason explains endpoint n's cost for a call with a model.
func (w *world) reason(n int32, model string) Reason {
	w.Age(w.now, w.Candidates)
	return w.Explain(w.of(callFor(model, 100)), w.now)[n]
}

// know makes a name known as an adapter's that is resident nowhere.
func (w *world) know(model string) {
	w.read(0, 0, model)
	w.Restarted(0)
	w.read(0, 0)
}

func (w *world) pick(model string, seed uint64) int32 {
	return pickCall(w.view, callFor(model, 100), w.now, seed)[0].Endpoint
}

// serve picks for a call and reserves it.
func (w *world) serve(model string, seed uint64) Claim {
	call := callFor(model, 100)
	c := pickCall(w.view, call, w.now, seed)[0]
	return w.Reserve(c.Endpoint, w.now, call, c.Uncached)
}

// serveAndEnd has endpoint n serve a call.
func (w *world) serveAndEnd(n int32, model string) {
	c := w.Reserve(n, w.now, callFor(model, 100), 100)
	w.Release(&c, Answered, w.now)
}

func TestAdapterGoesWhereItIs(t *testing.T) {
	tests := map[string]func(w *world){
		"running, by a reading": func(w *world) { w.read(3, 0, "sql") },
		"by the picker's own call, whose streamed answer took its time": func(w *world) {
			w.know("sql")
			c := w.Reserve(3, w.now, callFor("sql", 100), 100)
			w.now += 2 * s
			w.Release(&c, Ended, w.now)
		},
		"by the picker's own call that was answered": func(w *world) {
			w.know("sql")
			c := w.Reserve(3, w.now, callFor("sql", 100), 100)
			w.Release(&c, Answered, w.now)
		},
		"idle since, and remembered": func(w *world) {
			w.read(3, 0, "sql")
			w.now += 20 * s
			w.read(3, 0)
		},
		"by the picker's own call": func(w *world) {
			w.read(5, 0, "sql")
			w.Restarted(5)
			call := callFor("sql", 100)
			w.Reserve(3, w.now, call, 100)
		},
		"by the picker's own call, of a name that no reading has": func(w *world) {
			w.Reserve(3, w.now, callFor("sql", 100), 100)
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(8, 4)
			prepare(w)
			for seed := range uint64(10) {
				if got := w.pick("sql", seed); got != 3 {
					t.Fatalf("goes to endpoint %d, want 3", got)
				}
			}
		})
	}
}

// An adapter is not loaded because a call for it waits, or was there and not answered.
func TestAdapterThatWasNotServedIsNotResident(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"waiting, by a reading": func(w *world) {
			w.now += time.Millisecond
			w.Observe(3, w.now, &Reading{At: w.now, MaxAdapters: 4, WaitingAdapters: []string{"sql"}, Waiting: 1})
		},
		"in a call whose answer ended at once": func(w *world) {
			w.know("sql")
			c := w.Reserve(3, w.now, callFor("sql", 4000), 4000)
			w.Release(&c, Ended, w.now)
		},
		"in a call that its caller left": func(w *world) {
			w.know("sql")
			c := w.Reserve(3, w.now, callFor("sql", 100), 100)
			w.Release(&c, Abandoned, w.now)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(8, 4)
			prepare(w)
			if w.adapters.find("sql") == none {
				t.Error("it is not taken for an adapter")
			}
			if got := w.reason(3, "sql").AdapterState; got != AdapterFits {
				t.Errorf("endpoint 3 is told as %q, want %q", got, AdapterFits)
			}
		})
	}
}

// Slots are full of adapters that others' calls run, until a reading no longer lists these or is old.
func TestSlotsOfOthersAreInUse(t *testing.T) {
	for name, tt := range map[string]struct {
		then func(w *world)
		want string
	}{
		"while they run":           {func(*world) {}, AdapterFull},
		"one of them has ended":    {func(w *world) { w.read(0, 0, "a") }, AdapterPushes},
		"the reading is old":       {func(w *world) { w.now += 10 * s }, AdapterPushes},
		"one is of our ended call": {func(w *world) { w.serveAndEnd(0, "a") }, AdapterPushes},
		"one is of our call that ended since it was read": {func(w *world) {
			w.now += 10 * time.Millisecond
			w.serveAndEnd(0, "a")
			w.Observe(0, w.now, &Reading{At: w.now - time.Millisecond, MaxAdapters: 2, RunningAdapters: []string{"a", "b"}, Running: 2})
		}, AdapterPushes},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(3, 2)
			w.know("new")
			w.read(0, 0, "a", "b")
			w.read(1, 0, "c", "d")
			w.read(2, 0, "c")
			tt.then(w)
			if got := w.reason(0, "new"); got.AdapterState != tt.want || (got.Class == ClassNoSlot) != (tt.want == AdapterFull) {
				t.Errorf("endpoint 0 is told as %q and %q, want %q", got.AdapterState, got.Class, tt.want)
			}
			for seed := range uint64(10) {
				if got := w.pick("new", seed); name == "while they run" && got != 2 {
					t.Errorf("a new adapter goes to endpoint %d, want 2, which alone has a free slot", got)
				}
			}
		})
	}
}

// Where calls wait for a slot, the slot that seems free is theirs, also where the adapter was loaded a moment ago.
func TestCrowdedSlotsAreFull(t *testing.T) {
	w := newWorld(2, 2)
	w.know("new")
	w.read(0, 0, "code", "sql")
	w.defers(0, 2, "code")
	for _, adapter := range []string{"new", "sql"} {
		if got := w.reason(0, adapter); got.Class != ClassNoSlot {
			t.Errorf("%s: endpoint 0 is not ruled out, with adapter %q", adapter, got.AdapterState)
		}
		for seed := range uint64(10) {
			if got := w.pick(adapter, seed); got != 1 {
				t.Errorf("%s goes to endpoint %d, where calls wait for a slot", adapter, got)
			}
		}
	}
	if got := w.reason(0, "code").AdapterState; got != AdapterResident {
		t.Errorf("the adapter that runs is told as %q, want %q", got, AdapterResident)
	}
	w.defers(0, 0, "code")
	if got := w.reason(0, "new"); got.AdapterState == AdapterFull {
		t.Error("endpoint 0 is full when no call waits any more")
	}
	w.defers(0, 2)
	if got := w.reason(0, "new"); got.AdapterState == AdapterFull {
		t.Error("calls that are deferred where no adapter runs make slots full")
	}
}

// Calls for an adapter do not gather where its first call waits for a slot.
func TestAdapterGoesOnWhereItNeedNotWait(t *testing.T) {
	for name, prepare := range map[string]func(w *world){
		"it was never served there": func(w *world) { w.know("chat") },
		"it was evicted since":      func(w *world) { w.read(0, 0, "chat"); w.read(0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(2, 2)
			prepare(w)
			w.Reserve(0, w.now, callFor("chat", 100), 100)
			if got := w.pick("chat", 1); got != 0 {
				t.Fatalf("the second call goes to endpoint %d, want 0", got)
			}
			w.now += 2 * s
			w.defers(0, 1, "code", "sql")
			if got := w.pick("chat", 1); got != 1 {
				t.Errorf("the second call goes to endpoint %d, where the first waits for a slot", got)
			}
			w.now += s
			w.defers(0, 0, "chat", "sql")
			if got := w.pick("chat", 1); got != 0 {
				t.Errorf("the second call goes to endpoint %d, want 0, which serves the first", got)
			}
		})
	}
}

// Of two adapters that want the only slot, the first one gets it.
func TestFirstAdapterGetsTheSlot(t *testing.T) {
	w := newWorld(2, 1)
	for i, adapter := range []string{"first", "second"} {
		w.know(adapter)
		defer func() {
			if got := w.pick(adapter, 1); got != int32(i) {
				t.Errorf("the next call for the %s adapter goes to endpoint %d, want %d", adapter, got, i)
			}
		}()
	}
	w.Reserve(0, w.now, callFor("first", 100), 100)
	w.Reserve(0, w.now, callFor("second", 100), 100)
}

// Replicas with the same readings send an adapter that is resident nowhere to the same endpoint, whatever their random
// draws, and nearly always in spite of their own calls in flight.
func TestReplicasAgreeOnAnAdapterThatIsNowhere(t *testing.T) {
	count, apart := map[int32]int{}, 0
	for i := range 100 {
		name := fmt.Sprint("adapter-", i)
		one, two, other := newWorld(8, 4), newWorld(8, 4), newWorld(8, 4)
		for _, w := range []*world{one, two, other} {
			w.know(name)
		}
		for range 10 {
			other.serve("", uint64(i))
		}
		a := one.pick(name, 1)
		if b := two.pick(name, 2); a != b {
			t.Errorf("%s goes to %d and, by a replica as idle, to %d", name, a, b)
		}
		if a != other.pick(name, 2) {
			apart++
		}
		count[a]++
	}
	if apart > 5 {
		t.Errorf("%d of 100 adapters go elsewhere for 10 calls in flight, want at most 5", apart)
	}
	for e := range int32(8) {
		if count[e] < 3 || count[e] > 30 {
			t.Errorf("%d of 100 adapters at endpoint %d of 8", count[e], e)
		}
	}
}

func TestAdapterDisplacesLeast(t *testing.T) {
	w := newWorld(4, 2)
	w.read(0, 0, "a", "b") // in use
	w.read(1, 0, "c", "d")
	w.read(2, 0, "e", "f")
	w.read(3, 0, "g") // a free slot
	for range 2 {     // idle at 1 and 2, for longer at 1
		w.now += 30 * s
		w.read(1, 0)
		w.read(2, 0, "e")
	}
	call := callFor("new", 10)
	w.read(3, 0, "new")
	w.Restarted(3)
	w.read(3, 0, "g")
	w.Reserve(0, w.now, callFor("a", 10), 10)
	w.Reserve(0, w.now, callFor("b", 10), 10)
	w.Age(w.now, w.Candidates)
	reasons := w.Explain(w.of(call), w.now)
	want := []string{AdapterFull, AdapterPushes, AdapterPushes, AdapterFits}
	for i, r := range reasons {
		if r.AdapterState != want[i] {
			t.Errorf("endpoint %d is told as %q, want %q", i, r.AdapterState, want[i])
		}
	}
	for seed := range uint64(10) {
		if got := w.pick("new", seed); got == 0 {
			t.Fatalf("a new adapter goes to endpoint %d, where all slots are in use", got)
		}
	}
}

// While every adapter has calls, no endpoint gets more adapters than its slots while another has a free slot.
func TestNeverOverMaxWhenAvoidable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for round := range 100 {
		w := newWorld(6, 3)
		// 18 adapters fit exactly.
		for i := range 18 {
			w.know(fmt.Sprint("adapter-", i))
		}
		for i := range 18 {
			name := fmt.Sprint("adapter-", i)
			c := w.serve(name, uint64(round))
			w.read(c.Endpoint, 1, name) // the server confirms that it is an adapter
			if rnd.IntN(3) == 0 {
				w.serve(name, uint64(round))
			}
		}
		for n := range int32(6) {
			if free, _ := w.adapters.spare(n, w.now.Seconds()); free < 0 {
				t.Fatalf("round %d: endpoint %d is %d adapters over its slots", round, n, -free)
			}
		}
		// One more fits nowhere, and still goes somewhere.
		if got := w.pick("one too many", 1); got < 0 || got > 5 {
			t.Fatalf("no endpoint for an adapter that fits nowhere")
		}
	}
}

// A hot adapter stays at one endpoint while that copes, and spreads when it does not.
func TestAdapterSpreadsByItsLoad(t *testing.T) {
	used := func(calls, tokens int) int {
		w := newWorld(8, 4)
		w.read(2, 0, "hot")
		endpoints := map[int32]bool{}
		for i := range calls {
			call := callFor("hot", tokens)
			c := pickCall(w.view, call, w.now, uint64(i))[0]
			w.Reserve(c.Endpoint, w.now, call, c.Uncached)
			endpoints[c.Endpoint] = true
		}
		return len(endpoints)
	}
	if got := used(8, 100); got != 1 {
		t.Errorf("8 small calls of one adapter went to %d endpoints, want 1", got)
	}
	if got := used(100, 4000); got < 4 {
		t.Errorf("100 calls of 4,000 tokens went to %d endpoints, want most of 8", got)
	}
}

// A base model is recognised as readings do not list its name, and is then picked for as any other call.
func TestBaseModelIsNoAdapter(t *testing.T) {
	w := newWorld(8, 4)
	c := w.serve("base", 1)
	w.now += 2 * s
	w.read(c.Endpoint, 1)
	w.serve("base", 1)
	if w.adapters.find("base") != none {
		t.Fatal("a name in flight that a reading of adapters does not list is still taken for one")
	}
	spread := map[int32]bool{}
	for i := range 8 {
		spread[w.serve("base", uint64(i)).Endpoint] = true
	}
	if len(spread) < 5 {
		t.Errorf("8 calls to the base model went to %d endpoints of 8", len(spread))
	}
	// A reading that lists it after all is believed.
	w.read(4, 0, "base")
	if w.adapters.find("base") == none {
		t.Error("a name that a reading lists is not taken for an adapter")
	}
}

// A server tells the name of its own model. Calls with it go where their prompts are cached, although they are too short for
// any reading to show that the name is no adapter's, and there is no call with it at that endpoint now.
func TestModelThatAServerTellsIsNoAdapter(t *testing.T) {
	w := newWorld(2, 4)
	for n := range int32(2) {
		w.Observe(n, w.now, &Reading{At: w.now, Model: "base", MaxAdapters: w.slots})
	}
	w.Reserve(0, w.now, callFor("base", 100), 100)
	w.Cached[1] = 10
	if got := w.serve("base", 1).Endpoint; got != 1 {
		t.Errorf("a call went to endpoint %d, want 1, which has its prompt", got)
	}
	// A reading that lists it after all is believed, also where another server has a model of that name.
	w.read(0, 0, "base")
	w.Observe(1, w.now, &Reading{At: w.now, Model: "base", MaxAdapters: w.slots})
	if w.adapters.find("base") == none {
		t.Error("a name that a reading lists is not taken for an adapter")
	}
}

// An adapter that a reading need not list yet is not taken for the base model.
func TestUnlistedAdapterStaysOne(t *testing.T) {
	tests := map[string]func(w *world, n int32){
		"its prompt is being prefilled": func(w *world, n int32) {
			w.Reserve(n, w.now, callFor("sql", 40_000), 40_000) // 5 s
			w.now += 5 * s
			w.read(n, 2)
		},
		"it waits behind another's prompt": func(w *world, n int32) {
			w.Reserve(n, w.now, callFor("", 40_000), 40_000)
			w.Reserve(n, w.now, callFor("sql", 100), 100)
			w.now += 5 * s
			w.read(n, 2)
		},
		"it is being loaded": func(w *world, n int32) {
			w.Reserve(n, w.now, callFor("sql", 100), 100)
			w.now += s
			w.read(n, 2)
		},
		"its first step takes longer than was thought": func(w *world, n int32) {
			w.Reserve(n, w.now, callFor("sql", 100), 100)
			w.now += 5 * s
			w.read(n, 0)
		},
		"it waits for a slot": func(w *world, n int32) {
			w.Reserve(n, w.now, callFor("sql", 100), 100)
			for range 10 {
				w.now += 10 * s
				w.read(n, 0, "a", "b", "c", "d")
			}
		},
		"it waits for a slot, while one seems free": func(w *world, n int32) {
			w.Reserve(n, w.now, callFor("sql", 100), 100)
			for range 10 {
				w.now += 10 * s
				w.defers(n, 1, "a", "b", "c")
			}
		},
		"one call has ended and the next has just come": func(w *world, n int32) {
			c := w.Reserve(n, w.now, callFor("sql", 100), 100)
			w.now += 10 * s
			w.Reserve(n, w.now, callFor("sql", 100), 100)
			w.Release(&c, Answered, w.now)
			w.now += s / 20
			w.read(n, 2)
		},
		"one call has moved here and the other has gone": func(w *world, n int32) {
			gone := w.Reserve(n, w.now, callFor("sql", 100), 100)
			moved := w.Reserve(n+1, w.now, callFor("sql", 100), 100)
			w.now += 10 * s
			w.Move(&moved, n, 0, w.now)
			w.Release(&gone, Answered, w.now)
			w.now += s / 20
			w.read(n, 2)
		},
	}
	for name, prepare := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(8, 4)
			prepare(w, 3)
			if w.adapters.find("sql") == none {
				t.Fatal("it is taken for no adapter")
			}
			id := w.adapters.find("sql")
			if holders := w.adapters.names[id].holders; len(holders) != 1 || holders[0] != 3 {
				t.Errorf("it is held by %v, want endpoint 3 alone", holders)
			}
		})
	}
}

// A base model whose calls overlap without end is recognised, though its calls are never all old, and the first ones
// have ended before there is a reading.
func TestOverlappingCallsToTheBaseModelAreFoundOut(t *testing.T) {
	w := newWorld(1, 4)
	var inFlight []Claim
	for i := range 100 {
		inFlight = append(inFlight, w.serve("base", 1))
		if len(inFlight) > 20 {
			w.Release(&inFlight[0], Answered, w.now)
			inFlight = inFlight[1:]
		}
		w.now += 100 * time.Millisecond
		if i > 50 {
			w.read(0, len(inFlight))
		}
	}
	if w.adapters.find("base") != none {
		t.Error("after 10 s of calls of 2 s each the name is still taken for an adapter's")
	}
}

// A base model whose calls are shorter than an adapter's load time does not stay at one endpoint because they overlap.
func TestShortOverlappingCallsToTheBaseModelSpread(t *testing.T) {
	w := newWorld(8, 4)
	var inFlight []Claim
	late := map[int32]int{}
	for i := range 100 { // 20 a second, each for half a second
		c := w.serve("base", uint64(i))
		inFlight = append(inFlight, c)
		if i >= 60 {
			late[c.Endpoint]++
		}
		if len(inFlight) > 10 {
			w.Release(&inFlight[0], Answered, w.now)
			inFlight = inFlight[1:]
		}
		w.now += 42 * time.Millisecond
		for n := range int32(8) {
			w.read(n, w.InFlight(n))
		}
	}
	for e, n := range late {
		if n > 20 {
			t.Errorf("of 40 calls after 3 s %d went to endpoint %d of 8", n, e)
		}
	}
}

// While it is unknown whether a name is an adapter's, only its first calls go to one endpoint: a picker that has just
// started does not know the name of its base model either.
func TestCallsWithAnUnknownNameGatherNoCrowd(t *testing.T) {
	w := newWorld(4, 4)
	at := map[int32]int{}
	for i := range 40 {
		at[w.serve("unknown", uint64(i)).Endpoint]++
		if i == maxUnproven-1 && len(at) != 1 {
			t.Errorf("the first calls went to %d endpoints, want one", len(at))
		}
	}
	for e, n := range at {
		if n > 40/4+maxUnproven {
			t.Errorf("%d of 40 calls went to endpoint %d of 4", n, e)
		}
	}
}

// Full slots rule out no endpoint for a name that may be the base model's. Else all such calls would go to the one
// endpoint where the name is in flight, beyond any bound.
func TestFullSlotsRuleOutProvenAdaptersOnly(t *testing.T) {
	w := newWorld(4, 1)
	for n := range int32(4) {
		name := fmt.Sprint("adapter-", n)
		w.read(n, 0, name)
		w.Reserve(n, w.now, callFor(name, 10), 10)
	}
	spread := map[int32]int{}
	for i := range 40 {
		spread[w.serve("base", uint64(i)).Endpoint]++
	}
	for e, n := range spread {
		if n > 20 {
			t.Errorf("%d of 40 calls went to endpoint %d of 4", n, e)
		}
	}
	for _, r := range w.Explain(w.of(callFor("base", 10)), w.now) {
		if r.Class == ClassNoSlot {
			t.Errorf("endpoint %d is explained to be ruled out as %q", r.Endpoint, r.Class)
		}
	}
}

// A base model whose calls are too short to appear in any reading is picked for by load all the same.
func TestShortCallsToTheBaseModelSpread(t *testing.T) {
	w := newWorld(8, 4)
	spread := map[int32]int{}
	for i := range 80 {
		c := w.serve("base", uint64(i))
		spread[c.Endpoint]++
		w.now += 5 * time.Millisecond
		w.Release(&c, Answered, w.now)
		w.read(c.Endpoint, 0)
	}
	for e, n := range spread {
		if n > 25 {
			t.Errorf("%d of 80 short calls to the base model went to endpoint %d of 8", n, e)
		}
	}
}

func TestAdaptersWithoutSlotsAreNone(t *testing.T) {
	v := viewOf(make([]endpoint, 4))
	v.Observe(0, s, &Reading{At: s, Running: 1})
	if id := v.Reserve(0, s, callFor("sql", 10), 10).adapter.id; id != none {
		t.Error("a pool whose servers tell of no slots has adapters")
	}
}

func TestLongAdapterNames(t *testing.T) {
	long := strings.Repeat("x", 10<<10)
	w := newWorld(4, 2)
	w.read(0, 0, long)
	for i := range 100 {
		w.serve(long+fmt.Sprint(i), uint64(i))
	}
	if len(w.adapters.ids) != 0 {
		t.Errorf("%d names of 10 KB are remembered", len(w.adapters.ids))
	}
}

// Names that clients make up are forgotten, and names from readings are bounded.
func TestNamesAreBounded(t *testing.T) {
	w := newWorld(4, 2)
	for i := range 10_000 {
		c := w.serve(fmt.Sprint("made-up-", i), uint64(i))
		w.Release(&c, Answered, w.now)
	}
	if len(w.adapters.ids) != 0 {
		t.Errorf("%d made-up names are left", len(w.adapters.ids))
	}
	for i := range 3 * mostNames {
		w.read(int32(i%4), 0, fmt.Sprint("adapter-", i))
	}
	if len(w.adapters.ids) > mostNames || len(w.adapters.names) > mostNames {
		t.Errorf("%d names are remembered, want at most %d", len(w.adapters.ids), mostNames)
	}
}

// Whatever happens, holders and residents agree, and calls add up.
func TestAdapterBooks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	w := newWorld(5, 2)
	var held []Claim
	for step := range 20_000 {
		name := fmt.Sprint("adapter-", rnd.IntN(12))
		switch rnd.IntN(7) {
		case 0, 1, 2:
			held = append(held, w.serve(name, uint64(step)))
		case 3:
			w.read(int32(rnd.IntN(5)), rnd.IntN(2), name)
		case 4:
			w.Restarted(int32(rnd.IntN(5)))
		default:
			if len(held) > 0 {
				i := rnd.IntN(len(held))
				if rnd.IntN(4) == 0 {
					w.Move(&held[i], int32(rnd.IntN(5)), 0, w.now)
				}
				w.Release(&held[i], Outcome(rnd.IntN(3)), w.now)
				held = append(held[:i], held[i+1:]...)
			}
		}
	}
	for i := range held {
		w.Release(&held[i], Answered, w.now)
	}
	for n, s := range w.adapters.slots {
		for _, r := range s.resident {
			if r.calls != 0 {
				t.Errorf("endpoint %d: %d calls of %s after all have ended", n, r.calls, w.adapters.names[r.id].name)
			}
			found := 0
			for _, h := range w.adapters.names[r.id].holders {
				if int(h) == n {
					found++
				}
			}
			if found != 1 {
				t.Errorf("endpoint %d is %d times among the holders of %s", n, found, w.adapters.names[r.id].name)
			}
		}
	}
	for name, id := range w.adapters.ids {
		if w.adapters.names[id].calls != 0 {
			t.Errorf("%d calls of %s after all have ended", w.adapters.names[id].calls, name)
		}
	}
}
