package poolstate

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// reserved is what another picker tells of a call to the first endpoint.
func reserved(call uint64, facts *request.Facts) *Event {
	return &Event{Kind: Reserved, Pool: llama, Call: call, Endpoint: addressOf("10.0.0.1:8000"), Facts: *facts, Uncached: facts.PromptTokens()}
}

func released(call uint64) *Event {
	return &Event{Kind: Released, Pool: llama, Call: call, Outcome: Answered}
}

// A server counts a call before another picker tells of it. Its reading waits, so that the call is not taken for one of
// others, whose prompts would take room in the index.
func TestReadingsWaitForWhatIsTold(t *testing.T) {
	clock := &testClock{}
	var due []func()
	f := New(Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Clock: func() time.Duration { return clock.now },
		After: func(d time.Duration, do func()) {
			if d == toldWithin {
				due = append(due, do)
			}
		},
	})
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	p := f.Pool(llama)
	counted := int64(0)
	read := func() {
		p.Observe(addressOf("10.0.0.1:8000"), modelmetrics.Reading{
			Running: 2, WaitingSplit: true, CapacityTokens: 200 * 64, FirstTokens: counted, FirstTokenSeconds: float64(counted),
			ComputedTokens: counted * 50 * 64, Ended: max(0, counted-2),
		}, 0)
	}
	f.Apply("other", reserved(1, prompt(9, 50)))
	f.Apply("other", released(1))
	for call := uint64(2); call < 20; call += 2 {
		counted += 2
		read() // before the calls that it counts are told
		for i := range uint64(2) {
			f.Apply("other", reserved(call+i, prompt(i, 50)))
		}
		clock.now += toldWithin
		for _, do := range due {
			do()
		}
		due = due[:0]
		for i := range uint64(2) {
			f.Apply("other", released(call+i))
		}
		clock.now += followedFor - 2*toldWithin
	}
	if got := heldAt(t, p, prompt(9, 50), "10.0.0.1:8000") / 64; got < 49 {
		t.Errorf("of the first prompt %d blocks are left, want 50: three prompts have room", got)
	}
}

// recorder keeps what a picker tells.
type recorder struct{ events []Event }

func (*recorder) Process() string { return "recorder" }
func (*recorder) Followed() bool  { return true }
func (r *recorder) Tell(e *Event) { r.events = append(r.events, *e) }

// A follower takes an endpoint to have of a prompt what the picker takes it to have that tells of the call, although it hears
// of the call's begin and end in one moment.
func TestFollowersKeepWhatWasPrefilled(t *testing.T) {
	const a, b = "10.0.0.1:8000", "10.0.0.2:8000"
	long := prompt(1, oneSecond)
	ends := func(r *Reservation, c *testClock, after time.Duration, outcome Outcome) uint64 {
		id := r.ID()
		c.now += after
		r.Release(outcome)
		return id
	}
	for name, tt := range map[string]struct {
		do   func(p *Pool, c *testClock)
		want int // blocks of long at a
	}{
		"answered at once": {func(p *Pool, c *testClock) { ends(pickAt(t, p, a, long), c, 0, Answered) }, oneSecond},
		"streamed":         {func(p *Pool, c *testClock) { ends(pickAt(t, p, a, long), c, 2*time.Second, Ended) }, oneSecond},
		"streamed, and the next turn": {func(p *Pool, c *testClock) {
			ends(pickAt(t, p, a, prompt(1, oneSecond-5)), c, 2*time.Second, Ended)
			ends(pickAt(t, p, a, long), c, 50*time.Millisecond, Ended)
		}, oneSecond},
		"broken off": {func(p *Pool, c *testClock) { p.BrokenOff(ends(pickAt(t, p, a, long), c, part, Ended)) }, inPart},
		"broken off, which is reported first": {func(p *Pool, c *testClock) {
			r := pickAt(t, p, a, long)
			p.BrokenOff(r.ID())
			ends(r, c, part, Ended)
		}, inPart},
		"abandoned": {func(p *Pool, c *testClock) { ends(pickAt(t, p, a, long), c, part, Abandoned) }, 0},
		"failed":    {func(p *Pool, c *testClock) { ends(pickAt(t, p, a, long), c, 2*time.Second, Failed) }, 0},
		"served elsewhere": {func(p *Pool, c *testClock) {
			r := pickAt(t, p, b, long)
			r.Served(addressOf(a))
			ends(r, c, 2*time.Second, Ended)
		}, oneSecond},
	} {
		t.Run(name, func(t *testing.T) {
			told, clock := &recorder{}, &testClock{}
			f := New(Options{
				Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1, Clock: func() time.Duration { return clock.now }, Teller: told,
			})
			f.SetPool(pool.Pool{Name: llama}, numbered(2))
			tt.do(f.Pool(llama), clock)
			follower, _ := newFleet(t)
			follower.SetPool(pool.Pool{Name: llama}, numbered(2))
			for i := range told.events {
				follower.Apply("other", &told.events[i])
			}
			for who, p := range map[string]*Pool{"the picker": f.Pool(llama), "the follower": follower.Pool(llama)} {
				if got := (heldAt(t, p, long, a) + selection.BlockTokens - 1) / selection.BlockTokens; got != tt.want {
					t.Errorf("%s takes the endpoint to have %d blocks, want %d", who, got, tt.want)
				}
			}
		})
	}
}

