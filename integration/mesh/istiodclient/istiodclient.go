// Package istiodclient makes the gRPC connection to istiod for the stand-ins of a waypoint's agent and of ztunnel. It knows
// none of their messages.
package istiodclient

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// MaxMessage bounds a message of istiod, in bytes. The configuration of a waypoint with a hundred pools has a few MiB, and
// istiod sends all pods in one message.
const MaxMessage = 256 << 20

// New makes a plain-text client of istiod that has not connected yet. locate returns istiod's address; each new connection
// calls it again.
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
