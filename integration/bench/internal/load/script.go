package load

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/inference-waypoint/inference-waypoint/integration/bench/internal/prompt"
)

// Mode is how the proxy sends bodies.
type Mode uint8

const (
	// Buffered is Envoy's BUFFERED for requests, without the bodies of answers: a prompt comes as one message of up to
	// 1 MiB, and the proxy itself forwards the body.
	Buffered Mode = iota
	// Duplex is FULL_DUPLEX_STREAMED both ways: bodies come in chunks and the server sends every byte back.
	Duplex
)

func (m Mode) String() string { return [...]string{"buffered", "duplex"}[m] }

// chunkLength is the longest chunk of a streamed body, the most that ext_proc recommends. A server with a cost per message
// so gets as few messages as possible.
const chunkLength = 64 << 10

// requestIDDigits are the hexadecimal digits at the end of a request's id that differ from call to call.
const requestIDDigits = 12

const requestIDPrefix = "6f1c2a34-5b6d-4e7f-8a9b-"

// script holds the encoded messages of Envoy for the request of one HTTP call, with the two places that differ between
// calls: the request's id and the prompt's serial number. One stream uses it at a time.
type script struct {
	headers   []byte
	body      [][]byte
	bodyBytes int
	requestID []byte
	serial    []byte
}

// newScript encodes the messages for a body that prompt.Chat made.
func newScript(body []byte, mode Mode) (*script, error) {
	s := &script{bodyBytes: len(body)}
	var err error
	if s.headers, err = proto.Marshal(requestHeaders(len(body), mode)); err != nil {
		return nil, fmt.Errorf("encoding headers: %w", err)
	}
	limit := len(body)
	if mode == Duplex {
		limit = chunkLength
	}
	for at := 0; at < len(body); at += limit {
		end := min(at+limit, len(body))
		message, err := proto.Marshal(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
			RequestBody: &extprocv3.HttpBody{Body: body[at:end], EndOfStream: end == len(body)},
		}})
		if err != nil {
			return nil, fmt.Errorf("encoding a body: %w", err)
		}
		s.body = append(s.body, message)
	}
	at := bytes.Index(s.headers, []byte(requestIDPrefix)) + len(requestIDPrefix)
	s.requestID = s.headers[at : at+requestIDDigits]
	at = prompt.SerialAt(s.body[0])
	s.serial = s.body[0][at : at+prompt.SerialLength]
	return s, nil
}

// number makes the call unique by call, and its prompt by serial.
func (s *script) number(call, serial uint64) {
	var bytes [8]byte
	binary.BigEndian.PutUint64(bytes[:], call)
	hex.Encode(s.requestID, bytes[2:])
	prompt.SetSerial(s.serial, serial)
}

func requestHeaders(bodyBytes int, mode Mode) *extprocv3.ProcessingRequest {
	config := &extprocv3.ProtocolConfiguration{RequestBodyMode: procmodev3.ProcessingMode_BUFFERED}
	if mode == Duplex {
		config.RequestBodyMode = procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED
		config.ResponseBodyMode = procmodev3.ProcessingMode_FULL_DUPLEX_STREAMED
	}
	return &extprocv3.ProcessingRequest{
		ProtocolConfig: config,
		Attributes: map[string]*structpb.Struct{"envoy.filters.http.ext_proc": {Fields: map[string]*structpb.Value{
			"filter_state['io.istio.peer_principal']": structpb.NewStringValue("spiffe://cluster.local/ns/shop/sa/checkout"),
		}}},
		MetadataContext: &corev3.Metadata{},
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: headers(
			":authority", "llama.models.inference.internal",
			":path", "/v1/chat/completions",
			":method", "POST",
			":scheme", "http",
			"user-agent", "OpenAI/Python 1.68.2",
			"content-type", "application/json",
			"accept", "application/json",
			"accept-encoding", "gzip, deflate",
			"authorization", "Bearer 0123456789abcdef0123456789abcdef",
			"content-length", strconv.Itoa(bodyBytes),
			"x-forwarded-proto", "http",
			"x-request-id", requestIDPrefix+"000000000000",
		)}},
	}
}

// answerHeaders is Envoy's message of the answer's headers, with the serving endpoint.
func answerHeaders(endpoint string) ([]byte, error) {
	return proto.Marshal(&extprocv3.ProcessingRequest{
		MetadataContext: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.lb": {Fields: map[string]*structpb.Value{
			destinationKey: structpb.NewStringValue(endpoint),
			servedKey:      structpb.NewStringValue(endpoint),
		}}}},
		Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{Headers: headers(
			":status", "200",
			"content-type", "text/event-stream; charset=utf-8",
			"date", "Tue, 24 Nov 2026 06:00:00 GMT",
			"server", "uvicorn",
			"x-envoy-upstream-service-time", "12",
		)}},
	})
}

// answerBody is the whole body of a short answer, for proxies that send it.
func answerBody() ([]byte, error) {
	return proto.Marshal(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{
		Body:        []byte("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Yes.\"}}]}\n\ndata: [DONE]\n\n"),
		EndOfStream: true,
	}}})
}

func headers(pairs ...string) *corev3.HeaderMap {
	out := &corev3.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		out.Headers = append(out.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return out
}