// A follower takes a server's speed from the picker that picks, which tells it every five seconds, and from no reading: by what
// it hears, a call takes no time. A picker that picks itself believes its own readings.
func TestFollowersTakeSpeedsAsTold(t *testing.T) {
	const a = "10.0.0.1:8000"
	told, clock := &recorder{}, &testClock{}
	f := New(Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1, Clock: func() time.Duration { return clock.now }, Teller: told,
	})
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	p := f.Pool(llama)
	var due []func()
	follower := New(Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1, Clock: func() time.Duration { return clock.now },
		After: func(_ time.Duration, do func()) { due = append(due, do) },
	})
	follower.SetPool(pool.Pool{Name: llama}, numbered(1))
	var served int64
	reading := func() modelmetrics.Reading {
		return modelmetrics.Reading{
			WaitingSplit: true, CapacityTokens: 1 << 20, FirstTokens: served, FirstTokenSeconds: float64(served), ComputedTokens: served * 4000,
		}
	}
	hear := func() (speeds int) {
		for i := range told.events {
			if told.events[i].Kind == Learned {
				speeds++
			}
			follower.Apply("other", &told.events[i])
		}
		told.events = nil
		return speeds
	}
	speeds := 0
	for i := range 20 { // seconds, with a call of 4,000 tokens a second that takes one
		r := pickAt(t, p, a, prompt(uint64(i), 4000/selection.BlockTokens))
		clock.now += time.Second
		served++
		p.Observe(addressOf(a), reading(), 0)
		r.Release(Answered)
		speeds += hear()
		follower.Pool(llama).Observe(addressOf(a), reading(), 0)
		for _, do := range due {
			do()
		}
		due = nil
		if of := follower.Pool(llama).choice.Learned(0, clock.now); speeds == 0 && of.Seconds > 0 {
			t.Errorf("before any speed is told the follower takes %v for observed", of)
		}
	}
	want, got := p.choice.Learned(0, clock.now), follower.Pool(llama).choice.Learned(0, clock.now)
	if speeds < 3 || speeds > 5 {
		t.Errorf("speeds were told %d times in 20 s, want about 4 times", speeds)
	}
	if want.Seconds == 0 {
		t.Fatal("the picker has learned no speed")
	}
	if rate := want.Tokens / want.Seconds; got.Seconds == 0 || got.Tokens/got.Seconds < 0.9*rate || got.Tokens/got.Seconds > 1.1*rate {
		t.Errorf("the follower takes %v for observed, and the picker %v", got, want)
	}
	pickAt(t, follower.Pool(llama), a, prompt(99, 1)).Release(Answered)
	follower.Apply("other", &Event{Kind: Learned, Pool: llama, Endpoint: addressOf(a), Speed: selection.Learned{Tokens: 1e6, Seconds: 29}})
	if now := follower.Pool(llama).choice.Learned(0, clock.now); now != got {
		t.Errorf("a picker that picks believes another one that it observed %v; it had %v", now, got)
	}
}

// However many calls another picker tells of, and never of their ends, a pool follows so many, and keeps so much of them.
func TestFollowedCallsAreBounded(t *testing.T) {
	f, _ := newFleet(t)
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	long := prompt(1, request.MaxBlocks)
	for call := range uint64(mostTheirs + 10) {
		f.Apply("other", reserved(call, long))
		f.Apply("other", reserved(call, long)) // told twice
	}
	p := f.Pool(llama)
	if got := p.choice.InFlight(0); got != mostTheirs {
		t.Errorf("%d calls are followed, want %d", got, mostTheirs)
	}
	if got := f.theirs.Taken(); got > maxTheirs {
		t.Errorf("their blocks have %d bytes, want %d at most", got, maxTheirs)
	}
	for call := range uint64(100) {
		f.Apply("other", released(call))
	}
	f.Lost("other")
	if calls, bytes := p.choice.InFlight(0), f.theirs.Taken(); calls != 0 || bytes != 0 {
		t.Errorf("%d calls and %d bytes are left", calls, bytes)
	}
	f.Apply("other", reserved(1, long))
	f.RemovePool(llama)
	if bytes := f.theirs.Taken(); bytes != 0 {
		t.Errorf("a pool that is gone leaves %d bytes", bytes)
	}
}

