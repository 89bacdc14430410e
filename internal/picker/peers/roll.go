package peers

import (
	"net/netip"
	"sync"
)

// roll is the roll of all pickers: which of them have answered, and which are followed.
type roll struct {
	mu       sync.Mutex
	answered map[netip.AddrPort]bool // whether each is followed, by those that have answered
	members  []netip.AddrPort
	called   bool
	ended    bool
	all      chan struct{} // closed when all have answered
}

// call says who is there.
func (r *roll) call(members []netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members, r.called = members, true
	r.look()
}

// note says that a picker was asked, and whether it is followed now.
func (r *roll) note(address netip.AddrPort, followed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answered == nil {
		r.answered = map[netip.AddrPort]bool{}
	}
	r.answered[address] = followed
	r.look()
}

func (r *roll) look() {
	for _, m := range r.members {
		if _, answered := r.answered[m]; !answered {
			return
		}
	}
	if r.called && !r.ended {
		r.ended = true
		close(r.all)
	}
}

// present lists the pickers that are followed.
func (r *roll) present() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []netip.AddrPort
	for _, m := range r.members {
		if r.answered[m] {
			out = append(out, m)
		}
	}
	return out
}
