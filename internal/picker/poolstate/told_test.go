package poolstate

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/kvevents"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/modelmetrics"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// grain is the length of the blocks of these tests' servers: two blocks of text.
const grain = 128

// prompted are the tokens of a prompt of four bytes a token: each of its whole blocks has the name of its last block of text.
type prompted struct {
	facts *request.Facts
	tail  int // tokens behind the last block of text
}

func (t prompted) Count() int { return len(t.facts.Blocks)*64 + t.tail }

func (t prompted) Before(part float64) int { return int(math.Round(part * float64(t.Count()))) }

func (t prompted) Names(length int) []uint64 {
	var names []uint64
	for end := length / 64; end <= len(t.facts.Blocks); end += length / 64 {
		names = append(names, t.facts.Blocks[end-1]^uint64(length))
	}
	return names
}

// telling is a pool whose servers tell of their caches.
type telling struct {
	*Pool
	t     *testing.T
	fleet *Fleet
	// asked are the prompts whose tokens are wanted.
	asked []func(Tokens)
	clock *testClock
}

func (s *telling) Tokenize(_ netip.AddrPort, _ string, _ *request.Facts, _ []byte, then func(Tokens)) {
	s.asked = append(s.asked, then)
}

func newTelling(t *testing.T, servers int) *telling {
	s := &telling{t: t, clock: &testClock{}}
	s.fleet = New(Options{
		Metrics: telemetry.NewMetrics(prometheus.NewRegistry()), Clock: func() time.Duration { return s.clock.now }, Tokenizer: s,
		After: func(time.Duration, func()) {},
	})
	s.fleet.SetPool(pool.Pool{Name: llama}, numbered(servers))
	settings := picksettings.Defaults()
	settings.PrefixEvents = true
	s.fleet.Configure(llama, settings)
	s.Pool = s.fleet.Pool(llama)
	for _, e := range s.Endpoints() {
		s.tell(e.Address.String(), kvevents.Change{Cleared: true})
	}
	return s
}

func (s *telling) tell(endpoint string, c kvevents.Change) {
	c.BlockTokens = grain
	s.fleet.CacheChanged(addressOf(endpoint), c)
}

// serve picks a call, has its server compute and tell it, and ends it. It returns the server.
func (s *telling) serve(facts *request.Facts) string {
	s.t.Helper()
	r := &Reservation{}
	if _, err := s.Pick(&Call{Facts: facts, Body: []byte("{}")}, r); err != nil {
		s.t.Fatal(err)
	}
	at, _, _ := strings.Cut(string(r.Endpoints(nil)), ",")
	s.answer(facts)
	s.tell(at, kvevents.Change{Stored: prompted{facts: facts}.Names(grain)})
	r.Release(Answered)
	return at
}

// answer tells the tokens of the prompts that were asked for.
func (s *telling) answer(facts *request.Facts) {
	for _, then := range s.asked {
		then(prompted{facts: facts})
	}
	s.asked = nil
}

// cachedAt returns how many blocks of a prompt an endpoint is taken to have.
func (s *telling) cachedAt(endpoint string, facts *request.Facts) int {
	s.t.Helper()
	return (heldAt(s.t, s.Pool, facts, endpoint) + 63) / 64 // the last token of a prompt is always computed
}

func TestServersTellWhatTheyEvict(t *testing.T) {
	s := newTelling(t, 1)
	facts := prompt(1, 20)
	at := s.serve(facts)
	if got := s.cachedAt(at, facts); got != 20 {
		t.Fatalf("after a call %d of 20 blocks are taken to be cached", got)
	}
	names := prompted{facts: facts}.Names(grain)
	s.tell(at, kvevents.Change{Removed: names[5:]})
	if got := s.cachedAt(at, facts); got != 10 {
		t.Errorf("after half of a prompt was evicted %d blocks are taken to be cached, want 10", got)
	}
	s.tell(at, kvevents.Change{Cleared: true})
	if got := s.cachedAt(at, facts); got != 0 {
		t.Errorf("after the cache was cleared %d blocks are taken to be cached", got)
	}
}

