package poolstate

import (
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
)

// storing is a pool of one endpoint with a cache of 100 blocks, which holds a prompt of 50.
type storing struct {
	*Pool
	t                        *testing.T
	clock                    *testClock
	firstTokens, ended       int64
	prompts, answers, blocks int64
	transferred              int64
	restarts                 int
	hits                     int64 // where it is not 0, the server counts what it finds and not what it computes
	late                     time.Duration
}

func newStoring(t *testing.T) *storing {
	s := newUnread(t)
	s.read(0)
	r, _ := pick(t, s.Pool, prompt(1, 50))
	s.call(50*64, 0)
	r.Release(Answered)
	return s
}

// newUnread is the same without any reading.
func newUnread(t *testing.T) *storing {
	p, clock := poolOf(t, numbered(1)...)
	return &storing{Pool: p, t: t, clock: clock, firstTokens: 100, ended: 100, prompts: 1 << 20, answers: 1 << 20}
}

// call counts a call with so many tokens to prefill and to answer.
func (s *storing) call(prompt, answer int64) {
	s.firstTokens++
	s.ended++
	s.prompts += prompt
	s.answers += answer
}

// others counts a call of others that takes the room of so many blocks.
func (s *storing) others(blocks int64) { s.call(int64(float64(blocks*64)/certainty)+1, 0) }

func (s *storing) read(running int) {
	s.clock.now += time.Second
	r := modelmetrics.Reading{
		Running: running, WaitingSplit: true, CapacityTokens: 100 * 64, BlockTokens: s.blocks, FirstTokens: s.firstTokens,
		FirstTokenSeconds: float64(s.firstTokens), ComputedTokens: s.prompts, GeneratedTokens: s.answers, Ended: s.ended,
		TransferredTokens: s.transferred, Restarts: s.restarts,
	}
	if s.hits > 0 {
		r.ComputedTokens, r.PromptTokens, r.CacheHits = 0, s.prompts, s.hits
	}
	s.Observe(addressOf("10.0.0.1:8000"), r, s.late)
}

func (s *storing) held() int { return heldAt(s.t, s.Pool, prompt(1, 50), "10.0.0.1:8000") / 64 }

