package protocol

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// A client may leave at any point of the exchange: its call leaves nothing at the picker.
func TestClientVanishes(t *testing.T) {
	p := the.pickers["main"]
	body := prompt("somebody who leaves", 400_000)
	points := map[string]func(t *testing.T, c *rawCall, mode string){
		"before the body": func(t *testing.T, _ *rawCall, _ string) {
			eventually(t, "the picker to know of the call", func() bool { return p.metric(t, "streams_in_flight") == 1 })
		},
		"in the middle of the body": func(t *testing.T, c *rawCall, mode string) {
			c.piece(body[:200_000])
			eventually(t, "the picker to know of the call", func() bool {
				return p.metric(t, "streams_in_flight") == 1 && (mode == partial || p.metric(t, "held_body_bytes") >= 200_000)
			})
		},
		"before the answer": func(_ *testing.T, c *rawCall, _ string) {
			c.piece(body)
			c.piece(nil)
			<-c.arrived
			c.isReserved(body)
		},
		"in the middle of the answer": func(_ *testing.T, c *rawCall, _ string) {
			c.piece(body)
			c.piece(nil)
			<-c.arrived
			c.pieces <- "a beginning"
			c.hears("a beginning")
			c.isReserved(body)
		},
	}
	for name, until := range points {
		for _, mode := range []string{partial, duplex} {
			t.Run(fmt.Sprintf("%s, %s", name, mode), func(t *testing.T) {
				eventually(t, "rest", func() bool { return p.metric(t, "streams_in_flight") == 0 })
				c := dial(t, "left "+mode)
				until(t, c, mode)
				must(t, c.Close())
				eventually(t, "the end of all that the call held", func() bool {
					return p.metric(t, "streams_in_flight") == 0 && p.inFlight(t, "left") == 0 && p.metric(t, "held_body_bytes") == 0
				})
				for endpoint, c := range p.explain(t, "left", body) {
					if c.InFlight != 0 || c.QueueTokens != 0 {
						t.Errorf("%d calls and %v tokens are left at %s", c.InFlight, c.QueueTokens, endpoint)
					}
				}
			})
		}
	}
}

// rawCall is a call whose bytes are sent one by one.
type rawCall struct {
	net.Conn
	t       *testing.T
	arrived chan struct{} // closed when the endpoint has the whole request
	pieces  chan string   // of the answer
	heard   strings.Builder
}

// dial sends the headers of a call whose body comes in pieces.
func dial(t *testing.T, door string) *rawCall {
	t.Helper()
	conn, err := net.Dial("tcp", the.envoy.Addresses[door])
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() }) // mostly it is closed already
	c := &rawCall{Conn: conn, t: t, arrived: make(chan struct{}), pieces: make(chan string, 1)}
	t.Cleanup(func() { close(c.pieces) })
	speak := say(c.pieces)
	request, err := http.NewRequest(http.MethodPost, completionsPath, nil)
	must(t, err)
	script(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(c.arrived)
		select {
		case piece := <-c.pieces: // no byte before this
			once := make(chan string, 1)
			once <- piece
			close(once)
			say(once)(w, r)
			speak(w, r)
		case <-r.Context().Done():
		}
	})(request)
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: model\r\nTransfer-Encoding: chunked\r\n%s: %s\r\n\r\n",
		completionsPath, scriptHeader, request.Header.Get(scriptHeader))
	must(t, err)
	return c
}

// piece sends a piece of the body; an empty one is its end.
func (c *rawCall) piece(text []byte) {
	c.t.Helper()
	_, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(text), text)
	must(c.t, err)
}

// hears reads until the text has come.
func (c *rawCall) hears(want string) {
	c.t.Helper()
	for buffer := make([]byte, 4096); !strings.Contains(c.heard.String(), want); {
		n, err := c.Read(buffer)
		must(c.t, err)
		c.heard.Write(buffer[:n])
	}
}

// isReserved checks that the picker has reserved an endpoint for the call; otherwise there would be nothing to release.
func (c *rawCall) isReserved(body []byte) {
	c.t.Helper()
	sum := 0
	for _, candidate := range the.pickers["main"].explain(c.t, "left", body) {
		sum += candidate.InFlight
	}
	if sum != 1 {
		c.t.Errorf("%d calls are reserved, want this one", sum)
	}
}

