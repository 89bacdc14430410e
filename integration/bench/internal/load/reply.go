package load

import (
	"fmt"
	"strings"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Names of the Endpoint Picker Protocol 1.0.0.
const (
	destinationKey = "x-gateway-destination-endpoint"
	servedKey      = "x-gateway-destination-endpoint-served"
)

// smallReply is the longest reply that is decoded as a whole. Longer replies carry chunks of a body, which are counted in
// place: copies would take processor time from the server.
const smallReply = 2048

// reply is the part of a server's message that the driver reads.
type reply struct {
	endpoint string // the first one picked, in a message with a pick
	returned int    // bytes of a body that the message returns
	end      bool   // whether they end the body
}

// readReply reads a server's message. A refusal is an error.
func readReply(message []byte) (reply, error) {
	if len(message) > smallReply {
		return readChunk(message)
	}
	var m extprocv3.ProcessingResponse
	if err := proto.Unmarshal(message, &m); err != nil {
		return reply{}, fmt.Errorf("decoding a reply: %w", err)
	}
	var common *extprocv3.CommonResponse
	switch r := m.GetResponse().(type) {
	case *extprocv3.ProcessingResponse_ImmediateResponse:
		return reply{}, fmt.Errorf("refused with %s: %s", r.ImmediateResponse.GetStatus().GetCode(), r.ImmediateResponse.GetBody())
	case *extprocv3.ProcessingResponse_RequestHeaders:
		common = r.RequestHeaders.GetResponse()
	case *extprocv3.ProcessingResponse_RequestBody:
		common = r.RequestBody.GetResponse()
	case *extprocv3.ProcessingResponse_ResponseBody:
		common = r.ResponseBody.GetResponse()
	}
	chunk := common.GetBodyMutation().GetStreamedResponse()
	out := reply{returned: len(chunk.GetBody()), end: chunk.GetEndOfStream()}
	for _, h := range common.GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == destinationKey {
			out.endpoint, _, _ = strings.Cut(string(h.GetHeader().GetRawValue())+h.GetHeader().GetValue(), ",")
		}
	}
	return out, nil
}

// readChunk reads a reply with a chunk of the request's body, by the field numbers on the path to it: request_body,
// response, body_mutation, streamed_response.
func readChunk(message []byte) (reply, error) {
	var out reply
	for _, number := range []protowire.Number{3, 1, 3, 3} {
		var ok bool
		if message, _, ok = field(message, number); !ok {
			return out, fmt.Errorf("a reply of %d bytes carries no chunk of a body", len(message))
		}
	}
	body, _, _ := field(message, 1)
	_, end, _ := field(message, 2)
	return reply{returned: len(body), end: end == 1}, nil
}

// field finds a field of a message: its bytes or, of a number, its value.
func field(message []byte, number protowire.Number) (bytes []byte, value uint64, ok bool) {
	for len(message) > 0 {
		n, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return nil, 0, false
		}
		message = message[length:]
		if n == number {
			switch kind {
			case protowire.BytesType:
				bytes, length = protowire.ConsumeBytes(message)
			case protowire.VarintType:
				value, length = protowire.ConsumeVarint(message)
			}
			return bytes, value, length >= 0
		}
		if length = protowire.ConsumeFieldValue(n, kind, message); length < 0 {
			return nil, 0, false
		}
		message = message[length:]
	}
	return nil, 0, false
}
