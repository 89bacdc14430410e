package request

import (
	"bytes"
	"mime/multipart"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// formOf makes a form of names and values, as a client does. A value of "file" is a file.
func formOf(t testing.TB, pairs ...string) (contentType string, body []byte) {
	t.Helper()
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	for i := 0; i < len(pairs); i += 2 {
		part, err := w.CreateFormField(pairs[i])
		if pairs[i] == "file" {
			part, err = w.CreateFormFile("file", `a "name"; name="model".wav`)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := part.Write([]byte(pairs[i+1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w.FormDataContentType(), out.Bytes()
}

func readForm(path, contentType string, body []byte) Facts {
	f := Facts{Model: "before", Stream: true, PromptBytes: 4, Blocks: []uint64{1, 2}}
	f.Read(Head{Path: path, ContentType: contentType}, body)
	f.Blocks = append([]uint64(nil), f.Blocks...)
	return f
}

func TestReadForm(t *testing.T) {
	recording := strings.Repeat("\r\n--audio\x00", 10_000)
	for name, tc := range map[string]struct {
		path   string
		fields []string
		want   Facts
	}{
		"a transcription": {
			speechPath, []string{"model", "whisper", "file", recording, "prompt", "Names: é", "stream", "true", "language", "de"},
			Facts{API: Speech, Model: "whisper", Stream: true, PromptBytes: MediaBytes + len("Names: é")},
		},
		"a translation, the file first": {
			"/v1/audio/translations", []string{"file", recording, "model", "whisper", "stream", "False"},
			Facts{API: Speech, Model: "whisper", PromptBytes: MediaBytes},
		},
		"Azure's path names the model": {
			"/openai/deployments/w/audio/transcriptions", []string{"file", recording},
			Facts{API: Speech, Model: "w", PromptBytes: MediaBytes},
		},
		"of repeated fields the last": {
			speechPath, []string{"model", "a", "stream", "true", "model", "b", "stream", "false"}, Facts{API: Speech, Model: "b"},
		},
		"two files count once": {
			speechPath, []string{"file", "x", "file", "y"}, Facts{API: Speech, PromptBytes: MediaBytes},
		},
		"a model's name that is too long": {
			speechPath, []string{"model", strings.Repeat("é", MaxModelBytes)}, Facts{API: Speech, Model: strings.Repeat("é", MaxModelBytes/2)},
		},
		"pictures have no prompt": {
			"/v1/images/edits", []string{"model", "m", "prompt", "a cat", "file", "x"}, Facts{API: NoPrompt, Model: "m"},
		},
		"an upload": {"/v1/files", []string{"purpose", "batch", "file", "x"}, Facts{}},
		"too many fields": {
			speechPath, append(slices.Repeat([]string{"x", "y"}, maxFields), "model", "m"), Facts{API: Speech},
		},
		"no fields": {speechPath, nil, Facts{API: Speech}},
	} {
		t.Run(name, func(t *testing.T) {
			contentType, body := formOf(t, tc.fields...)
			for _, contentType := range []string{contentType, strings.Replace(contentType, "multipart", "Multipart", 1)} {
				if diff := cmp.Diff(tc.want, readForm(tc.path, contentType, body)); diff != "" {
					t.Errorf("facts (-want +got):\n%s", diff)
				}
			}
		})
	}
}

// TestOddForms writes forms by hand, with the boundary "b".
func TestOddForms(t *testing.T) {
	const model = "\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b"
	for name, tc := range map[string]struct{ contentType, body, wantModel string }{
		"plain":                       {"multipart/form-data; boundary=b", "--b" + model + "--", "m"},
		"a quoted boundary":           {`multipart/form-data; charset=utf-8; boundary="b"`, "--b" + model, "m"},
		"a preamble":                  {"multipart/form-data; boundary=b", "a --b of no form\r\n--b" + model, "m"},
		"names of headers":            {"multipart/form-data; boundary=b", "--b\r\ncontent-type: text/plain\r\ncontent-DISPOSITION:form-data;name=model\r\n\r\nm\r\n--b--", "m"},
		"the value is cut":            {"multipart/form-data; boundary=b", "--b" + strings.TrimSuffix(model, "b"), ""},
		"no boundary":                 {"multipart/form-data; a=b", "--b" + model, ""},
		"an empty boundary":           {`multipart/form-data; boundary=""`, "--" + model, ""},
		"a malformed type":            {"multipart/form-data; boundary=b; boundary=c", "--b" + model, ""},
		"a boundary that is too long": {"multipart/form-data; boundary=" + strings.Repeat("b", maxBoundary+1), "--" + strings.Repeat("b", maxBoundary+1) + strings.TrimSuffix(model, "b") + strings.Repeat("b", maxBoundary+1), ""},
		"another boundary":            {"multipart/form-data; boundary=c", "--b" + model, ""},
		"a field of endless headers":  {"multipart/form-data; boundary=b", "--b\r\nx: " + strings.Repeat("y", maxFieldHeader) + model, ""},
		"a field without headers":     {"multipart/form-data; boundary=b", "--b\r\n\r\n\r\nx\r\n--b" + model, "m"},
		"after the end":               {"multipart/form-data; boundary=b", "--b--\r\n--b" + model, ""},
		"JSON":                        {"multipart/form-data; boundary=b", `{"model":"m"}`, ""},
		"JSON that curl calls a form": {"application/x-www-form-urlencoded", `{"model":"m"}`, "m"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := readForm(speechPath, tc.contentType, []byte(tc.body)).Model; got != tc.wantModel {
				t.Errorf("model %q, want %q", got, tc.wantModel)
			}
		})
	}
}

// FuzzForm reads any form: without a panic and within bounds. A form of the text must have its model and, cut anywhere,
// no other one and no more of a prompt.
func FuzzForm(f *testing.F) {
	contentType, body := formOf(f, "model", "m", "file", "abc", "prompt", "p", "stream", "1")
	f.Add(contentType, body, "m", uint16(100))
	f.Add("multipart/form-data; boundary=b", []byte("--b\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b--"), "é\r\n", uint16(3))
	f.Add(`multipart/form-data; boundary="a b\"`, []byte("--\r\n\r\n\r\n"), "", uint16(0))
	f.Fuzz(func(t *testing.T, contentType string, body []byte, text string, cut uint16) {
		if got := readForm(speechPath, contentType, body); got.PromptBytes > len(body)*MediaBytes || len(got.Model) > MaxModelBytes {
			t.Errorf("%d bytes of prompt, a model's name of %d", got.PromptBytes, len(got.Model))
		}
		contentType, form := formOf(t, "prompt", text, "model", text, "file", text)
		whole := readForm(speechPath, contentType, form)
		if want := string(clipped([]byte(text), MaxModelBytes)); whole.Model != want || whole.PromptBytes != MediaBytes+len(text) {
			t.Errorf("model %q, want %q; %d bytes of prompt", whole.Model, want, whole.PromptBytes)
		}
		head := readForm(speechPath, contentType, form[:int(cut)%(len(form)+1)])
		// The text that is cut may end with the beginning of a delimiter.
		if most := whole.PromptBytes + maxBoundary + len("\r\n--"); head.Model != "" && head.Model != whole.Model || head.PromptBytes > most {
			t.Errorf("cut at %d: model %q, %d bytes of prompt", cut, head.Model, head.PromptBytes)
		}
	})
}

func BenchmarkReadForm(b *testing.B) {
	contentType, body := formOf(b, "model", "whisper", "file", strings.Repeat("\x00\r\n-", 128<<10), "stream", "true")
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	var f Facts
	for b.Loop() {
		f.Read(Head{Path: speechPath, ContentType: contentType}, body)
	}
	if f.Model != "whisper" {
		b.Errorf("model %q", f.Model)
	}
}
