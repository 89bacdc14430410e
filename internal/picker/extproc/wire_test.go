package extproc

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/picker/refusal"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
)

// seen is what a pick needs of a message.
type seen struct {
	Kind                    kind
	Observability           bool
	ModesTold               bool
	RequestMode, AnswerMode int32
	Path, Status, Trace     string
	ContentType, Encoding   string
	Body                    string
	End                     bool
	Subset                  poolstate.Subset
	Served                  string
}

// byHand decodes a message with the picker's code.
func byHand(t testing.TB, r *received) seen {
	t.Helper()
	s := seen{
		Kind: r.kind, Observability: r.observability,
		ModesTold: r.modesTold, RequestMode: r.requestMode, AnswerMode: r.answerMode,
		Path: string(r.path), Status: string(r.status), Trace: string(r.trace),
		ContentType: string(r.contentType), Encoding: string(r.contentEncoding),
		Body: string(r.body), End: r.end, Served: string(r.served),
	}
	if r.subset != nil {
		if err := readSubset(r.subset, &s.Subset); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// byGenerated decodes a message with protobuf's generated code.
func byGenerated(m *extprocv3.ProcessingRequest) seen {
	s := seen{Observability: m.GetObservabilityMode()}
	if c := m.GetProtocolConfig(); c != nil {
		s.ModesTold, s.RequestMode, s.AnswerMode = true, int32(c.GetRequestBodyMode()), int32(c.GetResponseBodyMode())
	}
	headers := func(k kind, h *extprocv3.HttpHeaders) {
		s.Kind, s.End = k, h.GetEndOfStream()
		s.Path, s.Status, s.Trace = generatedHeader(h.GetHeaders(), ":path"), generatedHeader(h.GetHeaders(), ":status"), generatedHeader(h.GetHeaders(), "traceparent")
		s.ContentType, s.Encoding = generatedHeader(h.GetHeaders(), "content-type"), generatedHeader(h.GetHeaders(), "content-encoding")
	}
	body := func(k kind, b *extprocv3.HttpBody) {
		s.Kind, s.Body, s.End = k, string(b.GetBody()), b.GetEndOfStream()
	}
	switch r := m.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		headers(onRequestHeaders, r.RequestHeaders)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		headers(onAnswerHeaders, r.ResponseHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		body(onRequestBody, r.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseBody:
		body(onAnswerBody, r.ResponseBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		s.Kind = onRequestTrailers
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		s.Kind = onAnswerTrailers
	}
	metadata := m.GetMetadataContext().GetFilterMetadata()
	if hint, ok := metadata[subsetNamespace].GetFields()[subsetKey]; ok {
		s.Subset.Given = true
		for _, v := range hint.GetListValue().GetValues() {
			s.Subset.Add(v.GetStringValue())
		}
		for part := range strings.SplitSeq(hint.GetStringValue(), ",") {
			s.Subset.Add(part)
		}
	}
	if v, ok := metadata[lbNamespace].GetFields()[servedKey]; ok {
		s.Served = v.GetStringValue()
		return s
	}
	for _, group := range m.GetAttributes() {
		for _, key := range []string{"upstream.address", servedKey} {
			if v, ok := group.GetFields()[key]; ok {
				s.Served = v.GetStringValue()
			}
		}
	}
	return s
}

func generatedHeader(h *corev3.HeaderMap, key string) string {
	for _, v := range h.GetHeaders() {
		if v.GetKey() == key {
			if len(v.GetRawValue()) > 0 {
				return string(v.GetRawValue())
			}
			return v.GetValue()
		}
	}
	return ""
}

// wireSamples are messages with all fields that matter.
func wireSamples(t testing.TB) []*extprocv3.ProcessingRequest {
	t.Helper()
	observed := requestHeaders(true)
	observed.ObservabilityMode = true
	attributes := answerHeaders("503", true)
	attributes.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": {Fields: map[string]*structpb.Value{
		"upstream.address": structpb.NewStringValue("10.0.0.9:80"), servedKey: structpb.NewStringValue("10.0.0.1:80"),
	}}}
	oldHeaders := &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{
		Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":path", Value: "/v1/completions"}, {Key: ":path", Value: "/second"}, {Key: "traceparent"},
		}},
	}}}
	first := requestHeaders(false, "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x-other", "y",
		"content-type", "application/json", "content-encoding", "gzip", "content-encoding", "zstd")
	withModes(partial, full)(first)
	return []*extprocv3.ProcessingRequest{
		{}, first, observed, attributes, oldHeaders,
		requestBody(bytes.Repeat([]byte("x"), 300), true), requestBody(nil, false), requestTrailers(),
		answerBody([]byte("data"), false), answerTrailers(),
		withMetadata(requestHeaders(false), subsetNamespace, subsetKey, []any{"10.0.0.1:80", 7.0, "[fd00::1]:80", nil}),
		withMetadata(requestHeaders(false), subsetNamespace, subsetKey, "10.0.0.1:80,10.0.0.2:80"),
		withMetadata(requestHeaders(false), subsetNamespace, subsetKey, nil),
		withMetadata(requestHeaders(false), subsetNamespace, "other", "10.0.0.1:80"),
		withMetadata(answerHeaders("200", false), lbNamespace, servedKey, "envoy://connect_originate/10.0.0.1:80"),
		withMetadata(answerHeaders("200", false), lbNamespace, servedKey, map[string]any{"no": "text"}),
	}
}

