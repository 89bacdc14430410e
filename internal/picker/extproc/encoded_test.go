package extproc

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"mime/multipart"
	"runtime"
	"slices"
	"testing"

	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"github.com/klauspost/compress/zstd"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

func gzipped(t testing.TB, body []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// callOf brings a whole request to the pool with these headers and returns its stream, the call in flight.
func (w *world) callOf(t testing.TB, mode procmodev3.ProcessingMode_BodySendMode, body []byte, headers ...string) *exchange {
	t.Helper()
	x := w.open(t, llama, withModes(mode, none))
	x.send(requestHeaders(false, headers...))
	if mode == partial {
		isContinue(t, x.recv(), "RequestHeaders")
		x.send(requestBody(body, true))
		picked(t, x.recv())
		return x
	}
	chunks := slices.Collect(slices.Chunk(body, len(body)/3+1))
	for i, chunk := range chunks {
		x.send(requestBody(chunk, i == len(chunks)-1))
	}
	picked(t, x.recv())
	back := x.recv().GetRequestBody().GetResponse().GetBodyMutation().GetStreamedResponse()
	if !bytes.Equal(back.GetBody(), body) || !back.GetEndOfStream() {
		t.Errorf("of %d bytes %d came back, or others", len(body), len(back.GetBody()))
	}
	return x
}

// A call whose body is encoded has the same prefix as one whose body is plain, in whatever mode and pieces it comes.
func TestEncodedBodiesShareAPrefix(t *testing.T) {
	zstdWriter, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for coding, encode := range map[string]func([]byte) []byte{
		"gzip": func(body []byte) []byte { return gzipped(t, body) },
		"zstd": func(body []byte) []byte { return zstdWriter.EncodeAll(body, nil) },
	} {
		for _, mode := range []procmodev3.ProcessingMode_BodySendMode{partial, full} {
			t.Run(fmt.Sprint(coding, " ", mode), func(t *testing.T) {
				w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxHeldBytes: 64 << 20}, fourEndpoints...)
				body := completion(1, 60_000)
				first := w.callOf(t, mode, body)
				first.answer("200", true)
				first.close()
				w.quiet(t)
				second := w.callOf(t, mode, encode(body), "content-encoding", coding)
				defer second.close()
				if got := w.metric(t, "prompt_tokens_matched_total"); got < 14_000 {
					t.Errorf("%v tokens of the encoded prompt are taken to be cached, want nearly 15,000", got)
				}
				if got := w.server.held.Taken(); got != 0 {
					t.Errorf("%d bytes are held after the pick", got)
				}
			})
		}
	}
}

// However short an encoded body is, reading it takes a turn at the processors, and room.
func TestEncodedBodiesTakeTheirTurnAndRoom(t *testing.T) {
	short := completion(1, 2000)
	unread := func(w *world) float64 { return w.metric(t, "picks_unread_total") }

	w := newWorld(t, fourEndpoints...)
	for range runtime.GOMAXPROCS(0) { // they read for ever
		w.server.reading.Enter("hostile", 0)
	}
	plain := w.callOf(t, partial, short)
	defer plain.close()
	if got := unread(w); got != 0 {
		t.Fatalf("%v plain bodies wait for a turn", got)
	}
	encoded := w.callOf(t, partial, gzipped(t, short), "content-encoding", "gzip")
	defer encoded.close()
	if got := unread(w); got != 1 {
		t.Errorf("without a turn, %v encoded bodies are left unread, want 1", got)
	}

	for held, want := range map[int]float64{request.DecodingBytes - 1: 1, 2 * request.DecodingBytes: 0} {
		w := newWorldWith(t, poolstate.Options{Seed: 1}, Options{MaxHeldBytes: held}, fourEndpoints...)
		for range 3 { // one after the other, each in the room of the one before
			x := w.callOf(t, partial, gzipped(t, short), "content-encoding", "gzip")
			defer x.close()
		}
		if got := unread(w); got != 3*want {
			t.Errorf("with %d bytes of room, %v encoded bodies are left unread, want %v", held, got, 3*want)
		}
		if got := w.server.held.Taken(); got != 0 {
			t.Errorf("%d bytes are held after the picks", got)
		}
	}
}

// A form's recording counts as a prompt.
func TestFormsAreRead(t *testing.T) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	for _, name := range []string{"model", "file"} {
		if err := form.WriteField(name, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if err := form.Close(); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, withModes(partial, none))
	defer x.close()
	m := requestHeaders(false)
	m.GetRequestHeaders().Headers = headerMap(":method", "POST", ":path", "/v1/audio/transcriptions", "content-type", form.FormDataContentType())
	x.send(m)
	isContinue(t, x.recv(), "RequestHeaders")
	x.send(requestBody(body.Bytes(), true))
	picked(t, x.recv())
	if got := w.metric(t, "prompt_tokens_total"); got != request.MediaBytes/4 {
		t.Errorf("the recording counts as %v tokens, want %d", got, request.MediaBytes/4)
	}
}