// What a server stores beside the picker's own prompts evicts them.
func TestWhatOthersStoreTakesRoom(t *testing.T) {
	for name, test := range map[string]struct {
		do       func(s *storing)
		min, max int
	}{
		"nothing": {func(s *storing) { s.read(0) }, 49, 50},
		"prompts of others": {func(s *storing) {
			s.read(3) // they are there
			s.others(70)
			s.read(3)
		}, 30, 31},
		"answers": {func(s *storing) {
			s.read(0)
			s.call(0, 80*64)
			s.read(0)
		}, 20, 21},
		"all of it": {func(s *storing) {
			s.read(3)
			s.others(1000)
			s.read(3)
		}, 0, 0},
		"the last block of a call is not kept": {func(s *storing) {
			s.blocks = 16 * 64
			s.read(3)
			for range 10 {
				s.call(0, 10*64)
			}
			s.read(3)
		}, 48, 48},
		"answers of one token, and then long ones": {func(s *storing) {
			s.blocks = 16
			s.read(0)
			for range 10_000 {
				s.call(0, 1)
			}
			s.read(0)
			s.call(0, 80*64)
			s.read(0)
		}, 20, 21},
		"the length of a block is told late": {func(s *storing) {
			s.firstTokens = 100_000
			s.read(0)
			s.blocks = 16
			s.read(0)
			s.blocks = 0
			s.read(0)
		}, 49, 50},
		"calls that were broken off, and then prompts of others": {func(s *storing) {
			s.read(3)
			for i := range uint64(20) {
				r, _ := pick(s.t, s.Pool, prompt(100+i, 10))
				r.Responded(Ended)
				id := r.ID()
				s.clock.now += 20 * time.Millisecond
				r.Release(Ended)
				s.BrokenOff(id)
			}
			s.others(80)
			s.read(3)
		}, 20, 21},
		"calls whose prompts are shorter than expected, and then prompts of others": {func(s *storing) {
			s.read(3)
			for i := range uint64(20) {
				r, _ := pick(s.t, s.Pool, prompt(100+i, 1))
				s.call(1, 0)
				s.read(3)
				r.Release(Answered)
			}
			s.read(3)
			s.read(3)
			s.others(80)
			s.read(3)
		}, 0, 1},
		"what a call finds counts before its prompt": {func(s *storing) {
			s.prompts, s.hits = 1<<21, 1<<21-s.prompts
			s.read(3)
			s.hits += 100 * 64
			s.read(3)
			s.prompts += 100 * 64
			s.firstTokens++
			s.read(3)
		}, 49, 50},
		"prompts of others whose KV cache came from elsewhere": {func(s *storing) {
			s.read(3)
			s.transferred += 2 * 80 * 64
			s.call(0, 0)
			s.read(3)
		}, 20, 21},
		"a reading that came late": {func(s *storing) {
			s.read(3)
			old := *s
			s.call(0, 30*64)
			s.read(3)
			old.late = 5 * time.Second
			old.read(3)
			s.read(3)
		}, 49, 50},
		"prompts of others after calls that a restarted server lost": {func(s *storing) {
			s.read(3)
			r, _ := pick(s.t, s.Pool, prompt(2, 20))
			s.read(3)
			s.restarts++
			s.read(3)
			r.Release(Failed)
			r, _ = pick(s.t, s.Pool, prompt(1, 50))
			s.call(50*64, 0)
			s.read(3)
			r.Release(Answered)
			s.read(3)
			_, _ = pick(s.t, s.Pool, prompt(3, 49))
		}, 49, 50},
		"own prompts that were evicted and computed again": {func(s *storing) {
			s.read(0)
			r, _ := pick(s.t, s.Pool, prompt(1, 50))
			s.read(1)
			s.call(50*64, 0)
			r.Release(Answered)
			s.read(0)
			_, _ = pick(s.t, s.Pool, prompt(2, 50))
		}, 49, 50},
		"the server restarted": {func(s *storing) {
			s.read(3)
			s.prompts, s.answers, s.firstTokens, s.ended = 1000, 1000, 1, 1
			s.read(3)
		}, 49, 50},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStoring(t)
			test.do(s)
			if got := s.held(); got < test.min || got > test.max {
				t.Errorf("%d blocks of a prompt of 50 are taken to be cached, want %d to %d", got, test.min, test.max)
			}
		})
	}
}

// The picker's own prompts do not count as those of others, also where they are computed late, elsewhere, or never.
func TestOwnPromptsTakeNoRoomTwice(t *testing.T) {
	s := newStoring(t)
	s.read(3)
	late, _ := pick(t, s.Pool, prompt(2, 20))
	never, _ := pick(t, s.Pool, prompt(3, 20))
	s.read(5)
	never.Release(Failed)
	s.call(20*64, 0)
	s.read(4)
	late.Release(Answered)
	s.read(3)
	if got := s.held(); got < 49 {
		t.Errorf("%d blocks of a prompt of 50 are taken to be cached beside one of 20 in a cache of 100", got)
	}
}

// Where the servers' tokens have two bytes, their caches hold half as much text.
func TestCapacityIsOfTheServersTokens(t *testing.T) {
	p, clock := poolOf(t, numbered(1)...)
	reading := modelmetrics.Reading{WaitingSplit: true, CapacityTokens: 100 * 64, FirstTokens: 1, FirstTokenSeconds: 1, PromptTokens: 1}
	read := func() {
		clock.now += time.Second
		p.Observe(addressOf("10.0.0.1:8000"), reading, 0)
	}
	read()
	read()
	for i := range uint64(3000) {
		r, _ := pick(t, p, prompt(i, 10))
		reading.FirstTokens++
		reading.FirstTokenSeconds += 0.1
		reading.PromptTokens += 2 * 10 * 64
		read()
		r.Release(Answered)
	}
	held := 0
	for i := range uint64(20) {
		held += (heldAt(t, p, prompt(2999-i, 10), "10.0.0.1:8000") + 63) / 64
	}
	if held < 45 || held > 60 {
		t.Errorf("%d blocks of text are taken to be in a cache of 100 with two bytes a token, want about 50", held)
	}
}

