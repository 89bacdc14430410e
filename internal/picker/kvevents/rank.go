package kvevents

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"net/netip"
	"time"
)

// rank is one data-parallel rank of an endpoint, which publishes its events on a socket of its own.
type rank struct {
	endpoint *endpoint
	number   int

	// Those of the endpoint's goroutine while the rank's does not run, and else of the rank's.
	source   source
	retry    time.Time
	failures int // in a row

	running bool // of the endpoint's goroutine alone

	// position is where the rank's goroutine is in the sequence of batches.
	position
	replayed time.Time // when the last replay began
	tokens   []uint32  // of one block
	base     hold      // fixed costs and tokens

	// The endpoint's lock guards these.
	named   map[uint64]named // by the server's hash
	entries hold             // the memory of named, and of the endpoint's counts
	room    int              // how many blocks entries has memory for
}

// named is a block that the server told of.
type named struct {
	name uint64
	// in counts how often each medium has the block. vLLM stores a block twice where two requests compute it at the same
	// time, and then evicts it twice.
	in [media]uint8
}

// position is what is known of the batches that were received. Without known, no block is known either.
type position struct {
	known bool
	last  uint64 // the sequence number of the last batch
	sum   uint64 // of its payload, so that another process is told by another payload
}

func newRank(e *endpoint, number int) *rank {
	return &rank{
		endpoint: e,
		number:   number,
		named:    map[uint64]named{},
		entries:  hold{tenant: e.tenant},
		base:     hold{tenant: e.tenant},
	}
}

// rankBytes is the memory of a connected rank: two goroutines' stacks and its connections' buffers.
const rankBytes = 64 << 10

// run receives the rank's events until the connection fails, and sets when it may be made again.
func (r *rank) run() {
	e := r.endpoint
	start := time.Now()
	err := r.session()
	_ = r.base.set(0)
	r.tokens = nil
	if e.ctx.Err() != nil {
		return
	}
	if time.Since(start) > e.options.RetryMax {
		r.failures = 0
	}
	r.failures++
	r.retry = time.Now().Add(e.backoff(r.failures))
	switch {
	case errors.Is(err, errNoRoom):
		r.forget()
		r.retry = time.Now().Add(e.options.RoomRetry + rand.N(e.options.RoomRetry))
	case isRefused(err), errors.Is(err, errMalformed), r.failures > 1:
		r.forget()
	}
	e.fail(r.failures, r.wrap(err))
}

func (r *rank) wrap(err error) error {
	return fmt.Errorf("receiving cache events of rank %d from port %d: %w", r.number, r.source.port, err)
}

// session connects to the rank's publisher, asks for what was published before, and receives what is published then. A fault of
// ours that a server's bytes bring to light ends its own session alone.
func (r *rank) session() (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			r.forget()
			err = fmt.Errorf("a fault of the picker: %v", fault)
		}
	}()
	if err := r.base.set(rankBytes); err != nil {
		return err
	}
	w, err := r.dial(r.source.port, "SUB", "PUB", "XPUB")
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.subscribe(); err != nil {
		return err
	}
	live := live{rank: r, canReplay: r.source.replay != 0}
	if live.canReplay {
		if err := live.catchUp(); err != nil {
			return err
		}
	}
	r.connected()
	for {
		if err := w.await(r.endpoint.options.Quiet); err != nil {
			return err
		}
		frames, err := w.message()
		if err != nil {
			return err
		}
		if len(frames) == 0 {
			continue // a command
		}
		if len(frames) != 3 || len(frames[1]) != 8 {
			return protocolError("a message is not a topic, 8 bytes and a payload")
		}
		if err := live.receive(binary.BigEndian.Uint64(frames[1]), frames[2]); err != nil {
			return err
		}
		w.shrink()
		r.failures = 0
	}
}

// connected tells that events are received.
func (r *rank) connected() {
	r.endpoint.mu.Lock()
	defer r.endpoint.mu.Unlock()
	r.endpoint.blocks.flush(true)
}

