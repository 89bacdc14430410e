// Package server simulates a model server in virtual time, with the parts that determine a call's wait: the scheduler of
// steps, the prefix cache and the slots for adapters. It has no clock of its own and no randomness, and knows nothing of
// pickers.
//
// It follows vLLM's V1 engine where that is published:
//
//   - A step has a budget of tokens. Each decoding call takes one. The prompts in progress take the rest in the order of
//     arrival, the last of them in part (chunked prefill; "Optimization and Tuning", and max_num_batched_tokens and
//     max_num_seqs of SchedulerConfig with their defaults).
//   - When a call is first scheduled, its prompt's whole blocks are found by name, from the head without a gap. The last
//     token is always computed. A block can be found once its tokens are scheduled. Freed blocks are kept and evicted in
//     the order of freeing, a prompt's tail first ("Automatic Prefix Caching").
//   - A call is admitted when the blocks for its next chunk are free. If a running call finds none, the call admitted
//     last is preempted, loses its blocks and starts again at the head of the queue ("Preemption", recompute).
//   - A call whose adapter finds no slot is skipped. Adapters are loaded between steps, and the least recently used one
//     is evicted (max_loras; LRUCacheWorkerLoRAManager).
//
// The time of a step is a sum: a constant (the weights are read once), the prompt tokens at the prefill rate (prefill is
// bound by computing) with, where the server has it, attention to all tokens before them, and for each decoding call a constant and its context (decoding is bound by reading the keys and
// values of all earlier tokens).
//
// Simplified: blocks are 512 tokens long (vLLM's are 16; a hit is rounded down by 256 tokens on average). The blocks of answers
// stay in the cache, but the next turn does not find them, because the traces do not say which of a prompt's tokens were
// generated. Blocks that are not whole are reused before any others.
package server

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/fleetsim/internal/workload"
)

// BlockTokens is the length of a block of the cache, in tokens.
const BlockTokens = 512

// perBlock is the number of a call's blocks in one block of the cache.
const perBlock = BlockTokens / workload.BlockTokens

// Config holds the properties of a server.
type Config struct {
	// Blocks is the size of the cache, in blocks of BlockTokens.
	Blocks int
	// PrefillRate is in tokens a second, of tokens with nothing before them.
	PrefillRate float64
	// Attention is the number of tokens before a token that take as long as the rest of its prefill; 0 for a server that takes
	// the same time for each token.
	Attention float64
	// Step is the constant time of each step. DecodeCall is added for each decoding call, and DecodeToken for each token of
	// such a call's context.
	Step, DecodeCall, DecodeToken time.Duration
	// BatchTokens and BatchCalls bound a step.
	BatchTokens, BatchCalls int
	// AdapterSlots is the number of LoRA adapters that fit on the device, 0 for a server without adapters. AdapterLoad is the
	// time to load one.
	AdapterSlots int
	AdapterLoad  time.Duration
}

// Default is a server like an 8B model on one large device: 8,000 prompt tokens a second, 10 ms for a step that only
// decodes, twice that with 32 calls of 4,000 tokens.
func Default(blocks int) Config {
	return Config{
		Blocks:      blocks,
		PrefillRate: 8000,
		Step:        10 * time.Millisecond,
		DecodeCall:  150 * time.Microsecond,
		DecodeToken: 40 * time.Nanosecond,
		BatchTokens: 2048,
		BatchCalls:  128,
		AdapterLoad: 500 * time.Millisecond,
	}
}

// Work is what a server computes for a prompt's tokens behind the first so many, in tokens with nothing before them.
func (c *Config) Work(tokens, computed int) float64 {
	n := float64(tokens - computed)
	if c.Attention == 0 {
		return n
	}
	return n * (1 + (float64(computed)+n/2)/c.Attention)
}

// Server is one model server.
type Server struct {
	config   Config
	slowness float64
	cache    *cache
	adapters adapters
	inUse    map[string]int // calls between their first and their last token, by adapter

	waiting  []*request // the next to be admitted is the last
	deferred int        // waiting calls that were skipped for want of a slot
	running  []*request // in the order of admission
	growing  []*request // need a block for the next step's token
	due      dues

	// pending counts, by name, the blocks that this server's calls will compute; see Cached.
	pending map[uint64]int
	backlog float64

	stepping           bool
	stepBegan, stepEnd time.Duration
	work               float64 // of the current step's prompts, in tokens with nothing before them
	steps              int     // ended so far
	decoding           int
	context            int // tokens of all decoding calls

	counters Counters
	page     Metrics
}

