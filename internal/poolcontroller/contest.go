package poolcontroller

import (
	"fmt"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/poolstatus"
)

// Times between two writes of one and the same status, where another controller undoes each.
const (
	firstWait = time.Second
	lastWait  = 10 * time.Minute
)

// contests keeps two controllers from undoing each other's words for ever. istiod, where its own support of
// InferencePools is on (ENABLE_GATEWAY_API_INFERENCE_EXTENSION), takes every entry about a Gateway of its classes for its
// own, waypoints among them, and removes what it did not write: answered at once, that came to 80 writes a second for a
// single pool. So a status that was undone is written again once, as anybody may slip, and then ever more seldom.
type contests struct {
	mu   sync.Mutex
	last map[types.NamespacedName]written
}

// written is the last status that was written of a pool.
type written struct {
	what string
	at   time.Time
	wait time.Duration // before what is written again
	told bool
}

// said identifies what a pool's status is to say.
func said(generation int64, parents []poolstatus.Parent) string {
	return fmt.Sprint(generation, parents)
}

// wait is how long a status must not be written, as it has just been and was undone.
func (c *contests) wait(pool types.NamespacedName, what string, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	w, ok := c.last[pool]
	if !ok || w.what != what {
		return 0
	}
	return max(w.at.Add(w.wait).Sub(now), 0)
}

// wrote notes a write. It reports whether the same had been written before, and whether that has become a contest that
// nobody was told of.
func (c *contests) wrote(pool types.NamespacedName, what string, now time.Time) (again, tell bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.last[pool]
	if again = w.what == what; again {
		tell = w.wait > 0 && !w.told
		w.told = w.told || tell
		w.wait = min(max(2*w.wait, firstWait), lastWait)
	} else {
		w = written{what: what}
	}
	w.at = now
	if c.last == nil {
		c.last = map[types.NamespacedName]written{}
	}
	c.last[pool] = w
	return again, tell
}

// forget drops a pool that is gone.
func (c *contests) forget(pool types.NamespacedName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.last, pool)
}