// due is a clock that moves, with what is to happen at its times.
type due struct {
	now    time.Duration
	timers []timer
}

type timer struct {
	at time.Duration
	do func()
}

func (d *due) after(long time.Duration, do func()) {
	d.timers = append(d.timers, timer{d.now + long, do})
}

// to moves the clock, and does what is due until then, in order.
func (d *due) to(at time.Duration) {
	for {
		slices.SortStableFunc(d.timers, func(a, b timer) int { return cmp.Compare(a.at, b.at) })
		if len(d.timers) == 0 || d.timers[0].at > at {
			break
		}
		next := d.timers[0]
		d.timers = d.timers[1:]
		d.now = max(d.now, next.at)
		next.do()
	}
	d.now = max(d.now, at)
}

// newDue makes a fleet with a clock that moves, and a pool of the endpoint 10.0.0.1:8000.
func newDue() (*Fleet, *due) {
	d := &due{}
	f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1, Clock: func() time.Duration { return d.now }, After: d.after})
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	return f, d
}

const ms = time.Millisecond

// When another picker's calls end, no reading that waits overtakes a later one: counters would go back, and an old number of
// restarts would make the pool forget what the new server has.
func TestReadingsKeepTheirOrder(t *testing.T) {
	f, clock := newDue()
	p, e := f.Pool(llama), addressOf("10.0.0.1:8000")
	f.Apply("other", reserved(1, prompt(9, 50)))
	f.Apply("other", released(1))
	read := func(at time.Duration, restarts int) {
		clock.to(at)
		p.Observe(e, modelmetrics.Reading{Restarts: restarts, CapacityTokens: 200 * 64, FirstTokens: int64(at / ms)}, 0)
	}
	read(1500*ms, 0)
	read(1950*ms, 0)
	read(2050*ms, 1)
	r, _ := pick(t, p, prompt(3, 50))
	r.Release(Answered)
	clock.to(2300 * ms)
	if got := heldAt(t, p, prompt(3, 50), "10.0.0.1:8000") / 64; got < 49 {
		t.Errorf("%d blocks of the prompt that the new server has are left, want 50", got)
	}
	if got := p.slots[0].stored.firstAnswered; got != 2050 {
		t.Errorf("the last reading is that of %d ms, want 2050", got)
	}
}

// A reading that waits is not taken for another server that has the address by then.
func TestReadingOfTheServerBefore(t *testing.T) {
	f, clock := newDue()
	p, e := f.Pool(llama), addressOf("10.0.0.1:8000")
	f.Apply("other", reserved(1, prompt(9, 50)))
	f.Apply("other", released(1))
	clock.to(time.Second)
	p.Observe(e, modelmetrics.Reading{Running: 7, CapacityTokens: 10 * 64, FirstTokens: 1000}, 0)
	f.SetPool(pool.Pool{Name: llama}, []pool.Endpoint{{Address: e, Process: "another"}})
	clock.to(2 * time.Second)
	if s := &p.slots[p.byAddr[e]]; s.observed != nil || s.blocks != 0 {
		t.Errorf("the new server has the capacity %d of the one before", s.blocks)
	}
}

// A picker that takes over a pool counts its own calls at once: a reading that waited was taken before them.
func TestOwnCallsAfterATakeover(t *testing.T) {
	f, clock := newDue()
	p, e := f.Pool(llama), addressOf("10.0.0.1:8000")
	f.Apply("other", reserved(1, prompt(9, 1)))
	f.Apply("other", released(1))
	for _, at := range []time.Duration{500 * ms, 900 * ms} {
		clock.to(at)
		p.Observe(e, modelmetrics.Reading{WaitingSplit: true, CapacityTokens: 1 << 20}, 0)
	}
	for i := range uint64(10) {
		clock.to(clock.now + ms)
		pick(t, p, prompt(100+i, 200))
	}
	clock.to(1160 * ms)
	if got := p.choice.Queue(0, clock.now); got < 9*200*64 {
		t.Errorf("%.0f tokens wait, want those of ten calls", got)
	}
}

