package protocol

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/extproc"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

// haste is how long the hasty picker waits for a body.
const haste = 300 * time.Millisecond

// ownPicker is our picker with other options, in the test's own process.
type ownPicker struct {
	address string
	server  *grpc.Server
}

// startOwnPickers starts the pickers of the tests that need options of their own.
func (w *world) startOwnPickers() error {
	options := maps.Clone(sheddingPickers)
	options["hasty"] = extproc.Options{BodyWithin: haste}
	for name, o := range options {
		p, err := startOwnPicker(w.pools["general"], o)
		if err != nil {
			return err
		}
		w.own[name] = p
	}
	return nil
}

func startOwnPicker(general *fleet, o extproc.Options) (*ownPicker, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("opening a picker: %w", err)
	}
	o.Metrics, o.Log = telemetry.NewMetrics(prometheus.NewRegistry()), slog.New(slog.DiscardHandler)
	pools := poolstate.New(poolstate.Options{Metrics: o.Metrics})
	var endpoints []pool.Endpoint
	for _, address := range general.addresses() {
		endpoints = append(endpoints, pool.Endpoint{Address: netip.MustParseAddrPort(address)})
	}
	name, _ := pool.ParseName(poolName("general"))
	pools.SetPool(pool.Pool{Name: name}, endpoints)
	p := &ownPicker{address: listener.Addr().String(), server: grpc.NewServer(extproc.ServerOptions(extproc.LargestMessage)...)}
	extproc.New(pools, o).Register(p.server)
	go func() { _ = p.server.Serve(listener) }() // until it is stopped
	return p, nil
}

// The picker gives up a stalled body and refuses the call, in every failure mode and mode of sending bodies.
func TestStalledBody(t *testing.T) {
	body := prompt("a prompt that stops in the middle", 4000)
	for _, door := range []string{
		"hasty open " + partial, "hasty closed " + partial, "hasty open " + duplex, "hasty closed " + duplex,
		"waypoint hasty open", "waypoint hasty closed",
	} {
		for name, sent := range map[string][]byte{"half": body[:2000], "a byte": body[:1], "nothing": nil} {
			t.Run(door+", "+name, func(t *testing.T) {
				t.Parallel()
				conn, err := net.Dial("tcp", the.envoy.Addresses[door])
				must(t, err)
				defer func() { _ = conn.Close() }()
				must(t, conn.SetDeadline(time.Now().Add(patience)))
				_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: model\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
					completionsPath, len(body), sent)
				must(t, err)
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				must(t, err)
				defer func() { _ = response.Body.Close() }()
				text, err := io.ReadAll(response.Body)
				must(t, err)
				if response.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(text), "stalled_body") {
					t.Errorf("the answer is %d %s, want 408", response.StatusCode, text)
				}
			})
		}
	}
}
