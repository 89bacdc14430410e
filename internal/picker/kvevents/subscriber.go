package kvevents

import (
	"context"
	"net/netip"
	"sync"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
)

// Target is a model server whose events are received.
type Target struct {
	// URL is the server's base URL, such as http://10.0.0.7:8000.
	URL string
	// Tenant is the owner of the endpoint.
	Tenant string
}

// mostNames is how many blocks a Change has at most.
const mostNames = 4096

// Change is the net effect of a message, or of a part of one that touches more than 4,096 blocks; the parts come in
// order. No block is in both lists. A Change without anything in it says that the events are received again after a
// failure.
type Change struct {
	// Cleared says that whatever was told before is void, ahead of the rest. It is set in the first Change of an endpoint.
	Cleared bool
	// Stored and Removed are names (see package tokenblocks) of whole blocks, each of BlockTokens tokens. A block is removed
	// when no data-parallel rank of the endpoint has it in any medium.
	Stored  []uint64
	Removed []uint64
	// BlockTokens is the length of the server's blocks; 0 where it is not known yet. It only changes with Cleared.
	BlockTokens int
}

// Sink receives the changes of all endpoints. Many goroutines call its methods, but never two at once for one endpoint;
// a method that blocks delays that endpoint's events. One more late call may come for an endpoint that Update has just
// removed.
type Sink interface {
	// CacheChanged receives a change. Its slices are only valid during the call.
	CacheChanged(endpoint netip.AddrPort, c Change)
	// EventsFailed reports that an endpoint's events are not received, for the n-th time in a row: the server says of no
	// source, does not accept a connection, does not speak the protocol, or sends more than is read. What was told before
	// stays as it is after one failure, and is void after two. Ranks, and the question for the sources, are counted apart.
	EventsFailed(endpoint netip.AddrPort, n int, err error)
}

// Subscriber receives the events of endpoints, each in goroutines of its own. Any goroutine may call its methods at any
// time.
type Subscriber struct {
	options  Options
	sink     Sink
	fallback uint16 // the port where a server does not say its sources
	memory   *fairshare.Whole

	mu        sync.Mutex
	closed    bool
	endpoints map[netip.AddrPort]*endpoint
	last      map[netip.AddrPort]*endpoint // the newest of each address whose goroutine has not ended
	tenants   map[string]*tenant           // a tenant without endpoints stays, so that it has its old rate when endpoints come back
	running   sync.WaitGroup
}

// New returns a subscriber without endpoints. The options must be valid. The caller must call Close in the end.
func New(options Options, sink Sink) *Subscriber {
	return &Subscriber{
		options:   options,
		sink:      sink,
		fallback:  defaultPort,
		memory:    fairshare.New(options.MaxBytes),
		endpoints: map[netip.AddrPort]*endpoint{},
		last:      map[netip.AddrPort]*endpoint{},
		tenants:   map[string]*tenant{},
	}
}

// Update sets the targets of endpoints, and no longer receives events of the endpoints in gone; all others stay as they
// are. An endpoint whose target is unchanged goes on undisturbed. After Close, Update does nothing.
func (s *Subscriber) Update(targets map[netip.AddrPort]Target, gone []netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, address := range gone {
		s.stop(address)
	}
	for address, target := range targets {
		if known, ok := s.endpoints[address]; ok && known.Target == target {
			continue
		}
		s.stop(address)
		s.start(address, target)
	}
}

func (s *Subscriber) stop(address netip.AddrPort) {
	if e, ok := s.endpoints[address]; ok {
		e.cancel()
		delete(s.endpoints, address)
	}
}

// start receives an endpoint's events once the goroutine has ended that did so before.
func (s *Subscriber) start(address netip.AddrPort, target Target) {
	t := s.tenants[target.Tenant]
	if t == nil {
		t = newTenant(s.options, s.memory.Of(target.Tenant))
		s.tenants[target.Tenant] = t
	}
	e := newEndpoint(s, address, target, t)
	e.ctx, e.cancel = context.WithCancel(context.Background())
	before := s.last[address]
	s.endpoints[address], s.last[address] = e, e
	s.running.Go(func() {
		if before != nil {
			<-before.done
		}
		e.run()
		close(e.done)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.last[address] == e {
			delete(s.last, address)
		}
	})
}

// Close ends all connections and waits for their goroutines. Afterwards no method of the sink is called any more.
func (s *Subscriber) Close() {
	s.mu.Lock()
	s.closed = true
	for _, e := range s.endpoints {
		e.cancel()
	}
	clear(s.endpoints)
	s.mu.Unlock()
	s.running.Wait()
}