// FuzzDecode compares the picker's decoding with the generated code's: equal where protobuf decodes a message, and
// without a panic where the message is malformed.
func FuzzDecode(f *testing.F) {
	for _, m := range wireSamples(f) {
		encoded, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(encoded)
	}
	f.Add([]byte{8<<3 | 2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{4<<3 | 2, 2, 1<<3 | 3, 1<<3 | 4, 2<<3 | 1})
	f.Fuzz(func(t *testing.T, encoded []byte) {
		var r received
		_ = r.decode(encoded)
		m := &extprocv3.ProcessingRequest{}
		if proto.Unmarshal(encoded, m) != nil || len(m.GetAttributes()) > 1 { // the order of groups is not defined
			return
		}
		canonical, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		r = received{}
		if err := r.decode(canonical); err != nil {
			t.Fatalf("%v: %v", m, err)
		}
		if diff := cmp.Diff(byGenerated(m), byHand(t, &r), cmp.Comparer(func(a, b poolstate.Subset) bool {
			return fmt.Sprint(a) == fmt.Sprint(b)
		})); diff != "" {
			t.Errorf("%v (-generated +ours):\n%s", m, diff)
		}
	})
}

// The fuzz seeds have the fields that they are meant to have.
func TestDecodeSamples(t *testing.T) {
	seenSubset, seenServed, seenTrace := 0, 0, 0
	for _, m := range wireSamples(t) {
		encoded, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var r received
		if err := r.decode(encoded); err != nil {
			t.Fatal(err)
		}
		got := byHand(t, &r)
		seenSubset += len(got.Subset.Endpoints)
		if got.Served != "" {
			seenServed++
		}
		if got.Trace != "" {
			seenTrace++
		}
	}
	if seenSubset != 4 || seenServed != 2 || seenTrace != 1 {
		t.Errorf("saw %d endpoints of subsets, %d served, %d traces; want 4, 2 and 1", seenSubset, seenServed, seenTrace)
	}
}

// A message that is cut anywhere is an error, or decodes to what was there; it never causes a panic.
func TestDecodeCutMessages(t *testing.T) {
	errors := 0
	for _, m := range wireSamples(t) {
		encoded, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		for n := range encoded {
			var r received
			if r.decode(encoded[:n]) != nil {
				errors++
			}
		}
	}
	if errors == 0 {
		t.Error("no cut message is an error")
	}
}

// A malformed message ends its stream alone.
func TestCodecTellsOfMalformedMessages(t *testing.T) {
	var r received
	err := newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer{4<<3 | 2, 5, 1}}, &r)
	if err == nil || !strings.Contains(err.Error(), "malformed ProcessingRequest") {
		t.Errorf("the error is %v, want one that tells of a malformed message", err)
	}
}

