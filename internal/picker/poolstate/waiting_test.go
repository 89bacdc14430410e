package poolstate

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// crowded is a pool whose clock moves by hand, and whose servers prefill 8,000 tokens a second, as is assumed.
type crowded struct {
	*testing.T
	*due
	fleet *Fleet
	pool  *Pool
	asked uint64
	all   []*asking
}

// answerAll ends all calls in flight.
func (c *crowded) answerAll() {
	for _, a := range c.all {
		if !a.waits() {
			a.r.Release(Answered)
		}
	}
}

func newCrowded(t *testing.T, endpoints int, o Options) *crowded {
	t.Helper()
	c := &crowded{T: t, due: &due{}}
	o.Metrics, o.Seed = telemetry.NewMetrics(prometheus.NewRegistry()), 1
	o.Clock, o.After = func() time.Duration { return c.now }, c.after
	c.fleet = New(o)
	c.fleet.SetPool(pool.Pool{Name: llama}, numbered(endpoints))
	c.pool = c.fleet.Pool(llama)
	return c
}

func (c *crowded) set(change func(*picksettings.Settings)) {
	settings := picksettings.Defaults()
	change(&settings)
	c.fleet.Configure(llama, settings)
}

// asking is one call that was asked for.
type asking struct {
	w   *Waiting
	r   *Reservation
	err error
}

// ask asks for a call with so many tokens, which no other call has.
func (c *crowded) ask(caller string, tokens int) *asking {
	return c.askFor(&Call{Facts: c.facts(tokens), Caller: caller, Bytes: 100})
}

func (c *crowded) facts(tokens int) *request.Facts {
	c.asked++
	return prompt(1000+c.asked, tokens/64)
}

func (c *crowded) askFor(call *Call) *asking {
	a := &asking{r: &Reservation{}}
	_, a.w, a.err = c.pool.Ask(call, a.r)
	c.all = append(c.all, a)
	return a
}

// waits says whether the call waits.
func (a *asking) waits() bool { return a.w != nil && a.w.Held() }

// gone returns the refusal's reason of a call that does not wait; "" where it was picked.
func (a *asking) gone(t *testing.T) refusal.Reason {
	t.Helper()
	if a.waits() {
		t.Fatal("the call waits")
	}
	err := a.err
	if a.w != nil {
		_, err = a.w.Wait(t.Context())
	}
	if err != nil {
		if a.r.Held() {
			t.Error("a refused call holds an endpoint")
		}
		return refusal.Of(err).Reason
	}
	if !a.r.Held() {
		t.Error("a picked call holds no endpoint")
	}
	return ""
}

func (c *crowded) wantGone(a *asking, want refusal.Reason) {
	c.Helper()
	if got := a.gone(c.T); got != want {
		c.Errorf("the call is refused as %q, want %q", got, want)
	}
}

func (c *crowded) wantWaits(a *asking) {
	c.Helper()
	if !a.waits() {
		c.Errorf("the call does not wait: %v", a.err)
	}
}

// nothingLeft checks that no call waits and that all room was given back.
func (c *crowded) nothingLeft() {
	c.Helper()
	if n := c.pool.waits.line.Len(); n != 0 || len(c.pool.waits.by) != 0 || c.fleet.waiting.Taken() != 0 {
		c.Errorf("%d calls wait, %d are known, and they have %d bytes", n, len(c.pool.waits.by), c.fleet.waiting.Taken())
	}
}

// read reads all servers, which have nothing to say of their queues.
func (c *crowded) read() {
	for _, e := range c.pool.Endpoints() {
		c.pool.Observe(e.Address, modelmetrics.Reading{At: time.Unix(0, int64(c.now)+1), KVUsage: -1}, 0)
	}
}

// A call waits while no endpoint would begin with it soon, and none waits while an endpoint is idle.
func TestCallsWaitForAnEndpoint(t *testing.T) {
	c := newCrowded(t, 2, Options{})
	first, second := c.ask("a", 16_000), c.ask("a", 16_000) // two seconds each
	c.wantGone(first, "")
	c.wantGone(second, "")
	if string(first.r.Endpoints(nil)) == string(second.r.Endpoints(nil)) {
		t.Error("both calls are at one endpoint")
	}
	third := c.ask("a", 1600)
	c.wantWaits(third)
	c.to(900 * ms)
	c.wantWaits(third)
	c.to(2 * time.Second) // within half a mean call's prefill of the end
	c.wantGone(third, "")
	c.wantGone(c.ask("a", 1600), "") // the other endpoint
	c.nothingLeft()
}

