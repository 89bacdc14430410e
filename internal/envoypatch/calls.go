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

// promptTypes are the content types of a body that may carry a prompt: JSON, a form, or none. Package inferencereq has
// the same rule for the picker (CarriesPrompt).
const promptTypes = `(?i)\s*([^;]*[/+]json|multipart/form-data|application/x-www-form-urlencoded)?\s*(;.*)?`

// grpcTypes are the content types of gRPC, whatever its messages are.
const grpcTypes = `(?i)\s*application/grpc.*`

// oneMessage are the paths of model servers' gRPC calls of which each request is one message and ends with it: those of
// vLLM's and SGLang's engines, and KServe's ModelInfer, which is not ModelStreamInfer. Other pickers than ours may read
// the prompt there. Envoy takes no longer expressions: at most 100 steps.
const oneMessage = `/((vllm|sglang)\.grpc\..*|inference\.GRPCInferenceService/ModelInfer)`

// calls is a part of the calls that a route matches, told by their headers.
type calls struct {
	headers []*routev3.HeaderMatcher
	// shown are the protocols of the pickers that are shown the bodies.
	shown []Protocol
}

var (
	all     = calls{shown: []Protocol{Buffered, Duplex}}
	prompts = calls{
		headers: []*routev3.HeaderMatcher{
			header(":method", exact(http.MethodPost)),
			orAbsent(header("content-type", regex(promptTypes))),
			orAbsent(not(header("content-type", regex(grpcTypes)))),
		},
		shown: []Protocol{Buffered, Duplex},
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
	case asks(Duplex):
		return []calls{prompts, messages, others}
	case asks(Buffered):
		return []calls{prompts, others}
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
