package engine

import (
	"slices"
	"strings"
	"time"
)

// Totals are in tokens, and never decrease.
type Totals struct {
	PromptTokens     int // of prompts that were computed or found in the cache
	GenerationTokens int
	CacheQueries     int // prompt tokens looked up in the prefix cache
	CacheHits        int // prompt tokens found there
	// Computed and Reused split PromptTokens by where the tokens came from. They count at a request's first token, where
	// CacheHits counts when it begins.
	Computed, Reused int
}

// Stats is the engine's state at one moment.
type Stats struct {
	// Waiting counts all requests that wait, and Deferred those of them that lack only their adapter.
	Running, Waiting      int
	Deferred              int
	UsedBlocks, NumBlocks int
	Totals                Totals
	// LoRAs are the recent sets of adapters in use, the current one last. It is
	// empty if MaxLoRAs is 0.
	LoRAs []LoRASet
}

// LoRASet names the adapters in use, sorted and joined by commas, and the last
// time at which they were. As in vLLM, whose front end hears of a request with its
// first token, an adapter is in use from a request's first token to its last.
type LoRASet struct {
	Adapters string
	At       time.Time
}

// Stats returns the current state.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.noteLoRAs(time.Now())
	return Stats{
		Running:    len(e.running),
		Waiting:    len(e.waiting),
		Deferred:   e.deferred(),
		UsedBlocks: e.cache.Used(),
		NumBlocks:  e.cache.Total(),
		Totals:     e.totals,
		LoRAs:      slices.Clone(e.history.sets),
	}
}

// noteLoRAs records which adapters are in use now.
func (e *Engine) noteLoRAs(now time.Time) {
	if e.cfg.MaxLoRAs > 0 {
		e.history.note(LoRASet{Adapters: adaptersInUse(e.running), At: now})
	}
}

// deferred counts the waiting requests that were skipped for want of their
// adapter. As in vLLM, a skipped request counts until it runs.
func (e *Engine) deferred() int {
	n := 0
	for _, s := range e.waiting {
		if s.skipped {
			n++
		}
	}
	return n
}

func adaptersInUse(sequences []*sequence) string {
	var names []string
	for _, s := range sequences {
		if s.adapter != "" && s.decoding() && !slices.Contains(names, s.adapter) {
			names = append(names, s.adapter)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// maxLoRASets bounds the history. vLLM keeps a series for each set it ever saw,
// and readers must find the newest. With the last 16 sets they must do so here
// too, and the page's size stays bounded.
const maxLoRASets = 16

// loraHistory holds distinct sets, the latest last.
type loraHistory struct{ sets []LoRASet }

func (h *loraHistory) note(set LoRASet) {
	h.sets = slices.DeleteFunc(h.sets, func(old LoRASet) bool {
		return old.Adapters == set.Adapters
	})
	if len(h.sets) == maxLoRASets {
		h.sets = slices.Delete(h.sets, 0, 1)
	}
	h.sets = append(h.sets, set)
}
