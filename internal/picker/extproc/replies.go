package extproc

import (
	"encoding/json"
	"math"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// Fields of envoy.service.ext_proc.v3.ProcessingResponse and of the messages in it.
const (
	tagDynamicMetadata = 8<<3 | bytesType

	tagCommon = 1<<3 | bytesType // of HeadersResponse and BodyResponse

	tagHeaderMutation = 2<<3 | bytesType // of CommonResponse
	tagBodyMutation   = 3<<3 | bytesType

	tagSetHeaders = 1<<3 | bytesType // of HeaderMutation

	tagHeader       = 1<<3 | bytesType // of HeaderValueOption
	tagAppendAction = 3<<3 | varintType

	tagStreamed = 3<<3 | bytesType // of BodyMutation
	tagChunk    = 1<<3 | bytesType // of StreamedBodyResponse
	tagChunkEnd = 2<<3 | varintType

	tagNumber = 2<<3 | fixed64Type // of Value
	tagStruct = 5<<3 | bytesType
)

// replyTags are the fields of a ProcessingResponse, by the kind of message that is replied to.
var replyTags = [...]tag{
	onRequestHeaders:  1<<3 | bytesType,
	onAnswerHeaders:   2<<3 | bytesType,
	onRequestBody:     3<<3 | bytesType,
	onAnswerBody:      4<<3 | bytesType,
	onRequestTrailers: 5<<3 | bytesType,
	onAnswerTrailers:  6<<3 | bytesType,
}

// plain are the encoded replies that change nothing, by the kind of message. They are shared and never written to.
var plain = func() (out [len(replyTags)]mem.BufferSlice) {
	for kind, field := range replyTags {
		out[kind] = mem.BufferSlice{mem.SliceBuffer{byte(field), 0}}
	}
	return out
}()

// reply is a ProcessingResponse. It refers to what it carries only until it is sent.
type reply struct {
	// kind is the kind of the message that is replied to.
	kind kind
	// endpoints are the pick, "ip:port,ip:port". A reply to trailers cannot change headers, so it carries the pick in its
	// metadata alone.
	endpoints []byte
	// call is the call's id, where there is a pick; see pool.CallKey.
	call uint64
	// chunk is a chunk of a body that is sent back, nil where there is none. end says that it is the last.
	chunk mem.Buffer
	end   bool
	// refused ends the call.
	refused *refusal.Error
	// holds is for how long the proxy is to wait for the reply proper, where it is not 0.
	holds time.Duration
}

// encode encodes the reply. A chunk is not copied: the result holds a reference to it.
func (r *reply) encode() (mem.BufferSlice, error) {
	switch {
	case r.refused != nil:
		b, err := proto.Marshal(refuse(r.refused))
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	case r.holds > 0:
		b, err := proto.Marshal(&extprocv3.ProcessingResponse{OverrideMessageTimeout: durationpb.New(r.holds)})
		return mem.BufferSlice{mem.SliceBuffer(b)}, err
	case r.chunk != nil:
		return encodeChunk(replyTags[r.kind], r.chunk, r.end), nil
	case r.endpoints != nil:
		return encodePick(replyTags[r.kind], r.endpoints, r.call), nil
	default:
		return plain[r.kind], nil
	}
}

// encodePick encodes the reply that carries a pick. It overwrites what a client sent under the header's name, as
// clients must not choose endpoints.
func encodePick(field tag, endpoints []byte, call uint64) mem.BufferSlice {
	w := newWriter(256 + 2*len(endpoints))
	end := w.at
	w.double(tagNumber, float64(call))
	w.wrap(tagMapValue, end)
	w.bytes(tagMapKey, callBytes)
	w.wrap(tagFields, end)
	second := w.at
	w.bytes(tagString, endpoints)
	w.wrap(tagMapValue, second)
	w.bytes(tagMapKey, destinationBytes)
	w.wrap(tagFields, second)
	w.wrap(tagStruct, end)
	w.wrap(tagMapValue, end)
	w.bytes(tagMapKey, lbBytes)
	w.wrap(tagFields, end)
	w.wrap(tagDynamicMetadata, end)
	end = w.at
	if field != replyTags[onRequestTrailers] {
		w.varint(tagAppendAction, uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD))
		header := w.at
		w.bytes(tagHeaderRaw, endpoints)
		w.bytes(tagHeaderKey, destinationBytes)
		w.wrap(tagHeader, header)
		w.wrap(tagSetHeaders, end)
		w.wrap(tagHeaderMutation, end)
		w.wrap(tagCommon, end)
	}
	w.wrap(field, end)
	return mem.BufferSlice{mem.SliceBuffer(w.buf[w.at:])}
}

