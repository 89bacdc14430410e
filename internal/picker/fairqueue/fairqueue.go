// Package fairqueue gives tenants that do not trust each other turns at a scarce resource, such as the processors: each
// waiting tenant is served once before any is served twice. It must not know what the resource is.
package fairqueue

import (
	"sync"
	"time"
)

// Queue has places, and a line for each tenant that waits for one. The lines are served in turn, each in the order of
// arrival. Its methods may be called from several goroutines.
type Queue struct {
	mu    sync.Mutex
	free  int // free places; 0 while somebody waits
	lines map[string]*line
	turns []*line // the lines in which somebody may wait, the next one first
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

// Enter takes a place for a tenant, and waits for one no longer than patience. If it returns true, Leave must follow.
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
	case <-w.called: // the turn came as the time ended
		return true
	default:
		w.gone = true
		return false
	}
}

// enter takes a free place and returns nil, or adds a waiter to the tenant's line.
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

// Leave passes the place to the next waiter.
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

// next removes the first waiter that still waits from the line; nil where there is none.
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