// What is sent to an endpoint can be overtaken no more, so the shortest of those that wait goes first.
func TestShortCallsGoFirst(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.ask("a", 16_000)
	long, short := c.ask("a", 20_000), c.ask("a", 800)
	for range 3000 {
		if c.to(c.now + ms); !short.waits() {
			break
		}
	}
	c.wantGone(short, "")
	c.wantWaits(long)
}

// An endpoint that was not read lately holds no call up, as the picker can only guess how fast it is.
func TestCallsDoNotWaitForAGuess(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.to(10 * time.Second)
	for range 10 {
		c.wantGone(c.ask("a", 16_000), "")
	}
	c.read()
	c.wantWaits(c.ask("a", 16_000))
}

// A server that says that its queue is endless gets one call after the other all the same.
func TestServersThatAreNeverIdle(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	for range 20 {
		c.pool.Observe(c.pool.Endpoints()[0].Address, modelmetrics.Reading{At: time.Unix(0, int64(c.now)+1), Running: 1000, Waiting: 1_000_000, WaitingSplit: true, KVUsage: 1, CapacityTokens: 1 << 20}, 0)
		a, waits := c.ask("a", 800), c.ask("a", 800)
		c.wantGone(a, "")
		c.wantWaits(waits)
		a.r.Release(Answered)
		c.wantGone(waits, "")
		waits.r.Release(Answered)
		c.to(c.now + 500*ms)
	}
}

// The end of a call lets another one go at once.
func TestCallsGoWhenOthersEnd(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	first := c.ask("a", 80_000)
	second := c.ask("a", 800)
	c.wantWaits(second)
	first.r.Release(Answered)
	c.wantGone(second, "")
}

func TestCallersWhoGo(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.ask("a", 16_000)
	leaves, stays := c.ask("a", 800), c.ask("a", 900)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := leaves.w.Wait(ctx); !errors.Is(err, context.Canceled) || leaves.r.Held() {
		t.Errorf("a caller who has gone gets %v", err)
	}
	if n := c.pool.waits.line.Len(); n != 1 {
		t.Errorf("%d calls wait, want the other one", n)
	}
	c.to(3 * time.Second)
	c.wantGone(stays, "")
	if _, err := stays.w.Wait(ctx); err != nil || !stays.r.Held() {
		t.Errorf("a call that was picked as its caller went has %v", err)
	}
	c.nothingLeft()
}

// Rules say who goes first and who gets more; those of a negative priority are refused while others wait.
func TestRules(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.set(func(s *picksettings.Settings) {
		s.Callers = "shop/* priority=5\nbatch/nightly priority=-1\n*/limited waiting=2"
	})
	id := func(namespace, account string) string {
		return "spiffe://cluster.local/ns/" + namespace + "/sa/" + account
	}
	c.ask("", 16_000)
	batch := c.ask(id("batch", "nightly"), 800) // nobody else waits
	usual := c.ask("", 8000)
	high := c.ask(id("shop", "web"), 16_000)
	c.wantWaits(batch)
	c.wantGone(c.ask(id("batch", "nightly"), 800), refusal.Shed)
	for range 2 {
		c.wantWaits(c.ask(id("any", "limited"), 800))
	}
	full := c.ask(id("any", "limited"), 800)
	c.wantGone(full, refusal.LineFull)
	if got := refusal.Of(full.err); got.RetryAfter < time.Second || got.RetryAfter > time.Minute {
		t.Errorf("a refused caller is to try again after %s", got.RetryAfter)
	}
	c.to(2100 * ms)
	c.wantGone(high, "")
	c.wantWaits(usual)
	for _, odd := range []string{"spiffe://x/ns//sa/", "spiffe://x/ns/shop/sa/web/more", "shop/web", "//////", id("shop", "")} {
		if got, _, _ := c.pool.ruleOf(&Call{Caller: odd}); got.Priority != 0 {
			t.Errorf("the identity %q has priority %d", odd, got.Priority)
		}
	}
}

