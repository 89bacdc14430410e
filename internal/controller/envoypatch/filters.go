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

	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// The header, metadata key and metadata namespaces of a pick in the Endpoint Picker Protocol 1.0.0.
const (
	destinationHeader = "x-gateway-destination-endpoint"
	servedKey         = "x-gateway-destination-endpoint-served"
	pickNamespace     = "envoy.lb"
	subsetNamespace   = "envoy.lb.subset_hint"
)

// The metadata in which the pick goes from header_to_metadata to the cluster. A picker cannot write this metadata, as it
// may set metadata of pickNamespace only.
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

// OwnFilter reports whether a name is the name of one of our HTTP filters.
func OwnFilter(name string) bool { return strings.HasPrefix(name, FilterPrefix) }

// pickTimeout is how long the waypoint waits for a picker's answer to one message. A pick takes well under 1 ms; 0.3 s is
// longer than a garbage collection, and short against a model's time to first token. So a picker that hangs delays a call
// to a fail-open pool by 0.3 s at most.
const pickTimeout = 300 * time.Millisecond

// Protocol is how a waypoint talks to a picker.
type Protocol int

const (
	// Buffered sends the buffered body of the request to the picker, and no response body. The waypoint itself passes the
	// request's body on. A waypoint so asks our picker about a call that may carry a prompt. A body that may be longer than
	// the buffer goes through the picker (see shortLengths).
	Buffered Protocol = iota
	// Duplex sends every byte of both bodies through the picker, which sends them back. The Endpoint Picker Protocol
	// expects this of a proxy for a call that may carry a prompt.
	Duplex
)

// Picker is the ext_proc service that picks for a pool, and how a waypoint asks it.
type Picker struct {
	// Host and Port name the Service. istiod's cluster for it has the mesh's mTLS and the user's DestinationRules.
	// Without a host the waypoint asks no picker, and FailOpen decides each call.
	Host     string
	Port     uint32
	Protocol Protocol
	// FailOpen sends a call to any endpoint when the picker does not answer; else the call gets a 503 (a 504 if the
	// picker was too slow).
	FailOpen bool
	// Metadata is the gRPC metadata of each stream that the waypoint opens.
	Metadata map[string]string
}

// guard removes the header by which a client could choose its own endpoint. It runs whether or not the picker
// answers.
func guard() *headermutationv3.HeaderMutation {
	return &headermutationv3.HeaderMutation{Mutations: &headermutationv3.Mutations{
		RequestMutations: []*mutationrulesv3.HeaderMutation{{
			Action: &mutationrulesv3.HeaderMutation_Remove{Remove: destinationHeader},
		}},
	}}
}

// extProcFilter is the ext_proc filter of every chain. The routes set which picker to ask, and how: if the chain named a
// picker, each change of the picker would replace the chain and cut its calls. The filter refuses a call for which no
// route sets a picker. The prefix is in the names of the filter's counters; without it, all pools of a waypoint would
// share counters.
func extProcFilter(statPrefix string) *extprocv3.ExternalProcessor {
	return &extprocv3.ExternalProcessor{
		GrpcService: Picker{}.service(),
		StatPrefix:  statPrefix,
		// The protocol requires this status when there is no pick; Envoy's default is 500.
		StatusOnError:     &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		ProcessingMode:    headersOnly(),
		MessageTimeout:    durationpb.New(pickTimeout),
		MaxMessageTimeout: durationpb.New(pool.MostHold),
		RequestAttributes: []string{pool.CallerAttribute},
		// The waypoint chooses and authorizes the route before it asks the picker. A picker picks an endpoint of its pool
		// and cannot move the call to another route.
		RouteCacheAction: extprocv3.ExternalProcessor_RETAIN,
		MetadataOptions: &extprocv3.MetadataOptions{
			ForwardingNamespaces: namespaces(pickNamespace, subsetNamespace),
			ReceivingNamespaces:  namespaces(pickNamespace),
		},
	}
}

// ask is the override of extProcFilter by which a route asks the picker.
func (p Picker) ask() *extprocv3.ExtProcOverrides {
	return &extprocv3.ExtProcOverrides{
		GrpcService:      p.service(),
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

// noPicker is the name of a cluster that does not exist.
const noPicker = "inference|no-picker"

func (p Picker) cluster() string {
	if p.Host == "" {
		return noPicker
	}
	return fmt.Sprintf("outbound|%d||%s", p.Port, p.Host)
}

// headersOnly sends a picker no bodies of requests or answers, whatever its protocol: a picker that gets the answer's body
// could hold the answer. If a picker does not reply to headers alone, the waypoint waits for pickTimeout, and then the
// pool's failure mode decides the call.
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

// requestsStreamed sends every byte of the request's body through our picker, which decides on the first 1 MiB. It sends
// nothing of the answer's body.
func requestsStreamed() *extprocv3.ProcessingMode {
	mode := headersOnly()
	mode.RequestBodyMode = extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED
	mode.RequestTrailerMode = extprocv3.ProcessingMode_SEND // Envoy refuses full duplex without trailers
	return mode
}

func (p Protocol) processingMode() *extprocv3.ProcessingMode {
	mode := headersOnly()
	mode.RequestBodyMode = extprocv3.ProcessingMode_BUFFERED
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

// originate begins the waypoint's address of an endpoint in the mesh: the internal listener that originates HBONE.
const originate = "envoy://connect_originate/"

// endpointsToMetadata copies the picker's list into metadata, with two addresses for each endpoint: the internal address
// of an endpoint in the mesh, and the plain address of one outside it. The cluster skips the address that does not exist.
// On the answer it copies servedHeader, if the virtual host adds it, into metadata as plain ip:port, which the Endpoint
// Picker Protocol promises to a picker. Envoy has no other way to rewrite a metadata value.
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

// servedHeader carries the endpoint that served from the cluster to endpointsToMetadata, which removes the header.
func servedHeader() *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: servedKey, Value: "%DYNAMIC_METADATA(" + pickNamespace + ":" + servedKey + ")%"},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
