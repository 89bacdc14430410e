package pickerwatch

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
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
		name string
		at   net.Listener
		want outcome
	}{{"a gRPC server", serving, sound}, {"a server of HTTP/1", older, sound}, {"nobody", ended, sound}, {"a server that closes", closing, sound}, {"a mute server", mute, silence}} {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		if c.want == sound {
			cancel()
			ctx, cancel = context.WithTimeout(context.Background(), 20*time.Second)
		}
		if got := ask(ctx, netip.MustParseAddrPort(c.at.Addr().String())); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
		cancel()
	}
}

// Faults of the controller's own node say nothing of a picker.
func TestMeaningOfErrors(t *testing.T) {
	for err, want := range map[syscall.Errno]outcome{
		syscall.ECONNREFUSED: sound, syscall.ECONNRESET: sound, syscall.EHOSTUNREACH: silence, syscall.ENETUNREACH: silence, syscall.ETIMEDOUT: silence,
		syscall.EMFILE: unknown, syscall.ENFILE: unknown, syscall.EADDRNOTAVAIL: unknown, syscall.ENOBUFS: unknown, syscall.EINVAL: unknown, syscall.ENETDOWN: unknown,
	} {
		if got := meaning(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)}); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if got := ask(ended, netip.MustParseAddrPort("127.0.0.1:9")); got != unknown {
		t.Errorf("a try that the controller's end breaks off: %d", got)
	}
}
