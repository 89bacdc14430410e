package pickerwatch

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc"
)

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// A server answers, one that has ended refuses, and both are there. A program that accepts and says nothing is silent.
func TestAsk(t *testing.T) {
	serving, ended, mute, closing, older := listen(t), listen(t), listen(t), listen(t), listen(t)
	web := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	t.Cleanup(func() { _ = web.Close() })
	go func() { _ = web.Serve(older) }()
	server := grpc.NewServer()
	t.Cleanup(server.Stop)
	go func() { _ = server.Serve(serving) }()
	_ = ended.Close()
	go func() {
		for {
			conn, err := closing.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	for _, c := range []struct {
		name  string
		at    net.Listener
		heard bool
	}{{"a gRPC server", serving, true}, {"a server of HTTP/1", older, true}, {"nobody", ended, true}, {"a server that closes", closing, true}, {"a mute server", mute, false}} {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		if c.heard {
			cancel()
			ctx, cancel = context.WithTimeout(context.Background(), 20*time.Second)
		}
		if heard := ask(ctx, netip.MustParseAddrPort(c.at.Addr().String())); heard != c.heard {
			t.Errorf("%s is heard: %t, want %t", c.name, heard, c.heard)
		}
		cancel()
	}
}
