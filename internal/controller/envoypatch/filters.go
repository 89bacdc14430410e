package envoypatch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	headertometadatav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_to_metadata/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The names by which the Endpoint Picker Protocol 1.0.0 carries a pick.
const (
	destinationHeader = "x-gateway-destination-endpoint"
	servedKey         = "x-gateway-destination-endpoint-served"
	pickNamespace     = "envoy.lb"
	subsetNamespace   = "envoy.lb.subset_hint"
)

// The metadata under which the pick goes from header_to_metadata to the cluster. A picker cannot write it: it may set
// metadata of pickNamespace only.
const (
	endpointsNamespace = "inference-waypoint"
	endpointsKey       = "endpoints"
)

// The names of our HTTP filters. A route overrides a filter's settings by its name.
const (
	guardFilter     = FilterPrefix + "guard"
	pickerFilter    = FilterPrefix + "picker"
	endpointsFilter = FilterPrefix + "endpoints"
	shownFilter     = FilterPrefix + "shown"
)

// FilterPrefix begins the names of our HTTP filters.
const FilterPrefix = "inference-waypoint."

// OwnFilter reports whether a name is that of an HTTP filter of ours.
func OwnFilter(name string) bool { return strings.HasPrefix(name, FilterPrefix) }

// callerAttribute is the caller's mTLS identity (a SPIFFE URI), as the waypoint's HBONE listener keeps it.
const callerAttribute = "filter_state['io.istio.peer_principal']"

// pickTimeout is how long the waypoint waits for a picker's answer to one message. A pick takes well under a
// millisecond; 0.3 s outlasts a garbage collection, and is short against the time that a model takes to its first token,
// so that a picker that hangs costs a fail-open caller no more than that.
const pickTimeout = 300 * time.Millisecond

// Protocol is how a waypoint talks to a picker.
type Protocol int

const (
	// Buffered sends the request's body once it is there, and no response body: the waypoint itself passes the body on.
	// It is how our picker is asked for a call that may carry a prompt. A body that may be longer than the waypoint buffers
	// goes through the picker (see shortLengths).
	Buffered Protocol = iota
	// Duplex sends every byte of both bodies through the picker, which sends them back. It is what the Endpoint Picker
	// Protocol expects of a proxy for a call that may carry a prompt.
	Duplex
)

// Picker is the ext_proc service that chooses for a pool, and how it is asked.
type Picker struct {
	// Host and Port name the Service. istiod's cluster for it brings the mesh's mTLS and the user's DestinationRules.
	// Without a host there is nobody to ask, and each call ends as FailOpen says.
	Host     string
	Port     uint32
	Protocol Protocol
	// FailOpen lets a call go on to any endpoint when the picker does not answer; else the call gets a 503 (a 504 if
	// the picker was too slow).
	FailOpen bool
	// Metadata goes with each stream that the waypoint opens, as gRPC metadata.
	Metadata map[string]string
}

// guard removes the header by which a client could choose an endpoint for itself. It runs whether or not the picker
// answers.
func guard() *headermutationv3.HeaderMutation {
	return &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationrulesv3.HeaderMutation{{
			Action: &mutationrulesv3.HeaderMutation_Remove{Remove: destinationHeader},
		}},
	}}
}

// askNobody is the picker's filter as it stands in every chain. Whom to ask, and how, comes with the routes: a chain
// that named a picker would be replaced, and its calls cut, with each change of one. A call that no route says anything
// of is refused. The prefix becomes a part of the names of the filter's counters: without one, all pools of a waypoint
// are counted together.
func askNobody(statPrefix string) *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService: Picker{}.service(),
		StatPrefix:  statPrefix,
		// The protocol's status for a pool that cannot be picked from; Envoy's own would be 500.
		StatusOnError:     &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		ProcessingMode:    headersOnly(),
		MessageTimeout:    durationpb.New(pickTimeout),
		RequestAttributes: []string{callerAttribute},
		// The route is chosen, and authorized, before the picker is asked. A picker chooses an endpoint of its pool; it
		// does not move the call to another route.
		RouteCacheAction: extprocv3.ExternalProcessor_RETAIN,
		MetadataOptions: &extprocv3.MetadataOptions{
			ForwardingNamespaces: namespaces(pickNamespace, subsetNamespace),
			ReceivingNamespaces:  namespaces(pickNamespace),
		},
	}
}

// ask is what a route overrides of askNobody so that a picker is asked.
func (p Picker) ask() *extprocv3.ExtProcOverrides {
	service := p.service()
	service.RetryPolicy = askAnother()
	return &extprocv3.ExtProcOverrides{
		GrpcService:      service,
		FailureModeAllow: wrapperspb.Bool(p.FailOpen),
		ProcessingMode:   p.Protocol.processingMode(),
	}
}

func (p Picker) service() *corev3.GrpcService {
	return &corev3.GrpcService{
		TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
			ClusterName: p.cluster(),
		}},
		InitialMetadata: headerValues(p.Metadata),
	}
}