// request is a call in a server.
type request struct {
	call    *workload.Call
	id      int
	came    time.Duration
	adapter string
	// tokens is what must be computed before the next token: the prompt and, after a preemption, the tokens generated before
	// it.
	tokens, computed, generated int
	// behind is the call's part of the server's backlog.
	behind   float64
	cached   int
	resident bool
	// scheduled: it was in the batch at least once. admitted: it is in the batch. began: it has its first token. skipped: it
	// waits, and was skipped for want of a slot.
	scheduled, admitted, began, skipped bool
	// first is when it had its first token.
	first   time.Duration
	held    []*block
	unnamed int
	// decodes says that the request generates, since step since. It is looked at next after step dueAt.
	decodes      bool
	since, dueAt int
}

// Ended is an answered call.
type Ended struct {
	// ID is that of Submit.
	ID int
	// First and Last are the times of the first and the last token.
	First, Last time.Duration
	// Cached is the number of the prompt's tokens in the cache when the call was first scheduled.
	Cached int
	// Resident says that the call's adapter was loaded.
	Resident bool
}

// New makes an idle server with an empty cache.
func New(c Config) *Server {
	s := &Server{
		config:   c,
		slowness: 1,
		cache:    newCache(c.Blocks),
		adapters: adapters{slots: c.AdapterSlots},
		inUse:    map[string]int{},
		pending:  map[uint64]int{},
	}
	s.publish()
	return s
}

// SetSlowness multiplies the time of every step that begins from now on.
func (s *Server) SetSlowness(factor float64) { s.slowness = factor }

// Fits returns an error if a call is too long ever to be served.
func (s *Server) Fits(c *workload.Call) error {
	if need := blocksFor(c.Prompt + c.Output); need > s.config.Blocks {
		return fmt.Errorf("a call of %d tokens needs %d blocks of a cache of %d", c.Prompt+c.Output, need, s.config.Blocks)
	}
	if c.Prompt < 1 || c.Output < 1 {
		return fmt.Errorf("a call has %d and %d tokens: want at least one each", c.Prompt, c.Output)
	}
	if c.Adapter != "" && s.config.AdapterSlots < 1 {
		return fmt.Errorf("a call asks for adapter %s of a server without slots", c.Adapter)
	}
	return nil
}

// Submit accepts a call, which must fit. The server must have been advanced to now.
func (s *Server) Submit(now time.Duration, id int, c *workload.Call) {
	r := &request{call: c, id: id, came: now, adapter: c.Adapter, tokens: c.Prompt}
	s.owe(r, s.Work(c))
	s.expect(c, 1)
	s.waiting = slices.Insert(s.waiting, 0, r)
	if !s.stepping {
		s.begin(now)
	}
}

// Leave drops a call whose caller has gone, and reports whether the call had its first token. Without one, First is zero.
// The blocks that were computed for the call stay in the cache. The server must have been advanced to now.
func (s *Server) Leave(now time.Duration, id int) (e Ended, began bool) {
	is := func(r *request) bool { return r.id == id }
	var r *request
	if i := slices.IndexFunc(s.waiting, is); i >= 0 {
		r = s.waiting[i]
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.skip(r, false)
	} else if i := slices.IndexFunc(s.running, is); i >= 0 {
		r = s.running[i]
		s.settle(r)
		s.leave(r)
	} else {
		return Ended{ID: id, Last: now}, false
	}
	s.drop(r)
	if !s.stepping {
		s.begin(now)
	}
	return Ended{ID: id, First: r.first, Last: now, Cached: r.cached, Resident: r.resident}, r.began
}

// drop takes back what a call that ends before its last token was expected to bring.
func (s *Server) drop(r *request) {
	if !r.decodes {
		s.expect(r.call, -1)
	}
	s.owe(r, 0)
	r.decodes = false
	if r.began {
		s.use(r.adapter, -1) // vLLM does not count it as ended
	}
}

// expect counts, n times, the blocks that a call will compute.
func (s *Server) expect(c *workload.Call, n int) {
	for i := range wholeBlocks(c) {
		name := blockName(c, i)
		if s.pending[name] += n; s.pending[name] == 0 {
			delete(s.pending, name)
		}
	}
}

// Advance runs the server up to and including now, and reports each call that ends.
func (s *Server) Advance(now time.Duration, ended func(Ended)) {
	for s.stepping && s.stepEnd <= now {
		s.end(ended)
		s.begin(s.stepEnd)
	}
}

// Cached returns how many of a call's tokens this server need not compute once earlier calls are served: tokens in the
// cache and in waiting prompts, from the head without a gap. The last token is always computed.
func (s *Server) Cached(c *workload.Call) int {
	n := 0
	for whole := wholeBlocks(c); n < whole; n++ {
		if name := blockName(c, n); s.pending[name] == 0 && !s.cache.has(name) {
			break
		}
	}
	return n * BlockTokens
}

// Changed calls a function with what the cache has stored and evicted since the last time, in order.
func (s *Server) Changed(tell func([]Changed)) {
	if len(s.cache.changed) > 0 {
		tell(s.cache.changed)
		s.cache.changed = s.cache.changed[:0]
	}
}

