package poolstate

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// oneSecond and inPart are how many blocks an endpoint prefills in a second, and in part of one, at the assumed speed.
const (
	oneSecond = 8000 / selection.BlockTokens
	part      = 200 * time.Millisecond
	inPart    = 8000 / 5 / selection.BlockTokens
)

// After a call is broken off, the index keeps the blocks that were prefilled, and those of other calls beside it.
func TestBrokenOff(t *testing.T) {
	const a = "10.0.0.1:8000"
	long := prompt(1, oneSecond)
	ends := func(r *Reservation, c *testClock, after time.Duration, outcome Outcome) uint64 {
		id := r.ID()
		r.Responded(Ended)
		c.now += after
		r.Release(outcome)
		return id
	}
	all := len(long.Blocks)
	tests := map[string]struct {
		do   func(t *testing.T, p *Pool, c *testClock)
		want int // blocks of long
	}{
		"it is not said": {do: func(t *testing.T, p *Pool, c *testClock) {
			ends(pickAt(t, p, a, long), c, part, Ended)
		}, want: all},
		"it is said of another call": {do: func(t *testing.T, p *Pool, c *testClock) {
			p.BrokenOff(ends(pickAt(t, p, a, long), c, part, Ended) + 1)
		}, want: all},
		"it is said after the end": {do: func(t *testing.T, p *Pool, c *testClock) {
			p.BrokenOff(ends(pickAt(t, p, a, long), c, part, Ended))
		}, want: inPart},
		"it is said before the end": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := pickAt(t, p, a, long)
			p.BrokenOff(r.ID())
			ends(r, c, part, Ended)
		}, want: inPart},
		"it is said long before the end, and of many others": {do: func(t *testing.T, p *Pool, c *testClock) {
			r := pickAt(t, p, a, long)
			for i := range uint64(mostReported - 1) {
				p.BrokenOff(i + 1)
			}
			p.BrokenOff(r.ID())
			p.BrokenOff(mostReported)
			ends(r, c, part, Ended)
		}, want: inPart},
		"the answer's end was seen": {do: func(t *testing.T, p *Pool, c *testClock) {
			p.BrokenOff(ends(pickAt(t, p, a, long), c, part, Answered))
		}, want: all},
		"after the time of the prefill": {do: func(t *testing.T, p *Pool, c *testClock) {
			p.BrokenOff(ends(pickAt(t, p, a, long), c, 2*time.Second, Ended))
		}, want: all},
		"another found a part": {do: func(t *testing.T, p *Pool, c *testClock) {
			pickAt(t, p, a, prompt(1, 50)).Release(Answered)
			p.BrokenOff(ends(pickAt(t, p, a, long), c, part, Ended))
		}, want: 50 + inPart},
		"behind a queue": {do: func(t *testing.T, p *Pool, c *testClock) {
			pickAt(t, p, a, prompt(2, oneSecond))
			p.BrokenOff(ends(pickAt(t, p, a, long), c, part, Ended))
		}},
		"another with the same prompt was answered since": {do: func(t *testing.T, p *Pool, c *testClock) {
			id := ends(pickAt(t, p, a, long), c, part, Ended)
			pickAt(t, p, a, long).Release(Answered)
			p.BrokenOff(id)
		}, want: all},
		"another with the same prompt is in flight": {do: func(t *testing.T, p *Pool, c *testClock) {
			id := ends(pickAt(t, p, a, long), c, part, Ended)
			r := pickAt(t, p, a, long)
			p.BrokenOff(id)
			ends(r, c, part, Ended)
		}, want: all},
		"another with the same prompt ended since": {do: func(t *testing.T, p *Pool, c *testClock) {
			id := ends(pickAt(t, p, a, long), c, part, Ended)
			ends(pickAt(t, p, a, long), c, part, Ended)
			p.BrokenOff(id)
		}, want: all},
		"another with the same prompt was broken off as well": {do: func(t *testing.T, p *Pool, c *testClock) {
			id := ends(pickAt(t, p, a, long), c, part, Ended)
			next := ends(pickAt(t, p, a, long), c, part, Ended)
			p.BrokenOff(id)
			p.BrokenOff(next)
		}, want: inPart},
		"another goes on from the same prompt": {do: func(t *testing.T, p *Pool, c *testClock) {
			id := ends(pickAt(t, p, a, long), c, part, Ended)
			pickAt(t, p, a, prompt(1, oneSecond+20)).Release(Answered)
			p.BrokenOff(id)
		}, want: all},
		"the endpoint began anew": {do: func(t *testing.T, p *Pool, c *testClock) {
			id := ends(pickAt(t, p, a, long), c, part, Ended)
			p.forget(p.byAddr[endpointsOf(a)[0].Address])
			p.index.Insert(int(p.byAddr[endpointsOf(a)[0].Address]), long.Blocks)
			p.BrokenOff(id)
		}, want: all},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, clock := poolOf(t, numbered(2)...)
			tt.do(t, p, clock)
			got := heldAt(t, p, long, a)
			want := tt.want * selection.BlockTokens
			if tt.want == all {
				want-- // the last token is computed in any case
			}
			if got != want {
				t.Errorf("%d tokens are taken to be cached, want %d", got, want)
			}
		})
	}
}

