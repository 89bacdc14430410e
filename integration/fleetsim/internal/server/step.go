package server

import (
	"slices"
	"time"
)

// begin schedules a step if there is work.
func (s *Server) begin(now time.Duration) {
	preempted := s.grow()
	budget := s.config.BatchTokens - s.decoding
	s.work = 0
	left, short := s.prefill(budget)
	loads := 0
	if !preempted && !short {
		left, loads = s.admit(left)
	}
	if s.stepping = budget-left+s.decoding > 0; !s.stepping {
		return
	}
	s.stepBegan = now
	took := float64(s.config.Step) +
		s.work/s.config.PrefillRate*float64(time.Second) +
		float64(s.decoding)*float64(s.config.DecodeCall) +
		float64(s.context)*float64(s.config.DecodeToken) +
		float64(loads)*float64(s.config.AdapterLoad)
	s.stepEnd = now + time.Duration(took*s.slowness)
}

// owe sets a call's part of the backlog.
func (s *Server) owe(r *request, work float64) {
	s.backlog += work - r.behind
	r.behind = work
}

// grow gives the decoding calls the blocks for this step. It reports whether it preempted any call.
func (s *Server) grow() bool {
	preempted := false
	for _, r := range s.growing {
		if !r.decodes {
			continue // preempted by an earlier one
		}
		if s.make(r, 1) {
			preempted = true
		}
	}
	s.growing = s.growing[:0]
	return preempted
}

// prefill spends the budget on the prompts in progress. It returns the rest, and whether blocks were short.
func (s *Server) prefill(budget int) (left int, short bool) {
	for i := 0; i < len(s.running) && budget > 0; i++ {
		r := s.running[i]
		if r.decodes {
			continue
		}
		n := min(budget, r.tokens-r.computed)
		if s.make(r, blocksFor(r.computed+n)-r.blocks()) {
			short = true
		}
		if !r.admitted {
			break // preempted itself, as the last call
		}
		s.compute(r, n)
		budget -= n
	}
	return budget, short
}

// admit takes waiting calls into the batch, in the order of arrival. It skips calls whose adapter has no slot, and stops at
// the first that finds no blocks.
func (s *Server) admit(budget int) (left, loads int) {
	for i := len(s.waiting) - 1; i >= 0 && budget > 0 && len(s.running) < s.config.BatchCalls; i-- {
		r := s.waiting[i]
		if !s.adapters.possible(r.adapter) {
			s.skip(r, true)
			continue
		}
		n, ok := s.start(r, budget)
		if !ok {
			break
		}
		s.waiting = slices.Delete(s.waiting, i, i+1)
		s.skip(r, false)
		resident, _ := s.adapters.admit(r.adapter)
		if !resident {
			loads++
		}
		if !r.scheduled {
			r.scheduled, r.resident, r.cached = true, resident, r.computed
			s.counters.CacheHits += r.cached
		}
		s.running = append(s.running, r)
		r.admitted = true
		s.compute(r, n)
		budget -= n
	}
	return budget, loads
}

// start finds the cached part of a waiting call and takes the blocks of its first chunk, whose length it returns.
func (s *Server) start(r *request, budget int) (chunk int, ok bool) {
	for i := range wholeBlocks(r.call) {
		b := s.cache.hold(blockName(r.call, i))
		if b == nil {
			break
		}
		r.held = append(r.held, b)
	}
	hit := len(r.held) * BlockTokens
	chunk = min(budget, r.tokens-hit)
	need := blocksFor(hit+chunk) - len(r.held)
	if !s.cache.take(need) {
		s.cache.release(r.held, 0)
		r.held = r.held[:0]
		return 0, false
	}
	r.unnamed = need
	r.computed = hit
	s.owe(r, s.config.Work(r.tokens, hit))
	return chunk, true
}

// make takes n more blocks for a running call. Until there are enough, it preempts the calls admitted last, finally the
// call itself. It reports whether it preempted any.
func (s *Server) make(r *request, n int) (preempted bool) {
	for r.admitted {
		if s.cache.take(n) {
			r.unnamed += n
			return preempted
		}
		s.preempt(s.running[len(s.running)-1])
		preempted = true
	}
	return preempted
}

