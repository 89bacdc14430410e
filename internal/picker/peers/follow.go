package peers

import (
	"cmp"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const (
	connectWithin = 2 * time.Second
	// silentFor is how long a picker may be silent that says each second that it is there.
	silentFor = 3 * time.Second
	// The pause before another attempt to follow a picker: the least, doubled each time up to the most. It is short, as a picker
	// that starts should be followed before it picks.
	leastPause, mostPause = 100 * time.Millisecond, time.Second
	// mostProcess bounds the id of a process, in bytes.
	mostProcess = 64
	// onTheWay is for how long what one picker has told may not have been applied by another.
	onTheWay = 2 * flushEvery
)

// window is how many bytes may be on their way. It is fixed, as gRPC sends a ping with each message otherwise, to learn one.
const window = 1 << 20

var (
	errMyself = errors.New("the address is this picker's own")
	errTwice  = errors.New("the picker is followed at another address already")
	errSilent = errors.New("the picker is silent")
)

// keepFollowing follows the picker at an address until the context ends.
func (p *Peers) keepFollowing(ctx context.Context, address netip.AddrPort) {
	f := following{Peers: p, address: address}
	wait := leastPause
	for {
		began := time.Now()
		err := f.once(ctx)
		if errors.Is(err, errMyself) || errors.Is(err, errTwice) {
			p.roll.note(address, known)
		} else {
			p.roll.note(address, absent)
		}
		if errors.Is(err, errMyself) || ctx.Err() != nil {
			return
		}
		if time.Since(began) > mostPause {
			wait = leastPause
		}
		f.report(err)
		pause(ctx, wait/2+rand.N(wait/2))
		wait = min(2*wait, mostPause)
	}
}

// reportEvery is how often the same failure is logged.
const reportEvery = 5 * time.Minute

// report logs why the picker cannot be followed, unless that was logged a short time ago.
func (f *following) report(err error) {
	if text := err.Error(); text != f.reported || time.Since(f.reportedAt) > reportEvery {
		f.reported, f.reportedAt = text, time.Now()
		f.options.Log.Info("another picker cannot be followed; this one goes on trying", "address", f.address.String(), "error", err)
	}
}

// following is the following of the picker at one address.
type following struct {
	*Peers
	address    netip.AddrPort
	reported   string // the failure that was logged last, and when
	reportedAt time.Time
	lost       bool        // it was followed before, so there may be events of it that it told nobody here
	copying    atomic.Bool // a copy of it is taken, or is to be
}

// once follows the picker until it is lost.
func (f *following) once(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	process := ""
	var from *heard
	defer func() {
		if process != "" {
			f.fleet.Lost(process)
			f.forgetProcess(process)
			f.options.Metrics.Followed(-1)
			f.lost = true
		}
	}()
	return f.read(ctx, f.address, followName, func(m *message) error {
		if process == "" {
			var err error
			if from, err = f.noteProcess(m, f.address); err != nil {
				return err
			}
			process = m.Process
			f.options.Metrics.Followed(1)
			f.roll.note(f.address, followed)
			if f.begun.Load() && (f.lost || m.Decided || !f.complete.Load()) && f.copying.CompareAndSwap(false, true) {
				go f.catchUp(ctx)
			}
		}
		from.at.Store(int64(f.clock()))
		f.apply(process, m.Events)
		return nil
	})
}

// noteProcess notes that the process of a first message is followed at an address, unless it is this one, or is followed at
// another address.
func (p *Peers) noteProcess(m *message, address netip.AddrPort) (*heard, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m.Process == p.process {
		return nil, errMyself
	}
	if m.Process == "" || len(m.Process) > mostProcess {
		return nil, errNotUnderstood
	}
	if p.processes[m.Process] != nil {
		return nil, errTwice
	}
	of := &heard{address: address, name: nameOf(m.Name)}
	of.at.Store(int64(p.clock()))
	p.processes[m.Process] = of
	return of, nil
}

func (p *Peers) forgetProcess(process string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.processes, process)
}

// catchUp takes a copy of a picker that decided something before it was followed.
func (f *following) catchUp(ctx context.Context) {
	defer f.copying.Store(false)
	pause(ctx, onTheWay)
	for ctx.Err() == nil {
		complete, err := f.takeCopy(ctx, f.address)
		if complete {
			f.complete.Store(true)
		}
		if err == nil {
			return
		}
		pause(ctx, mostPause)
	}
}

// apply applies what the picker tells. An event that is not understood, as of a later version, changes nothing.
func (p *Peers) apply(process string, events []event) {
	for i := range events {
		if e, err := events[i].event(); err == nil {
			p.fleet.Apply(process, &e)
		}
	}
	p.options.Metrics.Applied(len(events))
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
	config, err := p.identity.current()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient("passthrough:///"+address.String(), grpc.WithTransportCredentials(credentials.NewTLS(config)), grpc.WithNoProxy(),
		grpc.WithStaticStreamWindowSize(window), grpc.WithStaticConnWindowSize(window),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(codec{}), grpc.MaxCallRecvMsgSize(mostBytes)))
}
