// Package peers tells other pickers what this one decides, and follows what they decide: each picker can then pick for any
// pool as well as the one that has picked for it until now. It must not know how an event changes a pool (package
// poolstate), or where the addresses of other pickers come from (the sources).
//
// Each picker follows each other one by a stream of gRPC. A picker that starts follows all others, and then takes a copy of
// what one of them knows. Nothing waits for another picker: what one decides it tells a moment later, and a picker that
// cannot follow fast enough is cut off, and takes a copy. No event has a time: it is applied when it comes.
package peers

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Options configure Peers.
type Options struct {
	Metrics *telemetry.PeerMetrics
	Log     *slog.Logger
	// Name is this picker's name for people.
	Name string
	// Secret returns the seed of the key pair by which pickers know each other, 32 bytes; nil while it is not known.
	Secret func() []byte
}

// Peers are the other pickers. Its methods may be called from several goroutines.
type Peers struct {
	options Options
	process string
	made    time.Time
	members chan []netip.AddrPort
	fleet   *poolstate.Fleet // set by Run
	running chan struct{}    // closed when fleet is set

	identity *identity

	followed atomic.Bool
	decided  atomic.Bool
	kick     chan struct{} // an event waits to be sent
	hurry    chan struct{} // one waits that should be heard of soon
	closing  chan struct{} // closed when no more events come
	close    sync.Once
	giving   chan struct{} // full while a copy is given
	begun    atomic.Bool   // this picker has what it can have at its start
	complete atomic.Bool   // this picker knows what others know

	mu        sync.Mutex
	pending   batch
	flushed   bool // nothing is pending, nor will be
	followers map[*follower]struct{}
	processes map[string]*heard // those that are followed

	taking chan struct{} // full while a copy is taken
	roll   roll
}

// New makes a picker's view of the others. It follows nobody before Run.
func New(o Options) *Peers {
	return &Peers{
		options:   o,
		process:   rand.Text(),
		made:      time.Now(),
		members:   make(chan []netip.AddrPort, 1),
		running:   make(chan struct{}),
		identity:  &identity{secret: o.Secret},
		kick:      make(chan struct{}, 1),
		hurry:     make(chan struct{}, 1),
		closing:   make(chan struct{}),
		giving:    make(chan struct{}, 1),
		followers: map[*follower]struct{}{},
		processes: map[string]*heard{},
		taking:    make(chan struct{}, 1),
		roll:      roll{all: make(chan struct{})},
	}
}

// Server makes the server that other pickers follow.
func (p *Peers) Server() *grpc.Server {
	s := grpc.NewServer(grpc.Creds(p.identity.forServer()), grpc.ForceServerCodecV2(codec{}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: silentFor, Timeout: silentFor}), // a follower that hangs is dropped
		grpc.MaxRecvMsgSize(4<<10), grpc.MaxConcurrentStreams(2), grpc.ConnectionTimeout(connectWithin))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{
		{StreamName: followName, ServerStreams: true, Handler: p.whenRunning(p.follow)},
		{StreamName: copyName, ServerStreams: true, Handler: p.whenRunning(p.giveCopy)},
	}}, struct{}{})
	return s
}

func (p *Peers) whenRunning(serve func(grpc.ServerStream) error) grpc.StreamHandler {
	return func(_ any, s grpc.ServerStream) error {
		select {
		case <-p.running:
			return serve(s)
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

// Update sets the addresses of all pickers; this one's own may be among them.
func (p *Peers) Update(all []netip.AddrPort) {
	for {
		select {
		case p.members <- all:
			return
		default:
		}
		select {
		case <-p.members: // the newest counts
		default:
		}
	}
}

// Run tells others what the fleet's pools decide, and follows others, until the context ends. The fleet must have its
// pools. Run calls synced once: when the fleet knows what another picker knows, or when no other can tell.
func (p *Peers) Run(ctx context.Context, fleet *poolstate.Fleet, synced func()) {
	p.fleet = fleet
	close(p.running)
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { p.send(ctx) })
	parts.Go(func() {
		p.complete.Store(p.takeFirstCopy(ctx))
		p.begun.Store(true)
		synced()
	})
	following := map[netip.AddrPort]*followedAddress{}
	defer func() {
		for _, a := range following {
			a.stop()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case all := <-p.members:
			p.followThese(ctx, &parts, following, all)
		}
	}
}

// followedAddress is an address that is followed, or is not any more. ended is closed when nothing of it goes on.
type followedAddress struct {
	stop  context.CancelFunc
	gone  bool
	ended chan struct{}
}

// followThese begins to follow new addresses, and stops following those that are gone. An address that comes back is followed when
// nothing of its first time goes on.
func (p *Peers) followThese(ctx context.Context, parts *sync.WaitGroup, following map[netip.AddrPort]*followedAddress, all []netip.AddrPort) {
	there := map[netip.AddrPort]bool{}
	for _, address := range all {
		there[address] = true
		before := following[address]
		if before != nil && !before.gone {
			continue
		}
		of, stop := context.WithCancel(ctx)
		now := &followedAddress{stop: stop, ended: make(chan struct{})}
		following[address] = now
		parts.Go(func() {
			defer close(now.ended)
			if before != nil {
				<-before.ended
			}
			p.keepFollowing(of, address)
		})
	}
	for address, a := range following {
		if !there[address] {
			a.stop()
			a.gone = true
		}
		select {
		case <-a.ended:
			if a.gone {
				delete(following, address)
			}
		default:
		}
	}
	p.roll.call(all)
}

// firstCopyWithin is for how long a picker that starts may take a copy before it is ready without.
const firstCopyWithin = time.Minute

// takeFirstCopy takes a copy of a picker that is complete, once all are followed that can be: what one of them decides meanwhile is
// then either in the copy or told. It reports whether this picker knows all then: it has such a copy, or all others have
// answered and none is complete, as they have just started too. It takes what these know all the same.
func (p *Peers) takeFirstCopy(ctx context.Context) (complete bool) {
	ctx, cancel := context.WithTimeout(ctx, firstCopyWithin)
	defer cancel()
	select {
	case <-ctx.Done():
		p.options.Log.Warn("the other pickers are not known; this one begins without what they know")
		return false
	case <-p.roll.all:
	}
	pause(ctx, onTheWay)
	present, all := p.roll.present()
	for _, address := range present {
		switch complete, err := p.takeCopy(ctx, address); {
		case complete:
			return true
		case err != nil:
			all = false
		}
	}
	return all
}

// pause waits for a time, or until the context ends.
func pause(ctx context.Context, long time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(long):
	}
}
