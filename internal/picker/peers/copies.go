package peers

import (
	"net/netip"
	"time"

	"google.golang.org/grpc"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/prefixindex"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/selection"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// part is a poolstate.Part.
type part struct {
	Pool     string  `cbor:"1,keyasint"`
	Endpoint string  `cbor:"2,keyasint"`
	Process  string  `cbor:"3,keyasint,omitempty"`
	First    bool    `cbor:"4,keyasint,omitempty"`
	Tokens   float64 `cbor:"5,keyasint,omitempty"`
	Seconds  float64 `cbor:"6,keyasint,omitempty"`
	Capacity int     `cbor:"11,keyasint,omitempty"`
	// The pieces: of each the number of blocks kept, its age, and the number of its own blocks, which follow each other in Blocks.
	Keeps  []uint32 `cbor:"7,keyasint,omitempty"`
	Ages   []uint64 `cbor:"8,keyasint,omitempty"`
	Counts []uint32 `cbor:"9,keyasint,omitempty"`
	Blocks []byte   `cbor:"10,keyasint,omitempty"`
}

func fromPart(of *poolstate.Part) *part {
	out := &part{
		Pool: of.Pool.String(), Endpoint: of.Endpoint.String(), Process: of.Process, First: of.First,
		Tokens: of.Learned.Tokens, Seconds: of.Learned.Seconds, Capacity: of.Capacity,
	}
	for _, p := range of.Pieces {
		out.Keeps = append(out.Keeps, uint32(p.Keep))
		out.Ages = append(out.Ages, p.Age)
		out.Counts = append(out.Counts, uint32(len(p.Blocks)))
		out.Blocks = appendBlocks(out.Blocks, p.Blocks)
	}
	return out
}

func (p *part) part() (*poolstate.Part, error) {
	out := &poolstate.Part{Process: p.Process, First: p.First, Capacity: p.Capacity, Learned: selection.Learned{Tokens: p.Tokens, Seconds: p.Seconds}}
	var named bool
	var err error
	out.Pool, named = pool.ParseName(p.Pool)
	if out.Endpoint, err = netip.ParseAddrPort(p.Endpoint); err != nil || !named || len(p.Ages) != len(p.Keeps) || len(p.Counts) != len(p.Keeps) {
		return nil, errNotUnderstood
	}
	rest := p.Blocks
	for i, keep := range p.Keeps {
		size := 8 * int(p.Counts[i])
		if keep > request.MaxBlocks || size > len(rest) {
			return nil, errNotUnderstood
		}
		blocks, whole := unpacked(rest[:size])
		if !whole {
			return nil, errNotUnderstood
		}
		out.Pieces = append(out.Pieces, prefixindex.Piece{Keep: int(keep), Blocks: blocks, Age: p.Ages[i]})
		rest = rest[size:]
	}
	return out, nil
}

// giveCopy sends all that the fleet knows, to one picker at a time.
func (p *Peers) giveCopy(s grpc.ServerStream) error {
	if err := p.awaitTurn(s); err != nil {
		return err
	}
	defer func() { <-p.giving }()
	if err := s.SendMsg(encode(&message{Complete: p.complete.Load()})); err != nil {
		return err
	}
	var err error
	p.fleet.Copy(func(of *poolstate.Part) bool {
		err = s.SendMsg(encode(&message{Part: fromPart(of)}))
		return err == nil
	})
	if err == nil {
		p.options.Metrics.CopyGiven()
	}
	return err
}

// awaitTurn waits until no other picker is given a copy, and says meanwhile that this one is there.
func (p *Peers) awaitTurn(s grpc.ServerStream) error {
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for {
		select {
		case p.giving <- struct{}{}:
			return nil
		case <-s.Context().Done():
			return s.Context().Err()
		case <-beats.C:
		}
		if err := s.SendMsg(alive); err != nil {
			return err
		}
	}
}