// However calls, endpoints, pools and pickers come and go, nothing is left in the end.
func TestFollowedCallsLeaveNothing(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		f, clock := newDue()
		address := func() netip.AddrPort { return numbered(5)[rnd.IntN(5)].Address }
		set := func() {
			var out []pool.Endpoint
			for _, e := range numbered(5) {
				if rnd.IntN(4) > 0 {
					e.Process = fmt.Sprint(rnd.IntN(10) / 7)
					out = append(out, e)
				}
			}
			f.SetPool(pool.Pool{Name: llama}, out)
		}
		var own []*Reservation
		for range 600 {
			clock.to(clock.now + time.Duration(rnd.IntN(300))*ms)
			from, call := fmt.Sprint(rnd.IntN(2)), uint64(rnd.IntN(30))
			facts := prompt(uint64(rnd.IntN(10)), rnd.IntN(60))
			switch n := rnd.IntN(400); {
			case n < 10:
				set()
			case n < 13:
				f.Lost(from)
			case n < 14:
				f.RemovePool(llama)
				set()
			case n < 50:
				f.Pool(llama).Observe(address(), modelmetrics.Reading{
					Running: rnd.IntN(5), Restarts: rnd.IntN(20) / 19, CapacityTokens: 64 * int64(rnd.IntN(200)), FirstTokens: int64(rnd.IntN(1000)), BlockTokens: 16,
				}, 0)
			case n < 110:
				r := &Reservation{}
				if _, err := f.Pool(llama).Pick(&Call{Facts: facts}, r); err == nil {
					own = append(own, r)
				}
			case n < 150 && len(own) > 0:
				own[0].Served(address())
				own[0].Release(Outcome(rnd.IntN(6)))
				own = own[1:]
			case n < 250:
				e := reserved(call, facts)
				e.Endpoint = address()
				f.Apply(from, e)
			default:
				f.Apply(from, &Event{Kind: EventKind(rnd.IntN(7)), Pool: llama, Call: call, Endpoint: address(), Outcome: Outcome(rnd.IntN(8))})
			}
		}
		for _, r := range own {
			r.Release(Answered)
		}
		f.Lost("0")
		f.Lost("1")
		p := f.Pool(llama)
		f.SetPool(pool.Pool{Name: llama}, nil)
		clock.to(clock.now + time.Hour)
		if f.theirs.Taken() != 0 || f.doubted.Taken() != 0 || len(p.byAddr) != 0 || len(p.free) != len(p.slots) || len(clock.timers) > 0 {
			t.Fatalf("seed %d leaves %d and %d bytes, %d addresses, %d of %d slots, %d timers", seed, f.theirs.Taken(), f.doubted.Taken(), len(p.byAddr),
				len(p.slots)-len(p.free), len(p.slots), len(clock.timers))
		}
	}
}

// A pool tells which pickers pick for it, and since when. A pause begins anew, and a lost picker is told no more.
func TestStints(t *testing.T) {
	clock := &testClock{}
	f := New(Options{Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Clock: func() time.Duration { return clock.now }})
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	p := f.Pool(llama)
	call := uint64(0)
	theirs := func(from string) {
		call++
		f.Apply(from, reserved(call, prompt(1, 1)))
	}
	want := func(want ...Stint) {
		t.Helper()
		got := p.Snapshot().Stints
		slices.SortFunc(got, func(a, b Stint) int { return cmp.Compare(a.Process, b.Process) })
		if !slices.Equal(got, want) {
			t.Errorf("at %s: %v, want %v", clock.now, got, want)
		}
	}
	want()
	for range 5 {
		theirs("a")
		clock.now += time.Second
	}
	want(Stint{"a", 0, 4 * time.Second})
	pick(t, p, prompt(2, 1))
	theirs("b")
	want(Stint{"", 5 * time.Second, 5 * time.Second}, Stint{"a", 0, 4 * time.Second}, Stint{"b", 5 * time.Second, 5 * time.Second})
	f.Lost("b")
	clock.now = 7 * time.Second
	theirs("a")
	want(Stint{"", 5 * time.Second, 5 * time.Second}, Stint{"a", 7 * time.Second, 7 * time.Second})
	clock.now = 15 * time.Second
	want(Stint{"a", 7 * time.Second, 7 * time.Second})
}