func TestServersTellWhatOthersBrought(t *testing.T) {
	s := newTelling(t, 2)
	facts := prompt(1, 20)
	at := s.serve(facts)
	other := "10.0.0.1:8000"
	if at == other {
		other = "10.0.0.2:8000"
	}
	s.tell(other, kvevents.Change{Stored: prompted{facts: facts}.Names(grain)[:8]})
	if got := s.cachedAt(other, facts); got != 16 {
		t.Errorf("of a prompt that somebody else brought %d blocks are taken to be cached, want 16", got)
	}
	longer := prompt(1, 30)
	copy(longer.Blocks, facts.Blocks)
	if got := s.cachedAt(other, longer); got != 16 {
		t.Errorf("of a longer prompt %d blocks are taken to be cached, want 16", got)
	}
}

// Until its server has told of a prompt, the prompt counts as cached as without events: the next of a burst finds it.
func TestPromptsCountBeforeTheyAreTold(t *testing.T) {
	s := newTelling(t, 2)
	facts := prompt(1, 20)
	first, second := &Reservation{}, &Reservation{}
	for _, r := range []*Reservation{first, second} {
		if _, err := s.Pick(&Call{Facts: facts, Body: []byte("{}")}, r); err != nil {
			t.Fatal(err)
		}
	}
	if second.CachedTokens != 20*64-1 {
		t.Errorf("the second call of a burst finds %d tokens", second.CachedTokens)
	}
	s.answer(facts)
	first.Release(Abandoned)
	second.Release(Abandoned)
	for _, e := range s.Endpoints() {
		if got := s.cachedAt(e.Address.String(), facts); got != 0 {
			t.Errorf("after both callers left %d blocks are taken to be cached at %s", got, e.Address)
		}
	}
}

// A prompt whose tokens come after its call ended is the server's word from then on, too.
func TestTokensThatComeLate(t *testing.T) {
	s := newTelling(t, 1)
	facts := prompt(1, 20)
	r := &Reservation{}
	if _, err := s.Pick(&Call{Facts: facts, Body: []byte("{}")}, r); err != nil {
		t.Fatal(err)
	}
	names := prompted{facts: facts}.Names(grain)
	s.tell("10.0.0.1:8000", kvevents.Change{Stored: names})
	r.Release(Answered)
	s.answer(facts)
	s.tell("10.0.0.1:8000", kvevents.Change{Removed: names})
	if got := s.cachedAt("10.0.0.1:8000", facts); got != 0 {
		t.Errorf("after all was evicted %d blocks are taken to be cached", got)
	}
}

// Tokens are asked for once, and not for what cannot be told.
func TestTokensAreAskedForOnce(t *testing.T) {
	s := newTelling(t, 1)
	facts := prompt(1, 20)
	s.serve(facts)
	for what, c := range map[string]*Call{
		"a prompt whose tokens are known": {Facts: facts, Body: []byte("{}")},
		"a body that is not whole":        {Facts: prompt(2, 20)},
		"a prompt that fills no block":    {Facts: prompt(3, 0), Body: []byte("{}")},
		"a batch of prompts":              {Facts: &request.Facts{Blocks: prompt(4, 20).Blocks, PromptBytes: 100 * request.BlockBytes}, Body: []byte("{}")},
	} {
		r := &Reservation{}
		if _, err := s.Pick(c, r); err != nil {
			t.Fatal(err)
		}
		r.Release(Abandoned)
		if len(s.asked) > 0 {
			t.Errorf("the tokens of %s are asked for", what)
		}
		s.asked = nil
	}
}

