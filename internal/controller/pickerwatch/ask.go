package pickerwatch

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
)

// preface is what a client of HTTP/2 sends first: the connection preface and an empty SETTINGS frame (RFC 9113, section
// 3.4). A server of HTTP/2 answers with SETTINGS of its own, one of HTTP/1 with an error, and one of TLS with an alert.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// ask connects to a picker and waits for a first byte until ctx ends.
func ask(ctx context.Context, at netip.AddrPort) outcome {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return meaning(err)
	}
	defer func() { _ = conn.Close() }()
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return unknown
		}
	}
	if _, err := io.WriteString(conn, preface); err != nil {
		return meaning(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return meaning(err)
	}
	return sound
}

var (
	// fromThere are errors that the picker's node itself makes. The node is there then, and Kubernetes learns from it
	// whether the picker runs.
	fromThere = []error{io.EOF, syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE}
	// onTheWay are errors that routers between the nodes make, or this node for lack of an answer.
	onTheWay = []error{
		context.DeadlineExceeded, os.ErrDeadlineExceeded, syscall.ETIMEDOUT, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EACCES,
	}
)

// meaning is what an error says about the picker. All others are faults of this node, such as a lack of file descriptors.
func meaning(err error) outcome {
	is := func(targets []error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	var network net.Error
	switch {
	case is(fromThere):
		return sound
	case is(onTheWay) || errors.As(err, &network) && network.Timeout():
		return silence
	default:
		return unknown
	}
}
