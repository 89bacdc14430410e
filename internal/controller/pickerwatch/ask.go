package pickerwatch

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// preface is what a client of HTTP/2 sends first: the connection preface and an empty SETTINGS frame (RFC 9113, section
// 3.4). A server of HTTP/2 answers with SETTINGS of its own, one of HTTP/1 with an error, and one of TLS with an alert.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// ask connects to a picker and reports whether anything came back until ctx ends. A connection that is refused or closed
// is an answer too: then the picker's node is there, and Kubernetes learns from it whether the picker runs.
func ask(ctx context.Context, at netip.AddrPort) (heard bool) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return !silent(err)
	}
	defer func() { _ = conn.Close() }()
	if until, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(until); err != nil {
			return false
		}
	}
	if _, err := io.WriteString(conn, preface); err != nil {
		return !silent(err)
	}
	_, err = conn.Read(make([]byte, 1))
	return err == nil || !silent(err)
}

// silent reports whether an error says that nothing came from the other side. Routers between the nodes may say that they
// find no way to it.
func silent(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.Canceled) ||
		errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}