// What servers tell takes its memory from the tenant's share, and gives it back.
func TestToldMemoryIsGivenBack(t *testing.T) {
	for what, end := range map[string]func(*telling){
		"the pool is removed":         func(s *telling) { s.fleet.RemovePool(llama) },
		"the endpoints leave":         func(s *telling) { s.fleet.SetPool(pool.Pool{Name: llama}, nil) },
		"events are no longer wanted": func(s *telling) { s.fleet.Configure(llama, picksettings.Defaults()) },
		"the cache is cleared":        func(s *telling) { s.tell("10.0.0.1:8000", kvevents.Change{Cleared: true}) },
	} {
		t.Run(what, func(t *testing.T) {
			s := newTelling(t, 1)
			before := s.fleet.told.Taken()
			names := make([]uint64, 10_000)
			for i := range names {
				names[i] = rand.Uint64()
			}
			s.tell("10.0.0.1:8000", kvevents.Change{Stored: names})
			if got := s.fleet.told.Taken() - before; got != toldBytes*10_000 {
				t.Errorf("10,000 names take %d bytes", got)
			}
			end(s)
			if got := s.fleet.told.Taken(); got > before {
				t.Errorf("%d bytes are still taken", got-before)
			}
			s.CacheChanged(addressOf("10.0.0.1:8000"), kvevents.Change{})
		})
	}
}

// A server that tells of more than its tenant's share is believed as far as there is room, and again once its cache was cleared.
func TestServersThatTellTooMuch(t *testing.T) {
	s := newTelling(t, 1)
	const most = 100
	s.toldRoom = fairshare.New(most * toldBytes).Of("tenant")
	for range 2 * most {
		s.tell("10.0.0.1:8000", kvevents.Change{Stored: []uint64{rand.Uint64(), rand.Uint64()}})
	}
	if got := s.Snapshot().Endpoints[0].ToldTokens / grain; got > most || got < most/2 {
		t.Errorf("%d names are kept where there is room for %d", got, most)
	}
	s.toldRoom = fairshare.New(0).Of("tenant")
	facts := prompt(1, 20)
	s.tell("10.0.0.1:8000", kvevents.Change{Cleared: true})
	if got, at := 0, s.serve(facts); at != "10.0.0.1:8000" || s.cachedAt(at, facts) != 20 {
		t.Errorf("after the cache was cleared %d blocks are believed at %s, want 20", got, at)
	}
}

// What Go's maps take for a name, and for a block of text whose tokens are known, is what is taken of a share, or less.
func TestBytesOfNames(t *testing.T) {
	room := fairshare.New(0).Of("")
	for _, n := range []int{10_000, 115_000, 130_000} {
		names := make([]uint64, n)
		for i := range names {
			names[i] = rand.Uint64()
		}
		told := &told{names: map[uint64]struct{}{}}
		if got := grown(func() { told.add(names, room) }) / n; got > toldBytes {
			t.Errorf("of %d names each takes %d bytes, want at most %d", n, got, toldBytes)
		}
		known := &tokenized{room: room}
		if got := grown(func() {
			for _, name := range names {
				known.put(textBlock{name, 16}, need{name: name})
			}
		}) / n; got > tokenizedBytes {
			t.Errorf("of %d blocks of text each takes %d bytes, want at most %d", n, got, tokenizedBytes)
		}
		runtime.KeepAlive(told)
		runtime.KeepAlive(known)
	}
}

// grown returns by how many bytes the heap grows while a function runs.
func grown(f func()) int {
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	f()
	return heap() - before
}

