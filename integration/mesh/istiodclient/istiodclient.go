// Package istiodclient makes the connection by which the stand-ins for a waypoint's agent and for ztunnel listen to istiod.
// What is said over it is theirs.
package istiodclient

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// MaxMessage bounds a message of istiod, in bytes: a waypoint with a hundred pools is sent a few MiB, and all pods are
// told of at once.
const MaxMessage = 256 << 20

// New makes a client of istiod, which is asked in plain text, without calling it yet. Locate finds its address; it is
// asked again whenever istiod must be called anew.
func New(locate func(context.Context) (string, error)) (*grpc.ClientConn, error) {
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		address, err := locate(ctx)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	conn, err := grpc.NewClient("passthrough:///istiod", grpc.WithContextDialer(dial),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessage)))
	if err != nil {
		return nil, fmt.Errorf("making the client of istiod: %w", err)
	}
	return conn, nil
}
