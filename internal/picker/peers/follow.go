package peers

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const (
	connectWithin = 2 * time.Second
	// silentFor is how long a picker may be silent that says each second that it is there.
	silentFor = 3 * time.Second
	// The pause before a picker is followed again that was lost: the least, doubled each time up to the most.
	leastPause, mostPause = 200 * time.Millisecond, 5 * time.Second
	// onTheWay is for how long what one picker has told may not have been applied by another.
	onTheWay = 2 * flushEvery
)

// window is how many bytes may be on their way. It is fixed, as gRPC sends a ping with each message otherwise, to learn one.
const window = 1 << 20

var (
	errMyself = errors.New("the address is this picker's own")
	errSilent = errors.New("the picker is silent")
)

// keepFollowing follows the picker at an address until the context ends.
func (p *Peers) keepFollowing(ctx context.Context, address netip.AddrPort) {
	wait := leastPause
	lost := false
	for {
		began := time.Now()
		followed, err := p.followOnce(ctx, address, lost)
		if followed {
			p.fleet.Lost(address.String())
			lost = true
		}
		p.roll.note(address, false)
		if errors.Is(err, errMyself) || ctx.Err() != nil {
			return
		}
		if time.Since(began) > mostPause {
			wait = leastPause
		}
		p.options.Log.Info("another picker cannot be followed; this one tries again after a pause", "address", address.String(), "pause", wait, "error", err)
		pause(ctx, wait/2+rand.N(wait/2))
		wait = min(2*wait, mostPause)
	}
}

// followOnce follows the picker at an address until it is lost. again says that it was lost before, so that there may be
// events that it told nobody here. followOnce reports whether it had begun to follow.
func (p *Peers) followOnce(ctx context.Context, address netip.AddrPort, again bool) (followed bool, err error) {
	err = p.read(ctx, address, followName, func(m *message) error {
		switch {
		case followed:
		case m.Process == p.process:
			return errMyself
		default:
			followed = true
			p.options.Metrics.Followed(1)
			p.roll.note(address, true)
			if again {
				go func() {
					pause(ctx, onTheWay)
					_, _ = p.takeCopy(ctx, address) // which is tried again when the picker is lost again
				}()
			}
		}
		return p.apply(address.String(), m.Events)
	})
	if followed {
		p.options.Metrics.Followed(-1)
	}
	return followed, err
}

func (p *Peers) apply(from string, events []event) error {
	for i := range events {
		e, err := events[i].event()
		if err != nil {
			return err
		}
		p.fleet.Apply(from, &e)
	}
	p.options.Metrics.Applied(len(events))
	return nil
}

// takeCopy takes a copy of what the picker at an address knows. It reports whether that picker was complete itself. One
// copy is taken at a time.
func (p *Peers) takeCopy(ctx context.Context, address netip.AddrPort) (complete bool, err error) {
	select {
	case p.taking <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-p.taking }()
	taker := p.fleet.Taker()
	err = p.read(ctx, address, copyName, func(m *message) error {
		complete = complete || m.Complete
		if m.Part == nil {
			return nil
		}
		part, err := m.Part.part()
		if err == nil {
			taker.Take(part)
		}
		return err
	})
	if !errors.Is(err, io.EOF) {
		p.options.Log.Info("copying what another picker knows failed", "address", address.String(), "error", err)
		return false, err
	}
	if complete {
		p.options.Metrics.CopyTaken()
		p.options.Log.Info("copied what another picker knows", "address", address.String())
	}
	return complete, nil
}

// read reads a stream of the picker at an address until one of both ends it, or the picker is silent. The error is io.EOF
// where the picker ended it.
func (p *Peers) read(ctx context.Context, address netip.AddrPort, stream string, each func(*message) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(connectWithin, func() { cancel(errSilent) })
	defer watch.Stop()
	conn, err := p.dial(address)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it is not used any more
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/"+service+"/"+stream)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	for {
		var m message
		if err := s.RecvMsg(&m); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		watch.Reset(silentFor)
		if err := each(&m); err != nil {
			return err
		}
	}
}

// dial makes a connection of its own for each stream, so that a long copy holds up no events.
func (p *Peers) dial(address netip.AddrPort) (*grpc.ClientConn, error) {
	config, err := tlsOf(p.options.Secret())
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address.String(), grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy(),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(mostBytes)))
}