// What callers say of themselves counts only where they are trusted.
func TestTrustedCallers(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.fleet.SetObjectives(llama, map[string]int{"urgent": 7, "whenever": -3})
	for _, want := range []struct {
		trust    bool
		priority int
		flow     string
	}{{false, 0, "a"}, {true, 7, "end user"}} {
		trust := want.trust
		c.set(func(s *picksettings.Settings) { s.TrustCallers = trust })
		rule, flow, _ := c.pool.ruleOf(&Call{Caller: "a", Behalf: "end user", Objective: "urgent"})
		if rule.Priority != want.priority || flow != want.flow {
			t.Errorf("trusted %v: priority %d of %q", trust, rule.Priority, flow)
		}
		if rule, flow, _ := c.pool.ruleOf(&Call{Caller: "a", Objective: "none"}); rule.Priority != 0 || flow != "a" {
			t.Errorf("trusted %v, without an objective that exists: priority %d of %q", trust, rule.Priority, flow)
		}
	}
	c.ask("", 16_000)
	first := c.askFor(&Call{Facts: c.facts(800), Caller: "a", Objective: "urgent"})
	last := c.askFor(&Call{Facts: c.facts(640), Caller: "b"})
	c.fleet.SetObjectives(llama, map[string]int{"urgent": -7}) // an edit applies to what waits
	if p := first.w.place.Priority; p != -7 {
		t.Errorf("the call has priority %d after the edit", p)
	}
	for range 3000 {
		if c.to(c.now + ms); !last.waits() {
			break
		}
	}
	c.wantGone(last, "")
	c.wantWaits(first)
	c.fleet.SetObjectives(llama, nil)
	c.fleet.SetObjectives(named("models/later"), map[string]int{"o": 1})
	c.fleet.SetPool(pool.Pool{Name: named("models/later")}, numbered(1))
	if got := c.fleet.Pool(named("models/later")).waits.objectives["o"]; got != 1 {
		t.Error("a pool that comes after its objective does not have it")
	}
}

// learnSpeed has servers prefill calls of 4,000 tokens, half a second each, until their speed is known.
func (c *crowded) learnSpeed() {
	for i := range int64(40) {
		a := c.ask("", 4000)
		c.wantGone(a, "")
		c.to(c.now + 500*ms)
		for _, e := range c.pool.Endpoints() {
			c.pool.Observe(e.Address, modelmetrics.Reading{
				At: time.Unix(0, int64(c.now)), KVUsage: -1, WaitingSplit: true, FirstTokens: i + 1, FirstTokenSeconds: 0.5 * float64(i+1),
				ComputedTokens: 4000 * (i + 1), PromptTokens: 4000 * (i + 1), Ended: i + 1, GeneratedTokens: 100 * (i + 1),
			}, 0)
		}
		a.r.Release(Answered)
	}
	if !c.pool.choice.SpeedKnown() {
		c.Fatalf("the speed is not known; it is taken to be %g", c.pool.choice.MeanRate())
	}
}

// A call whose turn would come too late is refused at once, with the time after which it would not be.
func TestRefusedEarly(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.learnSpeed()
	c.set(func(s *picksettings.Settings) { s.Patience = 5 * time.Second })
	var waiting []*asking
	for range 10 { // two seconds each
		waiting = append(waiting, c.ask("a", 16_000))
	}
	late := 0
	for i, a := range waiting {
		if !a.waits() && i > 0 {
			late++
			c.wantGone(a, refusal.TooLate)
			if got := refusal.Of(a.err).RetryAfter; got < time.Second || got > 10*time.Second {
				t.Errorf("call %d is to try again after %s", i, got)
			}
		}
	}
	if late < 5 || late > 8 {
		t.Errorf("%d of 10 calls are refused, of which a server can begin 3 or 4 in time", late)
	}
	c.wantWaits(c.ask("a", 640)) // it goes first
	c.wantWaits(c.ask("b", 640))
	want := &Call{Facts: c.facts(640), Caller: "c", FirstTokenWithin: 100 * ms}
	c.wantGone(c.askFor(want), refusal.TooLate)
	// With an idle server, nobody is refused, whatever he wants.
	for range 60 {
		c.to(c.now + time.Second)
		c.read()
		c.answerAll()
	}
	c.nothingLeft()
	want = &Call{Facts: c.facts(80_000), Caller: "c", FirstTokenWithin: 100 * ms}
	c.wantGone(c.askFor(want), "")
}

// Before servers' speed is known no call is refused for its time, but none waits for longer than it may.
func TestRefusedLate(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.set(func(s *picksettings.Settings) { s.Patience = 2 * time.Second })
	c.ask("a", 160_000)
	waits := c.ask("a", 16_000)
	c.wantWaits(waits)
	for c.now < 2500*ms {
		c.to(c.now + 100*ms)
		c.read()
	}
	c.wantGone(waits, refusal.TooLate)
	c.set(func(*picksettings.Settings) {})
	waits = c.askFor(&Call{Facts: c.facts(16_000), MostWait: time.Second})
	c.wantWaits(waits)
	c.set(func(s *picksettings.Settings) { s.Patience = time.Minute }) // the proxy waits no longer for that
	for end := c.now + 1500*ms; c.now < end; c.read() {
		c.to(c.now + 100*ms)
	}
	c.wantGone(waits, refusal.TooLate)
	c.nothingLeft()
}

