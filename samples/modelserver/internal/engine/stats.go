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
}

// Stats is the engine's state at one moment.
type Stats struct {
	Running, Waiting      int
	UsedBlocks, NumBlocks int
	Totals                Totals
	// LoRAs are the recent sets of adapters, the current one last. It is empty if
	// MaxLoRAs is 0.
	LoRAs []LoRASet
}

// LoRASet names the adapters of running and waiting requests, sorted and joined
// by commas, and the last time at which that was so.
type LoRASet struct {
	Running, Waiting string
	At               time.Time
}

// Stats returns the current state.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.noteLoRAs(time.Now())
	return Stats{
		Running:    len(e.running),
		Waiting:    len(e.waiting),
		UsedBlocks: e.cache.Used(),
		NumBlocks:  e.cache.Total(),
		Totals:     e.totals,
		LoRAs:      slices.Clone(e.history.sets),
	}
}

// noteLoRAs records which adapters are in use now.
func (e *Engine) noteLoRAs(now time.Time) {
	if e.cfg.MaxLoRAs > 0 {
		e.history.note(LoRASet{Running: adaptersOf(e.running), Waiting: adaptersOf(e.waiting), At: now})
	}
}

func adaptersOf(sequences []*sequence) string {
	var names []string
	for _, s := range sequences {
		if s.adapter != "" && !slices.Contains(names, s.adapter) {
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
		return old.Running == set.Running && old.Waiting == set.Waiting
	})
	if len(h.sets) == maxLoRASets {
		h.sets = slices.Delete(h.sets, 0, 1)
	}
	h.sets = append(h.sets, set)
}
