package main

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/peers"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// others are the other pickers of the Service: this one tells them what it decides, and follows what they decide. It is nil
// where there are none.
type others struct {
	peers  *peers.Peers
	port   uint16
	secret func() []byte
}

func newPeers(o Options, name string, registry prometheus.Registerer, log *slog.Logger) *others {
	if o.PeersAddress == "" {
		return nil
	}
	address, err := net.ResolveTCPAddr("tcp", o.PeersAddress)
	if err != nil {
		return nil // options have checked it
	}
	out := &others{port: address.AddrPort().Port()}
	out.peers = peers.New(peers.Options{Metrics: telemetry.NewPeerMetrics(registry), Log: log, Name: name, Secret: func() []byte { return out.secret() }})
	return out
}

func (o *others) teller() poolstate.Teller {
	if o == nil {
		return nil
	}
	return o.peers
}

// known are the other pickers, to be shown; nil where there are none.
func (o *others) known() *peers.Peers {
	if o == nil {
		return nil
	}
	return o.peers
}

func (o *others) server() *grpc.Server {
	if o == nil {
		return nil
	}
	return o.peers.Server()
}

// membership tells the addresses of all pickers of the Service.
type membership interface {
	Run(ctx context.Context, update func([]netip.AddrPort))
}

// after returns a source that is synced when the given one is, and when this picker knows what the others know. Other
// pickers know this one by the secret.
func (o *others) after(from source, members membership, secret func() []byte, pools *poolstate.Fleet) source {
	o.secret = secret
	return followed{from, o.peers, members, pools}
}

type followed struct {
	from    source
	peers   *peers.Peers
	members membership
	pools   *poolstate.Fleet
}

func (f followed) Run(ctx context.Context, synced func()) {
	var running sync.WaitGroup
	defer running.Wait()
	f.from.Run(ctx, func() {
		running.Go(func() { f.members.Run(ctx, f.peers.Update) })
		running.Go(func() { f.peers.Run(ctx, f.pools, synced) })
	})
}