var (
	destinationBytes = []byte(destinationKey)
	lbBytes          = []byte(lbNamespace)
	callBytes        = []byte(pool.CallKey)
)

// encodeChunk encodes the reply that sends a chunk back. The chunk is the message's end and is not copied; the flag
// that marks the last chunk comes before it.
func encodeChunk(field tag, chunk mem.Buffer, last bool) mem.BufferSlice {
	w := newWriter(64)
	end, behind := w.at, chunk.Len()
	w.length(tagChunk, behind)
	if last {
		w.varint(tagChunkEnd, 1)
	}
	for _, t := range [...]tag{tagStreamed, tagBodyMutation, tagCommon, field} {
		w.length(t, end-w.at+behind)
	}
	chunk.Ref()
	return mem.BufferSlice{mem.SliceBuffer(w.buf[w.at:]), chunk}
}

// writer writes a message from its end to its beginning, so that each length is known when it is written.
type writer struct {
	buf []byte
	at  int // where the written part begins
}

// newWriter makes a writer for a message of at most size bytes.
func newWriter(size int) writer { return writer{buf: make([]byte, size), at: size} }

// wrap makes the bytes written since end the value of a field.
func (w *writer) wrap(field tag, end int) { w.length(field, end-w.at) }

// bytes writes a field of bytes.
func (w *writer) bytes(field tag, value []byte) {
	w.at -= len(value)
	copy(w.buf[w.at:], value)
	w.length(field, len(value))
}

// length writes a field's tag and its value's length.
func (w *writer) length(field tag, n int) { w.varint(field, uint64(n)) }

// varint writes a number field.
func (w *writer) varint(field tag, value uint64) {
	w.number(value)
	w.number(uint64(field))
}

// double writes a floating-point field.
func (w *writer) double(field tag, value float64) {
	w.at -= 8
	protowire.AppendFixed64(w.buf[:w.at], math.Float64bits(value))
	w.number(uint64(field))
}

func (w *writer) number(n uint64) {
	w.at -= protowire.SizeVarint(n)
	protowire.AppendVarint(w.buf[:w.at], n)
}

// refuse is the reply that ends a call with an error in the form that clients of the OpenAI API read.
func refuse(e *refusal.Error) *extprocv3.ProcessingResponse {
	headers := []*corev3.HeaderValueOption{setHeader("content-type", "application/json")}
	if e.RetryAfter > 0 {
		headers = append(headers, setHeader("retry-after", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds())))))
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{
		ImmediateResponse: &extprocv3.ImmediateResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(e.Status())},
			Headers: &extprocv3.HeaderMutation{SetHeaders: headers},
			Body:    errorBody(e),
			Details: "inference_waypoint_" + string(e.Reason), // for the proxy's access log
		},
	}}
}

func setHeader(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
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
	case refusal.Overloaded, refusal.TooLate, refusal.Shed, refusal.LineFull:
		body.Error.Type = "rate_limit_error"
	case refusal.Stalled:
		body.Error.Type = "invalid_request_error"
	case refusal.Internal:
		body.Error.Type = "server_error"
	}
	out, err := json.Marshal(body)
	if err != nil { // three strings always marshal
		return nil
	}
	return out
}
