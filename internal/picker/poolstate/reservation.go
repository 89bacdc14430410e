package poolstate

import (
	"net/netip"
	"strings"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/admission"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Reservation is one call's claim on an endpoint, until it is released: a call in flight and the prompt tokens that it
// brings. The zero value holds nothing. One goroutine owns it; its fields change with the pool's mutex held.
type Reservation struct {
	// PromptTokens is the prompt's length, and CachedTokens the part of it that the endpoint is taken to have cached.
	PromptTokens, CachedTokens int

	pool   *Pool
	texts  [selection.Choices]string
	picked int
	claim  selection.Claim
	blocks []uint64
	kept   int // how many of the blocks the endpoint had cached before the call
	brings int // tokens that the endpoint is expected to store for the call's prompt
	// withdrawn is the endpoint's count of withdrawals when the blocks were inserted.
	withdrawn uint64
	id        uint64
	// untokenized says that the prompt's tokens are to be learned from its first endpoint.
	untokenized bool
	// waited is whose call it was in the line; zero where it did not wait.
	waited admission.Served
	// theirs says that another picker picked for the call, and room is the memory of its blocks, in bytes.
	theirs bool
	room   int64
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

// Metrics are the metrics of the pool. The reservation must hold an endpoint.
func (r *Reservation) Metrics() *telemetry.PoolMetrics { return r.pool.metrics }

// ID is the call's id, by which the proxy may report that the call was broken off. A float64 holds it exactly, and it
// is never 0 while the reservation is held.
func (r *Reservation) ID() uint64 { return r.id }

// Endpoints appends the ranking to dst as "ip:port,ip:port", best first.
func (r *Reservation) Endpoints(dst []byte) []byte {
	for i, text := range r.texts[:r.picked] {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, text...)
	}
	return dst
}

// Served moves the reservation, and its blocks in the index, to the endpoint that really serves the call. If that is
// not the first choice, the first choice has failed, and the call counts as served elsewhere, unless the first choice
// is too new for the proxy to know it. If it is not an endpoint of the pool, the reservation is released, as the pool
// plans only for its own endpoints. Without a reservation Served does nothing.
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
		p.tell(r.id, Event{Kind: Released, Outcome: Refused, NotPrefilled: true})
		p.release(r, Refused, now)
		r.end()
		return
	}
	p.tell(r.id, Event{Kind: Moved, Endpoint: p.slots[n].addr})
	p.move(r, n, now)
}

// Responded notes the health that an answer's headers show of the endpoint that serves the call, long before the answer
// ends. Without a reservation it does nothing.
func (r *Reservation) Responded(outcome Outcome) {
	p := r.pool
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tell(r.id, Event{Kind: Responded, Outcome: outcome})
	p.choice.Responded(&r.claim, outcome, p.clock())
}

// Release ends the reservation. Without one, or a second time, it does nothing.
func (r *Reservation) Release(outcome Outcome) {
	p := r.pool
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.clock()
	p.charge(r, outcome, now)
	prefilled, unsure := p.release(r, outcome, now)
	p.tell(r.id, Event{Kind: Released, Outcome: outcome, NotPrefilled: !prefilled, Unsure: unsure})
	r.end()
	p.letGo(now)
}

func (r *Reservation) end() {
	r.pool.metrics.RequestEnded()
	*r = Reservation{PromptTokens: r.PromptTokens, CachedTokens: r.CachedTokens}
}

// Subset is a proxy's list of the endpoints that a call may go to.
type Subset struct {
	// Given says that the proxy restricts the call: with an empty list, no endpoint may serve.
	Given bool
	// Endpoints are the allowed endpoints, in no order. Port 0 stands for all ports of an address.
	Endpoints []netip.AddrPort
}

// Add adds an endpoint by the text that a proxy uses for it: ip:port, [ipv6]:port, an address without a port, or the
// name of an internal address that ends in one of these. It reports whether the text was understood.
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

// canonical maps an IPv4 address that is written as an IPv6 address to the IPv4 address.
func canonical(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
