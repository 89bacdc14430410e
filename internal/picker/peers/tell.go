package peers

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
)

const (
	// flushEvery is for how long events are collected into one message. A message to two pickers costs as much as some 50 to
	// 200 events (docs/design.md), and a picker that takes over a pool misses what was decided since the last one.
	flushEvery = 200 * time.Millisecond
	// beat is how often a picker without events says that it is there.
	beat = time.Second
	// mostUnsent bounds what waits to be sent to one follower, in bytes: ten seconds of 1,000 calls a second.
	mostUnsent = 16 << 20
	// mostPending bounds the events that wait to be encoded. The mutex is held for some 100 ns for each, so only a process that
	// gets no processor for seconds has so many.
	mostPending = 100_000
	// mostFollowers bounds how many pickers follow. Each costs memory and a copy of all messages.
	mostFollowers = 32
)

// alive says that this picker is there.
var alive = encode(&message{})

// follower is one picker that follows this one.
type follower struct {
	unsent []encoded
	bytes  int
	cut    bool
	wake   chan struct{}
}

// Followed says whether any picker follows.
func (p *Peers) Followed() bool { return p.followed.Load() }

// batch are events that are told in one message. Its memory is used again.
type batch struct {
	events []event
	blocks []byte // of all events
}

// mostKept bounds the memory that a batch keeps for the next one, in bytes of blocks.
const mostKept = 4 << 20

func (b *batch) add(e *poolstate.Event) {
	out := fromEvent(e)
	if from := len(b.blocks); len(e.Facts.Blocks) > 0 {
		b.blocks = appendBlocks(b.blocks, e.Facts.Blocks) // where this moves them, the events before keep the old ones
		out.Blocks = b.blocks[from:len(b.blocks):len(b.blocks)]
	}
	b.events = append(b.events, out)
}

func (b *batch) empty() {
	clear(b.events)
	b.events, b.blocks = b.events[:0], b.blocks[:0]
	if cap(b.blocks) > mostKept {
		*b = batch{}
	}
}

// Tell tells all that follow of an event, a moment later. It copies the event's blocks.
func (p *Peers) Tell(e *poolstate.Event) {
	p.mu.Lock()
	first := len(p.pending.events) == 0
	if len(p.pending.events) < mostPending {
		p.pending.add(e)
	} else {
		p.cutAll()
	}
	p.mu.Unlock()
	if first {
		select {
		case p.kick <- struct{}{}:
		default:
		}
	}
}

// cutAll makes all followers begin again with a copy.
func (p *Peers) cutAll() {
	for f := range p.followers {
		p.cut(f)
	}
}

func (p *Peers) cut(f *follower) {
	f.cut, f.unsent, f.bytes = true, nil, 0
	wake(f.wake)
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send encodes what is pending, once for all followers, until the context ends.
func (p *Peers) send(ctx context.Context) {
	var told batch
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.kick:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(flushEvery):
		}
		p.mu.Lock()
		told, p.pending = p.pending, told
		p.mu.Unlock()
		p.options.Metrics.Told(len(told.events))
		bytes := encode(&message{Events: told.events})
		told.empty()
		p.mu.Lock()
		for f := range p.followers {
			p.queue(f, bytes)
		}
		p.mu.Unlock()
	}
}

func (p *Peers) queue(f *follower, bytes encoded) {
	if f.cut {
		return
	}
	if f.bytes += len(bytes); f.bytes > mostUnsent {
		p.options.Metrics.Cut()
		p.cut(f)
		return
	}
	f.unsent = append(f.unsent, bytes)
	wake(f.wake)
}

// follow serves one picker that follows this one, until it ends the stream or cannot follow any more.
func (p *Peers) follow(s grpc.ServerStream) error {
	f, err := p.join()
	if err != nil {
		return err
	}
	defer p.leave(f)
	if err := s.SendMsg(encode(&message{Process: p.process})); err != nil {
		return err
	}
	return p.sendTo(f, s)
}

// sendTo sends a follower what is queued for it.
func (p *Peers) sendTo(f *follower, s grpc.ServerStream) error {
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for {
		next := []encoded{alive}
		select {
		case <-s.Context().Done():
			return nil
		case <-beats.C:
		case <-f.wake:
			p.mu.Lock()
			next, f.unsent, f.bytes = f.unsent, nil, 0
			cut := f.cut
			p.mu.Unlock()
			if cut {
				return status.Error(codes.ResourceExhausted, "this picker does not follow fast enough: it must follow anew and take a copy")
			}
		}
		for _, bytes := range next {
			if err := s.SendMsg(bytes); err != nil {
				return err
			}
		}
	}
}

func (p *Peers) join() (*follower, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.followers) >= mostFollowers {
		return nil, status.Errorf(codes.ResourceExhausted, "%d pickers follow this one already", mostFollowers)
	}
	f := &follower{wake: make(chan struct{}, 1)}
	p.followers[f] = struct{}{}
	p.followed.Store(true)
	p.options.Metrics.SetFollowers(len(p.followers))
	return f, nil
}

func (p *Peers) leave(f *follower) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.followers, f)
	p.followed.Store(len(p.followers) > 0)
	p.options.Metrics.SetFollowers(len(p.followers))
}