// Calls that may have been broken off are kept for a while, within bounds, and their memory is given back.
func TestDoubtsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		f, _ := newFleet(t)
		f.options.Clock = func() time.Duration { return time.Since(start) }
		f.SetPool(pool.Pool{Name: llama}, numbered(1))
		p := f.Pool(llama)
		end := func(seed uint64, blocks int) uint64 {
			r, _ := pick(t, p, prompt(seed, blocks))
			id := r.ID()
			r.Responded(Ended)
			time.Sleep(time.Duration(blocks) * 2 * time.Millisecond) // at a quarter of the time
			r.Release(Ended)
			return id
		}
		for seed := range uint64(2 * mostDoubts) {
			end(seed, 2)
			if got := len(p.doubts.ended); got > mostDoubts {
				t.Fatalf("%d calls are kept", got)
			}
		}
		if len(p.doubts.ended) == 0 {
			t.Fatal("no call is kept")
		}
		last := end(1<<20, oneSecond)
		time.Sleep(doubtFor + time.Second)
		synctest.Wait()
		if got := f.doubted.Taken(); got != 0 || len(p.doubts.ended) != 0 {
			t.Errorf("%d bytes and %d calls are kept after their time", got, len(p.doubts.ended))
		}
		p.BrokenOff(last) // nobody knows it any more
		if got := heldAt(t, p, prompt(1<<20, oneSecond), "10.0.0.1:8000"); got != oneSecond*selection.BlockTokens-1 {
			t.Errorf("%d tokens are taken to be cached", got)
		}
	})
}

// One namespace's calls leave room for other namespaces' calls.
func TestDoubtsLeaveRoom(t *testing.T) {
	f, clock := newFleet(t)
	f.options.After = func(time.Duration, func()) {} // the calls end all at once, however long the test takes
	const blocks = 16 * oneSecond
	for i := range 10 {
		name := named("hostile/pool-" + string(rune('a'+i)))
		f.SetPool(pool.Pool{Name: name}, numbered(1))
		for seed := range uint64(2 * mostDoubts) {
			r, _ := pick(t, f.Pool(name), prompt(seed, blocks))
			r.Responded(Ended)
			clock.now += time.Second
			r.Release(Ended)
		}
	}
	if got := f.doubted.Taken(); got > maxDoubted || got < maxDoubted/2 {
		t.Errorf("%d bytes are kept, want most of %d", got, maxDoubted)
	}
	f.SetPool(pool.Pool{Name: llama}, numbered(1))
	long := prompt(1, oneSecond)
	r, _ := pick(t, f.Pool(llama), long)
	id := r.ID()
	r.Responded(Ended)
	clock.now += part
	r.Release(Ended)
	f.Pool(llama).BrokenOff(id)
	if got := heldAt(t, f.Pool(llama), long, "10.0.0.1:8000"); got != inPart*selection.BlockTokens {
		t.Errorf("%d tokens of another namespace's call are taken to be cached, want %d", got, inPart*selection.BlockTokens)
	}
}
