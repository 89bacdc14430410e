package poolstate

import (
	"net/netip"
	"strings"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Reservation is one call's claim on an endpoint, until it is released: a call in flight and the prompt tokens that it
// brings. The zero value holds nothing. It belongs to one goroutine; what is in it changes with the pool's mutex held.
type Reservation struct {
	// PromptTokens is the prompt's length, and CachedTokens the part of it that the endpoint is taken to hold.
	PromptTokens, CachedTokens int

	pool   *Pool
	texts  [selection.Choices]string
	picked int
	claim  selection.Claim
	blocks []uint64
	kept   int // so many of the blocks the endpoint held before
	// withdrawn is the endpoint's count of withdrawals when the blocks were inserted.
	withdrawn uint64
	id        uint64
}

// Outcome is how a call ended.
type Outcome = selection.Outcome

// The outcomes.
const (
	Abandoned = selection.Abandoned
	Ended     = selection.Ended
	Answered  = selection.Answered
	Refused   = selection.Refused
	Shed      = selection.Shed
	Failed    = selection.Failed
)

// Held says whether the reservation holds an endpoint.
func (r *Reservation) Held() bool { return r.pool != nil }

// Metrics are those of the pool of a reservation that holds an endpoint.
func (r *Reservation) Metrics() *telemetry.PoolMetrics { return r.pool.metrics }

// ID names the call to the proxy, which may tell by it that the call was broken off. A float64 holds it exactly, and it is never
// 0 while the reservation is held.
func (r *Reservation) ID() uint64 { return r.id }

// Endpoints is the ranking as "ip:port,ip:port", best first, appended to dst.
func (r *Reservation) Endpoints(dst []byte) []byte {
	for i, text := range r.texts[:r.picked] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, text...)
	}
	return dst
}

// Served moves the reservation to the endpoint that really serves the call, and with it the memory of the prompt. Where
// that is not the first choice, the first choice has failed, and the call counts as served elsewhere; or it is too new for
// the proxy to know it. An address that is not one of the pool's leaves the reservation without a charge: whatever serves
// is not ours to plan. Without a reservation it does nothing.
func (r *Reservation) Served(addr netip.AddrPort) {
	p := r.pool
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	n, ours := p.byAddr[canonical(addr)]
	if ours && n == r.claim.Endpoint {
		return
	}
	if p.choice.Known(r.claim.Endpoint, now) {
		p.metrics.ServedElsewhere()
	}
	if !ours {
		p.release(r, Refused, now)
		r.end()
		return
	}
	p.move(r, n, now)
}

// Responded notes what the head of the answer tells of the endpoint that serves the call: it is well, or not, long before
// the answer ends. Without a reservation it does nothing.
func (r *Reservation) Responded(outcome Outcome) {
	p := r.pool
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.choice.Responded(&r.claim, outcome, p.clock())
}

// Release gives the claim back. Again, or without a reservation, it does nothing.
func (r *Reservation) Release(outcome Outcome) {
	p := r.pool
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.release(r, outcome, p.clock())
	r.end()
}

func (r *Reservation) end() {
	r.pool.metrics.RequestEnded()
	*r = Reservation{PromptTokens: r.PromptTokens, CachedTokens: r.CachedTokens}
}

// Subset is a proxy's list of the endpoints that a call may go to.
type Subset struct {
	// Given says that the proxy restricts the call: with no endpoint in the list, none may serve.
	Given bool
	// Endpoints are the admitted ones, in no order. Port 0 stands for all ports of an address.
	Endpoints []netip.AddrPort
}

// Add admits an endpoint by the text that a proxy uses for it: ip:port, [ipv6]:port, an address without a port, or
// the name of an internal address that ends in one of these. It reports whether the text was understood.
func (s *Subset) Add(text string) bool {
	addr, ok := ParseEndpoint(text)
	if ok {
		s.Endpoints = append(s.Endpoints, addr)
	}
	return ok
}

// ParseEndpoint reads an endpoint's address in any of the forms in which proxies name it: "10.0.0.1:8000",
// "[fd00::1]:8000", "10.0.0.1", "fd00::1", "[fd00::1]", and Envoy's names of internal addresses such as
// "envoy://connect_originate/10.0.0.1:8000". The port is 0 where there is none.
func ParseEndpoint(text string) (netip.AddrPort, bool) {
	text = strings.TrimSpace(text[strings.LastIndexByte(text, '/')+1:])
	if addr, err := netip.ParseAddrPort(text); err == nil {
		return canonical(addr), true
	}
	if bare, ok := strings.CutPrefix(text, "["); ok {
		text = strings.TrimSuffix(bare, "]")
	}
	addr, err := netip.ParseAddr(text)
	return canonical(netip.AddrPortFrom(addr, 0)), err == nil
}

// canonical makes the two writings of an IPv4 address in an IPv6 one and its own the same.
func canonical(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
