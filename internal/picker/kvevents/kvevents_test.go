package kvevents

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenblocks"
)

// span is some tokens in a row.
func span(first, n int) []uint32 {
	out := make([]uint32, n)
	for i := range out {
		out[i] = uint32(first + i)
	}
	return out
}

// recorded is what the recording of vLLM's publisher says; see testdata/record.py.
func recorded() []Change {
	base, sql := tokenblocks.Root(""), tokenblocks.Root("sql")
	a := tokenblocks.Next(base, span(100, 4))
	b := tokenblocks.Next(a, span(104, 4))
	c := tokenblocks.Next(b, span(70000, 4))
	salted := tokenblocks.Next(tokenblocks.Keyed(base, []byte("\xa4salt")), span(100, 4))
	image := tokenblocks.Next(tokenblocks.Keyed(sql, []byte("\x92\xa5image\x03")), span(100, 4))
	return []Change{
		{Stored: []uint64{a, b}, BlockTokens: 4},
		{Stored: []uint64{c}, BlockTokens: 4},
		{Stored: []uint64{tokenblocks.Next(sql, span(100, 4))}, BlockTokens: 4},
		{Stored: []uint64{salted, tokenblocks.Next(salted, span(104, 4))}, BlockTokens: 4},
		{Stored: []uint64{image}, BlockTokens: 4},
		{Removed: []uint64{b, c}, BlockTokens: 4},
		{Cleared: true, BlockTokens: 4},
		{Stored: []uint64{tokenblocks.Next(base, span(500, 4))}, BlockTokens: 4},
	}
}