// Calls in flight survive the removal of their pool.
func TestPoolRemoved(t *testing.T) {
	p := the.pickers["main"]
	running := map[*http.Response]chan string{}
	for _, mode := range []string{partial, duplex} {
		pieces := make(chan string)
		response := open(t, "removed "+mode, ask(mode), script(t, say(pieces))) //nolint:bodyclose // the test's end closes it
		pieces <- "a beginning"
		hears(t, response.Body, "a beginning")
		running[response] = pieces
	}
	must(t, the.writePools(func(name string) bool { return name != "removed" }))
	eventually(t, "the pool's end", func() bool { return p.metric(t, "pools") == float64(len(the.pools)-1) })
	for _, mode := range []string{partial, duplex} {
		isRefused(t, call(t, "removed "+mode, ask("too late")), "unknown_pool")
	}
	for response, pieces := range running {
		pieces <- " and an end"
		close(pieces)
		if rest, err := io.ReadAll(response.Body); err != nil || string(rest) != " and an end" {
			t.Errorf("the answer goes on with %q, %v", rest, err)
		}
	}
	eventually(t, "the calls' end", func() bool { return p.metric(t, "streams_in_flight") == 0 })
	must(t, the.writePools(func(string) bool { return true }))
	eventually(t, "the pool's return", func() bool { return p.metric(t, "pools") == float64(len(the.pools)) })
	for _, c := range p.explain(t, "removed", nil) {
		if c.InFlight != 0 {
			t.Errorf("%d calls are in flight at %s of the pool that came back", c.InFlight, c.Endpoint)
		}
	}
}

const (
	idleCalls = 4000 // that wait at once for an answer's end
	// One client in so many cancels its call; the other calls end well. Envoy closes a client's connection on which more than
	// 1,000 calls are cancelled at once, so cancelled calls share their connections with others.
	oneGivenUp = 4
	givenUp    = idleCalls / oneGivenUp
)

// Thousands of waiting calls take little memory, and leave nothing behind. When thousands of calls end in one moment, the
// others go on: Envoy resets the stream to the picker of each call that ends, and closes a connection on which more than
// 1,000 resets wait to be sent, with all other calls on it.
func TestIdleCalls(t *testing.T) {
	p := the.pickers["main"]
	before := p.memory(t)
	leave := make(chan struct{})
	waitFor := func(end <-chan struct{}) option {
		return script(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-end:
			case <-r.Context().Done():
			}
		})
	}
	ending, endless := waitFor(leave), waitFor(nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	responses := make([]*http.Response, idleCalls)
	var opening errgroup.Group
	opening.SetLimit(32)
	for n := range responses {
		opening.Go(func() (err error) {
			how := ending
			if n%oneGivenUp == 0 {
				how = endless
			}
			responses[n], err = try(ctx, multiplexing, "idle", ask(fmt.Sprint("idle ", n)), how) //nolint:bodyclose // closed as the call ends or is given up
			return err
		})
	}
	must(t, opening.Wait())
	if got := p.inFlight(t, "idle"); got != idleCalls {
		t.Errorf("%v calls are in flight, want %d", got, idleCalls)
	}
	each := (p.memory(t) - before) / idleCalls
	t.Logf("an idle call takes %d bytes of the picker's memory", each)
	if each > 64<<10 {
		t.Errorf("an idle call takes %d bytes, want at most 64 KiB", each)
	}
	close(leave)
	for n, r := range responses {
		if n%oneGivenUp == 0 {
			continue
		}
		_, err := io.Copy(io.Discard, r.Body)
		must(t, err)
		must(t, r.Body.Close())
	}
	eventually(t, "the end of most", func() bool { return p.inFlight(t, "idle") == givenUp })
	for n := 0; n < idleCalls; n += oneGivenUp {
		must(t, responses[n].Body.Close())
	}
	eventually(t, "the end of all", func() bool { return p.inFlight(t, "idle") == 0 && p.metric(t, "streams_in_flight") == 0 })
	for endpoint, c := range p.explain(t, "idle", nil) {
		if c.InFlight != 0 {
			t.Errorf("%d calls are left at %s", c.InFlight, endpoint)
		}
	}
}
