package extproc

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	procmodev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"
	"k8s.io/apimachinery/pkg/types"

	"github.com/inference-waypoint/inference-waypoint/internal/picker/poolstate"
	"github.com/inference-waypoint/inference-waypoint/internal/pool"
	"github.com/inference-waypoint/inference-waypoint/internal/telemetry"
)

const llama = "models/llama"

// world is a picker behind a real gRPC server, and a client of it.
type world struct {
	fleet    *poolstate.Fleet
	registry *prometheus.Registry
	server   *Server
	client   extprocv3.ExternalProcessorClient
}

func newWorld(t testing.TB, endpoints ...string) *world {
	t.Helper()
	return newWorldWith(t, poolstate.Options{Seed: 1}, Options{}, endpoints...)
}

// newWorldWith makes a world of other options, to which metrics are added, and a log that nobody reads unless one is
// given.
func newWorldWith(t testing.TB, ofFleet poolstate.Options, o Options, endpoints ...string) *world {
	t.Helper()
	w := &world{registry: prometheus.NewRegistry()}
	o.Metrics = telemetry.NewMetrics(w.registry)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ofFleet.Metrics = o.Metrics
	w.fleet = poolstate.New(ofFleet)
	w.set(llama, endpoints...)
	w.server = New(w.fleet, o)
	w.client = serve(t, w.server.Register, ServerOptions(LargestMessage)...)
	return w
}

// serve runs a gRPC server on the loopback until the test ends, and returns a client of it.
func serve(t testing.TB, register func(grpc.ServiceRegistrar), options ...grpc.ServerOption) extprocv3.ExternalProcessorClient {
	t.Helper()
	return dial(t, serveOnly(t, register, options...))
}

// serveOnly is serve without the client. It returns the server's address.
func serveOnly(t testing.TB, register func(grpc.ServiceRegistrar), options ...grpc.ServerOption) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(options...)
	register(server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // it ends with the test
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return listener.Addr().String()
}

func dial(t testing.TB, address string, options ...grpc.DialOption) extprocv3.ExternalProcessorClient {
	t.Helper()
	conn, err := grpc.NewClient(address, append(options, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return extprocv3.NewExternalProcessorClient(conn)
}

func (w *world) set(name string, endpoints ...string) {
	var list []pool.Endpoint
	for _, e := range endpoints {
		list = append(list, pool.Endpoint{Address: netip.MustParseAddrPort(e)})
	}
	namespace, base, _ := strings.Cut(name, "/")
	w.fleet.SetPool(pool.Pool{Name: types.NamespacedName{Namespace: namespace, Name: base}}, list)
}

// metric sums the values of a metric, of a histogram its count, over the series that have all of these "label=value".
func (w *world) metric(t testing.TB, name string, labels ...string) float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "inference_waypoint_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			if hasLabels(m, labels) {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return sum
}

func hasLabels(m *dto.Metric, labels []string) bool {
	for _, want := range labels {
		found := false
		for _, l := range m.GetLabel() {
			found = found || l.GetName()+"="+l.GetValue() == want
		}
		if !found {
			return false
		}
	}
	return true
}

// quiet waits until no stream is open and no call in flight.
func (w *world) quiet(t testing.TB) {
	t.Helper()
	w.inFlight(t, 0)
}

// inFlight waits until so many streams are open, each with a call in flight.
func (w *world) inFlight(t testing.TB, want float64) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		streams, requests := w.metric(t, "streams_in_flight"), w.metric(t, "requests_in_flight")
		if streams == want && requests == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%v streams open and %v calls in flight, want %v", streams, requests, want)
		}
	}
}

// exchange is one stream, seen from the proxy.
type exchange struct {
	t      testing.TB
	stream extprocv3.ExternalProcessor_ProcessClient
	cancel context.CancelFunc
	// first is what the first message carries in addition.
	first func(*extprocv3.ProcessingRequest)
	// only is the one endpoint that may serve, if set.
	only string
}

// open begins a stream for a pool; with an empty name, without naming one. A change, if any, is made to the first
// message.
func (w *world) open(t testing.TB, name string, first func(*extprocv3.ProcessingRequest)) *exchange {
	t.Helper()
	if name == "" {
		return w.openWith(t, first)
	}
	return w.openWith(t, first, pool.NameHeader, name)
}

// openWith opens a stream with metadata: keys, each with its value.
func (w *world) openWith(t testing.TB, first func(*extprocv3.ProcessingRequest), opening ...string) *exchange {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	stream, err := w.client.Process(metadata.AppendToOutgoingContext(ctx, opening...))
	if err != nil {
		t.Fatal(err)
	}
	return &exchange{t: t, stream: stream, cancel: cancel, first: first}
}

