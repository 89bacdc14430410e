package kvevents

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/fairshare"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/tokenblocks"
)

// bare returns a rank that is not connected, of an endpoint whose changes are kept.
func bare(o Options) (*rank, *recorder) {
	r := newRecorder()
	s := New(o, r)
	e := newEndpoint(s, netip.MustParseAddrPort("10.0.0.7:8000"), Target{}, newTenant(o, fairshare.New(o.MaxBytes).Of("")))
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e.rank(0), r
}

// fast are options without a limit.
func fast() Options {
	o := DefaultOptions()
	o.BytesPerSecond = math.MaxInt32
	o.MaxBytes = 0
	return o
}

// with returns an event with fields changed.
func with(event fields, changes ...any) fields {
	out := append(fields(nil), event...)
	for i := 0; i < len(changes); i += 2 {
		for j := 0; j < len(out); j += 2 {
			if out[j] == changes[i] {
				out[j+1] = changes[i+1]
				changes[i] = nil
				break
			}
		}
		if changes[i] != nil {
			out = append(out, changes[i], changes[i+1])
		}
	}
	return out
}

// Which blocks the events of one batch leave.
func TestEvents(t *testing.T) {
	one, two := name(1), name(1, 2)
	adapter := tokenblocks.Next(tokenblocks.Root("sql"), []uint32{10, 11})
	array := []any{"BlockStored", []any{1, 2}, nil, []any{10, 11, 20, 21}, blockSize, nil, "GPU"}
	for name, tt := range map[string]struct {
		events []any
		want   []uint64
	}{
		"stored":                    {[]any{store(nil, 1, 2)}, []uint64{one, two}},
		"array":                     {[]any{array}, []uint64{one, two}},
		"array removed":             {[]any{array, []any{"BlockRemoved", []any{1}}}, []uint64{two}},
		"array removed from a CPU":  {[]any{array, []any{"BlockRemoved", []any{1}, "CPU"}}, []uint64{one, two}},
		"array cleared":             {[]any{array, []any{"AllBlocksCleared"}}, nil},
		"array with an adapter":     {[]any{[]any{"BlockStored", []any{1}, nil, []any{10, 11}, blockSize, 3, "GPU", "sql", nil, 0, "more", 7}}, []uint64{adapter}},
		"array of another group":    {[]any{[]any{"BlockStored", []any{1}, nil, []any{10, 11}, blockSize, nil, "GPU", nil, nil, 1}}, nil},
		"parent":                    {[]any{store(nil, 1), store(1, 2)}, []uint64{one, two}},
		"unknown parent":            {[]any{store(9, 1), store(1, 2)}, nil},
		"removed":                   {[]any{store(nil, 1, 2), remove(2, 9)}, []uint64{one}},
		"stored twice":              {[]any{store(nil, 1), store(nil, 1), remove(1)}, []uint64{one}},
		"stored and removed twice":  {[]any{store(nil, 1), store(nil, 1), remove(1, 1, 1)}, nil},
		"two media":                 {[]any{store(nil, 1), with(store(nil, 1), "medium", "CPU"), remove(1)}, []uint64{one}},
		"no medium":                 {[]any{with(store(nil, 1), "medium", nil), remove(1)}, nil},
		"cleared":                   {[]any{store(nil, 1), fields{"type", "AllBlocksCleared"}, store(nil, 2)}, []uint64{nameSized(blockSize, 2)}},
		"group 0":                   {[]any{with(store(nil, 1), "group_idx", 0)}, []uint64{one}},
		"another group":             {[]any{with(store(nil, 1), "group_idx", 1), store(nil, 2), with(remove(2), "group_idx", 1)}, []uint64{nameSized(blockSize, 2)}},
		"adapter":                   {[]any{with(store(nil, 1), "lora_name", "sql", "lora_id", 1)}, []uint64{adapter}},
		"adapter among the keys":    {[]any{with(store(nil, 1), "lora_name", "sql", "extra_keys", []any{[]any{"sql"}})}, []uint64{adapter}},
		"adapter without a name":    {[]any{with(store(nil, 1), "lora_id", 1)}, nil},
		"no keys":                   {[]any{with(store(nil, 1, 2), "extra_keys", []any{nil, []any{}})}, []uint64{one, two}},
		"keys of too few blocks":    {[]any{with(store(nil, 1, 2), "extra_keys", []any{nil})}, nil},
		"keys of no kind":           {[]any{with(store(nil, 1), "extra_keys", []any{3})}, nil},
		"too few tokens":            {[]any{with(store(nil, 1), "token_ids", []any{10})}, nil},
		"too many tokens":           {[]any{with(store(nil, 1), "token_ids", []any{10, 11, 12})}, nil},
		"negative token":            {[]any{with(store(nil, 1), "token_ids", []any{10, -1})}, nil},
		"token that is a pair":      {[]any{with(store(nil, 1), "token_ids", []any{[]any{10, 11}, 11})}, nil},
		"no block size":             {[]any{with(store(nil, 1), "block_size", nil)}, nil},
		"block size 0":              {[]any{with(store(nil, 1), "block_size", 0, "token_ids", []any{})}, nil},
		"huge block size":           {[]any{with(store(nil, 1), "block_size", math.MaxInt)}, nil},
		"negative hash":             {[]any{with(store(nil, 1), "block_hashes", []any{-1}), store(-1, 2)}, []uint64{one, two}},
		"bytes":                     {[]any{with(store(nil, 1), "block_hashes", []any{[]byte("one")}), store([]byte("one"), 2)}, []uint64{one, two}},
		"hash of no kind":           {[]any{with(store(nil, 1), "block_hashes", []any{1.5})}, nil},
		"one hash for two blocks":   {[]any{store(nil, 1), with(store(nil, 1), "token_ids", []any{20, 21})}, []uint64{nameSized(blockSize, 2)}},
		"unknown fields and events": {[]any{1, "x", fields{"type", "New"}, fields{1, 2}, []any{}, []any{3}, with(store(nil, 1), "new", fields{1, 2})}, []uint64{one}},
		"fields of no kind":         {[]any{fields{"type", "BlockStored", "block_hashes", 3}, fields{"type", "BlockRemoved"}, fields{"type", "BlockStored"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r, sink := bare(fast())
			if err := r.apply(0, batch(tt.events...)); err != nil {
				t.Fatal(err)
			}
			want := map[uint64]bool{}
			for _, n := range tt.want {
				want[n] = true
			}
			if diff := cmp.Diff(want, cached(sink.all())); diff != "" {
				t.Error(diff)
			}
			if got := r.endpoint.blocks.count; len(got) != len(want) {
				t.Errorf("%d blocks are counted, want %d", len(got), len(want))
			}
		})
	}
}

func TestMalformedBatches(t *testing.T) {
	whole := batch(store(nil, 1))
	deep := append([]byte{0x92, 0xc0, 0x91}, bytes.Repeat([]byte{0x91}, 1<<20)...)
	for name, payload := range map[string][]byte{
		"empty": nil, "nil": {0xc0}, "too short": pack([]any{1.5}), "cut": whole[:len(whole)-20], "deep": deep,
		"events that are none": pack([]any{1.5, 3}), "huge array": {0x92, 0xc0, 0xdd, 0xff, 0xff, 0xff, 0xff},
		"huge map": {0x92, 0xc0, 0x91, 0xdf, 0xff, 0xff, 0xff, 0xff}, "huge string": {0x92, 0xc0, 0x91, 0xdb, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			if err := decode(payload, func(*event) error { return nil }); !errors.Is(err, errMalformed) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The memory that blocks are accounted for is near the heap's, also where blocks come and go.
func TestBytesAreAsMeasured(t *testing.T) {
	for name, tt := range map[string]struct{ blocks, turns int }{
		"few": {3_000, 1}, "many": {100_000, 1}, "more": {150_000, 1}, "come and go": {50_000, 6},
	} {
		t.Run(name, func(t *testing.T) {
			before := heap()
			r, _ := bare(fast())
			r.endpoint.blocks.tell = func(Change) {}
			hashes, gone := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(1, 1))
			r.endpoint.mu.Lock()
			for n := range tt.blocks * tt.turns {
				hash := hashes.Uint64()
				if err := r.put(hash, hash+1, gpu); err != nil {
					t.Fatal(err)
				}
				if n >= tt.blocks {
					r.take(gone.Uint64(), gpu)
				}
			}
			r.endpoint.blocks.flush(false)
			r.endpoint.mu.Unlock()
			real := float64(heap() - before)
			t.Logf("%.0f bytes a block", real/float64(tt.blocks))
			if ratio := float64(r.entries.bytes) / real; ratio < 0.6 || ratio > 1.7 {
				t.Errorf("%d bytes are accounted for, and the heap grew by %.0f: %.2f", r.entries.bytes, real, ratio)
			}
			runtime.KeepAlive(r)
		})
	}
}

// recordedPayloads are the payloads of the recording.
func recordedPayloads(f *testing.F) (out [][]byte) {
	w := wireOf(recording(f, "events.bin"))
	if err := w.readGreeting(); err != nil {
		f.Fatal(err)
	}
	for {
		frames, err := w.message()
		if err != nil {
			return out
		}
		if len(frames) == 3 {
			out = append(out, bytes.Clone(frames[2]))
		}
	}
}

// bytesConn is a connection from which some bytes come, and nothing behind them.
type bytesConn struct {
	net.Conn
	bytes *bytes.Reader
}

func (c bytesConn) Read(b []byte) (int, error)     { return c.bytes.Read(b) }
func (bytesConn) Write(b []byte) (int, error)      { return len(b), nil }
func (bytesConn) Close() error                     { return nil }
func (bytesConn) SetReadDeadline(time.Time) error  { return nil }
func (bytesConn) SetWriteDeadline(time.Time) error { return nil }

func wireOf(b []byte) *wire {
	tenant := newTenant(fast(), fairshare.New(0).Of(""))
	l := &link{conn: bytesConn{bytes: bytes.NewReader(b)}, ctx: context.Background(), tenant: tenant, left: unlimited}
	return &wire{link: l, reader: l.buffered(), hold: &hold{tenant: tenant}}
}

// No batch makes the decoder panic, and what is counted fits what was told.
func FuzzBatch(f *testing.F) {
	for _, payload := range recordedPayloads(f) {
		f.Add(payload)
	}
	f.Add(batch(store(nil, 1, 2), remove(1), []any{"BlockStored", []any{1}, nil, []any{1}, 1}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, sink := bare(fast())
		_ = r.apply(0, batch(store(nil, 1, 2, 3)))
		_ = r.apply(1, payload)
		names := map[uint64]bool{}
		for _, b := range r.named {
			names[b.name] = true
		}
		if diff := cmp.Diff(names, cached(sink.all())); diff != "" {
			t.Error(diff)
		}
		if len(r.endpoint.blocks.count) != len(names) {
			t.Errorf("%d blocks are counted, and there are %d", len(r.endpoint.blocks.count), len(names))
		}
		r.forget()
		if got := len(cached(sink.all())) + int(r.entries.bytes); got != 0 {
			t.Errorf("%d blocks and bytes are left", got)
		}
	})
}

// No bytes make the reader panic, and it takes no more memory than they are worth.
func FuzzWire(f *testing.F) {
	f.Add(recording(f, "events.bin"))
	f.Add(recording(f, "replay.bin"))
	f.Add(append(greeting(), misnamed()...))
	f.Add(append(greeting(), command("PING", []byte("\x00\x00ctx"))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		w := wireOf(b)
		if w.readGreeting() != nil || w.awaitReady([]string{"PUB", "ROUTER"}) != nil {
			return
		}
		for {
			if _, err := w.message(); err != nil {
				break
			}
		}
		if len(w.buffer) > 2*len(b)+leastBuffer {
			t.Errorf("a buffer of %d bytes for %d", len(w.buffer), len(b))
		}
	})
}

// BenchmarkStored stores blocks of 16 tokens, 64 a batch, in a cache of 100,000 blocks, and removes as many.
func BenchmarkStored(b *testing.B) {
	const blocks, kept = 64, 100_000
	r, _ := bare(fast())
	r.endpoint.blocks.tell = func(Change) {}
	payload := func(n int) []byte {
		hashes := make([]int, blocks)
		gone := make([]int, blocks)
		for i := range hashes {
			hashes[i] = n*blocks + i
			gone[i] = hashes[i] - kept
		}
		return batch(storeSized(16, nil, hashes...), remove(gone...))
	}
	var payloads [][]byte
	for n := range 4096 {
		payloads = append(payloads, payload(n))
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; b.Loop(); n++ {
		if err := r.apply(uint64(n), payloads[n%len(payloads)]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*blocks), "ns/block")
	b.ReportMetric(float64(len(payloads[0]))/blocks, "bytes/block")
}

// misnamed is a command of 256 bytes whose name is said to be as long as a byte can say.
func misnamed() []byte {
	body := make([]byte, 256)
	body[0] = 255
	return append([]byte{flagCommand | flagLong, 0, 0, 0, 0, 0, 0, 1, 0}, body...)
}

func TestCommandsWithLongNames(t *testing.T) {
	for what, stream := range map[string][]byte{
		"before READY": append(greeting(), misnamed()...),
		"after READY":  append(append(greeting(), command("READY", typeProperty("PUB"))...), misnamed()...),
	} {
		w := wireOf(stream)
		if w.readGreeting() != nil || w.awaitReady([]string{"PUB"}) != nil {
			continue // refused
		}
		if frames, err := w.message(); err == nil && len(frames) > 0 {
			t.Errorf("%s: the command is a message of %d frames", what, len(frames))
		}
	}
}

// A rank that clears its cache again and again costs nothing that another rank's blocks make larger.
func TestClearsBesideALargeRank(t *testing.T) {
	large, _ := bare(fast())
	e := large.endpoint
	e.blocks.tell = func(Change) {}
	const blocks, clears = 100_000, 100
	for from := 0; from < blocks; from += 5000 {
		hashes := make([]int, 5000)
		for i := range hashes {
			hashes[i] = from + i + 1
		}
		if err := large.apply(uint64(from), batch(storeSized(1, nil, hashes...))); err != nil {
			t.Fatal(err)
		}
	}
	small := e.rank(1)
	var events []any
	for i := range clears {
		events = append(events, storeSized(1, nil, 10*blocks+i), []any{"AllBlocksCleared"})
	}
	payload := batch(events...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := small.apply(0, payload); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := int(after.TotalAlloc - before.TotalAlloc); got > blocks*int(unsafe.Sizeof(uses{})) {
		t.Errorf("%d clears allocate %d bytes", clears, got)
	}
}