// Names returns the names of the whole blocks of a call's prompt, from its head.
func Names(c *workload.Call) []uint64 {
	names := make([]uint64, wholeBlocks(c))
	for i := range names {
		names[i] = blockName(c, i)
	}
	return names
}

// Work returns what is to be computed of a call once earlier ones are served, in tokens with nothing before them.
func (s *Server) Work(c *workload.Call) float64 { return s.config.Work(c.Prompt, s.Cached(c)) }

// Backlog returns what is still to be computed of all prompts, in tokens with nothing before them.
func (s *Server) Backlog() float64 { return s.backlog }

// Metrics are the metrics that a server exposes.
type Metrics struct {
	// Waiting are the calls that wait for capacity, Deferred those that were skipped for want of an adapter slot.
	Waiting, Deferred, Running int
	// KVUsage is the part of the cache's blocks that calls hold, 0 to 1. CacheTokens is the size of the cache.
	KVUsage     float64
	CacheTokens int
	// Slots is the number of LoRA adapters that fit; 0 for a server without adapters.
	Slots int
	// Adapters are the adapters of the calls between their first and their last token, sorted, each once. vLLM lists these as
	// the running and as the waiting ones.
	Adapters []string
	Counters
}

// Counters count since the server's start, each when vLLM would.
type Counters struct {
	// CacheHits counts prompt tokens in the cache when their call was first scheduled.
	CacheHits int
	// FirstTokens counts the calls with a first token, and PromptTokens their prompt tokens. FirstTokenTime sums the times
	// from their arrival to that token.
	PromptTokens, FirstTokens int
	FirstTokenTime            time.Duration
	// ComputedTokens counts, of PromptTokens, those that were not in the cache.
	ComputedTokens int
	// Ended counts the calls that ended, and Generated their generated tokens.
	Ended, Generated int
}

// Metrics returns the metrics as of the end of the last step, without the calls that came during it, as vLLM publishes them.
func (s *Server) Metrics() Metrics { return s.page }

// publish renews the metrics at the end of a step.
func (s *Server) publish() {
	late := 0
	for late < len(s.waiting) && s.waiting[late].came > s.stepBegan && !s.waiting[late].skipped {
		late++
	}
	m := Metrics{
		Waiting:     len(s.waiting) - s.deferred - late,
		Deferred:    s.deferred,
		Running:     len(s.running),
		KVUsage:     float64(s.cache.size-s.cache.free()) / float64(s.cache.size),
		CacheTokens: s.cache.size * BlockTokens,
		Slots:       s.config.AdapterSlots,
		Counters:    s.counters,
	}
	if m.Slots > 0 {
		m.Adapters = slices.Sorted(maps.Keys(s.inUse))
	}
	s.page = m
}

// Calls returns the number of running and waiting calls.
func (s *Server) Calls() int { return len(s.running) + len(s.waiting) }

// FreeTokens is the room of the cache in tokens, beside the blocks of running calls.
func (s *Server) FreeTokens() int { return s.cache.free() * BlockTokens }

// AdapterSlot is the state of one loaded adapter.
type AdapterSlot struct {
	Name string
	// Running is the number of calls in the batch with this adapter.
	Running int
}

// Adapters returns the loaded adapters, the least recently used first.
func (s *Server) Adapters() []AdapterSlot {
	out := make([]AdapterSlot, 0, len(s.adapters.loaded))
	for _, l := range s.adapters.loaded {
		out = append(out, AdapterSlot{l.name, l.running})
	}
	return out
}

// Slots is the number of adapters that fit.
func (s *Server) Slots() int { return s.config.AdapterSlots }

// use counts the calls between their first and their last token by adapter.
func (s *Server) use(adapter string, n int) {
	if adapter == "" {
		return
	}
	if s.inUse[adapter] += n; s.inUse[adapter] == 0 {
		delete(s.inUse, adapter)
	}
}

// skip notes whether a call waits for want of a slot. A call that was skipped once counts until it runs.
func (s *Server) skip(r *request, skipped bool) {
	switch {
	case skipped && !r.skipped:
		s.deferred++
	case !skipped && r.skipped:
		s.deferred--
	}
	r.skipped = skipped
}

// count counts a call that ends.
func (s *Server) count(r *request) {
	s.counters.Ended++
	s.counters.Generated += r.generated
}

// wholeBlocks is the number of cache blocks that a call can find: whole ones, without the prompt's last token.
func wholeBlocks(c *workload.Call) int { return (c.Prompt - 1) / BlockTokens }

func blockName(c *workload.Call, i int) uint64 { return c.Blocks[(i+1)*perBlock-1] }

func blocksFor(tokens int) int { return (tokens + BlockTokens - 1) / BlockTokens }
