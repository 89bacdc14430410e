package selection

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// sharers are so many pickers with equally many calls, of which the numbered one is this one.
func sharers(number, of int) []Sharer {
	var out []Sharer
	for i := range of {
		out = append(out, Sharer{Key: Hash(fmt.Sprint("picker-", (number+i)%of)), Calls: 100})
	}
	return out
}

// sharing is the state of one of several pickers, in which it is known that calls bring 8,000 tokens.
func sharing(endpoints int, all []Sharer) (*State, *Call) {
	s := stateWith(endpoints, picksettings.Defaults())
	s.Share(all)
	c := callFor("", 8000)
	c.Candidates, c.Cached = numbers(endpoints), make([]int32, endpoints)
	before := s.Reserve(0, 0, c, 8000)
	s.Release(&before, Answered, time.Second)
	s.Age(2*time.Second, numbers(endpoints))
	return s, c
}

func (s *State) decide(c *Call, now time.Duration, rnd *rand.Rand) int32 {
	var out [Choices]Choice
	s.Pick(c, now, rnd, &out)
	s.Reserve(out[0].Endpoint, now, c, out[0].Uncached)
	s.Decided(out[0].Endpoint, now, out[0].Work)
	return out[0].Endpoint
}

// Pickers that pick at the same instant, before one hears of another's picks, do not all send to the endpoint that is best by a
// little.
func TestPickersSpreadABurst(t *testing.T) {
	const now = 2 * time.Second
	distinct := func(pickers, endpoints int, all func(i int) []Sharer) int {
		went := map[int32]bool{}
		for i := range pickers {
			s, c := sharing(endpoints, all(i))
			for n := range endpoints {
				s.Reserve(int32(n), now, c, n*3*8000/1000) // 3 ms more than at the one before
			}
			went[s.decide(c, now, rand.New(rand.NewPCG(1, uint64(i))))] = true
		}
		return len(went)
	}
	for _, tt := range []struct{ pickers, endpoints int }{{2, 4}, {4, 16}, {3, 12}} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			if got := distinct(tt.pickers, tt.endpoints, func(i int) []Sharer { return sharers(i, tt.pickers) }); got != tt.pickers {
				t.Errorf("the calls of %d pickers went to %d endpoints", tt.pickers, got)
			}
			if got := distinct(tt.pickers, tt.endpoints, func(int) []Sharer { return nil }); got != 1 {
				t.Errorf("calls of pickers that know nothing of each other went to %d endpoints, so the test shows nothing", got)
			}
		})
	}
}

// All pickers deal the endpoints out alike, in whatever order they know them, as many to each. One that comes or goes moves
// few endpoints between the others.
func TestEndpointsAreDealtOutAlike(t *testing.T) {
	const endpoints, pickers = 64, 4
	owners := func(order []int32, all func(i int) []Sharer, count int) map[uint64]int {
		out := map[uint64]int{}
		for i := range pickers {
			s := NewState(picksettings.Defaults())
			for n, e := range order[:count] {
				s.Reset(int32(n), Hash(fmt.Sprint("endpoint-", e)))
			}
			s.Share(all(i))
			s.Age(time.Second, numbers(count))
			for n := range int32(count) {
				if s.Own(n) {
					if of, twice := out[s.keys[n]]; twice {
						t.Fatalf("an endpoint belongs to pickers %d and %d", of, i)
					}
					out[s.keys[n]] = i
				}
			}
		}
		if len(out) != count {
			t.Fatalf("%d of %d endpoints belong to a picker", len(out), count)
		}
		return out
	}
	four := func(i int) []Sharer { return sharers(i, pickers) }
	order := numbers(endpoints)
	first := owners(order, four, endpoints)
	perPicker := map[int]int{}
	for _, i := range first {
		perPicker[i]++
	}
	for i := range pickers {
		if perPicker[i] != endpoints/pickers {
			t.Errorf("the pickers have %v endpoints, want %d each", perPicker, endpoints/pickers)
		}
	}
	slices.Reverse(order)
	for key, i := range owners(order, four, endpoints) {
		if first[key] != i {
			t.Fatal("the order in which endpoints are known changes whose they are")
		}
	}
	moved := 0
	for key, i := range owners(numbers(endpoints), four, endpoints-1) {
		if first[key] != i {
			moved++
		}
	}
	if moved > endpoints/8 {
		t.Errorf("an endpoint that goes moves %d of %d others", moved, endpoints)
	}
}