// Replies equal the generated code's for the same content, at all lengths where a length takes more bytes.
func TestReplies(t *testing.T) {
	addresses := func(n int) []byte { return bytes.Repeat([]byte("1"), n) }
	sizes := []int{1, 13, 80, 100, 127, 128, 200, 16250, 16384, 70000}
	tests := map[string]struct {
		reply reply
		want  *extprocv3.ProcessingResponse
	}{
		"plain request headers":  {reply{kind: onRequestHeaders}, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}},
		"plain request body":     {reply{kind: onRequestBody}, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{}}}},
		"plain request trailers": {reply{kind: onRequestTrailers}, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}},
		"plain answer headers":   {reply{kind: onAnswerHeaders}, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}},
		"plain answer body":      {reply{kind: onAnswerBody}, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: &extprocv3.BodyResponse{}}}},
		"plain answer trailers":  {reply{kind: onAnswerTrailers}, &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}},
		"refusal":                {reply{refused: refusal.New(refusal.Overloaded, "full")}, refuse(refusal.New(refusal.Overloaded, "full"))},
	}
	type row = struct {
		reply reply
		want  *extprocv3.ProcessingResponse
	}
	for _, n := range sizes {
		common := &extprocv3.CommonResponse{HeaderMutation: &extprocv3.HeaderMutation{SetHeaders: []*corev3.HeaderValueOption{{
			Header:       &corev3.HeaderValue{Key: destinationKey, RawValue: addresses(n)},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		}}}}
		call := uint64(1)<<52 + uint64(n)
		metadata, err := structpb.NewStruct(map[string]any{lbNamespace: map[string]any{destinationKey: string(addresses(n)), pool.CallKey: float64(call)}})
		if err != nil {
			t.Fatal(err)
		}
		tests[fmt.Sprintf("pick of %d bytes on headers", n)] = row{reply{kind: onRequestHeaders, endpoints: addresses(n), call: call}, &extprocv3.ProcessingResponse{
			DynamicMetadata: metadata,
			Response:        &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{Response: common}},
		}}
		tests[fmt.Sprintf("pick of %d bytes on the body", n)] = row{reply{kind: onRequestBody, endpoints: addresses(n), call: call}, &extprocv3.ProcessingResponse{
			DynamicMetadata: metadata,
			Response:        &extprocv3.ProcessingResponse_RequestBody{RequestBody: &extprocv3.BodyResponse{Response: common}},
		}}
		tests[fmt.Sprintf("pick of %d bytes on trailers", n)] = row{reply{kind: onRequestTrailers, endpoints: addresses(n), call: call}, &extprocv3.ProcessingResponse{
			DynamicMetadata: metadata,
			Response:        &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}},
		}}
	}
	for _, n := range append(sizes, 0) {
		for _, end := range []bool{false, true} {
			body := &extprocv3.BodyResponse{Response: &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{
				Mutation: &extprocv3.BodyMutation_StreamedResponse{StreamedResponse: &extprocv3.StreamedBodyResponse{Body: addresses(n), EndOfStream: end}},
			}}}
			tests[fmt.Sprintf("chunk of %d bytes of the request, end %v", n, end)] = row{
				reply{kind: onRequestBody, chunk: mem.SliceBuffer(addresses(n)), end: end},
				&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: body}},
			}
			tests[fmt.Sprintf("chunk of %d bytes of the answer, end %v", n, end)] = row{
				reply{kind: onAnswerBody, chunk: mem.SliceBuffer(addresses(n)), end: end},
				&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: body}},
			}
		}
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			encoded, err := newCodec().Marshal(&tt.reply)
			if err != nil {
				t.Fatal(err)
			}
			got := &extprocv3.ProcessingResponse{}
			if err := proto.Unmarshal(encoded.Materialize(), got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(tt.want, got) { // whose difference takes long to find at 70,000 bytes
				t.Errorf("reply (-want +got):\n%s", cmp.Diff(tt.want, got, protocmp.Transform()))
			}
		})
	}
}

// Messages of other services use protobuf's codec: health checks share the server.
func TestCodecLeavesOtherMessagesToProtobuf(t *testing.T) {
	want := answerHeaders("200", true)
	encoded, err := newCodec().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := &extprocv3.ProcessingRequest{}
	if err := newCodec().Unmarshal(encoded, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

func TestBufferPoolGivesRoomOfTheLengthAskedFor(t *testing.T) {
	var p bufferPool
	for _, n := range []int{0, 1, 2, 3, 1023, 1024, 1025, 1<<20 - 1, 1 << 20, 1<<20 + 1} {
		for range 3 {
			room := p.Get(n)
			if len(*room) != n || cap(*room) > max(2*n, 1) {
				t.Errorf("for %d bytes: %d, room for %d", n, len(*room), cap(*room))
			}
			p.Put(room)
		}
	}
}

// A body's buffer is found by the body's place in the message, and not by the capacity of its slice.
func TestBodyBufferIsTheBody(t *testing.T) {
	for name, m := range map[string]*extprocv3.ProcessingRequest{
		"of a request": requestBody([]byte("some bytes"), true),
		"of an answer": answerBody([]byte("some bytes"), false),
	} {
		t.Run(name, func(t *testing.T) {
			withModes(full, full)(m) // a field behind the body's
			encoded, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			r := received{message: mem.SliceBuffer(append(make([]byte, 0, 1000), encoded...))}
			if err := r.decode(r.message.ReadOnlyData()); err != nil {
				t.Fatal(err)
			}
			r.body = slices.Clip(r.body)
			if got := string(r.bodyBuffer().ReadOnlyData()); got != "some bytes" {
				t.Errorf("the buffer holds %q", got)
			}
		})
	}
}

// A proxy may name any number of endpoints in one message, and the picker keeps a bounded number of them.
func TestSubsetIsBounded(t *testing.T) {
	many := strings.Repeat("::,", 1_000_000)
	list := &structpb.ListValue{}
	for range 2 * mostAllowed {
		list.Values = append(list.Values, structpb.NewStringValue("::"))
	}
	for name, value := range map[string]*structpb.Value{"text": structpb.NewStringValue(many), "list": structpb.NewListValue(list)} {
		encoded, err := proto.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		var s poolstate.Subset
		if err := readSubset(encoded, &s); err != nil || len(s.Endpoints) != mostAllowed {
			t.Errorf("%s: %d endpoints, %v; want %d", name, len(s.Endpoints), err, mostAllowed)
		}
	}
	w := newWorld(t, fourEndpoints...)
	x := w.open(t, llama, nil)
	x.send(withMetadata(requestHeaders(true), subsetNamespace, subsetKey, many+"10.0.0.1"))
	x.recv()
	x.close()
	w.quiet(t)
	left := w.server.sessions.Get().(*session)
	if cap(left.subset.Endpoints) > subsetKept {
		t.Errorf("room for %d endpoints is kept for the next call, want %d", cap(left.subset.Endpoints), subsetKept)
	}
}
