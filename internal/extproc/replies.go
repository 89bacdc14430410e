package extproc

import (
	"encoding/json"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/inference-waypoint/inference-waypoint/internal/refusal"
)

// Names of the Endpoint Picker Protocol 1.0.0.
const (
	// destinationKey is the header, and in lbNamespace the metadata key, that carries a pick.
	destinationKey = "x-gateway-destination-endpoint"
	lbNamespace    = "envoy.lb"
	// servedKey in lbNamespace is the endpoint that served, on the way back.
	servedKey = "x-gateway-destination-endpoint-served"
	// subsetKey in subsetNamespace restricts the call to a list of endpoints.
	subsetNamespace = "envoy.lb.subset_hint"
	subsetKey       = "x-gateway-destination-endpoint-subset"
)

// Replies that change nothing, one for each kind of message. They are shared by all streams and never written to.
var (
	continueRequestHeaders  = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}
	continueRequestBody     = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}
	continueRequestTrailers = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}
	continueAnswerHeaders   = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}
	continueAnswerBody      = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}
	continueAnswerTrailers  = &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}
)

// pickReply is the reply that carries a pick, in all of its forms. It is made once and filled in for each call, since
// its dozen messages and two maps would otherwise be most of a pick's garbage. A reply is valid until the next.
type pickReply struct {
	value    corev3.HeaderValue
	text     *structpb.Value_StringValue
	headers  extprocv3.ProcessingResponse_RequestHeaders
	body     extprocv3.ProcessingResponse_RequestBody
	trailers extprocv3.ProcessingResponse_RequestTrailers
	reply    extprocv3.ProcessingResponse
}

func newPickReply() *pickReply {
	p := &pickReply{text: &structpb.Value_StringValue{}}
	p.value.Key = destinationKey
	common := &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
		Header: &p.value,
		// Whatever a client sent under this name must not steer.
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}}
	p.headers.RequestHeaders = &extprocv3.HeadersResponse{Response: common}
	p.body.RequestBody = &extprocv3.BodyResponse{Response: common}
	p.trailers.RequestTrailers = &extprocv3.TrailersResponse{}
	p.reply.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
		lbNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			destinationKey: {Kind: p.text},
		}}),
	}}
	return p
}

// set puts the picked endpoints, "ip:port,ip:port", into header and metadata. It keeps endpoints.
func (p *pickReply) set(endpoints []byte) {
	p.value.RawValue = endpoints
	p.text.StringValue = string(endpoints)
}

func (p *pickReply) onHeaders() *extprocv3.ProcessingResponse {
	p.reply.Response = &p.headers
	return &p.reply
}

func (p *pickReply) onBody() *extprocv3.ProcessingResponse {
	p.reply.Response = &p.body
	return &p.reply
}

// onTrailers carries the pick in metadata alone: a reply to trailers cannot change headers.
func (p *pickReply) onTrailers() *extprocv3.ProcessingResponse {
	p.reply.Response = &p.trailers
	return &p.reply
}

// chunkReply gives a chunk of a body back, for proxies that leave the whole body to us. Like pickReply it is filled
// in anew for each chunk.
type chunkReply struct {
	chunk   extprocv3.StreamedBodyResponse
	request extprocv3.ProcessingResponse_RequestBody
	answer  extprocv3.ProcessingResponse_ResponseBody
	reply   extprocv3.ProcessingResponse
}

func newChunkReply() *chunkReply {
	c := &chunkReply{}
	body := &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
		Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &c.chunk},
	}}}
	c.request.RequestBody = body
	c.answer.ResponseBody = body
	return c
}

func (c *chunkReply) set(bytes []byte, end bool) { c.chunk.Body, c.chunk.EndOfStream = bytes, end }

func (c *chunkReply) ofRequest(bytes []byte, end bool) *extprocv3.ProcessingResponse {
	c.set(bytes, end)
	c.reply.Response = &c.request
	return &c.reply
}

func (c *chunkReply) ofAnswer(bytes []byte, end bool) *extprocv3.ProcessingResponse {
	c.set(bytes, end)
	c.reply.Response = &c.answer
	return &c.reply
}

// refuse is the reply that ends a call with an error in the form that clients of the OpenAI API read.
func refuse(e *refusal.Error) *extprocv3.ProcessingResponse {
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode(e.Status())},
			Headers: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
				Header:       &corev3.HeaderValue{Key: "content-type", RawValue: []byte("application/json")},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}}},
			Body:    errorBody(e),
			Details: "inference_waypoint_" + string(e.Reason), // for the proxy's access log
		},
	}}
}

func errorBody(e *refusal.Error) []byte {
	var body struct {
		Error struct {
			Message string `json:"message"`
			Type    string `json:"type"`
			Code    string `json:"code"`
		} `json:"error"`
	}
	body.Error.Message = e.Message
	body.Error.Code = string(e.Reason)
	body.Error.Type = "service_unavailable_error"
	switch e.Reason {
	case refusal.Overloaded:
		body.Error.Type = "rate_limit_error"
	case refusal.Internal:
		body.Error.Type = "server_error"
	}
	out, err := json.Marshal(body)
	if err != nil { // three strings always marshal
		return nil
	}
	return out
}