func (x *exchange) send(m *extprocv3.ProcessingRequest) {
	x.t.Helper()
	if x.first != nil {
		x.first(m)
		x.first = nil
	}
	if err := x.stream.Send(m); err != nil {
		x.t.Fatalf("sending: %v", err)
	}
}

func (x *exchange) recv() *extprocv3.ProcessingResponse {
	x.t.Helper()
	r, err := x.stream.Recv()
	if err != nil {
		x.t.Fatalf("receiving: %v", err)
	}
	return r
}

// close ends the stream as a proxy does when its call is over, and waits for the server's end of it.
func (x *exchange) close() {
	x.t.Helper()
	if err := x.stream.CloseSend(); err != nil {
		x.t.Fatal(err)
	}
	if r, err := x.stream.Recv(); err == nil {
		x.t.Fatalf("a reply that nobody asked for: %v", r)
	}
}

func withModes(request, answer procmodev3.ProcessingMode_BodySendMode) func(*extprocv3.ProcessingRequest) {
	return func(m *extprocv3.ProcessingRequest) {
		m.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: request, ResponseBodyMode: answer}
	}
}

func requestHeaders(end bool, more ...string) *extprocv3.ProcessingRequest {
	out := headersOf("POST", more...)
	out.GetRequestHeaders().EndOfStream = end
	return out
}

// headersOf are the headers of a request of a method whose body is to come.
func headersOf(method string, more ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{
		Headers: headerMap(append([]string{":method", method, ":path", "/v1/completions"}, more...)...),
	}}}
}

func requestBody(body []byte, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: body, EndOfStream: end}}}
}

func requestTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
}

func answerHeaders(status string, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{
		Headers: headerMap(":status", status), EndOfStream: end,
	}}}
}

func answerBody(body []byte, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: &extprocv3.HttpBody{Body: body, EndOfStream: end}}}
}

func answerTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}}
}

func headerMap(pairs ...string) *corev3.HeaderMap {
	h := &corev3.HeaderMap{}
	for i := 0; i < len(pairs); i += 2 {
		h.Headers = append(h.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return h
}

// withMetadata puts a value into a message's metadata.
func withMetadata(m *extprocv3.ProcessingRequest, namespace, key string, value any) *extprocv3.ProcessingRequest {
	v, err := structpb.NewValue(value)
	if err != nil {
		panic(err) // a fault of the test itself
	}
	m.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		namespace: {Fields: map[string]*structpb.Value{key: v}},
	}}
	return m
}

// picked returns the pick of a reply and checks that header and metadata agree.
func picked(t testing.TB, r *extprocv3.ProcessingResponse) []string {
	t.Helper()
	var common *extprocv3.CommonResponse
	switch kind := r.GetResponse().(type) {
	case *extprocv3.ProcessingResponse_RequestHeaders:
		common = kind.RequestHeaders.GetResponse()
	case *extprocv3.ProcessingResponse_RequestBody:
		common = kind.RequestBody.GetResponse()
	default:
		t.Fatalf("the reply is %v, want one that carries a pick", r)
	}
	set := common.GetHeaderMutation().GetSetHeaders()
	if len(set) != 1 || set[0].GetHeader().GetKey() != "x-gateway-destination-endpoint" {
		t.Fatalf("the reply sets headers %v, want the destination alone", set)
	}
	if set[0].GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
		t.Error("a client's own destination header is not overwritten")
	}
	if common.GetClearRouteCache() {
		t.Error("the reply clears the route cache: the route would be chosen again for nothing")
	}
	inHeader := string(set[0].GetHeader().GetRawValue())
	if inMetadata := metadataPick(r); inMetadata != inHeader {
		t.Errorf("the metadata say %q, the header %q", inMetadata, inHeader)
	}
	return strings.Split(inHeader, ",")
}

func metadataPick(r *extprocv3.ProcessingResponse) string {
	return r.GetDynamicMetadata().GetFields()["envoy.lb"].GetStructValue().GetFields()["x-gateway-destination-endpoint"].GetStringValue()
}

func isContinue(t testing.TB, r *extprocv3.ProcessingResponse, want string) {
	t.Helper()
	kind := strings.TrimPrefix(fmt.Sprintf("%T", r.GetResponse()), "*ext_procv3.ProcessingResponse_")
	if kind != want {
		t.Fatalf("the reply is a %s, want a %s", kind, want)
	}
	if r.GetDynamicMetadata() != nil {
		t.Errorf("the reply carries metadata: %v", r)
	}
}

// completion is the body of a call to /v1/completions whose prompt is conversation-specific text of so many bytes; a
// longer one continues a shorter one.
func completion(conversation, bytes int) []byte {
	word := fmt.Sprintf("conversation %d goes on. ", conversation)
	text := strings.Repeat(word, bytes/len(word)+1)[:bytes]
	return fmt.Appendf(nil, `{"model":"llama","prompt":%q}`, text)
}
