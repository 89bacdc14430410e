package poolstate

import (
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/prefixindex"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/picksettings"
)

// A picker that starts gets a copy of what another one knows and cannot read from the servers: what each endpoint holds of
// prompts, and how fast it was. Calls in flight are not copied: the endpoints report them as calls of others.

// partBlocks is how many blocks a part of a copy has: 64 KiB of them, and no more than one path beyond.
const partBlocks = 8 << 10

// Part is a part of what a picker knows of one endpoint. The parts of an endpoint follow each other.
type Part struct {
	Pool     types.NamespacedName
	Endpoint netip.AddrPort
	// Process distinguishes the server from earlier and later ones at the address.
	Process string
	Learned selection.Learned
	// Capacity is what the server reported of its cache, in blocks of the index; 0 where it did not.
	Capacity int
	// First says that this is the endpoint's first part.
	First  bool
	Pieces []prefixindex.Piece
}

// Copy yields all that the fleet knows, in parts, until yield returns false. Picks go on meanwhile.
func (f *Fleet) Copy(yield func(*Part) bool) {
	for _, p := range *f.pools.Load() {
		snap := p.snapshot.Load()
		for i, n := range snap.numbers {
			if !p.copyOf(n, snap.endpoints[i].Address, yield) {
				return
			}
		}
	}
}

// copyOf yields what the pool knows of one endpoint, and reports whether yield wants more.
func (p *Pool) copyOf(n int32, address netip.AddrPort, yield func(*Part) bool) bool {
	part := &Part{Pool: p.name, Endpoint: address, First: true}
	var is bool
	if part.Process, part.Learned, part.Capacity, is = p.learnedOf(n, address); !is {
		return true
	}
	blocks := 0
	wanted := true
	flush := func() bool {
		if process, _, _, is := p.learnedOf(n, address); !is || process != part.Process {
			return false // another endpoint has the number, or another server the address
		}
		wanted = yield(part)
		part = &Part{Pool: part.Pool, Endpoint: part.Endpoint, Process: part.Process}
		blocks = 0
		return wanted
	}
	p.index.Copy(int(n), func(piece prefixindex.Piece) bool {
		piece.Blocks = slices.Clone(piece.Blocks)
		part.Pieces = append(part.Pieces, piece)
		blocks += len(piece.Blocks) + 1
		return blocks < partBlocks || flush()
	})
	return wanted && (flush() || wanted)
}

// learnedOf returns which server endpoint n is, what was learned of it, and its cache's capacity. It reports false where n is not
// the address's.
func (p *Pool) learnedOf(n int32, address netip.AddrPort) (process string, l selection.Learned, capacity int, is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.slots[n]
	if !s.member || s.addr != address {
		return "", l, 0, false
	}
	return s.process, p.choice.Learned(n, p.clock()), s.blocks, true
}

// Taker takes the parts of one copy.
type Taker struct {
	fleet  *Fleet
	merger *prefixindex.Merger // nil while the parts are of an endpoint that is not known here
}

// Taker makes a taker of a copy.
func (f *Fleet) Taker() *Taker { return &Taker{fleet: f} }

// Take adds a part to what the fleet knows. Parts of unknown pools, endpoints and servers change nothing.
func (t *Taker) Take(part *Part) {
	if part.First {
		t.merger = nil
		if p := t.fleet.Pool(part.Pool); p != nil {
			t.merger = p.mergerOf(part)
		}
	}
	for i := range part.Pieces {
		if t.merger == nil || !t.merger.Merge(part.Pieces[i]) {
			return
		}
	}
}

// mergerOf takes what was learned of a part's endpoint, and begins to merge what it holds.
func (p *Pool) mergerOf(part *Part) *prefixindex.Merger {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, known := p.byAddr[part.Endpoint]
	if !known || !p.slots[n].member || p.slots[n].process != part.Process {
		return nil
	}
	p.choice.Learn(n, part.Learned, p.clock())
	if p.slots[n].blocks == 0 && part.Capacity > 0 { // what is copied must not be cut before the server is read
		p.index.SetCapacity(int(n), min(part.Capacity, picksettings.MostTokens/selection.BlockTokens))
	}
	return p.index.Merger(int(n))
}
