package selection

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// burst has each of several pickers pick for equal new prompts at the same instant, before one hears of another's picks. It
// returns how many calls each endpoint got.
func burst(pickers, endpoints, each int, shared bool) []int {
	got := make([]int, endpoints)
	for i := range pickers {
		s := stateWith(endpoints, picksettings.Defaults())
		if shared {
			s.Share(i, pickers)
		}
		c := callFor("", 8000)
		c.Candidates, c.Cached = numbers(endpoints), make([]int32, endpoints)
		before := s.Reserve(0, 0, c, 8000) // so that it is known what calls bring
		s.Release(&before, Answered, time.Second)
		now := 2 * time.Second
		s.Age(now, numbers(endpoints))
		rnd := rand.New(rand.NewPCG(1, uint64(i)))
		for range each {
			var out [Choices]Choice
			s.Pick(c, now, rnd, &out)
			s.Reserve(out[0].Endpoint, now, c, out[0].Uncached)
			s.Decided(out[0].Endpoint, now, out[0].Uncached)
			got[out[0].Endpoint]++
		}
	}
	return got
}

// Pickers that pick for one pool at the same time do not all send to the same endpoints.
func TestPickersSpreadABurst(t *testing.T) {
	for _, tt := range []struct{ pickers, endpoints, each int }{{2, 2, 1}, {4, 16, 4}, {4, 16, 8}, {3, 12, 4}} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			got := burst(tt.pickers, tt.endpoints, tt.each, true)
			want := tt.pickers * tt.each / tt.endpoints
			if slices.Min(got) != want || slices.Max(got) != want {
				t.Errorf("the endpoints got %v calls, want %d each", got, want)
			}
		})
	}
	if got := burst(4, 16, 4, false); slices.Max(got) == 1 {
		t.Errorf("the endpoints got %v calls of pickers that know nothing of each other, so the test shows nothing", got)
	}
}

// A conversation stays at the endpoint that has it cached, whichever picker the endpoint belongs to.
func TestASharedPoolKeepsConversations(t *testing.T) {
	for number := range 2 {
		s := stateWith(4, picksettings.Defaults())
		s.Share(number, 2)
		s.Age(time.Second, numbers(4))
		for holder := range int32(4) {
			c := callFor("", 4000)
			c.Candidates, c.Cached = numbers(4), make([]int32, 4)
			c.Cached[holder] = 3800 / BlockTokens
			var out [Choices]Choice
			if s.Pick(c, time.Second, rand.New(rand.NewPCG(1, 1)), &out); out[0].Endpoint != holder {
				t.Errorf("picker %d sends the call to endpoint %d, want %d, which has the prompt", number, out[0].Endpoint, holder)
			}
		}
	}
}

// What a picker decided weighs on the endpoints of others for as long as they may not have heard of it, and is gone when the
// picker is alone again. A reason tells it.
func TestWhatOthersMayHaveSent(t *testing.T) {
	s := stateWith(4, picksettings.Defaults())
	c := callFor("", 8000)
	c.Candidates, c.Cached = numbers(4), make([]int32, 4)
	terms := func(now time.Duration) (most float64, own int) {
		s.Age(now, numbers(4))
		for _, why := range s.Explain(c, now) {
			most = max(most, why.Pickers)
			if why.Pickers == 0 {
				own++
			}
		}
		return most, own
	}
	s.Share(1, 2)
	s.Reserve(0, time.Second, c, 8000)
	idle, own := terms(time.Second)
	if own != 2 || idle <= 0 {
		t.Errorf("%d endpoints are this picker's, and the others are taken to have %.3g s, want 2 and some time", own, idle)
	}
	s.Decided(0, time.Second, 8000)
	if busy, _ := terms(time.Second); busy < idle+0.4 { // half of a call of 1 s, as two endpoints share it
		t.Errorf("%.3g s may wait at an endpoint of the other picker after a call of 1 s, want half a second more than %.3g s", busy, idle)
	}
	if later, _ := terms(2 * time.Second); later > 1.01*idle {
		t.Errorf("%.3g s may wait there a second later, want %.3g s", later, idle)
	}
	s.Share(0, 1)
	if alone, own := terms(3 * time.Second); alone != 0 || own != 4 {
		t.Errorf("alone, a picker has %d endpoints, and others may have sent %.3g s, want 4 and nothing", own, alone)
	}
}
