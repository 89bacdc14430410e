package integration

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// prompted is a request of one API, with its own form of a prompt.
type prompted struct{ path, encoding, body string }

// forms are the forms in which clients of model servers send a prompt, beside chats. Each makes a prompt of some thousand
// bytes that begins with a text of the caller's.
var forms = map[string]func(text string) prompted{
	"rerank": func(s string) prompted {
		return prompted{path: "/v1/rerank", body: fmt.Sprintf(`{"model":"m","query":%q,"documents":["a","b"]}`, s)}
	},
	"score": func(s string) prompted {
		return prompted{path: "/score", body: fmt.Sprintf(`{"model":"m","text_1":%q,"text_2":"b"}`, s)}
	},
	"pooling": func(s string) prompted {
		return prompted{path: "/pooling", body: fmt.Sprintf(`{"model":"m","input":%q}`, s)}
	},
	"classify": func(s string) prompted {
		return prompted{path: "/classify", body: fmt.Sprintf(`{"model":"m","input":[%q]}`, s)}
	},
	"vLLM, tokens": func(string) prompted {
		return prompted{path: "/inference/v1/generate", body: fmt.Sprintf(`{"token_ids":%s}`, numbers(2000))}
	},
	"SGLang, text": func(s string) prompted { return prompted{path: "/generate", body: fmt.Sprintf(`{"text":%q}`, s)} },
	"SGLang, tokens": func(string) prompted {
		return prompted{path: "/generate", body: fmt.Sprintf(`{"input_ids":%s}`, numbers(2000))}
	},
	"gzip": func(s string) prompted {
		return encoded(s, "gzip", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	},
	"deflate": func(s string) prompted {
		return encoded(s, "deflate", func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) })
	},
	"zstd": func(s string) prompted {
		return encoded(s, "zstd", func(w io.Writer) io.WriteCloser {
			z, err := zstd.NewWriter(w)
			if err != nil {
				panic(err)
			}
			return z
		})
	},
}

// encoded is a chat whose body is compressed.
func encoded(text, encoding string, writer func(io.Writer) io.WriteCloser) prompted {
	var out bytes.Buffer
	w := writer(&out)
	_, _ = fmt.Fprintf(w, `{"model":"m","messages":[{"role":"user","content":%q}]}`, text)
	_ = w.Close()
	return prompted{"/v1/chat/completions", encoding, out.String()}
}

// numbers is a JSON array of random tokens.
func numbers(n int) string {
	var out strings.Builder
	for range n {
		fmt.Fprintf(&out, ",%d", rand.IntN(100_000))
	}
	return "[" + out.String()[1:] + "]"
}

func (c prompted) send(ctx context.Context, pool string) (*heard, error) {
	headers := []string{"Content-Type", "application/json"}
	if c.encoding != "" {
		headers = append(headers, "Content-Encoding", c.encoding)
	}
	h, err := send(ctx, http.MethodPost, "http://"+pool+".models.inference.internal"+c.path+"?read", c.body, headers...)
	if err == nil && h.Status != http.StatusOK {
		err = fmt.Errorf("status %d", h.Status)
	}
	return h, err
}

// Calls with one prompt go to one endpoint, in whatever form the prompt comes, and reach it as they were sent.
func TestFormsOfPrompts(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	serve(ctx, t, "models", "forms", echoServer, 4)
	endlessPool(ctx, t, "forms", "forms", "http", "")
	const calls = 6
	for name, form := range forms {
		t.Run(name, func(t *testing.T) {
			whilePicked(ctx, t, "forms", calls, func() (wrong []string) {
				c := form(distinct(1, 1000)[0])
				before := picksOf(ctx, t, "forms", `outcome="prefix"`)
				first, err := c.send(ctx, "forms")
				must(t, err)
				for n := 2; n <= calls; n++ {
					h, err := c.send(ctx, "forms")
					must(t, err)
					if h.Server != first.Server {
						wrong = append(wrong, fmt.Sprintf("call %d went to %s, the first to %s", n, h.Server, first.Server))
					}
					if got := h.Headers.Get("Content-Encoding"); got != c.encoding || h.Length != int64(len(c.body)) {
						wrong = append(wrong, fmt.Sprintf("%d bytes in %q arrived as %d bytes in %q", len(c.body), c.encoding, h.Length, got))
					}
				}
				if got := picksOf(ctx, t, "forms", `outcome="prefix"`) - before; got != calls-1 {
					wrong = append(wrong, fmt.Sprintf("%d calls were picked by their prefix, want %d", got, calls-1))
				}
				return wrong
			})
		})
	}
	t.Run("a form with a recording", func(t *testing.T) {
		wantPicks(ctx, t, "forms", "a form", func() error {
			var body bytes.Buffer
			form := multipart.NewWriter(&body)
			_ = form.WriteField("model", "m")
			file, err := form.CreateFormFile("file", "speech.wav")
			must(t, err)
			_, _ = file.Write(bytes.Repeat([]byte{0, 1, 2, 3}, 20_000))
			must(t, form.Close())
			sent := body.Len()
			h, err := send(ctx, http.MethodPost, "http://forms.models.inference.internal/v1/audio/transcriptions?read", body.String(), "Content-Type", form.FormDataContentType())
			if err == nil && (h.Status != http.StatusOK || h.Length != int64(sent)) {
				err = fmt.Errorf("status %d, and %d of %d bytes arrived", h.Status, h.Length, sent)
			}
			return err
		})
	})
}