// dial connects to a port of the endpoint's own address.
func (r *rank) dial(port uint16, own string, theirs ...string) (*wire, error) {
	e := r.endpoint
	l, err := dialLink(e.ctx, e.tenant, netip.AddrPortFrom(e.address.Addr(), port), e.options.Timeout)
	if err != nil {
		return nil, err
	}
	w, err := shake(l, &hold{tenant: e.tenant}, own, theirs...)
	if err != nil {
		l.close()
		return nil, err
	}
	return w, nil
}

// live is the sequence of one connection to a rank's publisher.
type live struct {
	rank *rank
	// canReplay says that the server can be asked for batches again. A failed replay is not tried again until the next
	// connection.
	canReplay bool
	// caughtUp says that a replay told the same batches as this connection, so that batches may come twice.
	caughtUp bool
	begun    bool
	last     uint64 // the sequence number of the connection's last message
}

// receive applies a batch, unless a replay had it already. Where batches are missing, and no replay has them, all blocks
// are void: some of them may have been evicted.
func (l *live) receive(seq uint64, payload []byte) error {
	r := l.rank
	back := l.begun && seq <= l.last
	l.begun, l.last = true, seq
	if r.known && seq > r.last && seq-r.last > 1 && l.canReplay {
		if err := l.catchUp(); err != nil {
			return err
		}
	}
	switch {
	case !r.known:
	case back, seq <= r.last && !l.caughtUp: // another process
		r.forget()
	case seq <= r.last:
		return nil
	case seq-r.last > 1:
		r.forget()
	}
	return r.apply(seq, payload)
}

// catchUp asks for the batches from the last known one on. Where there is none any more, or another one, the server is
// another process, and is asked for all that it has. A replay that fails leaves nothing known, but the connection goes
// on. Replays that come too fast for RetryMin are not made.
func (l *live) catchUp() error {
	r := l.rank
	if time.Since(r.replayed) < r.endpoint.options.RetryMin && l.begun {
		return nil
	}
	r.replayed = time.Now()
	same, err := r.replay()
	if err == nil && !same {
		r.forget()
		_, err = r.replay()
	}
	switch {
	case err == nil:
		l.caughtUp = true
	case errors.Is(err, errNoRoom), errors.Is(err, context.Canceled):
		return err
	default:
		l.canReplay = false
		r.forget()
		r.endpoint.fail(r.failures+1, r.wrap(fmt.Errorf("replaying from port %d: %w", r.source.replay, err)))
	}
	return nil
}

// endOfReplay is the sequence number that ends a replay.
const endOfReplay = math.MaxUint64

// replay applies the batches that the server has from the last known one on. It reports false where the server does not
// have that one.
func (r *rank) replay() (same bool, err error) {
	w, err := r.dial(r.source.replay, "DEALER", "ROUTER", "REP")
	if err != nil {
		return false, err
	}
	defer w.close()
	from := uint64(0)
	if r.known {
		from = r.last
	}
	w.link.within(r.endpoint.options.ReplayTimeout)
	w.link.left = r.endpoint.options.ReplayBytes
	if err := w.ask(binary.BigEndian.AppendUint64(nil, from)); err != nil {
		return false, err
	}
	for same = !r.known; ; w.shrink() {
		frames, err := w.message()
		if err != nil {
			return false, err
		}
		if len(frames) == 0 {
			continue // a command
		}
		if len(frames) != 4 || len(frames[0]) != 0 || len(frames[2]) != 8 {
			return false, protocolError("a replayed message is not an empty frame, a topic, 8 bytes and a payload")
		}
		seq, payload := binary.BigEndian.Uint64(frames[2]), frames[3]
		if seq == endOfReplay {
			return same, nil
		}
		if !same && seq < r.last {
			continue // it was not asked for
		}
		if !same && seq == r.last && maphash.Bytes(hashSeed, payload) != r.sum {
			return false, nil
		}
		same = true
		if err := r.replayedBatch(seq, payload); err != nil {
			return false, err
		}
	}
}

// replayedBatch applies a batch of a replay. The server only keeps its last batches, so that some may be missing.
func (r *rank) replayedBatch(seq uint64, payload []byte) error {
	switch {
	case !r.known:
	case seq <= r.last:
		return nil
	case seq-r.last > 1:
		r.forget()
	}
	return r.apply(seq, payload)
}
