package peers

import (
	"net/netip"
	"sync"
)

// roll is the roll of all pickers: which of them have answered, and which are followed.
type roll struct {
	mu       sync.Mutex
	answered map[netip.AddrPort]answer // of those that have answered
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

// answer is what is known of an address.
type answer uint8

const (
	absent   answer = iota // nobody is there who can be followed
	followed               // the picker is followed
	known                  // it is this picker, or another address of one that is followed
)

// note says what is known of an address.
func (r *roll) note(address netip.AddrPort, a answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.answered == nil {
		r.answered = map[netip.AddrPort]answer{}
	}
	r.answered[address] = a
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

// absent lists the addresses at which no picker can be followed.
func (r *roll) absent() (out []netip.AddrPort) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.members {
		if answer, answered := r.answered[m]; !answered || answer == absent {
			out = append(out, m)
		}
	}
	return out
}

// present lists the pickers that are followed, and says whether there are no others.
func (r *roll) present() (out []netip.AddrPort, all bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all = true
	for _, m := range r.members {
		switch r.answered[m] {
		case followed:
			out = append(out, m)
		case absent:
			all = false
		}
	}
	return out, all
}