// A conversation stays at the endpoint that has it cached, whichever picker the endpoint belongs to.
func TestASharedPoolKeepsConversations(t *testing.T) {
	for number := range 2 {
		s, _ := sharing(4, sharers(number, 2))
		for holder := range int32(4) {
			c := callFor("", 4000)
			c.Candidates, c.Cached = numbers(4), make([]int32, 4)
			c.Cached[holder] = 3800 / BlockTokens
			var out [Choices]Choice
			if s.Pick(c, 2*time.Second, rand.New(rand.NewPCG(1, 1)), &out); out[0].Endpoint != holder {
				t.Errorf("picker %d sends the call to endpoint %d, want %d, which has the prompt", number, out[0].Endpoint, holder)
			}
		}
	}
}

// theirs returns what others are taken to have sent to the first endpoint of theirs.
func (s *State) theirs(c *Call, now time.Duration) float64 {
	s.Age(now, numbers(s.Len()))
	for _, why := range s.Explain(c, now) {
		if why.Pickers > 0 {
			return why.Pickers
		}
	}
	return 0
}

// What a picker decided weighs on the endpoints of others for as long as they may not have heard of it, by how many calls they
// have, and is gone when the picker is alone again.
func TestWhatOthersMayHaveSent(t *testing.T) {
	const now = 2 * time.Second
	s, c := sharing(16, sharers(0, 2))
	idle := s.theirs(c, now)
	if idle <= 0 || idle > 0.7 { // a third of a call of 1 s
		t.Errorf("others are taken to have sent %.3g s to each endpoint where nothing was sent here", idle)
	}
	s.Decided(0, now, 80_000)
	busy := s.theirs(c, now)
	if busy < idle+0.6 { // 10 s, for some eight endpoints
		t.Errorf("%.3g s may wait at an endpoint of the other picker after calls of 10 s, and %.3g s before", busy, idle)
	}
	few := *c
	few.Candidates = few.Candidates[:4]
	if of := s.theirs(&few, now); of != busy && of != 0 {
		t.Errorf("%.3g s may wait there for a call that only some endpoints may serve, want as much as for others, %.3g s", of, busy)
	}
	if later := s.theirs(c, now+time.Second); later > 1.01*idle {
		t.Errorf("%.3g s may wait there a second later, want %.3g s", later, idle)
	}
	all := sharers(0, 2)
	all[1].Calls /= 100
	s.Share(all)
	if quiet := s.theirs(c, now+2*time.Second); quiet > 0.011*idle {
		t.Errorf("a picker with a hundredth of the calls is taken to have sent %.3g s, want a hundredth of %.3g s", quiet, idle)
	}
	s.Share(nil)
	if alone := s.theirs(c, now+3*time.Second); alone != 0 {
		t.Errorf("alone, others are taken to have sent %.3g s", alone)
	}
}

// A new endpoint belongs to one picker from its first pick on.
func TestNewEndpointsAreDealtOut(t *testing.T) {
	own := 0
	for i := range 4 {
		s, _ := sharing(4, sharers(i, 4))
		s.Reset(4, Hash("new"))
		s.Age(2*time.Second+time.Millisecond, numbers(5))
		if s.Own(4) {
			own++
		}
	}
	if own != 1 {
		t.Errorf("a new endpoint belongs to %d pickers", own)
	}
}
