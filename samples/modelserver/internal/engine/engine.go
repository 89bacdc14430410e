package engine

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/inference-waypoint/inference-waypoint/samples/modelserver/internal/kvcache"
)

var (
	// ErrStopped ends the remaining requests when Run returns.
	ErrStopped = errors.New("the engine has stopped")
	// ErrNoLoRA refuses an adapter if MaxLoRAs is 0.
	ErrNoLoRA = errors.New("LoRA is not enabled")
)

// maxLag bounds the delay that the engine makes up for on a slow machine. It
// makes up for less, so that speeds are right on average although timers fire
// late. More would come as one burst.
const maxLag = time.Second

// Engine runs requests. Many goroutines may call Generate, Stats and
// ResetPrefixCache at once.
type Engine struct {
	cfg Config
	// wake holds one signal if an idle Run may have work.
	wake chan struct{}

	mu      sync.Mutex
	stopped bool
	cache   *kvcache.Cache
	loras   loraSlots
	waiting []*sequence
	running []*sequence
	totals  Totals
	history loraHistory
}

// New returns an engine, which works once Run is called.
func New(cfg Config) *Engine {
	return &Engine{
		cfg:   cfg,
		wake:  make(chan struct{}, 1),
		cache: kvcache.New(cfg.NumBlocks),
		loras: loraSlots{max: cfg.MaxLoRAs, loadTime: cfg.wall(cfg.LoRALoadTime), slots: make(map[string]*loraSlot)},
	}
}

// Config returns the engine's configuration.
func (e *Engine) Config() Config { return e.cfg }

// Generate queues one request, or refuses it with a *ContextLengthError,
// ErrNoLoRA or ErrStopped. The caller must range over the result: the request's
// progress, with a Finish in the last output. An error, which is ErrStopped or
// ctx's, comes last. When ctx ends or the caller leaves the loop, the request
// releases all that it holds.
func (e *Engine) Generate(ctx context.Context, req Request) (iter.Seq2[Output, error], error) {
	s, err := e.submit(req)
	if err != nil {
		return nil, err
	}
	return func(yield func(Output, error) bool) {
		defer e.abort(s)
		for seen := 0; ; {
			select {
			case <-s.changed:
			case <-ctx.Done():
				yield(Output{}, ctx.Err())
				return
			}
			e.mu.Lock()
			out, err := s.output(seen), s.err
			e.mu.Unlock()
			if out.Text == "" && out.Finish == "" {
				continue // the previous output had the news of this signal
			}
			seen = out.AnswerTokens
			if !yield(out, err) || err != nil || out.Finish != "" {
				return
			}
		}
	}, nil
}

func (e *Engine) submit(req Request) (*sequence, error) {
	if req.Adapter != "" && e.cfg.MaxLoRAs == 0 {
		return nil, ErrNoLoRA
	}
	s, err := newSequence(e.cfg, req)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stopped {
		return nil, ErrStopped
	}
	e.waiting = append(e.waiting, s)
	e.wakeUp()
	return s, nil
}

// abort removes the sequence if it has not finished.
func (e *Engine) abort(s *sequence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s.finish == "" {
		e.finish(s, FinishAbort)
	}
}

// ResetPrefixCache forgets all cached content. While a request runs, it does
// nothing and returns false.
func (e *Engine) ResetPrefixCache() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.cache.Reset()
}

// UnloadAdapter empties the adapter's slot. A slot in use becomes free for others
// once it is idle, as any slot does.
func (e *Engine) UnloadAdapter(adapter string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.loras.unload(adapter, time.Now())
	e.wakeUp()
}

// Run works until ctx ends. The remaining requests then end with ErrStopped. It
// is called once.
func (e *Engine) Run(ctx context.Context) {
	defer e.stop()
	deadline := time.Now()
	for ctx.Err() == nil {
		now := time.Now()
		e.mu.Lock()
		plan := e.schedule(now)
		nextLoad, loading := e.loras.nextReady(now)
		e.mu.Unlock()
		if plan.empty() {
			e.idle(ctx, nextLoad, loading)
			deadline = time.Now()
			continue
		}
		deadline = stepEnd(deadline, now, e.cfg.stepTime(plan.promptTokens, plan.decoding))
		if !sleepUntil(ctx, deadline) {
			return
		}
		e.mu.Lock()
		e.complete(plan)
		e.mu.Unlock()
	}
}

// stepEnd returns the end of a step, given when the previous step should have
// ended.
func stepEnd(previous, now time.Time, step time.Duration) time.Time {
	if now.Sub(previous) > maxLag {
		previous = now
	}
	return previous.Add(step)
}