// Where a pool is split, pickers that picked for it of late share its endpoints, and tell of each call soon.
func TestASplitPoolIsShared(t *testing.T) {
	for name, tt := range map[string]struct {
		split            bool
		quiet            time.Duration // since the other picker's last pick
		wantSoon, wantIt bool
	}{
		"split":                          {split: true, wantSoon: true, wantIt: true},
		"split, and the other is quiet":  {split: true, quiet: stintShown + time.Second},
		"not split":                      {},
		"not split, but picked for here": {quiet: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			told, clock := &recorder{}, &testClock{}
			f := New(Options{
				Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: 1, Clock: func() time.Duration { return clock.now }, Teller: told,
			})
			f.SetPool(pool.Pool{Name: llama}, numbered(8))
			settings := picksettings.Defaults()
			settings.Split = tt.split
			f.Configure(llama, settings)
			f.Apply("other", reserved(1, prompt(1, 50)))
			f.Apply("other", released(1))
			clock.now += tt.quiet
			p := f.Pool(llama)
			var r Reservation
			decision, err := p.Pick(&Call{Facts: prompt(2, 50), Explained: true}, &r)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Release(Answered)
			if soon := told.events[0].Soon; soon != tt.wantSoon {
				t.Errorf("the call is to be told soon: %t, want %t", soon, tt.wantSoon)
			}
			theirs := 0
			for _, row := range decision.Ranking {
				if row.Pickers > 0 {
					theirs++
				}
			}
			if (theirs > 0) != tt.wantIt {
				t.Errorf("%d of the ranked endpoints are the other picker's", theirs)
			}
			if p.Snapshot().Split != tt.split {
				t.Error("the pool's state does not tell whether it is split")
			}
		})
	}
}

// teller is a picker whose events other pickers hear when hear is called.
type teller struct {
	recorder
	name string
}

func (t *teller) Process() string { return t.name }

// Three pickers pick for a split pool, and know its endpoints in different orders. Of calls that come to all at the same instant
// none goes where another picker's goes; and of a burst that comes to one, others' endpoints are left to what may come to the others.
func TestPickersOfASplitPoolLeaveEachOtherEndpoints(t *testing.T) {
	const pickers, endpoints = 3, 12
	clock := &testClock{now: time.Minute}
	var all []*Fleet
	var tellers []*teller
	for i := range pickers {
		told := &teller{name: fmt.Sprint("picker-", i)}
		f := New(Options{
			Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Seed: uint64(i), Clock: func() time.Duration { return clock.now }, Teller: told,
		})
		members := numbered(endpoints)
		rand.New(rand.NewPCG(1, uint64(i))).Shuffle(endpoints, func(a, b int) { members[a], members[b] = members[b], members[a] })
		f.SetPool(pool.Pool{Name: llama}, members)
		settings := picksettings.Defaults()
		settings.Split = true
		f.Configure(llama, settings)
		all, tellers = append(all, f), append(tellers, told)
	}
	var inFlight []*Reservation
	hear := func() { // and all calls end, a second later
		clock.now += time.Second
		for _, r := range inFlight {
			r.Release(Answered)
		}
		inFlight = nil
		for i, from := range tellers {
			for k, f := range all {
				for e := range from.events {
					if k != i {
						f.Apply(from.name, &from.events[e])
					}
				}
			}
			from.events = nil
		}
	}
	prompts := uint64(0)
	picks := func(f *Fleet) string {
		prompts++
		r := &Reservation{}
		if _, err := f.Pool(llama).Pick(&Call{Facts: prompt(prompts, 100)}, r); err != nil {
			t.Fatal(err)
		}
		inFlight = append(inFlight, r)
		return r.texts[0]
	}
	for range 40 { // so that each knows that the others pick, as often as it does
		for _, f := range all {
			picks(f)
		}
		hear()
	}
	owned := map[string]int{}
	for _, f := range all {
		p := f.Pool(llama)
		for n := range p.slots {
			if p.choice.Own(int32(n)) {
				owned[p.slots[n].text]++
			}
		}
	}
	for endpoint, by := range owned {
		if by != 1 {
			t.Errorf("%s belongs to %d pickers", endpoint, by)
		}
	}
	if len(owned) != endpoints {
		t.Errorf("%d of %d endpoints belong to a picker", len(owned), endpoints)
	}
	clock.now += 5 * time.Second
	went := map[string]int{}
	for i, f := range all {
		to := picks(f)
		if other, taken := went[to]; taken {
			t.Errorf("pickers %d and %d send calls of the same instant to %s", other, i, to)
		}
		went[to] = i
	}
	hear()
	clock.now += 5 * time.Second
	burst := map[string]int{}
	for range 2 * endpoints / pickers {
		burst[picks(all[0])]++
	}
	if want := endpoints / pickers; len(burst) != want {
		t.Errorf("as many calls as two for each endpoint of its own go to %d endpoints, want its %d", len(burst), want)
	}
}
