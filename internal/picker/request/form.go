package request

import (
	"bytes"
	"mime"
	"strings"
)

const (
	// formType is the content type of forms with files, which the audio APIs take.
	formType = "multipart/form-data"

	// maxFormType bounds the content type of a form, in bytes. A boundary has at most 70 (RFC 2046, 5.1.1).
	maxFormType = 256
	maxBoundary = 70

	// maxFields bounds the fields that are read of a form. vLLM's transcriptions know thirty.
	maxFields = 64

	// maxFieldHeader bounds the headers of a field, in bytes. The longest thing there is a file's name.
	maxFieldHeader = 4 << 10
)

// isForm says whether the body is a form with files.
func (h Head) isForm() bool {
	return len(h.ContentType) > len(formType) && len(h.ContentType) <= maxFormType &&
		strings.EqualFold(h.ContentType[:len(formType)], formType)
}

// readForm reads the facts of a form. A recording is cached nowhere, so a form has no blocks.
func (f *Facts) readForm(modelInPath, last, contentType string, body []byte) {
	model := []byte(modelInPath)
	form := fieldsOf(contentType, body)
	recorded := false
	for range maxFields {
		field, ok := form.next()
		if !ok {
			break
		}
		switch {
		case field.name == "model" && field.whole:
			model = field.value
		case field.name == "stream" && field.whole:
			f.Stream = bytes.EqualFold(field.value, []byte("true")) || string(field.value) == "1"
		case field.name == "prompt" && f.API == Speech:
			f.PromptBytes += len(field.value)
		case field.name == "file" && f.API == Speech && !recorded:
			f.PromptBytes += MediaBytes
			recorded = true
		}
	}
	f.Model = nameOf(model, last)
}

// fields reads a form field by field, from the first to the last.
type fields struct {
	delimiter []byte // before each field and after the last; nil where the form has none
	rest      []byte // what follows a delimiter
}

type field struct {
	name  string
	value []byte
	whole bool // false for the last field of a body that is cut
}

// fieldsOf returns the fields of a form with this content type.
func fieldsOf(contentType string, body []byte) *fields {
	_, params, err := mime.ParseMediaType(contentType)
	boundary := params["boundary"]
	if err != nil || boundary == "" || len(boundary) > maxBoundary {
		return &fields{}
	}
	f := &fields{delimiter: []byte("\r\n--" + boundary)}
	first := f.delimiter[len("\r\n"):]
	if !bytes.HasPrefix(body, first) { // behind a preamble, which clients leave out
		first = f.delimiter
	}
	_, f.rest, _ = bytes.Cut(body, first)
	return f
}

// next moves to the next field; false at the form's end, and where what follows is no field.
func (f *fields) next() (field, bool) {
	header, ok := bytes.CutPrefix(f.rest, []byte("\r\n"))
	if !ok {
		return field{}, false
	}
	end := bytes.Index(header[:min(len(header), maxFieldHeader)], []byte("\r\n\r\n"))
	if end < 0 {
		return field{}, false
	}
	out := field{name: fieldName(header[:end])}
	out.value, f.rest, out.whole = bytes.Cut(header[end+len("\r\n\r\n"):], f.delimiter)
	return out, true
}

// fieldName returns the name in a field's headers, or "".
func fieldName(header []byte) string {
	for line := range bytes.SplitSeq(header, []byte("\r\n")) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if !bytes.EqualFold(bytes.TrimSpace(key), []byte("content-disposition")) {
			continue
		}
		_, params, err := mime.ParseMediaType(string(value))
		if err != nil {
			return ""
		}
		return params["name"]
	}
	return ""
}
