package poolstate

import (
	"slices"
	"time"
)

// Endpoints that leave a pool often come back with their cache: busy model servers miss readiness probes. So the state
// of an endpoint that left is kept for a time. All functions here but tidy need the pool's mutex.

const (
	// rememberFor is how long a departed endpoint's state is kept. Endpoints that stay away longer were mostly deleted.
	rememberFor = 5 * time.Minute
	// mostRemembered bounds how many such endpoints a pool remembers: a rollout replaces all pods of a pool.
	mostRemembered = 32
)

// leave removes an endpoint from the pool, and remembers it.
func (p *Pool) leave(n int32) {
	s := &p.slots[n]
	if !s.member {
		return // another server has the endpoint's address
	}
	s.member, s.remembered, s.leftAt = false, true, p.clock()
	p.untell(n)
	s.restarts = -1 // restarts are counted anew when the endpoint is read again
	p.left = append(p.left, n)
	if len(p.left) > mostRemembered {
		p.expire(p.left[0])
	}
	if !p.tidying {
		p.tidying = true
		p.after(rememberFor, p.tidy)
	}
}

// replaced removes an endpoint whose address another server has now.
func (p *Pool) replaced(n int32) {
	p.slots[n].member = false
	p.untell(n)
	delete(p.byAddr, p.slots[n].addr)
	p.expire(n)
}

// expire forgets an endpoint that left.
func (p *Pool) expire(n int32) {
	p.left = slices.DeleteFunc(p.left, func(of int32) bool { return of == n })
	p.slots[n].remembered = false
	p.forget(n)
	p.reuse(n)
}

// tidy forgets the endpoints that left long ago. Its timer runs also in a pool without calls.
func (p *Pool) tidy() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	for len(p.left) > 0 && p.slots[p.left[0]].leftAt+rememberFor <= now {
		p.expire(p.left[0])
	}
	if p.tidying = len(p.left) > 0; p.tidying {
		p.after(max(p.slots[p.left[0]].leftAt+rememberFor-now, time.Second), p.tidy)
	}
}