// What vLLM's own publisher sent is understood, live and as a replay.
func TestRecording(t *testing.T) {
	play := func(file string) uint16 {
		return listen(t, func(_ int, p *peer) {
			_, _ = p.Write(recording(t, file))
			p.wait()
		})
	}
	idle := listen(t, func(_ int, p *peer) { p.shake("PUB"); p.wait() })
	for name, tt := range map[string]struct {
		source        source
		first, behind []Change
	}{
		"live":   {source{port: play("events.bin")}, []Change{{Cleared: true}}, nil},
		"replay": {source{port: idle, replay: play("replay.bin")}, nil, []Change{{BlockTokens: 4}}},
	} {
		t.Run(name, func(t *testing.T) {
			want := append(append(tt.first, recorded()...), tt.behind...)
			if len(tt.first) == 0 {
				want[0].Cleared = true // nothing was told before
			}
			r, _ := subscribe(t, quick(), tt.source)
			var got []Change
			for _, c := range r.await(t, "all", func(calls []told) bool { return len(calls) >= len(want) }) {
				if c.err != nil {
					t.Fatal(c.err)
				}
				if len(c.change.Stored) == 0 {
					c.change.Stored = nil
				}
				if len(c.change.Removed) == 0 {
					c.change.Removed = nil
				}
				got = append(got, c.change)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// After a gap nothing is known without a replay, and blocks behind unknown ones have no name.
func TestGapWithoutReplay(t *testing.T) {
	r, _ := subscribe(t, quick(), source{port: listen(t, func(_ int, p *peer) {
		p.shake("PUB")
		p.publish(5, store(nil, 1, 2))
		p.publish(7, store(2, 3), store(nil, 4))
		p.wait()
	})})
	calls := r.awaitBlocks(t, "the blocks after the gap", name(4))
	if got := clears(calls); got != 2 {
		t.Errorf("%d changes void what was told, want the first one and that of the gap", got)
	}
}

// A replay fills gaps, and batches that come twice count once.
func TestGapWithReplay(t *testing.T) {
	var asked atomic.Uint64
	replay := listen(t, func(n int, p *peer) {
		asked.Store(binary.BigEndian.Uint64(p.shake("ROUTER")))
		p.replay(0, store(nil, 1))
		if n > 0 {
			p.replay(1, store(1, 2))
			p.replay(2, remove(1))
			p.replay(3, store(2, 3))
		}
		p.endReplay()
		p.wait()
	})
	r, _ := subscribe(t, quick(), source{replay: replay, port: listen(t, func(_ int, p *peer) {
		p.shake("PUB")
		time.Sleep(50 * time.Millisecond) // longer than RetryMin
		p.publish(0, store(nil, 1))
		p.publish(2, remove(1))
		p.publish(3, store(2, 3))
		p.publish(4, store(3, 4))
		p.wait()
	})})
	calls := r.awaitBlocks(t, "all but the removed", name(1, 2), name(1, 2, 3), name(1, 2, 3, 4))
	if got := clears(calls); got != 1 {
		t.Errorf("%d changes void what was told, want the first one", got)
	}
	if asked.Load() != 0 {
		t.Errorf("the replay was asked for from %d, want from the last known batch, 0", asked.Load())
	}
}

// A server that was started anew at the same address has none of the blocks of before, whatever its sequence.
func TestRestart(t *testing.T) {
	restarted := func(_ int, p *peer) {
		p.shake("ROUTER")
		p.endReplay()
		p.wait()
	}
	other := func(n int, p *peer) {
		p.shake("ROUTER")
		if n > 0 {
			p.replay(8, store(nil, 7))
			p.replay(9, store(nil, 8))
			p.replay(10, store(nil, 9))
		}
		p.endReplay()
		p.wait()
	}
	for name, tt := range map[string]struct {
		replay func(int, *peer)
		seq    uint64
		want   []uint64
	}{
		"lower":              {nil, 3, []uint64{name(5)}},
		"beyond a gap":       {nil, 30, []uint64{name(5)}},
		"empty replay":       {restarted, 3, []uint64{name(5)}},
		"same number":        {other, 11, []uint64{name(7), name(8), name(9), name(5)}},
		"empty, next number": {restarted, 10, []uint64{name(5)}},
	} {
		t.Run(name, func(t *testing.T) {
			s := source{port: listen(t, func(n int, p *peer) {
				p.shake("PUB")
				if n == 0 {
					p.publish(9, store(nil, 1, 2))
					time.Sleep(50 * time.Millisecond) // what is sent is lost with a reset
					return
				}
				p.publish(tt.seq, store(nil, 5))
				p.wait()
			})}
			if tt.replay != nil {
				s.replay = listen(t, tt.replay)
			}
			r, _ := subscribe(t, quick(), s)
			r.awaitBlocks(t, "the new process's blocks", tt.want...)
		})
	}
}

// A connection that breaks loses nothing where the server goes on.
func TestReconnect(t *testing.T) {
	r, _ := subscribe(t, quick(), source{port: listen(t, func(n int, p *peer) {
		p.shake("PUB")
		p.publish(uint64(n), store(nil, n))
		time.Sleep(20 * time.Millisecond)
		if n == 2 {
			p.wait()
		}
	})})
	calls := r.awaitBlocks(t, "all blocks", name(0), name(1), name(2))
	if got := clears(calls); got != 1 {
		t.Errorf("%d changes void what was told, want the first one", got)
	}
}

// Where the server's process is gone, so is its cache.
func TestRefusedConnection(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serveOn(t, l, func(_ int, p *peer) {
		p.shake("PUB")
		p.publish(0, store(nil, 1))
		time.Sleep(50 * time.Millisecond)
		_ = l.Close()
	})
	r, _ := subscribe(t, quick(), source{port: l.Addr().(*net.TCPAddr).AddrPort().Port()})
	r.awaitBlocks(t, "the block", name(1))
	r.awaitBlocks(t, "nothing")
}

// Single blocks of another length are left out. Where they are the rule, they count, and those of before do not.
func TestOtherBlockSize(t *testing.T) {
	r, _ := subscribe(t, quick(), source{port: listen(t, func(_ int, p *peer) {
		p.shake("PUB")
		p.publish(0, store(nil, 1, 2))
		p.publish(1, storeSized(3, nil, 3))
		p.publish(2, store(nil, 4))
		p.publish(3, storeSized(3, nil, 5, 6, 7, 8))
		p.wait()
	})})
	calls := r.awaitBlocks(t, "longer blocks", nameSized(3, 5), nameSized(3, 5, 6), nameSized(3, 5, 6, 7), nameSized(3, 5, 6, 7, 8))
	if last := calls[len(calls)-1].change; last.BlockTokens != 3 || !last.Cleared {
		t.Errorf("the last change is %+v, want cleared, and blocks of 3 tokens", last)
	}
	if !cached(calls[:len(calls)-1])[name(4)] || len(cached(calls[:len(calls)-1])) != 3 {
		t.Error("a single longer block counts")
	}
}

// A block is there as long as one rank has it.
func TestRanks(t *testing.T) {
	next := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(next) })
	rank := func(second ...any) source {
		return source{port: listen(t, func(_ int, p *peer) {
			p.shake("PUB")
			p.publish(0, store(nil, 1, 2))
			<-next
			p.publish(1, second...)
			p.wait()
		})}
	}
	r, _ := subscribe(t, quick(), rank(remove(1, 2)), rank(remove(1)))
	t.Cleanup(goOn)
	r.awaitBlocks(t, "both", name(1), name(1, 2))
	time.Sleep(100 * time.Millisecond) // so that both ranks have stored them
	goOn()
	r.awaitBlocks(t, "the one that one rank has", name(1, 2))
}

// Changes have a bounded size.
func TestLargeMessage(t *testing.T) {
	const n = 3*mostNames + 7
	hashes := make([]int, n)
	names := make([]uint64, n)
	for i := range hashes {
		hashes[i] = i
		parent := tokenblocks.Root("")
		if i > 0 {
			parent = names[i-1]
		}
		names[i] = tokenblocks.Next(parent, span(10*i, blockSize))
	}
	r, _ := subscribe(t, quick(), source{port: listen(t, func(_ int, p *peer) {
		p.shake("PUB")
		p.publish(0, store(nil, hashes...))
		p.wait()
	})})
	for _, c := range r.awaitBlocks(t, "all", names...) {
		if got := len(c.change.Stored) + len(c.change.Removed); got > mostNames {
			t.Errorf("a change has %d names", got)
		}
	}
}

// What is no publisher's protocol ends the connection with an error that says why.
func TestBadServers(t *testing.T) {
	write := func(b ...[]byte) func(int, *peer) {
		return func(_ int, p *peer) {
			for _, b := range b {
				_, _ = p.Write(b)
			}
			p.wait()
		}
	}
	ready := command("READY", typeProperty("PUB"))
	plain := greeting()
	copy(plain[12:], "PLAIN")
	huge := append([]byte{flagLong}, "\x7f\xff\xff\xff\xff\xff\xff\xff"...)
	for name, tt := range map[string]struct {
		serve func(int, *peer)
		want  string
	}{
		"HTTP":            {write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")), "greeting"},
		"ZMTP 2":          {write([]byte("\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x01\x02")), "greeting"},
		"PLAIN":           {write(plain), "PLAIN"},
		"wrong socket":    {write(greeting(), command("READY", typeProperty("REQ"))), "REQ"},
		"error":           {write(greeting(), command("ERROR", []byte("\x04nope"))), "nope"},
		"message first":   {write(greeting(), frame(0, nil)), "before READY"},
		"huge READY":      {write(greeting(), []byte{flagLong | flagCommand, 0x7f, 0, 0, 0, 0, 0, 0, 0}), errTooLarge.Error()},
		"huge frame":      {write(greeting(), ready, huge), errTooLarge.Error()},
		"huge topic":      {write(greeting(), ready, []byte{flagLong | flagMore, 0, 0, 0, 0, 0, 1, 0, 0}), errTooLarge.Error()},
		"many frames":     {write(greeting(), ready, multipart(make([][]byte, 9)...)), errTooLarge.Error()},
		"two frames":      {write(greeting(), ready, multipart(nil, nil)), "8 bytes"},
		"reserved flags":  {write(greeting(), ready, []byte{0x80, 0}), "flags"},
		"malformed batch": {write(greeting(), ready, multipart(nil, make([]byte, 8), []byte{0xc1})), errMalformed.Error()},
		"silent":          {write(), "i/o timeout"},
		"dripping": {func(_ int, p *peer) {
			for _, b := range greeting() {
				if _, err := p.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}, "i/o timeout"},
		"no answer to a PING": {write(greeting(), ready), "PING"},
		"half a message":      {write(greeting(), ready, []byte{flagLong, 0, 0, 0, 0, 0, 0x3f, 0xff, 0xff, 1, 2, 3}), "i/o timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			o := quick()
			o.Timeout, o.Quiet = 200*time.Millisecond, 200*time.Millisecond
			r, s := subscribe(t, o, source{port: listen(t, tt.serve)})
			if got := r.awaitError(t, "a failure").err.Error(); !strings.Contains(got, tt.want) {
				t.Errorf("the error is %q, want one with %q", got, tt.want)
			}
			if got := s.memory.Taken(); got > 200<<10 {
				t.Errorf("%d bytes are taken", got)
			}
		})
	}
}

// A server that sends all it can is read at its tenant's rate, and another tenant's server is not delayed.
func TestFlood(t *testing.T) {
	var sent atomic.Int64
	flood := listen(t, func(_ int, p *peer) {
		p.shake("PUB")
		junk := batch(remove(make([]int, 1000)...))
		for seq := uint64(0); ; seq++ {
			m := multipart(nil, binary.BigEndian.AppendUint64(nil, seq), junk)
			n, err := p.Write(m)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
	})
	calm := listen(t, func(_ int, p *peer) { p.shake("PUB"); p.publish(0, store(nil, 1)); p.wait() })
	o := quick()
	o.BytesPerSecond = 128 << 10
	r := newRecorder()
	s := New(o, r)
	defer s.Close()
	targets := map[netip.AddrPort]Target{}
	for tenant, port := range map[string]uint16{"hostile": flood, "models": calm} {
		endpoint := web(t, func() string { return sourcesPage(source{port: port}) })
		targets[endpoint] = Target{URL: "http://" + endpoint.String(), Tenant: tenant}
	}
	s.Update(targets, nil)
	r.awaitBlocks(t, "the other tenant's block", name(1))
	time.Sleep(time.Second)
	before := sent.Load()
	time.Sleep(time.Second)
	// Of what is sent, the kernel takes some MiB before.
	if got := sent.Load() - before; got > 2*int64(o.BytesPerSecond) {
		t.Errorf("%d bytes are read in a second, want at most %d", got, o.BytesPerSecond)
	}
}

// A server without the page of sources is subscribed to at the usual port.
func TestNoSourcesPage(t *testing.T) {
	r := newRecorder()
	s := New(quick(), r)
	defer s.Close()
	s.fallback = listen(t, func(_ int, p *peer) { p.shake("PUB"); p.publish(0, store(nil, 1)); p.wait() })
	endpoint := web(t, func() string { return "" })
	s.Update(map[netip.AddrPort]Target{endpoint: {URL: "http://" + endpoint.String() + "/other"}}, nil)
	r.awaitBlocks(t, "the block", name(1))
}

func TestSources(t *testing.T) {
	one := `"endpoint":"tcp://*:5557"`
	zmq := `"enable_kv_cache_events":true,"publisher":"zmq",`
	for name, tt := range map[string]struct {
		page string
		want map[int]source
	}{
		"one":            {sourcesPage(source{5557, 5567}), map[int]source{0: {5557, 5567}}},
		"two":            {sourcesPage(source{5557, 0}, source{5558, 0}), map[int]source{0: {5557, 0}, 1: {5558, 0}}},
		"another host":   {`{"3":{` + zmq + `"endpoint":"tcp://10.1.2.3:80"}}`, map[int]source{3: {80, 0}}},
		"IPv6":           {`{"0":{` + zmq + `"endpoint":"tcp://[::]:81"}}`, map[int]source{0: {81, 0}}},
		"none":           {`{}`, nil},
		"not enabled":    {`{"0":{"publisher":"zmq",` + one + `}}`, nil},
		"not over zmq":   {`{"0":{"enable_kv_cache_events":true,"publisher":"null",` + one + `}}`, nil},
		"port 0":         {`{"0":{` + zmq + `"endpoint":"tcp://*:0"}}`, nil},
		"port 65536":     {`{"0":{` + zmq + `"endpoint":"tcp://*:65536"}}`, nil},
		"inproc":         {`{"0":{` + zmq + `"endpoint":"inproc://cache:1"}}`, nil},
		"no address":     {`{"0":{` + zmq + `"endpoint":""}}`, nil},
		"no rank":        {`{"x":{` + zmq + one + `}}`, nil},
		"too many ranks": {sourcesPage(make([]source, maxRanks+1)...), nil},
		"no JSON":        {`<html>`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseSources([]byte(tt.page))
			if (err == nil) != (tt.want != nil) {
				t.Fatalf("the error is %v", err)
			}
			if tt.want != nil && !cmp.Equal(got, tt.want, cmp.AllowUnexported(source{})) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// Close ends everything, whatever servers do at that time, and gives all memory back.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("servers", func(t *testing.T) {
		silent := listen(t, func(_ int, p *peer) { p.wait() })
		endless := listen(t, func(_ int, p *peer) {
			p.shake("PUB")
			for i := 0; ; i++ {
				if _, err := p.Write(multipart(nil, binary.BigEndian.AppendUint64(nil, uint64(i)), batch(store(nil, i)))); err != nil {
					return
				}
			}
		})
		r, s := subscribe(t, quick(), source{port: endless}, source{port: silent}, source{port: endless, replay: silent}, source{port: 1})
		r.await(t, "many changes", func(calls []told) bool { return len(calls) > 100 })
		s.Close()
		n := len(r.all())
		time.Sleep(20 * time.Millisecond)
		if len(r.all()) != n {
			t.Error("the sink is called after Close")
		}
		if got := s.memory.Taken(); got != 0 {
			t.Errorf("%d bytes are still taken", got)
		}
	})
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d goroutines, and before there were %d", runtime.NumGoroutine(), before)
}

// An endpoint that is removed gives its memory back, and comes back as a new one.
func TestUpdate(t *testing.T) {
	r, s := subscribe(t, quick(), source{port: listen(t, func(_ int, p *peer) { p.shake("PUB"); p.publish(0, store(nil, 1)); p.wait() })})
	calls := r.awaitBlocks(t, "the block", name(1))
	endpoint := calls[0].endpoint
	target := Target{URL: "http://" + endpoint.String(), Tenant: "models"}
	s.Update(map[netip.AddrPort]Target{endpoint: target}, nil) // unchanged
	s.Update(nil, []netip.AddrPort{endpoint})
	target.Tenant = "others"
	s.Update(map[netip.AddrPort]Target{endpoint: target}, nil)
	r.await(t, "it is told again", func(calls []told) bool { return clears(calls) == 2 && cached(calls)[name(1)] })
}

// A server that tells of more blocks than its tenant's share has room for fails, and its blocks are void.
func TestNoRoom(t *testing.T) {
	o := quick()
	o.MaxBytes = 1 << 20
	r, s := subscribe(t, o, source{port: listen(t, func(n int, p *peer) {
		p.shake("PUB")
		if n == 0 {
			for i := range 100 {
				hashes := make([]int, 200)
				for j := range hashes {
					hashes[j] = 200*i + j
				}
				p.publish(uint64(i), store(nil, hashes...))
			}
		}
		p.publish(100, store(nil, 1))
		p.wait()
	})})
	if err := r.awaitError(t, "no room").err; !errors.Is(err, errNoRoom) {
		t.Errorf("the error is %v", err)
	}
	r.awaitBlocks(t, "a block that has room", name(1))
	if got := s.memory.Taken(); got > 200<<10 {
		t.Errorf("%d bytes are still taken", got)
	}
}
