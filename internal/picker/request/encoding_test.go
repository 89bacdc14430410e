package request

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

// codings encode a body as clients do.
var codings = []struct {
	name, header string
	encode       func(body []byte) []byte
}{
	{"gzip", "gzip", gzipped},
	{"x-gzip", " X-GZIP ", gzipped},
	{"deflate", "deflate", zlibbed},
	{"deflate without a header", "deflate", deflated},
	{"zstd", "zstd", zstdOf},
	{"zstd, streamed", "Zstd", func(body []byte) []byte { return zstdStreamed(body, 1<<20) }},
	{"identity", "identity", func(body []byte) []byte { return body }},
}

func written(w io.WriteCloser, into *bytes.Buffer, body []byte) []byte {
	if _, err := w.Write(body); err != nil {
		panic(err)
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return into.Bytes()
}

func gzipped(body []byte) []byte {
	var out bytes.Buffer
	return written(gzip.NewWriter(&out), &out, body)
}

func zlibbed(body []byte) []byte {
	var out bytes.Buffer
	return written(zlib.NewWriter(&out), &out, body)
}

func deflated(body []byte) []byte {
	var out bytes.Buffer
	w, err := flate.NewWriter(&out, flate.BestSpeed)
	if err != nil {
		panic(err)
	}
	return written(w, &out, body)
}

// zstdEncoder is made once, as one takes many megabytes.
var zstdEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	return e
})

func zstdOf(body []byte) []byte { return zstdEncoder().EncodeAll(body, nil) }

func zstdStreamed(body []byte, window int) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(window))
	if err != nil {
		panic(err)
	}
	head := min(1, len(body))
	if _, err := w.Write(body[:head]); err != nil {
		panic(err)
	}
	if err := w.Flush(); err != nil { // so that it does not see the body's length
		panic(err)
	}
	return written(w, &out, body[head:])
}

// readEncoded reads the facts of an encoded chat. Unlike Read it takes as much time as it needs, on a busy machine too.
func readEncoded(coding string, body []byte) Facts {
	if !(Head{ContentEncoding: coding}).Encoded() {
		return read(chatPath, string(body))
	}
	d := decoders.Get().(*decoder)
	defer decoders.Put(d)
	defer d.end()
	var f Facts
	f.read(Head{Path: chatPath}, d.decode(coding, body, time.Now().Add(time.Hour)))
	return f
}

