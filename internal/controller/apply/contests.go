package apply

import (
	"sync"
	"time"

	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/clock"
)

// Times between two writes of one and the same thing, where another writer undoes each.
const (
	firstWait = time.Second
	lastWait  = 10 * time.Minute
)

// Contests keep two writers from undoing each other's words for ever. istiod, where its own support of InferencePools is
// on (ENABLE_GATEWAY_API_INFERENCE_EXTENSION), takes every entry of their status about a Gateway of its classes for its
// own, waypoints among them, and removes what it did not write: answered at once, that came to 80 writes a second for a
// single pool. So what was undone is written again once, as anybody may slip, and then ever more seldom. What is new is
// written at once. Keys are the caller's.
type Contests struct {
	backoff *flowcontrol.Backoff
	clock   clock.PassiveClock

	mu   sync.Mutex
	last map[string]*written
}

// written is what was last written under a key.
type written struct {
	what  string
	times int // in a row
}

// NewContests has no contest yet.
func NewContests(c clock.Clock) *Contests {
	return &Contests{backoff: flowcontrol.NewFakeBackOff(firstWait, lastWait, c), clock: c, last: map[string]*written{}}
}

// Wait is how long this must not be written at the key, as it has just been and was undone.
func (c *Contests) Wait(key, what string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.last[key]; w == nil || w.what != what || !c.backoff.IsInBackOffSinceUpdate(key, c.clock.Now()) {
		return 0
	}
	return c.backoff.Get(key)
}

// Wrote notes a write. It reports whether the same had been written before, and whether that has become a contest that
// nobody was told of.
func (c *Contests) Wrote(key, what string) (again, tell bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.last[key]
	if w == nil || w.what != what {
		c.last[key] = &written{what: what, times: 1}
		c.backoff.DeleteEntry(key)
		return false, false
	}
	w.times++
	c.backoff.Next(key, c.clock.Now())
	return true, w.times == 3
}

// Forget drops a key whose object is gone.
func (c *Contests) Forget(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.last, key)
	c.backoff.DeleteEntry(key)
}