// What waits has bounded room. The last call of who has most of it makes room for others.
func TestLineIsBounded(t *testing.T) {
	const each = 20_000
	c := newCrowded(t, 1, Options{MaxWaitingBytes: 20 * each})
	c.ask("a", 16_000)
	ask := func(caller string, tokens int) *asking {
		return c.askFor(&Call{Facts: c.facts(tokens), Caller: caller, Bytes: each})
	}
	var hog []*asking
	for range 30 {
		hog = append(hog, ask("hog", 800))
	}
	full := 0
	for _, a := range hog {
		if !a.waits() {
			c.wantGone(a, refusal.LineFull)
			full++
		}
	}
	if full < 10 || full > 16 {
		t.Errorf("%d of 30 calls had no room where there is room for 20, of which one namespace may have four fifths", full)
	}
	meek := ask("meek", 8000)
	c.wantWaits(meek)
	if n := c.pool.waits.line.Len(); n != 30-full {
		t.Errorf("%d calls wait, where %d have room", n, 30-full)
	}
	for _, caller := range []string{"hog", "another"} { // who would have more than who has the most makes no room
		c.wantGone(c.askFor(&Call{Facts: c.facts(800), Caller: caller, Bytes: 1 << 30}), refusal.LineFull)
	}
	if n := c.pool.waits.line.Len(); n != 30-full {
		t.Errorf("%d calls wait after a call that is too long, and %d before", n, 30-full)
	}
	c.wantWaits(meek)
	// Another pool of the namespace has some room all the same.
	c.fleet.SetPool(pool.Pool{Name: named("models/other")}, numbered(1))
	other := &crowded{T: t, due: c.due, fleet: c.fleet, pool: c.fleet.Pool(named("models/other"))}
	other.ask("a", 16_000)
	c.wantWaits(other.askFor(&Call{Facts: c.facts(800), Caller: "b", Bytes: each}))
	c.fleet.LetGo()
	c.nothingLeft()
}

// An edit of rules applies to what waits, and that of the patience too.
func TestEditsWhileCallsWait(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.ask("a", 16_000)
	all := make([]*asking, 3000)
	for i := range all {
		all[i] = c.ask(fmt.Sprintf("spiffe://x/ns/n%d/sa/default", i%10), 640+64*i)
	}
	last := all[len(all)-1] // the longest, of n9
	c.wantWaits(last)
	c.set(func(s *picksettings.Settings) { s.Callers = "n9/* priority=1; n8/* weight=50" })
	if first := last.w.place; first.Priority != 1 {
		t.Errorf("the call has priority %d after the edit", first.Priority)
	}
	c.to(2100 * ms)
	gone := 0
	for i, a := range all {
		if !a.waits() {
			gone++
			if i%10 != 9 {
				t.Errorf("a call of n%d has gone before those of a higher priority", i%10)
			}
		}
	}
	if gone == 0 {
		t.Error("no call has gone")
	}
	c.set(func(s *picksettings.Settings) { s.Patience = 0 })
	c.to(c.now + 200*ms) // not all at once: other calls are picked in between
	for _, a := range all {
		c.wantGone(a, "")
	}
	c.nothingLeft()
	c.wantGone(c.ask("a", 16_000), "")
}

