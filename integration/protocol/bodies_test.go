package protocol

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// In every mode in which Envoy sends bodies, any body reaches the endpoint unchanged, and its call is picked.
func TestBodies(t *testing.T) {
	bodies := map[string][]byte{
		"of no byte":                  {},
		"of a byte":                   []byte("x"),
		"of 8 KB":                     prompt("eight", 8<<10),
		"of 5 MB":                     prompt("five", 5<<20),
		"that is not JSON":            []byte("not JSON at all"),
		"that is cut off":             prompt("cut", 4000)[:3000],
		"of invalid UTF-8":            []byte("{\"model\":\"llama\",\"prompt\":\"\xff\xfe\xc3( and \xed\xa0\x80\"}"),
		"with keys twice":             []byte(`{"model":"a","model":"b","prompt":"one","prompt":["two"],"model":3}`),
		"of 100 levels":               []byte(strings.Repeat(`{"prompt":`, 100) + "1" + strings.Repeat("}", 100)),
		"of 100,000 open brackets":    bytes.Repeat([]byte("["), 100_000),
		"of the wrong types":          []byte(`{"model":[],"prompt":{"a":null},"stream":"yes","max_tokens":-1e999}`),
		"of bytes that are zero":      make([]byte, 10_000),
		"of numbers beyond measure":   []byte(`{"prompt":[` + strings.Repeat("9", 10_000) + `]}`),
		"of a half escape at the end": []byte(`{"model":"llama","prompt":"\ud83d`),
	}
	for name, body := range bodies {
		for _, mode := range modes {
			t.Run(fmt.Sprintf("%s, %s", name, mode), func(t *testing.T) {
				isUnchanged(t, served(t, mode, bytes.NewReader(body)), body)
				isUnchanged(t, served(t, mode, inPieces(body, len(body)/7+1, time.Millisecond)), body)
			})
		}
	}
	for name, p := range the.pickers {
		if got := p.metric(t, "panics_total"); got != 0 {
			t.Errorf("%v faults in the picker %s", got, name)
		}
	}
}

func isUnchanged(t *testing.T, h heard, body []byte) {
	t.Helper()
	if sum := sha256.Sum256(body); h.Bytes != int64(len(body)) || h.SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("of %d bytes %d arrived, or others", len(body), h.Bytes)
	}
	if strings.Count(h.Header, ",") == 0 {
		t.Errorf("the pick is %q, want a list", h.Header)
	}
}

// inPieces makes a body of unknown length with a pause between its pieces.
func inPieces(body []byte, size int, pause time.Duration) io.Reader {
	reader, writer := io.Pipe()
	go func() {
		for len(body) > 0 {
			n := min(size, len(body))
			if _, err := writer.Write(body[:n]); err != nil {
				return // the reader has gone
			}
			body = body[n:]
			time.Sleep(pause)
		}
		_ = writer.Close() // never fails
	}()
	return reader
}

// Both bodies stream: each piece arrives before the next is sent, though all pass through the picker.
func TestStreaming(t *testing.T) {
	for _, door := range []string{partial, "left " + partial, "left " + duplex} {
		t.Run("answers, "+door, func(t *testing.T) {
			pieces := make(chan string)
			response := open(t, door, ask(t.Name()), script(t, say(pieces))) //nolint:bodyclose // the test's end closes it
			for n := range 20 {
				pieces <- fmt.Sprintf("data: token %d\n\n", n)
				hears(t, response.Body, fmt.Sprintf("data: token %d\n\n", n))
			}
			close(pieces)
			if rest, err := io.ReadAll(response.Body); err != nil || len(rest) > 0 {
				t.Errorf("the end is %q, %v", rest, err)
			}
		})
	}
	t.Run("requests, "+duplex, func(t *testing.T) {
		arrived := make(chan int64)
		reading := script(t, func(_ http.ResponseWriter, r *http.Request) {
			defer close(arrived)
			for buffer := make([]byte, 1<<20); ; {
				n, err := r.Body.Read(buffer)
				if n > 0 {
					arrived <- int64(n)
				}
				if err != nil {
					return
				}
			}
		})
		reader, writer := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			response, err := try(t.Context(), client, duplex, reader, reading)
			if err == nil {
				err = response.Body.Close()
			}
			ended <- err
		}()
		head := prompt("a head that is enough for a pick", 1<<20)
		send := func(piece []byte) {
			_, err := writer.Write(piece)
			must(t, err)
			for want := int64(len(piece)); want > 0; want -= <-arrived {
			}
		}
		send(head)
		for range 20 {
			send([]byte(" and a word more"))
		}
		must(t, writer.Close())
		for range arrived {
			t.Error("more arrived than was sent")
		}
		must(t, <-ended)
	})
}

// say is a script that answers with the pieces of a channel as they come.
func say(pieces <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // an error shows in a write
		out := http.NewResponseController(w)
		_ = out.Flush()
		for piece := range pieces {
			if _, err := io.WriteString(w, piece); err != nil || out.Flush() != nil {
				return
			}
		}
	}
}

// hears checks the next bytes that can be read.
func hears(t *testing.T, from io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != want {
		t.Fatalf("heard %q, %v, want %q", got[:n], err, want)
	}
}

// All of a body of 100 MB reaches the endpoint, and the picker uses memory only for the body's head.
func TestHugeBody(t *testing.T) {
	const size = 100 << 20
	for _, mode := range []string{partial, duplex} {
		t.Run(mode, func(t *testing.T) {
			p := the.pickers["main"]
			before, most := p.memory(t), int64(0)
			hash := sha256.New()
			body := &growing{head: prompt("huge", 100_000), left: size, each: func(piece []byte, left int) {
				_, _ = hash.Write(piece) // never fails
				if left%(10<<20) == 0 {
					most = max(most, p.memory(t)-before)
				}
			}}
			h := served(t, "huge "+mode, body)
			if h.Bytes != size || h.SHA256 != hex.EncodeToString(hash.Sum(nil)) {
				t.Errorf("of %d bytes %d arrived, or others", size, h.Bytes)
			}
			most = max(most, p.memory(t)-before)
			t.Logf("the picker took %d MiB more", most>>20)
			if most > 48<<20 { // windows of 16 MiB of a connection, and garbage that is not collected yet
				t.Errorf("a body of 100 MiB takes %d MiB of the picker's memory", most>>20)
			}
		})
	}
}

// growing is a body that is made as it is read, in pieces of 64 KiB.
type growing struct {
	head []byte
	left int
	each func(piece []byte, left int)
}

func (g *growing) Read(into []byte) (int, error) {
	if g.left == 0 {
		return 0, io.EOF
	}
	n := copy(into[:min(len(into), g.left, 64<<10)], g.head)
	if n < len(g.head) {
		g.head = g.head[n:]
	} else {
		g.head = bytes.Repeat([]byte("on and on it goes. "), 64<<10/19+1)
	}
	g.left -= n
	g.each(into[:n], g.left)
	return n, nil
}
