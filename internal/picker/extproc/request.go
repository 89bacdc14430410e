package extproc

import (
	"bytes"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/request"
)

// traceHeader is the header by which a caller's trace goes on, by the W3C's Trace Context.
const traceHeader = "traceparent"

// carriesPrompt reports whether the request whose headers these are may carry a prompt. For any other body nothing
// waits: it may never end.
func (r *received) carriesPrompt() bool {
	return request.CarriesPrompt(string(r.method), string(r.contentType))
}

// readSubset reads the proxy's restriction, an encoded Value, into s: a list of texts, or one text with commas.
func readSubset(value []byte, s *poolstate.Subset) error {
	s.Given = true
	f := fields{rest: value}
	for f.next() {
		switch f.tag {
		case tagList:
			if err := readSubsetList(f.bytes, s); err != nil {
				return err
			}
		case tagString:
			for name := range bytes.SplitSeq(f.bytes, []byte{','}) {
				s.Add(string(name))
			}
		}
	}
	return f.err
}

func readSubsetList(list []byte, s *poolstate.Subset) error {
	f := fields{rest: list}
	for f.next() {
		if f.tag != tagElement {
			continue
		}
		name, err := text(f.bytes)
		if err != nil {
			return err
		}
		s.Add(string(name))
	}
	return f.err
}