// askAnother asks another picker where one is lost before it has answered, so that a call is picked although its
// picker's machine has vanished. Envoy keeps 64 KiB of what it has sent for that. A picker that hangs is lost pingTimeout
// after it was asked, which leaves the other pickTimeout-pingTimeout.
func askAnother() *corev3.RetryPolicy {
	return &corev3.RetryPolicy{
		RetryOn:      retryOn,
		NumRetries:   wrapperspb.UInt32(1),
		RetryBackOff: &corev3.BackoffStrategy{BaseInterval: durationpb.New(time.Millisecond)},
	}
}

// noPicker is a cluster that nobody makes.
const noPicker = "inference|no-picker"

func (p Picker) cluster() string {
	if p.Host == "" {
		return noPicker
	}
	return fmt.Sprintf("outbound|%d||%s", p.Port, p.Host)
}

// headersOnly shows a picker nothing of the bodies, neither way, whatever its protocol is: a picker that was asked for
// them could hold the answer as well. A picker that does not reply to headers alone is waited for as long as for any
// reply, and the call then ends as the pool's failure mode says.
func headersOnly() *extprocv3.ProcessingMode {
	return &extprocv3.ProcessingMode{
		RequestHeaderMode:   extprocv3.ProcessingMode_SEND,
		ResponseHeaderMode:  extprocv3.ProcessingMode_SEND,
		RequestBodyMode:     extprocv3.ProcessingMode_NONE,
		ResponseBodyMode:    extprocv3.ProcessingMode_NONE,
		RequestTrailerMode:  extprocv3.ProcessingMode_SKIP,
		ResponseTrailerMode: extprocv3.ProcessingMode_SKIP,
	}
}

// requestsStreamed sends every byte of the request's body through our picker, which decides on the first 1 MiB, and none of
// the answer's.
func requestsStreamed() *extprocv3.ProcessingMode {
	mode := headersOnly()
	mode.RequestBodyMode = extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED
	mode.RequestTrailerMode = extprocv3.ProcessingMode_SEND // Envoy refuses full duplex without trailers
	return mode
}

func (p Protocol) processingMode() *extprocv3.ProcessingMode {
	mode := headersOnly()
	mode.RequestBodyMode = extprocv3.ProcessingMode_BUFFERED_PARTIAL
	if p == Duplex {
		mode.RequestBodyMode = extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED
		mode.ResponseBodyMode = extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED
		// Envoy refuses full duplex without trailers.
		mode.RequestTrailerMode = extprocv3.ProcessingMode_SEND
		mode.ResponseTrailerMode = extprocv3.ProcessingMode_SEND
	}
	return mode
}

func namespaces(names ...string) *extprocv3.MetadataOptions_MetadataNamespaces {
	return &extprocv3.MetadataOptions_MetadataNamespaces{Untyped: names}
}

// headerValues lists the metadata in the order of its keys, so that the same picker always makes the same patch.
func headerValues(metadata map[string]string) []*corev3.HeaderValue {
	var out []*corev3.HeaderValue
	for key, value := range metadata {
		out = append(out, &corev3.HeaderValue{Key: key, Value: value})
	}
	slices.SortFunc(out, func(a, b *corev3.HeaderValue) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// originate is how the waypoint's address of an endpoint in the mesh begins: by the listener that originates HBONE.
const originate = "envoy://connect_originate/"

// endpointsToMetadata reads the picker's list and names each endpoint as the waypoint does: an endpoint in the mesh is
// an internal address; one outside it is its plain address. The cluster skips the name that does not exist. On the way
// back it takes the endpoint that served from servedHeader, where the virtual host adds that, and names it as plain
// ip:port, as the Endpoint Picker Protocol promises to a picker: a value of metadata can be rewritten in no other way.
func endpointsToMetadata() *headertometadatav3.Config {
	return &headertometadatav3.Config{
		RequestRules: []*headertometadatav3.Config_Rule{{
			Header: destinationHeader,
			OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{
				MetadataNamespace: endpointsNamespace,
				Key:               endpointsKey,
				Type:              headertometadatav3.Config_STRING,
				RegexValueRewrite: &matcherv3.RegexMatchAndSubstitute{
					Pattern:      &matcherv3.RegexMatcher{Regex: `([^, ]+)`},
					Substitution: originate + `\1,\1`,
				},
			},
		}},
		ResponseRules: []*headertometadatav3.Config_Rule{{
			Header: servedKey,
			OnHeaderPresent: &headertometadatav3.Config_KeyValuePair{
				MetadataNamespace: pickNamespace,
				Key:               servedKey,
				Type:              headertometadatav3.Config_STRING,
				RegexValueRewrite: &matcherv3.RegexMatchAndSubstitute{
					Pattern: &matcherv3.RegexMatcher{Regex: "^" + originate},
				},
			},
			Remove: true,
		}},
	}
}

// servedHeader carries the endpoint that served from the cluster to endpointsToMetadata, which lets it go no further.
func servedHeader() *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: servedKey, Value: "%DYNAMIC_METADATA(" + pickNamespace + ":" + servedKey + ")%"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
