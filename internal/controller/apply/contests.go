package apply

import (
	"sync"
	"time"

	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/clock"
)

// The shortest and longest times between two writes of the same content that another writer undoes each time.
const (
	firstWait = time.Second
	lastWait  = 10 * time.Minute
)

// Contests keep two writers from undoing each other's writes without end. With ENABLE_GATEWAY_API_INFERENCE_EXTENSION,
// istiod removes every status entry of an InferencePool that names a Gateway of its classes, waypoints included, and that
// istiod did not write. Immediate rewrites then came to 80 writes a second for a single pool. So content that was undone
// is written again once at once, as the other writer may have made a single mistake, and then with back-off. New content
// is written at once. The caller chooses the keys.
type Contests struct {
	backoff *flowcontrol.Backoff
	clock   clock.PassiveClock

	mu   sync.Mutex
	last map[string]*written
}

// written is the content that was last written under a key.
type written struct {
	what  string
	times int // writes of this content in a row
}

// NewContests makes Contests without entries.
func NewContests(c clock.Clock) *Contests {
	return &Contests{backoff: flowcontrol.NewFakeBackOff(firstWait, lastWait, c), clock: c, last: map[string]*written{}}
}

// Wait is how long the caller must wait before it writes the same content at the key again; zero if it may write now.
func (c *Contests) Wait(key, what string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.last[key]; w == nil || w.what != what || !c.backoff.IsInBackOffSinceUpdate(key, c.clock.Now()) {
		return 0
	}
	return c.backoff.Get(key)
}

// Wrote records a write. Again reports whether the write before had the same content. Tell reports whether this is the
// third such write, after which the caller should report the contest.
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
