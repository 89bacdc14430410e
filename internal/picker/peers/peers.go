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

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// Options configure Peers.
type Options struct {
	Metrics *telemetry.PeerMetrics
	Log     *slog.Logger
	// Secret returns the seed of the key pair by which pickers know each other, 32 bytes; nil while it is not known.
	Secret func() []byte
}

// Peers are the other pickers. Its methods may be called from several goroutines.
type Peers struct {
	options Options
	process string
	members chan []netip.AddrPort
	fleet   *poolstate.Fleet // set by Run
	running chan struct{}    // closed when fleet is set

	followed atomic.Bool
	kick     chan struct{} // an event waits to be sent
	giving   chan struct{} // full while a copy is given
	complete atomic.Bool   // this picker knows what others know

	mu        sync.Mutex
	pending   batch
	followers map[*follower]struct{}

	taking chan struct{} // full while a copy is taken
	roll   roll
}

// New makes a picker's view of the others. It follows nobody before Run.
func New(o Options) *Peers {
	return &Peers{
		options:   o,
		process:   rand.Text(),
		members:   make(chan []netip.AddrPort, 1),
		running:   make(chan struct{}),
		kick:      make(chan struct{}, 1),
		giving:    make(chan struct{}, 1),
		followers: map[*follower]struct{}{},
		taking:    make(chan struct{}, 1),
		roll:      roll{all: make(chan struct{})},
	}
}

// Server makes the server that other pickers follow.
func (p *Peers) Server() *grpc.Server {
	s := grpc.NewServer(grpc.Creds(serverCredentials(p.options.Secret)), grpc.ForceServerCodecV2(codec{}),
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
		p.takeFirstCopy(ctx)
		p.complete.Store(true)
		synced()
	})
	following := map[netip.AddrPort]context.CancelFunc{}
	defer func() {
		for _, stop := range following {
			stop()
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

// followThese begins to follow new addresses, and stops following those that are gone.
func (p *Peers) followThese(ctx context.Context, parts *sync.WaitGroup, following map[netip.AddrPort]context.CancelFunc, all []netip.AddrPort) {
	there := map[netip.AddrPort]bool{}
	for _, address := range all {
		there[address] = true
		if following[address] == nil {
			of, stop := context.WithCancel(ctx)
			following[address] = stop
			parts.Go(func() { p.keepFollowing(of, address) })
		}
	}
	for address, stop := range following {
		if !there[address] {
			stop()
			delete(following, address)
		}
	}
	p.roll.call(all)
}

// firstCopyWithin is for how long a picker that starts may take a copy before it is ready without.
const firstCopyWithin = time.Minute

// takeFirstCopy takes a copy from any picker that is complete, once all are followed that can be: what one of them decides
// meanwhile is then either in the copy or told. Pickers that start together have nothing to tell.
func (p *Peers) takeFirstCopy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstCopyWithin)
	defer cancel()
	select {
	case <-ctx.Done():
		return
	case <-p.roll.all:
	}
	pause(ctx, onTheWay)
	for _, address := range p.roll.present() {
		if complete, _ := p.takeCopy(ctx, address); complete {
			return
		}
	}
}

// pause waits for a time, or until the context ends.
func pause(ctx context.Context, long time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(long):
	}
}