// preempt returns a running call to the head of the queue. Its generated tokens are computed again like a prompt.
func (s *Server) preempt(r *request) {
	s.settle(r)
	s.leave(r)
	if r.decodes {
		s.expect(r.call, 1)
	}
	r.decodes = false
	r.tokens = r.call.Prompt + r.generated
	r.computed = 0
	s.owe(r, s.config.Work(r.tokens, 0))
	s.waiting = append(s.waiting, r)
}

// leave removes a call from the batch, with its blocks and its adapter.
func (s *Server) leave(r *request) {
	s.running = slices.Delete(s.running, slices.Index(s.running, r), slices.Index(s.running, r)+1)
	if r.decodes {
		s.decoding--
		s.context -= r.call.Prompt + r.generated
	}
	s.adapters.leave(r.adapter)
	s.cache.release(r.held, r.unnamed)
	r.held, r.unnamed, r.admitted = r.held[:0], 0, false
}

// compute schedules n tokens of a prompt. From now on other calls find the blocks that these tokens fill.
func (s *Server) compute(r *request, n int) {
	from := r.computed / BlockTokens
	s.work += s.config.Work(r.computed+n, r.computed)
	r.computed += n
	s.owe(r, s.config.Work(r.tokens, r.computed))
	for i := from; i < min(r.computed, r.call.Prompt)/BlockTokens; i++ {
		if b := s.cache.name(blockName(r.call, i)); b != nil {
			r.held = append(r.held, b)
			r.unnamed--
		}
	}
}

// end finishes the current step.
func (s *Server) end(ended func(Ended)) {
	s.steps++
	s.context += s.decoding
	for s.due.len() > 0 && s.due.first().at <= s.steps {
		d := s.due.pop()
		if d.request.decodes && d.request.dueAt == d.at {
			s.look(d.request, ended)
		}
	}
	for i := 0; i < len(s.running); i++ {
		if r := s.running[i]; !r.decodes && r.computed == r.tokens {
			s.generateFirst(r, ended)
			if !r.admitted {
				i--
			}
		}
	}
	s.publish()
}

// generateFirst starts the decoding of a call whose prompt is computed: the last step gave its first token.
func (s *Server) generateFirst(r *request, ended func(Ended)) {
	if !r.began {
		r.began, r.first = true, s.stepEnd
		s.use(r.adapter, 1)
		s.counters.PromptTokens += r.call.Prompt
		s.counters.ComputedTokens += r.call.Prompt - r.cached
		s.counters.FirstTokens++
		s.counters.FirstTokenTime += r.first - r.came
	}
	s.expect(r.call, -1)
	r.generated++
	r.decodes, r.since = true, s.steps
	s.decoding++
	s.context += r.call.Prompt + r.generated
	s.look(r, ended)
}

// settle updates the number of generated tokens of a decoding call to the steps that have ended.
func (s *Server) settle(r *request) {
	if r.decodes {
		r.generated += s.steps - r.since
		r.since = s.steps
	}
}

// look ends a decoding call that has all its tokens. For another it sets the next look: at its last token, or when its
// blocks are full.
func (s *Server) look(r *request, ended func(Ended)) {
	s.settle(r)
	left := r.call.Output - r.generated
	if left <= 0 {
		s.keep(r)
		s.leave(r)
		s.use(r.adapter, -1)
		s.count(r)
		r.decodes = false
		ended(Ended{ID: r.id, First: r.first, Last: s.stepEnd, Cached: r.cached, Resident: r.resident})
		return
	}
	room := r.blocks()*BlockTokens - (r.call.Prompt + r.generated - 1)
	if room <= 0 {
		s.growing = append(s.growing, r)
		room = BlockTokens
	}
	r.dueAt = s.steps + min(left, room)
	s.due.push(due{r.dueAt, r})
}

// keep leaves the whole blocks of an answer in the cache.
func (s *Server) keep(r *request) {
	whole := min(r.unnamed, (r.call.Prompt+r.generated)/BlockTokens-r.call.Prompt/BlockTokens)
	for range whole {
		if b := s.cache.answer(); b != nil {
			r.held = append(r.held, b)
			r.unnamed--
		}
	}
}

func (r *request) blocks() int { return len(r.held) + r.unnamed }
