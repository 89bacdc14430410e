package admission

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// rate is a server's speed in these tests, in tokens a second, and mean is what a call brings on average, in tokens.
const rate, mean = 8000, 1000

func call(flow string, work float64) *Call {
	return &Call{Flow: flow, Tenant: flow, Weight: 1, Work: work, Cost: work, Bytes: 1}
}

// add adds calls at a time.
func (l *Line) add(now time.Duration, calls ...*Call) {
	l.Tick(now, mean)
	for _, c := range calls {
		c.At = now
		l.Add(c)
	}
}

// serve serves the next call; nil where none waits.
func (l *Line) serve() (next *Call) {
	l.Next(1, func(c *Call) bool { next = c; return false })
	if next != nil {
		l.Serve(next)
	}
	return next
}

func TestShortestFirst(t *testing.T) {
	var l Line
	long, short, middle := call("a", 3000), call("a", 100), call("a", 2000)
	l.add(0, long, short, middle)
	if l.Len() != 3 || l.Work() != 5100 {
		t.Errorf("%d calls with %g tokens wait", l.Len(), l.Work())
	}
	for i, want := range []*Call{short, middle, long, nil} {
		if got := l.serve(); got != want {
			t.Errorf("call %d has %+v, want %+v", i, got, want)
		}
	}
	if l.Len() != 0 || l.Work() != 0 || short.Waits() {
		t.Errorf("%d calls with %g tokens wait in the end", l.Len(), l.Work())
	}
}

// A long call is overtaken by shorter ones only of a limited time.
func TestNoCallStarves(t *testing.T) {
	var l Line
	long := call("a", 4000) // half a second
	l.add(0, long)
	second := time.Duration(0)
	for ; long.Waits() && second < time.Hour; second += time.Second {
		l.add(second, call("a", 100))
		l.serve()
	}
	overtaken := time.Duration((4000.0 - 100) / mean * float64(Overtaken))
	if second < overtaken-time.Second || second > overtaken+2*time.Second {
		t.Errorf("the long call went after %s, want about %s", second, overtaken)
	}
}

// Of equal age, calls of different length differ by their work, whatever calls brought on average before.
func TestAgeDoesNotDependOnTheMeanNow(t *testing.T) {
	var l Line
	l.Tick(1000*time.Hour, 1e6)
	l.add(1000*time.Hour, call("a", 200))
	l.Tick(1000*time.Hour, 10)
	short := call("a", 100)
	l.add(1000*time.Hour, short)
	if got := l.serve(); got != short {
		t.Errorf("%+v goes first", got)
	}
}

// Callers get what calls cost by their weights, whatever they ask for, and however their calls are long.
func TestCallersShare(t *testing.T) {
	var l Line
	rnd := rand.New(rand.NewPCG(1, 2))
	weights := map[string]float64{"one": 1, "same": 1, "two": 2, "half": 0.5}
	length := map[string]float64{"one": 100, "same": 4000, "two": 500, "half": 1000}
	had := map[string]float64{}
	sum := 0.0
	fill := func(flow string) {
		c := call(flow, length[flow]*(0.5+rnd.Float64()))
		c.Weight, c.Cost = weights[flow], 2*c.Work
		l.add(0, c)
	}
	for flow := range weights {
		for range 50 {
			fill(flow)
		}
	}
	for range 20_000 {
		c := l.serve()
		had[c.Flow] += c.Cost
		sum += c.Cost
		fill(c.Flow)
	}
	for flow, weight := range weights {
		if want := weight / 4.5; had[flow]/sum < 0.97*want || had[flow]/sum > 1.03*want {
			t.Errorf("%s has %.3f of all, want %.3f", flow, had[flow]/sum, want)
		}
	}
}

