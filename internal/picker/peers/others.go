package peers

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Other is another picker.
type Other struct {
	// Process is its own id; "" where it is not followed.
	Process string
	// Name is its name for people; its address where it tells none.
	Name string
	// Silent is how long ago it last told something: a second at most where all is well.
	Silent time.Duration
}

// heard is what is known of a picker that is followed.
type heard struct {
	address netip.AddrPort
	name    string
	at      atomic.Int64 // when it last told something, on the clock of Peers
}

// clock is the time since these Peers were made.
func (p *Peers) clock() time.Duration { return time.Since(p.made) }

// Others lists the other pickers, those that are not followed too, in the order of their names. On nil Peers there are none.
func (p *Peers) Others() (out []Other) {
	if p == nil {
		return nil
	}
	now := p.clock()
	p.mu.Lock()
	for process, of := range p.processes {
		out = append(out, Other{process, cmp.Or(of.name, of.address.String()), max(0, now-time.Duration(of.at.Load()))})
	}
	p.mu.Unlock()
	for _, address := range p.roll.absent() {
		out = append(out, Other{Name: address.String()})
	}
	slices.SortFunc(out, func(a, b Other) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// mostName bounds a picker's name, in bytes, as Kubernetes bounds a pod's.
const mostName = 253

// nameOf returns the name that a picker tells; "" if it is none of a host.
func nameOf(told string) string {
	strange := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r)
	}
	if len(told) > mostName || strings.ContainsFunc(told, strange) {
		return ""
	}
	return told
}
