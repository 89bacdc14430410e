package envoypatch

import (
	"net/http"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// A waypoint that sends a call's body to a picker holds the call until the picker has seen enough of the body. If the body
// does not end, as in a WebSocket or a gRPC stream, the call waits for ever. Headers do not show whether a body ends, but
// they show whether it may carry a prompt. So calls that may carry a prompt have their own route. For all other calls the
// picker gets only the headers.

// promptTypes matches the content types of a body that may carry a prompt: JSON, a form, or none. Package request has
// the same rule for the picker (CarriesPrompt).
const promptTypes = `(?i)\s*([^;]*[/+]json|multipart/form-data|application/x-www-form-urlencoded)?\s*(;.*)?`

// grpcTypes matches the content types of gRPC with any encoding of messages.
const grpcTypes = `(?i)\s*application/grpc.*`

// oneMessage matches the paths of model servers' gRPC calls whose request is a single message: vLLM's and SGLang's engines,
// and KServe's ModelInfer, but not ModelStreamInfer. Pickers of other projects may read the prompt in such a message. The
// expression must compile to at most 100 steps, or Envoy refuses it.
const oneMessage = `/((vllm|sglang)\.grpc\..*|inference\.GRPCInferenceService/ModelInfer)`

// shortLengths matches the content-lengths, in bytes, of bodies that fit into shortBuffer. Envoy answers 413 to a longer
// body in mode BUFFERED, so longer bodies, and bodies of unknown length, stream through our picker as through other
// projects' pickers.
//
// Mode BUFFERED_PARTIAL takes bodies of any length, but Envoy harms some. If the picker dies while a body comes, a call that
// fails open gets the part that came before twice: Envoy injects it into the filters behind, and the router, which keeps
// bodies for retries, puts it where Envoy looks for what is not sent yet (#45470 is the same fault with retries alone).
// From 1.37.1 on, Envoy also loses the end of a body that is longer than the buffer, if only its end comes between the part
// that was sent and the picker's reply.
const shortLengths = `\d{1,6}`

// shortBuffer is how many bytes of a short body Envoy buffers, also where an administrator lets its listeners buffer less.
const shortBuffer = 1 << 20

// calls is a subset of a route's calls, selected by their headers.
type calls struct {
	headers []*routev3.HeaderMatcher
	// shown are the protocols of the pickers that get the bodies.
	shown []Protocol
	// streamed says that bodies may be longer than Envoy's buffer.
	streamed bool
	// buffer is how many bytes of a body Envoy must be able to buffer; 0 where its own limit does.
	buffer uint64
}

var (
	all = calls{shown: []Protocol{Buffered, Duplex}}
	// short are prompts with a content-length within Envoy's buffer. A body with a length ends, so it is no gRPC stream.
	short = calls{
		headers: []*routev3.HeaderMatcher{
			header(":method", exact(http.MethodPost)),
			header("content-length", regex(shortLengths)),
			orAbsent(header("content-type", regex(promptTypes))),
		},
		shown:  []Protocol{Buffered, Duplex},
		buffer: shortBuffer,
	}
	prompts = calls{
		headers: []*routev3.HeaderMatcher{
			header(":method", exact(http.MethodPost)),
			orAbsent(header("content-type", regex(promptTypes))),
			orAbsent(not(header("content-type", regex(grpcTypes)))),
		},
		shown:    []Protocol{Buffered, Duplex},
		streamed: true,
	}
	messages = calls{
		headers: []*routev3.HeaderMatcher{header("content-type", regex(grpcTypes)), header(":path", regex(oneMessage))},
		shown:   []Protocol{Duplex},
	}
	others = calls{}
)

// parts divides a route's calls by how pickers get their bodies. A call belongs to the first part that it matches.
func (r Route) parts() []calls {
	asks := func(p Protocol) bool {
		return slices.ContainsFunc(r.To, func(d Destination) bool { return d.Picker != nil && d.Picker.Host != "" && d.Picker.Protocol == p })
	}
	switch {
	case asks(Duplex) && asks(Buffered):
		return []calls{short, prompts, messages, others}
	case asks(Duplex):
		return []calls{prompts, messages, others}
	case asks(Buffered):
		return []calls{short, prompts, others}
	default:
		return []calls{all}
	}
}

// orAbsent makes a matcher treat a missing header as an empty one.
func orAbsent(m *routev3.HeaderMatcher) *routev3.HeaderMatcher {
	m.TreatMissingHeaderAsEmpty = true
	return m
}

func not(m *routev3.HeaderMatcher) *routev3.HeaderMatcher {
	m.InvertMatch = true
	return m
}