// A tenant gets no more by calling under many names, whether these wait together or come and go.
func TestManyNamesOfOneTenant(t *testing.T) {
	for name, tt := range map[string]struct{ names, waiting int }{
		"ten that wait":                {10, 10},
		"fifty that come and go":       {50, 1},
		"a thousand that come and go":  {1000, 3},
		"more than are told apart":     {2 * mostFlows, 5},
		"one that is always the same":  {1, 1},
		"ten of which some wait":       {10, 2},
		"a hundred that all wait once": {100, 100},
	} {
		t.Run(name, func(t *testing.T) {
			var l Line
			next, waiting, honest := 0, 0, 0
			for range 2000 {
				for l.Waiting(call("honest", 100)) < 2 {
					l.add(0, call("honest", 100))
				}
				for ; waiting < tt.waiting; waiting++ {
					c := call(fmt.Sprint("name ", next%tt.names), 100)
					c.Tenant = "hog"
					next++
					l.add(0, c)
				}
				var served *Call
				l.Next(1, func(c *Call) bool { served = c; return false })
				s := l.Serve(served)
				if served.Tenant == "honest" {
					honest++
				} else {
					waiting--
					l.Charge(s, 50)
					l.Charge(s, -50)
				}
			}
			if honest < 950 || honest > 1050 {
				t.Errorf("the other tenant has %d of 2000 turns, want half", honest)
			}
		})
	}
}

// The callers of a tenant share what the tenant has by their weights.
func TestCallersOfOneTenant(t *testing.T) {
	var l Line
	for range 1000 {
		for _, flow := range []string{"one", "three"} {
			c := call(flow, 100)
			c.Tenant = "tenant"
			if flow == "three" {
				c.Weight = 3
			}
			l.add(0, c)
		}
	}
	three := 0
	for range 400 {
		if l.serve().Flow == "three" {
			three++
		}
	}
	if three < 295 || three > 305 {
		t.Errorf("a caller of three times the weight has %d of 400 turns", three)
	}
}

// What was counted long ago, or was absurd, does not make later costs too small to count.
func TestCountsStayExact(t *testing.T) {
	var l Line
	for range 100 {
		for _, flow := range []string{"a", "b"} {
			c := call(flow, 100)
			c.Cost = 1e18
			l.add(0, c)
		}
		l.serve()
		l.serve()
	}
	had := map[string]float64{}
	for range 2000 {
		for flow, cost := range map[string]float64{"a": 100, "b": 5000} {
			c := call(flow, cost)
			if l.Waiting(c) < 2 {
				l.add(0, c)
			}
		}
		c := l.serve()
		had[c.Flow] += c.Cost
	}
	if q := had["a"] / had["b"]; q < 0.9 || q > 1.1 {
		t.Errorf("of equal callers one has %.2f times what the other has", q)
	}
}

// Who had nothing waiting gets no credit for it, and who has had much does not lose it by a pause.
func TestCallersThatComeAndGo(t *testing.T) {
	var l Line
	for range 1000 {
		l.add(0, call("steady", 100))
	}
	for range 500 {
		l.serve()
	}
	for range 100 {
		l.add(0, call("late", 100))
	}
	got := map[string]int{}
	for range 100 {
		got[l.serve().Flow]++
	}
	if got["late"] < 49 || got["late"] > 51 {
		t.Errorf("one that comes late has %d of 100 turns", got["late"])
	}
	big := call("late", 50_000)
	l.add(0, big)
	for big.Waits() {
		l.serve()
	}
	l.add(0, call("late", 1))
	for range 100 {
		if l.serve().Flow == "late" {
			t.Fatal("one that has just had 50,000 tokens is served at once when it comes again")
		}
	}
}

// What a call has really cost counts.
func TestCharge(t *testing.T) {
	var l Line
	for range 200 {
		l.add(0, call("long answers", 100), call("short answers", 100))
	}
	got := map[string]int{}
	for range 120 {
		var c *Call
		l.Next(1, func(next *Call) bool { c = next; return false })
		got[c.Flow]++
		if s := l.Serve(c); c.Flow == "long answers" {
			l.Charge(s, 200)
		}
	}
	if got["long answers"] < 28 || got["long answers"] > 32 {
		t.Errorf("one whose calls cost three times as much has %d of 120 turns, want 30", got["long answers"])
	}
}