// A pool without endpoints refuses, or has calls wait for one, if it is set to.
func TestPoolWithoutEndpoints(t *testing.T) {
	c := newCrowded(t, 0, Options{})
	c.wantGone(c.ask("a", 800), refusal.NoEndpoints)
	c.set(func(s *picksettings.Settings) { s.EndpointsWithin = time.Minute })
	waits := c.ask("a", 800)
	c.wantWaits(waits)
	c.to(50 * time.Second)
	c.wantWaits(waits)
	c.fleet.SetPool(pool.Pool{Name: llama}, numbered(1))
	c.to(52 * time.Second) // the proxy may not know the endpoint yet
	c.wantWaits(waits)
	c.wantWaits(c.ask("a", 800))
	c.to(54 * time.Second)
	c.wantGone(waits, "")
	c.wantGone(c.ask("a", 800), "")
	waits.r.Release(Answered)

	c.fleet.SetPool(pool.Pool{Name: llama}, nil)
	waits = c.ask("a", 800)
	c.wantWaits(waits)
	c.to(c.now + 61*time.Second)
	c.wantGone(waits, refusal.NoEndpoints)

	// A pod that comes late, and an edit after that, leave the call the time that calls may wait for a server.
	c.answerAll()
	c.fleet.SetPool(pool.Pool{Name: llama}, nil)
	waits = c.ask("a", 800)
	c.to(c.now + 59*time.Second)
	c.fleet.SetPool(pool.Pool{Name: llama}, numbered(1))
	c.to(c.now + 2*time.Second)
	c.fleet.SetObjectives(llama, map[string]int{"o": 1})
	c.wantWaits(waits)
	c.to(c.now + 2*time.Second)
	c.wantGone(waits, "")
	waits.r.Release(Answered)

	// Endpoints that go while calls wait for them.
	c.fleet.SetPool(pool.Pool{Name: llama}, numbered(1))
	c.read()
	c.ask("a", 16_000)
	waits = c.ask("a", 800)
	c.wantWaits(waits)
	c.set(func(*picksettings.Settings) {})
	c.fleet.SetPool(pool.Pool{Name: llama}, nil)
	c.wantGone(waits, refusal.NoEndpoints)
	c.nothingLeft()
}

// When a pool is removed or the picker ends, no call is left behind.
func TestNoCallIsLeftBehind(t *testing.T) {
	for name, end := range map[string]func(*crowded){
		"removed": func(c *crowded) { c.fleet.RemovePool(llama) },
		"let go":  func(c *crowded) { c.fleet.LetGo() },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrowded(t, 2, Options{})
			var all []*asking
			for range 100 {
				all = append(all, c.ask("a", 16_000))
			}
			end(c)
			for _, a := range all {
				c.wantGone(a, "")
			}
			if a := c.ask("a", 800); name == "let go" {
				c.wantGone(a, "")
			}
		})
	}
}

// Where all endpoints fail, one call after the other tries each.
func TestCallsWhereAllEndpointsFail(t *testing.T) {
	c := newCrowded(t, 2, Options{})
	calls := []*asking{c.ask("a", 16_000), c.ask("a", 16_000)}
	for range 50 {
		calls = append(calls, c.ask("a", 800))
	}
	for _, a := range calls[:2] {
		a.r.Responded(Failed)
		a.r.Release(Failed)
	}
	for tried := 2; tried < len(calls); tried += 2 {
		var trying []*asking
		for _, a := range calls[2:] {
			if !a.waits() && a.w.r.Held() {
				trying = append(trying, a)
			}
		}
		if len(trying) != 2 {
			t.Fatalf("after %d calls %d try two endpoints that fail", tried, len(trying))
		}
		for _, a := range trying {
			a.r.Responded(Failed)
			a.r.Release(Failed)
		}
	}
	c.nothingLeft()
}

// An endpoint of which nothing is known does not let the calls go that wait for others.
func TestAnEndpointThatIsNotRead(t *testing.T) {
	c := newCrowded(t, 2, Options{})
	c.to(10 * time.Second)
	c.pool.Observe(c.pool.Endpoints()[0].Address, modelmetrics.Reading{At: time.Unix(0, int64(c.now)+1), KVUsage: -1}, 0) // not of the other
	for range 200 {
		c.ask("a", 16_000)
	}
	if n := c.pool.choice.InFlight(0); n > 2 || c.pool.waits.line.Len() < 50 { // the other one, of which nothing is known, gets its part
		t.Errorf("of 200 calls %d wait beside an endpoint that is not read, and %d are at the other", c.pool.waits.line.Len(), n)
	}
}