// idle waits for a request or the end of an adapter's load.
func (e *Engine) idle(ctx context.Context, nextLoad time.Time, loading bool) {
	var loaded <-chan time.Time
	if loading {
		timer := time.NewTimer(time.Until(nextLoad))
		defer timer.Stop()
		loaded = timer.C
	}
	select {
	case <-e.wake:
	case <-loaded:
	case <-ctx.Done():
	}
}

// sleepUntil returns false if ctx ends first. It does not sleep if the time has
// passed.
func sleepUntil(ctx context.Context, at time.Time) bool {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (e *Engine) stop() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stopped = true
	for _, s := range slices.Concat(e.running, e.waiting) {
		s.err = ErrStopped
		e.finish(s, FinishAbort)
	}
}

// plan is one step: what the step computes, and the sequences with a new token at
// its end.
type plan struct {
	budget       int // tokens left for this step
	promptTokens int
	decoding     int
	emit         []*sequence
}

func (p *plan) empty() bool { return p.promptTokens == 0 && p.decoding == 0 }

// addToken computes the sequence's last token, which gives the next.
func (p *plan) addToken(s *sequence) {
	s.computeAnswer()
	p.budget--
	p.decoding++
	p.emit = append(p.emit, s)
}

// addPrompt computes as much of the prompt as the budget allows.
func (p *plan) addPrompt(s *sequence) {
	n := min(s.promptTokens-s.prefilled, p.budget)
	if n == 0 {
		return
	}
	s.computePrompt(n)
	p.budget -= n
	p.promptTokens += n
	if s.prefilled == s.promptTokens {
		p.emit = append(p.emit, s)
	}
}

// schedule fills the next step:
//  1. every sequence that decodes computes one token;
//  2. the running prompts go on, in the order of arrival;
//  3. waiting requests are admitted while there is room.
func (e *Engine) schedule(now time.Time) *plan {
	p := &plan{budget: e.cfg.MaxBatchedTokens}
	for _, s := range e.running {
		if s.decoding() {
			p.addToken(s)
		}
	}
	for _, s := range e.running {
		if !s.decoding() {
			p.addPrompt(s)
		}
	}
	e.admit(now, p)
	return p
}

// admit moves waiting requests to the batch, first come first served. A request
// without blocks or a place blocks all behind it. A request without its adapter
// is skipped, as in vLLM.
func (e *Engine) admit(now time.Time, p *plan) {
	left := e.waiting[:0]
	for i, s := range e.waiting {
		if p.budget == 0 || len(e.running) == e.cfg.MaxNumSeqs {
			left = append(left, e.waiting[i:]...)
			break
		}
		if s.adapter != "" && !e.loras.ready(s.adapter, now) {
			s.skipped = true
			left = append(left, s)
			continue
		}
		if !e.begin(s, now) {
			left = append(left, e.waiting[i:]...)
			break
		}
		p.addPrompt(s)
	}
	clear(e.waiting[len(left):])
	e.waiting = left
}

// begin gives the sequence its blocks and its place in the batch. It returns
// false if there are too few blocks yet.
func (e *Engine) begin(s *sequence, now time.Time) bool {
	lease, ok := e.cache.Open(s.reusable(), s.blocks())
	if !ok {
		return false
	}
	s.lease, s.began = lease, now
	s.cached = lease.Cached() * e.cfg.BlockSize
	s.prefilled = s.cached
	if s.adapter != "" {
		e.loras.acquire(s.adapter)
	}
	e.running = append(e.running, s)
	e.totals.CacheQueries += s.promptTokens
	e.totals.CacheHits += s.cached
	return true
}

// complete outputs the tokens of a finished step.
func (e *Engine) complete(p *plan) {
	now := time.Now()
	for _, s := range p.emit {
		if s.finish != "" {
			continue // aborted while the step ran
		}
		if !s.decoding() {
			e.totals.PromptTokens += s.promptTokens
			e.totals.Computed += s.promptTokens - s.cached
			e.totals.Reused += s.cached
		}
		s.emit(now)
		e.totals.GenerationTokens++
		if s.generated < s.answerTokens {
			s.signal()
			continue
		}
		reason := FinishLength
		if s.ends {
			reason = FinishStop
		}
		e.finish(s, reason)
	}
	e.noteLoRAs(now)
}

// finish removes a sequence and frees what it holds.
func (e *Engine) finish(s *sequence, reason FinishReason) {
	s.finish = reason
	now := time.Now()
	same := func(other *sequence) bool { return other == s }
	if s.lease != nil {
		e.running = slices.DeleteFunc(e.running, same)
		s.lease.Close()
		if s.adapter != "" {
			e.loras.release(s.adapter, now)
		}
	} else {
		e.waiting = slices.DeleteFunc(e.waiting, same)
	}
	e.noteLoRAs(now)
	s.signal()
	e.wakeUp()
}

func (e *Engine) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}