// Before a first reading, it is not known what of the calls in flight a server has counted.
func TestCallsInFlightAtTheFirstReading(t *testing.T) {
	s := newUnread(t)
	first, _ := pick(t, s.Pool, prompt(1, 50))
	s.read(3)
	s.call(50*64, 0)
	first.Release(Answered)
	s.read(3)
	_, _ = pick(t, s.Pool, prompt(2, 50))
	if got := s.held(); got < 49 {
		t.Errorf("%d blocks of a prompt of 50 are held beside another of 50 in a cache of 100", got)
	}
}

// trtllm-serve counts answers, and no computed prompts by their first tokens.
func TestAnswersWithoutPromptsTakeRoom(t *testing.T) {
	s := newUnread(t)
	s.prompts = 0
	s.read(0)
	r, _ := pick(t, s.Pool, prompt(1, 50))
	r.Release(Answered)
	s.call(0, 80*64)
	s.read(0)
	if got := s.held(); got < 20 || got > 21 {
		t.Errorf("%d blocks of a prompt of 50 are held beside an answer of 80 in a cache of 100", got)
	}
}

// A call that moves brings its prompt to the endpoint that serves it, and not to the first one.
func TestMovedCallsBringTheirPrompts(t *testing.T) {
	p, _ := poolOf(t, numbered(2)...)
	r, first := pick(t, p, prompt(1, 20))
	other := "10.0.0.1:8000"
	if first == other {
		other = "10.0.0.2:8000"
	}
	r.Served(addressOf(other))
	at := func(e string) stored { return p.slots[p.byAddr[addressOf(e)]].stored }
	if a, b := at(first), at(other); a != (stored{}) || b.brought != 20*64 || b.foreign != -20*64 {
		t.Errorf("after the move, %+v is stored at the first and %+v at the other", a, b)
	}
	r.Release(Answered)
	if b := at(other); b.brought != 0 || b.ended != 20*64 {
		t.Errorf("after its end, %+v is stored", b)
	}
}

// The calls of others are seen by a page's counters, and quicken the readings.
func TestCallsOfOthersAreRead(t *testing.T) {
	for engine, want := range map[modelmetrics.Engine]bool{modelmetrics.VLLM: true, modelmetrics.SGLang: false} {
		s := newUnread(t)
		r := modelmetrics.Reading{Engine: engine, WaitingSplit: true, ComputedTokens: 1 << 20}
		for i := range int64(10) {
			s.clock.now += time.Second
			r.Running, r.FirstTokens, r.FirstTokenSeconds, r.Ended = 2, 1000+40*i, float64(1000+40*i), 998+40*i
			r.ComputedTokens += 40 * 4000
			s.Observe(addressOf("10.0.0.1:8000"), r, 0)
		}
		r.Running = 5
		s.clock.now += time.Second
		s.Observe(addressOf("10.0.0.1:8000"), r, 0)
		if got := s.queue("10.0.0.1:8000"); (got > 5000) != want {
			t.Errorf("%.0f tokens wait where three calls of others have no first token, want any: %v", got, want)
		}
		_, _ = pick(t, s.Pool, prompt(1, 1))
		if got := s.Pace(); got > 20*time.Millisecond {
			t.Errorf("read every %v where others make 40 calls a second", got)
		}
	}
}

// A server with long blocks finds whole ones only.
func TestCachedAreWholeBlocksOfTheServer(t *testing.T) {
	s := newStoring(t)
	for blocks, want := range map[int64]int{0: 50 * 64, 16: 50 * 64, 64: 50 * 64, 128: 50 * 64, 16 * 64: 48 * 64, 64 * 64: 0, 1 << 40: 0} {
		s.blocks = blocks
		s.read(0)
		r, _ := pick(t, s.Pool, prompt(1, 51))
		if r.CachedTokens != want {
			t.Errorf("%d tokens are taken to be cached with blocks of %d, want %d", r.CachedTokens, blocks, want)
		}
		r.Release(Failed)
	}
}
