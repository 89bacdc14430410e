// Package hbone speaks HBONE, the tunnel of Istio's ambient mesh: HTTP/2 CONNECT over mutual TLS, port 15008. It does what
// ztunnel does for a pod, in both directions, and nothing more.
package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// Port is the port at which a pod or a waypoint accepts HBONE.
const Port = 15008

// Allow fails where a principal, written without spiffe://, may not reach a port. The channel that it returns is closed
// when the principal loses that right. ctx ends with the tunnel.
type Allow func(ctx context.Context, principal string, port uint16) (revoked <-chan struct{}, err error)

// Serve accepts HBONE for a pod: it joins each allowed CONNECT to the pod's port in the CONNECT's authority. It returns
// when ctx ends, and cuts open tunnels then.
func Serve(ctx context.Context, pod netip.Addr, config *tls.Config, allow Allow) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(pod, Port).String())
	if err != nil {
		return fmt.Errorf("listening for HBONE: %w", err)
	}
	server := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { join(w, r, pod, allow) }),
		TLSConfig:         config,
		ReadHeaderTimeout: 10 * time.Second,
		Protocols:         new(http.Protocols),
	}
	server.Protocols.SetHTTP2(true)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving HBONE: %w", err)
	}
	return nil
}

func join(w http.ResponseWriter, r *http.Request, pod netip.Addr, allow Allow) {
	_, text, err := net.SplitHostPort(r.Host)
	port, notANumber := strconv.ParseUint(text, 10, 16)
	if r.Method != http.MethodConnect || err != nil || notANumber != nil {
		http.Error(w, "this is a tunnel: CONNECT address:port", http.StatusMethodNotAllowed)
		return
	}
	revoked, err := allow(r.Context(), principalOf(r.TLS), uint16(port))
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized) // as ztunnel answers
		return
	}
	upstream, err := new(net.Dialer).DialContext(r.Context(), "tcp", net.JoinHostPort(pod.String(), text))
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	defer func() { _ = upstream.Close() }()
	go func() {
		select {
		case <-revoked:
			_ = upstream.Close()
		case <-r.Context().Done():
		}
	}()
	control := http.NewResponseController(w)
	w.WriteHeader(http.StatusOK)
	if control.Flush() != nil {
		return
	}
	go func() {
		_, err := io.Copy(upstream, r.Body)
		if tcp, ok := upstream.(*net.TCPConn); ok && err == nil {
			_ = tcp.CloseWrite()
		} else {
			_ = upstream.Close() // the caller cut its connection, so the tunnel is cut too
		}
	}()
	_, _ = io.Copy(flushing{w, control}, upstream)
}

// principalOf returns the identity in the caller's certificate, without spiffe://.
func principalOf(state *tls.ConnectionState) string {
	if len(state.PeerCertificates) == 0 || len(state.PeerCertificates[0].URIs) == 0 {
		return ""
	}
	id := state.PeerCertificates[0].URIs[0]
	return id.Host + id.Path
}

// flushing flushes after each write: a tunnel must not hold bytes back.
type flushing struct {
	io.Writer
	control *http.ResponseController
}

func (f flushing) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err != nil {
		return n, err
	}
	return n, f.control.Flush()
}

// Dialer opens tunnels through one waypoint or pod with one identity. Its tunnels share a connection, as ztunnel's do.
type Dialer struct {
	transport *http.Transport
	via       string
}

// NewDialer makes a Dialer to the HBONE port of via, with the identity in config. Its connections come from the address from, or
// from any address of the machine where that is the zero Addr.
func NewDialer(from, via netip.Addr, config *tls.Config) *Dialer {
	transport := &http.Transport{TLSClientConfig: config, Protocols: new(http.Protocols)}
	if from.IsValid() {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		transport.DialContext = dialer.DialContext
	}
	transport.Protocols.SetHTTP2(true)
	return &Dialer{transport: transport, via: netip.AddrPortFrom(via, Port).String()}
}

// Close closes the shared connection once its tunnels have ended.
func (d *Dialer) Close() { d.transport.CloseIdleConnections() }

// Dial opens a tunnel to target, an address that the other end resolves. ctx bounds only the opening.
func (d *Dialer) Dial(ctx context.Context, target string) (net.Conn, error) {
	body, in := io.Pipe()
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, cancel)
	request, err := http.NewRequestWithContext(life, http.MethodConnect, "https://"+d.via, body)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening a tunnel to %s: %w", target, err)
	}
	request.Host = target
	response, err := d.transport.RoundTrip(request) //nolint:bodyclose // it is the tunnel's other half, closed with it
	if err == nil && !stop() {
		err = ctx.Err()
	}
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening a tunnel to %s by %s: %w", target, d.via, err)
	}
	return &tunnel{in: in, out: response.Body, cancel: cancel, target: target, via: d.via}, nil
}

// tunnel is an open CONNECT as a net.Conn. It ignores deadlines: contexts bound the calls of its users.
type tunnel struct {
	in          *io.PipeWriter
	out         io.ReadCloser
	cancel      context.CancelFunc
	once        sync.Once
	target, via string
}

type address string

func (a address) Network() string { return "hbone" }
func (a address) String() string  { return string(a) }

func (t *tunnel) Read(p []byte) (int, error)       { return t.out.Read(p) }
func (t *tunnel) Write(p []byte) (int, error)      { return t.in.Write(p) }
func (t *tunnel) LocalAddr() net.Addr              { return address(t.via) }
func (t *tunnel) RemoteAddr() net.Addr             { return address(t.target) }
func (t *tunnel) SetDeadline(time.Time) error      { return nil }
func (t *tunnel) SetReadDeadline(time.Time) error  { return nil }
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }

func (t *tunnel) Close() error {
	t.once.Do(func() {
		_ = t.in.Close()
		t.cancel()
		_ = t.out.Close()
	})
	return nil
}