// A prompt whose text is known with other tokens than it has here is learned again: after its call its server does not have those.
func TestWrongTokensAreLearnedAgain(t *testing.T) {
	s := newTelling(t, 1)
	facts, others := prompt(1, 20), prompt(2, 20)
	s.Tokenized(addressOf("10.0.0.1:8000"), facts.Blocks, facts.PromptBytes, prompted{facts: others})
	r := &Reservation{}
	if _, err := s.Pick(&Call{Facts: facts, Body: []byte("{}")}, r); err != nil {
		t.Fatal(err)
	}
	s.tell("10.0.0.1:8000", kvevents.Change{Stored: prompted{facts: facts}.Names(grain)})
	r.Release(Answered)
	s.serve(facts)
	s.tell("10.0.0.1:8000", kvevents.Change{Removed: prompted{facts: facts}.Names(grain)[5:]})
	if got := s.cachedAt("10.0.0.1:8000", facts); got != 10 {
		t.Errorf("after half of the prompt was evicted %d blocks are taken to be cached, want 10", got)
	}
}

// Tokens are learned anew after a while: a template may have changed.
func TestTokensExpire(t *testing.T) {
	s := newTelling(t, 1)
	facts := prompt(1, 20)
	s.serve(facts)
	s.clock.now += (tokenizedFor + 1) * time.Second
	r := &Reservation{}
	if _, err := s.Pick(&Call{Facts: facts, Body: []byte("{}")}, r); err != nil {
		t.Fatal(err)
	}
	r.Release(Abandoned)
	if len(s.asked) == 0 {
		t.Error("the tokens of a prompt are never asked for again")
	}
}

// A caller's own prompt, of whatever tokens, changes nothing of what is known of a head that it shares with others.
func TestSharedHeadsKeepTheirNeeds(t *testing.T) {
	s := newTelling(t, 1)
	facts := prompt(1, 20)
	at := s.serve(facts)
	dense := &request.Facts{Blocks: append(slices.Clone(facts.Blocks[:12]), prompt(2, 30).Blocks...), PromptBytes: 42 * request.BlockBytes}
	s.Tokenized(addressOf(at), dense.Blocks, dense.PromptBytes, denseTail{prompted{facts: dense}, 12})
	if got := s.cachedAt(at, facts); got != 20 {
		t.Errorf("after another prompt with the same head %d blocks are taken to be cached, want 20", got)
	}
}

// denseTail are tokens of which each block of text behind the head has four times as many.
type denseTail struct {
	prompted
	head int
}

func (d denseTail) Count() int { return (d.head + 4*(len(d.facts.Blocks)-d.head)) * 64 }

func (d denseTail) Before(part float64) int {
	blocks := part * float64(len(d.facts.Blocks))
	return int(math.Round(64 * (min(blocks, float64(d.head)) + 4*max(0, blocks-float64(d.head)))))
}

func (d denseTail) Names(length int) []uint64 {
	names := d.prompted.Names(length)[:d.head*64/length]
	for len(names) < d.Count()/length {
		names = append(names, rand.Uint64())
	}
	return names
}

// Before the first event, a server's metrics say how long its blocks are. So the tokens of the first prompt are known in time.
func TestLengthOfBlocksFromMetrics(t *testing.T) {
	for what, readFirst := range map[string]bool{"read first": true, "heard first": false} {
		s := newTelling(t, 1)
		endpoint := addressOf("10.0.0.1:8000")
		s.fleet.Configure(llama, picksettings.Defaults())
		read := func() { s.Observe(endpoint, modelmetrics.Reading{BlockTokens: grain, FirstTokens: 1}, 0) }
		hear := func() {
			settings := picksettings.Defaults()
			settings.PrefixEvents = true
			s.fleet.Configure(llama, settings)
			s.fleet.CacheChanged(endpoint, kvevents.Change{Cleared: true})
		}
		if readFirst {
			read()
			hear()
		} else {
			hear()
			read()
		}
		facts := prompt(1, 20)
		at := s.serve(facts)
		s.tell(at, kvevents.Change{Removed: prompted{facts: facts}.Names(grain)[5:]})
		if got := s.cachedAt(at, facts); got != 10 {
			t.Errorf("%s: after half of the first prompt was evicted %d blocks are taken to be cached, want 10", what, got)
		}
	}
}
