package kvevents

import (
	"bufio"
	"context"
	"net"
	"net/netip"
	"time"
)

// readBytes is the size of a connection's buffer, and how much is read at a time at most.
const readBytes = 16 << 10

// link is a TCP connection that is read at the tenant's rate.
type link struct {
	conn    net.Conn
	ctx     context.Context // ends the link
	tenant  *tenant
	timeout time.Duration // of a write
	until   time.Time     // when what is read must be there
	left    int64         // bytes that may still be read
	stop    func() bool   // no longer close conn when ctx ends
}

// dialLink connects to an address. The link is closed when the context ends.
func dialLink(ctx context.Context, t *tenant, address netip.AddrPort, timeout time.Duration) (*link, error) {
	if err := t.pay(ctx, dialCost); err != nil {
		return nil, err
	}
	dialer := net.Dialer{
		Timeout:         timeout,
		FallbackDelay:   -1, // an address needs no race of IPv4 against IPv6
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
	}
	conn, err := dialer.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, ctx: ctx, tenant: t, timeout: timeout, left: unlimited}
	l.stop = context.AfterFunc(ctx, func() { _ = conn.Close() })
	return l, nil
}

const unlimited = 1<<63 - 1

// within gives what is read from now on so much time. Waits for the tenant's rate do not count.
func (l *link) within(d time.Duration) { l.until = time.Now().Add(d) }

// Read reads some bytes, and then waits until they are within the tenant's rate.
func (l *link) Read(into []byte) (int, error) {
	if l.left <= 0 {
		return 0, errTooLarge
	}
	if err := l.conn.SetReadDeadline(l.until); err != nil {
		return 0, err
	}
	n, err := l.conn.Read(into[:min(len(into), readBytes)])
	l.left -= int64(n)
	if paid := l.pay(n); err == nil {
		err = paid
	}
	return n, err
}

// pay waits until so many bytes are within the tenant's rate.
func (l *link) pay(bytes int) error {
	start := time.Now()
	err := l.tenant.pay(l.ctx, bytes)
	l.until = l.until.Add(time.Since(start))
	return err
}

func (l *link) write(b []byte) error {
	if err := l.conn.SetWriteDeadline(time.Now().Add(l.timeout)); err != nil {
		return err
	}
	_, err := l.conn.Write(b)
	return err
}

func (l *link) close() {
	l.stop()
	_ = l.conn.Close()
}

func (l *link) buffered() *bufio.Reader { return bufio.NewReaderSize(l, readBytes) }
