// Package fairqueue lets tenants that do not trust each other take turns at something that only few can have at once,
// such as the processors: however many of one tenant's wait, the next of another's waits for one of them.
package fairqueue

import (
	"sync"
	"time"
)

// Queue has places, and lines of those that wait for one: a line for each tenant, which are served in turn, and within
// each the first comes first. Its methods may be called from several goroutines.
type Queue struct {
	mu    sync.Mutex
	free  int // places; none while somebody waits
	lines map[string]*line
	turns []*line // those in which somebody may wait, the next first
}

type line struct {
	tenant  string
	waiting []*waiter
}

type waiter struct {
	called chan struct{} // closed with the mutex held
	gone   bool
}

// New makes a queue with so many places.
func New(places int) *Queue { return &Queue{free: places, lines: map[string]*line{}} }

// Enter takes a place for a tenant, and waits for it, but no longer than the patience lasts. Leave must follow where it is
// true.
func (q *Queue) Enter(tenant string, patience time.Duration) bool {
	w := q.enter(tenant)
	if w == nil {
		return true
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-w.called:
		return true
	case <-late.C:
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-w.called: // at the last moment
		return true
	default:
		w.gone = true
		return false
	}
}

// enter takes a place that is free, or goes into the tenant's line.
func (q *Queue) enter(tenant string) *waiter {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.free > 0 {
		q.free--
		return nil
	}
	l := q.lines[tenant]
	if l == nil {
		l = &line{tenant: tenant}
		q.lines[tenant] = l
		q.turns = append(q.turns, l)
	}
	w := &waiter{called: make(chan struct{})}
	l.waiting = append(l.waiting, w)
	return w
}

// Leave gives a place to the next in turn.
func (q *Queue) Leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.turns) > 0 {
		l := q.turns[0]
		q.turns = q.turns[1:]
		w := l.next()
		if len(l.waiting) > 0 {
			q.turns = append(q.turns, l)
		} else {
			delete(q.lines, l.tenant)
		}
		if w != nil {
			close(w.called)
			return
		}
	}
	q.free++
}

// next takes the first who still waits out of the line; nil where there is none.
func (l *line) next() *waiter {
	for len(l.waiting) > 0 {
		w := l.waiting[0]
		l.waiting = l.waiting[1:]
		if !w.gone {
			return w
		}
	}
	return nil
}
