package kvevents

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenblocks"
)

// told is a call of the sink.
type told struct {
	endpoint netip.AddrPort
	change   Change
	n        int
	err      error
}

// recorder is a sink that keeps everything.
type recorder struct {
	mu    sync.Mutex
	calls []told
	more  chan struct{} // has something when a call came
}

func newRecorder() *recorder { return &recorder{more: make(chan struct{}, 1)} }

func (r *recorder) CacheChanged(endpoint netip.AddrPort, c Change) {
	c.Stored, c.Removed = slices.Clone(c.Stored), slices.Clone(c.Removed)
	r.add(told{endpoint: endpoint, change: c})
}

func (r *recorder) EventsFailed(endpoint netip.AddrPort, n int, err error) {
	r.add(told{endpoint: endpoint, n: n, err: err})
}

func (r *recorder) add(c told) {
	r.mu.Lock()
	r.calls = append(r.calls, c)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

func (r *recorder) all() []told {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// await waits until the calls are as wanted, and returns them.
func (r *recorder) await(t *testing.T, what string, wanted func([]told) bool) []told {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		calls := r.all()
		if wanted(calls) {
			return calls
		}
		select {
		case <-r.more:
		case <-timeout:
			t.Fatalf("not %q after %d calls: %v", what, len(calls), calls)
		}
	}
}

// awaitBlocks waits until exactly these blocks are cached.
func (r *recorder) awaitBlocks(t *testing.T, what string, names ...uint64) []told {
	t.Helper()
	return r.await(t, what, func(calls []told) bool {
		have := cached(calls)
		for _, name := range names {
			if !have[name] {
				return false
			}
		}
		return len(have) == len(names)
	})
}

// awaitError waits for a failure.
func (r *recorder) awaitError(t *testing.T, what string) told {
	t.Helper()
	var out told
	r.await(t, what, func(calls []told) bool {
		i := slices.IndexFunc(calls, func(c told) bool { return c.err != nil })
		if i >= 0 {
			out = calls[i]
		}
		return i >= 0
	})
	return out
}

// cached is the blocks that the calls leave.
func cached(calls []told) map[uint64]bool {
	have := map[uint64]bool{}
	for _, c := range calls {
		if c.change.Cleared {
			clear(have)
		}
		for _, name := range c.change.Removed {
			delete(have, name)
		}
		for _, name := range c.change.Stored {
			have[name] = true
		}
	}
	return have
}

// clears is how many calls void what was told before.
func clears(calls []told) int {
	n := 0
	for _, c := range calls {
		if c.change.Cleared {
			n++
		}
	}
	return n
}

// quick are options for servers on this machine.
func quick() Options {
	o := DefaultOptions()
	o.RetryMin, o.RetryMax, o.RoomRetry = 10*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	return o
}

// peer is a server's end of a connection.
type peer struct {
	net.Conn
	reader *bufio.Reader
}

// listen serves connections on a port of this machine, and returns the port. n counts them from 0.
func listen(t *testing.T, serve func(n int, p *peer)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, serve)
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func serveOn(t *testing.T, l net.Listener, serve func(n int, p *peer)) {
	var running sync.WaitGroup
	running.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				serve(n, &peer{conn, bufio.NewReader(conn)})
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
}

// shake makes a server's handshake, and returns the first message or command of the client.
func (p *peer) shake(socket string) []byte {
	_, _ = p.Write(greeting())
	_, _ = p.Write(command("READY", typeProperty(socket)))
	if _, err := io.ReadFull(p.reader, make([]byte, 64)); err != nil {
		return nil
	}
	p.frame()
	first := p.frame()
	if socket == "ROUTER" {
		if first = p.frame(); len(first) != 8 { // behind the empty one
			return make([]byte, 8)
		}
	}
	return first
}

// frame reads a short frame.
func (p *peer) frame() []byte {
	var head [2]byte
	if _, err := io.ReadFull(p.reader, head[:]); err != nil {
		return nil
	}
	body := make([]byte, head[1])
	_, _ = io.ReadFull(p.reader, body)
	return body
}

// send sends a message.
func (p *peer) send(frames ...[]byte) { _, _ = p.Write(multipart(frames...)) }

// publish sends a batch.
func (p *peer) publish(seq uint64, events ...any) {
	p.send([]byte("kv"), binary.BigEndian.AppendUint64(nil, seq), batch(events...))
}

// replay sends a batch again.
func (p *peer) replay(seq uint64, events ...any) {
	p.send(nil, []byte("kv"), binary.BigEndian.AppendUint64(nil, seq), batch(events...))
}

func (p *peer) endReplay() {
	p.send(nil, nil, binary.BigEndian.AppendUint64(nil, endOfReplay), nil)
}

// wait waits until the client closes the connection.
func (p *peer) wait() { _, _ = io.Copy(io.Discard, p.reader) }

func multipart(frames ...[]byte) []byte {
	var out []byte
	for i, f := range frames {
		flags := byte(flagLong)
		if i < len(frames)-1 {
			flags |= flagMore
		}
		out = append(out, flags)
		out = binary.BigEndian.AppendUint64(out, uint64(len(f)))
		out = append(out, f...)
	}
	return out
}

// fields is a map in the order in which it is sent.
type fields []any

// pack encodes a value as MessagePack.
func pack(v any) []byte {
	switch v := v.(type) {
	case nil:
		return []byte{0xc0}
	case float64:
		return append([]byte{0xcb}, make([]byte, 8)...)
	case int:
		return binary.BigEndian.AppendUint64([]byte{0xd3}, uint64(v))
	case string:
		return append([]byte{0xd9, byte(len(v))}, v...)
	case []byte:
		return append([]byte{0xc4, byte(len(v))}, v...)
	case fields:
		out := binary.BigEndian.AppendUint32([]byte{0xdf}, uint32(len(v)/2))
		return append(out, packAll(v)...)
	case []any:
		out := binary.BigEndian.AppendUint32([]byte{0xdd}, uint32(len(v)))
		return append(out, packAll(v)...)
	default:
		panic(fmt.Sprintf("%T", v))
	}
}

func packAll(vs []any) (out []byte) {
	for _, v := range vs {
		out = append(out, pack(v)...)
	}
	return out
}

func batch(events ...any) []byte { return pack([]any{1.5, events, 0}) }

// blockSize is the length of the blocks that tests store.
const blockSize = 2

// store is an event that stores blocks of the tokens 10·hash and 10·hash+1.
func store(parent any, hashes ...int) fields { return storeSized(blockSize, parent, hashes...) }

func storeSized(size int, parent any, hashes ...int) fields {
	var hs, tokens []any
	for _, h := range hashes {
		hs = append(hs, h)
		for i := range size {
			tokens = append(tokens, 10*h+i)
		}
	}
	return fields{"type", "BlockStored", "block_hashes", hs, "parent_block_hash", parent, "token_ids", tokens,
		"block_size", size, "lora_id", nil, "medium", "GPU"}
}

func remove(hashes ...int) fields {
	var hs []any
	for _, h := range hashes {
		hs = append(hs, h)
	}
	return fields{"type", "BlockRemoved", "block_hashes", hs, "medium", "GPU"}
}

// name is the name of the last of the blocks that store stores.
func name(hashes ...int) uint64 { return nameSized(blockSize, hashes...) }

func nameSized(size int, hashes ...int) uint64 {
	out := tokenblocks.Root("")
	for _, h := range hashes {
		tokens := make([]uint32, size)
		for i := range tokens {
			tokens[i] = uint32(10*h + i)
		}
		out = tokenblocks.Next(out, tokens)
	}
	return out
}

// sourcesPage is the page of a server whose ranks have these sources.
func sourcesPage(sources ...source) string {
	out := "{"
	for i, s := range sources {
		if i > 0 {
			out += ","
		}
		replay := "null"
		if s.replay != 0 {
			replay = fmt.Sprintf(`"tcp://*:%d"`, s.replay)
		}
		out += fmt.Sprintf(`"%d":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:%d","replay_endpoint":%s,"topic":"kv"}`, i, s.port, replay)
	}
	return out + "}"
}

// web serves the page of sources, and returns the endpoint.
func web(t *testing.T, page func() string) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != sourcesPath {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, page())
	}))
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

// subscribe receives the events of a server with such sources.
func subscribe(t *testing.T, o Options, sources ...source) (*recorder, *Subscriber) {
	t.Helper()
	r := newRecorder()
	s := New(o, r)
	endpoint := web(t, func() string { return sourcesPage(sources...) })
	s.Update(map[netip.AddrPort]Target{endpoint: {URL: "http://" + endpoint.String(), Tenant: "models"}}, nil)
	t.Cleanup(s.Close)
	return r, s
}

func recording(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