func TestPriorities(t *testing.T) {
	var l Line
	low, usual, high := call("a", 1), call("a", 1000), call("a", 4000)
	low.Priority, high.Priority = -1, 5
	l.add(0, low, usual, high)
	if !l.Above(5) || l.Above(6) || !l.Above(-1) {
		t.Error("Above is wrong")
	}
	for _, want := range []*Call{high, usual, low} {
		if got := l.serve(); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if l.Above(-10) {
		t.Error("calls wait in the end")
	}
}

func TestReclass(t *testing.T) {
	var l Line
	first, second := call("a", 4000), call("a", 100)
	l.add(0, first)
	l.add(time.Hour, second)
	l.Reclass(second, 3, 7)
	if second.Weight != 3 || second.Priority != 7 || l.Len() != 2 || l.Work() != 4100 {
		t.Errorf("%+v in a line of %d", second, l.Len())
	}
	l.Reclass(second, 1, 0)
	if got := l.serve(); got != first { // which has waited for an hour
		t.Errorf("%+v goes first", got)
	}
}

// Who makes room: of the lowest priority, the last call of the caller with the most memory for its weight.
func TestLast(t *testing.T) {
	var l Line
	if l.Last() != nil {
		t.Error("an empty line has a last call")
	}
	high := call("hog", 1)
	high.Priority, high.Bytes = 1, 1000
	long, short, other := call("hog", 500), call("hog", 100), call("other", 900)
	l.add(0, high, long, short, other)
	for _, want := range []*Call{long, other, short, high} {
		got := l.Last()
		if want == other && got == short { // they have as much
			want, got = short, short
		}
		if got.Priority != want.Priority || want == long && got != long || want == high && got != high {
			t.Errorf("got %+v, want %+v", got, want)
		}
		l.Remove(got)
	}
}

// However many callers come, a bounded number is told apart, and each call is served.
func TestManyCallers(t *testing.T) {
	var l Line
	for i := range 5 * mostTenants {
		l.add(0, call(fmt.Sprint(i), 100))
		c := call(fmt.Sprint(i), 100)
		c.Tenant = "one"
		l.add(0, c)
	}
	if n := len(l.levels[0].tenants.all); n > mostTenants+1 {
		t.Errorf("%d tenants are told apart", n)
	}
	if n := len(l.levels[0].tenants.all["one"].flows.all); n > mostFlows+1 {
		t.Errorf("%d callers of one tenant are told apart", n)
	}
	served := 0
	for l.serve() != nil {
		served++
	}
	if served != 10*mostTenants {
		t.Errorf("%d calls were served", served)
	}
}

// An order of many calls is that of a sorted list, and its sums are those of the list.
func TestOrder(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var o order
	var all []*Call
	for i := range 5000 {
		switch {
		case len(all) > 0 && rnd.IntN(3) == 0:
			k := rnd.IntN(len(all))
			o.remove(all[k])
			all = slices.Delete(all, k, k+1)
		default:
			c := &Call{Work: float64(rnd.IntN(1000)), key: float64(rnd.IntN(300)), number: uint64(i)}
			o.add(c)
			all = append(all, c)
		}
	}
	slices.SortFunc(all, func(a, b *Call) int {
		if a.before(b) {
			return -1
		}
		return 1
	})
	var got []*Call
	o.each(func(c *Call) bool { got = append(got, c); return true })
	if !slices.Equal(got, all) || o.calls != len(all) || o.last() != all[len(all)-1] {
		t.Fatalf("the order of %d calls has %d", len(all), len(got))
	}
	for key := -1.0; key < 302; key += 7 {
		want := 0.0
		for _, c := range all {
			if c.key <= key {
				want += c.Work
			}
		}
		if got := o.ahead(key); got != want {
			t.Errorf("before %g there are %g tokens, want %g", key, got, want)
		}
	}
	o.remove(&Call{key: 5, number: 1 << 40}) // that is not in it
	for _, c := range all {
		o.remove(c)
	}
	if o.calls != 0 || o.work != 0 || o.last() != nil || len(o.chunks) != 0 {
		t.Errorf("an emptied order has %+v", o)
	}
}

// A line of 100,000 calls takes no longer for one than a line of some.
func BenchmarkLine(b *testing.B) {
	for _, n := range []int{100, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 2))
			var l Line
			for range n {
				l.add(0, call(fmt.Sprint(rnd.IntN(10)), float64(rnd.IntN(10_000))))
			}
			for b.Loop() {
				c := call(fmt.Sprint(rnd.IntN(10)), float64(rnd.IntN(10_000)))
				l.Forecast(c, 8*rate)
				l.add(0, c)
				l.serve()
			}
		})
	}
}