// Whatever happens, each call is decided on once, and its room given back.
func TestWhateverHappensWhileCallsWait(t *testing.T) {
	for seed := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		c := newCrowded(t, 3, Options{MaxWaitingBytes: 5000})
		var all []*asking
		for range 2000 {
			switch rnd.IntN(12) {
			default:
				call := &Call{Facts: c.facts(rnd.IntN(8000)), Caller: fmt.Sprintf("spiffe://x/ns/n%d/sa/s", rnd.IntN(5)), Bytes: int64(rnd.IntN(300))}
				if rnd.IntN(5) == 0 {
					call.FirstTokenWithin = time.Duration(rnd.IntN(3000)) * ms
				}
				all = append(all, c.askFor(call))
			case 0, 1, 2:
				c.to(c.now + time.Duration(rnd.IntN(400))*ms)
			case 3:
				c.read()
			case 4, 5:
				if a := all[rnd.IntN(len(all)+1)%max(1, len(all)):]; len(a) > 0 && !a[0].waits() && a[0].r.Held() {
					outcome := Outcome(rnd.IntN(int(Failed) + 1))
					a[0].r.Responded(outcome)
					a[0].r.Release(outcome)
				}
			case 6:
				if a := all[rnd.IntN(len(all)+1)%max(1, len(all)):]; len(a) > 0 && a[0].waits() {
					ctx, cancel := context.WithCancel(t.Context())
					cancel()
					_, a[0].err = a[0].w.Wait(ctx)
					a[0].w = nil
				}
			case 7:
				c.set(func(s *picksettings.Settings) {
					s.Callers = []string{"", "n1/* priority=-1", "n2/* weight=9 waiting=3; * priority=2"}[rnd.IntN(3)]
					s.Patience = []time.Duration{0, time.Second, time.Minute}[rnd.IntN(3)]
					s.EndpointsWithin = []time.Duration{0, time.Second}[rnd.IntN(2)]
				})
			case 8:
				c.fleet.SetPool(pool.Pool{Name: llama}, numbered(rnd.IntN(4)))
			}
		}
		c.fleet.RemovePool(llama)
		for _, a := range all {
			if a.waits() {
				t.Fatalf("seed %d: a call waits at the end", seed)
			}
			if a.w != nil {
				_, a.err = a.w.Wait(t.Context())
			}
			a.r.Release(Abandoned)
		}
		c.nothingLeft()
	}
}

// A call waits for memory only if its own prompt does not fit.
func TestCallsThatFitDoNotWait(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.ask("a", 16_000)
	c.to(3 * time.Second)
	c.pool.Observe(c.pool.Endpoints()[0].Address, modelmetrics.Reading{
		At: time.Unix(0, int64(c.now)), Running: 1, WaitingSplit: true, KVUsage: 0.9, CapacityTokens: 50_000,
	}, 0) // 5,000 tokens are free
	if wait := c.pool.choice.Begins(0, c.now, 32_000); wait < time.Second {
		t.Errorf("a prompt of 32,000 tokens would begin after %s where 5,000 are free", wait)
	}
	c.wantGone(c.ask("b", 640), "")
}

// A call of a negative priority goes only to a server that is about to be idle, also when it is the first that comes.
func TestLowPriorityOnArrival(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.set(func(s *picksettings.Settings) { s.Callers = "batch/* priority=-1" })
	c.ask("a", 16_000)
	c.to(1200 * ms) // 0.8 s are left, of which half a mean call is 1 s
	low := c.ask("spiffe://x/ns/batch/sa/s", 16_000)
	c.wantWaits(low)
	c.to(2 * time.Second)
	c.wantGone(low, "")
}

// A body that was not read counts by its length, so that it does not go before those that were.
func TestUnreadBodiesInTheLine(t *testing.T) {
	c := newCrowded(t, 1, Options{})
	c.ask("a", 16_000)
	unread := c.askFor(&Call{Facts: c.facts(0), Caller: "a", Unread: 5000})
	c.wantWaits(unread)
	if work := unread.w.place.Work; work != 5000 {
		t.Errorf("a body of 5,000 tokens that was not read brings %g", work)
	}
}

// What answers cost is learned only from servers that count their answers, and within bounds.
func TestOutputs(t *testing.T) {
	reading := func(at, tokens, ended int64) *modelmetrics.Reading {
		return &modelmetrics.Reading{At: time.Unix(at, 0), GeneratedTokens: tokens, Ended: ended}
	}
	var o outputs
	o.see(time.Second, reading(1, 1000, 0), reading(2, 900_000, 0))
	o.see(time.Second, &modelmetrics.Reading{}, reading(2, 900_000, 10))
	o.see(time.Second, reading(1, 1000, 10), reading(2, 900, 5))
	if got := o.mean(); got != assumedOutput {
		t.Errorf("the mean is %g where nothing is known", got)
	}
	for range 100 {
		o.see(time.Second, reading(1, 1000, 10), reading(2, 31_000, 110))
	}
	if got := o.mean(); got < 299 || got > 301 {
		t.Errorf("the mean of answers of 300 tokens is %g", got)
	}
	o.see(time.Second, reading(1, 1000, 10), reading(2, 1<<53, 11))
	if got := o.mean(); got > 310 {
		t.Errorf("one reading that lies makes the mean %g", got)
	}
}