func TestEncodedBodyHasTheFactsOfThePlainOne(t *testing.T) {
	for _, size := range []int{1 << 10, 64 << 10, DecodedLimit - 4096} {
		plain := chatBody(size, code)
		want := read(chatPath, string(plain))
		for _, c := range codings {
			t.Run(fmt.Sprintf("%s/%d", c.name, size), func(t *testing.T) {
				if diff := cmp.Diff(want, readEncoded(c.header, c.encode(plain))); diff != "" {
					t.Errorf("facts (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestReadEncoded reads bodies that are so short that Read does not look at the clock.
func TestReadEncoded(t *testing.T) {
	plain := []byte(`{"model":"m","messages":[{"role":"user","content":"` + long("x", 2) + `"}]}`)
	want := read(chatPath, string(plain))
	for _, c := range codings {
		got := Facts{Model: "before", Blocks: []uint64{1}}
		got.Read(Head{Path: chatPath, ContentType: "application/json", ContentEncoding: c.header}, c.encode(plain))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: facts (-want +got):\n%s", c.name, diff)
		}
	}
	contentType, form := formOf(t, "model", "m", "stream", "true")
	var got Facts
	got.Read(Head{Path: speechPath, ContentType: contentType, ContentEncoding: "gzip"}, gzipped(form))
	if diff := cmp.Diff(Facts{API: Speech, Model: "m", Stream: true}, got); diff != "" {
		t.Errorf("a form: facts (-want +got):\n%s", diff)
	}
}

// TestEncodedHead cuts a body after it was encoded: the facts are those of a head.
func TestEncodedHead(t *testing.T) {
	var plain bytes.Buffer
	plain.WriteString(`{"model":"m","messages":[{"role":"user","content":"`)
	for i := range 40_000 { // text that does not repeat, so that it cannot be encoded in one block
		fmt.Fprintf(&plain, "%x ", uint32(i*2654435761))
	}
	plain.WriteString(`"}]}`)
	whole := read(chatPath, plain.String())
	for _, c := range codings {
		t.Run(c.name, func(t *testing.T) {
			encoded := c.encode(plain.Bytes())
			got := readEncoded(c.header, encoded[:len(encoded)*3/4])
			if n := len(got.Blocks); got.Model != "m" || n < len(whole.Blocks)/4 || n >= len(whole.Blocks) {
				t.Fatalf("model %q, %d blocks of %d", got.Model, n, len(whole.Blocks))
			}
			if diff := cmp.Diff(whole.Blocks[:len(got.Blocks)], got.Blocks); diff != "" {
				t.Errorf("blocks (-of the whole +of the head):\n%s", diff)
			}
		})
	}
}

// TestEncodedBodyIsReadUpToALimit encodes 8 MiB in a few kilobytes.
func TestEncodedBodyIsReadUpToALimit(t *testing.T) {
	body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("bomb", 2<<20))
	for _, c := range codings[:len(codings)-1] { // without identity
		t.Run(c.name, func(t *testing.T) {
			encoded := c.encode(body)
			if len(encoded) > 64<<10 {
				t.Fatalf("the body has %d bytes", len(encoded))
			}
			got := readEncoded(c.header, encoded)
			if got.Model != "m" || got.PromptBytes < DecodedLimit-1024 || got.PromptBytes > DecodedLimit {
				t.Errorf("model %q, %d bytes of prompt", got.Model, got.PromptBytes)
			}
		})
	}
}

func TestBodiesThatAreNotDecoded(t *testing.T) {
	plain := chatBody(8<<10, prose)
	for name, tc := range map[string]struct {
		coding string
		body   []byte
	}{
		"an unknown encoding":       {"br", plain},
		"an unknown one in fact":    {"br", gzipped(plain)},
		"two encodings":             {"gzip, zstd", zstdOf(gzipped(plain))},
		"gzip that is plain":        {"gzip", plain},
		"zstd that is plain":        {"zstd", plain},
		"gzip that is zstd":         {"gzip", zstdOf(plain)},
		"zstd that is gzip":         {"zstd", gzipped(plain)},
		"deflate that is plain":     {"deflate", plain},
		"a window that is too wide": {"zstd", zstdStreamed(plain, 2*zstdWindow)},
		"one byte":                  {"gzip", []byte{0x1f}},
		"a zlib header alone":       {"deflate", []byte{0x78, 0x9c}},
		"empty":                     {"zstd", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(Facts{API: ChatCompletions}, readEncoded(tc.coding, tc.body)); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDecodingEndsInTime gives a body that takes long a time that is over.
func TestDecodingEndsInTime(t *testing.T) {
	var plain bytes.Buffer
	for i := range 4000 {
		fmt.Fprintf(&plain, "%x ", uint32(i*2654435761))
	}
	for _, c := range codings[:len(codings)-1] {
		t.Run(c.name, func(t *testing.T) {
			body := c.encode(plain.Bytes())
			if c.header != "deflate" { // in pieces, whose many blocks need many reads, as those of a body that takes long
				body = nil
				for piece := range slices.Chunk(plain.Bytes(), 50) {
					body = append(body, c.encode(piece)...)
				}
			}
			d := decoders.New().(*decoder)
			for late, want := range map[time.Duration]bool{-time.Hour: false, time.Hour: true} {
				out := d.decode(c.header, body, time.Now().Add(late))
				if whole := len(out) == plain.Len(); whole != want {
					t.Errorf("%v before the time is over, %d of %d bytes are decoded", late, len(out), plain.Len())
				}
			}
		})
	}
}

// TestDecodersAreReused reads bodies of all kinds one after the other, from several goroutines: no body may leave
// anything to the next one.
func TestDecodersAreReused(t *testing.T) {
	bodies := make([][]byte, 4)
	for i := range bodies {
		bodies[i] = chatBody(1<<(10+2*i), prose[i:])
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 40 {
				plain, c := bodies[(g+i)%len(bodies)], codings[(g*3+i)%len(codings)]
				encoded := c.encode(plain)
				if i%5 == 0 {
					encoded = encoded[:len(encoded)/2]
					readEncoded(c.header, encoded)
					continue
				}
				if got, want := readEncoded(c.header, encoded), read(chatPath, string(plain)); !cmp.Equal(got, want) {
					t.Errorf("%s: facts (-want +got):\n%s", c.name, cmp.Diff(want, got))
				}
			}
		})
	}
	wg.Wait()
}

// FuzzEncoded reads any bytes in any encoding: without a panic, within the bounds that Facts promises. The same bytes as
// a plain body must have the same facts encoded, and cut encoded a head of its blocks.
func FuzzEncoded(f *testing.F) {
	plain := chatBody(2<<10, code)
	for i, c := range codings {
		f.Add(uint8(i), uint16(100), plain)
		f.Add(uint8(i), uint16(20), c.encode(plain))
	}
	f.Fuzz(func(t *testing.T, coding uint8, cut uint16, body []byte) {
		if len(body) > DecodedLimit {
			return
		}
		c := codings[int(coding)%len(codings)]
		if got := readEncoded(c.header, body); len(got.Blocks) > MaxBlocks || got.PromptBytes > DecodedLimit*MediaBytes {
			t.Errorf("%d blocks, %d bytes of prompt", len(got.Blocks), got.PromptBytes)
		}
		encoded := c.encode(body)
		want := read(chatPath, string(body))
		if diff := cmp.Diff(want, readEncoded(c.header, encoded)); diff != "" {
			t.Errorf("facts (-plain +encoded):\n%s", diff)
		}
		head := readEncoded(c.header, encoded[:int(cut)%(len(encoded)+1)])
		if head.PromptBytes > want.PromptBytes {
			t.Errorf("%d bytes of prompt in a head, %d in the whole", head.PromptBytes, want.PromptBytes)
		}
	})
}

func BenchmarkReadEncoded(b *testing.B) {
	var plain bytes.Buffer
	plain.WriteString(`{"model":"m","messages":[{"role":"user","content":"`)
	for i := 0; plain.Len() < DecodedLimit-10; i++ {
		fmt.Fprintf(&plain, "%d ", i*2654435761%150_000)
	}
	plain.WriteString(`"}]}`)
	for _, c := range codings {
		for _, size := range []int{8 << 10, DecodedLimit} {
			b.Run(fmt.Sprintf("%s/%dKB", c.name, size>>10), func(b *testing.B) {
				body := c.encode(plain.Bytes()[:min(size, plain.Len())])
				var f Facts
				head := Head{Path: chatPath, ContentEncoding: c.header}
				f.Read(head, body)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					f.Read(head, body)
				}
			})
		}
	}
}
