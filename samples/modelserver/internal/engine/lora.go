package engine

import (
	"maps"
	"slices"
	"time"
)

// loraSlots are the adapters that are resident or loading. An idle adapter stays
// until another one needs its slot.
type loraSlots struct {
	max      int
	loadTime time.Duration
	slots    map[string]*loraSlot
}

type loraSlot struct {
	ready    time.Time // when the load ends
	users    int       // number of running requests
	lastUsed time.Time
}

// ready reports whether a request for the adapter can run now. If the adapter
// is absent, its load begins as soon as a slot is free or idle.
func (l *loraSlots) ready(adapter string, now time.Time) bool {
	if slot, ok := l.slots[adapter]; ok {
		return !slot.ready.After(now)
	}
	if len(l.slots) >= l.max && !l.evictIdle(now) {
		return false
	}
	ready := now.Add(l.loadTime)
	l.slots[adapter] = &loraSlot{ready: ready, lastUsed: ready}
	return !ready.After(now)
}

// evictIdle evicts the resident adapter that has been idle longest. It returns
// false if all are in use or loading.
func (l *loraSlots) evictIdle(now time.Time) bool {
	victim := ""
	for _, adapter := range slices.Sorted(maps.Keys(l.slots)) {
		slot := l.slots[adapter]
		if slot.idle(now) && (victim == "" || slot.lastUsed.Before(l.slots[victim].lastUsed)) {
			victim = adapter
		}
	}
	delete(l.slots, victim)
	return victim != ""
}

func (s *loraSlot) idle(now time.Time) bool { return s.users == 0 && !s.ready.After(now) }

// unload empties the adapter's slot if it is idle.
func (l *loraSlots) unload(adapter string, now time.Time) {
	if slot, ok := l.slots[adapter]; ok && slot.idle(now) {
		delete(l.slots, adapter)
	}
}

// acquire and release count the running requests of a ready adapter.
func (l *loraSlots) acquire(adapter string) { l.slots[adapter].users++ }

func (l *loraSlots) release(adapter string, now time.Time) {
	slot := l.slots[adapter]
	slot.users--
	slot.lastUsed = now
}

// nextReady returns the end of the next load, if one is in progress.
func (l *loraSlots) nextReady(now time.Time) (next time.Time, ok bool) {
	for _, slot := range l.slots {
		if slot.ready.After(now) && (!ok || slot.ready.Before(next)) {
			next, ok = slot.ready, true
		}
	}
	return next, ok
}
