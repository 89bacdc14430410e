package peers

import (
	"bytes"
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
	// flushSoon is the same where several pick for the same pool, for each picker that follows: until one hears of the others' calls,
	// it may send its own to the same endpoint. So few calls as there may be, and so many followers, a picker sends 143 messages a
	// second at most, which take some 4 % of a processor.
	flushSoon = 7 * time.Millisecond
	// beat is how often a picker without events says that it is there.
	beat = time.Second
	// mostUnsent bounds what waits to be sent to one follower, in bytes: ten seconds of 1,000 calls a second.
	mostUnsent = 16 << 20
	// mostPending bounds the events that wait to be encoded, and mostPendingBytes their blocks. Only a process that gets no
	// processor for seconds has so many.
	mostPending, mostPendingBytes = 100_000, 64 << 20
	// messageBytes is about how many bytes of blocks a message has.
	messageBytes = 1 << 20
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

// Process is this picker's id, by which others know it.
func (p *Peers) Process() string { return p.process }

// Followed says whether any picker follows. It is asked for each decision.
func (p *Peers) Followed() bool {
	if !p.decided.Load() {
		p.decided.Store(true)
	}
	return p.followed.Load()
}

// batch are events that are told in one message. Its memory is used again.
type batch struct {
	events []event
	blocks []byte // of all events
}

// mostKept bounds the memory that a batch keeps for the next one, in bytes of blocks.
const mostKept = 4 << 20

// add adds an event with its blocks.
func (b *batch) add(out event, blocks []uint64) {
	if from := len(b.blocks); len(blocks) > 0 {
		b.blocks = appendBlocks(b.blocks, blocks) // where this moves them, the events before keep the old ones
		out.Blocks = b.blocks[from:len(b.blocks):len(b.blocks)]
	}
	b.events = append(b.events, out)
}

// messages encodes the events, as many messages as they need.
func (b *batch) messages() (out []encoded) {
	for rest := b.events; len(rest) > 0; {
		n, bytes := 0, 0
		for n < len(rest) && bytes < messageBytes {
			bytes += len(rest[n].Blocks) + eventBytes
			n++
		}
		out = append(out, encode(&message{Events: rest[:n]}))
		rest = rest[n:]
	}
	return out
}

// eventBytes is about what an event has in a message beside its blocks.
const eventBytes = 64

func (b *batch) empty() {
	clear(b.events)
	b.events, b.blocks = b.events[:0], b.blocks[:0]
	if cap(b.blocks) > mostKept {
		*b = batch{}
	}
}

// Tell tells all that follow of an event, a moment later. It copies the event's blocks.
func (p *Peers) Tell(e *poolstate.Event) {
	told := fromEvent(e) // before the mutex that all pools share
	p.mu.Lock()
	first := len(p.pending.events) == 0
	if len(p.pending.events) < mostPending && len(p.pending.blocks) < mostPendingBytes {
		p.pending.add(told, e.Facts.Blocks)
	} else {
		p.cutAll()
	}
	if e.Soon {
		wake(p.hurry)
	}
	p.mu.Unlock()
	if first {
		wake(p.kick)
	}
}

// cutAll makes all followers begin again with a copy.
func (p *Peers) cutAll() {
	for f := range p.followers {
		p.cut(f)
	}
}

// cut makes a follower begin again. Nothing is told to it any more, also while its stream hangs.
func (p *Peers) cut(f *follower) {
	f.cut, f.unsent, f.bytes = true, nil, 0
	wake(f.wake)
	p.remove(f)
}

func (p *Peers) remove(f *follower) {
	delete(p.followers, f)
	p.followed.Store(len(p.followers) > 0)
	p.options.Metrics.SetFollowers(len(p.followers))
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send encodes what is pending, once for all followers, until the context ends or the last event was told.
func (p *Peers) send(ctx context.Context) {
	var told batch
	for last := false; !last; {
		select {
		case <-ctx.Done():
			return
		case <-p.closing:
		case <-p.kick:
		}
		if last = p.collect(ctx); ctx.Err() != nil {
			return
		}
		p.mu.Lock()
		told, p.pending = p.pending, told
		select {
		case <-p.hurry: // what hurried is in told
		default:
		}
		p.mu.Unlock()
		p.options.Metrics.Told(len(told.events))
		messages := told.messages()
		told.empty()
		p.mu.Lock()
		for f := range p.followers {
			for _, bytes := range messages {
				p.queue(f, bytes)
			}
			if last {
				wake(f.wake)
			}
		}
		p.flushed = last
		p.mu.Unlock()
	}
}

// collect waits while events come that are told in one message. It reports whether they are the last ones.
func (p *Peers) collect(ctx context.Context) (last bool) {
	due := time.Now().Add(flushEvery)
	flush := time.NewTimer(flushEvery)
	defer flush.Stop()
	for hurry := p.hurry; ; hurry = nil {
		select {
		case <-ctx.Done():
			return false
		case <-p.closing:
			return true
		case <-hurry:
			flush.Reset(min(p.soon(), time.Until(due)))
		case <-flush.C:
			return false
		}
	}
}

// soon is for how long events are collected of which one should be heard of soon.
func (p *Peers) soon() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return flushSoon * time.Duration(max(1, len(p.followers)))
}

// Close tells what was not told yet, and then ends the streams of those that follow, which ends the server's graceful stop. No
// event may come afterwards.
func (p *Peers) Close() { p.close.Do(func() { close(p.closing) }) }

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
	if err := s.SendMsg(encode(&message{Process: p.process, Name: p.options.Name, Decided: p.decided.Load()})); err != nil {
		return err
	}
	return p.sendTo(f, s)
}

// sendTo sends a follower what is queued for it.
func (p *Peers) sendTo(f *follower, s grpc.ServerStream) error {
	beats := time.NewTicker(beat)
	defer beats.Stop()
	seed := p.options.Secret()
	for {
		next, last := []encoded{alive}, false
		select {
		case <-s.Context().Done():
			return nil
		case <-beats.C:
			if !bytes.Equal(seed, p.options.Secret()) {
				return status.Error(codes.Unauthenticated, "the secret by which pickers know each other has changed")
			}
		case <-f.wake:
			p.mu.Lock()
			next, f.unsent, f.bytes = f.unsent, nil, 0
			cut := f.cut
			last = p.flushed
			p.mu.Unlock()
			if cut {
				return status.Error(codes.ResourceExhausted, "this picker does not follow fast enough: it must follow anew and take a copy")
			}
		}
		for _, message := range next {
			if err := s.SendMsg(message); err != nil {
				return err
			}
		}
		if last {
			return nil
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
	if p.flushed {
		wake(f.wake)
	}
	p.followed.Store(true)
	p.options.Metrics.SetFollowers(len(p.followers))
	return f, nil
}

func (p *Peers) leave(f *follower) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.remove(f)
}
