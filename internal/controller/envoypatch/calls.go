package envoypatch

import (
	"net/http"
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// A waypoint that shows a call's body to a picker holds the call until the picker has seen enough of it, for ever where
// the body does not end: a WebSocket's, or a stream's of gRPC. Whether a body can end is not in the headers, but whether
// it may carry a prompt is. So calls that may are told from all others by a route of their own, and of the others a
// picker sees the headers alone.

// promptTypes are the content types of a body that may carry a prompt: JSON, a form, or none. Package request has
// the same rule for the picker (CarriesPrompt).
const promptTypes = `(?i)\s*([^;]*[/+]json|multipart/form-data|application/x-www-form-urlencoded)?\s*(;.*)?`

// grpcTypes are the content types of gRPC, whatever its messages are.
const grpcTypes = `(?i)\s*application/grpc.*`

// oneMessage are the paths of model servers' gRPC calls of which each request is one message and ends with it: those of
// vLLM's and SGLang's engines, and KServe's ModelInfer, which is not ModelStreamInfer. Other pickers than ours may read
// the prompt there. Envoy takes no longer expressions: at most 100 steps.
const oneMessage = `/((vllm|sglang)\.grpc\..*|inference\.GRPCInferenceService/ModelInfer)`

// shortLengths are the lengths of bodies that are below Envoy's buffer limit for sure, which is 1 MiB. From 1.37.1 on Envoy
// forgets the end of a body that it sends to a picker buffered in part, where nothing but the end comes after that part and
// before the picker's reply: the model server waits for the end for ever. Of bodies of 1 to 1.2 MiB it was one of ten. (In
// the place of a fault of ext_proc filters in a row, Envoy's #43175, an injected piece now says whether the body has ended,
// and the empty piece behind it is dropped.) So a longer body, and one whose length is not known, is streamed through our
// picker as through others'.
const shortLengths = `\d{1,6}`

// calls is a part of the calls that a route matches, told by their headers.
type calls struct {
	headers []*routev3.HeaderMatcher
	// shown are the protocols of the pickers that are shown the bodies.
	shown []Protocol
	// streamed says that bodies may be longer than what is buffered.
	streamed bool
}

var (
	all = calls{shown: []Protocol{Buffered, Duplex}}
	// short are prompts that are whole soon: what has a length ends, so it is no stream of gRPC.
	short = calls{
		headers: []*routev3.HeaderMatcher{
			header(":method", exact(http.MethodPost)),
			header("content-length", regex(shortLengths)),
			orAbsent(header("content-type", regex(promptTypes))),
		},
		shown: []Protocol{Buffered, Duplex},
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

// parts divides a route's calls by what pickers are shown of them. A call belongs to the first part that it matches.
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

// orAbsent takes a header that is not there for an empty one.
func orAbsent(m *routev3.HeaderMatcher) *routev3.HeaderMatcher {
	m.TreatMissingHeaderAsEmpty = true
	return m
}

func not(m *routev3.HeaderMatcher) *routev3.HeaderMatcher {
	m.InvertMatch = true
	return m
}
