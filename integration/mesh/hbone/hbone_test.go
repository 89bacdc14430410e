package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/integration/mesh/pki"
)

// setUp makes a pod that serves HBONE, a program in it that answers each line in capitals and then ends, and another pod's
// Dialer.
func setUp(t *testing.T) (*Dialer, string) {
	t.Helper()
	authority, err := pki.New()
	if err != nil {
		t.Fatal(err)
	}
	identity, err := authority.Workload("default", "test")
	if err != nil {
		t.Fatal(err)
	}
	config, err := authority.MutualTLS(identity)
	if err != nil {
		t.Fatal(err)
	}
	pod := netip.MustParseAddr("127.0.5.1") // an address for this test alone, as the port is fixed
	program, err := net.Listen("tcp", pod.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	go func() {
		for {
			conn, err := program.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				asked, _ := io.ReadAll(conn) // until the other end closes its side
				_, _ = io.WriteString(conn, strings.ToUpper(string(asked)))
			}()
		}
	}()
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() { served <- Serve(ctx, pod, config.Clone(), allow) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	awaitListening(t, netip.AddrPortFrom(pod, Port).String())
	dialer := NewDialer(netip.Addr{}, pod, config.Clone())
	t.Cleanup(dialer.Close)
	return dialer, program.Addr().String()
}

// refused is a port that the caller may not reach.
const refused = 2

func allow(_ context.Context, principal string, port uint16) (<-chan struct{}, error) {
	if port == refused || principal != pki.TrustDomain+"/ns/default/sa/test" {
		return nil, errors.New("not allowed")
	}
	return nil, nil // for ever
}

func awaitListening(t *testing.T, address string) {
	t.Helper()
	for range 100 {
		if conn, err := net.Dial("tcp", address); err == nil {
			_ = conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("nothing listens on %s", address)
}

func TestTunnelCarriesBothWays(t *testing.T) {
	dialer, target := setUp(t)
	for _, text := range []string{"hello", strings.Repeat("a longer text ", 100_000)} {
		conn, err := dialer.Dial(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		// The program answers only at the end of its input, so an answer proves that the tunnel carries the end.
		if err := conn.(*tunnel).in.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(conn)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != strings.ToUpper(text) {
			t.Errorf("got %d bytes back for %d", len(got), len(text))
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestDialTellsWhyThereIsNoTunnel(t *testing.T) {
	dialer, target := setUp(t)
	_, port, err := net.SplitHostPort(target)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dialer.Dial(t.Context(), "127.0.5.1:1"); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("dialling a port that nothing serves gave %v, want a 503", err)
	}
	if _, err := dialer.Dial(t.Context(), fmt.Sprint("127.0.5.1:", refused)); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("dialling a port that is not allowed gave %v, want a 401", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := dialer.Dial(ended, "127.0.5.1:"+port); err == nil {
		t.Error("dialling with an ended context gave no error")
	}
}
